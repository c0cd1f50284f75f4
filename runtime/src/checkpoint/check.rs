//! Comparing a checkpoint with the parameters that a model needs.

use super::{Checkpoint, Role, is_weight_type, role};
use crate::error::{Error, Mismatch, Result};
use crate::tensors::Dtype;
use std::collections::BTreeSet;

/// What a checkpoint that fits a model holds besides.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    /// Canonical names of tensors that this task does not use, sorted.
    pub skipped: Vec<String>,
    /// Sentences for the user, none when there is nothing to say.
    pub notes: Vec<String>,
}

impl Checkpoint {
    /// Compares the checkpoint with all parameters of a configuration's class, `expected` (canonical name, shape).
    ///
    /// Heads of another task and the tied decoder are skipped, with a note. Values are not looked at.
    ///
    /// # Errors
    /// [`Error::Mismatch`] with all differences: parameters missing, misshaped or not of a float type; backbone
    /// tensors that the configuration has no place for; tensors of no LXMERT class.
    pub fn check(&self, expected: &[(String, Vec<usize>)]) -> Result<Report> {
        let mut mismatch = Mismatch {
            path: self.path.clone(),
            missing: Vec::new(),
            misshaped: Vec::new(),
            not_weights: Vec::new(),
            surplus: Vec::new(),
            unknown: Vec::new(),
        };
        let mut doubles = 0;
        for (name, shape) in expected {
            match self.get(name) {
                None => mismatch.missing.push(name.clone()),
                Some(info) if info.shape != *shape => {
                    let difference = (name.clone(), shape.clone(), info.shape.clone());
                    mismatch.misshaped.push(difference);
                }
                Some(info) if !is_weight_type(info.dtype) => {
                    let difference = (name.clone(), info.dtype.to_string());
                    mismatch.not_weights.push(difference);
                }
                Some(info) => doubles += usize::from(info.dtype == Dtype::F64),
            }
        }
        let expected: BTreeSet<&str> = expected.iter().map(|(name, _)| name.as_str()).collect();
        let mut report = Report::default();
        let mut skipped = Skipped::default();
        for (name, entry) in &self.tensors {
            if expected.contains(name.as_str()) {
                continue;
            }
            match role(name) {
                Role::Unknown => mismatch.unknown.push(entry.stored_name.clone()),
                Role::Backbone => mismatch.surplus.push(name.clone()),
                role => {
                    skipped.count(role);
                    report.skipped.push(name.clone());
                }
            }
        }
        if !mismatch.is_empty() {
            return Err(Error::Mismatch(Box::new(mismatch)));
        }
        report.notes = skipped.notes();
        if doubles > 0 {
            report
                .notes
                .push(format!("{doubles} tensors are F64 and are rounded to F32"));
        }
        Ok(report)
    }
}

#[derive(Default)]
struct Skipped {
    answer_head: usize,
    pretraining_heads: usize,
    tied_decoder: usize,
}

impl Skipped {
    fn count(&mut self, role: Role) {
        match role {
            Role::AnswerHead => self.answer_head += 1,
            Role::PretrainingHead => self.pretraining_heads += 1,
            Role::TiedDecoder => self.tied_decoder += 1,
            Role::Backbone | Role::Unknown => {}
        }
    }

    fn notes(&self) -> Vec<String> {
        let mut notes = Vec::new();
        if self.answer_head > 0 {
            notes.push(format!(
                "skipped {} tensors of the answer head, which this task does not use",
                self.answer_head
            ));
        }
        if self.pretraining_heads > 0 {
            notes.push(format!(
                "skipped {} tensors of pretraining heads, which this task does not use",
                self.pretraining_heads
            ));
        }
        if self.tied_decoder > 0 {
            notes.push(
                "skipped cls.predictions.decoder.weight, which is tied to the word embedding"
                    .into(),
            );
        }
        notes
    }
}
