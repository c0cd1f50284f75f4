//! The manager: what it runs, reports and refuses.

mod support;

use lxpod_ir::ops::Scale;
use lxpod_ir::text::parse;
use lxpod_ir::{DType, Graph, NodeId, Patch};
use lxpod_passes::{
    Found, Manager, Options, PASSES, PIPELINE, Pass, PassError, Precision, Run, find, names,
    optimise,
};
use support::lxmert::{Layers, build};

fn small() -> Graph {
    build(Layers {
        language: 1,
        vision: 1,
        cross: 1,
    })
}

#[test]
fn passes_are_found_by_name() {
    for pass in PASSES {
        assert_eq!(find(pass.name).unwrap().name, pass.name);
    }
    assert!(PIPELINE.iter().all(|pass| find(pass.name).is_ok()));
    assert_eq!(names().count(), PASSES.len());
    let error = find("cdr").unwrap_err().to_string();
    assert!(
        error.contains("`cdr`") && error.contains("canonicalise, fold, cse"),
        "{error}"
    );
}

#[test]
fn precisions_have_names() {
    for precision in [Precision::Fp32, Precision::Mixed] {
        assert_eq!(precision.to_string().parse(), Ok(precision));
    }
    assert!("fp16".parse::<Precision>().is_err());
}

#[test]
fn the_report_follows_the_pipeline() {
    let mut graph = small();
    let before = graph.len();
    let report = optimise(&mut graph, &Options::default()).unwrap();
    let ran: Vec<&str> = report.passes.iter().map(|pass| pass.name).collect();
    let listed: Vec<&str> = PIPELINE.iter().map(|pass| pass.name).collect();
    assert_eq!(ran, listed);
    assert_eq!(report.passes[0].nodes_before, before);
    assert_eq!(report.passes.last().unwrap().nodes_after, graph.len());
    for pair in report.passes.windows(2) {
        assert_eq!(pair[0].nodes_after, pair[1].nodes_before);
    }
}

#[test]
fn a_run_can_stop_after_any_patch() {
    let whole = optimise(&mut small(), &Options::default())
        .unwrap()
        .patches();
    for patches in 0..whole {
        let mut graph = small();
        let mut manager = Manager::new(Options::default()).stop_after(patches);
        let report = manager.run(PIPELINE, &mut graph).unwrap();
        assert_eq!(report.patches(), patches);
    }
}

#[test]
fn a_hook_sees_the_graph_after_a_pass() {
    let mut seen = Vec::new();
    let mut manager = Manager::new(Options::default())
        .print_after("dce", |name, graph| seen.push((name, graph.len())))
        .unwrap();
    let report = manager.run(PIPELINE, &mut small()).unwrap();
    drop(manager);
    let expected: Vec<_> = report
        .passes
        .iter()
        .filter(|pass| pass.name == "dce")
        .map(|pass| (pass.name, pass.nodes_after))
        .collect();
    assert_eq!(seen, expected);
    assert!(
        Manager::new(Options::default())
            .print_after("x", |_, _| ())
            .is_err()
    );
}

#[test]
fn a_broken_input_is_not_blamed_on_a_pass() {
    let text = "graph @g {\n  %0 = constant {data=[1.0]} : f32[2]\n  return %0 as \"y\"\n}\n";
    let error = optimise(&mut parse(text).unwrap(), &Options::default()).unwrap_err();
    assert!(matches!(error, PassError::Input(_)), "{error}");
}

/// Stores every value it meets as an integer.
fn breaking(graph: &Graph, id: NodeId, _: &Options) -> Found {
    let value = graph.value(id);
    let ty = graph.ty(value);
    let mut patch = Patch::new();
    patch.retype(value, ty.with_dtype(DType::I32));
    Ok((ty.dtype != DType::I32).then_some(patch))
}

/// Scales the answer once more.
fn endless(graph: &Graph, _: &Options) -> Found {
    let value = graph.outputs()[0].value;
    let mut patch = Patch::new();
    let scaled = patch.add(graph, value.node, Scale { factor: 2.0 }, &[value.into()])?;
    patch.replace(value, scaled);
    Ok(Some(patch))
}

/// Replaces scores by weights.
fn mistyped(graph: &Graph, _: &Options) -> Found {
    let mut patch = Patch::new();
    let first = graph.nodes().next().ok_or("empty")?;
    patch.replace(graph.outputs()[0].value, graph.value(first));
    Ok(Some(patch))
}

fn error_of(run: Run) -> PassError {
    let pass = Pass {
        name: "wrong",
        doc: "",
        run,
    };
    let mut graph = parse(
        "graph @g {
          rows sample = 1
          %0 = input {name=x} : f32[sample:1,2]
          %1 = slice %0 {axis=1, end=1, start=0} : f32[sample:1,1]
          return %1 as \"y\"
        }",
    )
    .unwrap();
    Manager::new(Options::default())
        .run(&[&pass], &mut graph)
        .unwrap_err()
}

#[test]
fn a_wrong_pass_is_named() {
    let broken = error_of(Run::Each(breaking));
    assert!(
        matches!(broken, PassError::Invalid { pass: "wrong", .. }),
        "{broken}"
    );
    let refused = error_of(Run::Whole(mistyped));
    assert!(
        matches!(refused, PassError::Refused { pass: "wrong", .. }),
        "{refused}"
    );
    let unsettled = error_of(Run::Whole(endless));
    assert!(
        matches!(unsettled, PassError::Unsettled { pass: "wrong", .. }),
        "{unsettled}"
    );
}
