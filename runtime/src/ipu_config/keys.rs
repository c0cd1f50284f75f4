//! The keys of an `ipu_config.json`, of every released version of optimum-graphcore's `IPUConfig`, and what each
//! may hold.

use serde_json::Value;

/// What a key may hold; `null` stands for the class's default everywhere.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// true or false.
    Flag,
    /// A whole number of at least this.
    Count(u64),
    /// A share, or one of each IPU.
    Shares,
    /// Whole numbers of each IPU, of at least this.
    PerIpu(i64),
    /// Text.
    Text,
    /// Whatever Python takes as keyword arguments.
    Arguments,
}

/// What a key does to a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It is an option of the plan, in training.
    Training,
    /// It is an option of the plan, in inference.
    Inference,
    /// It is an option of the plan in both modes, unless one for inference is there too.
    Both,
    /// Nothing, and why.
    None(&'static str),
}

/// One key.
#[derive(Clone, Copy, Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) kind: Kind,
    pub(super) role: Role,
}

const fn key(name: &'static str, kind: Kind, role: Role) -> Key {
    Key { name, kind, role }
}

const SPLIT: Role = Role::None("products and lookups are not cut into pieces");
const PROPORTION: Role = Role::None("temporaries take what they need");
const HOST: Role = Role::None("it concerns the host");
const CALL: Role = Role::None("it is Python's");

/// Every key.
pub(super) const KEYS: &[Key] = &[
    key("replication_factor", Kind::Count(1), Role::Training),
    key(
        "inference_replication_factor",
        Kind::Count(1),
        Role::Inference,
    ),
    key("ipus_per_replica", Kind::Count(1), Role::Both),
    key(
        "inference_ipus_per_replica",
        Kind::Count(1),
        Role::Inference,
    ),
    key(
        "gradient_accumulation_steps",
        Kind::Count(1),
        Role::Training,
    ),
    key(
        "device_iterations",
        Kind::Count(1),
        Role::None("a step here is one update"),
    ),
    key(
        "inference_device_iterations",
        Kind::Count(1),
        Role::Inference,
    ),
    key("layers_per_ipu", Kind::PerIpu(-1), Role::Both),
    key(
        "inference_layers_per_ipu",
        Kind::PerIpu(-1),
        Role::Inference,
    ),
    key(
        "recompute_checkpoint_every_layer",
        Kind::Flag,
        Role::Training,
    ),
    key(
        "enable_half_first_order_momentum",
        Kind::Flag,
        Role::Training,
    ),
    key("seed", Kind::Count(0), Role::Both),
    key(
        "optimizer_state_offchip",
        Kind::Flag,
        Role::None("the optimiser's state is on the tiles"),
    ),
    key(
        "replicated_tensor_sharding",
        Kind::Flag,
        Role::None("each replica holds the optimiser's whole state"),
    ),
    key(
        "decompose_grad_sum",
        Kind::Flag,
        Role::None("sums of gradients have one order"),
    ),
    key("matmul_proportion", Kind::Shares, PROPORTION),
    key("inference_matmul_proportion", Kind::Shares, PROPORTION),
    key(
        "enable_half_partials",
        Kind::Flag,
        Role::None("partial sums are f32"),
    ),
    key("embedding_serialization_factor", Kind::Count(0), SPLIT),
    key(
        "inference_embedding_serialization_factor",
        Kind::Count(0),
        SPLIT,
    ),
    key("projection_serialization_factor", Kind::Count(0), SPLIT),
    key(
        "inference_projection_serialization_factor",
        Kind::Count(0),
        SPLIT,
    ),
    key(
        "serialized_embedding_splits_per_ipu",
        Kind::PerIpu(0),
        SPLIT,
    ),
    key(
        "inference_serialized_embedding_splits_per_ipu",
        Kind::PerIpu(0),
        SPLIT,
    ),
    key(
        "serialized_projection_splits_per_ipu",
        Kind::PerIpu(0),
        SPLIT,
    ),
    key(
        "inference_serialized_projection_splits_per_ipu",
        Kind::PerIpu(0),
        SPLIT,
    ),
    key(
        "auto_loss_scaling",
        Kind::Flag,
        Role::None("the loss scale is an option of `lxpod train`"),
    ),
    key(
        "output_mode",
        Kind::Text,
        Role::None("every sample has its result"),
    ),
    key("executable_cache_dir", Kind::Text, HOST),
    key("profile_dir", Kind::Text, HOST),
    key("use_popdist", Kind::Flag, HOST),
    key(
        "sharded_execution_for_inference",
        Kind::Flag,
        Role::None("inference is pipelined"),
    ),
    key(
        "explicit_ir_inference",
        Kind::Flag,
        Role::None("it is PopART's"),
    ),
    key(
        "execute_encoder_on_cpu_for_generation",
        Kind::Flag,
        Role::None("nothing is generated"),
    ),
    key("parallelize_kwargs", Kind::Arguments, CALL),
    key("inference_parallelize_kwargs", Kind::Arguments, CALL),
    key("optimum_version", Kind::Text, CALL),
    key("transformers_version", Kind::Text, CALL),
    key("name_or_path", Kind::Text, CALL),
    key("_name_or_path", Kind::Text, CALL),
];

/// The key of that name.
pub(super) fn find(name: &str) -> Option<&'static Key> {
    KEYS.iter().find(|key| key.name == name)
}

impl Kind {
    /// Whether a value is of this kind.
    pub(super) fn admits(self, value: &Value) -> bool {
        let share = |value: &Value| {
            value
                .as_f64()
                .is_some_and(|share| (0.0..=1.0).contains(&share))
        };
        let entries = |admits: &dyn Fn(&Value) -> bool| {
            value
                .as_array()
                .is_some_and(|all| !all.is_empty() && all.iter().all(admits))
        };
        match self {
            _ if value.is_null() => true,
            Kind::Flag => value.is_boolean(),
            Kind::Count(least) => value.as_u64().is_some_and(|count| count >= least),
            Kind::Shares => share(value) || entries(&share),
            Kind::PerIpu(least) => entries(&|value| value.as_i64().is_some_and(|n| n >= least)),
            Kind::Text => value.is_string(),
            Kind::Arguments => value.is_object(),
        }
    }

    /// What a value must be.
    pub(super) fn expected(self) -> String {
        match self {
            Kind::Flag => "true or false".to_owned(),
            Kind::Count(least) => format!("a whole number of at least {least}"),
            Kind::Shares => "a number from 0 to 1, or a list of them".to_owned(),
            Kind::PerIpu(least) => {
                format!("a list of whole numbers of at least {least}, one for each IPU")
            }
            Kind::Text => "text".to_owned(),
            Kind::Arguments => "an object".to_owned(),
        }
    }
}
