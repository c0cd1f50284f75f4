//! Comparing two traces: where they first differ, and by how much.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::tensors::Dtype;
use crate::trace::{Trace, Traced};

/// How two traces differ.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The tensors that both have, in A's order of computation; in B's where only B's is known.
    pub pairs: Vec<Pair>,
    /// The names that only A has, and those that only B has.
    pub unmatched: [Vec<String>; 2],
    /// The first element of A, and of B, that is no finite number.
    pub non_finite: [Option<NonFinite>; 2],
}

/// A tensor that both traces have.
#[derive(Clone, Debug, PartialEq)]
pub struct Pair {
    /// The name; see [`Traced::name`].
    pub name: String,
    /// A's shape and B's.
    pub shapes: [Vec<usize>; 2],
    /// The difference; `None` where the shapes differ.
    pub difference: Option<Difference>,
}

/// How far two tensors of one shape are apart. Elements are the same if their bits are, or if both
/// are NaN.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Difference {
    /// Elements compared: those that both computed.
    pub elements: usize,
    /// Elements that are not the same.
    pub differing: usize,
    /// The largest |a − b|; infinite where one is not finite and the other is not the same.
    pub max_abs: f64,
    /// The root of the mean of (a − b)².
    pub rms: f64,
    /// `max_abs` over the largest finite |a| or |b|.
    pub relative: f64,
    /// The most f32 numbers from a to b, if both are stored in f32.
    pub ulp: Option<u32>,
    /// The coordinates of the largest |a − b|, if any element differs.
    pub worst: Option<Vec<usize>>,
}

/// An element that is no finite number.
#[derive(Clone, Debug, PartialEq)]
pub struct NonFinite {
    /// The tensor's name.
    pub name: String,
    /// The element's coordinates.
    pub at: Vec<usize>,
    /// NaN or an infinity.
    pub value: f32,
}

impl Comparison {
    /// Compares the tensors that have the same names.
    pub fn of(a: &Trace, b: &Trace) -> Comparison {
        let in_a = by_name(a);
        let in_b = by_name(b);
        let order = if a.ordered || !b.ordered { a } else { b };
        let names = order.tensors.iter().map(|traced| traced.name.as_str());
        let pairs = names.filter_map(|name| Some(pair(in_a.get(name)?, in_b.get(name)?)));
        let pairs = pairs.collect();
        let unmatched = |own: &Trace, others: &BTreeMap<&str, &Traced>| {
            let own = own.tensors.iter().map(|traced| &traced.name);
            own.filter(|name| !others.contains_key(name.as_str()))
                .cloned()
                .collect()
        };
        Comparison {
            pairs,
            unmatched: [unmatched(a, &in_b), unmatched(b, &in_a)],
            non_finite: [non_finite(a), non_finite(b)],
        }
    }

    /// The first tensor that is not within the tolerance; see [`Pair::is_within`].
    pub fn first_divergence(&self, tolerance: Option<f64>) -> Option<&Pair> {
        self.pairs.iter().find(|pair| !pair.is_within(tolerance))
    }
}

impl Pair {
    /// Whether every element is the same; with a tolerance, whether no element is further apart than
    /// that share of the largest entry. The values of an op may have another shape where micro-batches
    /// differ, outputs may not.
    pub fn is_within(&self, tolerance: Option<f64>) -> bool {
        match (&self.difference, tolerance) {
            (None, _) => !self.is_output(),
            (Some(difference), None) => difference.differing == 0,
            (Some(difference), Some(tolerance)) => difference.relative <= tolerance,
        }
    }

    /// Whether it is an output, not the value of an op.
    pub fn is_output(&self) -> bool {
        self.origin().is_none()
    }

    /// The scope and the op, unless it is an output.
    pub fn origin(&self) -> Option<(&str, &str)> {
        crate::trace::origin(&self.name)
    }
}

impl NonFinite {
    /// The scope and the op, unless it is in an output.
    pub fn origin(&self) -> Option<(&str, &str)> {
        crate::trace::origin(&self.name)
    }
}

fn by_name(trace: &Trace) -> BTreeMap<&str, &Traced> {
    let named = trace.tensors.iter();
    named.map(|traced| (traced.name.as_str(), traced)).collect()
}

fn pair(a: &Traced, b: &Traced) -> Pair {
    Pair {
        name: a.name.clone(),
        shapes: [a.shape.clone(), b.shape.clone()],
        difference: (a.shape == b.shape).then(|| difference(a, b)),
    }
}

/// The difference of two tensors of one shape, over the elements that both computed.
fn difference(a: &Traced, b: &Traced) -> Difference {
    let mut found = Difference::default();
    let (mut squares, mut largest, mut worst, mut ulp) = (0.0, 0.0, None, 0);
    for at in common(a, b).into_iter().flatten() {
        let (x, y) = (a.values[at], b.values[at]);
        found.elements += 1;
        for value in [x, y].into_iter().filter(|value| value.is_finite()) {
            largest = f64::max(largest, value.abs().into());
        }
        if x.to_bits() == y.to_bits() || (x.is_nan() && y.is_nan()) {
            continue;
        }
        let error = distance(x, y);
        found.differing += 1;
        squares += error * error;
        ulp = ulp.max(numbers_between(x, y));
        if worst.is_none() || error > found.max_abs {
            worst = Some(at);
            found.max_abs = error;
        }
    }
    found.rms = (squares / found.elements.max(1) as f64).sqrt();
    if found.max_abs > 0.0 {
        found.relative = found.max_abs / largest;
    }
    found.ulp = [a, b].iter().all(|t| t.dtype == Dtype::F32).then_some(ulp);
    found.worst = worst.map(|at| a.coordinates(at));
    found
}

