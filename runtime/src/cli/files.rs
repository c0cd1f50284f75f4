//! Reading and writing whole files.

use std::fs;
use std::io;
use std::path::Path;

use lxpod_runtime::Error;

use super::error::Result;

/// The bytes of a file.
pub(crate) fn read(path: &Path) -> Result<Vec<u8>> {
    Ok(fs::read(path).map_err(|error| problem(path, "read", error))?)
}

/// The text of a file.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let text = String::from_utf8(read(path)?);
    Ok(text.map_err(|_| Error::InvalidFile {
        path: path.into(),
        field: "contents".to_owned(),
        problem: "is not UTF-8 text".to_owned(),
        help: "name a text file".to_owned(),
    })?)
}

/// Writes a file, all or nothing: a regular file is replaced only once all bytes are on disk.
pub(crate) fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let special = fs::metadata(path).is_ok_and(|found| !found.is_file());
    let written = match path.file_name().filter(|_| !special) {
        None => fs::write(path, bytes),
        Some(name) => {
            let mut name = name.to_owned();
            name.push(format!(".{}.partial", std::process::id()));
            let partial = path.with_file_name(name);
            let moved = fs::write(&partial, bytes).and_then(|()| fs::rename(&partial, path));
            if moved.is_err() {
                fs::remove_file(&partial).unwrap_or_default();
            }
            moved
        }
    };
    Ok(written.map_err(|error| problem(path, "write", error))?)
}

/// A path that cannot be is the user's input; the rest is the system's failure.
pub(crate) fn problem(path: &Path, action: &'static str, source: io::Error) -> Error {
    let (problem, help) = match source.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory if action == "write" => (
            "its folder does not exist",
            "make the folder first, or name another",
        ),
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => {
            ("no such file", "check the path")
        }
        io::ErrorKind::IsADirectory => ("is a folder, not a file", "name a file"),
        io::ErrorKind::InvalidInput => ("is no path", "check the path"),
        _ => {
            return Error::Io {
                path: path.into(),
                action,
                source,
            };
        }
    };
    Error::MissingFile {
        path: path.into(),
        problem: problem.to_owned(),
        help: help.to_owned(),
    }
}
