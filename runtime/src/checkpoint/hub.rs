//! Finding a model's folder: a path, or a name in the local Hugging Face cache.

use crate::error::{Error, Result, quote};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

/// The folder of a model: `model` itself when it is a folder, else the snapshot of the repository of that name
/// (`Graphcore/lxmert-gqa-uncased`) to which `main` points in the local Hugging Face cache. Nothing is downloaded.
///
/// The cache is `$HF_HUB_CACHE`, `$HUGGINGFACE_HUB_CACHE`, `$HF_HOME/hub`, `$XDG_CACHE_HOME/huggingface/hub` or
/// `~/.cache/huggingface/hub`: the first whose variable is set. What the folder holds is not looked at.
///
/// # Errors
/// [`Error::MissingFile`] for a file, or a path that does not exist and cannot be a repository's name;
/// [`Error::ModelNotFound`] for a name that is not in the cache.
pub fn resolve_model(model: &Path) -> Result<PathBuf> {
    resolve_in(model, hub_cache(|name| std::env::var_os(name)).as_deref())
}

/// The cache folder for an environment, if any variable that decides it is set.
pub(super) fn hub_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let folder = |name: &str, below: &str| {
        let value = variable(name).filter(|value| !value.is_empty())?;
        let mut path = PathBuf::from(value);
        path.extend(below.split_terminator('/'));
        Some(path)
    };
    folder("HF_HUB_CACHE", "")
        .or_else(|| folder("HUGGINGFACE_HUB_CACHE", ""))
        .or_else(|| folder("HF_HOME", "hub"))
        .or_else(|| folder("XDG_CACHE_HOME", "huggingface/hub"))
        .or_else(|| folder("HOME", ".cache/huggingface/hub"))
}

/// [`resolve_model`] with the cache in folder `cache`.
pub(super) fn resolve_in(model: &Path, cache: Option<&Path>) -> Result<PathBuf> {
    if model.is_dir() {
        return Ok(model.to_owned());
    }
    if model.is_file() {
        return Err(Error::missing(
            model,
            "a model is a folder, this is a file",
            "name the folder that holds config.json and the weights",
        ));
    }
    let Some(name) = model.to_str().filter(|name| is_repository(name)) else {
        return Err(Error::missing(
            model,
            "no such folder",
            "name a folder with config.json and weights, or a model in the Hugging Face cache",
        ));
    };
    let repository = cache.map(|c| c.join(format!("models--{}", name.replace('/', "--"))));
    let not_found = |problem: &str| Error::ModelNotFound {
        name: quote(name),
        problem: problem.into(),
        looked: repository.iter().cloned().collect(),
        help: format!("get it with `hf download {name}`, or name a folder"),
    };
    let Some(repository) = repository.as_deref().filter(|path| path.is_dir()) else {
        return Err(not_found(
            "neither a folder nor in the local Hugging Face cache",
        ));
    };
    let Some(revision) = read_revision(&repository.join("refs").join("main")) else {
        return Err(not_found("the cache has no revision `main` of it"));
    };
    let snapshot = repository.join("snapshots").join(revision);
    match fs::metadata(&snapshot) {
        Ok(kind) if kind.is_dir() => Ok(snapshot),
        _ => Err(not_found("the cached copy is incomplete")),
    }
}

/// True for `name` and `organisation/name` in the characters that the hub allows.
fn is_repository(name: &str) -> bool {
    let is_part = |part: &str| {
        !part.is_empty()
            && part.len() <= 96
            && !part.starts_with(['.', '-'])
            && !part.contains("--")
            && part
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
    };
    name.split('/').count() <= 2 && name.split('/').all(is_part)
}

/// The commit that a ref file names; `None` when it is missing or holds something else.
fn read_revision(path: &Path) -> Option<String> {
    let mut text = String::new();
    let file = File::open(path).ok()?;
    file.take(256).read_to_string(&mut text).ok()?;
    let commit = text.trim();
    let is_commit = !commit.is_empty() && commit.bytes().all(|b| b.is_ascii_hexdigit());
    is_commit.then(|| commit.to_owned())
}
