//! A report as one page without anything external: pipeline timeline, memory, tables.

mod layout;

use std::fmt::Write;

use lxpod_backends::sim::{Activity, Interval, Simulation};
use lxpod_passes::schedule::Phase;

use super::output::{bytes, count, grouped, percent, seconds};
use super::predicted::error_note;
use super::report::Report;

/// Width of the drawings.
const WIDTH: f64 = 1000.0;
/// Height of one tile's row.
const ROW: f64 = 18.0;
/// Room for names left of a drawing.
const MARGIN: f64 = 150.0;
/// The most rectangles of the timeline.
const MOST_RECTANGLES: usize = 20_000;

const STYLE: &str = "\
:root{color-scheme:light dark;--fg:#1c2330;--bg:#fff;--line:#d5dae3;--soft:#667085}\
@media(prefers-color-scheme:dark){:root{--fg:#e6e9ef;--bg:#14181f;--line:#333b48;--soft:#98a2b3}}\
body{font:14px/1.5 system-ui,sans-serif;color:var(--fg);background:var(--bg);max-width:1200px;margin:2rem auto;padding:0 1rem}\
table{border-collapse:collapse;font-variant-numeric:tabular-nums}td,th{padding:.2rem .7rem;border-bottom:1px solid var(--line);text-align:right}\
th:first-child,td:first-child,.left{text-align:left}svg{width:100%;height:auto}text{fill:var(--fg);font-size:11px}\
.soft{color:var(--soft)}.key{display:inline-block;width:.8em;height:.8em;margin:0 .3em 0 1em;border-radius:2px}\
.host{fill:#b58900;background:#b58900}.compute{fill:#3572c6;background:#3572c6}.exchange{fill:#2aa198;background:#2aa198}\
.sync{fill:#9aa4b2;background:#9aa4b2}.transfer{fill:#cb4b83;background:#cb4b83}.weights{fill:#3572c6;background:#3572c6}\
.activations{fill:#2aa198;background:#2aa198}.host_io{fill:#b58900;background:#b58900}.code{fill:#7a6fd0;background:#7a6fd0}\
.collectives{fill:#d2691e;background:#d2691e}.weight_update{fill:#5b9e3a;background:#5b9e3a}\
.backward{fill-opacity:.55;opacity:.55}.reserved{fill:#9aa4b2;background:#9aa4b2}.axis{stroke:var(--line)}.buffer{stroke:var(--fg);stroke-opacity:.4;stroke-width:.4}.limit{stroke:#d33;stroke-dasharray:4 3}";

/// The page.
pub(crate) fn page(report: &Report<'_>) -> String {
    let plan = report.plan();
    let title = escaped(&format!(
        "{} on {}",
        plan.provenance.model, plan.target.name
    ));
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\
         <meta name=\"viewport\" content=\"width=device-width\"><title>lxpod: {title}</title>\
         <style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n"
    );
    page += &summary(report);
    page += &timeline(report);
    page += &memory(report);
    page += &layout::layout(report);
    page += &tiles(report);
    let provenance = &plan.provenance;
    let _ = write!(
        page,
        "<p class=\"soft\">lxpod {}, configuration sha256 {}, options {}</p>\n</body></html>\n",
        escaped(&provenance.version),
        escaped(&provenance.config_hash),
        escaped(&provenance.options.to_string()),
    );
    page
}

fn summary(report: &Report<'_>) -> String {
    let simulation = report.simulation();
    let predicted = simulation.predict();
    let mut text = format!(
        "<p><b>Predicted {:.1} samples/s</b>: a step of {} micro-batches a replica takes {}; bottleneck tile {}, \
         bubble {}.</p>\n<p class=\"soft\">{}</p>\n<table><tr><th>critical path</th><th>time</th><th>share</th></tr>",
        predicted.samples_per_second,
        simulation.micro_batches(),
        seconds(predicted.step_seconds),
        predicted.bottleneck_tile,
        percent(predicted.bubble_fraction),
        escaped(error_note(report.plan().target.machine)),
    );
    for (name, part) in predicted.breakdown.parts() {
        let share = percent(part / predicted.step_seconds.max(f64::MIN_POSITIVE));
        let _ = write!(
            text,
            "<tr><td>{name}</td><td>{}</td><td>{share}</td></tr>",
            seconds(part)
        );
    }
    text + "</table>\n"
}

/// The programs of the first replica over one step; as many micro-batches as fit, and the update if
/// all do.
fn timeline(report: &Report<'_>) -> String {
    let simulation = report.simulation();
    let phases = if simulation.schedule().training { 2 } else { 1 };
    let programs = phases * simulation.schedule().stages();
    let shown = (MOST_RECTANGLES / (5 * programs).max(1)).max(1);
    let parts = || {
        let end = |part: &Interval| Some(simulation.members(&part.slot?).end);
        let last = move |part: &Interval| end(part).unwrap_or(simulation.micro_batches());
        simulation
            .intervals()
            .filter(move |part| last(part) <= shown)
    };
    let end = parts()
        .map(|part| part.start + part.cycles)
        .max()
        .unwrap_or(1)
        .max(1);
    let scale = (WIDTH - MARGIN) / end as f64;
    let height = ROW * (simulation.schedule().tiles + 1) as f64;
    let mut text = format!("<h2>One step</h2><p>{}", legend(activities(simulation)));
    if simulation.schedule().training {
        text += &legend(["backward"]);
    }
    if shown < simulation.micro_batches() {
        let _ = write!(
            text,
            " <span class=\"soft\">(the first {shown} micro-batches)</span>"
        );
    }
    let _ = write!(
        text,
        "</p>\n<svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">"
    );
    names(&mut text, &simulation.tile_labels(&report.labels()));
    for part in parts() {
        rectangle(&mut text, simulation, &part, scale);
    }
    let last = height - 4.0;
    let _ = write!(
        text,
        "<text x=\"{MARGIN}\" y=\"{last}\">0</text><text x=\"{WIDTH}\" y=\"{last}\" text-anchor=\"end\">{} cycles</text>",
        grouped(end)
    );
    text + "</svg>\n"
}

