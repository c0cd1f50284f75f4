//! Placements by hand, as data: which scopes lie on which stage.

use serde::{Deserialize, Serialize};

use super::split::Split;
use crate::solve::partition::{PartitionError, Problem};

/// A placement by hand: for each stage, the scopes whose operators it holds.
///
/// A name covers the scope it is and every scope inside it; of several that cover an operator's scope the longest
/// decides. An operator that none covers goes to the latest stage of the operators it reads from, to the first
/// stage if there are none.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinnedStages {
    /// The scopes of each stage, from the first. A stage may be empty.
    pub stages: Vec<Vec<String>>,
}

impl PinnedStages {
    /// Stages of so many layers each, of `scopes` in order.
    ///
    /// # Errors
    /// The counts do not add up to the number of scopes.
    pub fn of_counts(counts: &[usize], scopes: &[String]) -> Result<Self, String> {
        let total = counts.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
        if total != Some(scopes.len()) {
            let shown = total.map_or("too many".to_owned(), |total| total.to_string());
            return Err(format!(
                "places {shown} layers; the model has {}",
                scopes.len()
            ));
        }
        let mut rest = scopes;
        let take = |&count: &usize| {
            let (stage, behind) = rest.split_at(count);
            rest = behind;
            stage.to_vec()
        };
        Ok(PinnedStages {
            stages: counts.iter().map(take).collect(),
        })
    }

    /// The stage whose longest name covers a scope, and that name.
    fn covering(&self, scope: &str) -> Option<(usize, &str)> {
        let named = self.stages.iter().enumerate();
        let named = named.flat_map(|(stage, names)| names.iter().map(move |n| (stage, n.as_str())));
        let covers = |name: &str| {
            let inside = scope.strip_prefix(name);
            inside.is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        named
            .filter(|(_, name)| covers(name))
            .max_by_key(|(_, name)| name.len())
    }

    /// # Errors
    /// A scope is named twice.
    fn check_names(&self, devices: usize) -> Result<(), String> {
        if self.stages.is_empty() || self.stages.len() > devices {
            return Err(format!(
                "has {} stages; the pipeline has {devices}",
                self.stages.len()
            ));
        }
        let mut names: Vec<&str> = self.stages.iter().flatten().map(String::as_str).collect();
        names.sort_unstable();
        match names.windows(2).find(|pair| pair[0] == pair[1]) {
            Some(twice) => Err(format!("names `{}` twice", twice[0])),
            None => Ok(()),
        }
    }
}

/// An operator as a placement names it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Operator {
    /// Its op.
    pub op: &'static str,
    /// The path of its module.
    pub scope: String,
}

/// The stage of each atom under a placement by hand.
///
/// # Errors
/// A name covers no operator, or the placement is not contiguous: an operator reads from a later stage.
pub(super) fn assign(
    pinned: &PinnedStages,
    problem: &Problem,
    operators: &[Operator],
) -> Result<Vec<usize>, PartitionError> {
    let refused = |message: String| PartitionError::Invalid(format!("the placement {message}"));
    pinned.check_names(problem.devices).map_err(refused)?;
    let order = Split::order(problem);
    let mut used: Vec<&str> = Vec::new();
    let mut device_of: Vec<usize> = Vec::with_capacity(operators.len());
    for (atom, operator) in operators.iter().enumerate() {
        let read = order.iter().filter(|&&(_, to)| to == atom);
        let read = read.filter_map(|&(from, _)| device_of.get(from).copied());
        let covering = pinned.covering(&operator.scope);
        used.extend(covering.map(|(_, name)| name));
        device_of.push(covering.map_or_else(|| read.max().unwrap_or(0), |(stage, _)| stage));
    }
    let unused = |name: &&String| !used.contains(&name.as_str());
    if let Some(name) = pinned.stages.iter().flatten().find(unused) {
        let known = modules(operators);
        let message = format!("names `{name}`, in which no operator is; operators are in {known}");
        return Err(refused(message));
    }
    match order.iter().find(|&&(a, b)| device_of[a] > device_of[b]) {
        None => Ok(device_of),
        Some(&(a, b)) => Err(refused(format!(
            "is not contiguous: {} in {} on stage {} reads from {} in {} on stage {}, which is later",
            operators[b].op,
            operators[b].scope,
            device_of[b],
            operators[a].op,
            operators[a].scope,
            device_of[a],
        ))),
    }
}

/// Where operators are, in few words: their scopes down to the first number.
fn modules(operators: &[Operator]) -> String {
    let module = |operator: &Operator| {
        let parts = operator.scope.split('.');
        let number = |part: &&str| !part.bytes().all(|byte| byte.is_ascii_digit());
        parts.take_while(number).collect::<Vec<_>>().join(".")
    };
    let mut known: Vec<String> = operators.iter().map(module).collect();
    known.sort_unstable();
    known.dedup();
    known.truncate(12);
    known.join(", ")
}
