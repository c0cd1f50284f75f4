//! Arbitrary and damaged bytes: errors, never panics.

use super::torch::zip;
use super::{golden, one_screen, open_bytes, refused, safetensors};
use crate::checkpoint::Checkpoint;
use crate::checkpoint::pickle::{Node, Pickle, PickleError};
use crate::checkpoint::torch::STREAM_START;
use crate::error::Fault;
use proptest::prelude::*;
use std::fs;

/// Opens and, where that works, reads everything; errors must be presentable and not ours.
fn survive(bytes: &[u8]) {
    match open_bytes(bytes) {
        Ok(checkpoint) => read_everything(&checkpoint),
        Err(error) => {
            assert!(
                matches!(error.fault(), Fault::Input | Fault::Unsupported),
                "{error}"
            );
            one_screen(&error);
        }
    }
}

fn read_everything(checkpoint: &Checkpoint) {
    for name in checkpoint.names() {
        let info = checkpoint.get(name).unwrap();
        let mut out = vec![0.0; info.elements()];
        if let Err(error) = checkpoint.read_rows_f32(name, 0..info.rows(), &mut out) {
            assert_eq!(error.fault(), Fault::Input, "{error}");
        }
    }
}

#[test]
fn lying_headers_are_refused() {
    let one = |entry: &str| safetensors(&format!(r#"{{"w":{entry}}}"#), &[0; 8]);
    for (bytes, words) in [
        (vec![], "too few"),
        (vec![0; 7], "too few"),
        (u64::MAX.to_le_bytes().to_vec(), "claims a header"),
        ((1u64 << 40).to_le_bytes().repeat(9), "claims a header"),
        (safetensors("[]", &[]), "a JSON object"),
        (safetensors("{", &[]), "EOF"),
        (safetensors("{} x", &[]), "trailing"),
        (safetensors(&"[".repeat(100_000), &[]), "header"),
        (
            one(r#"{"dtype":"F32","shape":[3],"data_offsets":[0,8]}"#),
            "does not take",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[0,9]}"#),
            "data part of 8",
        ),
        (
            one(r#"{"dtype":"F32","shape":[2],"data_offsets":[8,0]}"#),
            "8..0",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[4,8]}"#),
            "gap",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1],"data_offsets":[0,4]}"#),
            "no tensor",
        ),
        (
            one(r#"{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}"#),
            "`w`",
        ),
        (
            one(r#"{"dtype":"F32","shape":[1e3],"data_offsets":[0,8]}"#),
            "`w`",
        ),
        (
            one(r#"{"dtype":"F33","shape":[2],"data_offsets":[0,8]}"#),
            "`F33`",
        ),
        (one(r#"{"shape":[2],"data_offsets":[0,8]}"#), "dtype"),
        (
            one(r#"{"dtype":"F32","shape":[4294967296,4294967296,0],"data_offsets":[0,8]}"#),
            "does not take",
        ),
        (
            one(r#"{"dtype":"F4","shape":[3],"data_offsets":[0,8]}"#),
            "does not take",
        ),
        (
            one(r#"{"dtype":"F32","shape":[18446744073709551615,2],"data_offsets":[0,8]}"#),
            "does not take",
        ),
        (
            b"version https://git-lfs.github.com/spec/v1\noid".to_vec(),
            "git lfs pull",
        ),
        (b"<!DOCTYPE html><html>".to_vec(), "web page"),
    ] {
        let message = refused(&bytes, Fault::Input);
        assert!(message.contains(words), "{words} not in: {message}");
    }
}

#[test]
fn overlaps_and_repeated_names_are_refused() {
    let two = |a: &str, b: &str, from: u8| {
        let entry = |begin: u8, end: u8| {
            format!(r#"{{"dtype":"U8","shape":[4],"data_offsets":[{begin},{end}]}}"#)
        };
        let header = format!(
            r#"{{"{a}":{},"{b}":{}}}"#,
            entry(0, 4),
            entry(from, from + 4)
        );
        refused(&safetensors(&header, &[0; 8]), Fault::Input)
    };
    assert!(two("a", "b", 2).contains("`b`: overlaps"));
    assert!(two("a", "a", 4).contains("twice"));
}

#[test]
fn long_and_odd_names_are_shortened_and_escaped() {
    let name = format!("\\u001b[2J{}", "x".repeat(5000));
    let header = format!(r#"{{"{name}":{{"dtype":"U8","shape":[4],"data_offsets":[0,5]}}}}"#);
    let message = refused(&safetensors(&header, &[0; 5]), Fault::Input);
    assert!(
        !message.contains('\u{1b}') && message.len() < 1000,
        "{message}"
    );
}

#[test]
fn every_cut_of_a_valid_file_is_refused() {
    for name in [
        "model.f16.safetensors",
        "pytorch_model.bin",
        "pytorch_model_legacy.bin",
    ] {
        let bytes = fs::read(golden(name)).unwrap();
        for cut in (0..bytes.len()).step_by(977).chain([bytes.len() - 1]) {
            refused(&bytes[..cut], Fault::Input);
        }
    }
}

#[test]
fn malformed_pickles_are_errors() {
    let malformed: [&[u8]; 16] = [
        b"",
        b".",
        b"N",
        b"((.",
        b"t.",
        b"Nt.",
        b"h\0.",
        b"q\0.",
        b"u.",
        b"](NNu.",
        b"}(Nu.",
        b"NNa.",
        b"NR.",
        b"NNR.",
        b"X\xff\xff\xff\xff.",
        b"cos\n",
    ];
    for pickle in malformed {
        let error = Pickle::read(pickle).unwrap_err();
        assert!(matches!(error, PickleError::Malformed(..)), "{pickle:?}");
    }
    assert!(Pickle::read(b"\x8a\x09123456789.").is_err());
    assert!(Pickle::read(b"(NK\x01\x86K\x02.").is_ok());
}

#[test]
fn pickles_cannot_multiply_their_contents() {
    assert!(size_of::<Node<'_>>() <= 32);
    let own_element = Pickle::read(b"]q\0h\0a.").unwrap();
    assert_eq!(own_element.len, 7);
    let copy = b"ccollections\nOrderedDict\n](NN\x86e\x85R.";
    assert!(matches!(Pickle::read(copy), Err(PickleError::Refused(_))));
    let axes = [&b"("[..], &b"K\x01".repeat(17), b"t."].concat();
    let pickle = Pickle::read(&axes).unwrap();
    assert_eq!(pickle.sizes(pickle.root), None);
}

fn damaged(name: &'static str) -> impl Strategy<Value = Vec<u8>> {
    let bytes = fs::read(golden(name)).unwrap();
    let len = bytes.len();
    // Half of the damage goes where the metadata is: the first part, or the end of a zip.
    let place = prop_oneof![0..len.min(14_000), len - 12_000..len, 0..len];
    let edits = prop::collection::vec((place, any::<u8>()), 1..6);
    (edits, 0..8u8, 0..len).prop_map(move |(edits, cut_it, cut)| {
        let mut bytes = bytes.clone();
        for (at, value) in edits {
            bytes[at] = value;
        }
        if cut_it == 0 {
            bytes.truncate(cut);
        }
        bytes
    })
}

proptest! {
    #[test]
    fn arbitrary_bytes(bytes in prop::collection::vec(any::<u8>(), 0..2000)) {
        survive(&bytes);
    }

    #[test]
    fn arbitrary_headers(header in "[{}\\[\\]\",:a-z0-9_ ]{0,200}", data in 0usize..20) {
        survive(&safetensors(&header, &vec![0; data]));
    }

    #[test]
    fn arbitrary_pickles(opcodes in prop::collection::vec(
        prop_oneof![
            prop::sample::select(b".()]}NQRXGJKMUTcqrhjbsuaet\x80\x85\x86\x87\x88\x89\x8a\x8c\x93\x94\x95\n".to_vec()),
            any::<u8>(),
        ],
        0..300,
    )) {
        survive(&zip(&[("m/data.pkl", &opcodes)], false));
        survive(&[STREAM_START, &opcodes].concat());
    }

    #[test]
    fn damaged_safetensors(bytes in damaged("model.bf16.safetensors")) {
        survive(&bytes);
    }

    #[test]
    fn damaged_zip(bytes in damaged("pytorch_model.bin")) {
        survive(&bytes);
    }

    #[test]
    fn damaged_stream(bytes in damaged("pytorch_model_legacy.bin")) {
        survive(&bytes);
    }

    #[test]
    fn damaged_index(text in r#"\{"weight_map":\{"[a-z/.]{0,4}":"[a-z/.]{0,4}"\}\}?"#) {
        let folder = super::folder_with("model.safetensors.index.json", text.as_bytes());
        let error = Checkpoint::open(folder.path()).unwrap_err();
        prop_assert_eq!(error.fault(), Fault::Input);
    }
}
