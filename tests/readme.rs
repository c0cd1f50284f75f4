//! What README.md quotes exists: commands, their flags, files, and the library example.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const README: &str = include_str!("../README.md");

/// The fenced blocks of that language.
fn blocks(language: &str) -> Vec<&'static str> {
    let mut parts = README.split("\n```");
    let _before = parts.next();
    let inside = parts.step_by(2);
    inside
        .filter_map(|block| block.strip_prefix(language)?.strip_prefix('\n'))
        .collect()
}

/// The commands of the README, in order, word by word.
fn commands() -> Vec<Vec<&'static str>> {
    let lines = blocks("sh").into_iter().flat_map(str::lines);
    lines
        .map(|line| line.split_whitespace().collect())
        .collect()
}

/// The arguments of `lxpod` in a command, however it is started.
fn lxpod_arguments(command: &[&'static str]) -> Option<Vec<&'static str>> {
    match command {
        ["lxpod", arguments @ ..] | ["cargo", "run", "--release", "--", arguments @ ..] => {
            Some(arguments.to_vec())
        }
        _ => None,
    }
}

fn lxpod(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_lxpod"))
        .current_dir(folder)
        .args(arguments)
        .output()
        .expect("the binary starts")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("UTF-8")
}

/// Runs what neither loads weights nor needs a file of the user, in order, so that later commands find earlier ones' files.
#[test]
fn cheap_commands_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut ran = 0;
    for command in commands() {
        let Some(arguments) = lxpod_arguments(&command) else {
            continue;
        };
        if matches!(
            arguments[0],
            "run" | "train" | "compare" | "bench" | "solve"
        ) {
            continue;
        }
        let output = lxpod(folder.path(), &arguments);
        assert!(
            output.status.success(),
            "{command:?}: {}",
            text(&output.stderr)
        );
        ran += 1;
    }
    assert!(ran >= 6, "only {ran} commands were found");
}

#[test]
fn every_flag_is_in_the_help_of_its_command() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    for command in commands() {
        let Some(arguments) = lxpod_arguments(&command) else {
            continue;
        };
        let named = 1 + usize::from(matches!(arguments[0], "bench" | "solve"));
        let output = lxpod(folder.path(), &[&arguments[..named], &["--help"]].concat());
        assert!(output.status.success(), "{command:?}");
        let help = text(&output.stdout);
        for flag in arguments
            .iter()
            .filter(|argument| argument.starts_with('-'))
        {
            let known = help.split([' ', ',', '\n', '.']).any(|word| word == *flag);
            assert!(known, "{command:?}: {flag} is not in the help");
        }
    }
}

#[test]
fn the_first_command_prints_sixteen_tiles() {
    let first = lxpod_arguments(&commands()[0]).expect("the first command is lxpod's");
    let output = text(&lxpod(Path::new(ROOT), &first).stdout);
    let rows = |stage: usize| {
        let row = |line: &&str| line.split_whitespace().next() == Some(&*stage.to_string());
        output.lines().filter(row).count()
    };
    assert!((0..16).all(|stage| rows(stage) >= 1), "{output}");
    assert_eq!(rows(16), 0, "{output}");
}

#[test]
fn quoted_output_is_real_but_for_times() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut printed = String::new();
    for command in commands() {
        if let Some(arguments) = lxpod_arguments(&command)
            && !matches!(arguments[0], "run" | "compare" | "bench")
        {
            printed += &text(&lxpod(folder.path(), &arguments).stdout);
        }
    }
    let printed: Vec<&str> = printed.lines().map(str::trim_end).collect();
    for line in blocks("text").into_iter().flat_map(str::lines) {
        let cut = line.trim() == "…" || line.starts_with("compiled");
        assert!(cut || printed.contains(&line), "no command prints {line:?}");
    }
}

#[test]
fn benchmarks_and_files_exist() {
    let root = PathBuf::from(ROOT);
    for line in README.lines() {
        for (_, rest) in line
            .match_indices("--bench ")
            .map(|(at, flag)| line.split_at(at + flag.len()))
        {
            let name: String = rest.chars().take_while(|c| c.is_alphanumeric()).collect();
            assert!(
                root.join("benches")
                    .join(&name)
                    .with_extension("rs")
                    .is_file(),
                "no benchmark {name}"
            );
        }
    }
    let links = README
        .split("](")
        .skip(1)
        .filter_map(|rest| rest.split(')').next());
    for link in links {
        assert!(
            root.join(link).is_file(),
            "README.md links to {link}, which is not there"
        );
    }
}

/// The README shows the documentation test of `Session` without its hidden lines.
#[test]
fn the_library_example_is_a_documentation_test() {
    let source = include_str!("../runtime/src/session.rs");
    let shown = source
        .lines()
        .filter_map(|line| line.strip_prefix("/// "))
        .filter(|line| !line.starts_with("# "));
    let shown: Vec<&str> = shown.collect();
    let [example] = blocks("rust")[..] else {
        panic!("one example in Rust")
    };
    assert!(
        shown.join("\n").contains(example),
        "the example is not that of Session"
    );
}
