//! Reading and writing types and names.

use super::cursor::Cursor;
use super::{ParseError, is_plain};
use crate::{DType, Shape, SpaceId, Spaces, TensorType};

/// The most bytes a tensor may have: far beyond any memory, and small enough that sums and costs
/// of tensors do not overflow.
const MAX_BYTES: usize = 1 << 44;

/// Reads a type such as `f16[text:160,768]`.
pub(super) fn parse_type(
    cursor: &mut Cursor<'_>,
    spaces: &Spaces,
) -> Result<TensorType, ParseError> {
    let start = cursor.start();
    let word = cursor.word("a type such as `f32[8,768]`")?;
    let dtype: DType = word
        .parse()
        .map_err(|error| cursor.error(start..cursor.end(), error))?;
    cursor.expect('[')?;
    let mut axes = Vec::new();
    let mut rows = None;
    if cursor.peek() != Some(']') {
        rows = parse_space(cursor, spaces)?;
        axes.push(cursor.number("the extent of an axis")?);
        while cursor.eat(',') {
            axes.push(cursor.number("the extent of an axis")?);
        }
    }
    cursor.expect(']')?;
    let bytes = axes.iter().try_fold(dtype.size(), |bytes, &axis: &usize| {
        bytes
            .checked_mul(axis.max(1))
            .filter(|&bytes| bytes <= MAX_BYTES)
    });
    match bytes {
        Some(_) => Ok(TensorType {
            dtype,
            rows,
            shape: Shape::new(&axes),
        }),
        None => Err(cursor.error(
            start..cursor.end(),
            format!("a tensor of more than {MAX_BYTES} bytes"),
        )),
    }
}

/// Reads the row space in front of axis 0, if there is one.
fn parse_space(cursor: &mut Cursor<'_>, spaces: &Spaces) -> Result<Option<SpaceId>, ParseError> {
    if cursor.peek().is_some_and(|next| next.is_ascii_digit()) {
        return Ok(None);
    }
    let space = parse_space_name(cursor, spaces)?;
    cursor.expect(':')?;
    Ok(Some(space))
}

/// Reads the name of a declared row space.
pub(super) fn parse_space_name(
    cursor: &mut Cursor<'_>,
    spaces: &Spaces,
) -> Result<SpaceId, ParseError> {
    let start = cursor.start();
    let name = cursor.name("a row space or an extent")?;
    spaces.find(&name).ok_or_else(|| {
        let message = format!("no row space `{name}` is declared above");
        cursor.error(start..cursor.end(), message)
    })
}

/// Writes a type.
pub(super) fn type_text(ty: &TensorType, spaces: &Spaces) -> String {
    let mut axes: Vec<String> = ty.shape.iter().map(usize::to_string).collect();
    if let (Some(space), Some(first)) = (ty.rows, axes.first_mut())
        && spaces.contains(space)
    {
        *first = format!("{}:{first}", name_text(&spaces.get(space).name));
    }
    format!("{}[{}]", ty.dtype, axes.join(","))
}

/// Writes a name, in quotes if it needs them.
pub(super) fn name_text(name: &str) -> String {
    if is_plain(name) {
        name.to_owned()
    } else {
        quoted(name)
    }
}

/// Writes a string in quotes.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
