//! PyTorch checkpoints: the zip form (since 1.6) and the single-stream form before it.
//!
//! Only the pickle that describes the tensors is read; no code in it is run.

use super::pickle::{Global, MAX_PICKLE, Node, Pickle, PickleError, Ref};
use super::zip::Archive;
use crate::error::{Error, Result, quote, quote_shape};
use crate::tensors::{Dtype, TensorInfo};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// How a zip archive starts.
pub(super) const ZIP_START: &[u8] = b"PK\x03\x04";
/// How the single-stream form starts: the pickled number 0x1950a86a20f9469cfc6c.
pub(super) const STREAM_START: &[u8] = b"\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19.";

const FETCH_AGAIN: &str = "the file is damaged or was cut short; fetch it again";
const SAVE_PLAIN: &str =
    "save only the weights: torch.save(model.state_dict(), FILE), or model.save_pretrained(FOLDER)";

/// The tensors of a zip-form checkpoint, in the order of the file.
///
/// # Errors
/// [`Error::InvalidFile`], [`Error::Unsupported`] for anything but a plain dict of dense tensors, [`Error::Io`].
pub(super) fn read_zip(path: &Path, file: &File) -> Result<Vec<(String, TensorInfo)>> {
    let archive = Archive::open(path, file)?;
    let mut pickles = archive.names().filter(|n| n.ends_with("data.pkl"));
    let (Some(pickle), None) = (pickles.next(), pickles.next()) else {
        let problem = "there must be exactly one data.pkl; is this a PyTorch checkpoint?";
        return Err(Error::invalid(path, "zip directory", problem, SAVE_PLAIN));
    };
    let folder = pickle.strip_suffix("data.pkl").unwrap_or_default();
    check_byte_order(path, &archive, folder)?;
    let bytes = member(path, &archive, pickle, MAX_PICKLE)?;
    let reader = TensorReader::new(path, &bytes)?;
    let mut located = HashMap::new();
    let mut tensors = Vec::new();
    for tensor in reader.tensors()? {
        let place = match located.get(tensor.key) {
            Some(&place) => place,
            None => {
                let name = format!("{folder}data/{}", tensor.key);
                let place = archive.locate(&name)?.ok_or_else(|| {
                    tensor.invalid(path, format!("its data, {}, is missing", quote(&name)))
                })?;
                located.insert(tensor.key, place);
                place
            }
        };
        tensors.push(tensor.place(path, place)?);
    }
    Ok(tensors)
}

fn check_byte_order(path: &Path, archive: &Archive<'_>, folder: &str) -> Result<()> {
    let name = format!("{folder}byteorder");
    if archive.locate(&name)?.is_none() || member(path, archive, &name, 16)? == b"little" {
        return Ok(());
    }
    Err(Error::unsupported(
        path,
        "byteorder",
        "not little-endian",
        SAVE_PLAIN,
    ))
}

/// The bytes of a member of at most `limit` bytes.
fn member(path: &Path, archive: &Archive<'_>, name: &str, limit: u64) -> Result<Vec<u8>> {
    let (start, len) = archive
        .locate(name)?
        .ok_or_else(|| Error::internal(format!("zip member {name} vanished")))?;
    check_pickle_len(path, name, len, limit)?;
    archive.bytes(start, len)
}

fn check_pickle_len(path: &Path, field: &str, len: u64, limit: u64) -> Result<()> {
    if len <= limit {
        return Ok(());
    }
    let problem = format!("its {len} bytes are more than {limit}");
    Err(Error::unsupported(path, quote(field), problem, SAVE_PLAIN))
}

/// The tensors of a single-stream checkpoint: pickles of a magic number, the protocol, the writer's system, the
/// tensors and the storage keys; then each storage as its element count (i64) and its bytes.
///
/// # Errors
/// As [`read_zip`].
pub(super) fn read_stream(path: &Path, file: &File) -> Result<Vec<(String, TensorInfo)>> {
    let reading = |e| Error::reading(path, e);
    let len = file.metadata().map_err(reading)?.len();
    let mut bytes = vec![0; len.min(4 * MAX_PICKLE) as usize];
    file.read_exact_at(&mut bytes, 0).map_err(reading)?;
    let mut at = STREAM_START.len().min(bytes.len());
    let protocol = next_pickle(path, &bytes, &mut at)?;
    if *protocol.node(protocol.root) != Node::Int(1001) {
        let problem = "not the protocol version 1001";
        return Err(Error::unsupported(
            path,
            "protocol version",
            problem,
            SAVE_PLAIN,
        ));
    }
    let system = next_pickle(path, &bytes, &mut at)?;
    if !is_little_endian(&system) {
        let problem = "not little-endian";
        return Err(Error::unsupported(
            path,
            "system information",
            problem,
            SAVE_PLAIN,
        ));
    }
    let reader = TensorReader {
        path,
        pickle: next_pickle(path, &bytes, &mut at)?,
    };
    let tensors = reader.tensors()?;
    let keys = next_pickle(path, &bytes, &mut at)?;
    let places = locate_storages(path, file, (at as u64, len), &keys, &tensors)?;
    let placed = tensors
        .into_iter()
        .map(|tensor| match places.get(tensor.key) {
            Some(&place) => tensor.place(path, place),
            None => Err(tensor.invalid(path, "its data is missing".into())),
        });
    placed.collect()
}

