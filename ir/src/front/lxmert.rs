//! The model as a graph.

use super::encoder::Encoded;
use super::inputs::{Context, Inputs, Trace};
use super::losses::Predictions;
use super::{FrontError, Losses, LxmertConfig, ModelOptions, RowSpaces, Task};
use super::{embeddings, encoder, heads, losses};
use crate::ops::Op;
use crate::{Binding, Builder, Graph, Value};

/// A model as built: nothing fused, nothing removed.
#[derive(Clone, Debug)]
pub struct Built {
    /// The graph.
    pub graph: Graph,
    /// Every tensor of the model class with its shape, in Transformers' order, those included that
    /// no output depends on. The tied language decoder is not among them.
    pub expected: Vec<(String, Vec<usize>)>,
}

/// Builds the graph of a model.
///
/// # Errors
/// The configuration or the options are out of range, or do not fit each other; the error names
/// the field or the flag.
pub fn build(config: &LxmertConfig, options: &ModelOptions) -> Result<Built, FrontError> {
    config.check()?;
    options.check(config)?;
    let drops = options.drops(config);
    let (spaces, rows) = RowSpaces::declare(options, options.micro_batch > 1 && !drops);
    let mut b = Builder::new(&format!("lxmert_{}", options.task), spaces);
    let inputs = Inputs::declare(&mut b, config, &rows, drops);
    let cx = Context {
        config,
        options,
        rows,
        inputs,
    };
    let mut trace = Trace::new(options);
    let body = b.scoped("lxmert", |b| body(b, &cx, &mut trace));
    match options.task {
        Task::Base => base(&mut b, &body),
        Task::Qa => question_answering(&mut b, &cx, &body),
        Task::Pretraining => pretraining(&mut b, &cx, &body),
    }
    trace.finish(&mut b);
    let graph = b.finish().map_err(FrontError::Internal)?;
    let expected = parameters(&graph);
    Ok(Built { graph, expected })
}

/// The checkpoint tensors of a freshly built graph, in which each parameter is one tensor, in the
/// order they were declared.
pub fn parameters(graph: &Graph) -> Vec<(String, Vec<usize>)> {
    let named = graph.nodes().filter_map(|id| {
        let node = graph.node(id);
        match &node.op {
            Op::Param(param) => match &param.value {
                Binding::Tensor(name) => Some((name.clone(), node.types[0].shape.to_vec())),
                Binding::Concat(_) | Binding::Rows(..) | Binding::Scale(..) => None,
            },
            _ => None,
        }
    });
    named.collect()
}

/// What `LxmertModel` gives, and the word table.
struct Body {
    encoded: Encoded,
    pooled: Value,
    word_table: Value,
}

fn body(b: &mut Builder, cx: &Context<'_>, trace: &mut Trace) -> Body {
    let words = embeddings::words(b, cx);
    trace.hidden_state("embedding_output", words.embedded);
    let encoded = encoder::encode(b, cx, words.embedded, trace);
    let pooled = heads::pooler(b, cx, encoded.language);
    Body {
        encoded,
        pooled,
        word_table: words.table,
    }
}

fn base(b: &mut Builder, body: &Body) {
    b.output("language_output", body.encoded.language);
    b.output("vision_output", body.encoded.vision);
    b.output("pooled_output", body.pooled);
}

fn question_answering(b: &mut Builder, cx: &Context<'_>, body: &Body) {
    let score = heads::answer(b, cx, body.pooled);
    b.output("question_answering_score", score);
    b.output("pooled_output", body.pooled);
    if let Losses::Answer { loss, bce } = cx.options.losses {
        losses::answer(b, cx, score, loss, bce);
    }
}

fn pretraining(b: &mut Builder, cx: &Context<'_>, body: &Body) {
    let words = heads::language(b, cx, body.encoded.language, body.word_table);
    b.output("prediction_logits", words);
    let matched = heads::matched(b, cx, body.pooled);
    b.output("cross_relationship_score", matched);
    let objects = (cx.config.task_obj_predict).then(|| heads::objects(b, cx, body.encoded.vision));
    if let Some(objects) = &objects {
        let named = [
            ("visual_prediction.obj", objects.classes),
            ("visual_prediction.attr", objects.attributes),
            ("visual_prediction.feat", objects.features),
        ];
        for (name, value) in named {
            if let Some(value) = value {
                b.output(name, value);
            }
        }
    }
    let answer = cx.config.task_qa.then(|| heads::answer(b, cx, body.pooled));
    if let Some(answer) = answer {
        b.output("question_answering_score", answer);
    }
    if let Losses::Pretraining(wanted) = &cx.options.losses {
        let predictions = Predictions {
            words,
            matched,
            objects,
            answer,
        };
        losses::pretraining(b, cx, wanted, &predictions);
    }
}
