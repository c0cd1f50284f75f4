//! Wiring a graph together, scope by scope.

use std::sync::Arc;

use crate::graph::Node;
use crate::ops::{Input, Op, Param};
use crate::{Binding, DType, Graph, Shape, SpaceId, Spaces, TensorType, Types, Value};

/// Adds nodes inside a current scope. The first type error is kept and returned by
/// [`Builder::finish`], so that wiring code reads without error handling.
#[derive(Debug)]
pub struct Builder {
    graph: Graph,
    scope: Vec<String>,
    path: Arc<str>,
    error: Option<String>,
}

impl Builder {
    /// A builder of an empty graph over these spaces.
    pub fn new(name: &str, spaces: Spaces) -> Self {
        Builder {
            graph: Graph::new(name, spaces),
            scope: Vec::new(),
            path: "".into(),
            error: None,
        }
    }

    /// The graph's row spaces.
    pub fn spaces(&self) -> &Spaces {
        &self.graph.spaces
    }

    /// Runs `build` inside the scope `name`, which is appended to the current path with a dot.
    pub fn scoped<T>(&mut self, name: &str, build: impl FnOnce(&mut Self) -> T) -> T {
        self.scope.push(name.to_owned());
        self.path = self.scope.join(".").into();
        let result = build(self);
        self.scope.pop();
        self.path = self.scope.join(".").into();
        result
    }

    /// The current scope with `name` appended: the checkpoint's name of a parameter here.
    pub fn scoped_name(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// Adds a node and returns its first output.
    pub fn op(&mut self, op: impl Into<Op>, inputs: &[Value]) -> Value {
        self.typed(op, inputs, &[])
    }

    /// Adds a node with declared output types.
    pub fn typed(&mut self, op: impl Into<Op>, inputs: &[Value], declared: &[TensorType]) -> Value {
        let path = self.path.clone();
        match self.graph.add(op.into(), inputs, declared, &path) {
            Ok(node) => self.graph.value(node),
            Err(error) => {
                let place = if path.is_empty() {
                    "the graph".to_owned()
                } else {
                    path.to_string()
                };
                self.error.get_or_insert(format!("in {place}: {error}"));
                self.stand_in()
            }
        }
    }

    /// A value to go on with after an error, whose node has as many outputs as any op; the graph is
    /// dropped in the end.
    fn stand_in(&mut self) -> Value {
        let input = Input {
            name: "error".to_owned(),
        };
        let node = Node {
            op: input.into(),
            types: Types::from_elem(TensorType::fixed(DType::F32, []), 3),
            scope: self.path.clone(),
            forward: None,
            stage: None,
        };
        let node = self.graph.insert(node, &[]);
        self.graph.value(node)
    }

    /// The input `name` with one row for each row of `space`.
    pub fn input(&mut self, name: &str, dtype: DType, space: SpaceId, row: &[usize]) -> Value {
        let ty = TensorType::in_space(dtype, &self.graph.spaces, space, row);
        self.typed(
            Input {
                name: name.to_owned(),
            },
            &[],
            &[ty],
        )
    }

    /// The f32 parameter `name` of the current scope.
    pub fn param(&mut self, name: &str, shape: impl Into<Shape>) -> Value {
        let value = Binding::Tensor(self.scoped_name(name));
        self.typed(
            Param { value },
            &[],
            &[TensorType::fixed(DType::F32, shape)],
        )
    }

    /// The type of a value.
    pub fn ty(&self, value: Value) -> &TensorType {
        self.graph.ty(value)
    }

    /// The second output of the node of `value`.
    pub fn second(&self, value: Value) -> Value {
        Value { output: 1, ..value }
    }

    /// Lets a value leave the graph.
    pub fn output(&mut self, name: &str, value: Value) {
        self.graph.add_output(name, value);
    }

    /// The graph.
    ///
    /// # Errors
    /// The first type error, with the scope it arose in.
    pub fn finish(self) -> Result<Graph, String> {
        match self.error {
            None => Ok(self.graph),
            Some(error) => Err(error),
        }
    }
}
