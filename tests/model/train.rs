//! Trajectories: twenty steps of training beside Transformers.

use std::collections::BTreeMap;

use lxpod_backends::{Feed, Outputs};
use lxpod_ir::Target;
use lxpod_ir::front::Task;
use lxpod_passes::plan::Plan;
use lxpod_passes::schedule::{Branches, Rule, Schedule};
use lxpod_passes::{CompileOptions, Precision, Recompute, TrainingOptions, compile};
use lxpod_runtime::tensors::HostTensor;
use lxpod_runtime::train::{
    Batches, Feeds, Learner, LossScaler, Moment, OptimizerName, Recipe, RecipeName,
    TrainableOptions, trainable,
};
use lxpod_runtime::{BackendKind, Model, SessionOptions, read_tensors};

use crate::support::folder;

/// One way to run a step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Variant {
    pub(crate) precision: Precision,
    pub(crate) seed: u64,
    pub(crate) backend: BackendKind,
    pub(crate) stages: usize,
    pub(crate) replicas: usize,
    pub(crate) rule: Rule,
    pub(crate) recompute: Recompute,
    pub(crate) threads: usize,
    pub(crate) shares_states: bool,
    pub(crate) guard: bool,
    pub(crate) branches: bool,
}

pub(crate) const PLAIN: Variant = Variant {
    precision: Precision::Fp32,
    seed: 0,
    backend: BackendKind::Cpu,
    stages: 1,
    replicas: 1,
    rule: Rule::GPipe,
    recompute: Recompute::None,
    threads: 1,
    shares_states: false,
    guard: false,
    branches: false,
};

impl Variant {
    /// The same in mixed precision, with what is rounded by chance decided by this seed.
    pub(crate) fn mixed(self, seed: u64) -> Variant {
        Variant {
            precision: Precision::Mixed,
            seed,
            ..self
        }
    }
}

/// What a run of a golden trajectory gave.
pub(crate) struct Trajectory {
    pub(crate) losses: Vec<f64>,
    norms: Vec<f64>,
    persistent: BTreeMap<String, Vec<f32>>,
    parameters: BTreeMap<String, Vec<f32>>,
}

pub(crate) struct Golden {
    pub(crate) model: Model,
    pub(crate) recipe: Recipe,
    pub(crate) accumulation: usize,
    batches: std::path::PathBuf,
    expected: BTreeMap<String, HostTensor>,
    last: BTreeMap<String, HostTensor>,
}

impl Golden {
    pub(crate) fn open(name: RecipeName) -> Golden {
        let folder = folder(&format!("train_{name}"));
        let meta = std::fs::read(folder.join("meta.json")).expect("meta.json");
        let meta: serde_json::Value = serde_json::from_slice(&meta).expect("JSON");
        let number = |name: &str| meta[name].as_f64().expect("a number");
        let read = |name: &str| read_tensors(&folder.join(name)).expect("tensors");
        Golden {
            model: Model::open(&folder.to_string_lossy(), 0).expect("a model"),
            recipe: Recipe {
                learning_rate: number("learning_rate"),
                ..Recipe::named(name)
            },
            accumulation: number("gradient_accumulation") as usize,
            batches: folder.join("inputs.safetensors"),
            expected: read("expected.safetensors"),
            last: read("final_params.safetensors"),
        }
    }

    pub(crate) fn options(&self, variant: Variant) -> CompileOptions {
        let batches = Batches::open(&self.batches, &self.model.config, Task::Qa).expect("batches");
        let samples = batches.samples(0).expect("samples");
        let mut model = samples.model_options(Task::Qa, self.recipe.loss);
        model.micro_batch = samples.batch;
        let mut options = CompileOptions::new(model, Target::named("pod16").expect("built in"));
        options.stages = Some(variant.stages);
        options.replicas = variant.replicas;
        options.precision = variant.precision;
        options.branches = variant.branches;
        options.training = Some(TrainingOptions {
            rule: variant.rule,
            accumulation: self.accumulation / variant.replicas,
            recompute: variant.recompute,
            replicated_tensor_sharding: variant.shares_states,
            ..TrainingOptions::default()
        });
        options
    }

