//! What the front end drops, and that a sample drops the same in whatever company.

use std::collections::{BTreeMap, BTreeSet};

use lxpod_ir::front::{Losses, LxmertConfig, ModelOptions, RowSpaces, Task, build};
use lxpod_ir::ops::Op;
use lxpod_ir::random::Rng;
use lxpod_ir::random_bits::name_hash;
use lxpod_ir::{Extents, Graph, Tensor, TensorType, interpret, verify};

fn tiny() -> LxmertConfig {
    LxmertConfig {
        vocab_size: 16,
        hidden_size: 8,
        num_attention_heads: 2,
        num_qa_labels: 5,
        intermediate_size: 12,
        hidden_dropout_prob: 0.3,
        attention_probs_dropout_prob: 0.2,
        max_position_embeddings: 8,
        l_layers: 2,
        x_layers: 1,
        r_layers: 1,
        visual_feat_dim: 6,
        ..LxmertConfig::base()
    }
}

fn graph(config: &LxmertConfig, options: &ModelOptions) -> Graph {
    let graph = build(config, options).unwrap().graph;
    verify(&graph).unwrap();
    graph
}

fn training(task: Task) -> ModelOptions {
    ModelOptions {
        task,
        micro_batch: 3,
        seq_len: 4,
        boxes: 3,
        dropout: true,
        losses: match task {
            Task::Pretraining => Losses::all_pretraining(),
            _ => Losses::None,
        },
        ..ModelOptions::default()
    }
}

/// The rate and salt of each mask, by the path of the module that draws it.
fn masks(graph: &Graph) -> BTreeMap<String, (f32, u64)> {
    let masks = graph.nodes().filter_map(|id| {
        let node = graph.node(id);
        match &node.op {
            Op::Dropout(op) => Some((node.scope.to_string(), (op.rate, op.salt))),
            Op::Attention(attention) => {
                let op = attention.dropout.as_ref()?;
                Some((format!("{}.dropout", node.scope), (op.rate, op.salt)))
            }
            _ => None,
        }
    });
    let masks: Vec<_> = masks.collect();
    let by_path: BTreeMap<_, _> = masks.iter().cloned().collect();
    assert_eq!(by_path.len(), masks.len(), "two masks of one module");
    by_path
}

#[test]
fn masks_are_where_transformers_has_them() {
    let mut expected = BTreeMap::new();
    let mut expect = |path: &str, rate: f32| {
        let path = format!("lxmert.{path}.dropout");
        expected.insert(path.clone(), (rate, name_hash(&path)));
    };
    expect("embeddings", 0.3);
    expect("encoder.visn_fc", 0.3);
    for layer in ["layer.0", "layer.1", "r_layers.0"] {
        expect(&format!("encoder.{layer}.attention.self"), 0.2);
        expect(&format!("encoder.{layer}.attention.output"), 0.3);
        expect(&format!("encoder.{layer}.output"), 0.3);
    }
    for side in ["lang", "visn"] {
        let layer = "encoder.x_layers.0";
        expect(&format!("{layer}.visual_attention.{side}.att"), 0.2);
        expect(&format!("{layer}.visual_attention.{side}.output"), 0.3);
        expect(&format!("{layer}.{side}_self_att.self"), 0.2);
        expect(&format!("{layer}.{side}_self_att.output"), 0.3);
        expect(&format!("{layer}.{side}_output"), 0.3);
    }
    for task in Task::ALL {
        assert_eq!(masks(&graph(&tiny(), &training(task))), expected);
    }
    let salts: BTreeSet<u64> = expected.values().map(|&(_, salt)| salt).collect();
    assert_eq!(salts.len(), expected.len());
}

#[test]
fn a_rate_of_zero_adds_nothing() {
    let options = training(Task::Qa);
    let rates = |hidden_dropout_prob, attention_probs_dropout_prob| LxmertConfig {
        hidden_dropout_prob,
        attention_probs_dropout_prob,
        ..tiny()
    };
    let rates_of = |config: &LxmertConfig| {
        let masks = masks(&graph(config, &options));
        let rates = masks.into_values().map(|(rate, _)| rate.to_bits());
        rates.collect::<BTreeSet<u32>>()
    };
    let only = |rate: f32| BTreeSet::from([rate.to_bits()]);
    assert_eq!(rates_of(&rates(0.0, 0.2)), only(0.2));
    assert_eq!(rates_of(&rates(0.3, 0.0)), only(0.3));
    let without = ModelOptions {
        dropout: false,
        ..options.clone()
    };
    let none = rates(0.0, 0.0);
    let (with, without) = (graph(&none, &options), graph(&none, &without));
    assert_eq!(with.to_string(), without.to_string());
    assert!(RowSpaces::find(&with.spaces).unwrap().are_shared());
}

#[test]
fn a_rate_just_below_one_is_one() {
    let config = LxmertConfig {
        hidden_dropout_prob: 1.0 - f64::EPSILON,
        ..tiny()
    };
    let rates = masks(&graph(&config, &training(Task::Qa)));
    assert!(rates.values().any(|&(rate, _)| rate == 1f32.next_down()));
}

#[test]
fn samples_that_drop_share_nothing() {
    let graph = graph(&tiny(), &training(Task::Qa));
    let spaces = RowSpaces::find(&graph.spaces).unwrap();
    assert!(!spaces.are_shared());
    assert_eq!([spaces.question, spaces.image], [spaces.sample; 2]);
    assert_eq!(graph.spaces.get(spaces.text).capacity, 12);
    assert_eq!(graph.spaces.get(spaces.boxes).capacity, 9);
}

