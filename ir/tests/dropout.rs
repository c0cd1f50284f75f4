//! Dropout: masks follow from the sample and the place in it, and from nothing else.

use lxpod_ir::ops::Op;
use lxpod_ir::random_bits::{drop_threshold, keep_word, name_hash, part_salt};
use lxpod_ir::text::{parse, print};
use lxpod_ir::{Extents, Graph, Tensor, TensorType, interpret, verify};
use proptest::prelude::*;

/// What a run holds: the key of each sample, and its rows of text and of boxes.
type Samples<'a> = &'a [(i32, usize, usize)];

fn graph(capacity: usize, longest: usize, body: &str) -> Graph {
    let (text, both) = (capacity * longest, capacity * (longest + 3));
    let body = body
        .replace("text:T", &format!("text:{text}"))
        .replace("box:B", &format!("box:{}", capacity * 3))
        .replace("both:U", &format!("both:{both}"))
        .replace("sample:S", &format!("sample:{capacity}"));
    let source = format!(
        "graph @g {{
  rows sample = {capacity}
  rows text = {text} by sample, {longest} each
  rows box = {} by sample, 3 each
  rows both = {both} of text, box
{body}
}}",
        capacity * 3
    );
    let graph = parse(&source).unwrap();
    verify(&graph).unwrap();
    assert_eq!(print(&parse(&print(&graph)).unwrap()), print(&graph));
    graph
}

fn extents(graph: &Graph, samples: Samples<'_>) -> Extents {
    let text = graph.spaces.find("text").unwrap();
    Extents::new(
        &graph.spaces,
        |_, _| samples.len(),
        |space, sample, _| match space == text {
            true => samples[sample].1,
            false => samples[sample].2,
        },
    )
    .unwrap()
}

/// All ones, but for the samples' keys.
fn run(graph: &Graph, samples: Samples<'_>) -> Vec<Tensor<f64>> {
    let extents = extents(graph, samples);
    let feed = |_: &Op, ty: &TensorType| {
        let shape = ty.shape_at(&extents);
        Ok(if ty.dtype.is_float() {
            let ones = vec![1.0; shape.elements()];
            Tensor::real(shape, ones)
        } else {
            let keys = samples.iter().flat_map(|&(key, _, _)| [key, -key]);
            Tensor::int(shape, keys.collect())
        })
    };
    interpret(graph, &extents, feed).unwrap()
}

const UNION: &str = "  %k = input {name=keys} : i32[sample:S,2]
  %t = input {name=t} : f32[text:T,16]
  %b = input {name=b} : f32[box:B,16]
  %u = concat %t, %b {axis=0} : f32[both:U,16]
  %0 = dropout %t, %k {rate=0.5, salt=18446744073709551615} : f32[text:T,16]
  %1 = dropout %b, %k {rate=0.5, salt=18446744073709551615} : f32[box:B,16]
  %2 = dropout %u, %k {rate=0.5, salt=18446744073709551615} : f32[both:U,16]
  return %0 as \"text\"
  return %1 as \"box\"
  return %2 as \"both\"";

