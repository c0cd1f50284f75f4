//! Text to graph.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use serde_json::{Map, Value as Json};

use super::cursor::Cursor;
use super::types::{parse_space_name, parse_type};
use super::{ParseError, ParsedLines};
use crate::graph::{Node, User};
use crate::ops::Op;
use crate::rows::{Layout, RowSpace};
use crate::{Graph, NodeId, Spaces, Types, Value};

/// The most operands or outputs of one node.
const MAX_SLOTS: usize = u16::MAX as usize;

/// The most row spaces of a graph.
const MAX_SPACES: usize = 4096;

/// Reads the one graph of a text, as it is written; [`crate::verify()`] judges it.
///
/// # Errors
/// The first place that is no well-formed text.
pub fn parse(source: &str) -> Result<Graph, ParseError> {
    parse_with_lines(source).map(|(graph, _)| graph)
}

/// [`parse`], and where everything stands, for [`super::render_verify_errors`].
///
/// # Errors
/// As [`parse`].
pub fn parse_with_lines(source: &str) -> Result<(Graph, ParsedLines), ParseError> {
    let mut parser = Parser {
        cursor: Cursor::new(source),
        graph: Graph::default(),
        values: HashMap::new(),
        uses: Vec::new(),
        forwards: Vec::new(),
        returns: Vec::new(),
        scopes: HashMap::new(),
        lines: ParsedLines::default(),
    };
    parser.graph()?;
    parser.connect()?;
    Ok((parser.graph, parser.lines))
}

/// A value's name without `%`, and where it is used.
type Use<'s> = (&'s str, Range<usize>);

