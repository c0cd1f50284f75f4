//! The runtime of lxpod.
