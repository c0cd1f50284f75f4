//! The `lxpod` command.

fn main() {}
