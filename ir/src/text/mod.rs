//! The text form of graphs, `.lx`.
//!
//! ```text
//! graph @qa {                                             ; a comment ends with the line
//!   rows sample = 8
//!   rows text = 160 by sample, 20 each                    ; segments of at most 20 rows
//!   rows text+box = 448 of text, box                      ; a union
//!   %0 = input {name="input_ids"} : i32[text:160]
//!   %1 = param {value="embeddings.weight"} : f32[30522,768]
//!   %2 = gather_rows %1, %0 : f32[text:160,768] in "lxmert.embeddings" on 3
//!   return %2 as "embedding_output"
//! }
//! ```
//!
//! A node is one line: the names of its outputs, the op, the operands, the attributes, a type for
//! each output, the scope, the forward node of a backward one and the stage. An attribute is JSON, or a bare word for a string. Names
//! that are no plain words stand in double quotes, as JSON strings do.
//!
//! Parsing builds the graph as it is written: operands may be defined further down, and types are
//! not checked, so that [`crate::verify()`] can judge broken graphs too. [`print()`] numbers values in
//! the order of [`crate::Graph::topo`]; parsing what it printed and printing that again gives the same
//! text.

mod cursor;
mod error;
mod parse;
mod print;
mod types;

use std::collections::HashMap;
use std::ops::Range;

pub use error::{ParseError, render_verify_errors};
pub use parse::{parse, parse_with_lines};
pub(crate) use print::{Numbers, attributes_text, node_text};
pub use print::{print, print_node, print_value};

use crate::NodeId;

/// Where the nodes and outputs of a parsed graph stand in its source.
#[derive(Clone, Debug, Default)]
pub struct ParsedLines {
    nodes: HashMap<NodeId, Range<usize>>,
    outputs: Vec<Range<usize>>,
    name: Range<usize>,
}

impl ParsedLines {
    /// The bytes of a node's line.
    pub fn node(&self, node: NodeId) -> Option<Range<usize>> {
        self.nodes.get(&node).cloned()
    }

    /// The bytes of the line of an output, by its position in [`crate::Graph::outputs`].
    pub fn output(&self, output: usize) -> Option<Range<usize>> {
        self.outputs.get(output).cloned()
    }

    /// The bytes of the graph's name.
    pub fn name(&self) -> Range<usize> {
        self.name.clone()
    }
}

/// Whether a name needs no quotes.
fn is_plain(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|first| first.is_ascii_alphabetic() || first == b'_')
        && bytes.all(is_plain_byte)
}

fn is_plain_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'+' | b'-' | b'/')
}
