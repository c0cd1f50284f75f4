//! Transformers' outputs, reproduced by the CPU backend.

mod support;

use lxpod_runtime::SessionOptions;
use support::{Case, cases, check};

fn tolerance(case: &str) -> f32 {
    if case == "qa_big_logits" { 4e-4 } else { 2e-5 }
}

#[test]
fn every_case_matches_on_one_and_on_sixteen_tiles() {
    for name in cases() {
        let case = Case::open(&name);
        for stages in [1, 16] {
            let mut session = case.session(case.plan(&case.options(stages)), SessionOptions::default());
            let result = session.run(&case.samples()).expect("a run");
            check(&name, &result, &case.expected, tolerance(&name));
        }
    }
}
