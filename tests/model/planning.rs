//! Plans: what partition promises is what programs cost, and files are exact.

use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::support::{Case, cases};
use lxpod_ir::Target;
use lxpod_ir::front::{LxmertConfig, ModelOptions};
use lxpod_passes::plan::{Memory, Plan};
use lxpod_passes::{CompileOptions, Precision, compile};
use lxpod_runtime::checkpoint::Weights;
use lxpod_runtime::{Error, Session, SessionOptions};

fn base(stages: usize, precision: Precision) -> Plan {
    let mut options = CompileOptions::new(
        ModelOptions::default(),
        Target::named("pod16").expect("built in"),
    );
    options.stages = Some(stages);
    options.precision = precision;
    compile(
        &LxmertConfig::base(),
        "lxmert-base",
        &options,
        &mut |_, _| {},
    )
    .expect("a plan")
    .0
}

fn check_costs(plan: &Plan, what: &str) {
    let slowest = (0..plan.stages())
        .map(|stage| plan.tile_cycles(stage).total())
        .max();
    assert_eq!(slowest, Some(plan.partition.objective_cycles), "{what}");
    assert!(plan.partition.optimal, "{what}: {:?}", plan.partition);
}

#[test]
fn the_objective_is_the_cycles_of_the_slowest_program() {
    for stages in [1, 4, 16] {
        check_costs(&base(stages, Precision::Mixed), "lxmert-base");
    }
    let mut four = Target::named("cpu").expect("built in");
    four.tiles = 4;
    for name in cases() {
        let case = Case::open(&name);
        let mut options = case.options(4);
        options.target = four.clone();
        check_costs(&case.plan(&options), &name);
        for stages in [1, 3, 16] {
            check_costs(&case.plan(&case.options(stages)), &name);
        }
    }
}

#[test]
fn activations_of_the_base_model_lie_without_gaps_in_the_best_order() {
    for stages in [1, 16] {
        for tile in &base(stages, Precision::Mixed).tiles {
            let Memory {
                activations,
                max_live,
                best_max_live,
                total,
                capacity,
                core_max,
                core_capacity,
                ..
            } = tile.memory;
            assert!(
                activations >= max_live && activations * 100 <= max_live * 101,
                "{activations} {max_live}"
            );
            assert_eq!(max_live, best_max_live);
            assert!(total <= capacity);
            assert!(stages == 1 || core_max <= core_capacity);
        }
    }
}

#[test]
fn a_model_too_small_for_sixteen_stages_leaves_tiles_empty() {
    let case = Case::open("qa_no_x_layers");
    let mut options = case.options(16);
    options.model.hidden_states = false;
    options.model.attentions = false;
    let plan = case.plan(&options);
    assert_eq!(plan.tiles.len(), 16);
    assert!(
        plan.tiles
            .iter()
            .filter(|tile| tile.steps().next().is_none())
            .count()
            > 0
    );
}

#[test]
fn the_same_model_gives_the_same_file() {
    let bytes = base(16, Precision::Mixed).to_bytes().expect("a file");
    assert_eq!(
        bytes,
        base(16, Precision::Mixed).to_bytes().expect("a file")
    );
    let read = Plan::from_bytes(&bytes).expect("a plan");
    assert_eq!(bytes, read.to_bytes().expect("a file"));
}

#[test]
fn any_changed_missing_or_added_byte_is_refused() {
    let case = Case::open("qa_no_x_layers");
    let bytes = case.plan(&case.options(2)).to_bytes().expect("a file");
    for at in (0..bytes.len()).step_by(97).chain([bytes.len() - 1]) {
        let mut changed = bytes.clone();
        changed[at] ^= 1;
        assert!(Plan::from_bytes(&changed).is_err(), "byte {at} changed");
        assert!(Plan::from_bytes(&bytes[..at]).is_err(), "cut at {at}");
    }
    let longer = [bytes.as_slice(), b" "].concat();
    assert!(Plan::from_bytes(&longer).is_err());
}

/// Counts the elements read.
struct Counted<'a>(&'a dyn Weights, AtomicUsize);

impl Weights for Counted<'_> {
    fn shape(&self, name: &str) -> Result<&[usize], Error> {
        self.0.shape(name)
    }

    fn read_rows(&self, name: &str, rows: Range<usize>, out: &mut [f32]) -> Result<(), Error> {
        self.1.fetch_add(out.len(), Ordering::Relaxed);
        self.0.read_rows(name, rows, out)
    }
}

#[test]
fn plans_of_one_checkpoint_share_packed_weights() {
    let case = Case::open("qa_tiny");
    let plan = |stages| case.plan(&case.options(stages));
    let (weights, _) = case.model.weights(&plan(1)).expect("weights");
    let counted = Counted(weights.as_ref(), AtomicUsize::new(0));
    let options = SessionOptions::default();
    let mut one = Session::new(plan(1), &counted, options).expect("a session");
    assert!(counted.1.swap(0, Ordering::Relaxed) > 0);
    let mut many = one.beside(plan(4), &counted, options).expect("a session");
    assert_eq!(counted.1.load(Ordering::Relaxed), 0);
    let samples = case.samples();
    let (one, many) = (one.run(&samples), many.run(&samples));
    assert_eq!(one.expect("a run").outputs, many.expect("a run").outputs);
}
