//! Reference semantics of ops against numbers worked out by hand.

use lxpod_ir::ops::Op;
use lxpod_ir::text::parse;
use lxpod_ir::{Extents, Graph, Shape, Tensor, TensorType, interpret, verify};

const SPACES: &str = "  rows sample = 2
  rows text = 4 by sample, 2 each
  rows box = 2 by sample, 1 each
  rows both = 6 of text, box
";

/// Work at run-time extents: rows of the run, and pairs within segments, sample by sample.
#[test]
fn cost_follows_the_extents() {
    let text = format!(
        "graph @cost {{
{SPACES}  %0 = input {{name=x}} : f32[text:4,2]
  %1 = input {{name=mask}} : f32[text:4]
  %2 = input {{name=box}} : f32[box:2,2]
  %3 = param {{value=w}} : f32[3,2]
  %4 = attention %0, %0, %0, %1 {{heads=1, scale=1.0}} : f32[text:4,2]
  %5 = attention %2, %0, %0, %1 {{heads=1, scale=1.0}} : f32[box:2,2]
  %6 = linear %4, %3 : f32[text:4,3]
  return %5 as \"boxes\"
  return %6 as \"texts\"
}}
"
    );
    let graph = parse(&text).unwrap();
    let nodes: Vec<_> = graph.nodes().collect();
    let flops = |extents: &Extents| {
        [4, 5, 6].map(|index: usize| graph.cost_at(nodes[index], extents).flops)
    };
    let lengths = |first: usize, second: usize| {
        let of = |_, entity, longest: usize| longest.min([first, second][entity]);
        Extents::new(&graph.spaces, |_, space| space.capacity, of).unwrap()
    };
    let pair = 4 * 2 + 8;
    assert_eq!(
        flops(&lengths(1, 2)),
        [(1 + 4) * pair, (1 + 2) * pair, 3 * 12]
    );
    assert_eq!(
        flops(&Extents::full(&graph.spaces)),
        [8 * pair, 4 * pair, 4 * 12]
    );
    let (one, two, both) = (lengths(1, 0), lengths(0, 2), lengths(1, 2));
    let sum = |index: usize| flops(&one)[index] + flops(&two)[index];
    assert_eq!(flops(&both), [sum(0), sum(1), sum(2)]);
}

/// Sample 0 has one text row and sample 1 has two; each has one box.
fn extents(graph: &Graph) -> Extents {
    Extents::new(
        &graph.spaces,
        |_, space| space.capacity,
        |_, entity, longest| longest.min(1 + entity),
    )
    .unwrap()
}

/// Inputs get 1, 2, 3, …, reals plus a hundred for each box; integers get `ints`.
fn feed(extents: &Extents, op: &Op, ty: &TensorType, ints: &[i32]) -> Tensor<f64> {
    let shape = ty.shape_at(extents);
    if !ty.dtype.is_float() {
        return Tensor::int(shape, ints.to_vec());
    }
    let base = match op {
        Op::Input(input) if input.name == "box" => 100,
        _ => 0,
    };
    let count = shape.elements() as i32;
    let values = (1..=count).map(|value| f64::from(base + value)).collect();
    Tensor::real(shape, values)
}

/// The outputs of a graph of these lines.
fn run_with(body: &str, ints: &[i32]) -> Result<Vec<Tensor<f64>>, String> {
    let graph = parse(&format!("graph @g {{\n{SPACES}{body}\n}}")).unwrap();
    verify(&graph).unwrap();
    let extents = extents(&graph);
    interpret(&graph, &extents, |op, ty| Ok(feed(&extents, op, ty, ints)))
}

fn run(body: &str) -> Tensor<f64> {
    run_with(body, &[]).unwrap().remove(0)
}

fn close(tensor: &Tensor<f64>, expected: &[f64]) {
    assert_eq!(tensor.reals().len(), expected.len());
    for (got, expected) in tensor.reals().iter().zip(expected) {
        assert!((got - expected).abs() < 1e-12, "{tensor:?} {expected}");
    }
}

#[test]
fn concat_of_rows_and_its_parts() {
    let joined = "  %t = input {name=text} : f32[text:4,2]
  %b = input {name=box} : f32[box:2,2]
  %y = concat %t, %b {axis=0} : f32[both:6,2]";
    let y = run(&format!("{joined}\n  return %y as \"y\""));
    assert_eq!(y.shape, Shape::new(&[5, 2]));
    close(
        &y,
        &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 101.0, 102.0, 103.0, 104.0],
    );
    let part = "  %p = part %y {index=1} : f32[box:2,2]\n  return %p as \"p\"";
    close(
        &run(&format!("{joined}\n{part}")),
        &[101.0, 102.0, 103.0, 104.0],
    );
}

#[test]
fn concat_of_columns() {
    let y = run("  %a = input {name=box} : f32[box:2,2]
  %b = input {name=b} : f32[box:2,1]
  %y = concat %a, %b {axis=1} : f32[box:2,3]
  return %y as \"y\"");
    close(&y, &[101.0, 102.0, 1.0, 103.0, 104.0, 2.0]);
}

