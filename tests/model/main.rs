//! Whole models: compiled, run and compared.

mod branches;
mod determinism;
mod golden;
mod gradients;
mod groups;
mod ledger;
mod planning;
mod sharding;
mod support;
mod train;
mod train_mixed;
