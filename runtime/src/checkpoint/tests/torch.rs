//! PyTorch files built by hand: what is read and what is refused.

use super::{open_bytes, read_all, refused};
use crate::checkpoint::torch::STREAM_START;
use crate::error::Fault;

/// A zip archive of stored members; `wide` writes the 64-bit forms of all fields.
pub(super) fn zip(members: &[(&str, &[u8])], wide: bool) -> Vec<u8> {
    let mut file = Vec::new();
    let mut directory = Vec::new();
    for (name, data) in members {
        let header = file.len() as u64;
        let len = data.len() as u64;
        let narrow = |x: u64| if wide { u32::MAX } else { x as u32 };
        let mut extra = Vec::new();
        if wide {
            extra.extend([9, 9, 1, 0, 7, 1, 0, 24, 0]);
            extra.extend([len, len, header].map(u64::to_le_bytes).concat());
        }
        let sizes = [narrow(len), narrow(len)].map(u32::to_le_bytes).concat();
        file.extend(b"PK\x03\x04\x14\0\0\0\0\0\0\0\0\0\0\0\0\0");
        file.extend(&sizes);
        file.extend([(name.len() as u16).to_le_bytes(), 3u16.to_le_bytes()].concat());
        file.extend([name.as_bytes(), b"pad", data].concat());
        directory.extend(b"PK\x01\x02\x14\0\x14\0\0\0\0\0\0\0\0\0\0\0\0\0");
        directory.extend(&sizes);
        let lens = [name.len() as u16, extra.len() as u16, 0];
        directory.extend(lens.map(u16::to_le_bytes).concat());
        directory.extend([0; 8]);
        directory.extend(narrow(header).to_le_bytes());
        directory.extend([name.as_bytes(), &extra].concat());
    }
    let start = file.len() as u64;
    let (len, count) = (directory.len() as u64, members.len() as u64);
    file.extend(directory);
    if wide {
        let end = file.len() as u64;
        file.extend(b"PK\x06\x06");
        file.extend([0; 28]);
        file.extend([count, len, start].map(u64::to_le_bytes).concat());
        file.extend(b"PK\x06\x07\0\0\0\0");
        file.extend(end.to_le_bytes());
        file.extend([1, 0, 0, 0]);
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend([0xff; 12]);
    } else {
        file.extend(b"PK\x05\x06\0\0\0\0\0\0");
        file.extend((count as u16).to_le_bytes());
        file.extend([len as u32, start as u32].map(u32::to_le_bytes).concat());
    }
    file.extend([0, 0]);
    file
}

fn text(text: &str) -> Vec<u8> {
    [
        &b"X"[..],
        &(text.len() as u32).to_le_bytes(),
        text.as_bytes(),
    ]
    .concat()
}

fn global(name: &str) -> Vec<u8> {
    let (module, name) = name.rsplit_once('.').unwrap();
    format!("c{module}\n{name}\n").into_bytes()
}

fn tuple(items: &[Vec<u8>]) -> Vec<u8> {
    [&b"("[..], &items.concat(), b"t"].concat()
}

fn ints(values: &[u8]) -> Vec<u8> {
    tuple(&values.iter().map(|&v| vec![b'K', v]).collect::<Vec<_>>())
}

/// A tensor: storage class and length, first element, shape, strides.
fn tensor(class: &str, len: u8, first: u8, shape: &[u8], stride: &[u8]) -> Vec<u8> {
    let storage = tuple(&[
        text("storage"),
        global(class),
        text("0"),
        text("cpu"),
        vec![b'K', len],
    ]);
    let arguments = tuple(&[
        [storage, b"Q".to_vec()].concat(),
        vec![b'K', first],
        ints(shape),
        ints(stride),
        vec![0x89],
        [global("collections.OrderedDict"), b")R".to_vec()].concat(),
    ]);
    [
        global("torch._utils._rebuild_tensor_v2"),
        arguments,
        b"R".to_vec(),
    ]
    .concat()
}

fn dict(entries: &[(&str, Vec<u8>)]) -> Vec<u8> {
    let items: Vec<_> = entries
        .iter()
        .flat_map(|(key, value)| [text(key), value.clone()])
        .collect();
    [&b"\x80\x02}("[..], &items.concat(), b"u."].concat()
}

