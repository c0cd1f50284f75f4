//! The tensors of a file.

use std::path::Path;

use lxpod_runtime::tensors::TensorFile;
use serde_json::json;

use crate::cli::Global;
use crate::cli::error::Result;
use crate::cli::output::{self, bytes, plural};
use crate::cli::table::Table;

pub(super) fn show(path: &Path, global: &Global) -> Result<()> {
    let file = TensorFile::open(path)?;
    let infos = || {
        file.names()
            .filter_map(|name| file.get(name).map(|info| (name, info)))
    };
    if global.json {
        let tensors = infos().map(|(name, info)| {
            json!({"name": name, "dtype": info.dtype.to_string(), "shape": info.shape, "bytes": info.bytes()})
        });
        return output::json(&json!({"tensors": tensors.collect::<Vec<_>>()}));
    }
    let mut table = Table::new(&["<tensor", "<type", "<shape", "size"]);
    for (name, info) in infos() {
        table.row([
            name.to_owned(),
            info.dtype.to_string(),
            format!("{:?}", info.shape),
            bytes(info.bytes()),
        ]);
    }
    let total = infos().map(|(_, info)| info.bytes()).sum();
    output::print(&format!(
        "{}{}, {}\n",
        table.render(),
        plural(infos().count(), "tensor"),
        bytes(total)
    ))
}
