//! The model that a run leaves.

use std::fs;

use lxpod_ir::front::{ModelOptions, build};

use super::*;
use crate::checkpoint::Checkpoint;
use crate::tensors::{Dtype, TensorFile};

const GOLDEN: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/train_hf");

#[test]
fn trained_tensors_are_written_back_and_others_stay() {
    let folder = tempfile::tempdir().unwrap();
    for dtype in [DType::F32, DType::F16] {
        let setup = Setup {
            dtype,
            ..Setup::new()
        };
        let mut trainer = setup.trainer(folder.path()).unwrap();
        run(&mut trainer, Some(STEPS)).unwrap();
        let file = TensorFile::open(&folder.path().join("model.safetensors")).unwrap();
        assert!(file.names().eq(["a", "b", "frozen"]));
        let before = Tensors::new();
        let read = |name: &str| file.read(name).unwrap().to_f32().unwrap();
        assert_eq!(read("frozen"), before.0["frozen"].1);
        assert_eq!(file.get("frozen").unwrap().dtype, Dtype::F32);
        let stored = if dtype == DType::F32 {
            Dtype::F32
        } else {
            Dtype::F16
        };
        for name in ["a", "b"] {
            assert_eq!(file.get(name).unwrap().dtype, stored);
            assert_eq!(file.get(name).unwrap().shape, [1, 3]);
            assert!(
                read(name)
                    .iter()
                    .zip(&before.0[name].1)
                    .all(|(a, b)| a != b)
            );
        }
        let config = fs::read(folder.path().join("config.json")).unwrap();
        let config: serde_json::Value = serde_json::from_slice(&config).unwrap();
        let word = if dtype == DType::F32 {
            "float32"
        } else {
            "float16"
        };
        assert_eq!(config["dtype"], word);
        assert_eq!(config["architectures"][0], "LxmertForQuestionAnswering");
    }
}

#[test]
fn a_master_copy_is_what_is_written() {
    use crate::train::export::Export;
    let folder = tempfile::tempdir().unwrap();
    let tensors = Tensors::new();
    let model = Model::open(BUILT_IN, 0).unwrap();
    let weights = Box::new(Tensors::new());
    let export = Export::new(&model, Task::Qa, tensors.expected(), weights, DType::F32).unwrap();
    let tensor = |value| lxpod_ir::Tensor::real([1, 3], vec![value; 3]);
    let persistent = [
        ("param:a".to_owned(), tensor(1.0)),
        ("state:master:a".to_owned(), tensor(1.0001)),
        ("state:m:a".to_owned(), tensor(9.0)),
    ];
    let run = RunFolder::open(folder.path()).unwrap();
    let write = |trained: &str, persistent: &[_]| {
        run.publish(|staging| export.write(staging, &[trained.to_owned()].into(), persistent))
    };
    write("a", &persistent).unwrap();
    let read = crate::tensors::read_tensors(&folder.path().join("model.safetensors")).unwrap();
    assert_eq!(read["a"].to_f32().unwrap(), [1.0001; 3]);
    assert_eq!(read["b"].to_f32().unwrap(), tensors.0["b"].1);
    let error = write("b", &persistent).unwrap_err();
    assert_eq!(error.fault(), crate::error::Fault::Internal);
}

#[test]
fn what_is_written_opens_as_the_model_it_was_even_if_that_is_gone() {
    let [source, target] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    for name in ["config.json", "model.safetensors"] {
        fs::copy(Path::new(GOLDEN).join(name), source.path().join(name)).unwrap();
    }
    fs::write(source.path().join("vocab.txt"), "[PAD]\nwhat\n").unwrap();
    let mut config = fs::read_to_string(source.path().join("config.json")).unwrap();
    config = config.replacen('{', "{\"id2label\": {\"0\": \"yes\"}, ", 1);
    fs::write(source.path().join("config.json"), config).unwrap();
    let model = Model::open(source.path().to_str().unwrap(), 0).unwrap();
    let options = ModelOptions {
        seq_len: 8,
        ..ModelOptions::default()
    };
    let expected = build(&model.config, &options).unwrap().expected;
    let (weights, _) = model.weights_of(&expected).unwrap();
    let export = Export::new(&model, Task::Qa, expected.clone(), weights, DType::F32).unwrap();
    drop(source);
    let run = RunFolder::open(target.path()).unwrap();
    run.publish(|staging| export.write(staging, &[].into(), &[]))
        .unwrap();
    let written = Model::open(target.path().to_str().unwrap(), 0).unwrap();
    assert_eq!(written.config.num_qa_labels, model.config.num_qa_labels);
    let checkpoint = Checkpoint::open(target.path()).unwrap();
    checkpoint.check(&expected).unwrap();
    let original = Checkpoint::open(Path::new(GOLDEN)).unwrap();
    for (name, shape) in &expected {
        let mut values = [(); 2].map(|()| vec![0.0; shape.iter().product()]);
        for (checkpoint, values) in [&checkpoint, &original].into_iter().zip(&mut values) {
            checkpoint.read_rows_f32(name, 0..shape[0], values).unwrap();
        }
        assert_eq!(values[0], values[1], "{name}");
    }
    let vocabulary = fs::read_to_string(target.path().join("vocab.txt")).unwrap();
    assert_eq!(vocabulary, "[PAD]\nwhat\n");
    let config = fs::read_to_string(target.path().join("config.json")).unwrap();
    assert!(
        config.contains("id2label"),
        "fields lxpod does not know stay"
    );
}
