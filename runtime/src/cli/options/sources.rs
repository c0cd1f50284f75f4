//! Plan options that come from elsewhere than the command line: an `ipu_config.json`, a placement by hand.

use std::path::{Path, PathBuf};

use lxpod_ir::DType;
use lxpod_ir::front::LxmertConfig;
use lxpod_passes::Precision;
use lxpod_passes::partition::PinnedStages;
use lxpod_passes::schedule::Rule;
use lxpod_runtime::Error;
use lxpod_runtime::ipu_config::{IpuConfig, Layers};

use super::{Mode, PlanOptions, Recompute};
use crate::cli::Global;
use crate::cli::error::{CliError, Result};
use crate::cli::files;

/// Placements by hand that have a name.
const PLACEMENTS: [(&str, &str); 1] = [(
    "graphcore",
    include_str!("../../../placements/graphcore.toml"),
)];

/// What an `ipu_config.json` says that no option of the command line does.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configured {
    layers: Option<Layers>,
    first_moment: Option<DType>,
}

impl PlanOptions {
    /// The options with what `--ipu-config` says where the command line says nothing; what has no effect is noted.
    ///
    /// # Errors
    /// The file is wrong, or knows nothing of the target.
    pub(crate) fn resolved(mut self, global: &Global) -> Result<PlanOptions> {
        let Some(path) = &self.ipu_config else {
            return Ok(self);
        };
        let file = IpuConfig::open(path)?;
        let tiles = self.target()?.tiles;
        let found = file.options(self.mode == Some(Mode::Training), tiles)?;
        let reasons = found.without_effect.iter();
        let listed: Vec<String> = reasons.map(|(key, why)| format!("{key} ({why})")).collect();
        if !listed.is_empty() {
            let listed = listed.join(", ");
            global.note(&format!(
                "note: {}: without effect: {listed}",
                path.display()
            ));
        }
        let stages_given = self.stages.is_some() && self.stages != found.stages;
        self.replicas = self.replicas.or(found.replicas);
        self.stages = self.stages.or(found.stages);
        self.gradient_accumulation = self.gradient_accumulation.or(found.micro_batches);
        self.seed = self.seed.or(found.seed);
        self.recompute = self.recompute.or(found.recompute.map(|every_layer| {
            if every_layer {
                Recompute::Layer
            } else {
                Recompute::None
            }
        }));
        self.replicated_tensor_sharding |= found.replicated_tensor_sharding == Some(true);
        let layers = found.layers.filter(|_| self.place.is_none());
        if let Some(layers) = layers.as_ref().filter(|_| stages_given) {
            let file = layers.path().display();
            global.note(&format!(
                "note: {file}: layers_per_ipu gives way to --stages"
            ));
        }
        self.configured = Configured {
            layers: layers.filter(|_| !stages_given),
            first_moment: found.first_moment,
        };
        Ok(self)
    }

    /// Whether an `ipu_config.json` says which layers go where.
    pub(crate) fn layers_are_given(&self) -> bool {
        self.configured.layers.is_some()
    }

    /// How an `ipu_config.json` stores the first moment.
    pub(crate) fn first_moment(&self) -> Option<DType> {
        self.configured.first_moment
    }

    /// [`PlanOptions::first_moment`], where the precision stores anything in f16.
    pub(super) fn stored_first_moment(&self) -> Option<DType> {
        let mixed = self.precision.unwrap_or(Precision::Mixed) == Precision::Mixed;
        self.first_moment().filter(|_| mixed)
    }

    /// Stages on one tile.
    pub(super) fn chunks_of_a_tile(&self) -> usize {
        match self.schedule {
            Some(Rule::Interleaved) => self.chunks.unwrap_or(2),
            _ => 1,
        }
    }

    /// The placement by hand, of `--place` or else of the file.
    ///
    /// # Errors
    /// It is unknown or wrong, or does not fit the model.
    pub(super) fn pinned(&self, config: &LxmertConfig) -> Result<Option<PinnedStages>> {
        if let Some(place) = &self.place {
            return placement(place).map(Some);
        }
        let Some(layers) = &self.configured.layers else {
            return Ok(None);
        };
        let stages = self.stages.unwrap_or(1) * self.chunks_of_a_tile();
        Ok(Some(layers.pinned(config, stages)?))
    }
}

/// The placement of that name, or of a file.
fn placement(name: &Path) -> Result<PinnedStages> {
    let known = PLACEMENTS
        .iter()
        .find(|(known, _)| Path::new(known) == name);
    let text = match known {
        Some((_, text)) => (*text).to_owned(),
        None if name
            .extension()
            .is_some_and(|extension| extension == "toml") =>
        {
            files::read_text(name)?
        }
        None => {
            let names = PLACEMENTS.map(|(name, _)| name).join(", ");
            let message = format!(
                "`{}` is unknown; use {names} or a .toml file",
                name.display()
            );
            return Err(CliError::option("--place", message));
        }
    };
    let parsed = toml::from_str(&text).map_err(|error| Error::InvalidFile {
        path: PathBuf::from(name),
        field: "stages".to_owned(),
        problem: error.message().to_owned(),
        help: "write a list of scopes for each stage: stages = [[\"lxmert.embeddings\"], [\"lxmert.encoder\"]]"
            .to_owned(),
    });
    Ok(parsed?)
}

/// Parses the value of `--set`.
pub(super) fn setting(text: &str) -> std::result::Result<(String, String), String> {
    let (field, value) = text
        .split_once('=')
        .ok_or("must be FIELD=VALUE, such as link.gbps=64")?;
    Ok((field.trim().to_owned(), value.trim().to_owned()))
}
