//! What a product is added to.

use super::View;

/// What is added to the finished sums of a product.
#[derive(Clone, Copy)]
pub enum Addend<'a> {
    /// Nothing.
    Nothing,
    /// +0: what a view of zeros would give, read nowhere.
    Zeros,
    /// These; \[m, n\].
    View(View<'a>),
}

impl<'a> Addend<'a> {
    /// The view, if there is one.
    pub(super) fn view(self) -> Option<View<'a>> {
        match self {
            Addend::View(view) => Some(view),
            Addend::Nothing | Addend::Zeros => None,
        }
    }
}
