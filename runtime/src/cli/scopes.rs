//! Module paths, shortened.

use std::collections::BTreeMap;

/// The module a scope belongs to at the level of layers: `lxmert.encoder.layer.3`, `lxmert.pooler`.
pub(crate) fn module(scope: &str) -> &str {
    let containers = scope
        .split('.')
        .take_while(|part| matches!(*part, "lxmert" | "encoder"));
    let skipped: usize = containers.map(|part| part.len() + 1).sum();
    let rest = scope.get(skipped..).unwrap_or_default();
    let mut parts = rest.split('.');
    let mut length = parts.next().map_or(0, str::len);
    if let Some(number) = parts.next().filter(|part| is_number(part)) {
        length += 1 + number.len();
    }
    scope.get(..skipped + length).unwrap_or(scope)
}

/// The kind of a module: its path without the layer's number.
pub(crate) fn kind(module: &str) -> &str {
    match module.rsplit_once('.') {
        Some((kind, number)) if is_number(number) => kind,
        _ => module,
    }
}

/// Modules in few words, in order of appearance: `layer.0-3 r_layers.0 pooler`.
pub(crate) fn abbreviate<'a>(modules: impl Iterator<Item = &'a str>) -> String {
    let mut order: Vec<&str> = Vec::new();
    let mut numbers: BTreeMap<&str, Vec<u64>> = BTreeMap::new();
    for module in modules {
        let kind = kind(module);
        if !order.contains(&kind) {
            order.push(kind);
        }
        let number = module.get(kind.len() + 1..);
        let number = number.and_then(|number| number.parse::<u64>().ok());
        numbers.entry(kind).or_default().extend(number);
    }
    let words = order.into_iter().map(|kind| {
        let short = kind.rsplit_once('.').map_or(kind, |(_, last)| last);
        let ranges = ranges(numbers.remove(kind).unwrap_or_default());
        if ranges.is_empty() {
            short.to_owned()
        } else {
            format!("{short}.{ranges}")
        }
    });
    words.collect::<Vec<_>>().join(" ")
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// `0-3,5`.
fn ranges(mut numbers: Vec<u64>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let mut runs: Vec<(u64, u64)> = Vec::new();
    for number in numbers {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == number => *last = number,
            _ => runs.push((number, number)),
        }
    }
    let text = runs.into_iter().map(|(first, last)| {
        if first == last {
            first.to_string()
        } else {
            format!("{first}-{last}")
        }
    });
    text.collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_end_at_the_layer() {
        assert_eq!(
            module("lxmert.encoder.layer.3.attention.self"),
            "lxmert.encoder.layer.3"
        );
        assert_eq!(module("lxmert.embeddings.LayerNorm"), "lxmert.embeddings");
        assert_eq!(module("answer_head.logit_fc.0"), "answer_head");
        assert_eq!(module("lxmert.pooler"), "lxmert.pooler");
        assert_eq!(module("lxmert"), "lxmert");
        assert_eq!(module(""), "");
    }

    #[test]
    fn numbers_become_ranges() {
        let modules = [
            "lxmert.encoder.layer.0",
            "lxmert.encoder.layer.1",
            "lxmert.pooler",
            "lxmert.encoder.layer.5",
        ];
        assert_eq!(abbreviate(modules.into_iter()), "layer.0-1,5 pooler");
    }
}
