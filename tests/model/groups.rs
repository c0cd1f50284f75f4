//! Micro-batches that a visit computes together: the same bits, planned to the byte.

use std::collections::BTreeMap;

use lxpod_backends::Feed;
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions, Task};
use lxpod_ir::ops::Op;
use lxpod_ir::random::{random_extents, random_feeds};
use lxpod_ir::{DType, Data, Extents, Graph, Target};
use lxpod_passes::plan::{Memory, Plan};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileOptions, Precision, Recompute, TrainingOptions, compile};
use lxpod_runtime::SessionOptions;
use lxpod_runtime::checkpoint::Seeded;
use lxpod_runtime::train::{Learner, Recipe, RecipeName};

use crate::support::{persistent, step};

const STEPS: usize = 2;

fn config() -> LxmertConfig {
    LxmertConfig {
        vocab_size: 60,
        hidden_size: 32,
        num_attention_heads: 2,
        intermediate_size: 56,
        l_layers: 1,
        r_layers: 1,
        x_layers: 2,
        visual_feat_dim: 24,
        num_qa_labels: 20,
        num_object_labels: 9,
        num_attr_labels: 7,
        hidden_dropout_prob: 0.2,
        attention_probs_dropout_prob: 0.2,
        ..LxmertConfig::base()
    }
}

/// One way to run a step.
#[derive(Clone, Copy, Debug)]
struct Variant {
    task: Task,
    dropout: bool,
    micro_batches: usize,
    group: Option<usize>,
    target: &'static str,
    stages: usize,
    replicas: usize,
    rule: Rule,
    precision: Precision,
    accumulator: DType,
    recompute: Recompute,
    frozen: &'static [&'static str],
    threads: usize,
    guard: bool,
}

const PLAIN: Variant = Variant {
    task: Task::Qa,
    dropout: true,
    micro_batches: 8,
    group: Some(1),
    target: "cpu",
    stages: 1,
    replicas: 1,
    rule: Rule::GPipe,
    precision: Precision::Fp32,
    accumulator: DType::F32,
    recompute: Recompute::None,
    frozen: &[],
    threads: 2,
    guard: false,
};

impl Variant {
    fn recipe(&self) -> Recipe {
        Recipe::named(RecipeName::Hf)
    }

    fn options(&self) -> CompileOptions {
        let losses = match self.task {
            Task::Qa => Losses::Answer {
                loss: Some(AnswerLoss::CrossEntropy),
                bce: true,
            },
            _ => Losses::all_pretraining(),
        };
        let model = ModelOptions {
            task: self.task,
            micro_batch: 2,
            seq_len: 6,
            boxes: 5,
            losses,
            dropout: self.dropout,
            ..ModelOptions::default()
        };
        let mut options = CompileOptions::new(model, Target::named(self.target).expect("built in"));
        options.stages = Some(self.stages);
        options.replicas = self.replicas;
        options.precision = self.precision;
        let frozen: Vec<String> = self.frozen.iter().map(|&name| name.to_owned()).collect();
        options.training = Some(TrainingOptions {
            rule: self.rule,
            accumulation: self.micro_batches / self.replicas,
            group: self.group,
            accumulator: self.accumulator,
            recompute: self.recompute,
            update: Some(self.recipe().update(self.precision, &frozen)),
            ..TrainingOptions::default()
        });
        options
    }

    fn plan(&self) -> Plan {
        let compiled = compile(&config(), "grouped", &self.options(), &mut |_, _| {});
        let plan = compiled.expect("a plan").0;
        Plan::from_bytes(&plan.to_bytes().expect("a file")).expect("the same plan")
    }

    fn learner(&self, plan: &Plan) -> Learner {
        let weights = Seeded::new(7, plan.provenance.expected.clone()).expect("weights");
        let options = SessionOptions {
            threads: self.threads,
            guard: self.guard,
            ..SessionOptions::default()
        };
        Learner::load(plan.clone(), &weights, options).expect("a learner")
    }
}

/// Random inputs of a micro-batch at these extents, in which every row counts.
fn feed(graph: &Graph, extents: Extents, seed: u64) -> Feed {
    let feeds = random_feeds(graph, &extents, seed);
    let mut inputs = BTreeMap::new();
    for id in graph.nodes() {
        let op = &graph.node(id).op;
        let Op::Input(input) = op else { continue };
        let mut tensor = feeds
            .feed(op, &graph.node(id).types[0])
            .expect("a value for each input");
        match &mut tensor.data {
            Data::Real(values) if input.name.contains("mask") => values.fill(1.0),
            Data::Real(_) => {}
            Data::Int(values) => values.iter_mut().for_each(|value| *value = (*value).max(0)),
        }
        inputs.insert(input.name.clone(), tensor);
    }
    Feed { extents, inputs }
}

