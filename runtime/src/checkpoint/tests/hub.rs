//! Finding a model by name.

use super::one_screen;
use crate::checkpoint::hub::{hub_cache, resolve_in};
use crate::error::Fault;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

#[test]
fn the_first_variable_that_is_set_decides_the_cache() {
    let with = |set: &[(&str, &str)]| {
        hub_cache(|name| {
            let found = set.iter().find(|(n, _)| *n == name);
            found.map(|(_, value)| OsString::from(value))
        })
    };
    assert_eq!(with(&[]), None);
    let home = ("HOME", "/h");
    let path = |text: &str| Some(PathBuf::from(text));
    assert_eq!(with(&[home]), path("/h/.cache/huggingface/hub"));
    assert_eq!(
        with(&[home, ("XDG_CACHE_HOME", "/x")]),
        path("/x/huggingface/hub")
    );
    assert_eq!(with(&[home, ("HF_HOME", "/f")]), path("/f/hub"));
    assert_eq!(
        with(&[home, ("HF_HOME", "")]),
        path("/h/.cache/huggingface/hub")
    );
    assert_eq!(
        with(&[("HF_HUB_CACHE", "/c"), ("HF_HOME", "/f")]),
        path("/c")
    );
}

#[test]
fn a_cached_model_is_found() {
    let cache = tempfile::tempdir().unwrap();
    let repository = cache.path().join("models--Graphcore--lxmert-gqa-uncased");
    let resolve = || {
        resolve_in(
            Path::new("Graphcore/lxmert-gqa-uncased"),
            Some(cache.path()),
        )
    };
    let fails = |words: &str| {
        let error = resolve().unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        let text = one_screen(&error);
        assert!(text.contains(words), "{text}");
        assert!(
            text.contains("hf download Graphcore/lxmert-gqa-uncased"),
            "{text}"
        );
        assert!(text.contains(&repository.display().to_string()), "{text}");
    };
    fails("neither a folder nor");
    fs::create_dir_all(repository.join("refs")).unwrap();
    fails("no revision");
    fs::write(repository.join("refs/main"), "../../..").unwrap();
    fails("no revision");
    fs::write(repository.join("refs/main"), format!("{COMMIT}\n")).unwrap();
    fails("incomplete");
    let snapshot = repository.join("snapshots").join(COMMIT);
    fs::create_dir_all(&snapshot).unwrap();
    assert_eq!(resolve().unwrap(), snapshot);
}

#[test]
fn folders_come_first_and_other_paths_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(resolve_in(folder.path(), None).unwrap(), folder.path());
    let file = folder.path().join("model.safetensors");
    fs::write(&file, "").unwrap();
    for path in [
        &*file,
        Path::new("a/b/c"),
        Path::new("./a"),
        Path::new("../a"),
        Path::new(""),
    ] {
        let error = resolve_in(path, Some(folder.path())).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        assert!(!one_screen(&error).contains("hf download"), "{error}");
    }
    let error = resolve_in(Path::new("name"), None).unwrap_err();
    assert!(one_screen(&error).contains("HF_HOME"));
}
