//! The verifier: one broken graph for each way to break an invariant.
//!
//! A line that the verifier must blame carries `; error: ` and part of the message.

use lxpod_ir::text::parse_with_lines;
use lxpod_ir::verify;

/// Every expected error, as (line, text), is reported there, and nothing else is.
fn check(body: &str) {
    let source = format!("graph @g {{\n{body}\n}}\n");
    let (graph, lines) = parse_with_lines(&source).expect("well-formed");
    let errors = verify(&graph).err().map_or(Vec::new(), |errors| errors.0);
    let mut reported: Vec<(usize, String)> = errors
        .iter()
        .map(|error| {
            let node = error.node.and_then(|node| lines.node(node));
            let span = node.or_else(|| error.output.and_then(|output| lines.output(output)));
            let before = &source[..span.expect("every error has a line").start];
            (before.matches('\n').count(), error.message.clone())
        })
        .collect();
    for (number, line) in source.lines().enumerate() {
        for expected in line.split("; error: ").skip(1).map(str::trim) {
            let found = reported
                .iter()
                .position(|(at, message)| *at == number && message.contains(expected));
            match found {
                Some(found) => drop(reported.remove(found)),
                None => panic!("not reported: {line}\nreported: {reported:?}"),
            }
        }
    }
    assert!(reported.is_empty(), "unexpected: {reported:?}");
}

#[test]
fn order() {
    check(
        "  %0 = input {name=x} : f32[2]
  %1 = add %0, %2 : f32[2]         ; error: add: depends on itself
  %2 = scale %1 {factor=1.0} : f32[2] ; error: scale: depends on itself
  %3 = scale %2 {factor=1.0} : f32[2]",
    );
}

#[test]
fn arity() {
    check(
        "  %0 = input {name=x} : f32[2]
  %1 = add %0 : f32[2]             ; error: takes operands (a, b), got 1
  %2 = add %0, %0, %0 : f32[2]     ; error: takes operands (a, b), got 3
  %3 = concat {axis=0} : f32[2]    ; error: takes operands (parts), got 0
  %4 = input %0 {name=y} : f32[2]  ; error: takes operands (), got 1",
    );
}

#[test]
fn types() {
    check(
        "  %0 = input {name=x} : f32[2,4]
  %1 = add %0, %0 : f32[2,5]            ; error: has type f32[2,5], its operands give f32[2,4]
  %2 = add %0, %0 : i32[2,4]            ; error: has type i32[2,4], its operands give f32[2,4]
  %3 = add %0, %0 : f16[2,4]
  %4, %5 = add %0, %0 : f32[2,4], f32[] ; error: its operands give f32[2,4]
  %6 = constant {data=[1.0]} : f32[2]   ; error: 1 elements declared as f32[2]
  %7 = constant {data=[0.5]} : i32[1]   ; error: 0.5 is no i32
  %8 = param {value=w} : i32[2]         ; error: a parameter is a float without a row space",
    );
}

#[test]
fn operands_of_each_op() {
    check(
        "  rows sample = 2
  rows text = 6 by sample, 3 each
  rows image = 2
  rows box = 4 by image, 2 each
  rows both = 10 of text, box
  %i = input {name=i} : i32[text:6]
  %t = input {name=t} : f32[text:6,8]
  %b = input {name=b} : f32[box:4,8]
  %m = input {name=m} : f32[text:6]
  %n = input {name=n} : f32[box:4]
  %w = param {value=w} : f32[8,8]
  %v = param {value=v} : f32[8]
  %e = input {name=e} : f32[text:6,0]
  %d = input {name=d} : f32[text:6,2,8]
  %0 = add %t, %b : f32[text:6,8]            ; error: differ in shape
  %1 = add %i, %i : i32[text:6]              ; error: b must be a float
  %2 = gather_rows %w, %m : f32[text:6,8]    ; error: index must be i32
  %3 = concat %t, %b {axis=0} : f32[both:10,8]
  %4 = concat %b, %t {axis=0} : f32[both:10,8] ; error: the union of its row spaces is not declared
  %5 = concat %t, %w {axis=1} : f32[text:6,16] ; error: do not join along axis 1
  %6 = part %t {index=0} : f32[text:6,8]     ; error: has no part 0
  %7 = part %3 {index=2} : f32[text:6,8]     ; error: has no part 2
  %8 = slice %t {axis=0, start=0, end=1} : f32[1,8] ; error: 0..1 of axis 0
  %9 = slice %t {axis=1, start=4, end=9} : f32[text:6,5] ; error: 4..9 of axis 1
  %10 = slice %t {axis=7, start=0, end=0} : f32[text:6,8] ; error: 0..0 of axis 7
  %11 = cast %t {to=i32} : i32[text:6,8]     ; error: casts to a float
  %12 = linear %t, %v : f32[text:6,8]        ; error: weight must be a matrix
  %13 = linear %t, %b : f32[text:6,4]        ; error: weight must be a matrix without a row space
  %14 = linear %t, %w, %m : f32[text:6,8]    ; error: bias must be a vector of 8
  %15 = linear %m, %w : f32[text:6,8]        ; error: inner dimensions
  %16 = attention %t, %b, %b, %n {heads=2, scale=1.0} : f32[text:6,8] ; error: belong to different entities
  %17 = attention %t, %t, %t, %m {heads=3, scale=1.0} : f32[text:6,8] ; error: 3 heads over
  %18 = attention %t, %t, %t, %t {heads=2, scale=1.0} : f32[text:6,8] ; error: is not one value per row
  %19 = attention %t, %3, %3, %m {heads=2, scale=1.0} : f32[text:6,8] ; error: has no segments
  %20 = attention %w, %t, %t, %m {heads=2, scale=1.0} : f32[8,8] ; error: need row spaces
  %21 = attention %e, %e, %e, %m {heads=9999999999, scale=1.0} : f32[text:6,0] ; error: 9999999999 heads
  %22 = attention %t, %d, %d, %m {heads=2, scale=1.0} : f32[text:6,8] ; error: 2 heads over
  %23 = layer_norm %t, %v, %w {eps=1e-12} : f32[text:6,8] ; error: bias must be a vector of 8
  %24 = layer_norm %t, %v, %v, %m {eps=1e-12} : f32[text:6,8] ; error: differ in shape
  %25 = cross_entropy %t, %m : f32[]         ; error: labels must be i32
  %26 = cross_entropy %b, %i : f32[]         ; error: is not one value per row
  %27 = cross_entropy %t, %i, %i {reduction=weighted} : f32[] ; error: weights must be a float
  %28 = cross_entropy %t, %i, %m : f32[]     ; error: takes operands (logits, labels), got 3
  %29 = bce %t, %m {factor=1.0} : f32[]      ; error: differ in shape
  %30 = smooth_l1 %t, %t, %n : f32[]         ; error: is not one weight per row
  %31 = bce %t, %t {factor=1.0} : f16[]      ; error: its operands give f32[]",
    );
}

