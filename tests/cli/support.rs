//! Running the binary.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use lxpod_runtime::read_tensors;

/// The small model.
pub(crate) const TINY: &str = "tests/golden/qa_tiny";

/// A finished process.
pub(crate) struct Finished {
    shown: String,
    output: Output,
}

/// Runs the binary in the root of the repository.
pub(crate) fn lxpod<I: IntoIterator<Item = A>, A: AsRef<str>>(arguments: I) -> Finished {
    let arguments: Vec<String> = arguments
        .into_iter()
        .map(|word| word.as_ref().to_owned())
        .collect();
    let mut command = Command::new(env!("CARGO_BIN_EXE_lxpod"));
    command
        .args(&arguments)
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    Finished {
        shown: arguments.join(" "),
        output: command.output().expect("the binary runs"),
    }
}

impl Finished {
    /// Standard output and standard error, if it succeeded.
    pub(crate) fn both(&self) -> (String, String) {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let diagnosed = text(&self.output.stderr);
        assert!(self.output.status.success(), "{}: {diagnosed}", self.shown);
        (text(&self.output.stdout), diagnosed)
    }

    /// Standard output, if it succeeded.
    pub(crate) fn succeeds(&self) -> String {
        self.both().0
    }

    /// The one JSON document on standard output.
    pub(crate) fn json(&self) -> serde_json::Value {
        let shown = self.succeeds();
        serde_json::from_str(&shown)
            .unwrap_or_else(|error| panic!("{}: {error}: {shown}", self.shown))
    }

    /// Standard output, if it ended with that code and no message.
    pub(crate) fn exits(&self, code: i32) -> String {
        let message = String::from_utf8_lossy(&self.output.stderr);
        let ended = self.output.status.code();
        assert_eq!(ended, Some(code), "{}: {message}", self.shown);
        assert!(message.is_empty(), "{}: {message}", self.shown);
        String::from_utf8(self.output.stdout.clone()).expect("UTF-8")
    }

    /// The one JSON document on standard output of a command that failed with that code and a message.
    pub(crate) fn fails_with_json(&self, code: i32) -> serde_json::Value {
        let message = String::from_utf8_lossy(&self.output.stderr);
        let ended = self.output.status.code();
        assert_eq!(ended, Some(code), "{}: {message}", self.shown);
        assert!(!message.is_empty(), "{}: no message", self.shown);
        serde_json::from_slice(&self.output.stdout)
            .unwrap_or_else(|error| panic!("{}: {error}", self.shown))
    }

    /// Checks the exit code, that nothing was printed as a result, and that the message has these words.
    pub(crate) fn fails(&self, code: i32, words: &[&str]) {
        let message = String::from_utf8_lossy(&self.output.stderr);
        assert_eq!(
            self.output.status.code(),
            Some(code),
            "{}: {message}",
            self.shown
        );
        assert!(
            self.output.stdout.is_empty(),
            "{} printed a result",
            self.shown
        );
        for word in words {
            assert!(
                message.contains(word),
                "{}: no `{word}` in: {message}",
                self.shown
            );
        }
    }
}

/// A text file.
pub(crate) fn text_of(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Compares the scores of two files.
pub(crate) fn check_scores(got: &Path, want: &str) {
    let read = |path: &Path| {
        let tensors = read_tensors(path).expect("tensors");
        tensors["question_answering_score"]
            .to_f32()
            .expect("floats")
    };
    let (got, want) = (read(got), read(Path::new(want)));
    assert_eq!(got.len(), want.len());
    for (got, want) in got.iter().zip(&want) {
        assert!((got - want).abs() < 1e-4, "{got} {want}");
    }
}

/// A fresh folder, and the path of its one file, of that name and text.
pub(crate) fn folder_with(name: &str, text: &str) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join(name);
    fs::write(&path, text).expect("a file");
    let path = path.to_string_lossy().into_owned();
    (folder, path)
}
