//! Golden cases from Transformers: running and comparing them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use lxpod_backends::{Feed, Outputs};
use lxpod_ir::Target;
use lxpod_ir::front::{AnswerLoss, Task};
use lxpod_passes::plan::Plan;
use lxpod_passes::{CompileOptions, Precision, compile};
use lxpod_runtime::tensors::HostTensor;
use lxpod_runtime::train::{Learner, Moment, Recipe};
use lxpod_runtime::{Model, RunResult, Samples, Session, SessionOptions, read_tensors};

/// The folder of a golden case. `LXPOD_GOLDENS` names another folder of cases than the repository's.
pub(crate) fn folder(case: &str) -> PathBuf {
    let own = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let cases = std::env::var_os("LXPOD_GOLDENS").unwrap_or_else(|| own.into());
    PathBuf::from(cases).join(case)
}

/// Every case that can be run as it is.
pub(crate) fn cases() -> Vec<String> {
    let folders = std::fs::read_dir(folder("")).expect("golden cases");
    let names = folders.map(|entry| {
        entry
            .expect("a folder")
            .file_name()
            .into_string()
            .expect("ASCII")
    });
    let mut cases: Vec<String> = names
        .filter(|name| folder(name).join("expected.safetensors").exists())
        .collect();
    cases.retain(|name| name != "storage_types" && !name.starts_with("train_"));
    cases.sort();
    assert!(cases.len() >= 22, "{cases:?}");
    cases
}

/// A case, opened.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) model: Model,
    pub(crate) task: Task,
    pub(crate) inputs: BTreeMap<String, HostTensor>,
    pub(crate) expected: BTreeMap<String, HostTensor>,
}

impl Case {
    pub(crate) fn open(name: &str) -> Case {
        Case::from_folder(&folder(name), folder(name).join("inputs.safetensors"))
    }

    pub(crate) fn from_folder(folder: &Path, inputs: PathBuf) -> Case {
        let model = Model::open(&folder.to_string_lossy(), 0).expect("a model");
        Case {
            task: Task::from_architectures(&model.config.architectures),
            inputs: read_tensors(&inputs).expect("inputs"),
            expected: read_tensors(&folder.join("expected.safetensors")).expect("expected"),
            model,
        }
    }

    pub(crate) fn samples(&self) -> Samples {
        let path = Path::new("inputs.safetensors");
        Samples::from_tensors(&self.inputs, path, &self.model.config, self.task).expect("samples")
    }

    /// Options for the case's samples, with the outputs that are expected.
    pub(crate) fn options(&self, stages: usize) -> CompileOptions {
        let mut model = self
            .samples()
            .model_options(self.task, AnswerLoss::CrossEntropy);
        model.hidden_states = self
            .expected
            .keys()
            .any(|name| name.contains("hidden_states"));
        model.attentions = self.expected.keys().any(|name| name.contains("attentions"));
        let mut options = CompileOptions::new(model, Target::named("pod16").expect("built in"));
        options.stages = Some(stages);
        options.precision = Precision::Fp32;
        options
    }

    pub(crate) fn plan(&self, options: &CompileOptions) -> Plan {
        compile(
            &self.model.config,
            &self.model.name,
            options,
            &mut |_, _| {},
        )
        .expect("a plan")
        .0
    }

    pub(crate) fn session(&self, plan: Plan, options: SessionOptions) -> Session {
        let (weights, _) = self.model.weights(&plan).expect("weights");
        Session::new(plan, weights.as_ref(), options).expect("a session")
    }
}

/// Checks every output against Transformers'.
pub(crate) fn check(
    case: &str,
    result: &RunResult,
    expected: &BTreeMap<String, HostTensor>,
    atol: f32,
) {
    for (name, tensor) in expected {
        let output = result
            .get(name)
            .unwrap_or_else(|| panic!("{case}: no output {name}"));
        assert_eq!(output.shape, tensor.shape(), "{case}: shape of {name}");
        for (at, (&got, want)) in output
            .values
            .iter()
            .zip(tensor.to_f32().expect("floats"))
            .enumerate()
        {
            let tolerance = atol + 1e-5 * want.abs();
            assert!(
                (got - want).abs() <= tolerance,
                "{case}: {name}[{at}] is {got}, expected {want}"
            );
        }
    }
}

/// A step of random micro-batches; returns the bits of every one's outputs, and of the update's.
pub(crate) fn step(
    learner: &mut Learner,
    recipe: &Recipe,
    mut feeds: Vec<Feed>,
    at: usize,
) -> Vec<u32> {
    let loss_scale = if learner.scaled { 256.0 } else { 1.0 };
    learner.scale(&mut feeds, loss_scale);
    let hyper = recipe.hyper(&Moment {
        step: at + 1,
        steps: 10,
        applied: at as u64,
        micro_batches: feeds.len(),
        loss_scale,
        seed: 3,
    });
    let (mut outputs, mut update) = (Vec::new(), Outputs::new());
    let run = learner
        .executable
        .step(&feeds, &hyper, &mut outputs, &mut update);
    run.expect("a step");
    let all = outputs.iter().flatten().chain(&update);
    let bits: Vec<u32> = all
        .flat_map(|tensor| tensor.reals())
        .map(|x| x.to_bits())
        .collect();
    assert!(bits.iter().all(|&bits| f32::from_bits(bits).is_finite()));
    bits
}

/// The bits of what is left behind by steps, by name.
pub(crate) fn persistent(learner: &Learner) -> BTreeMap<String, Vec<u32>> {
    let kept = learner.executable.persistent();
    let bits = |values: &[f32]| values.iter().map(|x| x.to_bits()).collect();
    kept.iter()
        .map(|(name, tensor)| (name.clone(), bits(tensor.reals())))
        .collect()
}
