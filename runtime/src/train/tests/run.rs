//! The loop.

use super::*;
use crate::error::Fault;
use crate::train::Decline;

#[test]
fn the_log_has_every_figure_of_every_step() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        evaluation: Some(3),
        ..Setup::new()
    };
    let mut trainer = setup.trainer(folder.path()).unwrap();
    let mut watch = Watch::default();
    assert_eq!(watch.run(&mut trainer).unwrap(), Outcome::Finished);
    let log = trainer.log();
    let lengths = [
        log.loss.len(),
        log.lr.len(),
        log.grad_norm.len(),
        log.loss_scale.len(),
    ];
    assert_eq!(lengths, [STEPS; 4]);
    assert_eq!(log.micro_loss.len(), 2 * STEPS);
    for (step, pair) in log.micro_loss.chunks(2).enumerate() {
        let mean = (pair[0].unwrap() + pair[1].unwrap()) / 2.0;
        assert_eq!(log.loss[step], Some(mean));
        let share = Decline::Linear.share(step, STEPS, WarmUp::Steps(1));
        assert_eq!(log.lr[step], 0.05 * share);
        let report = &watch.reports[step];
        assert_eq!(
            (report.step, report.steps, report.samples),
            (step + 1, STEPS, 8)
        );
        assert_eq!(Some(report.grad_norm), log.grad_norm[step]);
    }
    assert_eq!(log.lr[0], 0.0);
    assert!(log.loss[STEPS - 1].unwrap() < log.loss[0].unwrap());
    assert_eq!(log.loss_scale, [1.0; STEPS]);
    let at: Vec<usize> = log.eval.iter().map(|evaluated| evaluated.step).collect();
    assert_eq!(at, [3, 6, 7]);
    assert_eq!(watch.evaluated, log.eval);
    assert!(log.eval[2].loss < log.eval[0].loss);
    let text = std::fs::read(folder.path().join("log.json")).unwrap();
    assert_eq!(
        &serde_json::from_slice::<crate::train::Log>(&text).unwrap(),
        log
    );
}

#[test]
fn the_first_update_is_at_rate_zero() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup::new();
    let mut trainer = setup.trainer(folder.path()).unwrap();
    run(&mut trainer, Some(1)).unwrap();
    let kept = crate::tensors::read_tensors(
        &folder
            .path()
            .join("checkpoint-1/training_state.safetensors"),
    );
    let kept = kept.unwrap();
    let name = |prefix: &str| {
        kept[&format!("{prefix}{}", linear::BINDING)]
            .to_f32()
            .unwrap()
    };
    let (a, b) = (&Tensors::new().0["a"].1, &Tensors::new().0["b"].1);
    let halves = b.iter().map(|value| value * 0.5);
    let start: Vec<f32> = a.iter().copied().chain(halves).collect();
    assert_eq!(name("param:"), start);
    assert!(name("state:m:").iter().all(|&moment| moment != 0.0));
}

#[test]
fn a_loss_scale_of_a_power_of_two_changes_nothing() {
    let results = [false, true].map(|scaled| {
        let folder = tempfile::tempdir().unwrap();
        let setup = Setup {
            scaled,
            ..Setup::new()
        };
        let mut trainer = setup.trainer(folder.path()).unwrap();
        run(&mut trainer, None).unwrap();
        assert_eq!(
            trainer.log().loss_scale,
            [if scaled { 1024.0 } else { 1.0 }; STEPS]
        );
        results(folder.path())[0].clone()
    });
    assert_eq!(results[0], results[1]);
}

#[test]
fn an_overflow_skips_the_update_and_halves_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup {
        scaled: true,
        largest: 65504.0,
        ..Setup::new()
    };
    setup.recipe.loss_scaling = LossScaling::Backoff;
    let mut trainer = setup.trainer(folder.path()).unwrap();
    let mut watch = Watch::default();
    watch.run(&mut trainer).unwrap();
    let log = trainer.log();
    assert!(
        !log.skipped.is_empty(),
        "65536 times a gradient above 1 overflows"
    );
    assert_eq!(trainer.applied() as usize, STEPS - log.skipped.len());
    assert_eq!(log.overflow.len(), log.skipped.len());
    for step in 1..STEPS {
        let halved = if log.skipped.contains(&(step - 1)) {
            0.5
        } else {
            1.0
        };
        assert_eq!(log.loss_scale[step], log.loss_scale[step - 1] * halved);
    }
    for step in 0..STEPS {
        assert_eq!(log.skipped.contains(&step), log.grad_norm[step].is_none());
        assert_eq!(watch.reports[step].skipped, log.skipped.contains(&step));
        assert_eq!(
            watch.reports[step].overflow.is_some(),
            log.skipped.contains(&step)
        );
    }
    assert_eq!(
        log.lr[3],
        0.05 * 4.0 / 6.0,
        "skipped steps count for the rate"
    );
}

#[test]
fn the_histogram_reaches_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup {
        scaled: true,
        histogram: true,
        ..Setup::new()
    };
    setup.recipe.loss_scaling = LossScaling::Histogram;
    let mut trainer = setup.trainer(folder.path()).unwrap();
    run(&mut trainer, None).unwrap();
    let scales = &trainer.log().loss_scale;
    assert_eq!(
        scales[..2],
        [65536.0, 32768.0],
        "gradients of about 1 are above an eighth"
    );
    assert!(
        scales.windows(2).any(|pair| pair[1] > pair[0]),
        "{scales:?}"
    );
    setup.histogram = false;
    let refused = setup.trainer(folder.path()).err().unwrap();
    assert_eq!(refused.fault(), Fault::Unsupported);
    assert!(
        refused.to_string().contains("--loss-scaling histogram"),
        "{refused}"
    );
}

#[test]
fn a_run_that_only_skips_ends() {
    let folder = tempfile::tempdir().unwrap();
    let setup = Setup {
        largest: 0.0,
        ..Setup::new()
    };
    let mut trainer = setup.trainer_of(folder.path(), 150).unwrap();
    let error = run(&mut trainer, None).unwrap_err();
    assert_eq!(error.fault(), Fault::Input);
    assert!(error.to_string().contains("up to step 100"), "{error}");
    assert_eq!(trainer.applied(), 0);
}

#[test]
fn wrong_hyper_parameters_are_refused_before_anything_runs() {
    let folder = tempfile::tempdir().unwrap();
    let mut setup = Setup::new();
    setup.recipe.adam_beta1 = 1.0;
    let error = setup.trainer(folder.path()).err().unwrap();
    assert!(
        error.to_string().starts_with("--adam-beta1: is 1"),
        "{error}"
    );
}