const ATTENTION: &str = "  %k = input {name=keys} : i32[sample:S,2]
  %t = input {name=t} : f32[text:T,8]
  %b = input {name=b} : f32[box:B,8]
  %m = input {name=m} : f32[text:T]
  %0, %1 = attention %b, %t, %t, %m, %k {dropout={\"rate\":0.4,\"salt\":7}, heads=2, probabilities=true, scale=0.5} : f32[box:B,8], f32[box:B,2,L]
  return %0 as \"y\"
  return %1 as \"p\"";

fn attention(capacity: usize, longest: usize) -> Graph {
    let body = ATTENTION.replace(",L]", &format!(",{longest}]"));
    graph(capacity, longest, &body)
}

#[test]
fn a_mask_is_that_of_the_words() {
    let graph = graph(2, 4, UNION);
    let [text, boxes, both] = run(&graph, &[(5, 3, 2), (-9, 1, 3)]).try_into().unwrap();
    let expected = |key: i32, space: &str, row: u32, column: u32| {
        let salt = part_salt(u64::MAX, name_hash(space));
        let word = keep_word([key as u32, -key as u32], salt, row, column);
        2.0 * f64::from(u8::from(word >= drop_threshold(0.5)))
    };
    let places = [(5, 0), (5, 1), (5, 2), (-9, 0)];
    for (row, (key, inside)) in places.into_iter().enumerate() {
        let expected: Vec<f64> = (0..16).map(|c| expected(key, "text", inside, c)).collect();
        assert_eq!(text.row(row), expected);
        assert_eq!(both.row(row), expected);
    }
    for row in 0..5 {
        assert_eq!(both.row(4 + row), boxes.row(row));
    }
    let distinct: std::collections::BTreeSet<String> =
        (0..9).map(|row| format!("{:?}", both.row(row))).collect();
    assert_eq!(distinct.len(), 9);
}

#[test]
fn what_is_dropped_is_zero_even_if_it_was_not_finite() {
    let body = "  %k = input {name=keys} : i32[sample:S,2]
  %t = input {name=t} : f32[text:T,64]
  %s = scale %t {factor=3e38} : f32[text:T,64]
  %i = scale %s {factor=3e38} : f32[text:T,64]
  %0 = dropout %i, %k {rate=0.5, salt=3} : f32[text:T,64]
  return %0 as \"y\"";
    let graph = graph(1, 1, body);
    let extents = extents(&graph, &[(1, 1, 0)]);
    let feed = |_: &Op, ty: &TensorType| {
        let shape = ty.shape_at(&extents);
        Ok(match ty.dtype.is_float() {
            true => Tensor::real(shape, vec![1f32; 64]),
            false => Tensor::int(shape, vec![1, 2]),
        })
    };
    let y = interpret(&graph, &extents, feed).unwrap().remove(0);
    let zeros = y.reals().iter().filter(|&&y| y == 0.0).count();
    let infinite = y.reals().iter().filter(|y| y.is_infinite()).count();
    assert_eq!(zeros + infinite, 64);
    assert!(zeros > 0 && infinite > 0);
}

#[test]
fn rate_zero_changes_nothing() {
    let graph = graph(2, 4, &UNION.replace("rate=0.5", "rate=0.0"));
    for tensor in run(&graph, &[(5, 3, 2), (-9, 1, 3)]) {
        assert!(tensor.reals().iter().all(|&y| y == 1.0));
    }
}

#[test]
fn under_the_key_of_evaluation_nothing_is_dropped() {
    let union = run(&graph(2, 4, UNION), &[(0, 3, 2), (7, 1, 3)]);
    assert!((0..3).all(|row| union[0].row(row) == [1.0; 16]));
    assert!((0..2).all(|row| union[1].row(row) == [1.0; 16]));
    assert!(union[0].row(3).contains(&0.0) && union[1].row(2).contains(&0.0));
    let [y, p] = run(&attention(1, 4), &[(0, 4, 2)]).try_into().unwrap();
    assert!(y.reals().iter().all(|&y| (y - 1.0).abs() < 1e-12));
    assert!(p.reals().iter().all(|&p| (p - 0.25).abs() < 1e-12));
}

#[test]
fn attention_returns_and_applies_what_it_dropped() {
    let [context, kept] = run(&attention(1, 5), &[(3, 4, 2)]).try_into().unwrap();
    for row in 0..2 {
        for head in 0..2 {
            let kept = &kept.row(row)[5 * head..5 * head + 5];
            // All values are one, and so is every probability times four before dropout.
            let sum: f64 = kept.iter().sum();
            assert!((context.row(row)[4 * head] - sum).abs() < 1e-12);
            for (key, &value) in kept[..4].iter().enumerate() {
                let salt = part_salt(7, head as u64);
                let word = keep_word([3, -3i32 as u32], salt, row as u32, key as u32);
                let is_kept = word >= drop_threshold(0.4);
                let expected = if is_kept {
                    0.25 / (1.0 - f64::from(0.4f32))
                } else {
                    0.0
                };
                assert!((value - expected).abs() < 1e-12, "{value} {expected}");
            }
            assert_eq!(kept[4], 0.0);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// A sample drops the same alone as behind others, with whatever capacity.
    #[test]
    fn masks_know_nothing_of_the_batch(
        others in prop::collection::vec((any::<i32>(), 0usize..4, 0usize..4), 0..4),
        key: i32,
        (rows, boxes) in (1usize..4, 1usize..4),
        longest in 4usize..9,
    ) {
        let key = key.wrapping_abs().max(1);
        let others: Vec<_> = others.into_iter().map(|(key, t, b)| (key.max(-9), t, b)).collect();
        let mut batch = others.clone();
        batch.push((key, rows, boxes));
        let before = |of: fn(&(i32, usize, usize)) -> usize| others.iter().map(of).sum::<usize>();
        let (texts_before, boxes_before) = (before(|s| s.1), before(|s| s.2));
        let alone = run(&graph(1, rows, UNION), &[(key, rows, boxes)]);
        let among = run(&graph(6, longest, UNION), &batch);
        for row in 0..rows {
            prop_assert_eq!(alone[0].row(row), among[0].row(texts_before + row));
        }
        for row in 0..boxes {
            prop_assert_eq!(alone[1].row(row), among[1].row(boxes_before + row));
        }
        let alone = run(&attention(1, rows), &[(key, rows, boxes)]);
        let among = run(&attention(6, longest), &batch);
        for row in 0..boxes {
            prop_assert_eq!(alone[0].row(row), among[0].row(boxes_before + row));
            for head in 0..2 {
                let (short, long) = (head * rows, head * longest);
                let alone = &alone[1].row(row)[short..short + rows];
                let among = &among[1].row(boxes_before + row)[long..long + rows];
                prop_assert_eq!(alone, among);
            }
        }
    }
}
