//! The passes on the graphs of the front end.

mod support;

use lxpod_ir::front::{Losses, LxmertConfig, ModelOptions, Task, build};
use lxpod_ir::text::print;
use lxpod_ir::{DType, Graph};
use lxpod_passes::{LossScale, Mode, Options, Precision, Recompute, Report, optimise};
use support::{World, count, named, same_bits, ty};

const FP32: Options = Options {
    mode: Mode::Inference,
    precision: Precision::Fp32,
    loss_scale: LossScale::One,
    recompute: Recompute::None,
    accumulator: DType::F32,
};

fn tiny() -> LxmertConfig {
    LxmertConfig {
        vocab_size: 11,
        hidden_size: 8,
        num_attention_heads: 2,
        intermediate_size: 12,
        num_qa_labels: 3,
        num_object_labels: 4,
        num_attr_labels: 3,
        max_position_embeddings: 6,
        visual_feat_dim: 5,
        l_layers: 2,
        r_layers: 1,
        x_layers: 2,
        ..LxmertConfig::base()
    }
}

fn graph(config: &LxmertConfig, options: &ModelOptions) -> Graph {
    build(config, options).unwrap().graph
}

fn optimised(graph: &Graph, options: &Options) -> (Graph, Report) {
    let mut after = graph.clone();
    let report = optimise(&mut after, options).unwrap_or_else(|error| panic!("{error}"));
    (after, report)
}

/// Every task, with and without all the outputs there are, for one sample and for several.
fn variants() -> Vec<ModelOptions> {
    let mut variants = Vec::new();
    for task in Task::ALL {
        for everything in [false, true] {
            for micro_batch in [1, 3] {
                variants.push(ModelOptions {
                    task,
                    micro_batch,
                    seq_len: 4,
                    boxes: 3,
                    hidden_states: everything,
                    attentions: everything,
                    losses: match task {
                        Task::Pretraining if everything => Losses::all_pretraining(),
                        Task::Qa if everything => Losses::Answer {
                            loss: Some(Default::default()),
                            bce: true,
                        },
                        _ => Losses::None,
                    },
                    dropout: false,
                });
            }
        }
        variants.push(ModelOptions {
            dropout: true,
            ..variants[variants.len() - 1].clone()
        });
    }
    variants
}

#[test]
fn no_bit_of_any_output_changes() {
    // heads of 4 columns have an exact factor, heads of 8 have not
    for config in [
        tiny(),
        LxmertConfig {
            num_attention_heads: 1,
            ..tiny()
        },
    ] {
        for options in variants() {
            let before = graph(&config, &options);
            let (after, _) = optimised(&before, &FP32);
            for seed in 0..2 {
                let world = World::new(&before, seed);
                same_bits(
                    &world.run(&before),
                    &world.run(&after),
                    &format!("{options:?}"),
                );
            }
        }
    }
}

#[test]
fn models_without_layers_survive() {
    for layers in [[1, 1, 0], [0, 0, 1], [0, 1, 1]] {
        let config = LxmertConfig {
            l_layers: layers[0],
            r_layers: layers[1],
            x_layers: layers[2],
            ..tiny()
        };
        for options in variants() {
            let before = graph(&config, &options);
            let (after, _) = optimised(&before, &FP32);
            let world = World::new(&before, 7);
            same_bits(
                &world.run(&before),
                &world.run(&after),
                &format!("{options:?}"),
            );
        }
    }
}

#[test]
fn the_answer_at_base_size() {
    for micro_batch in [1, 8] {
        let options = ModelOptions {
            micro_batch,
            ..ModelOptions::default()
        };
        let before = graph(&LxmertConfig::base(), &options);
        let (after, report) = optimised(&before, &FP32);
        // 2 visual, 14 tower layers of 6, 5 cross layers of 20, pooler, 2 of the answer
        assert_eq!(count(&before, "linear"), 2 + 14 * 6 + 5 * 20 + 3);
        assert_eq!(count(&after, "linear"), 2 + 14 * 4 + 4 * 10 + 8 + 3);
        assert_eq!(count(&after, "attention"), 14 + 4 * 4 + 2);
        assert_eq!(count(&after, "scale") + count(&after, "activate"), 0);
        let tall: Vec<String> = named(&after, "linear")
            .iter()
            .map(|&id| ty(&after, id))
            .filter(|ty| ty.contains('+') && ty.ends_with(",2304]"))
            .collect();
        assert_eq!(tall.len(), 4);
        let flops = |graph: &Graph| -> u64 { graph.nodes().map(|id| graph.cost(id).flops).sum() };
        let saved = 1.0 - flops(&after) as f64 / flops(&before) as f64;
        assert!((0.08..0.12).contains(&saved), "saved {saved}");
        assert!(report.passes.iter().all(|pass| pass.nodes_after < 900));
    }
}

#[test]
fn the_same_graph_twice_gives_the_same_text() {
    for options in variants() {
        let before = graph(&tiny(), &options);
        let [once, again] = [0, 1].map(|_| print(&optimised(&before, &Options::default()).0));
        assert_eq!(once, again);
    }
}

#[test]
fn scores_and_losses_are_never_rounded() {
    for options in variants() {
        let (after, _) = optimised(&graph(&tiny(), &options), &Options::default());
        for output in after.outputs() {
            let name = output.name.as_str();
            let scores = ["score", "logits", "loss", "visual_prediction"];
            if scores.iter().any(|part| name.contains(part)) {
                assert_eq!(after.ty(output.value).dtype, DType::F32, "{name}");
            }
        }
    }
}
