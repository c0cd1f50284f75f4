//! Transformers' gradients, reproduced by the CPU backend.

use std::collections::BTreeMap;

use lxpod_ir::front::{AnswerLoss, Losses};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{Recompute, TrainingOptions};
use lxpod_runtime::tensors::HostTensor;
use lxpod_runtime::{NamedTensor, SessionOptions, read_tensors};

use crate::support::{Case, cases, folder};

/// The gradients of a case on so many stages.
fn gradients(name: &str, stages: usize, recompute: Recompute) -> Vec<NamedTensor> {
    let case = Case::open(name);
    let mut options = case.options(stages);
    if let Losses::Answer { loss, bce } = &mut options.model.losses {
        let soft = name == "qa_soft_bce";
        *loss = Some(if soft {
            AnswerLoss::Bce
        } else {
            AnswerLoss::CrossEntropy
        });
        *bce = false;
    }
    options.training = Some(TrainingOptions {
        rule: Rule::OneFOneB,
        recompute,
        update: None,
        ..TrainingOptions::default()
    });
    let mut session = case.session(case.plan(&options), SessionOptions::default());
    session.run(&case.samples()).expect("a run").gradients
}

fn expected(name: &str) -> Option<BTreeMap<String, HostTensor>> {
    let file = folder(name).join("gradients.safetensors");
    let mut tensors = file
        .exists()
        .then(|| read_tensors(&file).expect("gradients"))?;
    tensors.retain(|name, _| !name.starts_with("input:"));
    Some(tensors)
}

/// Saturated softmax and tanh amplify rounding in `qa_big_logits`. The true gradient of a key's bias
/// is zero: softmax ignores it, and what comes out is rounding.
fn check(case: &str, got: &[NamedTensor], want: &BTreeMap<String, HostTensor>) {
    let (relative, absolute) = match case {
        "qa_big_logits" => (2e-2, 5e-5),
        _ => (5e-5, 1e-6),
    };
    assert!(
        got.iter().map(|tensor| &tensor.name).eq(want.keys()),
        "{case}"
    );
    for tensor in got
        .iter()
        .filter(|tensor| !tensor.name.ends_with("key.bias"))
    {
        let (name, want) = (&tensor.name, &want[&tensor.name]);
        assert_eq!(tensor.shape, want.shape(), "{case}: {name}");
        let want = want.to_f32().expect("floats");
        let largest = want.iter().fold(0f32, |largest, e| largest.max(e.abs()));
        let errors = tensor.values.iter().zip(&want).map(|(a, b)| (a - b).abs());
        let error = errors.fold(0f32, f32::max);
        let allowed = relative * largest + absolute;
        assert!(
            error <= allowed,
            "{case}: {name} is off by {error} of {allowed}"
        );
    }
}

#[test]
fn every_case_matches_on_any_number_of_tiles() {
    let mut compared = 0;
    for name in cases() {
        let Some(want) = expected(&name) else {
            continue;
        };
        let whole = gradients(&name, 1, Recompute::None);
        check(&name, &whole, &want);
        for (stages, recompute) in [(4, Recompute::Layer), (16, Recompute::None)] {
            let split = gradients(&name, stages, recompute);
            assert_eq!(whole, split, "{name} on {stages} stages");
        }
        compared += 1;
    }
    assert!(compared >= 13, "{compared} cases");
}
