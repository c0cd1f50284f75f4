//! Splits as files, such as those of human experts.

use std::path::Path;

use rustc_hash::FxHashMap;

use super::Instance;
use crate::Result;
use crate::problems::fields::{Field, parse, read_text};

/// A placement from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Split {
    /// The device of each node.
    pub device_of: Vec<usize>,
}

impl Split {
    /// Reads `{"fpgas": [{"nodes": [ids]}, ...], "cpus": [...]}`. A node that is not listed goes with its colour class,
    /// so that the split of a forward pass serves for training.
    ///
    /// # Errors
    /// The file cannot be read, is not of the format, or is no placement of this instance.
    pub fn read(path: &Path, instance: &Instance) -> Result<Self> {
        Self::parse(path, &read_text(path)?, instance)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Split::read`].
    pub fn parse(path: &Path, text: &str, instance: &Instance) -> Result<Self> {
        let document = parse(path, text)?;
        let root = Field::root(path, &document);
        let nodes = instance.nodes.iter().enumerate();
        let by_id: FxHashMap<i64, usize> = nodes.map(|(at, node)| (node.id, at)).collect();
        let mut device_of: Vec<Option<usize>> = vec![None; instance.nodes.len()];
        let kinds = [
            ("fpgas", 0, instance.accelerators),
            ("cpus", instance.accelerators, instance.hosts),
        ];
        for (kind, first, count) in kinds {
            for (at, device) in root.member(kind)?.entries()?.enumerate() {
                for field in device.member("nodes")?.entries()? {
                    let id = field.id()?;
                    let unknown = || {
                        field.error(
                            format!("is {id}, which is no node's id"),
                            "name nodes of the problem",
                        )
                    };
                    let node = *by_id.get(&id).ok_or_else(unknown)?;
                    if at >= count {
                        let problem = format!("is on device {at} of {count}");
                        return Err(field.error(
                            problem,
                            "name as many devices as the problem has, or give --devices",
                        ));
                    }
                    if first == 0 && !instance.nodes[node].accelerated {
                        let problem =
                            format!("puts node {id} on an accelerator, which cannot run it");
                        return Err(field.error(problem, "put it on a CPU"));
                    }
                    if device_of[node].replace(first + at).is_some() {
                        return Err(field.error(format!("places node {id} twice"), "place it once"));
                    }
                }
            }
        }
        let mut of_class = FxHashMap::default();
        for (node, device) in instance.nodes.iter().zip(&device_of) {
            if let (Some(colour), Some(device)) = (node.colour, *device)
                && *of_class.entry(colour).or_insert(device) != device
            {
                let problem = format!("separates node {} from its colour class {colour}", node.id);
                return Err(root.error(problem, "put a class on one device"));
            }
        }
        let place = |(node, device): (&super::Node, &Option<usize>)| {
            let class = || {
                node.colour
                    .and_then(|colour| of_class.get(&colour).copied())
            };
            let missing = || root.error(format!("leaves out node {}", node.id), "place every node");
            device.or_else(class).ok_or_else(missing)
        };
        let placed = instance.nodes.iter().zip(&device_of).map(place);
        Ok(Split {
            device_of: placed.collect::<Result<_>>()?,
        })
    }
}
