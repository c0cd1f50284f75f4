//! Replicas that share out the optimiser's state: the same bits in less memory.

use std::collections::BTreeMap;

use lxpod_backends::sim::Simulation;
use lxpod_backends::{Executable, Feed};
use lxpod_ir::front::{AnswerLoss, Losses, LxmertConfig, ModelOptions};
use lxpod_ir::ops::Op;
use lxpod_ir::random::random_feeds;
use lxpod_ir::{Extents, Graph, Target, Tensor};
use lxpod_passes::plan::{Memory, Plan};
use lxpod_passes::schedule::Rule;
use lxpod_passes::{CompileOptions, Precision, TrainingOptions, compile};
use lxpod_runtime::SessionOptions;
use lxpod_runtime::checkpoint::Seeded;
use lxpod_runtime::train::{Learner, OptimizerName, Recipe, RecipeName};

use crate::support::{persistent, step};

/// Micro-batches of a step, over all replicas.
const MICRO_BATCHES: usize = 4;
const STEPS: usize = 2;

/// A model with parameters large enough to share out: whole blocks, and such that end in part of one.
fn config() -> LxmertConfig {
    LxmertConfig {
        vocab_size: 300,
        hidden_size: 64,
        num_attention_heads: 4,
        intermediate_size: 144,
        l_layers: 1,
        r_layers: 1,
        x_layers: 2,
        visual_feat_dim: 48,
        num_qa_labels: 150,
        ..LxmertConfig::base()
    }
}

/// One way to run a step.
#[derive(Clone, Debug)]
struct Variant {
    replicas: usize,
    stages: usize,
    rule: Rule,
    precision: Precision,
    recipe: Recipe,
    sharded: bool,
    threads: usize,
}

impl Variant {
    fn plan(&self) -> Plan {
        let model = ModelOptions {
            seq_len: 6,
            boxes: 5,
            losses: Losses::Answer {
                loss: Some(AnswerLoss::CrossEntropy),
                bce: false,
            },
            ..ModelOptions::default()
        };
        let mut options = CompileOptions::new(model, Target::named("pod16").expect("built in"));
        options.replicas = self.replicas;
        options.stages = Some(self.stages);
        options.precision = self.precision;
        options.training = Some(TrainingOptions {
            rule: self.rule,
            accumulation: MICRO_BATCHES / self.replicas,
            replicated_tensor_sharding: self.sharded,
            update: Some(self.recipe.update(self.precision, &[])),
            ..TrainingOptions::default()
        });
        let compiled = compile(&config(), "shared", &options, &mut |_, _| {});
        compiled.expect("a plan").0
    }

    fn learner(&self) -> (Learner, Plan) {
        let plan = self.plan();
        let read = Plan::from_bytes(&plan.to_bytes().expect("a file")).expect("a plan");
        assert_eq!(read.tiles, plan.tiles);
        let weights = Seeded::new(7, plan.provenance.expected.clone()).expect("weights");
        let options = SessionOptions {
            threads: self.threads,
            ..SessionOptions::default()
        };
        let learner = Learner::load(plan.clone(), &weights, options).expect("a learner");
        (learner, plan)
    }
}

/// Random inputs of a micro-batch at full extent.
fn feed(graph: &Graph, seed: u64) -> Feed {
    let extents = Extents::full(&graph.spaces);
    let feeds = random_feeds(graph, &extents, seed);
    let inputs = graph.nodes().filter_map(|id| match &graph.node(id).op {
        op @ Op::Input(input) => {
            let tensor = feeds.feed(op, &graph.node(id).types[0]);
            Some((input.name.clone(), tensor.expect("a value for each input")))
        }
        _ => None,
    });
    let mut inputs: BTreeMap<String, Tensor<f32>> = inputs.collect();
    // A loss that no label counts for is no number, nor is what attends to nothing.
    for (_, mask) in inputs.iter_mut().filter(|(name, _)| name.contains("mask")) {
        let elements = mask.shape.elements();
        *mask = Tensor::real(mask.shape.clone(), vec![1.0; elements]);
    }
    inputs.insert(
        "labels".to_owned(),
        Tensor::int([1], vec![(seed % 150) as i32]),
    );
    Feed { extents, inputs }
}

/// The micro-batches of a step.
fn feeds(graph: &Graph, at: usize) -> Vec<Feed> {
    let seeds = (0..MICRO_BATCHES).map(|index| (at * MICRO_BATCHES + index) as u64);
    seeds.map(|seed| feed(graph, seed)).collect()
}

/// Checks that a run measures what its plan says, replica by replica.
fn check_ledger(executable: &dyn Executable, plan: &Plan) {
    let executed = |memory: &Memory| {
        let all = memory.executed();
        let kept = ["weights", "optimizer", "accumulators"];
        all.into_iter()
            .filter(|(name, _)| kept.contains(name))
            .collect::<Vec<_>>()
    };
    for ledger in executable.ledger() {
        let planned = &plan.tiles[ledger.tile % plan.tiles.len()].memory;
        assert_eq!(
            executed(&ledger.memory),
            executed(planned),
            "tile {}",
            ledger.tile
        );
    }
}

