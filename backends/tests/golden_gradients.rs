//! Gradients on the reference backend against Transformers': every golden case that has some.

mod golden;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use golden::pack::{Packed, Request, may_drop};
use golden::{Array, Case, folder};
use lxpod_backends::reference;
use lxpod_ir::front::{AnswerLoss, Losses, Task};
use lxpod_ir::{Tensor, gradients_by_tensor};
use lxpod_passes::{Manager, Mode, Options, Pass, Precision, TRAINING, find};

/// The loss whose gradients the case has: cross-entropy, unless its name says otherwise.
fn losses(case: &Case) -> Losses {
    match case.task {
        Task::Qa => Losses::Answer {
            loss: Some(match case.name {
                "qa_soft_bce" => AnswerLoss::Bce,
                _ => AnswerLoss::CrossEntropy,
            }),
            bce: false,
        },
        Task::Pretraining | Task::Base => case.losses(),
    }
}

/// The gradients by parameter, after passes.
fn gradients(
    case: &Case,
    samples: Vec<usize>,
    drop_masked: bool,
    passes: &[&Pass],
) -> BTreeMap<String, Tensor<f32>> {
    let request = Request {
        samples,
        drop_masked,
        states: false,
        losses: losses(case),
    };
    let mut packed = Packed::new(case, &request);
    packed.rewrite(|graph| {
        let options = Options {
            mode: Mode::Training,
            precision: Precision::Fp32,
            ..Options::default()
        };
        let report = Manager::new(options).run(passes, graph);
        report.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    });
    let graph = &packed.built.graph;
    let outputs = reference::run::<f32>(
        graph,
        &packed.extents,
        |name| packed.input(case, name),
        |name| case.parameter(name),
    );
    let outputs = outputs.unwrap_or_else(|error| panic!("{}: {error}", case.name));
    let named = graph.outputs().iter().zip(outputs);
    let named: Vec<_> = named
        .map(|(output, (_, tensor))| (output, tensor))
        .collect();
    let gradients = named
        .iter()
        .filter_map(|(output, tensor)| Some((output.gradient_of()?, tensor)));
    let shape = |name: &str| case.parameter(name).map(|(shape, _)| shape);
    gradients_by_tensor(gradients, shape).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// The largest error of a tensor in units of what is allowed.
fn excess(case: &Case, actual: &Tensor<f32>, expected: &Array) -> f64 {
    let (relative, absolute) = match case.name {
        // Saturated softmax and tanh amplify rounding.
        "qa_big_logits" => (2e-2, 5e-5),
        _ => (5e-5, 1e-6),
    };
    let expected = expected.reals();
    let largest = expected
        .iter()
        .fold(0f32, |largest, e| largest.max(e.abs()));
    let errors = actual.reals().iter().zip(&expected);
    let errors = errors.map(|(a, e)| (f64::from(*a) - f64::from(*e)).abs());
    errors.fold(0.0, f64::max) / (relative * f64::from(largest) + absolute)
}

/// Exactly the parameters that have a gradient have one, and each is right. The true gradient of a
/// key's bias is zero: softmax ignores it, and what comes out is rounding.
fn check(case: &Case, packing: &str, gradients: &BTreeMap<String, Tensor<f32>>) {
    let of_parameters = case.gradients.iter();
    let expected: BTreeMap<&String, &Array> = of_parameters
        .filter(|(name, _)| !name.starts_with("input:"))
        .collect();
    assert!(
        gradients.keys().eq(expected.keys().copied()),
        "{}",
        case.name
    );
    let mut worst = (0.0, "");
    for (name, expected) in expected {
        let actual = &gradients[name];
        assert_eq!(*actual.shape, *expected.shape, "{}: {name}", case.name);
        if !name.ends_with("key.bias") {
            let excess = excess(case, actual, expected);
            if excess > worst.0 {
                worst = (excess, name);
            }
        }
    }
    assert!(
        worst.0 < 1.0,
        "{} {packing}: {} is off by {} of what is allowed",
        case.name,
        worst.1,
        worst.0
    );
}

fn check_all(case: &Case) {
    let [batch, ..] = case.sizes();
    let each: Vec<usize> = (0..batch).collect();
    // each sample twice, in another order: the mean stays
    let shared: Vec<usize> = (0..batch).rev().chain(0..batch).collect();
    let plain = [find("autodiff").expect("a pass")];
    check(case, "plain", &gradients(case, each.clone(), false, &plain));
    check(case, "optimised", &gradients(case, each, false, TRAINING));
    check(
        case,
        "shared",
        &gradients(case, shared.clone(), false, TRAINING),
    );
    if may_drop(case) && case.task == Task::Qa {
        check(case, "short", &gradients(case, shared, true, TRAINING));
    }
}

macro_rules! golden {
    ($($case:ident),* $(,)?) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];

        $(#[test]
        fn $case() {
            check_all(&Case::load(stringify!($case)));
        })*
    };
}

golden! {
    pretrain_all,
    pretrain_vmask36,
    qa_all_masked,
    qa_batch16,
    qa_big_logits,
    qa_box7_vmask_types,
    qa_gelu_new,
    qa_hole_mask,
    qa_no_x_layers,
    qa_odd_shapes,
    qa_relu,
    qa_small_variance,
    qa_soft_bce,
}

#[test]
fn every_case_with_gradients_is_tested() {
    let entries = fs::read_dir(folder()).expect("tests/golden");
    let folders = entries.map(|entry| entry.expect("an entry").path());
    let with = folders.filter(|folder| folder.join("gradients.safetensors").exists());
    let names = with.map(|folder| folder.file_name().expect("a name").to_owned());
    let found: BTreeSet<String> = names
        .map(|name| name.into_string().expect("a name"))
        .collect();
    let tested: BTreeSet<String> = CASES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(found, tested);
}
