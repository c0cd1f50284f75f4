//! `ipu_config.json` of optimum-graphcore: how a model was placed on a pod there, as options of a plan here.
//!
//! Every key of every released version is known; a key that means nothing to a plan is accepted and listed. In older
//! versions a value may be an object with an entry for each size of pod.

mod keys;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use lxpod_ir::DType;
use lxpod_ir::front::{LxmertConfig, layer_scopes};
use lxpod_passes::partition::PinnedStages;
use serde_json::{Map, Value};

use crate::error::{Error, Result, quote};
use crate::nearest::nearest;
use keys::{KEYS, Key, Role};

/// The name of the file in a folder.
pub const FILE_NAME: &str = "ipu_config.json";

/// The sizes of pods that an older file distinguishes.
const PODS: [&str; 6] = ["pod4", "pod8", "pod16", "pod32", "pod64", "default"];

/// A file whose keys and values are known to be possible.
#[derive(Clone, Debug)]
pub struct IpuConfig {
    path: PathBuf,
    values: Map<String, Value>,
}

/// What a file asks of a plan in one mode on one pod. What it does not say is absent.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct IpuOptions {
    /// Copies of the pipeline.
    pub replicas: Option<usize>,
    /// Stages of the pipeline.
    pub stages: Option<usize>,
    /// Micro-batches of one replica in a step: accumulated in training, device iterations in inference.
    pub micro_batches: Option<usize>,
    /// Layers of each stage, in the model's order.
    pub layers: Option<Layers>,
    /// Whether layers are computed again for the backward half.
    pub recompute: Option<bool>,
    /// How the first moment is stored under mixed precision.
    pub first_moment: Option<DType>,
    /// The seed.
    pub seed: Option<u64>,
    /// The keys that change nothing, and why.
    pub without_effect: Vec<(&'static str, &'static str)>,
}

/// The layers of each stage; -1 stands for an even share of what the others leave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Layers {
    /// The file and the key.
    source: (PathBuf, &'static str),
    counts: Vec<i64>,
}

impl IpuConfig {
    /// Reads the file, or the [`FILE_NAME`] of the folder.
    ///
    /// # Errors
    /// There is no such file, it is no JSON object, or a key or a value is unknown; the message names the nearest
    /// key there is.
    pub fn open(path: &Path) -> Result<IpuConfig> {
        let path = if path.is_dir() {
            path.join(FILE_NAME)
        } else {
            path.to_owned()
        };
        let text = std::fs::read(&path).map_err(|source| Error::reading(&path, source))?;
        let parsed: Value = serde_json::from_slice(&text).map_err(|error| {
            let help = "name an ipu_config.json of optimum-graphcore";
            Error::invalid(&path, "contents", error.to_string(), help)
        })?;
        let Value::Object(values) = parsed else {
            let help = "name an ipu_config.json of optimum-graphcore";
            return Err(Error::invalid(&path, "contents", "is no JSON object", help));
        };
        let config = IpuConfig { path, values };
        for (name, value) in &config.values {
            config.check(name, value)?;
        }
        Ok(config)
    }

    fn check(&self, name: &str, value: &Value) -> Result<()> {
        let Some(key) = keys::find(name) else {
            let known = nearest(name, KEYS.iter().map(|key| key.name)).unwrap_or_default();
            let help = format!("the nearest key of an IPUConfig is `{known}`");
            return Err(Error::invalid(
                &self.path,
                quote(name),
                "is an unknown key",
                help,
            ));
        };
        let wrong = |value: &Value| {
            let shown: String = value.to_string().chars().take(40).collect();
            let problem = format!("is {}; must be {}", quote(&shown), key.kind.expected());
            let help = format!(
                "a value may also be an object with entries {}",
                PODS.join(", ")
            );
            Err(Error::invalid(&self.path, name, problem, help))
        };
        match value {
            value if key.kind.admits(value) => Ok(()),
            Value::Object(pods) if !pods.is_empty() => {
                if let Some(pod) = pods.keys().find(|pod| !PODS.contains(&pod.as_str())) {
                    let problem = format!("has an entry for {}, which is no pod", quote(pod));
                    let help = format!("pods are {}", PODS.join(", "));
                    return Err(Error::invalid(&self.path, name, problem, help));
                }
                match pods.values().find(|value| !key.kind.admits(value)) {
                    Some(value) => wrong(value),
                    None => Ok(()),
                }
            }
            value => wrong(value),
        }
    }