/// The bits of some steps and of what is left behind by them. Extents differ from micro-batch to micro-batch.
fn run(variant: &Variant) -> (Vec<Vec<u32>>, BTreeMap<String, Vec<u32>>) {
    let plan = variant.plan();
    assert_eq!(variant.group.unwrap_or(plan.group), plan.group);
    let mut learner = variant.learner(&plan);
    let steps = (0..STEPS).map(|at| {
        let seeds = (0..variant.micro_batches).map(|index| (at * 100 + index) as u64);
        let extents = |seed| random_extents(&plan.graph.spaces, seed);
        let feeds = seeds.map(|seed| feed(&plan.graph, extents(seed), seed));
        step(&mut learner, &variant.recipe(), feeds.collect(), at)
    });
    let steps = steps.collect();
    (steps, persistent(&learner))
}

/// Checks that each variant gives the bits of `plain`.
fn same_bits(plain: &Variant, variants: impl IntoIterator<Item = Variant>) {
    let (outputs, kept) = run(plain);
    for variant in variants {
        let (found, left) = run(&variant);
        assert_eq!(found, outputs, "{variant:?}");
        assert_eq!(left.len(), kept.len(), "{variant:?}");
        for (name, bits) in &kept {
            assert!(bits == &left[name], "{variant:?}: {name}");
        }
    }
}

/// A plain variant in groups of these sizes.
fn grouped(plain: Variant, sizes: &[usize]) -> Vec<Variant> {
    let with = |&group: &usize| Variant {
        group: Some(group),
        ..plain
    };
    sizes.iter().map(with).collect()
}

#[test]
fn groups_change_no_bit() {
    let f16 = Variant {
        precision: Precision::Mixed,
        accumulator: DType::F16,
        ..PLAIN
    };
    let frozen = Variant {
        frozen: &["lxmert.encoder.layer.", "lxmert.embeddings."],
        recompute: Recompute::Layer,
        ..PLAIN
    };
    let shared = Variant {
        dropout: false,
        ..PLAIN
    };
    for plain in [PLAIN, f16, frozen, shared] {
        let pod = Variant {
            target: "pod16",
            stages: 4,
            threads: 1,
            ..plain
        };
        let mut variants = grouped(plain, &[2, 4, 8]);
        variants.extend(grouped(pod, &[1, 4]));
        let early = Variant {
            rule: Rule::OneFOneB,
            ..pod
        };
        variants.extend(grouped(early, &[2]));
        same_bits(&plain, variants);
    }
}

#[test]
fn replicas_group_their_own_micro_batches() {
    // Replicas sum in another order: they are compared with replicas.
    let plain = Variant {
        target: "pod4",
        stages: 2,
        replicas: 2,
        ..PLAIN
    };
    same_bits(&plain, grouped(plain, &[3, 4]));
}

#[test]
fn a_group_that_divides_no_step_leaves_fewer_to_the_last() {
    let plain = Variant {
        micro_batches: 5,
        ..PLAIN
    };
    same_bits(&plain, grouped(plain, &[2, 3, 4, 5]));
}

#[test]
fn every_loss_of_pretraining_is_grouped() {
    let plain = Variant {
        task: Task::Pretraining,
        micro_batches: 4,
        ..PLAIN
    };
    same_bits(&plain, grouped(plain, &[3, 4]));
}

#[test]
fn groups_stay_inside_live_buffers() {
    for stages in [1, 4] {
        let plain = Variant {
            target: "pod16",
            stages,
            micro_batches: 4,
            ..PLAIN
        };
        let guarded = Variant {
            guard: true,
            ..plain
        };
        same_bits(&plain, grouped(guarded, &[1, 3, 4]));
    }
}

