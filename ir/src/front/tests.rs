use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use super::*;
use crate::ops::{Activation, Op};
use crate::{Graph, verify};

fn golden() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/golden")
}

fn parse(text: &str) -> Result<LxmertConfig, FrontError> {
    LxmertConfig::from_json(text.as_bytes())
}

/// The error of a configuration, which must not parse.
fn error(text: &str) -> String {
    parse(text).expect_err(text).to_string()
}

fn options(task: Task, micro_batch: usize) -> ModelOptions {
    ModelOptions {
        task,
        micro_batch,
        ..ModelOptions::default()
    }
}

fn input_names(graph: &Graph) -> BTreeSet<String> {
    let inputs = graph.nodes().filter_map(|id| match &graph.node(id).op {
        Op::Input(input) => Some(input.name.clone()),
        _ => None,
    });
    inputs.collect()
}

#[test]
fn published_configurations_parse() {
    let mut answers = BTreeMap::new();
    for entry in fs::read_dir(golden().join("configs")).expect("a folder") {
        let path = entry.expect("an entry").path();
        let bytes = fs::read(&path).expect("a file");
        let config = LxmertConfig::from_json(&bytes).expect("a valid configuration");
        let task = Task::from_architectures(&config.architectures);
        let name = path
            .file_name()
            .and_then(|name| name.to_str())
            .expect("a name");
        let (owner, _) = name.split_once(".config").expect("a configuration");
        answers.insert(
            owner.to_owned(),
            (config.num_qa_labels, config.hidden_size, task),
        );
    }
    let expected = [
        ("Graphcore_lxmert-gqa-uncased", (1842, 768, Task::Qa)),
        ("Graphcore_lxmert-vqa-uncased", (3129, 768, Task::Qa)),
        ("eltoto1219_lxmert-gqa-untuned", (1842, 768, Task::Qa)),
        ("hf-internal-testing_tiny-random-lxmert", (30, 28, Task::Qa)),
        ("unc-nlp_lxmert-base-uncased", (9500, 768, Task::Base)),
        ("unc-nlp_lxmert-vqa-uncased", (3129, 768, Task::Qa)),
    ];
    let expected = expected.map(|(name, values)| (name.to_owned(), values));
    assert_eq!(answers, BTreeMap::from(expected));
}

#[test]
fn an_empty_configuration_has_transformers_defaults() {
    let config = parse("{}").expect("defaults");
    let base = LxmertConfig::base();
    assert_eq!(config.num_qa_labels, 9500);
    assert_eq!(
        LxmertConfig {
            architectures: base.architectures.clone(),
            num_qa_labels: 1842,
            ..config
        },
        base
    );
}

#[test]
fn a_configuration_survives_its_json() {
    let text = r#"{"hidden_size": 28, "num_attention_heads": 2, "hidden_act": "swish", "x_layers": 0,
        "torch_dtype": "float16", "architectures": ["Any"], "task_qa": false, "future": [null]}"#;
    let config = parse(text).expect("valid");
    assert_eq!(config.hidden_act, Activation::Silu);
    assert_eq!(config.dtype.as_deref(), Some("float16"));
    let written = config.to_json().to_string();
    assert_eq!(parse(&written).expect("valid"), config);
}

