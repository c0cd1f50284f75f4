//! The search over a pod against compiling every candidate.

use lxpod_ir::Target;
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions};
use lxpod_passes::auto::{Assessed, Candidate, Fixed, Search, Verdict, search};
use lxpod_passes::plan::{Plan, Programs};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileOptions, Recompute, TrainingOptions, compile};

fn config() -> LxmertConfig {
    LxmertConfig {
        vocab_size: 30,
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 16,
        l_layers: 2,
        r_layers: 1,
        x_layers: 1,
        visual_feat_dim: 6,
        num_qa_labels: 5,
        ..LxmertConfig::base()
    }
}

/// Training or inference on four tiles with that many bytes each, code and reserve left out.
fn base(training: bool, room: u64) -> CompileOptions {
    let losses = Losses::Answer {
        loss: Some(AnswerLoss::CrossEntropy),
        bce: false,
    };
    let model = ModelOptions {
        losses: if training { losses } else { Losses::None },
        ..ModelOptions::default()
    };
    let mut target = Target::named("pod4").unwrap();
    target.tile.cores = 1;
    target.tile.core_memory = target.tile.code + target.tile.reserved + room;
    let mut options = CompileOptions::new(model, target);
    options.training = training.then(TrainingOptions::default);
    options
}

fn plan(base: &CompileOptions, found: &Candidate) -> Option<Plan> {
    let compiled = compile(&config(), "", &found.options(base), &mut |_, _| {});
    compiled.ok().map(|(plan, _)| plan)
}

fn fullest(plan: &Plan) -> u64 {
    let tiles = plan.tiles.iter().map(|tile| tile.memory.total);
    tiles.max().unwrap()
}

/// Checks compiled figures against the plan's.
fn check(base: &CompileOptions, one: &Assessed) {
    let found = &one.candidate;
    let plan = plan(base, found).unwrap_or_else(|| panic!("{one:?} does not fit"));
    let programs = Programs::new(&plan);
    let cycles = programs.step_cycles(&plan.schedule, found.accumulation, plan.replicas);
    assert_eq!(
        (cycles, fullest(&plan)),
        (one.step_cycles, one.tile_bytes),
        "{one:?}"
    );
}

fn searched(base: &CompileOptions, fixed: &Fixed) -> Search {
    let found = search(&config(), base, fixed, 2).unwrap();
    assert_eq!(found, search(&config(), base, fixed, 1).unwrap());
    found
}

#[test]
fn what_is_found_is_what_compiling_everything_finds() {
    for (training, room) in [
        (true, 150_000),
        (true, 100_000),
        (true, 60_000),
        (true, 30_000),
        (false, 1 << 30),
    ] {
        let base = base(training, room);
        let rule = if training {
            Rule::OneFOneB
        } else {
            Rule::GPipe
        };
        let fixed = Fixed {
            global_batch: Some(4),
            recompute: training.then_some(Recompute::None),
            rule: training.then_some(rule),
            ..Fixed::default()
        };
        let mut fastest = u64::MAX;
        let pipelines = [(1, 4), (2, 2), (1, 2), (4, 1), (2, 1), (1, 1)];
        let shared = [false, true].map(|shared| pipelines.map(|one| (one, shared)));
        for ((replicas, stages), shared) in shared.into_iter().flatten() {
            for micro_batch in [1, 2, 4] {
                let one = Candidate {
                    replicas,
                    stages,
                    chunks: 1,
                    micro_batch,
                    accumulation: 4 / micro_batch / replicas,
                    recompute: Recompute::None,
                    schedule: rule,
                    replicated_tensor_sharding: shared && training,
                };
                let fits = one.global_batch() == 4;
                if let Some(plan) = fits.then(|| plan(&base, &one)).flatten() {
                    let programs = Programs::new(&plan);
                    let cycles = programs.step_cycles(&plan.schedule, one.accumulation, replicas);
                    fastest = fastest.min(cycles);
                }
            }
        }
        if fastest == u64::MAX {
            let error = search(&config(), &base, &fixed, 1).unwrap_err();
            assert!(error.to_string().contains("nothing fits"), "{error}");
            continue;
        }
        let found = searched(&base, &fixed);
        assert!(found.proven);
        assert_eq!(found.best.verdict, Verdict::Compiled);
        found.front.iter().for_each(|one| check(&base, one));
        assert_eq!(found.best.step_cycles, fastest, "{training}, {room}");
    }
}

#[test]
fn options_that_are_given_stay() {
    let base = base(true, 1 << 30);
    let fixed = Fixed {
        stages: Some(2),
        accumulation: Some(3),
        global_batch: Some(6),
        rule: Some(Rule::OneFOneB),
        ..Fixed::default()
    };
    let found = searched(&base, &fixed);
    for one in found.front.iter().chain([&found.best]) {
        let kept = one.candidate;
        assert_eq!(
            (kept.stages, kept.accumulation, kept.schedule),
            (2, 3, Rule::OneFOneB)
        );
    }
    for rival in &found.rivals {
        assert_eq!(rival.assessed.global_batch, found.best.global_batch);
    }
}

#[test]
fn what_cannot_be_says_so() {
    let impossible = Fixed {
        stages: Some(4),
        global_batch: Some(7),
        micro_batch: Some(2),
        ..Fixed::default()
    };
    let error = search(&config(), &base(true, 1 << 30), &impossible, 1).unwrap_err();
    assert!(error.to_string().contains("--auto"), "{error}");
    let error = search(&config(), &base(true, 1), &Fixed::default(), 1).unwrap_err();
    assert!(error.to_string().contains("nothing fits"), "{error}");
}