    /// The micro-batches of the first step.
    pub(crate) fn micro_batches(&self, variant: Variant) -> Vec<Feed> {
        let batches = Batches::open(&self.batches, &self.model.config, Task::Qa).expect("batches");
        let feeds = batches.feeds(self.learner(variant).1, self.accumulation);
        feeds.expect("feeds").read(0).expect("a step")
    }

    pub(crate) fn learner(&self, variant: Variant) -> (Learner, lxpod_ir::Graph) {
        let options = TrainableOptions {
            compile: self.options(variant),
            recipe: self.recipe.clone(),
            frozen: Vec::new(),
            session: SessionOptions {
                backend: variant.backend,
                threads: variant.threads,
                guard: variant.guard,
                ..SessionOptions::default()
            },
        };
        let built = lxpod_ir::front::build(&self.model.config, &options.compile.model);
        let expected = built.expect("a graph").expected;
        let (weights, _) = self.model.weights_of(&expected).expect("weights");
        trainable(&self.model, &options, weights.as_ref()).expect("a learner")
    }

    /// The losses that Transformers has, in f32.
    pub(crate) fn losses(&self) -> Vec<f64> {
        let losses = self.expected["loss"].to_f32().expect("floats");
        losses.into_iter().map(f64::from).collect()
    }

    pub(crate) fn run(&self, variant: Variant, steps: usize) -> Trajectory {
        let (mut learner, graph) = self.learner(variant);
        let batches = Batches::open(&self.batches, &self.model.config, Task::Qa).expect("batches");
        let mut feeds = batches.feeds(graph, self.accumulation).expect("feeds");
        let (mut outputs, mut update) = (Vec::new(), Outputs::new());
        let (mut losses, mut norms) = (Vec::new(), Vec::new());
        let all = feeds.steps();
        let loss_scale = match variant.precision {
            Precision::Fp32 => 1.0,
            Precision::Mixed => LossScaler::new(self.recipe.loss_scaling).scale(),
        };
        for step in 0..steps.min(all) {
            let mut read: Vec<Feed> = feeds.read(step).expect("a step");
            learner.scale(&mut read, loss_scale);
            let hyper = self.recipe.hyper(&Moment {
                step,
                steps: all,
                applied: step as u64,
                micro_batches: read.len(),
                loss_scale,
                seed: variant.seed,
            });
            let run = learner
                .executable
                .step(&read, &hyper, &mut outputs, &mut update);
            run.expect("a step");
            let at = |names: &[String], name: &str| names.iter().position(|n| n == name);
            let loss = at(&learner.outputs, "loss").expect("a loss");
            let micro = outputs
                .iter()
                .map(|outputs| f64::from(outputs[loss].reals()[0]));
            losses.push(micro.sum::<f64>() / self.accumulation as f64);
            let norm = at(&learner.update, "grad_norm").expect("a norm");
            let norm = f64::from(update[norm].reals()[0]);
            assert!(norm.is_finite(), "step {step} was skipped");
            norms.push(norm);
        }
        let persistent = learner.executable.persistent();
        let parameters = persistent.iter().filter_map(|(name, tensor)| {
            let binding: lxpod_ir::Binding = name.strip_prefix("param:")?.parse().ok()?;
            Some((binding, tensor.shape.rows(), tensor.reals().to_vec()))
        });
        let rows = |name: &str| self.last[name].shape().first().copied().unwrap_or(1);
        let mut named: BTreeMap<String, Vec<f32>> = BTreeMap::new();
        for (binding, count, values) in parameters {
            let pieces = binding.pieces(0, count, &rows);
            let mut rest = values.as_slice();
            for piece in pieces {
                let last = &self.last[piece.tensor];
                let elements: usize = last.shape().iter().product();
                let width = elements / rows(piece.tensor).max(1);
                let (own, more) = rest.split_at((piece.end - piece.start) * width);
                // Rows that no parameter has are those of the golden.
                let whole = || last.to_f32().expect("floats").to_vec();
                let tensor = named.entry(piece.tensor.to_owned()).or_insert_with(whole);
                tensor[piece.start * width..piece.end * width].copy_from_slice(own);
                rest = more;
            }
        }
        Trajectory {
            losses,
            norms,
            persistent: persistent
                .into_iter()
                .map(|(name, tensor)| (name, tensor.reals().to_vec()))
                .collect(),
            parameters: named,
        }
    }

