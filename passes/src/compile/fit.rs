//! Automatic recomputation: as little as it takes for a plan to fit its tiles.

use lxpod_ir::Graph;
use lxpod_ir::front::LxmertConfig;

use super::{
    CompileError, CompileOptions, Compiled, Observer, Optimised, compile_with, state_bytes,
};
use crate::partition::{in_flight, memory_limit};
use crate::pass::Recompute;
use crate::solve::chain::{self, Chain};
use crate::{cost, recompute};

/// [`compile`] where recomputation is automatic. If a plan that recomputes nothing does not fit, the layers that
/// slow the pipeline least are computed again, as [`chain`] finds them. It reckons in whole layers, without
/// activations and transfers: so it is told that tiles have less room, until the plan fits. Since operators split finer
/// than layers, the plan that computes every layer again may still be faster; then it is the result.
pub(super) fn compile_to_fit(
    config: &LxmertConfig,
    name: &str,
    options: &CompileOptions,
    observe: Observer<'_>,
) -> Compiled {
    const PARTS: u64 = 16;
    let is_full =
        |compiled: &Compiled| compiled.as_ref().is_err_and(CompileError::is_out_of_memory);
    let compiled = compile_with(config, name, options, Recompute::None, &mut *observe);
    if !is_full(&compiled) {
        return compiled;
    }
    let mut chain = layer_chain(config, options)?;
    let (room, mut tried) = (chain.memory, None);
    for parts in (PARTS / 2..PARTS).rev() {
        chain.memory = room / PARTS * parts;
        let Some(choice) = chain::solve(&chain) else {
            break;
        };
        if tried.replace(choice.again) == Some(choice.again) {
            continue;
        }
        let recompute = Recompute::Layers {
            chosen: choice.again,
        };
        let compiled = compile_with(config, name, options, recompute, &mut *observe);
        if !is_full(&compiled) {
            let every = compile_with(config, name, options, Recompute::Layer, observe);
            return faster(compiled, every);
        }
    }
    compile_with(config, name, options, Recompute::Layer, observe)
}

/// The plan with the faster slowest stage; the first of two alike, and if the second is none.
fn faster(first: Compiled, second: Compiled) -> Compiled {
    let first = first?;
    match second {
        Ok(second) if second.0.partition.objective_cycles < first.0.partition.objective_cycles => {
            Ok(second)
        }
        _ => Ok(first),
    }
}

/// The layers of a training step on the tiles of its pipeline.
fn layer_chain(config: &LxmertConfig, options: &CompileOptions) -> Result<Chain, CompileError> {
    let ignore = &mut |_: &'static str, _: &Graph| {};
    let model = Optimised::new(config, options, &mut Vec::new(), &mut *ignore)?;
    let mut completed = model.clone();
    completed.complete(options, &mut Vec::new(), &mut *ignore)?;
    let update = completed.update(options)?;
    let (schedule, accumulation) = options.schedule()?;
    let states = state_bytes(update.as_ref());
    let cost = cost::model(&options.target);
    Ok(Chain {
        layers: recompute::chain(&model.graph, cost.as_ref(), &states),
        devices: schedule.stages(),
        memory: memory_limit(&options.target, &schedule),
        in_flight: in_flight(&schedule, accumulation),
    })
}
