//! The micro-batches that one visit of a program computes together: its *members*.
//!
//! Where a value has rows, those of all members lie end to end, as those of the samples of one micro-batch do. Of other
//! values each member has a copy, one behind the other, except of parameters and states, which members share.

use std::ops::Range;

use lxpod_ir::{Extents, SpaceId, Spaces};
use smallvec::{SmallVec, smallvec};

use super::exec_grad::Gradient;
use super::operand::Operand;
use super::step::{Kernel, Source};
use crate::Feed;

/// Ranges of rows, in order: more than one only of a union of several members' rows.
pub(super) type Pieces = SmallVec<[Range<usize>; 2]>;

/// The members of a visit.
#[derive(Clone, Copy)]
pub(super) struct Members<'a> {
    /// The row spaces of their graph.
    pub spaces: &'a Spaces,
    /// The feeds from the first member's on; a member's is so many behind the one before it.
    pub feeds: &'a [Feed],
    pub every: usize,
    /// How many there are.
    pub count: usize,
    /// The extents of all of them.
    pub joined: &'a Extents,
    /// The visit, counted per replica.
    pub visit: usize,
    /// The first micro-batch, counted per replica.
    pub first: usize,
}

impl<'a> Members<'a> {
    /// What a member is fed with.
    pub(super) fn feed(&self, member: usize) -> &'a Feed {
        &self.feeds[member * self.every]
    }

    /// Each member's extents.
    fn extents(self) -> impl Iterator<Item = &'a Extents> + Clone {
        (0..self.count).map(move |member| &self.feed(member).extents)
    }
}

/// What a run-time address depends on: the visit, and whether it is all of its members' or that of one.
#[derive(Clone, Copy)]
pub(super) struct Moment<'a> {
    members: Members<'a>,
    /// The member; none for all of them, and where there is only one.
    member: Option<usize>,
}

impl<'a> Moment<'a> {
    /// That of all members.
    pub(super) fn of(members: Members<'a>) -> Self {
        Moment {
            members,
            member: None,
        }
    }

    /// That of all members of its visit.
    pub(super) fn of_all(self) -> Self {
        Moment::of(self.members)
    }

    /// Those of each member.
    pub(super) fn each(self) -> impl Iterator<Item = Moment<'a>> {
        let several = self.member.is_none() && self.members.count > 1;
        let of = move |member| Moment {
            member: if several { Some(member) } else { self.member },
            ..self
        };
        (0..self.count()).map(of)
    }

    /// How many members it is of.
    pub(super) fn count(self) -> usize {
        self.member.map_or(self.members.count, |_| 1)
    }

    /// The first of its members.
    pub(super) fn first(self) -> usize {
        self.member.unwrap_or(0)
    }

    /// The first of its micro-batches, counted per replica.
    pub(super) fn micro_batch(self) -> usize {
        self.members.first + self.first()
    }

    /// The visit, counted per replica.
    pub(super) fn visit(self) -> usize {
        self.members.visit
    }

    /// The rows that each space has.
    pub(super) fn extents(self) -> &'a Extents {
        match self.member {
            None => self.members.joined,
            Some(member) => &self.members.feed(member).extents,
        }
    }

    /// What its first member is fed with.
    pub(super) fn feed(self) -> &'a Feed {
        self.members.feed(self.first())
    }

    /// How many rows of the visit a space has, that is, lie before what follows it.
    pub(super) fn before(self, space: SpaceId) -> usize {
        self.members.joined.rows(space)
    }

    /// Its rows of a space, as numbers of the rows of all members.
    ///
    /// # Panics
    /// If they do not lie end to end.
    pub(super) fn rows(self, space: SpaceId) -> Range<usize> {
        let pieces = self.pieces(space);
        assert!(pieces.len() == 1, "rows of one member in several places");
        pieces[0].clone()
    }

    /// [`Moment::rows`] wherever they lie.
    pub(super) fn pieces(self, space: SpaceId) -> Pieces {
        let Members { spaces, joined, .. } = self.members;
        let Some(member) = self.member else {
            return smallvec![0..joined.rows(space)];
        };
        let mut pieces = Pieces::new();
        let visit = &mut |rows| pieces.push(rows);
        Extents::visit_joined(spaces, self.members.extents(), member, space, visit);
        pieces
    }
}

/// How a step computes the members of a visit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Turns {
    /// The rows of all of them as those of one: a row of a result depends on that row of the operands, or on its segment,
    /// and on what members share.
    Together,
    /// The rows of all of them, but sums over rows go over those of each in turn, or are of each by itself.
    Sums,
    /// One after the other.
    InTurn,
}

impl Turns {
    /// Those of a step.
    pub(super) fn of(kernel: &Kernel, inputs: &[Source], outputs: &[Operand]) -> Turns {
        let by_rows = |operand: &Operand| operand.rows.is_some();
        let operand = |input: &Source| match input {
            Source::Arena(operand) => Some(operand.clone()),
            Source::Resident(_) => None,
        };
        let given: Vec<Operand> = inputs.iter().filter_map(operand).collect();
        let shared = |operand: &Operand| operand.copy == 0;
        let rows = outputs.iter().all(by_rows) && given.iter().all(shared);
        match kernel {
            Kernel::Gradient(Gradient::Weight | Gradient::SumRows | Gradient::LayerNorm(_))
                if given.first().is_some_and(by_rows) =>
            {
                Turns::Sums
            }
            // An index counts the rows of its own member.
            Kernel::Gather
                if rows && !matches!(&inputs[0], Source::Arena(table) if by_rows(table)) =>
            {
                Turns::Together
            }
            Kernel::Linear(_)
            | Kernel::Attention(..)
            | Kernel::Dropout(_)
            | Kernel::LayerNorm(_)
            | Kernel::Concat(_)
            | Kernel::Add
            | Kernel::Scale(_)
            | Kernel::Activate(_)
            | Kernel::Copy
            | Kernel::Gradient(
                Gradient::Zeros
                | Gradient::Matmul
                | Gradient::Activate(_)
                | Gradient::Attention(..),
            ) if rows => Turns::Together,
            _ => Turns::InTurn,
        }
    }
}