fn checkpoint(pickle: &[u8], storage: &[u8]) -> Vec<u8> {
    zip(&[("m/data.pkl", pickle), ("m/data/0", storage)], false)
}

fn floats(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

#[test]
fn views_of_one_storage_are_read_at_their_place() {
    let pickle = dict(&[
        ("a", tensor("torch.FloatStorage", 6, 0, &[2, 3], &[3, 1])),
        ("b", tensor("torch.FloatStorage", 6, 4, &[1, 2], &[9, 1])),
        ("c", tensor("torch.FloatStorage", 6, 5, &[], &[])),
    ]);
    let storage = floats(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    for wide in [false, true] {
        let members = [
            ("m/data.pkl", &pickle[..]),
            ("m/byteorder", b"little"),
            ("m/data/0", &storage),
        ];
        let checkpoint = open_bytes(&zip(&members, wide)).unwrap();
        assert_eq!(read_all(&checkpoint, "a"), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
        assert_eq!(read_all(&checkpoint, "b"), [4.0, 5.0]);
        assert_eq!(read_all(&checkpoint, "c"), [5.0]);
    }
}

#[test]
fn parameters_and_attributes_are_looked_through() {
    let inner = tensor("torch.BFloat16Storage", 2, 0, &[2], &[1]);
    let parameter = [
        global("torch._utils._rebuild_parameter"),
        tuple(&[inner, vec![0x88], b"}".to_vec()]),
        b"R".to_vec(),
    ]
    .concat();
    let pickle = [
        b"\x80\x02".to_vec(),
        global("collections.OrderedDict"),
        b")R".to_vec(),
        text("w"),
        parameter,
        b"s}".to_vec(),
        text("_metadata"),
        b"NsbM\x01\x00q\x000h\x00.".to_vec(),
    ]
    .concat();
    // `0` (POP) is no part of torch's pickles.
    assert!(refused(&checkpoint(&pickle, &[0; 4]), Fault::Unsupported).contains("0x30"));
    let end = pickle.len() - 9;
    let plain = [&pickle[..end], b"."].concat();
    let read = open_bytes(&checkpoint(&plain, &[0x80, 0x3f, 0, 0x40])).unwrap();
    assert_eq!(read_all(&read, "w"), [1.0, 2.0]);
}

#[test]
fn code_is_refused_by_name() {
    for name in [
        "os.system",
        "builtins.eval",
        "torch.load",
        "collections.Counter",
    ] {
        let pickle = [global(name), tuple(&[text("true")]), b"R.".to_vec()].concat();
        let message = refused(&checkpoint(&pickle, &[]), Fault::Unsupported);
        assert!(
            message.contains(name) && message.contains("not run"),
            "{message}"
        );
        let stacked = [&text("os")[..], &text("system"), b"\x93."].concat();
        assert!(refused(&checkpoint(&stacked, &[]), Fault::Unsupported).contains("os.system"));
    }
}

#[test]
fn what_is_no_dict_of_dense_tensors_is_refused() {
    let half = |shape: &[u8], stride: &[u8]| tensor("torch.HalfStorage", 6, 0, shape, stride);
    for (entry, words) in [
        (b"K\x07".to_vec(), "not a dense tensor"),
        (b"}".to_vec(), "not a dense tensor"),
        (half(&[2, 3], &[1, 2]), "contiguous"),
        (half(&[2, 2], &[3, 1]), "contiguous"),
        (half(&[6], &[]), "contiguous"),
    ] {
        let pickle = dict(&[("w", entry)]);
        let message = refused(&checkpoint(&pickle, &[0; 12]), Fault::Unsupported);
        assert!(
            message.contains(words) && message.contains("`w`"),
            "{message}"
        );
    }
    let message = refused(&checkpoint(b"K\x07.", &[]), Fault::Unsupported);
    assert!(message.contains("not a dict"), "{message}");
}

#[test]
fn tensors_stay_inside_their_storage() {
    let half = |len, first, shape: &[u8]| {
        let pickle = dict(&[("w", tensor("torch.HalfStorage", len, first, shape, &[1]))]);
        refused(&checkpoint(&pickle, &[0; 12]), Fault::Input)
    };
    assert!(half(6, 1, &[6]).contains("does not lie in its storage"));
    assert!(half(6, 0, &[7]).contains("does not lie in its storage"));
    assert!(half(7, 0, &[6]).contains("12 bytes"));
    let pickle = dict(&[("w", tensor("torch.HalfStorage", 6, 0, &[6], &[1]))]);
    let missing = zip(&[("m/data.pkl", &pickle), ("m/data/1", &[0; 12])], false);
    assert!(refused(&missing, Fault::Input).contains("is missing"));
}

#[test]
fn archives_that_are_no_checkpoints_are_refused() {
    assert!(refused(&zip(&[("a.txt", b"hello")], false), Fault::Input).contains("data.pkl"));
    let two = zip(&[("a/data.pkl", b"}."), ("b/data.pkl", b"}.")], false);
    assert!(refused(&two, Fault::Input).contains("exactly one"));
    let big = zip(&[("m/data.pkl", b"}."), ("m/byteorder", b"big")], false);
    assert!(refused(&big, Fault::Unsupported).contains("little-endian"));
    let mut compressed = zip(&[("m/data.pkl", b"}.")], false);
    let entry = compressed
        .windows(4)
        .position(|w| w == b"PK\x01\x02")
        .unwrap();
    compressed[entry + 10] = 8;
    assert!(refused(&compressed, Fault::Unsupported).contains("compressed"));
}

fn stream(protocol: &[u8], system: &[u8], tensors: &[u8], keys: &[u8], data: &[u8]) -> Vec<u8> {
    [STREAM_START, protocol, system, tensors, keys, data].concat()
}

#[test]
fn single_streams_are_checked() {
    let protocol = b"\x80\x02M\xe9\x03.";
    let little = dict(&[("little_endian", vec![0x88])]);
    let big = dict(&[("little_endian", vec![0x89])]);
    let tensors = dict(&[("w", tensor("torch.HalfStorage", 2, 0, &[2], &[1]))]);
    let keys = [&b"\x80\x02]("[..], &text("0"), b"e."].concat();
    let data = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0x3c, 0, 0x40];
    let good = stream(protocol, &little, &tensors, &keys, &data);
    assert_eq!(read_all(&open_bytes(&good).unwrap(), "w"), [1.0, 2.0]);

    let refuse = |file: &[u8], fault, words: &str| {
        let message = refused(file, fault);
        assert!(message.contains(words), "{message}");
    };
    use Fault::{Input, Unsupported};
    refuse(
        &stream(b"K\x01.", &little, &tensors, &keys, &data),
        Unsupported,
        "1001",
    );
    refuse(
        &stream(protocol, &big, &tensors, &keys, &data),
        Unsupported,
        "little-endian",
    );
    refuse(
        &stream(protocol, &little, &tensors, b"].", &[]),
        Input,
        "is missing",
    );
    refuse(
        &stream(protocol, &little, &tensors, b"}.", &data),
        Input,
        "list of keys",
    );
    refuse(
        &stream(protocol, &little, &tensors, &keys, &data[..10]),
        Input,
        "longer than the file",
    );
    refuse(
        &stream(protocol, &little, &tensors, &keys, &data[..4]),
        Input,
        "ends before",
    );
    refuse(&[&good[..], b"x"].concat(), Input, "goes on");
    let twice = [&b"]("[..], &text("0"), &text("0"), b"e."].concat();
    refuse(
        &stream(protocol, &little, &tensors, &twice, &data.repeat(2)),
        Input,
        "repeated",
    );
    let stranger = [&b"]("[..], &text("1"), b"e."].concat();
    refuse(
        &stream(protocol, &little, &tensors, &stranger, &data),
        Input,
        "no tensor",
    );
    let absurd = [[0xff; 8].to_vec(), vec![0; 4]].concat();
    refuse(
        &stream(protocol, &little, &tensors, &keys, &absurd),
        Input,
        "longer than the file",
    );
}