/// Runs steps with whole states and with shared ones, and compares.
fn check(variant: &Variant) {
    let whole = Variant {
        sharded: false,
        ..variant.clone()
    };
    let (mut learner, plan) = variant.learner();
    let (mut expected, whole) = whole.learner();
    for at in 0..STEPS {
        let found = step(&mut learner, &variant.recipe, feeds(&plan.graph, at), at);
        let wanted = step(&mut expected, &variant.recipe, feeds(&whole.graph, at), at);
        assert_eq!(found, wanted, "step {at} of {variant:?}");
        let (found, wanted) = (persistent(&learner), persistent(&expected));
        assert_eq!(found.len(), wanted.len());
        for ((name, found), (other, wanted)) in found.iter().zip(&wanted) {
            assert_eq!(name, other);
            assert!(found == wanted, "{name} after step {at} of {variant:?}");
        }
    }
    check_ledger(learner.executable.as_ref(), &plan);
    let bytes = |plan: &Plan| -> u64 { plan.tiles.iter().map(|tile| tile.memory.optimizer).sum() };
    let (shared, kept) = (bytes(&plan), bytes(&whole));
    assert!(
        shared < kept && shared * variant.replicas as u64 > kept,
        "{shared} of {kept}"
    );
    let tiles = plan.tiles.iter().zip(&whole.tiles);
    for (tile, whole) in tiles {
        assert_eq!(tile.memory.accumulators, whole.memory.accumulators);
        assert_eq!(tile.memory.weights, whole.memory.weights);
    }
}

fn variant(recipe: Recipe, precision: Precision) -> Variant {
    Variant {
        replicas: 2,
        stages: 2,
        rule: Rule::GPipe,
        precision,
        recipe,
        sharded: true,
        threads: 1,
    }
}

#[test]
fn sharing_changes_no_bit_of_any_recipe() {
    for name in RecipeName::ALL {
        for precision in [Precision::Fp32, Precision::Mixed] {
            check(&variant(Recipe::named(name), precision));
        }
    }
}

#[test]
fn sharing_changes_no_bit_of_any_optimiser() {
    for optimizer in [OptimizerName::Sgd, OptimizerName::Lamb] {
        for precision in [Precision::Fp32, Precision::Mixed] {
            let recipe = Recipe {
                optimizer,
                ..Recipe::named(RecipeName::Ipu)
            };
            check(&variant(recipe, precision));
        }
    }
}

#[test]
fn sharing_changes_no_bit_on_any_number_of_replicas_and_stages() {
    for (replicas, stages, rule, threads) in [
        (2, 1, Rule::GPipe, 2),
        (4, 1, Rule::OneFOneB, 1),
        (4, 4, Rule::OneFOneB, 2),
        (2, 8, Rule::OneFOneB, 1),
    ] {
        let recipe = Recipe::named(RecipeName::Hf);
        check(&Variant {
            replicas,
            stages,
            rule,
            threads,
            ..variant(recipe, Precision::Mixed)
        });
    }
}

#[test]
fn a_state_goes_on_however_it_is_shared() {
    let recipe = Recipe::named(RecipeName::Ipu);
    let one = variant(recipe.clone(), Precision::Mixed);
    let whole = Variant {
        sharded: false,
        ..one.clone()
    };
    let (mut learner, plan) = one.learner();
    step(&mut learner, &recipe, feeds(&plan.graph, 0), 0);
    let (mut other, _) = whole.learner();
    for (name, tensor) in learner.executable.persistent() {
        other
            .executable
            .restore(&name, &tensor)
            .expect("the same tensors");
    }
    let (mut third, _) = one.learner();
    for (name, tensor) in other.executable.persistent() {
        third
            .executable
            .restore(&name, &tensor)
            .expect("the same tensors");
    }
    let each = [&mut learner, &mut other, &mut third];
    let bits = each.map(|learner| {
        let losses = step(learner, &recipe, feeds(&plan.graph, 1), 1);
        (losses, persistent(learner))
    });
    assert!(bits[0] == bits[1] && bits[0] == bits[2]);
}

#[test]
fn the_next_step_reads_a_restored_parameter() {
    let recipe = Recipe::named(RecipeName::Hf);
    let variant = variant(recipe.clone(), Precision::Fp32);
    let (mut learner, plan) = variant.learner();
    let tensors = learner.executable.persistent();
    let is_weight = |(name, tensor): &&(String, Tensor<f32>)| {
        !name.starts_with("state:") && tensor.shape.len() == 2
    };
    let weights: Vec<_> = tensors.iter().filter(is_weight).collect();
    let loss = |learner: &mut _| step(learner, &recipe, feeds(&plan.graph, 0), 0);
    let untouched = loss(&mut learner);
    let (name, old) = weights[weights.len() / 2];
    let doubled = old.reals().iter().map(|x| 2.0 * x).collect();
    let doubled = Tensor::real(old.shape.clone(), doubled);
    let restored = |all: bool| {
        let (mut learner, _) = variant.learner();
        for (other, tensor) in &tensors {
            let tensor = if other == name { &doubled } else { tensor };
            if all || other == name {
                let done = learner.executable.restore(other, tensor);
                done.expect("a tensor of the plan");
            }
        }
        learner
    };
    let [one, all] = [false, true].map(|all| loss(&mut restored(all)));
    assert!(one == all && one != untouched, "{name}");
}

#[test]
fn the_prediction_is_that_of_shares() {
    let one = Variant {
        replicas: 4,
        ..variant(Recipe::named(RecipeName::Hf), Precision::Mixed)
    };
    let whole = Variant {
        sharded: false,
        ..one.clone()
    };
    let [shared, whole] = [one, whole].map(|variant| {
        let prediction = Simulation::new(&variant.plan(), 1, 1).predict();
        prediction.breakdown
    });
    assert!(shared.weight_update < whole.weight_update);
    assert!(shared.collectives < whole.collectives);
    assert_eq!(shared.compute, whole.compute);
}
