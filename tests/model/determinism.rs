//! The same bits, whatever the tiles, threads, batch, padding and sharing.

use crate::support::Case;
use lxpod_passes::Precision;
use lxpod_runtime::tensors::{HostData, HostTensor};
use lxpod_runtime::{NamedTensor, Samples, SessionOptions};
use std::collections::BTreeMap;

fn bits(tensor: &NamedTensor) -> Vec<u32> {
    tensor.values.iter().map(|value| value.to_bits()).collect()
}

const SCORE: &str = "question_answering_score";

/// The answer scores of these inputs, on that many stages and threads, in micro-batches of that
/// many samples.
fn scores(
    case: &Case,
    inputs: &Inputs,
    stages: usize,
    threads: usize,
    micro_batch: usize,
    precision: Precision,
) -> Vec<u32> {
    let path = std::path::Path::new("inputs");
    let samples =
        Samples::from_tensors(inputs, path, &case.model.config, case.task).expect("samples");
    let mut options = case.options(stages);
    options.model.hidden_states = false;
    options.model.attentions = false;
    options.model.micro_batch = micro_batch;
    options.model.seq_len = options.model.seq_len.max(samples.tokens);
    options.precision = precision;
    let mut session = case.session(
        case.plan(&options),
        SessionOptions {
            threads,
            ..SessionOptions::default()
        },
    );
    let result = session.run(&samples).expect("a run");
    bits(result.get(SCORE).expect("scores"))
}

type Inputs = BTreeMap<String, HostTensor>;

/// Rows `keep` of every input, axis 0.
fn select(inputs: &Inputs, keep: &[usize]) -> Inputs {
    let pick = |(name, tensor): (&String, &HostTensor)| {
        let mut shape = tensor.shape().to_vec();
        let width: usize = shape[1..].iter().product();
        shape[0] = keep.len();
        let rows = |row: &usize| row * width..(row + 1) * width;
        let data = match tensor.data() {
            HostData::F32(v) => {
                HostData::F32(keep.iter().flat_map(|r| &v[rows(r)]).copied().collect())
            }
            HostData::I64(v) => {
                HostData::I64(keep.iter().flat_map(|r| &v[rows(r)]).copied().collect())
            }
            other => panic!("unexpected {}", other.dtype()),
        };
        (
            name.clone(),
            HostTensor::new(name.as_str(), shape, data).expect("a tensor"),
        )
    };
    inputs.iter().map(pick).collect()
}

/// The inputs with `more` columns of padding behind every text.
fn pad(inputs: &Inputs, more: usize) -> Inputs {
    let texts = ["input_ids", "attention_mask", "token_type_ids"];
    let widen = |(name, tensor): (&String, &HostTensor)| {
        let HostData::I64(values) = tensor.data() else {
            return (name.clone(), tensor.clone());
        };
        if !texts.contains(&name.as_str()) {
            return (name.clone(), tensor.clone());
        }
        let (rows, width) = (tensor.shape()[0], tensor.shape()[1]);
        let row = |row: usize| {
            values[row * width..(row + 1) * width]
                .iter()
                .copied()
                .chain(vec![0; more])
        };
        let data = HostData::I64((0..rows).flat_map(row).collect());
        (
            name.clone(),
            HostTensor::new(name.as_str(), vec![rows, width + more], data).expect("a tensor"),
        )
    };
    inputs.iter().map(widen).collect()
}

#[test]
fn tiles_and_threads_change_no_bit() {
    for precision in [Precision::Fp32, Precision::Mixed] {
        for name in ["qa_batch16", "qa_hole_mask", "qa_no_x_layers"] {
            let case = Case::open(name);
            let batch = case.samples().batch;
            let first = scores(&case, &case.inputs, 1, 1, batch, precision);
            for (stages, threads) in [(1, 2), (2, 1), (4, 2), (8, 1), (16, 1), (16, 2)] {
                let other = scores(&case, &case.inputs, stages, threads, batch, precision);
                assert_eq!(
                    first, other,
                    "{name}: {stages} stages, {threads} threads, {precision}"
                );
            }
        }
    }
}

#[test]
fn the_other_samples_of_the_batch_change_no_bit() {
    let case = Case::open("qa_batch16");
    let labels = case.model.config.num_qa_labels;
    for precision in [Precision::Fp32, Precision::Mixed] {
        let eight = select(&case.inputs, &[3, 1, 4, 1, 5, 9, 2, 6]);
        let together = scores(&case, &eight, 4, 2, 8, precision);
        for micro_batch in [1, 3] {
            assert_eq!(
                together,
                scores(&case, &eight, 4, 2, micro_batch, precision),
                "micro-batch {micro_batch}"
            );
        }
        for (at, sample) in [3, 1, 4, 1, 5, 9, 2, 6].into_iter().enumerate() {
            let alone = scores(&case, &select(&case.inputs, &[sample]), 2, 1, 1, precision);
            assert_eq!(
                together[at * labels..(at + 1) * labels],
                alone,
                "sample {sample} {precision}"
            );
        }
    }
}

#[test]
fn padding_changes_no_bit() {
    let case = Case::open("qa_batch16");
    for precision in [Precision::Fp32, Precision::Mixed] {
        let batch = case.samples().batch;
        let plain = scores(&case, &case.inputs, 4, 2, batch, precision);
        let padded = scores(&case, &pad(&case.inputs, 3), 4, 2, batch, precision);
        assert_eq!(plain, padded, "{precision}");
    }
}

#[test]
fn sharing_images_changes_no_bit() {
    let case = Case::open("qa_batch16");
    let visual = ["visual_feats", "visual_pos", "visual_attention_mask"];
    let images = [0usize, 2, 0, 0, 2, 5, 5, 0];
    let mut repeated = select(&case.inputs, &[0, 1, 2, 3, 4, 5, 6, 7]);
    let mut shared = repeated.clone();
    for name in visual
        .into_iter()
        .filter(|name| case.inputs.contains_key(*name))
    {
        let one = BTreeMap::from([(name.to_owned(), case.inputs[name].clone())]);
        repeated.extend(select(&one, &images));
        shared.extend(select(&one, &[0, 2, 5]));
    }
    let index = images
        .iter()
        .map(|image| [0, 2, 5].iter().position(|i| i == image).expect("listed") as i64);
    let index =
        HostTensor::new("image_index", vec![8], HostData::I64(index.collect())).expect("a tensor");
    shared.insert("image_index".to_owned(), index);
    let apart = scores(&case, &repeated, 2, 2, 8, Precision::Fp32);
    assert_eq!(apart, scores(&case, &shared, 2, 2, 8, Precision::Fp32));
    assert_eq!(apart, scores(&case, &shared, 2, 2, 3, Precision::Fp32));
}

#[test]
fn outputs_asked_for_besides_change_no_bit_of_padded_rows() {
    let case = Case::open("qa_hole_mask");
    let run = |hidden_states: bool| {
        let mut options = case.options(3);
        options.model.hidden_states = hidden_states;
        options.model.attentions = false;
        let mut session = case.session(case.plan(&options), SessionOptions::default());
        let result = session.run(&case.samples()).expect("a run");
        bits(result.get(SCORE).expect("scores"))
    };
    assert_eq!(run(false), run(true));
}
