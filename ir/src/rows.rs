//! Row spaces: what axis 0 of an activation counts, with a static capacity and a run-time extent.
//!
//! The memory plan and the simulator use capacities; the backends compute extents. Rows of all
//! entities lie end to end, so that a batch with short texts needs no padding and the graph needs
//! no symbolic dimension.

use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Names a [`RowSpace`] of one graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct SpaceId(u16);

impl SpaceId {
    /// The position in the graph's table of spaces.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What the rows of a space are.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Layout {
    /// One row per entity, such as a sample, a distinct question, a distinct image.
    Entities,
    /// The rows of each entity of `owner` end to end, at most `longest` rows each.
    Segments {
        /// The space whose entities own the segments.
        owner: SpaceId,
        /// The most rows one segment can have.
        longest: usize,
    },
    /// The rows of several spaces end to end, in this order.
    Union(Vec<SpaceId>),
}

/// A named meaning of axis 0.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowSpace {
    /// The name in text forms, unique in its graph.
    pub name: String,
    /// The most rows there can be.
    pub capacity: usize,
    /// What the rows are.
    pub layout: Layout,
}

/// The most rows of a space, so that rows are counted in 32 bits and extents fit in memory.
pub const MAX_ROWS: usize = 1 << 24;

/// The row spaces of a graph.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spaces(Vec<RowSpace>);

impl Spaces {
    /// Declares a space of `capacity` entities, or finds the one of that name.
    pub fn entities(&mut self, name: &str, capacity: usize) -> SpaceId {
        self.declare(RowSpace {
            name: name.to_owned(),
            capacity,
            layout: Layout::Entities,
        })
    }

    /// Declares a space of segments of at most `longest` rows, one for each entity of `owner`, or
    /// finds the one of that name.
    pub fn segments(&mut self, name: &str, owner: SpaceId, longest: usize) -> SpaceId {
        let capacity = self.get(owner).capacity.saturating_mul(longest);
        let layout = Layout::Segments { owner, longest };
        self.declare(RowSpace {
            name: name.to_owned(),
            capacity,
            layout,
        })
    }

    /// Declares the union of `parts`, or finds it. Its name joins theirs with `+`, and is no other
    /// space's.
    pub fn union(&mut self, parts: &[SpaceId]) -> SpaceId {
        if let Some(found) = self.find_union(parts) {
            return found;
        }
        let names: Vec<&str> = parts
            .iter()
            .map(|&part| self.get(part).name.as_str())
            .collect();
        let mut name = names.join("+");
        while self.find(&name).is_some() {
            name.push_str("+0");
        }
        self.declare(RowSpace {
            name,
            capacity: self.sum_of_capacities(parts),
            layout: Layout::Union(parts.to_vec()),
        })
    }

    /// Adds a space, or finds the one of its name.
    pub fn declare(&mut self, space: RowSpace) -> SpaceId {
        self.find(&space.name).unwrap_or_else(|| {
            let id = u16::try_from(self.0.len()).expect("fewer than 65,536 row spaces");
            self.0.push(space);
            SpaceId(id)
        })
    }

    /// Whether `space` may be declared next.
    ///
    /// # Errors
    /// It has more than [`MAX_ROWS`] rows, the owner of its segments is no entity space, or its
    /// capacity is not that of its segments or parts.
    pub fn check(&self, space: &RowSpace) -> Result<(), String> {
        let RowSpace {
            name,
            capacity,
            layout,
        } = space;
        let expected = match layout {
            Layout::Entities => *capacity,
            Layout::Segments { owner, longest } => {
                if !self.contains(*owner) || self.get(*owner).layout != Layout::Entities {
                    return Err(format!("the owner of row space `{name}` has no entities"));
                }
                self.get(*owner).capacity.saturating_mul(*longest)
            }
            Layout::Union(parts) => {
                if parts.is_empty() || !parts.iter().all(|&part| self.contains(part)) {
                    return Err(format!("row space `{name}` has parts that do not exist"));
                }
                self.sum_of_capacities(parts)
            }
        };
        if *capacity > MAX_ROWS {
            Err(format!(
                "row space `{name}` has {capacity} rows, more than {MAX_ROWS}"
            ))
        } else if *capacity != expected {
            Err(format!(
                "row space `{name}` has {capacity} rows, its layout gives {expected}"
            ))
        } else {
            Ok(())
        }
    }

    /// Checks every space as [`Spaces::check`] does.
    ///
    /// # Errors
    /// One message for each space that may not be declared after those before it.
    pub fn check_all(&self) -> Result<(), Vec<String>> {
        let mut before = Spaces::default();
        let mut errors = Vec::new();
        for (_, space) in self.iter() {
            errors.extend(before.check(space).err());
            if before.find(&space.name).is_some() {
                errors.push(format!("a second row space named `{}`", space.name));
            }
            before.0.push(space.clone());
        }
        if errors.is_empty() {
            Ok(())
        } else {
            Err(errors)
        }
    }