/// The elements that both computed, by their positions.
fn common(a: &Traced, b: &Traced) -> Vec<Range<usize>> {
    match (&a.rows, &b.rows) {
        (Some(_), Some(_)) => {
            let both = a.computed().into_iter().zip(b.computed());
            both.map(|(a, b)| a.start..a.end.min(b.end)).collect()
        }
        (Some(_), None) => a.computed(),
        (None, _) => b.computed(),
    }
}

/// |x − y|; infinite if either is not finite.
fn distance(x: f32, y: f32) -> f64 {
    if x.is_finite() && y.is_finite() {
        (f64::from(x) - f64::from(y)).abs()
    } else {
        f64::INFINITY
    }
}

/// How many steps lead from x to y, each to the next f32 number; 0 and −0 are one apart.
fn numbers_between(x: f32, y: f32) -> u32 {
    let rank = |value: f32| {
        let bits = value.to_bits();
        if bits >> 31 == 0 {
            bits | 1 << 31
        } else {
            !bits
        }
    };
    rank(x).abs_diff(rank(y))
}

fn non_finite(trace: &Trace) -> Option<NonFinite> {
    trace.tensors.iter().find_map(|traced| {
        let mut computed = traced.computed().into_iter().flatten();
        let at = computed.find(|&at| !traced.values[at].is_finite())?;
        Some(NonFinite {
            name: traced.name.clone(),
            at: traced.coordinates(at),
            value: traced.values[at],
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traced(name: &str, values: &[f32]) -> Traced {
        Traced {
            name: name.to_owned(),
            dtype: Dtype::F32,
            shape: vec![2, values.len() / 2, 1],
            rows: None,
            values: values.to_vec(),
        }
    }

    fn trace(tensors: Vec<Traced>) -> Trace {
        Trace {
            tensors,
            ordered: true,
        }
    }

    #[test]
    fn errors_are_measured() {
        let next = f32::from_bits(4f32.to_bits() + 3);
        let a = traced("x", &[1.0, -4.0, 4.0, 2.0]);
        let b = traced("x", &[1.0, -4.0, next, 2.5]);
        let found = difference(&a, &b);
        assert_eq!((found.elements, found.differing), (4, 2));
        assert_eq!(found.max_abs, 0.5);
        assert_eq!(found.relative, 0.5 / f64::from(next));
        assert_eq!(found.worst, Some(vec![1, 1, 0]));
        let three = f64::from(next) - 4.0;
        assert_eq!(found.rms, ((0.25 + three * three) / 4.0).sqrt());
        assert_eq!(found.ulp, Some(2.5f32.to_bits() - 2f32.to_bits()));
        assert_eq!(numbers_between(4.0, next), 3);
        assert_eq!(numbers_between(0.0, -0.0), 1);
        let mut half = traced("x", &a.values);
        half.dtype = Dtype::F16;
        assert_eq!(difference(&half, &b).ulp, None);
    }

    #[test]
    fn what_is_not_finite_is_equal_only_to_itself() {
        let a = traced("x", &[f32::NAN, f32::INFINITY, 1.0, 0.0]);
        let same = traced("x", &[-f32::NAN, f32::INFINITY, 1.0, 0.0]);
        assert_eq!(difference(&a, &same).differing, 0);
        for other in [f32::NAN, f32::NEG_INFINITY, 3.0] {
            let b = traced("x", &[f32::NAN, other, 1.0, 0.0]);
            let pair = pair(&a, &b);
            assert!(!pair.is_within(Some(1e30)) && !pair.is_within(None));
        }
        let zeros = pair(&a, &traced("x", &[f32::NAN, f32::INFINITY, 1.0, -0.0]));
        assert!(zeros.is_within(Some(0.0)) && !zeros.is_within(None));
        let found = non_finite(&trace(vec![a])).expect("a NaN");
        assert_eq!(found.at, [0, 0, 0]);
    }

    #[test]
    fn rows_that_one_side_left_out_do_not_count() {
        let a = traced("x", &[1.0, 2.0, 3.0, 4.0]);
        let mut b = traced("x", &[1.0, 0.0, 3.0, 0.0]);
        b.rows = Some(vec![1, 1]);
        assert_eq!(difference(&a, &b).differing, 0);
        assert_eq!(difference(&b, &a).elements, 2);
        let mut c = traced("x", &[9.0, f32::NAN, 3.0, 4.0]);
        c.rows = Some(vec![0, 2]);
        assert_eq!(difference(&b, &c).elements, 1);
        assert_eq!(non_finite(&trace(vec![c])), None);
    }

    #[test]
    fn the_first_divergence_is_in_the_order_of_computation() {
        let a = trace(vec![
            traced("z/add.0", &[0.0, 0.0]),
            traced("a/add.0", &[1.0, 2.0]),
            traced("b/add.0", &[1.0, 2.0]),
            traced("score", &[1.0, 2.0]),
        ]);
        let mut b = a.clone();
        b.tensors[1].values[1] = 2.5;
        b.tensors[3].values[0] = 0.0;
        b.tensors.remove(2);
        b.tensors.reverse();
        b.ordered = false;
        for (first, second) in [(&a, &b), (&b, &a)] {
            let found = Comparison::of(first, second);
            let diverging = found.first_divergence(None).expect("a difference");
            assert_eq!(diverging.origin(), Some(("a", "add")));
            assert_eq!(
                found.first_divergence(Some(0.2)).map(|p| p.is_output()),
                Some(true)
            );
            assert_eq!(found.first_divergence(Some(1.0)), None);
            assert_eq!(found.unmatched.concat(), ["b/add.0"]);
        }
    }
}