#[test]
fn slice_of_a_middle_axis() {
    let y = run("  %a = input {name=a} : f32[2,3,2]
  %y = slice %a {axis=1, start=1, end=2} : f32[2,1,2]
  return %y as \"y\"");
    close(&y, &[3.0, 4.0, 9.0, 10.0]);
}

#[test]
fn gather_repeats_rows_and_names_a_wrong_index() {
    let body = "  %d = input {name=d} : f32[3,2]
  %i = input {name=i} : i32[2]
  %y = gather_rows %d, %i : f32[2,2] in \"embeddings\"
  return %y as \"y\"";
    let rows = run_with(body, &[2, 2]).unwrap().remove(0);
    close(&rows, &[5.0, 6.0, 5.0, 6.0]);
    for (index, named) in [(3, "index 3"), (-1, "index -1")] {
        assert_eq!(
            run_with(body, &[0, index]).unwrap_err(),
            format!("gather_rows in embeddings: {named} is outside 0..3")
        );
    }
}

#[test]
fn linear_adds_its_bias_before_the_activation() {
    let y = run("  %x = constant {data=[1.0, -2.0]} : f32[1,2]
  %w = constant {data=[3.0, 1.0, 1.0, 1.0]} : f32[2,2]
  %b = constant {data=[0.5, 0.25]} : f32[2]
  %y = linear %x, %w, %b {activation=relu} : f32[1,2]
  return %y as \"y\"");
    close(&y, &[1.5, 0.0]);
}

#[test]
fn layer_norm_with_a_residual_over_the_last_axis() {
    let y = run("  %x = constant {data=[1.0, 2.0, 5.0, 5.0]} : f32[1,2,2]
  %r = constant {data=[0.0, 1.0, 0.0, 0.0]} : f32[1,2,2]
  %g = constant {data=[2.0, 3.0]} : f32[2]
  %b = constant {data=[0.0, 10.0]} : f32[2]
  %y = layer_norm %x, %g, %b, %r {eps=3.0} : f32[1,2,2]
  return %y as \"y\"");
    close(&y, &[-1.0, 11.5, 0.0, 10.0]);
}

#[test]
fn layer_norm_of_a_vector() {
    let y = run("  %x = constant {data=[1.0, 3.0]} : f32[2]
  %g = constant {data=[1.0, 1.0]} : f32[2]
  %b = constant {data=[0.0, 0.0]} : f32[2]
  %y = layer_norm %x, %g, %b {eps=0.0} : f32[2]
  return %y as \"y\"");
    close(&y, &[-1.0, 1.0]);
}

#[test]
fn cross_entropy_skips_and_weighs() {
    let body = |last: &str| {
        format!(
            "  %x = constant {{data=[0.0, 0.0, 5.0, 5.0]}} : f32[2,2]
  %l = input {{name=l}} : i32[2]
  %w = constant {{data=[3.0, 4.0]}} : f32[2]
  %y = cross_entropy {last} : f32[]
  return %y as \"y\""
        )
    };
    let loss = 2f64.ln();
    let value = |last, labels: &[i32]| run_with(&body(last), labels).map(|mut y| y.remove(0));
    close(&value("%x, %l", &[1, -100]).unwrap(), &[loss]);
    close(&value("%x, %l", &[1, 0]).unwrap(), &[loss]);
    let weighted = "%x, %l, %w {reduction=weighted}";
    close(&value(weighted, &[1, 0]).unwrap(), &[3.5 * loss]);
    close(&value(weighted, &[1, -100]).unwrap(), &[1.5 * loss]);
    let nothing = value("%x, %l", &[-100, -100]).unwrap();
    assert!(nothing.reals()[0].is_nan());
    assert_eq!(
        value("%x, %l", &[2, 0]).unwrap_err(),
        "cross_entropy: label 2 is outside 0..2"
    );
}

#[test]
fn bce_and_smooth_l1() {
    let y = run("  %x = constant {data=[0.0, 0.0]} : f32[2]
  %t = constant {data=[1.0, 0.25]} : f32[2]
  %y = bce %x, %t {factor=4.0} : f32[]
  return %y as \"y\"");
    close(&y, &[4.0 * 2f64.ln()]);
    let y = run("  %x = constant {data=[0.5, 3.0, 1.0, 1.0]} : f32[2,2]
  %t = constant {data=[0.0, 0.0, 1.0, 1.0]} : f32[2,2]
  %w = constant {data=[2.0, 7.0]} : f32[2]
  %y = smooth_l1 %x, %t, %w : f32[]
  return %y as \"y\"");
    close(&y, &[2.0 * (0.125 + 2.5) / 2.0 / 2.0]);
}

