//! The known name that a mistyped one is nearest to.

/// The candidate with the smallest edit distance, the first of several; none if there is no candidate.
pub(crate) fn nearest<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    /// Beyond this no name is mistyped, and the distance takes quadratic time.
    const MOST: usize = 64;
    let name: Vec<char> = name.chars().take(MOST).collect();
    known.min_by_key(|candidate| distance(&name, candidate))
}

/// Letters to insert, delete or replace.
fn distance(a: &[char], b: &str) -> usize {
    let mut row: Vec<usize> = (0..=a.len()).collect();
    for (above, letter) in b.chars().enumerate() {
        let mut diagonal = row[0];
        row[0] = above + 1;
        for (column, &own) in a.iter().enumerate() {
            let replaced = diagonal + usize::from(own != letter);
            diagonal = row[column + 1];
            row[column + 1] = replaced.min(diagonal + 1).min(row[column] + 1);
        }
    }
    row[a.len()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn distances_are_levenshteins() {
        for (a, b, expected) in [
            ("kitten", "sitting", 3),
            ("", "abc", 3),
            ("abc", "", 3),
            ("same", "same", 0),
            ("flaw", "lawn", 2),
        ] {
            let letters: Vec<char> = a.chars().collect();
            assert_eq!(distance(&letters, b), expected, "{a} {b}");
        }
    }

    #[test]
    fn the_nearest_name_is_found() {
        let known = ["replication_factor", "layers_per_ipu", "seed"];
        assert_eq!(
            nearest("layer_per_ipus", known.into_iter()),
            Some("layers_per_ipu")
        );
        let far = "x".repeat(1 << 20);
        assert_eq!(nearest(&far, known.into_iter()), Some(known[0]));
        assert_eq!(nearest("seed", std::iter::empty()), None);
    }
}
