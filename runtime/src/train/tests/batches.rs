//! Stacked batches.

use lxpod_ir::front::{AnswerLoss, ModelOptions, build};

use super::*;
use crate::error::Fault;
use crate::tensors::{HostData, HostTensor, TensorSpec, TensorWriter, read_tensors};
use crate::train::Batches;

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/train_hf");

type Stacked = BTreeMap<String, HostTensor>;

fn golden() -> (Model, Stacked) {
    let stacked = read_tensors(&Path::new(GOLDEN).join("inputs.safetensors")).unwrap();
    (Model::open(GOLDEN, 0).unwrap(), stacked)
}

fn write(path: &Path, tensors: &Stacked) {
    let spec = |(name, tensor): (&String, &HostTensor)| TensorSpec {
        name: name.clone(),
        dtype: tensor.data().dtype(),
        shape: tensor.shape().to_vec(),
    };
    let specs: Vec<_> = tensors.iter().map(spec).collect();
    let mut writer = TensorWriter::create(path, &BTreeMap::new(), &specs).unwrap();
    for (name, tensor) in tensors {
        match tensor.data() {
            HostData::I64(values) => writer.write_i64(name, values).unwrap(),
            _ => writer.write_f32(name, &tensor.to_f32().unwrap()).unwrap(),
        }
    }
    writer.finish().unwrap();
}

/// Opens and validates the golden batches after a change.
fn changed(change: impl FnOnce(&mut Stacked)) -> Result<Batches> {
    let (model, mut stacked) = golden();
    change(&mut stacked);
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("batches.safetensors");
    write(&path, &stacked);
    let batches = Batches::open(&path, &model.config, Task::Qa)?;
    let mut seen = Vec::new();
    batches.validate(&mut |index| seen.push(index))?;
    assert!(seen.into_iter().eq(0..batches.len()));
    Ok(batches)
}

fn replace(stacked: &mut Stacked, name: &str, change: impl FnOnce(&mut Vec<usize>, &mut HostData)) {
    let tensor = &stacked[name];
    let (mut shape, mut data) = (tensor.shape().to_vec(), tensor.data().clone());
    change(&mut shape, &mut data);
    stacked.insert(name.to_owned(), HostTensor::new(name, shape, data).unwrap());
}

#[test]
fn a_micro_batch_is_a_slice_of_every_tensor() {
    let batches = changed(|_| ()).unwrap();
    assert_eq!((batches.len(), batches.is_empty()), (40, false));
    let samples = batches.samples(3).unwrap();
    assert_eq!((samples.batch, samples.tokens, samples.boxes), (4, 8, 5));
    let (_, stacked) = golden();
    let ids = stacked["input_ids"].to_i32().unwrap();
    let crate::samples::Values::Ints(read) = &samples.values["input_ids"] else {
        panic!("no integers")
    };
    assert_eq!(read[..], ids[3 * 32..4 * 32]);
    assert_eq!(
        batches.description()["visual_feats"],
        serde_json::json!(["F32", [40, 4, 5, 16]])
    );
}

#[test]
fn steps_are_fed_in_order() {
    let (model, stacked) = golden();
    let batches = changed(|_| ()).unwrap();
    let options = batches
        .samples(0)
        .unwrap()
        .model_options(Task::Qa, AnswerLoss::CrossEntropy);
    let graph = build(&model.config, &options).unwrap().graph;
    let mut feeds = batches.feeds(graph, 2).unwrap();
    assert_eq!(
        (feeds.steps(), feeds.micro_batches(), feeds.samples()),
        (20, 2, 8)
    );
    let labels = stacked["labels"].to_i32().unwrap();
    for step in [0, 19] {
        let read = feeds.read(step).unwrap();
        let fed: Vec<i32> = read
            .iter()
            .flat_map(|feed| feed.inputs["labels"].ints().to_vec())
            .collect();
        assert_eq!(fed, labels[step * 8..(step + 1) * 8]);
    }
}

#[test]
fn a_file_must_hold_whole_steps() {
    let (model, _) = golden();
    let options = ModelOptions {
        seq_len: 8,
        micro_batch: 4,
        ..ModelOptions::default()
    };
    let graph = build(&model.config, &options).unwrap().graph;
    let error = changed(|_| ()).unwrap().feeds(graph, 3).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(
        error
            .to_string()
            .contains("holds 40 micro-batches, no multiple of the 3"),
        "{error}"
    );
}

#[test]
fn wrong_values_are_found_before_the_first_step() {
    type Change = fn(&mut Stacked);
    let cases: [(Change, &str); 8] = [
        (
            |s| replace(s, "visual_feats", |_, d| set(d, 39 * 320 + 7, f32::NAN)),
            "micro-batch 39, tensor `visual_feats`: element 7 is NaN",
        ),
        (
            |s| replace(s, "visual_pos", |_, d| set(d, 80, f32::INFINITY)),
            "micro-batch 1, tensor `visual_pos`: element 0 is inf",
        ),
        (
            |s| replace(s, "labels", |_, d| set_int(d, 9, 11)),
            "micro-batch 2, tensor `labels`: element 1 is 11; must be in 0..11",
        ),
        (
            |s| {
                replace(s, "labels", |_, d| {
                    (20..24).for_each(|at| set_int(d, at, -100))
                })
            },
            "micro-batch 5, tensor `labels`: every label is -100",
        ),
        (
            |s| replace(s, "input_ids", |_, d| set_int(d, 0, -1)),
            "micro-batch 0, tensor `input_ids`: element 0 is -1",
        ),
        (
            |s| replace(s, "labels", |shape, _| *shape = vec![20, 8]),
            "tensor `labels`: counts 20 micro-batches, `input_ids` counts 40",
        ),
        (
            |s| replace(s, "labels", |shape, _| *shape = vec![160]),
            "tensor `labels`: has shape [160]",
        ),
        (
            |s| drop(s.remove("input_ids")),
            "tensor `input_ids`: is missing",
        ),
    ];
    for (change, words) in cases {
        let error = changed(change).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        let text = error.to_string();
        assert!(
            text.contains(words) && text.contains("help: "),
            "{text}\nlacks: {words}"
        );
    }
}

fn set(data: &mut HostData, at: usize, value: f32) {
    let HostData::F32(values) = data else {
        panic!("no floats")
    };
    values[at] = value;
}

fn set_int(data: &mut HostData, at: usize, value: i64) {
    let HostData::I64(values) = data else {
        panic!("no integers")
    };
    values[at] = value;
}

#[test]
fn tensors_of_other_tasks_are_not_looked_at() {
    let odd = HostTensor::new("lm_labels", vec![3], HostData::I64(vec![0; 3])).unwrap();
    let batches = changed(|stacked| drop(stacked.insert("lm_labels".to_owned(), odd))).unwrap();
    assert!(batches.description().get("lm_labels").is_none());
}

#[test]
fn micro_batches_larger_than_the_plans_are_refused() {
    let (model, _) = golden();
    let options = ModelOptions {
        seq_len: 8,
        micro_batch: 3,
        ..ModelOptions::default()
    };
    let graph = build(&model.config, &options).unwrap().graph;
    let error = changed(|_| ()).unwrap().feeds(graph, 2).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(
        error.to_string().contains("micro-batches of 4 are larger"),
        "{error}"
    );
}
