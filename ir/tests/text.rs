//! The text form: what it accepts, what it prints, how it reports.

use lxpod_ir::text::{parse, parse_with_lines, print, render_verify_errors};
use lxpod_ir::{VerifyErrors, verify};

const SMALL: &str = r#"graph @qa {
  rows sample = 2
  rows text = 40 by sample, 20 each
  rows box = 6 by sample, 3 each
  rows text+box = 46 of text, box
  %0 = input {name=input_ids} : i32[text:40]
  %1 = input {name=mask} : f32[text:40]
  %2 = param {value="lxmert.word_embeddings.weight"} : f32[100,24]
  %3 = gather_rows %2, %0 : f32[text:40,24] in "lxmert.embeddings"
  %4, %5 = attention %3, %3, %3, %1 {heads=12, probabilities=true, scale=0.1} : f32[text:40,24], f32[text:40,12,20] in "lxmert.encoder" on 3
  return %4 as "embedding_output"
  return %5 as "attentions.0"
}
"#;

fn error_of(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

/// A graph of these lines over a few row spaces.
fn graph(lines: &str) -> String {
    format!("graph @g {{\n  rows sample = 2\n  rows text = 40 by sample, 20 each\n{lines}\n}}\n")
}

#[test]
fn prints_what_it_parsed() {
    assert_eq!(print(&parse(SMALL).unwrap()), SMALL);
}

#[test]
fn values_have_any_name_and_any_order_of_lines() {
    let text = graph(
        "  return %sum.0 as \"y\"\n  %sum.0 = add %x, %x : f32[]\n  %x = constant {data=[1e-7]} : f32[] ; last",
    );
    let printed = print(&parse(&text).unwrap());
    let expected = graph(
        "  %0 = constant {data=[1e-7]} : f32[]\n  %1 = add %0, %0 : f32[]\n  return %1 as \"y\"",
    );
    assert_eq!(printed, expected);
}

#[test]
fn odd_names_are_quoted() {
    let text = "graph @\"a b\" {\n  rows \"8 x\" = 3\n  %0 = input {name=\"é\\n\\\"\"} : f32[\"8 x\":3] in \"s;p\"\n  return %0 as \"\"\n}\n";
    assert_eq!(print(&parse(text).unwrap()), text);
}

#[test]
fn forward_nodes_are_named_by_their_first_value() {
    let text = graph(
        "  %0 = input {name=x} : f32[4]
  %1 = scale %0 {factor=2.0} : f32[4] in \"a\" of %2
  %2, %3, %4 = layer_norm_grad %0, %0, %0 {eps=0.1} : f32[4], f32[4], f32[4]
  %5 = add %1, %0 : f32[4] of %2 on 3",
    );
    assert_eq!(print(&parse(&text).unwrap()), text);
    let error = error_of(&graph("  %0 = input {name=x} : f32[4] of %7"));
    assert!(error.contains("value `%7` is not defined"), "{error}");
}

#[test]
fn floats_are_short_and_exact() {
    let text = graph(
        "  %0 = constant {data=[0.1, 3.141592653589793, -0.0, 1e+300]} : f32[4]\n  %1 = scale %0 {factor=0.33333334} : f32[4]",
    );
    assert_eq!(print(&parse(&text).unwrap()), text);
}

#[test]
fn errors_have_a_place() {
    for (lines, expected) in [
        (
            "  %0 = inptu {name=x} : f32[]",
            "line 4, column 8: unknown op `inptu`",
        ),
        (
            "  %0 = add %1, %1 : f32[]",
            "line 4, column 12: value `%1` is not defined",
        ),
        (
            "  return %9 as \"y\"",
            "line 4, column 10: value `%9` is not defined",
        ),
        (
            "  %0 = input {name=x} : f33[]",
            "line 4, column 25: unknown dtype `f33`",
        ),
        (
            "  %0 = input {name=x} : f32[bx:2]",
            "no row space `bx` is declared above",
        ),
        ("  %0 = input {name=x} : f32[2", "expected `]`, found `}`"),
        ("  %0 = input {name=x}", "expected `:`, found `}`"),
        ("  %0, %1 = input {name=x} : f32[]", "1 types for 2 outputs"),
        (
            "  %0 = input {name=x, name=y} : f32[]",
            "attribute `name` is given twice",
        ),
        ("  %0 = input {nam=x} : f32[]", "input: unknown field `nam`"),
        ("  %0 = input : f32[]", "input: missing field `name`"),
        (
            "  %0 = input {name=[1} : f32[]",
            "line 4, column 20: not a JSON value",
        ),
        (
            "  %0 = input {name=x} : f32[] %1 = input {name=y} : f32[]",
            "expected the end of the line, found `%`",
        ),
        (
            "  %0 = input {name=x} : f32[]\n  %0 = input {name=y} : f32[]",
            "line 5, column 3: value `%0` is defined twice",
        ),
        ("  rows text = 3", "row space `text` is declared twice"),
        (
            "  rows box = 7 by sample, 3 each",
            "row space `box` has 7 rows, its layout gives 6",
        ),
        (
            "  rows box = 40 by text, 1 each",
            "the owner of row space `box` has no entities",
        ),
        (
            "  rows all = 99999999999 of text",
            "has 99999999999 rows, more than",
        ),
        (
            "  rows all = 99999999999999999999999",
            "the capacity is too large",
        ),
        (
            "  %0 = input {name=x} : f32[4294967296,4294967296,4294967296]",
            "a tensor of more than",
        ),
        (
            "  %0 = input {name=x} : f32[0,18446744073709551615]",
            "a tensor of more than",
        ),
        (
            "  %0 = input {name=x} : f32[] on 4294967296",
            "the stage is too large",
        ),
        ("  %0 = param {value=\"rows(5, 3, x)\"} : f32[]", "param: "),
        ("  %0 = param {value=\"scale(0.3, x)\"} : f32[]", "param: "),
    ] {
        let error = error_of(&graph(lines));
        assert!(error.contains(expected), "{lines}\n  gives {error}");
    }
}

#[test]
fn nesting_is_limited() {
    let deep = "[".repeat(100_000);
    error_of(&graph(&format!("  %0 = constant {{data={deep}}} : f32[]")));
    let calls = "concat(".repeat(100_000);
    error_of(&graph(&format!(
        "  %0 = param {{value=\"{calls}\"}} : f32[]"
    )));
}

#[test]
fn rendering_shows_the_line() {
    let source = graph("  %0 = input {name=x} : f32[]\n  %1 = add %0, %2 : f32[]");
    let rendered = parse(&source).unwrap_err().render("x.lx", &source);
    assert_eq!(
        rendered,
        "error: value `%2` is not defined
 --> x.lx:5:16
  |
5 |   %1 = add %0, %2 : f32[]
  |                ^^"
    );
}

fn violations(source: &str) -> (VerifyErrors, String) {
    let (graph, lines) = parse_with_lines(source).unwrap();
    let errors = verify(&graph).unwrap_err();
    let rendered = render_verify_errors("x.lx", source, &lines, &errors);
    (errors, rendered)
}

#[test]
fn violations_stand_under_their_lines() {
    let source = graph(
        "  %0 = input {name=x} : f32[8]\n  %1 = add %0, %0 : f32[9] in \"a.b\"\n  return %1 as \"y\"\n  return %0 as \"y\"",
    );
    let (errors, rendered) = violations(&source);
    assert_eq!(
        errors.to_string(),
        "the graph breaks invariants in 2 places
  add in a.b: has type f32[9], its operands give f32[8]
    %1 = add %0, %0 : f32[9] in \"a.b\"
  a second output named `y`"
    );
    assert_eq!(
        rendered,
        "error: add in a.b: has type f32[9], its operands give f32[8]
 --> x.lx:5:3
  |
5 |   %1 = add %0, %0 : f32[9] in \"a.b\"
  |   ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^

error: a second output named `y`
 --> x.lx:7:10
  |
7 |   return %0 as \"y\"
  |          ^^^^^^^^^"
    );
}