#[test]
fn spaces() {
    check(
        "  rows sample = 2
  %0 = input {name=x} : f32[sample:3] ; error: f32[sample:3] does not have the capacity
  %1 = param {value=w} : f32[sample:2] ; error: a parameter is a float without a row space",
    );
}

#[test]
fn names() {
    check(
        "  %0 = input {name=x} : f32[2]
  %1 = input {name=x} : f32[2]   ; error: a second input named `x`
  return %0 as \"y\"
  return %1 as \"y\"             ; error: a second output named `y`",
    );
}

#[test]
fn stages() {
    check(
        "  %0 = input {name=x} : f32[2] on 1
  %1 = add %0, %0 : f32[2]            ; error: has no stage, others have
  %2 = add %0, %0 : f32[2] on 2       ; error: runs on stage 2 and uses `input` of stage 1
  %3 = transfer %0 {to=2} : f32[2] on 1
  %4 = add %3, %3 : f32[2] on 2
  %5 = transfer %4 {to=1} : f32[2] on 2 ; error: goes from stage 2 back to 1
  %6 = scale %3 {factor=1.0} : f32[2] on 1 ; error: runs on stage 1 and uses `transfer` of stage 2
  %7 = scale %1 {factor=1.0} : f32[2] on 1 ; error: uses `add` of no stage",
    );
    check(
        "  %0 = input {name=x} : f32[2]  ; error: has no stage, others have
  %1 = input {name=z} : f32[2] on 0",
    );
}

#[test]
fn numbers() {
    check(
        "  %0 = input {name=x} : f32[2]
  %1 = scale %0 {factor=1e300} : f32[2]  ; error: attribute `factor` is not finite
  %2 = scale %0 {factor=1e30} : f32[2]",
    );
}

#[test]
fn derivatives() {
    check(
        "  %0 = input {name=x} : f32[2]
  %1 = scale %0 {factor=2.0} : f32[2] of %0
  %2 = scale %1 {factor=2.0} : f32[2] of %1  ; error: is part of the derivative of a backward node",
    );
    let text = "graph @g {
  %0 = input {name=x} : f32[2]
  %1 = scale %0 {factor=2.0} : f32[2]
  %2 = scale %0 {factor=4.0} : f32[2] of %1
}";
    let (mut graph, _) = parse_with_lines(text).unwrap();
    let named = graph.topo()[1];
    let mut patch = lxpod_ir::Patch::new();
    patch.remove(named);
    patch.apply(&mut graph).unwrap();
    verify(&graph).expect("a removed node is no longer named");
}

#[test]
fn malformed_row_spaces_are_reported() {
    use lxpod_ir::{Graph, Layout, RowSpace, Spaces};
    let mut spaces = Spaces::default();
    let sample = spaces.entities("sample", 3);
    let layout = Layout::Segments {
        owner: sample,
        longest: 2,
    };
    spaces.declare(RowSpace {
        name: "text".to_owned(),
        capacity: 5,
        layout,
    });
    spaces.segments("huge", sample, usize::MAX);
    let errors = verify(&Graph::new("g", spaces)).unwrap_err().to_string();
    assert!(
        errors.contains("row space `text` has 5 rows, its layout gives 6"),
        "{errors}"
    );
    assert!(errors.contains("more than 16777216"), "{errors}");
}