    /// What the file asks for in that mode, on a pod of so many IPUs.
    ///
    /// # Errors
    /// A value has no entry for that pod.
    pub fn options(&self, training: bool, ipus: usize) -> Result<IpuOptions> {
        let pod = format!("pod{ipus}");
        let read = |name: &'static str| self.value(name, &pod);
        let count = |name| Ok::<_, Error>(read(name)?.and_then(Value::as_u64).map(to_usize));
        let flag = |name| Ok::<_, Error>(read(name)?.and_then(Value::as_bool));
        let mut options = IpuOptions {
            seed: read("seed")?.and_then(Value::as_u64),
            without_effect: self.without_effect(training),
            ..IpuOptions::default()
        };
        if training {
            options.replicas = count("replication_factor")?;
            options.stages = count("ipus_per_replica")?;
            options.micro_batches = count("gradient_accumulation_steps")?;
            options.recompute = flag("recompute_checkpoint_every_layer")?;
            let half = flag("enable_half_first_order_momentum")?;
            options.first_moment = half.map(|half| if half { DType::F16 } else { DType::F32 });
            options.layers = self.layers("layers_per_ipu", &pod)?;
        } else {
            options.replicas = count("inference_replication_factor")?;
            options.micro_batches = count("inference_device_iterations")?;
            let own = self.layers("inference_layers_per_ipu", &pod)?;
            options.stages = match (count("inference_ipus_per_replica")?, &own) {
                (Some(stages), _) => Some(stages),
                (None, Some(layers)) if layers.counts != [-1] => Some(layers.counts.len()),
                _ => count("ipus_per_replica")?,
            };
            options.layers = match own {
                Some(own) => Some(own),
                None => self.layers("layers_per_ipu", &pod)?,
            };
        }
        if let Some(layers) = &options.layers {
            let stages = *options.stages.get_or_insert(layers.counts.len());
            if layers.says_nothing(stages) {
                let key = layers.source.1;
                options.layers = None;
                options
                    .without_effect
                    .push((key, "it is the class's default"));
            }
        }
        Ok(options)
    }

    /// The value of a key on that pod; none if it is absent or `null`.
    fn value(&self, name: &'static str, pod: &str) -> Result<Option<&Value>> {
        let kind = keys::find(name).map(|key| key.kind);
        let found = match self.values.get(name) {
            Some(Value::Object(pods)) if kind != Some(keys::Kind::Arguments) => {
                let entry = pods.get(pod).or_else(|| pods.get("default"));
                let missing = || {
                    let problem = format!("has no entry for {pod}, and no default");
                    Error::invalid(
                        &self.path,
                        name,
                        problem,
                        "add one, or choose another --target",
                    )
                };
                Some(entry.ok_or_else(missing)?)
            }
            found => found,
        };
        Ok(found.filter(|value| !value.is_null()))
    }

    fn layers(&self, name: &'static str, pod: &str) -> Result<Option<Layers>> {
        let list = self.value(name, pod)?.and_then(Value::as_array);
        Ok(list.map(|list| Layers {
            source: (self.path.clone(), name),
            counts: list.iter().filter_map(Value::as_i64).collect(),
        }))
    }

    /// The keys that are there and change nothing in that mode.
    fn without_effect(&self, training: bool) -> Vec<(&'static str, &'static str)> {
        let here = |key: &&Key| self.values.contains_key(key.name);
        let reason = |key: &Key| match key.role {
            Role::None(reason) => Some((key.name, reason)),
            Role::Training if !training => Some((key.name, "the plan is for inference")),
            Role::Inference if training => Some((key.name, "the plan is for training")),
            Role::Training | Role::Inference | Role::Both => None,
        };
        KEYS.iter().filter(here).filter_map(reason).collect()
    }
}

impl Layers {
    /// The file that says so.
    pub fn path(&self) -> &Path {
        &self.source.0
    }

    /// Whether this is what the class has if nothing is said, which older versions write for every model: `[1]`
    /// beside more than one IPU. On one IPU there is nothing to say.
    fn says_nothing(&self, stages: usize) -> bool {
        stages == 1 || self.counts == [1]
    }

    /// The placement on `stages` stages: each layer of the model in turn, with what leads to the first on the
    /// first stage, and what follows a layer on that layer's.
    ///
    /// # Errors
    /// There are not as many numbers as stages, or not as many layers as the model has.
    pub fn pinned(&self, config: &LxmertConfig, stages: usize) -> Result<PinnedStages> {
        let (path, key) = &self.source;
        let scopes = layer_scopes(config);
        let wrong = |problem: String| {
            let help = format!(
                "the model has {} language, {} vision and {} cross layers, in this order; -1 stands for an even \
                 share of those left, and --place names scopes instead",
                config.l_layers, config.r_layers, config.x_layers
            );
            Error::invalid(path, *key, problem, help)
        };
        let counts = self.expanded(stages, scopes.len()).map_err(wrong)?;
        PinnedStages::of_counts(&counts, &scopes).map_err(wrong)
    }

    /// The layers of each stage, as optimum-graphcore expands them: what the wildcards leave over goes to the last.
    fn expanded(&self, stages: usize, layers: usize) -> Result<Vec<usize>, String> {
        let counts = match self.counts.as_slice() {
            [-1] => vec![-1; stages],
            counts => counts.to_vec(),
        };
        if counts.len() != stages {
            return Err(format!(
                "is for {} IPUs; a replica has {stages}",
                counts.len()
            ));
        }
        let fixed = counts
            .iter()
            .filter_map(|&count| usize::try_from(count).ok());
        let fixed = fixed.fold(0usize, usize::saturating_add);
        let wild = counts.iter().filter(|&&count| count < 0).count();
        let left = layers
            .checked_sub(fixed)
            .ok_or_else(|| format!("places {fixed} layers; the model has {layers}"))?;
        let mut seen = 0;
        let expand = |&count: &i64| match usize::try_from(count) {
            Ok(count) => count,
            Err(_) => {
                seen += 1;
                let rest = if seen == wild { left % wild } else { 0 };
                left / wild + rest
            }
        };
        Ok(counts.iter().map(expand).collect())
    }
}

/// A count, too large for every pod if it does not fit.
fn to_usize(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}
