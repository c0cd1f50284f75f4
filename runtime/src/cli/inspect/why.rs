//! Why the stages are cut where they are.

use lxpod_passes::partition::{Cut, MovedOperator, Operator, Slowest, Split};
use lxpod_passes::plan::Plan;
use serde_json::json;

use crate::cli::Global;
use crate::cli::error::Result;
use crate::cli::output::{self, HEADING, STRONG, grouped, plural, styled};
use crate::cli::table::Table;

/// Operators of the slowest stage that are named.
const LARGEST: usize = 5;

pub(super) fn show(plan: &Plan, split: &Split, global: &Global) -> Result<()> {
    let (slowest, cuts) = (split.slowest(LARGEST), split.cuts());
    if global.json {
        let partition = &plan.partition;
        return output::json(&json!({
            "partition": {
                "objective_cycles": partition.objective_cycles,
                "lower_bound_cycles": partition.lower_bound_cycles,
                "optimal": partition.optimal,
                "ideals": partition.ideals,
                "atoms": partition.atoms,
            },
            "loads": split.loads(),
            "slowest": slowest,
            "cuts": cuts,
        }));
    }
    output::print(&format!(
        "{}\n{}",
        bottleneck(plan, &slowest),
        table(&cuts, slowest.cycles)
    ))
}

/// Which stage decides, and what would have to shrink.
fn bottleneck(plan: &Plan, slowest: &Slowest) -> String {
    let partition = &plan.partition;
    let verdict = match partition.optimal {
        true => "no contiguous split of these operators has a faster slowest stage",
        false if partition.ideals == 0 => "this split was not searched for, or not to the end",
        false => "no faster split was found, and none is faster than the lower bound",
    };
    let line =
        |name: &str, value: String| format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")));
    let mut text = line(
        "slowest",
        format!(
            "stage {}: {} cycles for a micro-batch, {} of its operators and {} of its borders and the host",
            slowest.stage,
            styled(STRONG, grouped(slowest.cycles)),
            grouped(slowest.operator_cycles),
            grouped(slowest.cycles.saturating_sub(slowest.operator_cycles)),
        ),
    );
    let behind = slowest.cycles - slowest.next_cycles;
    text += &line(
        "next",
        format!(
            "{} cycles; if stage {} shrinks by more than {}, another is the slowest",
            grouped(slowest.next_cycles),
            slowest.stage,
            grouped(behind),
        ),
    );
    text += &line(
        "bound",
        format!(
            "{}; {verdict}; spread evenly, the operators alone take {} on each of {}",
            grouped(partition.lower_bound_cycles),
            grouped(slowest.even_cycles),
            plural(plan.stages(), "stage"),
        ),
    );
    text += "\n";
    let mut table = Table::new(&["cycles", "<largest operators of the slowest stage"]);
    for (operator, cycles) in &slowest.largest {
        table.row([grouped(*cycles), name(operator)]);
    }
    text + &table.render()
}

fn name(operator: &Operator) -> String {
    format!("{} {}", operator.op, operator.scope)
}

/// The cuts and their nearest alternatives.
fn table(cuts: &[Cut], objective: u64) -> String {
    let mut table = Table::new(&[
        "cut",
        "before",
        "behind",
        "then before",
        "then behind",
        "slowest stage",
        "<if moved across",
    ]);
    for cut in cuts {
        let mut first = vec![
            format!("{} | {}", cut.stage, cut.stage + 1),
            grouped(cut.loads[0]),
            grouped(cut.loads[1]),
        ];
        for (moved, arrow) in [(&cut.later, "<-"), (&cut.earlier, "->")] {
            let Some(moved) = moved else { continue };
            let mut cells = std::mem::replace(&mut first, vec![String::new(); 3]);
            cells.extend(alternative(moved, arrow, objective));
            table.row(cells);
        }
        if !first[0].is_empty() {
            first.push("no operator can cross alone".to_owned());
            table.row(first);
        }
    }
    table.render()
        + "Cycles of the stages before and behind each cut, and of both and of the slowest stage if the best single\n\
                      operator is moved across it: <- to the stage before it, -> to the stage behind it.\n"
}

fn alternative(moved: &MovedOperator, arrow: &str, objective: u64) -> [String; 4] {
    let more = moved.objective_cycles as f64 / objective.max(1) as f64 - 1.0;
    let fits = match moved.missing_bytes {
        0 => String::new(),
        missing => format!(", {} too little memory", output::bytes(missing)),
    };
    [
        grouped(moved.loads[0]),
        grouped(moved.loads[1]),
        format!(
            "{} ({:+.1} %)",
            grouped(moved.objective_cycles),
            more * 100.0
        ),
        format!("{arrow} {}{fits}", name(&moved.operator)),
    ]
}