/// Offset and size of each storage. `data` is where the storages start and the file ends.
fn locate_storages<'a>(
    path: &Path,
    file: &File,
    data: (u64, u64),
    keys: &Pickle<'a>,
    tensors: &[StoredTensor<'_>],
) -> Result<HashMap<&'a str, (u64, u64)>> {
    let invalid = |problem: &str| Error::invalid(path, "storages", problem, FETCH_AGAIN);
    let Node::List(list) = keys.node(keys.root) else {
        return Err(invalid("the list of keys is missing"));
    };
    let sizes: HashMap<&str, usize> = tensors
        .iter()
        .map(|t| (t.key, t.dtype.bitsize() / 8))
        .collect();
    let mut places = HashMap::new();
    let (mut at, end) = data;
    for &key in list {
        let key = keys
            .str(key)
            .ok_or_else(|| invalid("a key is not a string"))?;
        let Some(&size) = sizes.get(key) else {
            return Err(invalid("a storage belongs to no tensor"));
        };
        let mut count = [0; 8];
        file.read_exact_at(&mut count, at)
            .map_err(|e| Error::reading(path, e))?;
        let len = u64::from_le_bytes(count).checked_mul(size as u64);
        let Some(len) = len.filter(|&len| len <= end.saturating_sub(at + 8)) else {
            return Err(invalid("one is longer than the file"));
        };
        if places.insert(key, (at + 8, len)).is_some() {
            return Err(invalid("a key is repeated"));
        }
        at += 8 + len;
    }
    match at == end {
        true => Ok(places),
        false => Err(invalid("the file goes on after the last")),
    }
}

fn is_little_endian(system: &Pickle<'_>) -> bool {
    let Node::Dict(pairs) = system.node(system.root) else {
        return false;
    };
    pairs.chunks_exact(2).any(|pair| {
        system.str(pair[0]) == Some("little_endian") && *system.node(pair[1]) == Node::Bool(true)
    })
}

/// The pickle at byte `at`, which moves behind it.
fn next_pickle<'a>(path: &Path, bytes: &'a [u8], at: &mut usize) -> Result<Pickle<'a>> {
    let rest = &bytes[*at..];
    let pickle = Pickle::read(&rest[..rest.len().min(MAX_PICKLE as usize)])
        .map_err(|e| pickle_error(path, e))?;
    *at += pickle.len;
    Ok(pickle)
}

fn pickle_error(path: &Path, error: PickleError) -> Error {
    match error {
        PickleError::Malformed(at, what) => {
            let problem = format!("malformed at its byte {at}: {what}");
            Error::invalid(path, "pickle", problem, FETCH_AGAIN)
        }
        PickleError::Refused(what) => Error::unsupported(path, "pickle", what, SAVE_PLAIN),
    }
}

/// Interprets a pickle as a dict of tensors.
struct TensorReader<'a> {
    path: &'a Path,
    pickle: Pickle<'a>,
}

/// A tensor as the pickle describes it.
struct StoredTensor<'a> {
    name: &'a str,
    dtype: Dtype,
    shape: Vec<usize>,
    /// The storage and its number of elements.
    key: &'a str,
    storage_len: usize,
    /// Position in the storage of the first element.
    first: usize,
}

impl<'a> TensorReader<'a> {
    fn new(path: &'a Path, bytes: &'a [u8]) -> Result<Self> {
        let pickle = Pickle::read(bytes).map_err(|e| pickle_error(path, e))?;
        Ok(TensorReader { path, pickle })
    }