/// The names of what the tiles of a step do.
fn activities(simulation: &Simulation) -> Vec<&'static str> {
    let update = Activity::OF_UPDATE.into_iter();
    let update = update.filter(|_| simulation.schedule().training);
    let all = Activity::OF_SLOT.into_iter().chain(update);
    all.map(Activity::name).collect()
}

/// Micro-batches that are computed together.
fn named(members: &std::ops::Range<usize>) -> String {
    match members.len() {
        1 => format!("micro-batch {}", members.start),
        _ => format!("micro-batches {} to {}", members.start, members.end - 1),
    }
}

/// An interval of the timeline; paler if backward.
fn rectangle(text: &mut String, simulation: &Simulation, part: &Interval, scale: f64) {
    let class = match part.phase() {
        Phase::Backward => " backward",
        Phase::Forward | Phase::Update => "",
    };
    let of = match part.slot {
        Some(slot) => format!(
            "stage {}, {} {}",
            slot.stage,
            named(&simulation.members(&slot)),
            slot.phase.name()
        ),
        None => "update".to_owned(),
    };
    let _ = write!(
        text,
        "<rect class=\"{0}{class}\" x=\"{1:.2}\" y=\"{2:.1}\" width=\"{3:.2}\" height=\"{4:.1}\"><title>tile {5}, {of}: \
         {0} {6} cycles</title></rect>",
        part.activity.name(),
        MARGIN + part.start as f64 * scale,
        part.tile as f64 * ROW + 2.0,
        (part.cycles as f64 * scale).max(0.05),
        ROW - 4.0,
        part.tile,
        grouped(part.cycles),
    );
}

/// The planned bytes of each tile by category, against its capacity.
fn memory(report: &Report<'_>) -> String {
    const PARTS: [&str; 9] = [
        "weights",
        "optimizer",
        "accumulators",
        "stash",
        "activations",
        "transfer",
        "host_io",
        "code",
        "reserved",
    ];
    let tiles = &report.plan().tiles;
    let most = tiles
        .iter()
        .map(|tile| tile.memory.total.max(tile.memory.capacity))
        .max();
    let scale = (WIDTH - MARGIN) / most.unwrap_or(1).max(1) as f64;
    let height = ROW * tiles.len() as f64;
    let mut text = format!(
        "<h2>Memory of the tiles</h2><p>{} <span class=\"soft\">(dashed: capacity)</span></p>\n\
         <svg viewBox=\"0 0 {WIDTH} {height}\" role=\"img\">",
        legend(PARTS)
    );
    names(&mut text, &report.labels());
    for (stage, tile) in tiles.iter().enumerate() {
        let memory = &tile.memory;
        let sizes = [
            memory.weights,
            memory.optimizer,
            memory.accumulators,
            memory.stash,
            memory.activations,
            memory.transfer,
            memory.host_io,
            memory.code,
            memory.reserved,
        ];
        let mut x = MARGIN;
        for (name, size) in PARTS.into_iter().zip(sizes) {
            let width = size as f64 * scale;
            let _ = write!(
                text,
                "<rect class=\"{name}\" x=\"{x:.2}\" y=\"{:.1}\" width=\"{width:.2}\" height=\"{:.1}\"><title>tile {stage}, \
                 {name}: {}</title></rect>",
                stage as f64 * ROW + 2.0,
                ROW - 4.0,
                bytes(size),
            );
            x += width;
        }
        let limit = MARGIN + memory.capacity as f64 * scale;
        let (top, bottom) = (stage as f64 * ROW, (stage + 1) as f64 * ROW);
        let _ = write!(
            text,
            "<line class=\"limit\" x1=\"{limit:.2}\" x2=\"{limit:.2}\" y1=\"{top}\" y2=\"{bottom}\"/>"
        );
    }
    text + "</svg>\n"
}

fn tiles(report: &Report<'_>) -> String {
    let mut text = "<h2>Tiles of a replica</h2>\n<table><tr><th>stage</th><th class=\"left\">holds</th><th>parameters</th>\
                    <th>cycles</th><th>busy</th><th>total</th><th>capacity</th></tr>"
        .to_owned();
    for (stage, label) in report.labels().iter().enumerate() {
        let tile = report.plan().schedule.tile_of(stage);
        let memory = &report.plan().tiles[tile].memory;
        let parameters: u64 = report.stage_parameters(stage);
        let _ = write!(
            text,
            "<tr><td>{stage}</td><td class=\"left\">{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td></tr>",
            escaped(label),
            count(parameters),
            grouped(report.simulation().stage_cycles(stage)),
            percent(report.simulation().utilisation(tile)),
            bytes(memory.total),
            bytes(memory.capacity),
        );
    }
    text + "</table>\n"
}

fn names(text: &mut String, labels: &[String]) {
    for (stage, label) in labels.iter().enumerate() {
        let short: String = label.chars().take(18).collect();
        let y = (stage as f64 + 0.7) * ROW;
        let _ = write!(
            text,
            "<text x=\"0\" y=\"{y:.1}\">{stage} {}</text>",
            escaped(&short)
        );
    }
}

fn legend(names: impl IntoIterator<Item = &'static str>) -> String {
    let key = |name| format!("<span class=\"key {name}\"></span>{name}");
    names.into_iter().map(key).collect()
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}