    fn check(&self, what: &str, found: &Trajectory) {
        let want = self.losses();
        for (step, (&found, &want)) in found.losses.iter().zip(&want).enumerate() {
            assert!(
                (found - want).abs() < 2e-5,
                "{what}: loss of step {step} is {found}, expected {want}"
            );
        }
        let mut compared = 0;
        for (name, values) in &found.parameters {
            if name.ends_with("key.bias") {
                continue;
            }
            let want = self.last[name].to_f32().expect("floats");
            for (at, (&found, &want)) in values.iter().zip(&want).enumerate() {
                assert!(
                    (found - want).abs() < 5e-5,
                    "{what}: {name}[{at}] is {found}, expected {want}"
                );
            }
            compared += 1;
        }
        assert!(compared > 50, "{what}: {compared} parameters");
    }
}

#[test]
fn the_reference_follows_transformers() {
    for name in RecipeName::ALL {
        let golden = Golden::open(name);
        let variant = Variant {
            backend: BackendKind::Reference,
            ..PLAIN
        };
        golden.check(&format!("{name}, reference"), &golden.run(variant, 20));
    }
}

#[test]
fn the_cpu_follows_transformers() {
    for name in RecipeName::ALL {
        let golden = Golden::open(name);
        golden.check(&format!("{name}, cpu"), &golden.run(PLAIN, 20));
    }
}

/// Every schedule that the accumulation allows, over so many stages.
fn rules(stages: usize, accumulation: usize) -> Vec<Rule> {
    let allows = |rule: &Rule| {
        let schedule = Schedule {
            rule: *rule,
            tiles: stages,
            chunks: if *rule == Rule::Interleaved { 2 } else { 1 },
            training: true,
            branches: Branches::chain(),
        };
        schedule.check(accumulation).is_ok()
    };
    Rule::ALL.into_iter().filter(allows).collect()
}

impl Golden {
    /// Checks that each variant gives the bits of [`PLAIN`] over three steps.
    pub(crate) fn same_bits(&self, variants: impl IntoIterator<Item = Variant>) {
        self.same_bits_as(PLAIN, variants);
    }

    /// Checks that each variant gives the bits of `plain` over three steps.
    fn same_bits_as(&self, plain: Variant, variants: impl IntoIterator<Item = Variant>) {
        let bits = |values: &[f64]| values.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        let expected = self.run(plain, 3);
        for variant in variants {
            let found = self.run(variant, 3);
            assert_eq!(bits(&found.losses), bits(&expected.losses), "{variant:?}");
            assert_eq!(bits(&found.norms), bits(&expected.norms), "{variant:?}");
            for (tensor, values) in &expected.persistent {
                let same = values.iter().zip(&found.persistent[tensor]);
                let differ = same.filter(|(a, b)| a.to_bits() != b.to_bits()).count();
                assert_eq!(differ, 0, "{variant:?}: {tensor}");
            }
        }
    }
}

#[test]
fn stages_schedules_recomputation_and_threads_change_no_bit() {
    for name in [RecipeName::Hf, RecipeName::Airsplay] {
        let golden = Golden::open(name);
        let mut variants = Vec::new();
        for stages in [1, 4, 16] {
            for rule in rules(stages, golden.accumulation) {
                for recompute in [Recompute::None, Recompute::Layer] {
                    variants.push(Variant {
                        stages,
                        rule,
                        recompute,
                        threads: 1 + stages % 2,
                        ..PLAIN
                    });
                }
            }
        }
        golden.same_bits(variants);
    }
}

