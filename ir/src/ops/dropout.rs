//! `dropout`: elements left out at random.

use serde::{Deserialize, Serialize};

use super::{Cost, Eval, Infer, OpDef, Operand, Vjp};
use crate::random_bits::{KEEP_KEY, RowState, drop_threshold, name_hash, part_salt};
use crate::rows::SpaceId;
use crate::tensor::{Scalar, Tensor};
use crate::types::Types;

/// y = x / (1 − rate) where the element is kept, 0 where it is dropped.
///
/// `keys` holds two words for each entity that owns rows of x. An element is dropped if its word of
/// [`crate::random_bits`] is below the threshold of the rate. The word depends on the entity's key,
/// the salt, the name of the row space, the row inside the entity's segment and the column, never
/// on where rows are packed. Under [`KEEP_KEY`] y = x. In a union each part has its own name and counts its own rows, so that
/// dropping in the union is dropping in its parts.
///
/// [`super::Attention`] has the same attributes for its probabilities.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropout {
    /// The probability of being dropped, in 0..1.
    pub rate: f32,
    /// Tells this op's masks from those of others: a hash of its scope.
    pub salt: u64,
}

impl OpDef for Dropout {
    const NAME: &'static str = "dropout";

    fn operands(&self) -> &'static [Operand] {
        &[Operand::Required("x"), Operand::Required("keys")]
    }

    fn infer(&self, cx: &Infer<'_>) -> Result<Types, String> {
        let x = cx.float(0, "x")?;
        let Some(rows) = x.rows else {
            return Err(format!("{} is in no row space", cx.show(x)));
        };
        self.check(cx, rows, 1)?;
        cx.like_first()
    }

    fn cost(&self, cx: &Infer<'_>) -> Cost {
        cx.elementwise(1)
    }

    fn vjp(&self, cx: &mut Vjp<'_>) -> Result<(), String> {
        let (dy, keys) = (cx.cotangent()?, cx.operands()[1]);
        let dx = cx.emit(self.clone(), &[dy, keys])?;
        cx.give(0, dx);
        Ok(())
    }

    fn eval<S: Scalar>(&self, cx: &Eval<'_, S>) -> Result<Vec<Tensor<S>>, String> {
        let rows = cx.types[0].rows.ok_or("x is in no row space")?;
        let width = cx.inputs[0].shape.row_elements();
        let mut values = cx.inputs[0].reals().to_vec();
        cx.extents.visit_segments(cx.spaces, rows, &mut |segment| {
            let salt = part_salt(self.salt, name_hash(&cx.spaces.get(segment.space).name));
            let key = key(cx.inputs[1], segment.entity);
            for (inside, row) in segment.rows.enumerate() {
                let row = &mut values[row * width..(row + 1) * width];
                self.drop_row(key, RowState::new(key, salt, inside as u32), row);
            }
        });
        Ok(vec![Tensor::real(cx.shape(0), values)])
    }
}

impl Dropout {
    /// Checks the rate, and that operand `keys` has two words for each entity that owns rows of
    /// `rows`.
    pub(super) fn check(&self, cx: &Infer<'_>, rows: SpaceId, keys: usize) -> Result<(), String> {
        if !(0.0..1.0).contains(&self.rate) {
            return Err(format!("the rate {} is not in 0..1", self.rate));
        }
        let given = cx.integer(keys, "keys")?;
        let name = &cx.spaces.get(rows).name;
        let Some(owner) = cx.spaces.common_owner(rows) else {
            return Err(format!("rows of `{name}` belong to different entities"));
        };
        if given.rows == Some(owner) && given.shape[1..] == [2] {
            Ok(())
        } else {
            let owner = &cx.spaces.get(owner).name;
            let given = cx.show(given);
            Err(format!(
                "keys {given} are not two words per row of `{owner}`"
            ))
        }
    }

    /// The rate under a key: none under [`KEEP_KEY`].
    pub fn rate_under(&self, key: [u32; 2]) -> f32 {
        if key == KEEP_KEY { 0.0 } else { self.rate }
    }

    /// Drops elements of one row, whose state is of `key`.
    pub(super) fn drop_row<S: Scalar>(&self, key: [u32; 2], state: RowState, row: &mut [S]) {
        let rate = self.rate_under(key);
        let threshold = drop_threshold(rate);
        let factor = S::from_f64(1.0 / (1.0 - f64::from(rate)));
        for (column, element) in row.iter_mut().enumerate() {
            *element = match state.word(column as u32) < threshold {
                true => S::from_f64(0.0),
                false => *element * factor,
            };
        }
    }
}

/// The key of an entity.
pub(super) fn key<S: Scalar>(keys: &Tensor<S>, entity: usize) -> [u32; 2] {
    [0, 1].map(|word| keys.ints()[2 * entity + word] as u32)
}