#[test]
fn at_full_extent_groups_take_what_was_planned() {
    let executed = |memory: &Memory| {
        let mut all = memory.executed().to_vec();
        all.push(("max_live", memory.max_live));
        all
    };
    for (task, stages, group) in [
        (Task::Qa, 1, 1),
        (Task::Qa, 1, 4),
        (Task::Qa, 4, 2),
        (Task::Qa, 4, 3),
        (Task::Pretraining, 1, 4),
    ] {
        let variant = Variant {
            task,
            target: "pod16",
            stages,
            micro_batches: 4,
            group: Some(group),
            ..PLAIN
        };
        let plan = variant.plan();
        let mut learner = variant.learner(&plan);
        let feeds = (0..4).map(|seed| feed(&plan.graph, Extents::full(&plan.graph.spaces), seed));
        step(&mut learner, &variant.recipe(), feeds.collect(), 0);
        for ledger in learner.executable.ledger() {
            let planned = &plan.tiles[ledger.tile].memory;
            // Where the last visit is not full, it leaves places of its buffers empty.
            let full = plan.accumulation.is_multiple_of(group);
            let pairs = executed(&ledger.memory).into_iter().zip(executed(planned));
            for ((category, used), (_, planned)) in pairs {
                assert!(
                    used == planned || (!full && used < planned),
                    "{variant:?}, tile {}: {category} {used}, planned {planned}",
                    ledger.tile
                );
            }
        }
    }
}

#[test]
fn an_overflow_is_of_the_micro_batch_that_it_is_in() {
    let plain = Variant {
        precision: Precision::Mixed,
        ..PLAIN
    };
    for variant in grouped(plain, &[1, 3, 4, 8]) {
        let plan = variant.plan();
        let mut learner = variant.learner(&plan);
        let extents = |seed| random_extents(&plan.graph.spaces, seed);
        let feeds = (0..8).map(|seed| feed(&plan.graph, extents(seed), seed));
        let mut feeds: Vec<Feed> = feeds.collect();
        learner.scale(&mut feeds, 64.0);
        let found = learner.executable.first_overflow(&feeds).expect("a run");
        assert_eq!(found, None, "{variant:?}");
        learner.scale(&mut feeds[5..6], f32::MAX);
        let found = learner.executable.first_overflow(&feeds).expect("a run");
        let found = found.expect("an overflow");
        assert_eq!(found.micro_batch, 5, "{variant:?}: {found}");
    }
}

#[test]
fn a_processor_groups_what_pays_and_fits_and_a_pod_nothing() {
    let group = |variant: Variant, reserved: u64| {
        let mut options = variant.options();
        options.target.tile.reserved += reserved;
        let compiled = compile(&config(), "grouped", &options, &mut |_, _| {});
        compiled.map(|(plan, _)| (plan.group, plan))
    };
    let open = Variant {
        group: None,
        ..PLAIN
    };
    let (most, plan) = group(open, 0).expect("a plan");
    assert_eq!(most, 8);
    assert_eq!(plan.provenance.options["group"], 8);
    let many = Variant {
        micro_batches: 20,
        ..open
    };
    assert_eq!(group(many, 0).expect("a plan").0, 7);
    let pod = Variant {
        target: "pod16",
        ..open
    };
    assert_eq!(group(pod, 0).expect("a plan").0, 1);

    // With less and less room groups shrink, and end where one micro-batch does not fit.
    // With 1f1b a single stage keeps what one visit keeps.
    let early = Variant {
        rule: Rule::OneFOneB,
        ..open
    };
    let used = |group| {
        let plan = Variant { group, ..early }.plan();
        plan.tiles[0].memory.total
    };
    let spare = |bytes: u64| plan.target.capacity() - bytes;
    let sizes = [Some(8), Some(4), Some(2), Some(1)].map(used);
    assert!(sizes.is_sorted_by(|a, b| a > b), "{sizes:?}");
    for (room, [fits, smaller]) in sizes.into_iter().zip([[8, 4], [4, 2]]) {
        let found = [room, room - 1].map(|room| group(early, spare(room)).expect("a plan").0);
        assert_eq!(found, [fits, smaller]);
    }
    let error = group(early, spare(sizes[3] - 1)).expect_err("too little memory");
    assert!(error.is_out_of_memory(), "{error}");
}

#[test]
fn groups_that_no_step_has_are_refused() {
    let refused = |variant: Variant| {
        let compiled = compile(&config(), "grouped", &variant.options(), &mut |_, _| {});
        compiled.expect_err("no plan").to_string()
    };
    let [none, more] = [0, 9].map(|group| {
        refused(Variant {
            group: Some(group),
            ..PLAIN
        })
    });
    assert!(none.contains("--group") && more.contains("--group"));
    let uneven = refused(Variant {
        target: "pod4",
        stages: 4,
        rule: Rule::Interleaved,
        group: Some(3),
        ..PLAIN
    });
    assert!(uneven.contains("--group"), "{uneven}");
}
