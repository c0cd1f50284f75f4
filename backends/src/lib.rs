//! Backends: what runs or plays a plan.

pub mod reference;