#[test]
fn attention_keeps_to_its_segment() {
    let body = "  %q = constant {data=[0.0]} : f32[1]
  %t = input {name=text} : f32[text:4,1]
  %z = scale %t {factor=0.0} : f32[text:4,1]
  %b = input {name=box} : f32[box:2,1]
  %m = input {name=m} : f32[text:4]
  %o = scale %m {factor=0.0} : f32[text:4]
  %y, %p = attention %b, %z, %t, %o {heads=1, probabilities=true, scale=1.0} : f32[box:2,1], f32[box:2,1,2]
  return %y as \"y\"
  return %p as \"p\"";
    let outputs = run_with(body, &[]).unwrap();
    close(&outputs[0], &[1.0, 2.5]);
    close(&outputs[1], &[1.0, 0.0, 0.5, 0.5]);
}

#[test]
fn feeding_another_shape_or_kind_is_refused() {
    let graph =
        parse("graph @g {\n  %0 = input {name=x} : f32[2]\n  return %0 as \"y\"\n}").unwrap();
    let extents = Extents::full(&graph.spaces);
    let given =
        |tensor: Tensor<f32>| interpret(&graph, &extents, |_, _| Ok(tensor.clone())).unwrap_err();
    let shape = given(Tensor::real([3], vec![0.0; 3]));
    assert!(shape.contains("fed [3] for [2]"), "{shape}");
    let kind = given(Tensor::int([2], vec![0; 2]));
    assert!(kind.contains("fed integers for f32"), "{kind}");
}

#[test]
fn hostile_extents_are_refused() {
    let graph = parse(&format!("graph @g {{\n{SPACES}}}")).unwrap();
    let spaces = &graph.spaces;
    let many = Extents::new(spaces, |_, _| usize::MAX, |_, _, _| 1).unwrap_err();
    assert!(many.contains("`sample` holds at most 2 rows"), "{many}");
    let long = Extents::new(spaces, |_, _| 2, |_, _, _| usize::MAX).unwrap_err();
    assert!(long.contains("`text` holds at most 4 rows"), "{long}");
}

#[test]
fn sums_start_from_what_is_accumulated() {
    let body = "  %d = input {name=box} : f32[box:2,1]
  %x = input {name=x} : f32[box:2,2]
  %i = input {name=i} : i32[box:2]
  %a = input {name=a} : f32[1,2]
  %t = input {name=t} : f32[3,2]
  %v = input {name=v} : f32[2]
  %w = weight_grad %d, %x, %a : f32[1,2]
  %r = sum_rows %x, %v : f32[2]
  %s = scatter_add_rows %x, %i, %t {padding=0} : f32[3,2]
  return %w as \"w\"
  return %s as \"s\"
  return %r as \"r\"";
    let outputs = run_with(body, &[2, 0]).unwrap();
    let sum = |column: f64| 101.0 * column + 102.0 * (column + 2.0);
    close(&outputs[0], &[1.0 + sum(1.0), 2.0 + sum(2.0)]);
    close(&outputs[1], &[1.0, 2.0, 3.0, 4.0, 5.0 + 1.0, 6.0 + 2.0]);
    close(&outputs[2], &[1.0 + 1.0 + 3.0, 2.0 + 2.0 + 4.0]);
}

/// What is accumulated is the first summand: in f32, adding it to the finished sum would give zeros.
#[test]
fn accumulators_come_first() {
    let source = "graph @g {
  %d = constant {data=[1.0, 1.0]} : f32[2,1]
  %x = constant {data=[16777216.0, 1.0]} : f32[2,1]
  %i = constant {data=[0.0, 0.0]} : i32[2]
  %a = constant {data=[-16777216.0]} : f32[1,1]
  %b = constant {data=[-16777216.0]} : f32[1]
  %w = weight_grad %d, %x, %a : f32[1,1]
  %r = sum_rows %x, %b : f32[1]
  %s = scatter_add_rows %x, %i, %a : f32[1,1]
  return %w as \"w\"
  return %r as \"r\"
  return %s as \"s\"
}";
    let graph = parse(source).unwrap();
    verify(&graph).unwrap();
    let extents = Extents::full(&graph.spaces);
    let outputs = interpret::<f32>(&graph, &extents, |_, _| Err("no leaf".to_owned())).unwrap();
    for sum in &outputs {
        assert_eq!(sum.reals(), [1.0]);
    }
}

#[test]
fn states_are_fed_by_name() {
    let source = "graph @g {
  %s = state {name=\"acc:w\"} : f32[2]
  return %s as \"y\"
}";
    let graph = parse(source).unwrap();
    let extents = Extents::full(&graph.spaces);
    let feed = |op: &Op, _: &TensorType| match op {
        Op::State(state) if state.name == "acc:w" => Ok(Tensor::real([2], vec![1f32, 2.0])),
        op => Err(format!("asked for {op:?}")),
    };
    let outputs = interpret(&graph, &extents, feed).unwrap();
    assert_eq!(outputs[0].reals(), [1.0, 2.0]);
}
