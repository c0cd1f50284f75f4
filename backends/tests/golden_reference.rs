//! The reference backend against Transformers: every golden case, packed in several ways.

mod golden;

use std::collections::BTreeSet;
use std::fs;

use golden::compare::compare;
use golden::pack::{Packed, Request, may_drop};
use golden::{Case, folder};
use lxpod_backends::reference;
use lxpod_ir::Scalar;
use lxpod_ir::front::{Losses, Task};

/// Runs a case and returns the names of the outputs compared.
fn check<S: Scalar>(case: &Case, request: &Request) -> BTreeSet<String> {
    let packed = Packed::new(case, request);
    let outputs = reference::run::<S>(
        &packed.built.graph,
        &packed.extents,
        |name| packed.input(case, name),
        |name| case.parameter(name),
    )
    .unwrap_or_else(|error| panic!("{}: {error}", case.name));
    compare(case, &packed, &outputs).into_iter().collect()
}

/// Every row present: all that is expected must be there.
fn check_dense<S: Scalar>(case: &Case) {
    let [batch, ..] = case.sizes();
    let request = Request {
        samples: (0..batch).collect(),
        drop_masked: false,
        states: true,
        losses: case.losses(),
    };
    let expected: BTreeSet<String> = case.expected.keys().cloned().collect();
    assert_eq!(check::<S>(case, &request), expected, "{}", case.name);
}

/// Trailing masked rows dropped. Losses of the pretraining task read all rows.
fn check_padding_free(case: &Case) {
    let [batch, ..] = case.sizes();
    let losses = match case.task {
        Task::Pretraining => Losses::None,
        Task::Qa | Task::Base => case.losses(),
    };
    let request = Request {
        samples: (0..batch).collect(),
        drop_masked: true,
        states: false,
        losses,
    };
    assert!(!check::<f32>(case, &request).is_empty());
}

/// Each question and image used by two samples, in another order than theirs.
fn check_shared(case: &Case) {
    let [batch, ..] = case.sizes();
    let request = Request {
        samples: (0..batch).rev().chain(0..batch).collect(),
        drop_masked: false,
        states: true,
        losses: case.losses(),
    };
    let expected: BTreeSet<String> = case.expected.keys().cloned().collect();
    assert_eq!(check::<f32>(case, &request), expected, "{}", case.name);
}

/// One sample at a time, with room for no more.
fn check_single(case: &Case) {
    let [batch, ..] = case.sizes();
    for sample in 0..batch {
        let request = Request {
            samples: vec![sample],
            drop_masked: may_drop(case),
            states: !may_drop(case),
            losses: Losses::None,
        };
        assert!(!check::<f32>(case, &request).is_empty());
    }
}

/// The expected tensors are those of the checkpoint, with their shapes.
fn check_parameters(case: &Case) {
    let [batch, ..] = case.sizes();
    let request = Request {
        samples: (0..batch).collect(),
        drop_masked: false,
        states: false,
        losses: Losses::None,
    };
    let built = Packed::new(case, &request).built;
    let stored = case.weights.iter();
    let stored: BTreeSet<_> = stored
        .map(|(name, array)| (name.clone(), array.shape.clone()))
        .collect();
    assert_eq!(built.expected.len(), stored.len(), "{}", case.name);
    assert_eq!(BTreeSet::from_iter(built.expected), stored, "{}", case.name);
}

macro_rules! golden {
    ($($case:ident: $padding_free:literal),* $(,)?) => {
        const CASES: &[&str] = &[$(stringify!($case)),*];

        $(#[test]
        fn $case() {
            let case = Case::load(stringify!($case));
            check_parameters(&case);
            check_dense::<f32>(&case);
            check_shared(&case);
            check_single(&case);
            assert_eq!(may_drop(&case), $padding_free, "whether padding may be dropped");
            if $padding_free {
                check_padding_free(&case);
            }
        })*
    };
}

golden! {
    base_model: true,
    pretrain_all: true,
    pretrain_no_attr: true,
    pretrain_qa_only: true,
    pretrain_vmask36: true,
    qa_all_masked: false,
    qa_batch16: true,
    qa_big_logits: true,
    qa_box1_len1: true,
    qa_box7_vmask_types: true,
    qa_gelu_new: true,
    qa_hole_mask: true,
    qa_no_masks: true,
    qa_no_r_layers: true,
    qa_no_x_layers: true,
    qa_odd_shapes: true,
    qa_one_head: true,
    qa_relu: true,
    qa_small_variance: true,
    qa_soft_bce: true,
    qa_tiny: true,
    qa_wide: true,
}

#[test]
fn double_precision() {
    for name in ["qa_tiny", "pretrain_all"] {
        check_dense::<f64>(&Case::load(name));
    }
}

#[test]
fn every_case_is_tested() {
    let entries = fs::read_dir(folder()).expect("tests/golden");
    let names = entries.map(|entry| entry.expect("an entry").file_name());
    let names = names.map(|name| name.into_string().expect("a name"));
    let wanted = |name: &String| {
        name.starts_with("qa_") || name.starts_with("pretrain_") || name == "base_model"
    };
    let found: BTreeSet<String> = names.filter(wanted).collect();
    let tested: BTreeSet<String> = CASES.iter().map(|&name| name.to_owned()).collect();
    assert_eq!(found, tested);
}