struct Parser<'s> {
    cursor: Cursor<'s>,
    graph: Graph,
    values: HashMap<&'s str, Value>,
    uses: Vec<(User, Use<'s>)>,
    forwards: Vec<(NodeId, Use<'s>)>,
    returns: Vec<(String, Use<'s>)>,
    scopes: HashMap<String, Arc<str>>,
    lines: ParsedLines,
}

impl<'s> Parser<'s> {
    fn graph(&mut self) -> Result<(), ParseError> {
        self.cursor.expect_word("graph")?;
        self.cursor.expect('@')?;
        let start = self.cursor.start();
        self.graph.name = self.cursor.name("the graph's name")?;
        self.lines.name = start..self.cursor.end();
        self.cursor.expect('{')?;
        while !self.cursor.eat('}') {
            self.statement()?;
            if !self.cursor.at_line_end() {
                return Err(self.cursor.unexpected("the end of the line"));
            }
        }
        match self.cursor.peek() {
            None => Ok(()),
            Some(_) => Err(self.cursor.unexpected("the end of the text")),
        }
    }

    fn statement(&mut self) -> Result<(), ParseError> {
        if self.cursor.peek() == Some('%') {
            self.node()
        } else if self.cursor.eat_word("rows") {
            self.rows()
        } else if self.cursor.eat_word("return") {
            self.output()
        } else {
            Err(self.cursor.unexpected("`%`, `rows`, `return` or `}`"))
        }
    }

    /// `NAME = CAPACITY`, `… by OWNER, LONGEST each` or `… of PART, PART`, after `rows`.
    fn rows(&mut self) -> Result<(), ParseError> {
        let start = self.cursor.start();
        let name = self.cursor.name("the row space's name")?;
        if self.graph.spaces.find(&name).is_some() {
            let message = format!("row space `{name}` is declared twice");
            return Err(self.cursor.error(start..self.cursor.end(), message));
        }
        self.cursor.expect('=')?;
        let capacity = self.cursor.number("the capacity")?;
        let layout = self.layout()?;
        let space = RowSpace {
            name,
            capacity,
            layout,
        };
        match self.graph.spaces.try_declare(space) {
            Ok(_) => Ok(()),
            Err(error) => Err(self.cursor.error(start..self.cursor.end(), error)),
        }
    }

    fn layout(&mut self) -> Result<Layout, ParseError> {
        if self.cursor.eat_word("by") {
            let owner = parse_space_name(&mut self.cursor, &self.graph.spaces)?;
            self.cursor.expect(',')?;
            let longest = self.cursor.number("the length of the longest segment")?;
            self.cursor.expect_word("each")?;
            Ok(Layout::Segments { owner, longest })
        } else if self.cursor.eat_word("of") {
            let mut parts = vec![parse_space_name(&mut self.cursor, &self.graph.spaces)?];
            while self.cursor.eat(',') {
                parts.push(parse_space_name(&mut self.cursor, &self.graph.spaces)?);
            }
            Ok(Layout::Union(parts))
        } else {
            Ok(Layout::Entities)
        }
    }

    /// `%VALUE as "NAME"`, after `return`.
    fn output(&mut self) -> Result<(), ParseError> {
        let (value, span) = self.cursor.value()?;
        self.cursor.expect_word("as")?;
        let name = self.cursor.string("the output's name in quotes")?;
        self.lines.outputs.push(span.start..self.cursor.end());
        self.returns.push((name, (value, span)));
        Ok(())
    }

    fn node(&mut self) -> Result<(), ParseError> {
        let start = self.cursor.start();
        let names = self.names()?;
        self.cursor.expect('=')?;
        let op_start = self.cursor.start();
        let op = self.cursor.word("an op")?;
        let op_span = op_start..self.cursor.end();
        if !Op::NAMES.contains(&op) {
            let message = format!("unknown op `{op}`; the ops are {}", Op::NAMES.join(", "));
            return Err(self.cursor.error(op_span, message));
        }
        let operands = self.operands()?;
        let op = Op::from_attributes(op, self.attributes()?)
            .map_err(|error| self.cursor.error(op_start..self.cursor.end(), error))?;
        let types = self.types(names.len())?;
        let scope = self.scope()?;
        let forward = match self.cursor.eat_word("of") {
            true => Some(self.cursor.value()?),
            false => None,
        };
        let stage = match self.cursor.eat_word("on") {
            true => Some(self.cursor.number("the stage")?),
            false => None,
        };
        let node = Node {
            op,
            types,
            scope,
            forward: None,
            stage,
        };
        let id = self.graph.insert(node, &[]);
        self.forwards.extend(forward.map(|value| (id, value)));
        self.lines.nodes.insert(id, start..self.cursor.end());
        self.define(id, names, operands)
    }

    /// Names a node's values, and notes what it uses.
    fn define(
        &mut self,
        id: NodeId,
        names: Vec<Use<'s>>,
        operands: Vec<Use<'s>>,
    ) -> Result<(), ParseError> {
        for (output, (name, span)) in names.into_iter().enumerate() {
            let value = Value {
                node: id,
                output: output as u16,
            };
            if self.values.insert(name, value).is_some() {
                let message = format!("value `%{name}` is defined twice");
                return Err(self.cursor.error(span, message));
            }
        }
        let uses = operands.into_iter().enumerate();
        self.uses.extend(uses.map(|(input, operand)| {
            let user = User {
                node: id,
                input: input as u16,
            };
            (user, operand)
        }));
        Ok(())
    }

    /// Values separated by commas, at least one.
    fn names(&mut self) -> Result<Vec<Use<'s>>, ParseError> {
        let mut names = vec![self.cursor.value()?];
        while self.cursor.eat(',') {
            names.push(self.cursor.value()?);
            if names.len() > MAX_SLOTS {
                let (_, span) = self.cursor.value()?;
                let message = format!("more than {MAX_SLOTS} values in one list");
                return Err(self.cursor.error(span, message));
            }
        }
        Ok(names)
    }

    fn operands(&mut self) -> Result<Vec<Use<'s>>, ParseError> {
        match self.cursor.peek() {
            Some('%') => self.names(),
            _ => Ok(Vec::new()),
        }
    }

    /// `{key=value, …}`, if there are any.
    fn attributes(&mut self) -> Result<Map<String, Json>, ParseError> {
        let mut attributes = Map::new();
        if !self.cursor.eat('{') || self.cursor.eat('}') {
            return Ok(attributes);
        }
        loop {
            let start = self.cursor.start();
            let key = self.cursor.word("an attribute's name")?;
            let span = start..self.cursor.end();
            self.cursor.expect('=')?;
            let value = self.attribute_value()?;
            if attributes.insert(key.to_owned(), value).is_some() {
                let message = format!("attribute `{key}` is given twice");
                return Err(self.cursor.error(span, message));
            }
            if self.cursor.eat('}') {
                return Ok(attributes);
            }
            if !self.cursor.eat(',') {
                return Err(self.cursor.unexpected("`,` or `}`"));
            }
        }
    }

    fn attribute_value(&mut self) -> Result<Json, ParseError> {
        match self.cursor.peek() {
            Some(next) if next.is_ascii_alphabetic() || next == '_' => {
                Ok(match self.cursor.word("a value")? {
                    "true" => Json::Bool(true),
                    "false" => Json::Bool(false),
                    "null" => Json::Null,
                    word => Json::from(word),
                })
            }
            _ => self.cursor.json(),
        }
    }

    /// `: TYPE, …`, as many as there are outputs.
    fn types(&mut self, outputs: usize) -> Result<Types, ParseError> {
        self.cursor.expect(':')?;
        let start = self.cursor.start();
        let mut types = Types::new();
        loop {
            types.push(parse_type(&mut self.cursor, &self.graph.spaces)?);
            if !self.cursor.eat(',') {
                break;
            }
        }
        if types.len() == outputs {
            Ok(types)
        } else {
            let message = format!("{} types for {outputs} outputs", types.len());
            Err(self.cursor.error(start..self.cursor.end(), message))
        }
    }

    /// `in "SCOPE"`, if given.
    fn scope(&mut self) -> Result<Arc<str>, ParseError> {
        let name = match self.cursor.eat_word("in") {
            true => self.cursor.string("the scope in quotes")?,
            false => String::new(),
        };
        if let Some(scope) = self.scopes.get(&name) {
            return Ok(scope.clone());
        }
        let scope: Arc<str> = name.as_str().into();
        self.scopes.insert(name, scope.clone());
        Ok(scope)
    }

    /// Wires operands, forward nodes and outputs, once every value is known.
    fn connect(&mut self) -> Result<(), ParseError> {
        for (user, operand) in std::mem::take(&mut self.uses) {
            let value = self.resolve(operand)?;
            self.graph.connect(user, value);
        }
        for (id, value) in std::mem::take(&mut self.forwards) {
            let forward = self.resolve(value)?.node;
            self.graph.node_mut(id).forward = Some(forward);
        }
        for (name, operand) in std::mem::take(&mut self.returns) {
            let value = self.resolve(operand)?;
            self.graph.add_output(&name, value);
        }
        Ok(())
    }

    fn resolve(&self, (name, span): Use<'s>) -> Result<Value, ParseError> {
        self.values.get(name).copied().ok_or_else(|| {
            let message = format!("value `%{name}` is not defined");
            self.cursor.error(span, message)
        })
    }
}

impl Spaces {
    /// Declares a space of a new name, if it is well-formed.
    fn try_declare(&mut self, space: RowSpace) -> Result<(), String> {
        if self.iter().count() >= MAX_SPACES {
            return Err(format!("more than {MAX_SPACES} row spaces"));
        }
        self.check(&space)?;
        self.declare(space);
        Ok(())
    }
}
