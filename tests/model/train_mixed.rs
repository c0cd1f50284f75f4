//! Trajectories in mixed precision: how far losses stray from those in f32.

use lxpod_ir::DType;
use lxpod_passes::schedule::Phase;
use lxpod_runtime::train::{Learner, LossScaling, Moment, Recipe, RecipeName};

use crate::train::{Golden, PLAIN, Trajectory};

const STEPS: usize = 20;
const SEEDS: u64 = 5;

/// A golden trajectory with the dtypes that Graphcore trained LXMERT with: f16 parameters, alone or
/// with f32 weights behind them, an f16 first moment, a loss scale of 16384.
fn golden(name: RecipeName, masters: bool) -> Golden {
    let mut golden = Golden::open(name);
    golden.recipe = Recipe {
        loss_scaling: LossScaling::Static(16384.0),
        master_weights: masters,
        stochastic_rounding: !masters,
        first_moment: DType::F16,
        second_moment: DType::F32,
        ..golden.recipe
    };
    golden
}

fn run(golden: &Golden, seed: u64) -> Trajectory {
    golden.run(PLAIN.mixed(seed), STEPS)
}

/// How far the mean, and the worst single one, of some losses is from others, as a share of them.
fn errors(found: &[f64], want: &[f64]) -> [f64; 2] {
    assert_eq!(found.len(), want.len());
    let mean = found.iter().sum::<f64>() / want.iter().sum::<f64>() - 1.0;
    let each = found.iter().zip(want);
    let each = each.map(|(found, want)| (found / want - 1.0).abs());
    [mean.abs(), each.fold(0.0, f64::max)]
}

fn check(what: &str, errors: [f64; 2], limits: [f64; 2]) {
    let within = errors
        .iter()
        .zip(&limits)
        .all(|(error, limit)| error <= limit);
    assert!(
        within,
        "{what}: mean and worst step are off by {errors:?}, limits {limits:?}"
    );
}

#[test]
fn f16_parameters_rounded_by_chance_stay_near_f32() {
    for name in RecipeName::ALL {
        let golden = golden(name, false);
        for seed in 0..SEEDS {
            let found = errors(&run(&golden, seed).losses, &golden.losses());
            check(&format!("{name}, seed {seed}"), found, [0.01, 0.05]);
        }
    }
}

#[test]
fn with_f32_weights_behind_them_they_stay_nearer() {
    for name in RecipeName::ALL {
        let golden = golden(name, true);
        let found = errors(&run(&golden, 0).losses, &golden.losses());
        check(&format!("{name} with masters"), found, [0.005, 0.005]);
    }
}

/// Scales from one that no gradient survives down to one that all do.
#[test]
fn an_overflow_is_named_and_leaves_everything_as_it_was() {
    let golden = golden(RecipeName::Ipu, false);
    let mut learner = golden.learner(PLAIN.mixed(0)).0;
    let mut feeds = golden.micro_batches(PLAIN.mixed(0));
    let bits = |learner: &Learner| -> Vec<u32> {
        let kept = learner.executable.persistent();
        let values = kept.iter().flat_map(|(_, tensor)| tensor.reals());
        values.map(|value| value.to_bits()).collect()
    };
    let (before, mut named) = (bits(&learner), 0);
    for exponent in (0..=40).rev().step_by(4) {
        let loss_scale = f32::powi(2.0, exponent);
        learner.scale(&mut feeds, loss_scale);
        let hyper = golden.recipe.hyper(&Moment {
            step: 5,
            steps: STEPS,
            applied: 5,
            micro_batches: feeds.len(),
            loss_scale,
            seed: 0,
        });
        let (mut outputs, mut update) = (Vec::new(), Vec::new());
        let step = learner
            .executable
            .step(&feeds, &hyper, &mut outputs, &mut update);
        step.expect("a step");
        let factor = learner.update.iter().position(|name| name == "factor");
        let skipped = !update[factor.expect("a factor")].reals()[0].is_finite();
        assert_eq!(bits(&learner) == before, skipped, "loss scale {loss_scale}");
        let found = learner.executable.first_overflow(&feeds).expect("a run");
        assert_eq!(
            found.is_some(),
            skipped,
            "loss scale {loss_scale}: {found:?}"
        );
        let Some(found) = found else {
            assert!(named > 0, "nothing overflowed");
            return;
        };
        assert_eq!((found.phase, found.micro_batch), (Phase::Backward, 0));
        assert!(found.value.contains("f16["), "{found}");
        named += 1;
    }
    panic!("every scale overflowed");
}

#[test]
fn the_seed_decides_the_rounding() {
    let golden = golden(RecipeName::Ipu, false);
    let bits = |seed| {
        let found = run(&golden, seed).losses;
        found.into_iter().map(f64::to_bits).collect::<Vec<_>>()
    };
    let first = bits(1);
    assert_eq!(first, bits(1));
    assert_ne!(first, bits(2));
}