#[test]
fn activations_have_transformers_names() {
    let act = |name: &str| parse(&format!(r#"{{"hidden_act": "{name}"}}"#));
    for (name, kind) in [
        ("gelu", Activation::Gelu),
        ("relu", Activation::Relu),
        ("silu", Activation::Silu),
        ("swish", Activation::Silu),
        ("gelu_new", Activation::GeluTanh),
    ] {
        assert_eq!(act(name).expect(name).hidden_act, kind);
    }
    let error = act("mish").expect_err("unknown");
    assert!(matches!(error, FrontError::NotSupported { .. }));
    assert_eq!(
        error.to_string(),
        "`hidden_act` \"mish\" is not supported; supported are gelu, relu, silu, swish, gelu_new"
    );
}

#[test]
fn bad_fields_are_named() {
    for (text, field) in [
        (r#"{"model_type": "bert"}"#, "`model_type`"),
        (r#"{"hidden_size": -768}"#, "`hidden_size`"),
        (r#"{"hidden_size": 0}"#, "`hidden_size`"),
        (r#"{"hidden_size": 768.5}"#, "`hidden_size`"),
        (r#"{"hidden_size": 770}"#, "`hidden_size`"),
        (r#"{"hidden_size": "768"}"#, "`hidden_size`"),
        (r#"{"vocab_size": 18446744073709551616}"#, "`vocab_size`"),
        (r#"{"vocab_size": 16777217}"#, "`vocab_size`"),
        (r#"{"num_attention_heads": null}"#, "`num_attention_heads`"),
        (r#"{"l_layers": 1000000}"#, "`l_layers`"),
        (r#"{"l_layers": 0, "x_layers": 0}"#, "`l_layers`"),
        (r#"{"r_layers": 0, "x_layers": 0}"#, "`r_layers`"),
        (r#"{"hidden_dropout_prob": 1.0}"#, "`hidden_dropout_prob`"),
        (
            r#"{"attention_probs_dropout_prob": -0.1}"#,
            "`attention_probs_dropout_prob`",
        ),
        (r#"{"initializer_range": -1}"#, "`initializer_range`"),
        (
            r#"{"visual_loss_normalizer": 0}"#,
            "`visual_loss_normalizer`",
        ),
        (
            r#"{"visual_loss_normalizer": 1e300}"#,
            "`visual_loss_normalizer`",
        ),
        (r#"{"task_qa": 1}"#, "`task_qa`"),
        (r#"{"hidden_act": 3}"#, "`hidden_act`"),
        (r#"{"architectures": 3}"#, "`architectures`"),
        (
            r#"{"hidden_size": 16777216, "intermediate_size": 16777216}"#,
            "`hidden_size`",
        ),
    ] {
        let error = error(text);
        assert!(error.starts_with(field), "{text}: {error}");
    }
}

#[test]
fn long_values_are_shortened() {
    let text = format!(r#"{{"hidden_size": "{}"}}"#, "é".repeat(1000));
    assert!(error(&text).len() < 250);
}

#[test]
fn python_numbers_are_explained() {
    for word in ["NaN", "Infinity", "-Infinity"] {
        for (text, line) in [
            (
                format!("{{\n  \"l_layers\": 2,\n  \"layer_norm_eps\": {word}\n}}"),
                3,
            ),
            (format!("{{\"layer_norm_eps\":{word},\"x_layers\":1}}"), 1),
            (format!("{{\"layer_norm_eps\": [1, {word}]}}"), 1),
        ] {
            let expected = format!(
                "line {line}: `layer_norm_eps` is {word}, which is no JSON number; write a finite number"
            );
            assert_eq!(error(&text), expected);
        }
    }
}

#[test]
fn broken_json_is_an_error_with_a_line() {
    let deep = "[".repeat(100_000);
    for text in [
        "",
        "{",
        "[1]",
        "3",
        "{\"a\": }",
        "\u{feff}{}",
        "{} {}",
        "N",
        "\n\n",
        &deep,
    ] {
        assert!(error(text).starts_with("line "), "{}", error(text));
    }
    for bytes in [
        &b"\xff\xfe{}"[..],
        b"{\"a\": \"\xff\"}",
        b"\n\n\n:N",
        b"{\"\xff\": NaN}",
    ] {
        assert!(LxmertConfig::from_json(bytes).is_err());
    }
}

/// The tensors of a model class, from the folded list of golden shapes.
fn golden_shapes(class: &str) -> BTreeMap<String, Vec<usize>> {
    let text = fs::read_to_string(golden().join("param_shapes.txt")).expect("a file");
    let header = format!("[{class}]");
    let lines = text.lines().skip_while(|line| *line != header).skip(1);
    let mut shapes = BTreeMap::new();
    for line in lines.take_while(|line| !line.starts_with('[')) {
        let (name, shape) = line.split_once(' ').expect("name and shape");
        let shape: Vec<usize> = shape
            .split('x')
            .map(|axis| axis.parse().expect("a size"))
            .collect();
        let Some((before, (range, after))) = name
            .split_once('{')
            .and_then(|(before, rest)| Some((before, rest.split_once('}')?)))
        else {
            shapes.insert(name.to_owned(), shape);
            continue;
        };
        let (first, last) = range.split_once("..").expect("a range");
        let bound = |text: &str| text.parse::<usize>().expect("a number");
        for index in bound(first)..=bound(last) {
            shapes.insert(format!("{before}{index}{after}"), shape.clone());
        }
    }
    shapes
}

#[test]
fn expected_tensors_are_those_of_the_model_classes() {
    let qa = LxmertConfig::base();
    let pretraining = parse("{}").expect("defaults");
    for (task, config, tensors, elements) in [
        (Task::Qa, &qa, 455, 211_952_178),
        (Task::Base, &qa, 449, 207_936_768),
        (Task::Pretraining, &pretraining, 472, 228_051_752),
    ] {
        let mut golden = golden_shapes(task.name());
        golden.remove("cls.predictions.decoder.weight");
        if task == Task::Base {
            golden = golden
                .into_iter()
                .map(|(name, shape)| (format!("lxmert.{name}"), shape))
                .collect();
        }
        let built = build(config, &options(task, 2)).expect("a graph");
        assert_eq!(built.expected.len(), tensors, "each tensor once");
        let count: usize = built
            .expected
            .iter()
            .map(|(_, shape)| shape.iter().product::<usize>())
            .sum();
        assert_eq!(
            (count, config.parameter_count(task)),
            (elements, elements as u64)
        );
        assert_eq!(BTreeMap::from_iter(built.expected), golden);
    }
}

#[test]
fn one_sample_needs_no_gathers() {
    let one = build(&LxmertConfig::base(), &options(Task::Qa, 1))
        .expect("a graph")
        .graph;
    let several = build(&LxmertConfig::base(), &options(Task::Qa, 8))
        .expect("a graph")
        .graph;
    assert_eq!(verify(&one), Ok(()));
    assert_eq!(verify(&several), Ok(()));
    let spaces = RowSpaces::find(&several.spaces).expect("spaces");
    assert!(spaces.are_shared());
    assert_eq!(several.spaces.get(spaces.sample_box).capacity, 8 * 36);
    let spaces = RowSpaces::find(&one.spaces).expect("spaces");
    assert!(!spaces.are_shared());
    assert_eq!(spaces.question, spaces.sample);
    let extra = &input_names(&several) - &input_names(&one);
    assert_eq!(
        extra,
        BTreeSet::from(["sample_box_rows".to_owned(), "sample_text_rows".to_owned()])
    );
    let outputs = |graph: &Graph| {
        graph
            .outputs()
            .iter()
            .map(|output| output.name.clone())
            .collect::<Vec<_>>()
    };
    assert_eq!(outputs(&one), ["question_answering_score", "pooled_output"]);
    assert_eq!(outputs(&one), outputs(&several));
}

/// Millions of multiply-adds of one example, from the sizes of the linears and attentions.
fn work(seq_len: usize) -> u64 {
    let config = LxmertConfig::base();
    let options = ModelOptions {
        seq_len,
        ..options(Task::Qa, 1)
    };
    let graph = build(&config, &options).expect("a graph").graph;
    let work = |id| {
        let shapes = graph.input_types(id);
        match &graph.node(id).op {
            Op::Linear(_) => shapes[0].shape.rows() * shapes[1].shape.elements(),
            Op::Attention(_) => 2 * shapes[0].shape.elements() * shapes[1].shape.rows(),
            _ => 0,
        }
    };
    let total: usize = graph.nodes().map(work).sum();
    (total as u64 + 500_000) / 1_000_000
}

#[test]
fn the_work_is_that_of_transformers() {
    let counted = [8, 12, 20, 28, 512].map(|seq_len| (seq_len, work(seq_len)));
    let known = [(8, 3947), (12, 4394), (20, 5291), (28, 6191), (512, 65748)];
    assert_eq!(counted, known);
}

#[test]
fn losses_bring_their_inputs_and_outputs() {
    let config = LxmertConfig::base();
    for (loss, bce, inputs, outputs) in [
        (
            Some(AnswerLoss::CrossEntropy),
            false,
            vec!["labels"],
            vec!["loss"],
        ),
        (
            Some(AnswerLoss::CrossEntropy),
            true,
            vec!["labels", "soft_labels"],
            vec!["loss", "loss_bce"],
        ),
        (
            Some(AnswerLoss::Bce),
            false,
            vec!["soft_labels"],
            vec!["loss"],
        ),
        (
            Some(AnswerLoss::Bce),
            true,
            vec!["soft_labels"],
            vec!["loss", "loss_bce"],
        ),
        (
            Some(AnswerLoss::BceTimesLabels),
            false,
            vec!["soft_labels"],
            vec!["loss"],
        ),
        (
            Some(AnswerLoss::BceTimesLabels),
            true,
            vec!["soft_labels"],
            vec!["loss", "loss_bce"],
        ),
        (None, true, vec!["soft_labels"], vec!["loss_bce"]),
        (None, false, vec![], vec![]),
    ] {
        let options = ModelOptions {
            losses: Losses::Answer { loss, bce },
            ..options(Task::Qa, 2)
        };
        let graph = build(&config, &options).expect("a graph").graph;
        let names = input_names(&graph);
        let labels: Vec<&str> = names
            .iter()
            .map(String::as_str)
            .filter(|name| name.contains("labels"))
            .collect();
        assert_eq!(labels, inputs, "{loss:?} {bce}");
        let given = graph.outputs().iter().map(|output| output.name.as_str());
        assert_eq!(given.skip(2).collect::<Vec<_>>(), outputs, "{loss:?} {bce}");
        assert_eq!(verify(&graph), Ok(()));
    }
}

#[test]
fn parts_that_are_switched_off_are_left_out() {
    let config = LxmertConfig {
        task_mask_lm: false,
        task_qa: false,
        visual_attr_loss: false,
        ..LxmertConfig::base()
    };
    let options = ModelOptions {
        losses: Losses::all_pretraining(),
        ..options(Task::Pretraining, 1)
    };
    let graph = build(&config, &options).expect("a graph").graph;
    let outputs: Vec<&str> = graph
        .outputs()
        .iter()
        .map(|output| output.name.as_str())
        .collect();
    assert_eq!(
        outputs,
        [
            "prediction_logits",
            "cross_relationship_score",
            "visual_prediction.obj",
            "visual_prediction.feat",
            "loss_matched",
            "loss_visual_obj",
            "loss_visual_feat",
            "loss",
        ]
    );
}

#[test]
fn bad_options_name_the_flag() {
    let good = options(Task::Qa, 1);
    let flag = |options: ModelOptions| match build(&LxmertConfig::base(), &options) {
        Err(FrontError::Option { flag, .. }) => flag,
        other => panic!("{options:?} gives {other:?}"),
    };
    let changed = |change: fn(&mut ModelOptions)| {
        let mut options = good.clone();
        change(&mut options);
        flag(options)
    };
    assert_eq!(changed(|o| o.seq_len = 513), "--seq-len");
    assert_eq!(changed(|o| o.seq_len = 0), "--seq-len");
    assert_eq!(changed(|o| o.boxes = 0), "--boxes");
    assert_eq!(changed(|o| o.boxes = usize::MAX), "--micro-batch");
    assert_eq!(changed(|o| o.boxes = 1 << 30), "--micro-batch");
    assert_eq!(changed(|o| o.micro_batch = 0), "--micro-batch");
    assert_eq!(changed(|o| o.micro_batch = usize::MAX), "--micro-batch");
    assert_eq!(changed(|o| o.losses = Losses::all_pretraining()), "--loss");
}

#[test]
fn the_largest_legal_sizes_do_not_overflow() {
    let config = LxmertConfig {
        hidden_size: 1 << 17,
        num_attention_heads: 1,
        intermediate_size: 1 << 17,
        l_layers: 1,
        x_layers: 1,
        r_layers: 1,
        ..LxmertConfig::base()
    };
    let mut options = ModelOptions {
        attentions: true,
        hidden_states: true,
        ..options(Task::Qa, 1)
    };
    while build(&config, &options).is_ok() {
        options.micro_batch *= 2;
    }
    options.micro_batch /= 2;
    let graph = build(&config, &options).expect("the last legal size").graph;
    let flops: u64 = graph.nodes().map(|id| graph.cost(id).flops).sum();
    assert!(flops > 0 && options.micro_batch > 1);
}

#[test]
fn tasks_have_names() {
    for task in Task::ALL {
        assert_eq!(task.to_string().parse(), Ok(task));
    }
    assert!("vqa".parse::<Task>().is_err());
    let named = |name: &str| Task::from_architectures(&[name.to_owned()]);
    assert_eq!(named("LxmertModel"), Task::Base);
    assert_eq!(named("LxmertForPreTraining"), Task::Pretraining);
    assert_eq!(
        named("PoptorchPipelinedLxmertForQuestionAnswering"),
        Task::Qa
    );
    assert_eq!(Task::from_architectures(&[]), Task::Qa);
}
