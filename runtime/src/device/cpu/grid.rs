//! How a domain is cut into tiles, and where the elements of a tile lie.
//!
//! A tile is a box of consecutive points: some trailing dimensions whole, one dimension (`split`) in chunks, the outer ones
//! one at a time. Its lanes are the points in row-major order. Cuts depend on shapes only, never on threads.

use alip_plan::DType;
use alip_plan::kernel::View;

/// Lanes of a tile: a register of 4 KiB, so that half a dozen of them fit a first-level cache.
pub(super) const TILE: usize = 1024;
/// Rows shorter than this are put together into one tile; longer ones are worth a dispatch each.
const SHORT: usize = 192;

/// An affine map from coordinates to an element.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Affine {
    pub(super) offset: isize,
    pub(super) strides: Vec<isize>,
}

impl Affine {
    fn new(offset: i64, strides: &[i64]) -> Affine {
        Affine { offset: offset as isize, strides: strides.iter().map(|&stride| stride as isize).collect() }
    }

    /// Coordinate `dim` itself.
    pub(super) fn coordinate(dim: usize, dims: usize) -> Affine {
        Affine { offset: 0, strides: (0..dims).map(|d| isize::from(d == dim)).collect() }
    }

    #[inline]
    pub(super) fn at(&self, coordinates: &[usize]) -> isize {
        self.offset + self.strides.iter().zip(coordinates).map(|(&stride, &at)| stride * at as isize).sum::<isize>()
    }
}

/// A data-dependent coordinate.
#[derive(Clone, Debug)]
pub(super) struct Gathered {
    pub(super) operand: usize,
    pub(super) index: Affine,
    pub(super) stride: isize,
    pub(super) limit: i32,
}

/// A plan's view over the device's dimensions.
#[derive(Clone, Debug)]
pub(super) struct Access {
    pub(super) operand: usize,
    pub(super) dtype: DType,
    pub(super) element: Affine,
    pub(super) gather: Option<Gathered>,
}

impl Access {
    pub(super) fn new(view: &View) -> Access {
        Access {
            operand: view.operand as usize,
            dtype: view.dtype,
            element: Affine::new(view.offset, &view.strides),
            gather: view.gather.as_ref().map(|gather| Gathered {
                operand: gather.operand as usize,
                index: Affine::new(gather.offset, &gather.strides),
                stride: gather.stride as isize,
                limit: gather.limit.min(i64::from(i32::MAX)) as i32,
            }),
        }
    }

    /// All affine maps of the access.
    pub(super) fn maps(&mut self) -> impl Iterator<Item = &mut Affine> {
        std::iter::once(&mut self.element).chain(self.gather.as_mut().map(|gather| &mut gather.index))
    }
}

/// Drops dimensions of size 1 and merges neighbours that every map walks as one; groups of dimensions (kept, reduced) stay
/// apart. Returns the new sizes by group.
pub(super) fn merge(groups: &[&[u64]], maps: &mut [&mut Affine]) -> Vec<Vec<usize>> {
    let mut columns: Vec<Vec<isize>> = Vec::new();
    let mut merged: Vec<Vec<usize>> = Vec::new();
    let mut dim = 0;
    for group in groups {
        let mut sizes: Vec<usize> = Vec::new();
        for &size in *group {
            let size = size as usize;
            let column: Vec<isize> = maps.iter().map(|map| map.strides[dim]).collect();
            dim += 1;
            if size == 1 {
                continue;
            }
            match (sizes.last_mut(), columns.last_mut()) {
                (Some(last), Some(outer))
                    if outer.iter().zip(&column).all(|(&outer, &inner)| outer == inner * size as isize) =>
                {
                    *last *= size;
                    *outer = column;
                }
                _ => {
                    sizes.push(size);
                    columns.push(column);
                }
            }
        }
        merged.push(sizes);
    }
    for (position, map) in maps.iter_mut().enumerate() {
        map.strides = columns.iter().map(|column| column[position]).collect();
    }
    merged
}

/// A domain cut into tiles.
#[derive(Clone, Debug)]
pub(super) struct Grid {
    pub(super) sizes: Vec<usize>,
    /// The dimension cut into chunks.
    pub(super) split: usize,
    /// Points of that dimension in a tile, but for the last.
    pub(super) chunk: usize,
    /// Product of the dimensions after it.
    pub(super) inner: usize,
    /// Chunks along the split dimension.
    pub(super) chunks: usize,
    /// Tiles of the domain.
    pub(super) tiles: usize,
}

