//! Running passes: apply, verify, time, report.

use std::time::{Duration, Instant};

use lxpod_ir::{Graph, Patch, VerifyErrors, verify};
use serde::Serialize;

use crate::pass::{Options, PIPELINE, Pass, Run, UnknownPass, find};
use crate::walk;

/// Why a list of passes ended early.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PassError {
    /// The graph that was handed in breaks invariants. The input is wrong.
    #[error("before the first pass {0}")]
    Input(VerifyErrors),
    /// A pass left a graph that breaks invariants. Our bug.
    #[error("after pass `{pass}` {errors}")]
    Invalid {
        /// The pass.
        pass: &'static str,
        /// Everything wrong with its result.
        errors: VerifyErrors,
    },
    /// A pass made a patch that does not fit the graph. Our bug.
    #[error("pass `{pass}`: {message}")]
    Refused {
        /// The pass.
        pass: &'static str,
        /// Why the patch does not fit.
        message: String,
    },
    /// A pass kept finding changes. Our bug.
    #[error("pass `{pass}` found no end in {rounds} rounds")]
    Unsettled {
        /// The pass.
        pass: &'static str,
        /// How often it was asked.
        rounds: usize,
    },
}

/// What one run of one pass did.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct PassReport {
    /// The pass.
    pub name: &'static str,
    /// Patches applied.
    pub patches: usize,
    /// Nodes before.
    pub nodes_before: usize,
    /// Nodes after.
    pub nodes_after: usize,
    /// Time of the pass and of the verifier behind it.
    pub duration: Duration,
}

/// What a list of passes did, run by run.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Report {
    /// One entry for each run of a pass, in order.
    pub passes: Vec<PassReport>,
}

impl Report {
    /// All patches applied.
    pub fn patches(&self) -> usize {
        self.passes.iter().map(|pass| pass.patches).sum()
    }
}

/// What a hook is called with: the name of the pass that just ran, and the graph it left.
type Hook<'a> = Box<dyn FnMut(&'static str, &Graph) + 'a>;

/// Runs lists of passes.
#[derive(Default)]
pub struct Manager<'a> {
    options: Options,
    print_after: Option<(String, Hook<'a>)>,
    stop_after: Option<usize>,
}

impl<'a> Manager<'a> {
    /// A manager without hooks.
    pub fn new(options: Options) -> Self {
        Manager {
            options,
            ..Manager::default()
        }
    }

    /// Calls `hook` after each run of the pass `name`, or of every pass if `name` is `all`.
    ///
    /// # Errors
    /// There is no such pass.
    pub fn print_after(
        mut self,
        name: &str,
        hook: impl FnMut(&'static str, &Graph) + 'a,
    ) -> Result<Self, UnknownPass> {
        if name != "all" {
            find(name)?;
        }
        self.print_after = Some((name.to_owned(), Box::new(hook)));
        Ok(self)
    }

    /// Applies no more than `patches` patches in all, and ends the list there: bisection finds the
    /// first patch that changes what a graph computes.
    pub fn stop_after(mut self, patches: usize) -> Self {
        self.stop_after = Some(patches);
        self
    }

    /// Runs each pass until it finds nothing, removes what it leaves without users, and verifies the graph before the first pass and after
    /// each.
    ///
    /// # Errors
    /// See [`PassError`].
    pub fn run(&mut self, passes: &[&Pass], graph: &mut Graph) -> Result<Report, PassError> {
        verify(graph).map_err(PassError::Input)?;
        let mut report = Report::default();
        for pass in passes {
            let left = self
                .stop_after
                .map_or(usize::MAX, |most| most - report.patches());
            if left == 0 {
                break;
            }
            report.passes.push(self.step(pass, graph, left)?);
            if let Some((name, hook)) = &mut self.print_after
                && (name == "all" || name == pass.name)
            {
                hook(pass.name, graph);
            }
        }
        Ok(report)
    }

    fn step(&self, pass: &Pass, graph: &mut Graph, left: usize) -> Result<PassReport, PassError> {
        let start = Instant::now();
        let nodes_before = graph.len();
        let mut driver = Driver {
            pass,
            options: &self.options,
            applied: 0,
            left,
        };
        driver.settle(graph)?;
        verify(graph).map_err(|errors| PassError::Invalid {
            pass: pass.name,
            errors,
        })?;
        Ok(PassReport {
            name: pass.name,
            patches: driver.applied,
            nodes_before,
            nodes_after: graph.len(),
            duration: start.elapsed(),
        })
    }
}

/// Runs the standard passes; see [`PIPELINE`].
///
/// # Errors
/// See [`PassError`].
pub fn optimise(graph: &mut Graph, options: &Options) -> Result<Report, PassError> {
    Manager::new(*options).run(PIPELINE, graph)
}

/// One run of one pass.
struct Driver<'a> {
    pass: &'a Pass,
    options: &'a Options,
    applied: usize,
    left: usize,
}

impl Driver<'_> {
    /// Rounds until one finds nothing. A chain of n nodes may need n rounds, since what a patch adds
    /// is looked at in the next one.
    fn settle(&mut self, graph: &mut Graph) -> Result<(), PassError> {
        let rounds = 2 * graph.len() + 16;
        for _ in 0..rounds {
            let before = self.applied;
            match self.pass.run {
                Run::Each(find) => {
                    for id in graph.topo() {
                        if graph.is_used(id) {
                            self.apply(graph, find(graph, id, self.options))?;
                        }
                    }
                }
                Run::Whole(find) => self.apply(graph, find(graph, self.options))?,
            }
            if self.applied == before {
                return Ok(());
            }
            self.sweep(graph)?;
        }
        Err(PassError::Unsettled {
            pass: self.pass.name,
            rounds,
        })
    }

    fn apply(
        &mut self,
        graph: &mut Graph,
        found: Result<Option<Patch>, String>,
    ) -> Result<(), PassError> {
        let refused = |message| PassError::Refused {
            pass: self.pass.name,
            message,
        };
        if self.left == 0 {
            return Ok(());
        }
        if let Some(patch) = found.map_err(refused)? {
            patch.apply(graph).map_err(refused)?;
            self.applied += 1;
            self.left -= 1;
        }
        Ok(())
    }

    /// Removes what no output depends on, so that a value's users are those that count.
    fn sweep(&self, graph: &mut Graph) -> Result<(), PassError> {
        walk::without_dead(graph)
            .apply(graph)
            .map_err(|message| PassError::Refused {
                pass: self.pass.name,
                message,
            })
    }
}