#[test]
fn steps_stay_inside_live_buffers() {
    let golden = Golden::open(RecipeName::Ipu);
    for (stages, replicas) in [(1, 1), (4, 1), (4, 2)] {
        let plain = Variant {
            stages,
            replicas,
            ..PLAIN
        };
        let guarded = [false, true].map(|shares_states| Variant {
            shares_states,
            guard: true,
            ..plain
        });
        golden.same_bits_as(plain, guarded);
    }
}

#[test]
fn a_step_is_placed_as_the_split_that_was_proved_best() {
    for name in RecipeName::ALL {
        let golden = Golden::open(name);
        for stages in [1, 2, 3, 4, 8, 16] {
            for recompute in [Recompute::None, Recompute::Layer] {
                let variant = Variant {
                    stages,
                    recompute,
                    ..PLAIN
                };
                let (model, options) = (&golden.model, golden.options(variant));
                let compiled = compile(&model.config, &model.name, &options, &mut |_, _| {});
                let (plan, _) = compiled.expect("a plan");
                assert!(plan.partition.optimal, "{variant:?}: {:?}", plan.partition);
            }
        }
    }
}

#[test]
fn automatic_recomputation_helps_where_memory_is_short() {
    let golden = Golden {
        accumulation: 40,
        ..Golden::open(RecipeName::Hf)
    };
    let plan = |recompute, reserved| {
        let mut options = golden.options(Variant {
            stages: 2,
            recompute,
            ..PLAIN
        });
        options.target.tile.reserved += reserved;
        let model = &golden.model;
        let compiled = compile(&model.config, &model.name, &options, &mut |_, _| {});
        compiled.map(|(plan, _)| plan)
    };
    let used = |plan: &Plan| plan.tiles.iter().map(|tile| tile.memory.total).max();
    let free = plan(Recompute::None, 0).expect("a plan");
    let least = plan(Recompute::Layer, 0).expect("a plan");
    let (most, fewest) = (used(&free).expect("tiles"), used(&least).expect("tiles"));
    assert!(fewest < most);
    let auto = Recompute::Auto;
    let nodes = |plan: &Plan| plan.graph.nodes().count();
    assert_eq!(nodes(&plan(auto, 0).expect("a plan")), nodes(&free));
    let short = free.target.capacity() - fewest - (most - fewest) / 4;
    plan(Recompute::None, short).expect_err("too little memory");
    let fitted = plan(auto, short).expect("a plan");
    assert!(nodes(&free) < nodes(&fitted) && nodes(&fitted) <= nodes(&least));
    let every = plan(Recompute::Layer, short).expect("a plan");
    assert!(fitted.partition.objective_cycles <= every.partition.objective_cycles);
}

#[test]
fn a_longer_accumulation_admits_every_schedule_and_none_changes_a_bit() {
    let golden = Golden {
        accumulation: 8,
        ..Golden::open(RecipeName::Hf)
    };
    let rules = rules(4, golden.accumulation);
    assert_eq!(rules, Rule::ALL);
    golden.same_bits(rules.into_iter().map(|rule| Variant {
        stages: 4,
        rule,
        recompute: Recompute::Layer,
        ..PLAIN
    }));
}

#[test]
fn every_optimiser_steps_as_its_op_is_defined() {
    for optimizer in [OptimizerName::Sgd, OptimizerName::Lamb] {
        let mut golden = Golden::open(RecipeName::Hf);
        golden.recipe.optimizer = optimizer;
        let reference = Variant {
            backend: BackendKind::Reference,
            ..PLAIN
        };
        let expected = golden.run(reference, 3);
        let found = golden.run(Variant { stages: 4, ..PLAIN }, 3);
        for (tensor, values) in &expected.parameters {
            for (found, value) in found.parameters[tensor].iter().zip(values) {
                let message = format!("{optimizer:?}, {tensor}: {found}, expected {value}");
                assert!(
                    (found - value).abs() < 5e-5 || tensor.ends_with("key.bias"),
                    "{message}"
                );
            }
        }
        golden.same_bits([Variant { stages: 4, ..PLAIN }]);
    }
}