impl Grid {
    /// Cuts a domain; dimensions from `whole` on are never cut (their product is at most `TILE`).
    pub(super) fn new(sizes: &[usize], whole: usize) -> Grid {
        if sizes.is_empty() {
            return Grid { sizes: vec![1], split: 0, chunk: 1, inner: 1, chunks: 1, tiles: 1 };
        }
        let mut split = whole.max(1) - 1;
        let mut inner: usize = sizes[split + 1..].iter().product();
        while split > 0 && inner * sizes[split] <= SHORT {
            inner *= sizes[split];
            split -= 1;
        }
        let most = (TILE / inner.max(1)).max(1);
        let chunks = sizes[split].div_ceil(most).max(1);
        let mut chunk = sizes[split].div_ceil(chunks).max(1);
        if inner == 1 && chunk > 16 {
            chunk = chunk.next_multiple_of(16).min(TILE); // whole cache lines
        }
        Grid::with_chunk(sizes, split, chunk)
    }

    /// Cuts a domain along `split` into chunks of a given size.
    pub(super) fn with_chunk(sizes: &[usize], split: usize, chunk: usize) -> Grid {
        let inner = sizes[split + 1..].iter().product();
        let chunks = sizes[split].div_ceil(chunk);
        let tiles = sizes[..split].iter().product::<usize>() * chunks * usize::from(inner > 0);
        Grid { sizes: sizes.to_vec(), split, chunk, inner, chunks, tiles }
    }

    /// Coordinates of a tile's first point; its extent along the split dimension.
    #[inline]
    pub(super) fn locate(&self, tile: usize, coordinates: &mut [usize]) -> usize {
        coordinates.fill(0);
        let (mut rest, chunk) = if self.chunks == 1 { (tile, 0) } else { (tile / self.chunks, tile % self.chunks) };
        coordinates[self.split] = chunk * self.chunk;
        for dim in (0..self.split).rev() {
            if rest == 0 {
                break;
            }
            coordinates[dim] = rest % self.sizes[dim];
            rest /= self.sizes[dim];
        }
        self.chunk.min(self.sizes[self.split] - chunk * self.chunk)
    }

    /// Most lanes of a tile.
    pub(super) fn lanes(&self) -> usize {
        self.chunk * self.inner
    }

    /// How an affine map walks the lanes of a tile: merged loops, outermost first; the first one is along the split
    /// dimension (its length is that of the tile at hand).
    pub(super) fn walk(&self, maps: &[&Affine]) -> Walk {
        let column =
            |dim: usize| -> Vec<isize> { maps.iter().map(|map| map.strides.get(dim).copied().unwrap_or(0)).collect() };
        let mut loops = vec![(self.chunk, column(self.split))];
        for dim in self.split + 1..self.sizes.len() {
            let (size, inner) = (self.sizes[dim], column(dim));
            if size == 1 {
                continue;
            }
            match loops.last_mut() {
                Some((length, outer))
                    if outer.iter().zip(&inner).all(|(&o, &i)| o == i * size as isize) || *length == 1 =>
                {
                    *length *= size;
                    *outer = inner;
                }
                _ => loops.push((size, inner)),
            }
        }
        Walk { loops }
    }
}

/// Loops over the lanes of a tile: length and strides of each map.
#[derive(Clone, Debug)]
pub(super) struct Walk {
    pub(super) loops: Vec<(usize, Vec<isize>)>,
}

impl Walk {
    /// The common stride, if the lanes are evenly spaced for the first map and the others do not move.
    pub(super) fn linear(&self) -> Option<isize> {
        match self.loops.as_slice() {
            [(_, strides)] if strides[1..].iter().all(|&stride| stride == 0) => Some(strides[0]),
            _ => None,
        }
    }

    /// Whether no map moves.
    pub(super) fn still(&self) -> bool {
        self.loops.iter().all(|(length, strides)| *length == 1 || strides.iter().all(|&stride| stride == 0))
    }
}

impl Grid {
    /// Position of a tile's first lane among all points, row-major.
    pub(super) fn first_lane(&self, tile: usize) -> usize {
        let (outer, chunk) = (tile / self.chunks, tile % self.chunks);
        (outer * self.sizes[self.split] + chunk * self.chunk) * self.inner
    }

    /// Lanes of a tile.
    pub(super) fn lanes_of(&self, tile: usize) -> usize {
        let chunk = tile % self.chunks;
        self.chunk.min(self.sizes[self.split] - chunk * self.chunk) * self.inner
    }
}