/// A sample: what its inputs and keys follow from, and its numbers of tokens and boxes.
#[derive(Clone, Copy)]
struct Sample {
    seed: u64,
    tokens: usize,
    boxes: usize,
}

fn extents(graph: &Graph, samples: &[Sample]) -> Extents {
    let text = RowSpaces::find(&graph.spaces).unwrap().text;
    Extents::new(
        &graph.spaces,
        |_, _| samples.len(),
        |space, sample, _| match space == text {
            true => samples[sample].tokens,
            false => samples[sample].boxes,
        },
    )
    .unwrap()
}

fn feed(extents: &Extents, samples: &[Sample], op: &Op, ty: &TensorType) -> Tensor<f32> {
    let shape = ty.shape_at(extents);
    let (input, space) = match (op, ty.rows) {
        (Op::Input(input), Some(space)) => (&input.name, space),
        (op, _) => {
            let base = Rng::keyed(1, &format!("{op:?}"));
            let values = (0..shape.elements()).map(|at| base.at(at).unit() as f32);
            return Tensor::real(shape, values.collect());
        }
    };
    let width = shape.row_elements();
    let (mut reals, mut ints) = (Vec::new(), Vec::new());
    for (segment, sample) in samples.iter().enumerate() {
        let base = Rng::keyed(sample.seed, input);
        let rows = extents.segment(space, segment);
        for at in 0..rows.len() * width {
            let bits = base.at(at).bits();
            ints.push(match input.as_str() {
                // Both spaces of rows are segments of the sample.
                "first_token" => samples[..segment].iter().map(|s| s.tokens as i32).sum(),
                "position_ids" => at as i32,
                "dropout_keys" => bits as i32,
                "input_ids" => (bits % 16) as i32,
                _ => (bits % 2) as i32,
            });
            reals.push(match input.ends_with("mask") {
                true => f32::from(u8::from(at == 0 || !bits.is_multiple_of(3))),
                false => base.at(at).unit() as f32,
            });
        }
    }
    match ty.dtype.is_float() {
        true => Tensor::real(shape, reals),
        false => Tensor::int(shape, ints),
    }
}

/// What each sample gets of each output: its rows; of attentions, the columns of its keys.
fn answers(options: &ModelOptions, samples: &[Sample]) -> Vec<BTreeMap<String, Vec<u32>>> {
    let graph = graph(&tiny(), options);
    let extents = extents(&graph, samples);
    let outputs = interpret(&graph, &extents, |op, ty| {
        Ok(feed(&extents, samples, op, ty))
    });
    let outputs = outputs.unwrap();
    let of_sample = |(index, sample): (usize, &Sample)| {
        let named = graph
            .outputs()
            .iter()
            .zip(&outputs)
            .map(|(output, tensor)| {
                let space = graph.ty(output.value).rows.unwrap();
                let keys = match output.name.starts_with("language_att") {
                    true => sample.tokens,
                    false => sample.boxes,
                };
                let rows = extents.segment(space, index).map(|row| tensor.row(row));
                let kept = match output.name.contains("attentions") {
                    true => rows
                        .flat_map(|row| row.chunks(tensor.shape[2]).flat_map(|head| &head[..keys]))
                        .map(|value| value.to_bits())
                        .collect(),
                    false => rows.flatten().map(|value| value.to_bits()).collect(),
                };
                (output.name.clone(), kept)
            });
        named.collect()
    };
    samples.iter().enumerate().map(of_sample).collect()
}

#[test]
fn a_sample_drops_the_same_in_any_batch_with_any_padding() {
    let sample = |seed, tokens, boxes| Sample {
        seed,
        tokens,
        boxes,
    };
    let own = sample(5, 4, 3);
    let batches = [
        (4, 3, vec![own]),
        (7, 5, vec![own]),
        (6, 8, vec![sample(1, 6, 2), own, sample(2, 1, 8)]),
        (4, 3, vec![own, own, sample(3, 2, 1), sample(4, 4, 3)]),
    ];
    let mut first = None;
    for (seq_len, boxes, samples) in batches {
        let options = ModelOptions {
            micro_batch: samples.len(),
            seq_len,
            boxes,
            hidden_states: true,
            attentions: true,
            ..training(Task::Qa)
        };
        let at = samples.iter().position(|s| s.seed == own.seed).unwrap();
        let answer = answers(&options, &samples).swap_remove(at);
        assert_eq!(*first.get_or_insert(answer.clone()), answer);
    }
    let zeros = |name: &str| first.as_ref().unwrap()[name].iter().filter(|&&x| x == 0);
    assert!(zeros("embedding_output").count() > 0);
    assert!(zeros("cross_encoder_attentions.0").count() > 0);
}

#[test]
fn another_key_drops_otherwise() {
    let options = ModelOptions {
        hidden_states: true,
        micro_batch: 2,
        ..training(Task::Qa)
    };
    let sample = |seed| Sample {
        seed,
        tokens: 4,
        boxes: 3,
    };
    let answers = answers(&options, &[sample(1), sample(2)]);
    let dropped = |index: usize| -> Vec<bool> {
        let values = answers[index]["embedding_output"].iter();
        values.map(|&bits| bits == 0).collect()
    };
    assert_ne!(dropped(0), dropped(1));
}
