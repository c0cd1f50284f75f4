//! Saving and resuming, and everything that can go wrong in between.

use std::fs;
use std::io;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::error::Fault;
use crate::train::{STATE_FILE, checkpoints, newest};

fn saving_every_second_step() -> Setup {
    Setup {
        every: Some(2),
        scaled: true,
        evaluation: Some(3),
        ..Setup::new()
    }
}

/// The results of a run that nothing disturbs.
fn undisturbed() -> [Vec<u8>; 2] {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = saving_every_second_step().trainer(folder.path()).unwrap();
    assert_eq!(run(&mut trainer, None).unwrap(), Outcome::Finished);
    results(folder.path())
}

fn steps_of(folder: &Path) -> Vec<usize> {
    checkpoints(folder)
        .unwrap()
        .into_iter()
        .map(|(step, _)| step)
        .collect()
}

fn names(folder: &Path) -> Vec<String> {
    let name = |entry: io::Result<fs::DirEntry>| entry.unwrap().file_name().into_string().unwrap();
    let mut names: Vec<String> = fs::read_dir(folder).unwrap().map(name).collect();
    names.sort();
    names
}

#[test]
fn three_steps_and_four_are_seven() {
    let folder = tempfile::tempdir().unwrap();
    let setup = saving_every_second_step();
    let mut trainer = setup.trainer(folder.path()).unwrap();
    let outcome = run(&mut trainer, Some(3)).unwrap();
    let checkpoint = folder.path().join("checkpoint-3");
    assert_eq!(outcome, Outcome::Interrupted(checkpoint.clone()));
    assert!(!folder.path().join("model.safetensors").exists());
    let mut trainer = setup.trainer(folder.path()).unwrap();
    let (found, notes) = newest(folder.path()).unwrap();
    assert_eq!((found, notes), (checkpoint, vec![]));
    trainer.resume(&newest(folder.path()).unwrap().0).unwrap();
    assert_eq!(trainer.step(), 3);
    let mut watch = Watch::default();
    assert_eq!(watch.run(&mut trainer).unwrap(), Outcome::Finished);
    assert_eq!(watch.reports.len(), 4);
    assert!(results(folder.path()) == undisturbed());
}

#[test]
fn the_two_newest_checkpoints_stay() {
    let folder = tempfile::tempdir().unwrap();
    let mut trainer = saving_every_second_step().trainer(folder.path()).unwrap();
    let mut watch = Watch::default();
    watch.run(&mut trainer).unwrap();
    let saved = [2, 4, 6].map(|step| folder.path().join(format!("checkpoint-{step}")));
    assert_eq!(watch.saved, saved);
    let left = [
        "checkpoint-4",
        "checkpoint-6",
        "config.json",
        "log.json",
        "model.safetensors",
    ];
    assert_eq!(names(folder.path()), left);
    let files = [
        "SHA256SUMS",
        "config.json",
        "log.json",
        "model.safetensors",
        STATE_FILE,
    ];
    assert_eq!(names(&saved[2]), files);
}

/// A gate that stops at change number `last`, as if the process had been killed there: what was
/// about to be written is there in part, and nothing is done after it.
fn killed_at(last: usize) -> (Gate, Arc<AtomicUsize>) {
    let count = Arc::new(AtomicUsize::new(0));
    let counter = count.clone();
    let gate = move |path: &Path| {
        let change = counter.fetch_add(1, Ordering::Relaxed);
        if change < last {
            return Ok(());
        }
        let inside = path.parent().is_some_and(|parent| {
            parent.is_dir() && parent.to_string_lossy().ends_with("-partial")
        });
        if change == last && inside {
            fs::write(path, "cut short")?;
        }
        Err(io::Error::other("killed"))
    };
    (Box::new(gate), count)
}

#[test]
fn a_kill_at_any_write_leaves_a_run_that_continues_bit_for_bit() {
    let want = undisturbed();
    let setup = saving_every_second_step();
    let whole = tempfile::tempdir().unwrap();
    let (gate, changes) = killed_at(usize::MAX);
    run(&mut setup.gated(whole.path(), gate).unwrap(), None).unwrap();
    let changes = changes.load(Ordering::Relaxed);
    assert!(changes > 30, "{changes} changes");
    let mut resumed_at = std::collections::BTreeSet::new();
    for last in 1..changes {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = setup.gated(folder.path(), killed_at(last).0).unwrap();
        let error = run(&mut trainer, None).unwrap_err();
        assert_eq!(error.fault(), Fault::Io, "{error}");
        let mut trainer = setup.trainer(folder.path()).unwrap();
        if let Ok((checkpoint, notes)) = newest(folder.path()) {
            assert_eq!(notes, [""; 0], "no checkpoint is ever there in part");
            trainer.resume(&checkpoint).unwrap();
        }
        resumed_at.insert(trainer.step());
        run(&mut trainer, None).unwrap();
        assert!(results(folder.path()) == want, "killed at change {last}");
        let hidden = names(folder.path())
            .into_iter()
            .find(|name| name.starts_with('.'));
        assert_eq!(hidden, None, "what a kill left behind is cleared away");
    }
    assert_eq!(resumed_at, [0, 2, 4, 6].into());
}

