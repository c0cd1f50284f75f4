//! The folder of a run: checkpoints that are complete or absent, and the final model.
//!
//! A checkpoint is the folder `checkpoint-N`, N the steps done. It is written under another name,
//! flushed file by file, and renamed: the rename is the moment it comes to be. `SHA256SUMS` in it
//! is in the format of `sha256sum -c`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result, quote};
use crate::tensors::{TensorSpec, TensorWriter};

/// The checksums of a checkpoint's files.
const SUMS: &str = "SHA256SUMS";
/// What a checkpoint's name begins with.
const PREFIX: &str = "checkpoint-";
/// What the name of a folder ends with that is being written.
const PARTIAL: &str = ".lxpod-partial";
/// The name of a folder that is being removed.
const RETIRED: &str = ".lxpod-retired";
/// The most bytes of checksums that are read.
const MAX_SUMS: u64 = 1 << 16;

/// Asked before every change to the file system, with the path that is about to change. An error
/// takes the place of the change.
pub type Gate = Box<dyn Fn(&Path) -> io::Result<()> + Send>;

/// The folder of a run.
pub struct RunFolder {
    path: PathBuf,
    gate: Gate,
}

impl RunFolder {
    /// Opens a folder, which is made if need be, and clears away what a run that was killed left
    /// half-done.
    ///
    /// # Errors
    /// [`Error::MissingFile`] where a file is in the way, [`Error::Io`].
    pub fn open(path: &Path) -> Result<RunFolder> {
        RunFolder::with_gate(path, Box::new(|_| Ok(())))
    }

    /// [`RunFolder::open`] with every change announced to `gate`.
    ///
    /// # Errors
    /// As [`RunFolder::open`].
    pub fn with_gate(path: &Path, gate: Gate) -> Result<RunFolder> {
        let run = RunFolder {
            path: path.into(),
            gate,
        };
        let made = (run.gate)(path).and_then(|()| fs::create_dir_all(path));
        match made.as_ref().map_err(io::Error::kind) {
            Ok(()) => {}
            Err(io::ErrorKind::AlreadyExists | io::ErrorKind::NotADirectory) => {
                let help = "name a folder";
                return Err(Error::missing(path, "is a file, or lies in one", help));
            }
            Err(_) => made.map_err(|error| writing(path, error))?,
        }
        for name in files(path)? {
            let partial = name.starts_with('.') && name.ends_with(PARTIAL);
            if partial || name == RETIRED {
                run.remove(&path.join(name))?;
            }
        }
        Ok(run)
    }

    /// The folder.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Writes the checkpoint of `step`, then removes all others but that of step `kept`. Until it is
    /// complete those that were there are untouched; an error leaves nothing of it behind.
    ///
    /// # Errors
    /// [`Error::Io`], and errors of `write`.
    pub fn save(
        &self,
        step: usize,
        kept: Option<usize>,
        write: impl FnOnce(&Staging<'_>) -> Result<()>,
    ) -> Result<PathBuf> {
        let complete = self.path.join(format!("{PREFIX}{step}"));
        let partial = self.path.join(format!(".{PREFIX}{step}{PARTIAL}"));
        self.stage(&partial, |staging| {
            write(staging)?;
            staging.file(SUMS, sums(&partial)?.as_bytes())?;
            staging.flush()?;
            self.retire(&complete)?;
            self.rename(&partial, &complete)?;
            self.flush()
        })?;
        for (other, path) in checkpoints(&self.path)? {
            if other != step && Some(other) != kept {
                self.retire(&path)?;
            }
        }
        Ok(complete)
    }

    /// Puts files into the folder itself, each all or nothing, none before all are written.
    ///
    /// # Errors
    /// As [`RunFolder::save`].
    pub fn publish(&self, write: impl FnOnce(&Staging<'_>) -> Result<()>) -> Result<()> {
        let partial = self.path.join(format!(".final{PARTIAL}"));
        self.stage(&partial, |staging| {
            write(staging)?;
            staging.flush()?;
            for file in files(&partial)? {
                self.rename(&partial.join(&file), &self.path.join(&file))?;
            }
            self.remove(&partial)?;
            self.flush()
        })
    }

    /// Runs `write` on a new folder, which an error takes away again.
    fn stage(&self, partial: &Path, write: impl FnOnce(&Staging<'_>) -> Result<()>) -> Result<()> {
        self.remove(partial)?;
        self.change(partial, |path| fs::create_dir(path))?;
        let written = write(&Staging {
            folder: partial,
            run: self,
        });
        if written.is_err() {
            // The first error is the one to tell.
            let _ = self.remove(partial);
        }
        written
    }

    /// Takes a checkpoint away: first its name, so that none is ever there in part.
    fn retire(&self, checkpoint: &Path) -> Result<()> {
        if !checkpoint.exists() {
            return Ok(());
        }
        let retired = self.path.join(RETIRED);
        self.remove(&retired)?;
        self.rename(checkpoint, &retired)?;
        self.remove(&retired)
    }

    fn remove(&self, folder: &Path) -> Result<()> {
        if !folder.exists() {
            return Ok(());
        }
        self.change(folder, |path| fs::remove_dir_all(path))
    }

    fn rename(&self, from: &Path, to: &Path) -> Result<()> {
        self.change(to, |to| fs::rename(from, to))
    }

    fn flush(&self) -> Result<()> {
        self.change(&self.path, sync)
    }

    fn change(&self, path: &Path, change: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
        let changed = (self.gate)(path).and_then(|()| change(path));
        changed.map_err(|error| writing(path, error))
    }
}

/// A folder that is being filled.
pub struct Staging<'a> {
    folder: &'a Path,
    run: &'a RunFolder,
}

impl Staging<'_> {
    /// Writes a file.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub fn file(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.run.change(&self.folder.join(name), |path| {
            let mut file = File::create(path)?;
            file.write_all(bytes)?;
            file.sync_all()
        })
    }

    /// Writes tensors; `fill` gives their values.
    ///
    /// # Errors
    /// As [`TensorWriter`], and errors of `fill`.
    pub fn tensors(
        &self,
        name: &str,
        metadata: &BTreeMap<String, String>,
        specs: &[TensorSpec],
        fill: impl FnOnce(&mut TensorWriter) -> Result<()>,
    ) -> Result<()> {
        let path = self.folder.join(name);
        self.run.change(&path, |_| Ok(()))?;
        let mut writer = TensorWriter::create(&path, metadata, specs)?;
        fill(&mut writer)?;
        writer.finish()
    }

    fn flush(&self) -> Result<()> {
        self.run.change(self.folder, sync)
    }
}

