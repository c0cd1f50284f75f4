//! tmp
use lxpod_ir::Graph;
#[derive(Clone, Debug, Default)]
pub struct UpdateOptions;
pub fn update_graph(_: &Graph, _: &UpdateOptions) -> Result<Graph, crate::PassError> { unimplemented!() }
