//! Aligned tables.

use super::output::{HEADING, styled};

/// A table for people: a heading and rows of cells.
pub(crate) struct Table {
    heading: Vec<&'static str>,
    rows: Vec<Vec<String>>,
}

impl Table {
    /// A table with these column headings. A column whose heading begins with `<` is aligned left,
    /// others right.
    pub(crate) fn new(heading: &[&'static str]) -> Self {
        Table {
            heading: heading.to_vec(),
            rows: Vec::new(),
        }
    }

    /// Adds a row; missing cells are empty.
    pub(crate) fn row(&mut self, cells: impl IntoIterator<Item = String>) {
        self.rows.push(cells.into_iter().collect());
    }

    /// The table, each line ended.
    pub(crate) fn render(&self) -> String {
        let name = |heading: &&'static str| heading.trim_start_matches('<').to_owned();
        let names: Vec<String> = self.heading.iter().map(name).collect();
        let widths: Vec<usize> = (0..names.len())
            .map(|column| self.width(&names, column))
            .collect();
        let mut text = styled(HEADING, self.line(&names, &widths));
        text.push('\n');
        for row in &self.rows {
            text.push_str(&self.line(row, &widths));
            text.push('\n');
        }
        text
    }

    fn width(&self, names: &[String], column: usize) -> usize {
        let cells = self.rows.iter().filter_map(|row| row.get(column));
        cells
            .chain(names.get(column))
            .map(|cell| cell.chars().count())
            .max()
            .unwrap_or(0)
    }

    fn line(&self, cells: &[String], widths: &[usize]) -> String {
        let mut line = String::new();
        for (column, &width) in widths.iter().enumerate() {
            let cell = cells.get(column).map_or("", String::as_str);
            let padding = " ".repeat(width.saturating_sub(cell.chars().count()));
            let left = self.heading[column].starts_with('<');
            line += &if left {
                format!("{cell}{padding}")
            } else {
                format!("{padding}{cell}")
            };
            line += "  ";
        }
        line.trim_end().to_owned()
    }
}