/// Checkpoints in a folder: steps done and path, the newest first.
///
/// # Errors
/// The folder cannot be read.
pub fn checkpoints(folder: &Path) -> Result<Vec<(usize, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(|error| Error::reading(folder, error))? {
        let path = entry.map_err(|error| Error::reading(folder, error))?.path();
        if let Some(step) = step_of(&path).filter(|_| path.is_dir()) {
            found.push((step, path));
        }
    }
    found.sort_by(|a, b| b.cmp(a));
    Ok(found)
}

/// The steps done that a checkpoint's name tells.
pub(super) fn step_of(path: &Path) -> Option<usize> {
    path.file_name()?
        .to_str()?
        .strip_prefix(PREFIX)?
        .parse()
        .ok()
}

/// The newest complete checkpoint of `folder`, which is a run's or itself a checkpoint, and notes
/// on newer ones that are damaged.
///
/// # Errors
/// There is none; if one is damaged, how.
pub fn newest(folder: &Path) -> Result<(PathBuf, Vec<String>)> {
    let mut candidates = checkpoints(folder)?;
    if candidates.is_empty()
        && let Some(step) = step_of(folder)
    {
        candidates.push((step, folder.to_owned()));
    }
    let mut notes = Vec::new();
    let mut first = None;
    for (_, path) in candidates {
        match verify(&path) {
            Ok(()) => return Ok((path, notes)),
            Err(error) => {
                notes.push(format!("passed over a damaged checkpoint: {error}"));
                first.get_or_insert(error);
            }
        }
    }
    Err(first.unwrap_or_else(|| {
        let help = "name the folder that was given as -o, or one checkpoint-N in it";
        Error::missing(folder, "holds no checkpoint to resume from", help)
    }))
}

/// Compares a checkpoint with its checksums.
fn verify(folder: &Path) -> Result<()> {
    let path = folder.join(SUMS);
    let help = "it was damaged after it was written; name an older checkpoint-N";
    let damaged = |name: &str, problem: &str| Err(Error::invalid(&path, name, problem, help));
    let mut text = String::new();
    let file = File::open(&path).map_err(|error| Error::reading(&path, error))?;
    if file.take(MAX_SUMS).read_to_string(&mut text).is_err() {
        return damaged("contents", "is no list of checksums");
    }
    let listed: BTreeMap<&str, &str> = text
        .lines()
        .filter_map(|line| line.split_once("  "))
        .map(|(sum, name)| (name, sum))
        .collect();
    let mut found = files(folder)?;
    found.retain(|name| name != SUMS);
    if !listed.keys().copied().eq(found.iter().map(String::as_str)) {
        return damaged("contents", "does not list the files that are there");
    }
    for (name, sum) in listed {
        if digest(&folder.join(name))? != sum {
            return damaged(&quote(name), "differs from its checksum");
        }
    }
    Ok(())
}

/// The names of the files in a folder, sorted.
fn files(folder: &Path) -> Result<Vec<String>> {
    let reading = |error| Error::reading(folder, error);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(reading)? {
        names.push(
            entry
                .map_err(reading)?
                .file_name()
                .to_string_lossy()
                .into_owned(),
        );
    }
    names.sort_unstable();
    Ok(names)
}

/// The checksums of all files in a folder.
fn sums(folder: &Path) -> Result<String> {
    let mut text = String::new();
    for name in files(folder)? {
        let sum = digest(&folder.join(&name))?;
        let _ = writeln!(text, "{sum}  {name}");
    }
    Ok(text)
}

fn digest(path: &Path) -> Result<String> {
    let reading = |error| Error::reading(path, error);
    let mut file = File::open(path).map_err(reading)?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer).map_err(reading)? {
            0 => return Ok(format!("{:x}", hash.finalize())),
            read => hash.update(&buffer[..read]),
        }
    }
}

/// Waits until what a folder lists is on disk.
fn sync(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn writing(path: &Path, source: io::Error) -> Error {
    Error::Io {
        path: path.into(),
        action: "write",
        source,
    }
}
