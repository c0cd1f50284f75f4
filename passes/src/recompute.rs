//! tmp
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Recompute { #[default] None, Layer, Auto }
impl Recompute { pub fn name(self) -> &'static str { match self { Recompute::None => "none", Recompute::Layer => "layer", Recompute::Auto => "auto" } } }
