//! Traces in files.

use std::collections::BTreeMap;
use std::path::Path;

use super::{Trace, Traced};
use crate::error::{Error, Result, quote};
use crate::tensors::{Dtype, TensorFile, TensorSpec, TensorWriter};

/// The metadata that gives the names in order of computation, one a line.
const ORDER: &str = "order";
/// What the name of a tensor of row counts begins with; the kind of rows follows.
const ROWS: &str = "rows@";

impl Trace {
    /// Writes the tensors under their names and in their element types, beside `rows@text` and
    /// `rows@box`: the rows of each sample that were computed, where not all were.
    ///
    /// # Errors
    /// As [`TensorWriter::create`] and [`TensorWriter::finish`].
    pub fn write(&self, path: &Path, metadata: &BTreeMap<String, String>) -> Result<()> {
        let mut rows: BTreeMap<String, Vec<i64>> = BTreeMap::new();
        for traced in &self.tensors {
            if let (Some(name), Some(counts)) = (rows_name(&traced.name), &traced.rows) {
                rows.insert(name, counts.iter().map(|&count| count as i64).collect());
            }
        }
        let counts = rows.iter().map(|(name, counts)| TensorSpec {
            name: name.clone(),
            dtype: Dtype::I64,
            shape: vec![counts.len()],
        });
        let values = self.tensors.iter().map(|traced| TensorSpec {
            name: traced.name.clone(),
            dtype: traced.dtype,
            shape: traced.shape.clone(),
        });
        let specs: Vec<TensorSpec> = counts.chain(values).collect();
        let names: Vec<&str> = self.tensors.iter().map(|t| t.name.as_str()).collect();
        let mut metadata = metadata.clone();
        if self.ordered {
            metadata.insert(ORDER.to_owned(), names.join("\n"));
        }
        let mut writer = TensorWriter::create(path, &metadata, &specs)?;
        for (name, counts) in &rows {
            writer.write_i64(name, counts)?;
        }
        for traced in &self.tensors {
            writer.write_f32(&traced.name, &traced.values)?;
        }
        writer.finish()
    }

    /// Reads the float tensors of a file: one that [`Trace::write`] wrote, or any other, such as the
    /// outputs of a run or of another framework. F64 is rounded to f32.
    ///
    /// # Errors
    /// As [`TensorFile::open`] and [`TensorFile::read`]; [`Error::InvalidFile`] where the file has no
    /// float tensor, or its counts of rows do not fit its tensors.
    pub fn read(path: &Path) -> Result<Trace> {
        let file = TensorFile::open(path)?;
        let order = file.metadata().get(ORDER);
        let places: BTreeMap<&str, usize> = order
            .iter()
            .flat_map(|names| names.lines())
            .enumerate()
            .map(|(place, name)| (name, place))
            .collect();
        let mut names: Vec<&str> = file.names().filter(|name| is_float(&file, name)).collect();
        names.sort_by_key(|name| places.get(name).copied().unwrap_or(usize::MAX));
        if names.is_empty() {
            let help = "name a dump of `lxpod compare --dump`, or the outputs of a run";
            return Err(Error::invalid(path, "tensors", "none holds floats", help));
        }
        let tensors: Result<Vec<Traced>> = names.iter().map(|name| traced(&file, name)).collect();
        Ok(Trace {
            tensors: tensors?,
            ordered: order.is_some(),
        })
    }
}

fn is_float(file: &TensorFile, name: &str) -> bool {
    let dtype = file.get(name).map(|info| info.dtype);
    let floats = [Dtype::F16, Dtype::BF16, Dtype::F32, Dtype::F64];
    dtype.is_some_and(|dtype| floats.contains(&dtype))
}

/// The tensor of row counts that belongs to the value of an op.
fn rows_name(name: &str) -> Option<String> {
    super::origin(name)?;
    let (_, kind) = name.rsplit_once('@')?;
    Some(format!("{ROWS}{kind}"))
}

fn traced(file: &TensorFile, name: &str) -> Result<Traced> {
    let tensor = file.read(name)?;
    let counted = rows_name(name).filter(|counts| file.get(counts).is_some());
    let rows = counted.map(|counts| rows(file, &counts, name, tensor.shape()));
    Ok(Traced {
        name: name.to_owned(),
        dtype: tensor.data().dtype(),
        shape: tensor.shape().to_vec(),
        rows: rows.transpose()?,
        values: tensor.to_f32()?,
    })
}

/// The rows of each sample that were computed of the tensor `name` of that shape.
fn rows(file: &TensorFile, counts: &str, name: &str, shape: &[usize]) -> Result<Vec<usize>> {
    let wrong = || {
        let field = format!("tensor {}", quote(counts));
        let problem = format!("does not count rows of {} {shape:?}", quote(name));
        let help = "write the dump again: lxpod compare A B --dump FILE";
        Error::invalid(file.path(), field, problem, help)
    };
    let &[samples, longest, ..] = shape else {
        return Err(wrong());
    };
    let counts = file.read(counts)?.to_i32()?;
    let fit = |&count: &i32| {
        usize::try_from(count)
            .ok()
            .filter(|&count| count <= longest)
    };
    let rows: Option<Vec<usize>> = counts.iter().map(fit).collect();
    rows.filter(|rows| rows.len() == samples).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trace() -> Trace {
        let traced = |name: &str, dtype, rows: Option<Vec<usize>>| Traced {
            name: name.to_owned(),
            dtype,
            shape: vec![2, 2, 1],
            rows,
            values: vec![1.5, 0.0, -2.0, 0.25],
        };
        Trace {
            tensors: vec![
                traced("z/linear.0@text", Dtype::F16, Some(vec![1, 2])),
                traced("a/linear.0@box", Dtype::F32, None),
                traced("score", Dtype::F32, None),
            ],
            ordered: true,
        }
    }

    #[test]
    fn dumps_come_back_in_order() {
        let file = tempfile::NamedTempFile::new().expect("a file");
        trace()
            .write(file.path(), &BTreeMap::new())
            .expect("written");
        assert_eq!(Trace::read(file.path()).expect("read"), trace());
    }

    #[test]
    fn counts_that_do_not_fit_are_refused() {
        let mut wrong = trace();
        wrong.tensors[0].rows = Some(vec![1, 3]);
        let file = tempfile::NamedTempFile::new().expect("a file");
        wrong.write(file.path(), &BTreeMap::new()).expect("written");
        let error = Trace::read(file.path()).expect_err("3 of 2 rows");
        assert!(error.to_string().contains("rows@text"), "{error}");
    }
}
