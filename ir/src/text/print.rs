//! Graph to text.

use std::fmt::{self, Write};

use serde_json::{Map, Number, Value as Json};

use super::types::{name_text, quoted, type_text};
use crate::ops::Op;
use crate::rows::{Layout, RowSpace};
use crate::{Graph, NodeId, Spaces, Value};

/// The text form of a graph.
pub fn print(graph: &Graph) -> String {
    let mut text = format!("graph @{} {{\n", name_text(&graph.name));
    for (_, space) in graph.spaces.iter() {
        let _ = writeln!(text, "  {}", rows_text(space, &graph.spaces));
    }
    let numbers = Numbers::new(graph);
    for &id in &numbers.order {
        let _ = writeln!(text, "  {}", node_text(graph, &numbers, id));
    }
    for output in graph.outputs() {
        let value = numbers.name(output.value);
        let _ = writeln!(text, "  return {value} as {}", quoted(&output.name));
    }
    text.push_str("}\n");
    text
}

/// The line of one node in [`print()`]'s text.
pub fn print_node(graph: &Graph, id: NodeId) -> String {
    node_text(graph, &Numbers::new(graph), id)
}

/// A value as [`print()`]'s text names it, and its type: `%7: f16[2,3]`.
pub fn print_value(graph: &Graph, value: Value) -> String {
    let name = Numbers::new(graph).name(value);
    format!("{name}: {}", type_text(graph.ty(value), &graph.spaces))
}

impl fmt::Display for Graph {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&print(self))
    }
}

/// The numbers of values, counted in the order of [`Graph::topo`]; nodes on a cycle come last.
pub(crate) struct Numbers {
    pub(crate) order: Vec<NodeId>,
    first: Vec<Option<usize>>,
}

impl Numbers {
    pub(crate) fn new(graph: &Graph) -> Self {
        let mut order = graph.topo();
        let mut sorted = vec![false; graph.bound()];
        order.iter().for_each(|id| sorted[id.index()] = true);
        order.extend(graph.nodes().filter(|id| !sorted[id.index()]));
        let mut first = vec![None; graph.bound()];
        let mut next = 0;
        for id in &order {
            first[id.index()] = Some(next);
            next += graph.node(*id).types.len();
        }
        Numbers { order, first }
    }

    /// The name of a value, `%?` for one of a node that is not in the graph.
    pub(crate) fn name(&self, value: Value) -> String {
        match self.first.get(value.node.index()) {
            Some(Some(first)) => format!("%{}", first + usize::from(value.output)),
            _ => "%?".to_owned(),
        }
    }
}

/// The line of one node, with values named by `numbers`.
pub(crate) fn node_text(graph: &Graph, numbers: &Numbers, id: NodeId) -> String {
    let node = graph.node(id);
    let outputs = (0..node.types.len()).map(|output| Value {
        node: id,
        output: output as u16,
    });
    let join = |items: Vec<String>| items.join(", ");
    let names = join(outputs.map(|value| numbers.name(value)).collect());
    let mut text = format!("{names} = {}", node.op.name());
    let operands: Vec<String> = graph
        .inputs(id)
        .iter()
        .map(|&value| numbers.name(value))
        .collect();
    if !operands.is_empty() {
        let _ = write!(text, " {}", join(operands));
    }
    text.push_str(&attributes_text(&node.op));
    let types = node.types.iter().map(|ty| type_text(ty, &graph.spaces));
    let _ = write!(text, " : {}", join(types.collect()));
    if !node.scope.is_empty() {
        let _ = write!(text, " in {}", quoted(&node.scope));
    }
    if let Some(forward) = node.forward {
        let forward = Value {
            node: forward,
            output: 0,
        };
        let _ = write!(text, " of {}", numbers.name(forward));
    }
    if let Some(stage) = node.stage {
        let _ = write!(text, " on {stage}");
    }
    text
}

fn rows_text(space: &RowSpace, spaces: &Spaces) -> String {
    let name = |id| name_text(&spaces.get(id).name);
    let layout = match &space.layout {
        Layout::Entities => String::new(),
        Layout::Segments { owner, longest } => format!(" by {}, {longest} each", name(*owner)),
        Layout::Union(parts) => {
            let parts: Vec<String> = parts.iter().map(|&part| name(part)).collect();
            format!(" of {}", parts.join(", "))
        }
    };
    format!(
        "rows {} = {}{layout}",
        name_text(&space.name),
        space.capacity
    )
}

/// The attributes of an op in braces with a space before, or nothing. Numbers are as short as they
/// can be and still give the same op.
pub(crate) fn attributes_text(op: &Op) -> String {
    let exact = op.attributes();
    let short = shorten_fields(&exact);
    let same = short == exact
        || Op::from_attributes(op.name(), short.clone()).is_ok_and(|parsed| parsed == *op);
    let mut fields: Vec<(String, Json)> = if same { short } else { exact }.into_iter().collect();
    fields.sort_by(|(a, _), (b, _)| a.cmp(b));
    if fields.is_empty() {
        return String::new();
    }
    let fields: Vec<String> = fields
        .iter()
        .map(|(key, value)| format!("{key}={}", value_text(value)))
        .collect();
    format!(" {{{}}}", fields.join(", "))
}

/// Numbers that are an `f32` in the fewest digits an `f32` needs.
fn shorten(value: &Json) -> Json {
    match value {
        Json::Number(number) if number.is_f64() => Json::Number(shorten_number(number)),
        Json::Array(items) => items.iter().map(shorten).collect(),
        Json::Object(fields) => shorten_fields(fields).into(),
        _ => value.clone(),
    }
}

fn shorten_fields(fields: &Map<String, Json>) -> Map<String, Json> {
    let fields = fields.iter();
    fields
        .map(|(key, value)| (key.clone(), shorten(value)))
        .collect()
}

fn shorten_number(number: &Number) -> Number {
    let wide = number.as_f64().unwrap_or_default();
    let narrow = wide as f32;
    let digits = narrow.to_string().parse().ok();
    digits
        .filter(|_| f64::from(narrow) == wide)
        .and_then(Number::from_f64)
        .unwrap_or_else(|| number.clone())
}

/// Strings that are one word stand bare.
fn value_text(value: &Json) -> String {
    match value {
        Json::String(word) if is_word(word) => word.clone(),
        Json::Array(items) => {
            let items: Vec<String> = items.iter().map(Json::to_string).collect();
            format!("[{}]", items.join(", "))
        }
        value => value.to_string(),
    }
}

fn is_word(text: &str) -> bool {
    let letter = |byte: u8| byte.is_ascii_alphabetic() || byte == b'_';
    text.bytes().next().is_some_and(letter)
        && text
            .bytes()
            .all(|byte| letter(byte) || byte.is_ascii_digit())
        && !matches!(text, "true" | "false" | "null")
}
