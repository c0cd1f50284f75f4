//! Memory planning problems of MiniMalloc (Moffitt, ASPLOS 2023): buffers with fixed lifetimes.
//!
//! # Format
//! ```csv
//! id,lower,upper,size
//! 0,0,3,2
//! 1,2,5,2
//! ```
//! A line per buffer. It is live from `lower` up to, but not including, `upper`; both are integers, and so is the
//! size, in bytes. The columns may come in any order; `alignment` may be one of them, `offset` and `hint` are
//! ignored.

use std::path::Path;

use lxpod_passes::solve::offsets::Buffer;

use super::fields::read_text;
use crate::error::quote;
use crate::{Error, Result};

/// A problem as its file states it, buffers in file order.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Instance {
    /// The name of each buffer.
    pub names: Vec<String>,
    /// The buffers; lifetimes are positions in `times`.
    pub buffers: Vec<Buffer>,
    /// All times at which a lifetime begins or ends, ascending.
    pub times: Vec<i64>,
}

/// One line of the file.
struct Row {
    name: String,
    lower: i64,
    upper: i64,
    size: u64,
    align: u64,
}

/// The place of each column.
struct Columns {
    count: usize,
    id: usize,
    lower: usize,
    upper: usize,
    size: usize,
    align: Option<usize>,
}

impl Instance {
    /// Reads a file.
    ///
    /// # Errors
    /// The file cannot be read, is not of the format, or states no problem: a negative size, a lifetime that ends before
    /// it begins, two buffers of one id.
    pub fn read(path: &Path) -> Result<Self> {
        Self::parse(path, &read_text(path)?)
    }

    /// Reads the text of a file; `path` is for messages.
    ///
    /// # Errors
    /// As [`Instance::read`].
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let lines = text.lines().enumerate();
        let mut lines = lines.filter(|(_, line)| !line.trim().is_empty());
        let Some((_, heading)) = lines.next() else {
            let help = "its first line is `id,lower,upper,size`";
            return Err(Error::invalid(path, "line 1", "is missing", help));
        };
        let columns = Columns::of(path, heading)?;
        let rows = lines.map(|(at, line)| columns.row(path, at + 1, line));
        let rows: Vec<Row> = rows.collect::<Result<_>>()?;
        let mut seen = rustc_hash::FxHashSet::default();
        if let Some(row) = rows.iter().find(|row| !seen.insert(&row.name)) {
            let problem = format!("names two buffers {}", quote(&row.name));
            return Err(Error::invalid(
                path,
                "id",
                problem,
                "give every buffer its own id",
            ));
        }
        let mut times: Vec<i64> = rows.iter().flat_map(|row| [row.lower, row.upper]).collect();
        times.sort_unstable();
        times.dedup();
        let step = |time| times.partition_point(|&t| t < time) as u32;
        let buffer = |row: &Row| Buffer {
            size: row.size,
            start: step(row.lower),
            end: step(row.upper),
            align: row.align,
        };
        Ok(Instance {
            buffers: rows.iter().map(buffer).collect(),
            names: rows.into_iter().map(|row| row.name).collect(),
            times,
        })
    }
}

impl Columns {
    fn of(path: &Path, heading: &str) -> Result<Self> {
        let names: Vec<&str> = heading
            .trim_start_matches('\u{feff}')
            .split(',')
            .map(str::trim)
            .collect();
        let known = [
            "id",
            "lower",
            "upper",
            "size",
            "alignment",
            "offset",
            "hint",
        ];
        let refused = |problem: String| {
            let help = "name the columns id, lower, upper and size, and alignment if there is one";
            Error::invalid(path, "line 1", problem, help)
        };
        if names.contains(&"gaps") {
            let help = "split each buffer with gaps into buffers without";
            return Err(Error::unsupported(
                path,
                "line 1",
                "has a column `gaps`",
                help,
            ));
        }
        if let Some(name) = names.iter().find(|name| !known.contains(name)) {
            return Err(refused(format!("has an unknown column {}", quote(name))));
        }
        let find = |name: &str| names.iter().position(|found| *found == name);
        let need =
            |name: &str| find(name).ok_or_else(|| refused(format!("has no column `{name}`")));
        if let Some(name) = known
            .iter()
            .find(|name| names.iter().filter(|n| n == name).count() > 1)
        {
            return Err(refused(format!("has two columns `{name}`")));
        }
        Ok(Columns {
            count: names.len(),
            id: need("id")?,
            lower: need("lower")?,
            upper: need("upper")?,
            size: need("size")?,
            align: find("alignment"),
        })
    }

