//! What a model is: its configuration, and its parameters and work by component.

use lxpod_ir::front::{ModelOptions, Task, build};
use lxpod_passes::{CompileError, config_hash};
use lxpod_runtime::Model;
use serde_json::{Value, json};

use crate::cli::error::Result;
use crate::cli::output::{self, HEADING, count, grouped, styled};
use crate::cli::table::Table;
use crate::cli::{Global, scopes};

/// One kind of module.
struct Component {
    name: String,
    modules: Vec<String>,
    parameters: u64,
    flops: u64,
}

pub(super) fn show(name: &str, global: &Global) -> Result<()> {
    let model = Model::open(name, 0)?;
    let task = Task::from_architectures(&model.config.architectures);
    let options = ModelOptions {
        task,
        ..ModelOptions::default()
    };
    let seq_len = options.seq_len.min(model.config.max_position_embeddings);
    let options = ModelOptions { seq_len, ..options };
    let components = components(&model, &options)?;
    if global.json {
        return output::json(&document(&model, &options, &components));
    }
    output::print(&text(&model, &options, &components))
}

fn components(model: &Model, options: &ModelOptions) -> Result<Vec<Component>> {
    let built = build(&model.config, options).map_err(CompileError::from)?;
    let mut components: Vec<Component> = Vec::new();
    for (name, shape) in &built.expected {
        let elements = shape.iter().map(|&axis| axis as u64).product::<u64>();
        find(&mut components, name).parameters += elements;
    }
    for id in built.graph.topo() {
        let flops = built.graph.cost(id).flops;
        if flops > 0 {
            find(&mut components, &built.graph.node(id).scope).flops += flops;
        }
    }
    Ok(components)
}

/// The component of a scope, a new one if it is the first of its kind.
fn find<'a>(components: &'a mut Vec<Component>, scope: &str) -> &'a mut Component {
    let module = scopes::module(scope);
    let name = scopes::kind(module);
    let known = components
        .iter()
        .position(|component| component.name == name);
    let index = known.unwrap_or_else(|| {
        components.push(Component {
            name: name.to_owned(),
            modules: Vec::new(),
            parameters: 0,
            flops: 0,
        });
        components.len() - 1
    });
    let component = &mut components[index];
    if !component.modules.iter().any(|known| known == module) {
        component.modules.push(module.to_owned());
    }
    component
}

fn document(model: &Model, options: &ModelOptions, components: &[Component]) -> Value {
    let config = model.config.to_json();
    let parts = components.iter().map(|component| {
        json!({
            "name": component.name,
            "modules": component.modules.len(),
            "parameters": component.parameters,
            "flops": component.flops,
        })
    });
    json!({
        "model": model.name,
        "task": options.task.name(),
        "seq_len": options.seq_len,
        "boxes": options.boxes,
        "config_hash": config_hash(&config),
        "config": config,
        "parameters": components.iter().map(|component| component.parameters).sum::<u64>(),
        "flops": components.iter().map(|component| component.flops).sum::<u64>(),
        "components": parts.collect::<Vec<_>>(),
    })
}

fn text(model: &Model, options: &ModelOptions, components: &[Component]) -> String {
    let mut table = Table::new(&["<component", "modules", "parameters", "GFLOP a sample"]);
    let row = |name: &str, modules: usize, parameters: u64, flops: u64| {
        let modules = if modules > 0 {
            modules.to_string()
        } else {
            String::new()
        };
        [
            name.to_owned(),
            modules,
            grouped(parameters),
            format!("{:.3}", flops as f64 / 1e9),
        ]
    };
    for component in components {
        table.row(row(
            &component.name,
            component.modules.len(),
            component.parameters,
            component.flops,
        ));
    }
    let parameters = components
        .iter()
        .map(|component| component.parameters)
        .sum();
    let flops = components.iter().map(|component| component.flops).sum();
    table.row(row("all", 0, parameters, flops));
    let mut config = Table::new(&["<config.json", "<value"]);
    if let Value::Object(fields) = model.config.to_json() {
        for (name, value) in fields {
            config.row([name, value.to_string()]);
        }
    }
    format!(
        "{}  {}: task {}, {} parameters\n\n{}\nWork as the model is defined, before any pass, for {} tokens and {} boxes.\n\n{}",
        styled(HEADING, "model"),
        model.name,
        options.task,
        count(parameters),
        table.render(),
        options.seq_len,
        options.boxes,
        config.render(),
    )
}
