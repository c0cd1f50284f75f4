//! What the functions of an op are given.

use super::Operand;
use crate::rows::{Extents, Layout, SpaceId, Spaces};
use crate::tensor::{Scalar, Tensor};
use crate::types::{TensorType, Types};
use crate::{DType, Shape};

/// Operand types for a type rule or a cost.
#[derive(Clone, Copy, Debug)]
pub struct Infer<'a> {
    /// The operands' types.
    pub inputs: &'a [TensorType],
    /// The outputs' types as declared, or none yet.
    pub declared: &'a [TensorType],
    /// The graph's row spaces.
    pub spaces: &'a Spaces,
    /// The run whose shapes the types have; none where they have their capacities.
    pub extents: Option<&'a Extents>,
}

/// Work of one node, at full capacity or in one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Floating-point operations; a multiply-add counts two.
    pub flops: u64,
    /// Bytes of operands read.
    pub read: u64,
    /// Bytes of outputs written.
    pub written: u64,
}

impl<'a> Infer<'a> {
    /// Operand `index`, which must be a float.
    pub fn float(&self, index: usize, name: &str) -> Result<&'a TensorType, String> {
        let ty = &self.inputs[index];
        if ty.dtype.is_float() {
            Ok(ty)
        } else {
            Err(format!("{name} must be a float, is {}", self.show(ty)))
        }
    }

    /// Operand `index`, which must be i32.
    pub fn integer(&self, index: usize, name: &str) -> Result<&'a TensorType, String> {
        let ty = &self.inputs[index];
        if ty.dtype == DType::I32 {
            Ok(ty)
        } else {
            Err(format!("{name} must be i32, is {}", self.show(ty)))
        }
    }

    /// Operand `index`, which must be a float parameter-like vector of that length.
    pub fn vector(&self, index: usize, name: &str, length: usize) -> Result<(), String> {
        let ty = self.float(index, name)?;
        if *ty.shape == [length] && ty.rows.is_none() {
            Ok(())
        } else {
            Err(format!(
                "{name} must be a vector of {length}, is {}",
                self.show(ty)
            ))
        }
    }

    /// The type of float output `index`: the declared float dtype, else `default`.
    pub fn output(
        &self,
        index: usize,
        rows: Option<SpaceId>,
        shape: Shape,
        default: DType,
    ) -> TensorType {
        let declared = self
            .declared
            .get(index)
            .map(|ty| ty.dtype)
            .filter(|dtype| dtype.is_float());
        TensorType {
            dtype: declared.unwrap_or(default),
            rows,
            shape,
        }
    }

    /// One float output like operand 0.
    pub fn like_first(&self) -> Result<Types, String> {
        let first = self.float(0, "operand 0")?;
        Ok(Types::from_elem(
            self.output(0, first.rows, first.shape.clone(), first.dtype),
            1,
        ))
    }

    /// The output of `x · weight`, operands 0 and 1: one row for each of x, as long as the axis of the
    /// weight, a matrix, that is not `inner`. Axis `inner` is as long as the rows of x.
    pub fn product(&self, inner: usize) -> Result<Types, String> {
        let (x, weight) = (self.float(0, "x")?, self.float(1, "weight")?);
        if weight.shape.len() != 2 || weight.rows.is_some() {
            let weight = self.show(weight);
            return Err(format!(
                "weight must be a matrix without a row space, is {weight}"
            ));
        }
        if x.shape.len() != 2 || x.shape[1] != weight.shape[inner] {
            return Err(format!(
                "inner dimensions of {} and {} differ",
                self.show(x),
                self.show(weight)
            ));
        }
        let shape = x.shape.with_axis(1, weight.shape[1 - inner]);
        Ok(Types::from_elem(self.output(0, x.rows, shape, x.dtype), 1))
    }

    /// The work of a product: a multiplication and an addition for each row and element of the weight.
    pub fn product_cost(&self) -> Cost {
        let rows = self.inputs[0].shape.rows() as u64;
        Cost {
            flops: rows.saturating_mul(2 * self.inputs[1].shape.elements() as u64),
            ..self.moved()
        }
    }

    /// The one declared type, which must be a float.
    pub fn declared_float(&self) -> Result<&'a TensorType, String> {
        match self.declared {
            [ty] if ty.dtype.is_float() => Ok(ty),
            _ => Err("needs exactly one declared type, a float".to_owned()),
        }
    }

    /// The type rule of a loss's gradient, whose operands are the loss's cotangent and the loss's
    /// operands: one float output like the first of these. `loss` is the loss's type rule.
    pub fn loss_grad(
        &self,
        loss: impl FnOnce(&Infer<'_>) -> Result<Types, String>,
    ) -> Result<Types, String> {
        let dloss = self.float(0, "dloss")?;
        if !dloss.shape.is_empty() {
            return Err(format!("dloss must be a scalar, is {}", self.show(dloss)));
        }
        loss(&Infer {
            inputs: &self.inputs[1..],
            declared: &[],
            ..*self
        })?;
        let x = &self.inputs[1];
        let output = self.output(0, x.rows, x.shape.clone(), dloss.dtype);
        Ok(Types::from_elem(output, 1))
    }

    /// [`Infer::moved`] with `flops` for each element of what a loss reads; see [`Infer::loss_grad`].
    pub fn loss_grad_cost(&self, flops: u64) -> Cost {
        Cost {
            flops: flops.saturating_mul(self.inputs[1].shape.elements() as u64),
            ..self.moved()
        }
    }

    /// Checks that operand `index`, the accumulator of `sums`, is a float of that shape, or absent.
    pub fn starts_from(&self, index: usize, sums: &TensorType) -> Result<(), String> {
        match self.inputs.get(index) {
            Some(acc)
                if !acc.dtype.is_float() || acc.rows != sums.rows || acc.shape != sums.shape =>
            {
                let (acc, sums) = (self.show(acc), self.show(sums));
                Err(format!("acc {acc} does not accumulate {sums}"))
            }
            _ => Ok(()),
        }
    }

    /// Checks that two operands agree in rows and shape.
    pub fn same(&self, a: usize, b: usize) -> Result<(), String> {
        let (first, second) = (&self.inputs[a], &self.inputs[b]);
        if first.rows == second.rows && first.shape == second.shape {
            Ok(())
        } else {
            Err(format!(
                "operands {} and {} differ in shape",
                self.show(first),
                self.show(second)
            ))
        }
    }

    /// A type's text form.
    pub fn show(&self, ty: &TensorType) -> String {
        ty.display(self.spaces)
    }

    /// Each operand read and each declared output written once, and no arithmetic.
    pub fn moved(&self) -> Cost {
        let bytes = |types: &[TensorType]| types.iter().map(|ty| ty.bytes() as u64).sum();
        Cost {
            flops: 0,
            read: bytes(self.inputs),
            written: bytes(self.declared),
        }
    }

    /// [`Infer::moved`] with `flops` for each element of operand 0.
    pub fn elementwise(&self, flops: u64) -> Cost {
        Cost {
            flops: flops * self.inputs[0].shape.elements() as u64,
            ..self.moved()
        }
    }

    /// Pairs of a row of `a` and a row of `b` in the same segment. The segments of both belong to the
    /// same entities; otherwise, and for unions, there are none.
    pub fn pairs(&self, a: SpaceId, b: SpaceId) -> u64 {
        let (Ok((owner, segments, rows)), Ok((other, _, columns))) =
            (self.segments(a), self.segments(b))
        else {
            return 0;
        };
        let product = |rows: usize, columns: usize| (rows as u64).saturating_mul(columns as u64);
        match self.extents {
            _ if owner != other => 0,
            None => product(rows, columns).saturating_mul(segments as u64),
            Some(extents) => {
                let of_segment = |segment| {
                    let rows = |space| extents.segment(space, segment).len();
                    product(rows(a), rows(b))
                };
                let segments = 0..extents.segments(a);
                segments.map(of_segment).fold(0, u64::saturating_add)
            }
        }
    }

    /// How many segments the space has at capacity, and how many rows each has at most.
    pub fn segments(&self, space: SpaceId) -> Result<(SpaceId, usize, usize), String> {
        match self.spaces.get(space).layout {
            Layout::Entities => Ok((space, self.spaces.get(space).capacity, 1)),
            Layout::Segments { owner, longest } => {
                Ok((owner, self.spaces.get(owner).capacity, longest))
            }
            Layout::Union(_) => Err(format!(
                "row space `{}` has no segments",
                self.spaces.get(space).name
            )),
        }
    }
}

