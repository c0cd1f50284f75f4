//! What a training run tells while it goes on.

use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use lxpod_runtime::Result;
use lxpod_runtime::train::{Evaluated, EventWriter, Observer, StepReport};

use crate::cli::Global;

/// A bar of so many `what` on standard error: invisible where that is no terminal, and under `-q`.
pub(crate) fn bar(global: &Global, what: &str, length: usize) -> ProgressBar {
    if global.quiet {
        return ProgressBar::hidden();
    }
    let template = format!("{what} {{wide_bar}} {{pos}}/{{len}}  {{msg}}  {{eta}} left");
    let style = ProgressStyle::with_template(&template);
    let bar = ProgressBar::new(length as u64);
    bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
    bar
}

/// Shows a run on a bar and writes it to TensorBoard's event files.
pub(crate) struct Progress<'a> {
    global: &'a Global,
    bar: ProgressBar,
    events: Option<EventWriter>,
    samples: usize,
    steps: Vec<Duration>,
}

impl<'a> Progress<'a> {
    /// A run of `steps`, `done` of which were done before.
    pub(crate) fn new(
        global: &'a Global,
        steps: usize,
        done: usize,
        events: Option<EventWriter>,
    ) -> Progress<'a> {
        let bar = bar(global, "training", steps).with_position(done as u64);
        bar.reset_eta();
        Progress {
            global,
            bar,
            events,
            samples: 0,
            steps: Vec::new(),
        }
    }

    /// Samples trained on since the start of this process.
    pub(crate) fn samples(&self) -> usize {
        self.samples
    }

    /// Time of each step since the start of this process.
    pub(crate) fn steps(&self) -> &[Duration] {
        &self.steps
    }

    /// Time of all steps since the start of this process.
    pub(crate) fn busy(&self) -> Duration {
        self.steps.iter().sum()
    }

    /// Samples per second so far.
    pub(crate) fn rate(&self) -> f64 {
        self.samples as f64 / self.busy().as_secs_f64().max(1e-9)
    }

    /// Takes the bar away.
    pub(crate) fn finish(&self) {
        self.bar.finish_and_clear();
    }

    fn note(&self, text: &str) {
        self.bar.suspend(|| self.global.note(text));
    }
}

impl Observer for Progress<'_> {
    fn step(&mut self, report: &StepReport) -> Result<()> {
        self.samples += report.samples;
        self.steps.push(report.duration);
        let rate = self.rate();
        let figures = format!(
            "loss {:.4}  lr {:.2e}  {rate:.1} samples/s",
            report.loss, report.rate
        );
        self.bar.set_position(report.step as u64);
        if self.global.verbose > 0 {
            let line = format!(
                "step {} of {}: {figures}  norm {:.4}  loss scale {}",
                report.step, report.steps, report.grad_norm, report.loss_scale
            );
            self.bar.suspend(|| self.global.detail(&line));
        }
        self.bar.set_message(figures);
        if report.skipped {
            let first = report.overflow.as_ref().map(ToString::to_string);
            let first = first.unwrap_or_else(|| "the sum of all gradients".to_owned());
            self.note(&format!(
                "step {}: the update was skipped (loss scale {}); the first that is not finite: {first}",
                report.step, report.loss_scale
            ));
        }
        let Some(events) = &mut self.events else {
            return Ok(());
        };
        let scalars = [
            ("train/loss", report.loss as f32),
            ("train/learning_rate", report.rate as f32),
            ("train/grad_norm", report.grad_norm as f32),
            ("train/loss_scale", report.loss_scale),
            ("train/samples_per_second", rate as f32),
        ];
        events.scalars(report.step as u64, &scalars)
    }

    fn evaluated(&mut self, evaluated: &Evaluated) -> Result<()> {
        let loss = evaluated.loss.unwrap_or(f64::NAN);
        self.note(&format!(
            "after step {}: evaluation loss {loss:.4}",
            evaluated.step
        ));
        match &mut self.events {
            Some(events) => events.scalars(evaluated.step as u64, &[("eval/loss", loss as f32)]),
            None => Ok(()),
        }
    }

    fn saved(&mut self, checkpoint: &Path) {
        if self.global.verbose > 0 {
            self.note(&format!("saved {}", checkpoint.display()));
        }
    }
}
