//! TensorBoard's event files, for scalars.
//!
//! A file is a sequence of records: length, checksum of the length, data, checksum of the data
//! (TFRecord). The data is a protobuf `Event` of few fields, written here by hand: the crates that
//! know the format need a protobuf compiler that is no Rust, or an old image library.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crc::{CRC_32_ISCSI, Crc};

use crate::error::{Error, Result};

const CRC32C: Crc<u32> = Crc::<u32>::new(&CRC_32_ISCSI);
/// What the first event of a file says.
const VERSION: &str = "brain.Event:2";

/// Writes one event file.
#[derive(Debug)]
pub struct EventWriter {
    path: PathBuf,
    file: File,
}

impl EventWriter {
    /// Starts a new file in `folder`, which is made if need be. TensorBoard shows all files of a
    /// folder as one run.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn create(folder: &Path) -> Result<EventWriter> {
        fs::create_dir_all(folder).map_err(|error| writing(folder, error))?;
        let process = std::process::id();
        let name = format!("events.out.tfevents.{}.lxpod.{process}", now() as u64);
        let path = folder.join(name);
        let file = File::create(&path).map_err(|error| writing(&path, error))?;
        let mut writer = EventWriter { path, file };
        let mut event = Message::default();
        event.double(1, now());
        event.bytes(3, VERSION.as_bytes());
        writer.record(&event.0)?;
        Ok(writer)
    }

    /// Adds values of named scalars at a step.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn scalars(&mut self, step: u64, scalars: &[(&str, f32)]) -> Result<()> {
        let mut summary = Message::default();
        for &(tag, number) in scalars {
            let mut value = Message::default();
            value.bytes(1, tag.as_bytes());
            value.float(2, number);
            summary.bytes(1, &value.0);
        }
        let mut event = Message::default();
        event.double(1, now());
        event.varint(2, step);
        event.bytes(5, &summary.0);
        self.record(&event.0)
    }

    fn record(&mut self, data: &[u8]) -> Result<()> {
        let length = (data.len() as u64).to_le_bytes();
        let mut record = length.to_vec();
        record.extend(masked_crc(&length).to_le_bytes());
        record.extend(data);
        record.extend(masked_crc(data).to_le_bytes());
        let written = self.file.write_all(&record);
        written.map_err(|error| writing(&self.path, error))
    }
}

fn writing(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.into(),
        action: "write",
        source,
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}

/// CRC-32C, turned and shifted as TFRecord wants it.
fn masked_crc(data: &[u8]) -> u32 {
    CRC32C
        .checksum(data)
        .rotate_right(15)
        .wrapping_add(0xa282_ead8)
}

/// A protobuf message under construction.
#[derive(Default)]
struct Message(Vec<u8>);

impl Message {
    fn number(&mut self, mut number: u64) {
        while number >= 0x80 {
            self.0.push(number as u8 | 0x80);
            number >>= 7;
        }
        self.0.push(number as u8);
    }

    fn varint(&mut self, field: u64, number: u64) {
        self.number(field << 3);
        self.number(number);
    }

    fn double(&mut self, field: u64, number: f64) {
        self.number(field << 3 | 1);
        self.0.extend(number.to_le_bytes());
    }

    fn float(&mut self, field: u64, number: f32) {
        self.number(field << 3 | 5);
        self.0.extend(number.to_le_bytes());
    }

    fn bytes(&mut self, field: u64, bytes: &[u8]) {
        self.number(field << 3 | 2);
        self.number(bytes.len() as u64);
        self.0.extend(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A field of a message.
    #[derive(Debug, PartialEq)]
    enum Field {
        Varint(u64),
        Double(f64),
        Float(f32),
        Bytes(Vec<u8>),
    }

    fn take<'a>(bytes: &mut &'a [u8], count: usize) -> &'a [u8] {
        let (head, tail) = bytes.split_at(count);
        *bytes = tail;
        head
    }

    fn number(bytes: &mut &[u8]) -> u64 {
        let mut number = 0;
        for shift in (0..).step_by(7) {
            let byte = take(bytes, 1)[0];
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
        }
        number
    }

    fn fields(mut bytes: &[u8]) -> Vec<(u64, Field)> {
        let mut fields = Vec::new();
        while !bytes.is_empty() {
            let key = number(&mut bytes);
            let field = match key & 7 {
                0 => Field::Varint(number(&mut bytes)),
                1 => Field::Double(f64::from_le_bytes(take(&mut bytes, 8).try_into().unwrap())),
                5 => Field::Float(f32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap())),
                _ => {
                    let length = number(&mut bytes) as usize;
                    Field::Bytes(take(&mut bytes, length).to_vec())
                }
            };
            fields.push((key >> 3, field));
        }
        fields
    }

    fn records(mut bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut records = Vec::new();
        while !bytes.is_empty() {
            let length = take(&mut bytes, 8);
            let crc = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
            assert_eq!(crc, masked_crc(length));
            let length = u64::from_le_bytes(length.try_into().unwrap()) as usize;
            let data = take(&mut bytes, length);
            let crc = u32::from_le_bytes(take(&mut bytes, 4).try_into().unwrap());
            assert_eq!(crc, masked_crc(data));
            records.push(data.to_vec());
        }
        records
    }

    #[test]
    fn the_checksum_is_that_of_the_format() {
        // The published check value of CRC-32C, and what TensorFlow's crc32c.h masks it to.
        assert_eq!(CRC32C.checksum(b"123456789"), 0xe306_9283);
        assert_eq!(masked_crc(b"123456789"), 0xc78a_b0e5);
    }

    #[test]
    fn a_file_decodes_to_what_was_written() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path().join("runs");
        let mut writer = EventWriter::create(&folder).unwrap();
        writer
            .scalars(300, &[("train/loss", 2.5), ("train/lr", 1e-3)])
            .unwrap();
        let name = writer.path.file_name().unwrap().to_str().unwrap();
        assert!(name.starts_with("events.out.tfevents."));
        let records = records(&fs::read(&writer.path).unwrap());
        assert_eq!(records.len(), 2);
        let version = fields(&records[0]);
        assert_eq!(version[1], (3, Field::Bytes(VERSION.as_bytes().to_vec())));
        let event = fields(&records[1]);
        assert!(matches!(event[0], (1, Field::Double(time)) if time > 1.7e9));
        assert_eq!(event[1], (2, Field::Varint(300)));
        let (5, Field::Bytes(summary)) = &event[2] else {
            panic!("{event:?}")
        };
        let values: Vec<_> = fields(summary)
            .into_iter()
            .map(|value| match value {
                (1, Field::Bytes(value)) => fields(&value),
                other => panic!("{other:?}"),
            })
            .collect();
        let scalar = |tag: &str, number| {
            vec![
                (1, Field::Bytes(tag.as_bytes().to_vec())),
                (2, Field::Float(number)),
            ]
        };
        assert_eq!(
            values,
            [scalar("train/loss", 2.5), scalar("train/lr", 1e-3)]
        );
    }

    #[test]
    fn a_folder_that_cannot_be_is_an_error() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = EventWriter::create(&file.path().join("runs")).unwrap_err();
        assert_eq!(error.fault(), crate::error::Fault::Io);
    }
}
