//! The header of a `.safetensors` file: 8 bytes of length, JSON, then the data of all tensors, without gaps.

use super::{Dtype, TensorInfo};
use crate::error::{Error, Result, quote, quote_shape};
use serde::de::value::{Error as DtypeError, StrDeserializer};
use serde::de::{Deserialize, Deserializer, Error as _, MapAccess, Visitor};
use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

/// The longest header that the format allows, in bytes.
const MAX_HEADER: u64 = 100_000_000;
const FETCH_AGAIN: &str = "the file is damaged or was cut short; fetch or write it again";

/// A validated header. Tensors lie inside the file, fill its data part without gaps and do not overlap.
#[derive(Debug, Default)]
pub(crate) struct Header {
    /// Free text of the writer.
    pub(crate) metadata: BTreeMap<String, String>,
    /// Tensors by name.
    pub(crate) tensors: BTreeMap<String, TensorInfo>,
}

impl Header {
    /// Reads and validates the header of `file`; `path` is for messages. Reads no tensor data.
    ///
    /// # Errors
    /// [`Error::InvalidFile`] for any breach of the format, [`Error::Io`] when reading fails.
    pub(crate) fn read(path: &Path, file: &File) -> Result<Self> {
        let io = |e| Error::reading(path, e);
        let len = file.metadata().map_err(io)?.len();
        if len < 8 {
            let problem = format!("{len} bytes are too few for a safetensors file");
            return Err(Error::invalid(path, "header", problem, FETCH_AGAIN));
        }
        let mut prefix = [0; 8];
        file.read_exact_at(&mut prefix, 0).map_err(io)?;
        if let Some(error) = not_tensors(path, &prefix) {
            return Err(error);
        }
        let length = u64::from_le_bytes(prefix);
        if length > MAX_HEADER || length > len - 8 {
            let problem = format!(
                "it claims a header of {length} bytes; the file has {len} and the format allows {MAX_HEADER}"
            );
            let help = "is this a safetensors file? If so it was cut short; fetch it again";
            return Err(Error::invalid(path, "header", problem, help));
        }
        let mut json = vec![0; length as usize];
        file.read_exact_at(&mut json, 8).map_err(io)?;
        Self::parse(path, &json, 8 + length, len)
    }

    /// Validates the JSON text of a header whose data part is bytes `start..len` of the file.
    fn parse(path: &Path, json: &[u8], start: u64, len: u64) -> Result<Self> {
        let raw: RawHeader = serde_json::from_slice(json)
            .map_err(|e| Error::invalid(path, "header", e.to_string(), FETCH_AGAIN))?;
        raw.check_layout(path, len - start)?;
        let mut tensors = BTreeMap::new();
        for (name, entry) in raw.tensors {
            let field = format!("tensor {}", quote(&name));
            let shape = quote_shape(&entry.shape);
            let info = TensorInfo::new(entry.dtype, entry.shape, start + entry.offsets.0)
                .filter(|info| info.bytes() == entry.offsets.1 - entry.offsets.0)
                .ok_or_else(|| {
                    let (begin, end) = entry.offsets;
                    let problem = format!(
                        "{} {shape} does not take the {} bytes of its offsets {begin}..{end}",
                        entry.dtype,
                        end - begin
                    );
                    Error::invalid(path, &field, problem, FETCH_AGAIN)
                })?;
            if tensors.insert(name, info).is_some() {
                return Err(Error::invalid(
                    path,
                    field,
                    "appears twice in the header",
                    FETCH_AGAIN,
                ));
            }
        }
        Ok(Header {
            metadata: raw.metadata,
            tensors,
        })
    }
}

/// An error for the first bytes of things that people have instead of a tensor file: a Git LFS pointer, a web page.
fn not_tensors(path: &Path, prefix: &[u8]) -> Option<Error> {
    if prefix.starts_with(b"version ") {
        return Some(Error::invalid(
            path,
            "contents",
            "a Git LFS pointer, not the file itself",
            "run `git lfs pull` in its folder, or `hf download`",
        ));
    }
    let web_page = prefix.starts_with(b"<!") || prefix.starts_with(b"<html");
    web_page.then(|| {
        Error::invalid(
            path,
            "contents",
            "a web page, not tensors",
            "download the file itself",
        )
    })
}

#[derive(Debug)]
struct Entry {
    dtype: Dtype,
    shape: Vec<usize>,
    offsets: (u64, u64),
}

#[derive(serde::Deserialize)]
struct RawEntry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: (u64, u64),
}

#[derive(Default)]
struct RawHeader {
    metadata: BTreeMap<String, String>,
    tensors: Vec<(String, Entry)>,
}

impl RawHeader {
    /// Offsets are ordered, inside `data` bytes, and tile it.
    fn check_layout(&self, path: &Path, data: u64) -> Result<()> {
        let invalid = |name: &str, problem: String| {
            let field = format!("tensor {}", quote(name));
            Err(Error::invalid(path, field, problem, FETCH_AGAIN))
        };
        let mut order: Vec<_> = self.tensors.iter().map(|(n, e)| (e.offsets, n)).collect();
        order.sort_unstable();
        for &((begin, end), name) in &order {
            if end > data || begin > end {
                return invalid(
                    name,
                    format!("lies at bytes {begin}..{end} of a data part of {data} bytes"),
                );
            }
        }
        let mut at = 0;
        for &((begin, end), name) in &order {
            if begin != at {
                let what = if begin < at {
                    "overlaps the tensor before it"
                } else {
                    "leaves a gap before it"
                };
                return invalid(name, format!("{what}: starts at byte {begin}, not {at}"));
            }
            at = end;
        }
        if at != data {
            let problem = format!(
                "{} bytes after the last tensor belong to no tensor",
                data - at
            );
            return Err(Error::invalid(path, "data", problem, FETCH_AGAIN));
        }
        Ok(())
    }
}

impl<'de> Deserialize<'de> for RawHeader {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = RawHeader;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<RawHeader, A::Error> {
        let mut header = RawHeader::default();
        while let Some(name) = map.next_key::<String>()? {
            let named = |e: &dyn fmt::Display| A::Error::custom(format!("{}: {e}", quote(&name)));
            if name == "__metadata__" {
                let metadata: Option<BTreeMap<String, String>> =
                    map.next_value().map_err(|e| named(&e))?;
                header.metadata = metadata.unwrap_or_default();
                continue;
            }
            let raw: RawEntry = map.next_value().map_err(|e| named(&e))?;
            let dtype =
                Dtype::deserialize(StrDeserializer::new(&raw.dtype)).map_err(|_: DtypeError| {
                    named(&format!("unknown element type {}", quote(&raw.dtype)))
                })?;
            let entry = Entry {
                dtype,
                shape: raw.shape,
                offsets: raw.data_offsets,
            };
            header.tensors.push((name, entry));
        }
        Ok(header)
    }
}