    fn sum_of_capacities(&self, parts: &[SpaceId]) -> usize {
        let capacities = parts.iter().map(|&part| self.get(part).capacity);
        capacities.fold(0, usize::saturating_add)
    }

    /// The space of that name.
    pub fn find(&self, name: &str) -> Option<SpaceId> {
        self.iter()
            .find(|(_, space)| space.name == name)
            .map(|(id, _)| id)
    }

    /// The union of exactly these parts, if declared.
    pub fn find_union(&self, parts: &[SpaceId]) -> Option<SpaceId> {
        self.iter()
            .find(|(_, space)| matches!(&space.layout, Layout::Union(own) if own == parts))
            .map(|(id, _)| id)
    }

    /// The space named by `id`, which must come from this table.
    pub fn get(&self, id: SpaceId) -> &RowSpace {
        &self.0[id.index()]
    }

    /// Whether `id` names a space of this table.
    pub fn contains(&self, id: SpaceId) -> bool {
        id.index() < self.0.len()
    }

    /// All spaces in order of declaration.
    pub fn iter(&self) -> impl Iterator<Item = (SpaceId, &RowSpace)> {
        self.0
            .iter()
            .enumerate()
            .map(|(index, space)| (SpaceId(index as u16), space))
    }

    /// The entities whose segments the rows of `id` are; an entity space owns itself, a union has
    /// no single owner.
    pub fn owner(&self, id: SpaceId) -> Option<SpaceId> {
        match self.get(id).layout {
            Layout::Entities => Some(id),
            Layout::Segments { owner, .. } => Some(owner),
            Layout::Union(_) => None,
        }
    }

    /// The entities that own every row of `id`, those of a union's parts included.
    pub fn common_owner(&self, id: SpaceId) -> Option<SpaceId> {
        match &self.get(id).layout {
            Layout::Entities | Layout::Segments { .. } => self.owner(id),
            Layout::Union(parts) => {
                let mut owners = parts.iter().map(|&part| self.common_owner(part));
                let first = owners.next()?;
                first.filter(|_| owners.all(|owner| owner == first))
            }
        }
    }

    /// The most rows of one segment of `id`.
    pub fn longest(&self, id: SpaceId) -> usize {
        match self.get(id).layout {
            Layout::Entities => 1,
            Layout::Segments { longest, .. } => longest,
            Layout::Union(_) => self.get(id).capacity,
        }
    }
}

/// The rows of one entity, end to end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// The entities or segments they are of, never a union.
    pub space: SpaceId,
    /// The entity that owns them.
    pub entity: usize,
    /// Where they lie.
    pub rows: Range<usize>,
}

/// How many rows each space has in one run, and where its segments lie.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Extents {
    /// Per space, the first row of each segment, then the number of rows.
    bounds: Vec<Vec<u32>>,
}

impl Extents {
    /// Every space full: each entity present, each segment as long as it can be.
    pub fn full(spaces: &Spaces) -> Self {
        Self::new(spaces, |_, space| space.capacity, |_, _, longest| longest)
            .expect("full extents fit their capacities")
    }

    /// Extents from the number of entities of each entity space and the length of each segment
    /// `(space, entity, longest) -> rows`.
    ///
    /// # Errors
    /// Names the space whose capacity is exceeded.
    pub fn new(
        spaces: &Spaces,
        entities: impl Fn(SpaceId, &RowSpace) -> usize,
        length: impl Fn(SpaceId, usize, usize) -> usize,
    ) -> Result<Self, String> {
        let mut bounds: Vec<Vec<u32>> = Vec::new();
        for (id, space) in spaces.iter() {
            let lengths: Vec<usize> = match &space.layout {
                Layout::Entities => match entities(id, space) {
                    count if count <= space.capacity => vec![1; count],
                    count => {
                        return Err(format!(
                            "row space `{}` holds at most {} rows; got {count}",
                            space.name, space.capacity
                        ));
                    }
                },
                Layout::Segments { owner, longest } => (0..bounds[owner.index()].len() - 1)
                    .map(|entity| length(id, entity, *longest))
                    .collect(),
                Layout::Union(parts) => parts
                    .iter()
                    .map(|part| total(&bounds[part.index()]))
                    .collect(),
            };
            let rows = lengths.iter().copied().fold(0, usize::saturating_add);
            if lengths.iter().any(|&rows| rows > spaces.longest(id)) || rows > space.capacity {
                return Err(format!(
                    "row space `{}` holds at most {} rows, {} in one segment; got {}, at most {}",
                    space.name,
                    space.capacity,
                    spaces.longest(id),
                    rows,
                    lengths.iter().max().unwrap_or(&0),
                ));
            }
            let mut first = vec![0u32];
            first.extend(lengths.iter().scan(0u32, |sum, &rows| {
                *sum += rows as u32;
                Some(*sum)
            }));
            bounds.push(first);
        }
        Ok(Extents { bounds })
    }