    fn tensors(&self) -> Result<Vec<StoredTensor<'a>>> {
        let Node::Dict(pairs) = self.pickle.node(self.pickle.root) else {
            let problem = "the file holds a Python object that is not a dict of tensors";
            return Err(Error::unsupported(self.path, "pickle", problem, SAVE_PLAIN));
        };
        pairs
            .chunks_exact(2)
            .map(|pair| self.tensor(pair[0], pair[1]))
            .collect()
    }

    fn tensor(&self, key: Ref, value: Ref) -> Result<StoredTensor<'a>> {
        let Some(name) = self.pickle.str(key) else {
            let problem = "a key is not a string";
            return Err(Error::unsupported(self.path, "pickle", problem, SAVE_PLAIN));
        };
        let refuse = |problem: &str| {
            let field = format!("entry {}", quote(name));
            Err(Error::unsupported(self.path, field, problem, SAVE_PLAIN))
        };
        let Some((tensor, stride)) = self.dense_tensor(name, value) else {
            return refuse("is not a dense tensor");
        };
        if !is_contiguous(&tensor.shape, &stride) {
            return refuse("is a transposed or sliced view; make it .contiguous() first");
        }
        Ok(tensor)
    }

    /// The tensor at `value` and its strides.
    fn dense_tensor(&self, name: &'a str, value: Ref) -> Option<(StoredTensor<'a>, Vec<usize>)> {
        let (mut function, mut arguments) = self.call(value)?;
        if function == Global::RebuildParameter {
            (function, arguments) = self.call(*arguments.first()?)?;
        }
        if !matches!(function, Global::RebuildTensor | Global::RebuildTensorV2) {
            return None;
        }
        let &[storage, first, shape, stride, ..] = arguments else {
            return None;
        };
        let &Node::Persistent(id) = self.pickle.node(storage) else {
            return None;
        };
        let (tag, dtype, key, storage_len) = match *self.pickle.tuple(id)? {
            [tag, dtype, key, _location, len] => (tag, dtype, key, len),
            [tag, dtype, key, _location, len, view] if *self.pickle.node(view) == Node::None => {
                (tag, dtype, key, len)
            }
            _ => return None,
        };
        let &Node::Global(Global::Storage(dtype)) = self.pickle.node(dtype) else {
            return None;
        };
        let tensor = StoredTensor {
            name,
            dtype,
            shape: self.pickle.sizes(shape)?,
            key: self.pickle.str(key)?,
            storage_len: self.pickle.size(storage_len)?,
            first: self.pickle.size(first)?,
        };
        let is_storage = self.pickle.str(tag)? == "storage";
        is_storage.then_some((tensor, self.pickle.sizes(stride)?))
    }

    fn call(&self, value: Ref) -> Option<(Global, &[Ref])> {
        match *self.pickle.node(value) {
            Node::Call(function, arguments) => Some((function, self.pickle.tuple(arguments)?)),
            _ => None,
        }
    }
}

impl StoredTensor<'_> {
    /// Name and place in the file, given the bytes `start..start + len` of its storage.
    fn place(self, path: &Path, (start, len): (u64, u64)) -> Result<(String, TensorInfo)> {
        let size = self.dtype.bitsize() as u64 / 8;
        if (self.storage_len as u64).checked_mul(size) != Some(len) {
            let problem = format!(
                "its storage has {len} bytes, which is not {} elements of {}",
                self.storage_len, self.dtype
            );
            return Err(self.invalid(path, problem));
        }
        let offset = (self.first as u64)
            .checked_mul(size)
            .and_then(|skip| start.checked_add(skip));
        let info = offset
            .and_then(|offset| TensorInfo::new(self.dtype, self.shape.clone(), offset))
            .filter(|info| info.end() <= start + len);
        match info {
            Some(info) => Ok((self.name.to_owned(), info)),
            None => {
                let problem = format!(
                    "{} {} from element {} does not lie in its storage of {} elements",
                    self.dtype,
                    quote_shape(&self.shape),
                    self.first,
                    self.storage_len
                );
                Err(self.invalid(path, problem))
            }
        }
    }

    fn invalid(&self, path: &Path, problem: String) -> Error {
        let field = format!("tensor {}", quote(self.name));
        Error::invalid(path, field, problem, FETCH_AGAIN)
    }
}

/// True when elements lie one after the other in row-major order.
fn is_contiguous(shape: &[usize], stride: &[usize]) -> bool {
    if shape.len() != stride.len() {
        return false;
    }
    if shape.contains(&0) {
        return true;
    }
    let mut step = 1usize;
    shape.iter().zip(stride).rev().all(|(&extent, &stride)| {
        let fits = extent == 1 || stride == step;
        step = step.saturating_mul(extent);
        fits
    })
}
