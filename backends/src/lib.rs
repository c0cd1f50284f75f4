//! Backends: what runs or plays a plan.
