//! What a plan holds.

use lxpod_passes::plan::Plan;
use serde_json::json;

use crate::cli::Global;
use crate::cli::error::Result;
use crate::cli::options::Use;
use crate::cli::output::{self, HEADING, plural, styled};
use crate::cli::report::Report;

pub(super) fn show(plan: &Plan, global: &Global) -> Result<()> {
    let used = Use {
        micro_batches: 1,
        schedule: "gpipe",
    };
    let report = Report::new(plan, used, None);
    if global.json {
        let mut document = report.document();
        document["provenance"] = json!(plan.provenance);
        return output::json(&document);
    }
    let provenance = &plan.provenance;
    let line =
        |name: &str, value: &str| format!("{}  {value}\n", styled(HEADING, format!("{name:<9}")));
    let text = line("made by", &format!("lxpod {}", provenance.version))
        + &line("config", &format!("sha256 {}", provenance.config_hash))
        + &line(
            "weights",
            &format!(
                "{} expected of the checkpoint",
                plural(provenance.expected.len(), "tensor")
            ),
        )
        + &report.text();
    output::print(&text)
}