/// Operand values for reference semantics.
#[derive(Clone, Copy, Debug)]
pub struct Eval<'a, S> {
    /// The operands' values at their run-time extents.
    pub inputs: &'a [&'a Tensor<S>],
    /// The operands' types.
    pub types: &'a [TensorType],
    /// The outputs' types.
    pub outputs: &'a [TensorType],
    /// The run-time extents of the row spaces.
    pub extents: &'a Extents,
    /// The graph's row spaces.
    pub spaces: &'a Spaces,
}

impl<S> Eval<'_, S> {
    /// The run-time shape of output `index`.
    pub fn shape(&self, index: usize) -> Shape {
        self.outputs[index].shape_at(self.extents)
    }
}

impl<S: Scalar> Eval<'_, S> {
    /// What the sums of the first output start from, as [`Infer::starts_from`] allows: operand `index`, or zeros.
    pub fn start(&self, index: usize) -> Vec<S> {
        match self.inputs.get(index) {
            Some(acc) => acc.reals().to_vec(),
            None => vec![S::from_f64(0.0); self.shape(0).elements()],
        }
    }
}

/// Checks the number of operands.
pub(super) fn check_arity(operands: &[Operand], given: usize) -> Result<(), String> {
    let least = operands
        .iter()
        .filter(|operand| !matches!(operand, Operand::Optional(_)))
        .count();
    let variadic = matches!(operands.last(), Some(Operand::Variadic(_)));
    if given >= least && (variadic || given <= operands.len()) {
        return Ok(());
    }
    let names: Vec<&str> = operands.iter().map(|operand| operand.name()).collect();
    Err(format!(
        "takes operands ({}), got {given}",
        names.join(", ")
    ))
}