#[test]
fn a_full_disk_leaves_the_last_checkpoint() {
    for kind in [io::ErrorKind::StorageFull, io::ErrorKind::PermissionDenied] {
        let folder = tempfile::tempdir().unwrap();
        let full = Box::new(move |path: &Path| {
            let refuse = path.ends_with(".checkpoint-4.lxpod-partial/model.safetensors");
            if refuse { Err(kind.into()) } else { Ok(()) }
        });
        let mut trainer = saving_every_second_step()
            .gated(folder.path(), full)
            .unwrap();
        let error = run(&mut trainer, None).unwrap_err();
        assert_eq!(error.fault(), Fault::Io);
        assert!(error.to_string().contains("cannot write"), "{error}");
        assert_eq!(names(folder.path()), ["checkpoint-2"]);
        assert!(newest(folder.path()).is_ok());
    }
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    for file in [
        "model.safetensors",
        STATE_FILE,
        "log.json",
        "SHA256SUMS",
        "config.json",
    ] {
        for cut in [false, true] {
            let folder = tempfile::tempdir().unwrap();
            let setup = saving_every_second_step();
            run(&mut setup.trainer(folder.path()).unwrap(), Some(4)).unwrap();
            assert_eq!(steps_of(folder.path()), [4, 2]);
            damage(&folder.path().join("checkpoint-4").join(file), cut);
            let (found, notes) = newest(folder.path()).unwrap();
            assert!(found.ends_with("checkpoint-2"), "{file}");
            assert!(
                notes.len() == 1 && notes[0].contains("checkpoint-4"),
                "{notes:?}"
            );
            let mut trainer = setup.trainer(folder.path()).unwrap();
            trainer.resume(&found).unwrap();
            run(&mut trainer, None).unwrap();
            assert!(results(folder.path()) == undisturbed());
            assert_eq!(steps_of(folder.path()), [6, 4]);
            assert!(
                newest(&folder.path().join("checkpoint-4")).is_ok(),
                "written anew"
            );
        }
    }
}

fn damage(path: &Path, cut: bool) {
    let mut bytes = fs::read(path).unwrap();
    let middle = bytes.len() / 2;
    if cut {
        bytes.truncate(middle);
    } else {
        bytes[middle] ^= 1;
    }
    fs::write(path, bytes).unwrap();
}

#[test]
fn nothing_to_resume_from_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let error = newest(folder.path()).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("holds no checkpoint"), "{error}");
    let error = newest(&folder.path().join("absent")).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    let setup = saving_every_second_step();
    run(&mut setup.trainer(folder.path()).unwrap(), Some(2)).unwrap();
    let state = folder.path().join("checkpoint-2").join(STATE_FILE);
    fs::remove_file(&state).unwrap();
    let error = newest(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("does not list the files that are there"),
        "{error}"
    );
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = setup.trainer(file.path()).err().unwrap();
    assert_eq!(error.fault(), Fault::Input);
}

#[test]
fn another_run_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let setup = saving_every_second_step();
    run(&mut setup.trainer(folder.path()).unwrap(), Some(2)).unwrap();
    let (checkpoint, _) = newest(folder.path()).unwrap();
    let refused = |setup: &Setup| {
        let folder = tempfile::tempdir().unwrap();
        let mut trainer = setup.trainer(folder.path()).unwrap();
        let error = trainer.resume(&checkpoint).unwrap_err();
        assert_eq!(error.fault(), Fault::Input);
        error.to_string()
    };
    let mut other = saving_every_second_step();
    other.recipe.learning_rate = 0.06;
    let text = refused(&other);
    assert!(text.contains("option `recipe.learning_rate`"), "{text}");
    assert!(text.contains("was `0.05` and is `0.06` now"), "{text}");
    other = saving_every_second_step();
    other.scaled = false;
    assert!(refused(&other).contains("counters"));
    let elsewhere = folder.path().join("checkpoint-3");
    fs::rename(&checkpoint, &elsewhere).unwrap();
    let text = setup
        .trainer(folder.path())
        .unwrap()
        .resume(&elsewhere)
        .unwrap_err();
    assert!(text.to_string().contains("counts 2 steps"), "{text}");
}

#[test]
fn a_run_may_go_on_in_another_folder() {
    let [first, second] = [(), ()].map(|()| tempfile::tempdir().unwrap());
    let setup = saving_every_second_step();
    run(&mut setup.trainer(first.path()).unwrap(), Some(2)).unwrap();
    let mut trainer = setup.trainer(second.path()).unwrap();
    trainer.resume(&newest(first.path()).unwrap().0).unwrap();
    run(&mut trainer, None).unwrap();
    assert!(results(second.path()) == undisturbed());
    assert_eq!(steps_of(first.path()), [2]);
    assert_eq!(steps_of(second.path()), [6, 4]);
}