    fn row(&self, path: &Path, line: usize, text: &str) -> Result<Row> {
        let cells: Vec<&str> = text.split(',').map(str::trim).collect();
        let place = |column: &str| format!("line {line}, {column}");
        if cells.len() != self.count {
            let (found, want) = (cells.len(), self.count);
            let problem = format!("has {found} of {want} columns");
            let help = "the file was cut short or has a stray comma; fetch it again";
            return Err(Error::invalid(path, format!("line {line}"), problem, help));
        }
        let number = |column: &str, at: usize| {
            let wrong = || {
                let problem = format!("is {}, not an integer", quote(cells[at]));
                Error::invalid(path, place(column), problem, "times and sizes are integers")
            };
            cells[at].parse::<i64>().map_err(|_| wrong())
        };
        let amount = |column: &str, at: usize, least: i64| {
            let number = number(column, at)?;
            let wrong = || {
                let problem = format!("is {number}; at least {least} makes sense");
                Error::invalid(path, place(column), problem, "give it in bytes")
            };
            u64::try_from(number)
                .ok()
                .filter(|_| number >= least)
                .ok_or_else(wrong)
        };
        let row = Row {
            name: cells[self.id].to_owned(),
            lower: number("lower", self.lower)?,
            upper: number("upper", self.upper)?,
            size: amount("size", self.size, 0)?,
            align: self.align.map_or(Ok(1), |at| amount("alignment", at, 1))?,
        };
        if row.lower > row.upper {
            let problem = format!("is {}, before lower, {}", row.upper, row.lower);
            let help = "a buffer is live from lower up to, but not including, upper";
            return Err(Error::invalid(path, place("upper"), problem, help));
        }
        Ok(row)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Instance> {
        Instance::parse(Path::new("x.csv"), text)
    }

    #[test]
    fn times_become_steps() {
        let text = "size,id,upper,lower,alignment\r\n8,a,9000000000,-5,4\r\n\r\n3,b,-5,-5,1\n";
        let read = parse(text).unwrap();
        assert_eq!(
            (read.names, read.times),
            (
                vec!["a".to_owned(), "b".to_owned()],
                vec![-5, 9_000_000_000]
            )
        );
        let buffer = |size, end, align| Buffer {
            size,
            start: 0,
            end,
            align,
        };
        assert_eq!(read.buffers, [buffer(8, 1, 4), buffer(3, 0, 1)]);
    }

    #[test]
    fn wrong_files_name_the_line() {
        let cases = [
            ("", "line 1: is missing"),
            ("id,lower,upper\n", "no column `size`"),
            ("id,lower,upper,size,colour\n", "unknown column `colour`"),
            ("id,lower,upper,size,size\n", "two columns `size`"),
            ("id,lower,upper,size\n1,0,3\n", "line 2: has 3 of 4 columns"),
            ("id,lower,upper,size\n1,0,3,-2\n", "line 2, size: is -2"),
            ("id,lower,upper,size\n1,0,3,NaN\n", "line 2, size: is `NaN`"),
            (
                "id,lower,upper,size\n1,4,3,1\n",
                "line 2, upper: is 3, before lower, 4",
            ),
            ("id,lower,upper,size\n1,0,3,1\n1,0,3,1\n", "two buffers `1`"),
            (
                "id,lower,upper,size,alignment\n1,0,3,1,0\n",
                "line 2, alignment: is 0",
            ),
            (
                "id,lower,upper,size\n1,0,3,99999999999999999999\n",
                "line 2, size",
            ),
        ];
        for (text, want) in cases {
            let message = parse(text).unwrap_err().to_string();
            assert!(message.contains(want), "{want}: {message}");
            assert!(
                message.contains("x.csv") && message.contains("help: "),
                "{message}"
            );
        }
    }
}
