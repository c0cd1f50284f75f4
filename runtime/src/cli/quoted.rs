//! Arguments that hold a subject and options in one pair of quotes.

use std::path::Path;

use clap::Parser;

use super::error::{CliError, Result};

/// Parses the argument `name`: a path as it stands, or words as a shell would split them; `what` says what
/// it may hold.
///
/// # Errors
/// Names the argument and the word.
pub(crate) fn parse<T: Parser>(name: &str, text: &str, what: &str) -> Result<T> {
    let words = if Path::new(text).exists() {
        vec![text.to_owned()]
    } else {
        let open = || CliError::Usage(format!("{name}: a quote in {text:?} is not closed"));
        words(text).ok_or_else(open)?
    };
    T::try_parse_from(words).map_err(|error| {
        let shown = error.to_string();
        let problem = shown.split("\n\n").next().unwrap_or(&shown);
        let problem = problem.trim_start_matches("error: ").trim_end();
        CliError::Usage(format!(
            "{name}: {problem}\n  help: give {what}, in one pair of quotes"
        ))
    })
}

/// The words of a line: separated by white space, except inside single or double quotes, which are
/// dropped. `None` if a quote is not closed.
fn words(text: &str) -> Option<Vec<String>> {
    let mut words: Vec<String> = Vec::new();
    let mut quote = None;
    let mut inside = false;
    for letter in text.chars() {
        match quote {
            Some(open) if letter == open => quote = None,
            None if letter.is_whitespace() => inside = false,
            _ => {
                if !inside {
                    words.push(String::new());
                    inside = true;
                }
                if quote.is_none() && matches!(letter, '"' | '\'') {
                    quote = Some(letter);
                } else if let Some(word) = words.last_mut() {
                    word.push(letter);
                }
            }
        }
    }
    quote.is_none().then_some(words)
}

#[cfg(test)]
mod tests {
    use super::words;

    #[test]
    fn words_are_split_as_a_shell_does() {
        let split = |text| words(text).unwrap_or_default();
        assert_eq!(split("  a --b  c\t"), ["a", "--b", "c"]);
        assert_eq!(
            split("'my model' --x=\"it's\" ''"),
            ["my model", "--x=it's", ""]
        );
        assert_eq!(words("a 'b"), None);
    }
}