    /// The rows of several runs as those of one: the entities and segments of each behind those of the runs
    /// before it, so that a union has the rows of all runs in its first part, then those in its second. There may
    /// be more than the capacities.
    pub fn joined<'a>(spaces: &Spaces, runs: impl Iterator<Item = &'a Extents> + Clone) -> Self {
        let mut bounds: Vec<Vec<u32>> = Vec::with_capacity(spaces.iter().count());
        for (id, space) in spaces.iter() {
            let mut first = vec![0];
            let mut end = 0;
            let mut add = |rows: usize| {
                end += rows as u32;
                first.push(end);
            };
            match &space.layout {
                Layout::Union(parts) => parts
                    .iter()
                    .for_each(|part| add(total(&bounds[part.index()]))),
                Layout::Entities | Layout::Segments { .. } => runs.clone().for_each(|run| {
                    (0..run.segments(id)).for_each(|segment| add(run.segment(id, segment).len()));
                }),
            }
            bounds.push(first);
        }
        Extents { bounds }
    }

    /// Visits the rows of `space` that [`Extents::joined`] gives run `index` of `runs`, in the order that they have
    /// in the run: one range, or one for each part of a union. Ranges may be empty.
    pub fn visit_joined<'a>(
        spaces: &Spaces,
        runs: impl Iterator<Item = &'a Extents> + Clone,
        index: usize,
        space: SpaceId,
        visit: &mut dyn FnMut(Range<usize>),
    ) {
        if let Layout::Union(parts) = &spaces.get(space).layout {
            let mut first = 0;
            for &part in parts {
                let moved = &mut |rows: Range<usize>| visit(first + rows.start..first + rows.end);
                Self::visit_joined(spaces, runs.clone(), index, part, moved);
                first += runs.clone().map(|run| run.rows(part)).sum::<usize>();
            }
            return;
        }
        let mut rows = runs.map(|run| run.rows(space));
        let start = rows.by_ref().take(index).sum();
        let own = rows.next().unwrap_or(0);
        visit(start..start + own);
    }

    /// Checks that these are extents of `spaces`: as many, none beyond its capacity.
    ///
    /// # Errors
    /// Names the first space that does not fit.
    pub fn fit(&self, spaces: &Spaces) -> Result<(), String> {
        if self.bounds.len() != spaces.iter().count() {
            return Err("the extents are of another graph".to_owned());
        }
        for (id, space) in spaces.iter() {
            let segments = match &space.layout {
                Layout::Entities => self.segments(id),
                Layout::Segments { owner, .. } => self.segments(*owner),
                Layout::Union(parts) => parts.len(),
            };
            let longest = (0..self.segments(id))
                .map(|s| self.segment(id, s).len())
                .max();
            if self.rows(id) > space.capacity
                || self.segments(id) != segments
                || longest.unwrap_or(0) > spaces.longest(id)
            {
                return Err(format!("the extents exceed row space `{}`", space.name));
            }
        }
        Ok(())
    }

    /// Rows of `space` in this run.
    pub fn rows(&self, space: SpaceId) -> usize {
        total(&self.bounds[space.index()])
    }

    /// Segments of `space` in this run; a union's segments are its parts.
    pub fn segments(&self, space: SpaceId) -> usize {
        self.bounds[space.index()].len() - 1
    }

    /// Every segment of `space` in the order of its rows. Those of a union are those of its parts,
    /// also where these are unions.
    pub fn visit_segments(&self, spaces: &Spaces, space: SpaceId, visit: &mut dyn FnMut(Segment)) {
        let Layout::Union(parts) = &spaces.get(space).layout else {
            return (0..self.segments(space)).for_each(|entity| {
                let rows = self.segment(space, entity);
                visit(Segment {
                    space,
                    entity,
                    rows,
                });
            });
        };
        for (part, &of) in parts.iter().enumerate() {
            let first = self.segment(space, part).start;
            self.visit_segments(spaces, of, &mut |segment| {
                let rows = first + segment.rows.start..first + segment.rows.end;
                visit(Segment { rows, ..segment });
            });
        }
    }

    /// The rows of one segment.
    pub fn segment(&self, space: SpaceId, segment: usize) -> Range<usize> {
        let bounds = &self.bounds[space.index()];
        bounds[segment] as usize..bounds[segment + 1] as usize
    }
}

fn total(bounds: &[u32]) -> usize {
    bounds.last().map_or(0, |&rows| rows as usize)
}
