//! Where the elements of a value lie, seen through views.
//!
//! A [`Layout`] is an affine map from the coordinates of a domain to the row-major element index of a dense value. A
//! dimension of the domain is a list of [`Atom`]s (a mixed radix), so that a reshape which splits or merges dimensions
//! stays affine: `[6]` seen as `[2, 3]` is two atoms of one dimension. Views compose on layouts; what does not stay affine
//! (a reshape across the grain of a transpose) is `None`, and the value has to be written out first.
//!
//! Invariants: within a dimension, atoms are outermost first, have sizes above 1, and no two neighbours could be one.

use alip_plan::fault::{Fault, planted};
use smallvec::SmallVec;

use crate::ir::Graph;
use crate::ir::NodeId;
use crate::ops::Op;

/// A digit of a dimension: `size` elements, `stride` apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Atom {
    pub(crate) size: u64,
    pub(crate) stride: i64,
}

/// The atoms of one dimension, outermost first.
pub(crate) type Atoms = SmallVec<[Atom; 2]>;

/// An affine map from a domain to the elements of a dense value.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Layout {
    pub(crate) offset: i64,
    pub(crate) dims: SmallVec<[Atoms; 4]>,
}

/// A view as a step of a chain: what the value looks like before is known from the value, after from the step.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum ViewOp {
    Reshape(Vec<u64>),
    Transpose(Vec<usize>),
    /// Result sizes and, per dimension of the value, where it goes.
    Broadcast(Vec<u64>, Vec<usize>),
    /// Start, length, step per dimension.
    Slice(Vec<(u64, u64, u64)>),
}

/// Views in the order in which they are applied to a value; the last one yields the domain of the reader.
pub(crate) type Chain = Vec<ViewOp>;

impl ViewOp {
    /// The step that an op is, from so many elements to these sizes.
    pub(crate) fn of(op: &Op, elements: u64, to: &[u64]) -> Option<ViewOp> {
        let same = elements == to.iter().product::<u64>();
        Some(match op {
            Op::Transpose { perm } => ViewOp::Transpose(perm.clone()),
            // Where no element is repeated or left out they are reshapes, which can be inverted.
            Op::Broadcast { dims, .. } if !same => ViewOp::Broadcast(to.to_vec(), dims.clone()),
            Op::Slice { start, step, .. } if !same => {
                let ranges = start.iter().zip(to).zip(step);
                ViewOp::Slice(ranges.map(|((start, len), step)| (*start, *len, *step)).collect())
            }
            Op::Reshape { .. } | Op::StopGradient | Op::Broadcast { .. } | Op::Slice { .. } => {
                ViewOp::Reshape(to.to_vec())
            }
            _ => return None,
        })
    }
}

/// The node as a step of a chain, if it is a view of its only input.
pub(crate) fn view_op(graph: &Graph, id: NodeId) -> Option<ViewOp> {
    let node = graph.node(id);
    let input = node.inputs.first().filter(|_| node.op.is_view())?;
    ViewOp::of(&node.op, graph.shape(*input).elements(), &node.ty.shape.sizes())
}

/// The chain that undoes a chain of reshapes and transposes on a value of these sizes.
pub(crate) fn inverse(sizes: &[u64], chain: &[ViewOp]) -> Option<Chain> {
    let mut before = sizes.to_vec();
    let mut undone = Vec::new();
    for op in chain {
        match op {
            ViewOp::Reshape(after) => undone.push(ViewOp::Reshape(std::mem::replace(&mut before, after.clone()))),
            ViewOp::Transpose(perm) => {
                let mut back = vec![0; perm.len()];
                for (to, from) in perm.iter().enumerate() {
                    back[*from] = to;
                }
                before = perm.iter().map(|from| before[*from]).collect();
                undone.push(ViewOp::Transpose(back));
            }
            ViewOp::Broadcast(..) | ViewOp::Slice(_) => return None,
        }
    }
    undone.reverse();
    Some(undone)
}

fn push_inner(atoms: &mut Atoms, atom: Atom) {
    if atom.size == 1 {
        return;
    }
    match atoms.last_mut() {
        Some(outer) if outer.stride == atom.stride * atom.size as i64 => {
            *outer = Atom { size: outer.size * atom.size, stride: atom.stride };
        }
        _ => atoms.push(atom),
    }
}

/// Merges neighbours that are one.
pub(crate) fn merged(atoms: impl IntoIterator<Item = Atom>) -> Atoms {
    let mut result = Atoms::new();
    for atom in atoms {
        push_inner(&mut result, atom);
    }
    result
}

impl Layout {
    /// A dense value seen as it is.
    pub(crate) fn dense(sizes: &[u64]) -> Layout {
        let mut stride = 1i64;
        let mut dims: SmallVec<[Atoms; 4]> = sizes
            .iter()
            .rev()
            .map(|&size| {
                let atom = Atom { size, stride };
                stride *= size as i64;
                merged([atom])
            })
            .collect();
        dims.reverse();
        Layout { offset: 0, dims }
    }

    /// A dense value of these sizes seen through a chain.
    pub(crate) fn through(sizes: &[u64], chain: &[ViewOp]) -> Option<Layout> {
        chain.iter().try_fold(Layout::dense(sizes), |layout, view| layout.apply(view))
    }

    /// The coordinate along one axis as an affine map, seen through a chain.
    pub(crate) fn coordinate(sizes: &[u64], axis: usize, chain: &[ViewOp]) -> Option<Layout> {
        let dims = sizes.iter().enumerate();
        let dims = dims.map(|(dim, &size)| merged([Atom { size, stride: i64::from(dim == axis) }])).collect();
        chain.iter().try_fold(Layout { offset: 0, dims }, |layout, view| layout.apply(view))
    }

    /// This layout seen through one more view.
    pub(crate) fn apply(self, view: &ViewOp) -> Option<Layout> {
        match view {
            ViewOp::Reshape(sizes) => self.reshape(sizes),
            ViewOp::Transpose(perm) => {
                Some(Layout { offset: self.offset, dims: perm.iter().map(|&from| self.dims[from].clone()).collect() })
            }
            ViewOp::Broadcast(sizes, places) => {
                let mut dims: SmallVec<[Atoms; 4]> =
                    sizes.iter().map(|&size| merged([Atom { size, stride: 0 }])).collect();
                for (atoms, &place) in self.dims.into_iter().zip(places) {
                    if !atoms.is_empty() {
                        dims[place] = atoms;
                    }
                }
                Some(Layout { offset: self.offset, dims })
            }
            ViewOp::Slice(ranges) => {
                let mut offset = self.offset;
                let mut dims = SmallVec::new();
                for (atoms, &(start, len, step)) in self.dims.iter().zip(ranges) {
                    let early = u64::from(planted(Fault::SliceOffByOne));
                    let (shift, sliced) = slice(atoms, start.saturating_sub(early), len, step)?;
                    offset += shift;
                    dims.push(sliced);
                }
                Some(Layout { offset, dims })
            }
        }
    }

    fn reshape(self, sizes: &[u64]) -> Option<Layout> {
        if sizes.contains(&0) {
            return Some(Layout::dense(sizes)); // no element is ever read
        }
        let mut atoms = merged(self.dims.into_iter().flatten());
        let mut dims: SmallVec<[Atoms; 4]> = SmallVec::new();
        for &size in sizes.iter().rev() {
            let mut need = size;
            let mut inner_first = Atoms::new();
            while need > 1 {
                let atom = atoms.pop()?;
                if need % atom.size == 0 {
                    need /= atom.size;
                    inner_first.push(atom);
                } else if atom.size % need == 0 {
                    inner_first.push(Atom { size: need, stride: atom.stride });
                    atoms.push(Atom { size: atom.size / need, stride: atom.stride * need as i64 });
                    need = 1;
                } else {
                    return None;
                }
            }
            dims.push(merged(inner_first.into_iter().rev()));
        }
        dims.reverse();
        Some(Layout { offset: self.offset, dims })
    }

    /// The atoms of all dimensions, outermost first, merged across dimensions.
    pub(crate) fn flat(&self) -> Atoms {
        merged(self.dims.iter().flatten().copied())
    }

    /// Is this the whole of a dense value of so many elements, in its own order?
    pub(crate) fn is_identity(&self, elements: u64) -> bool {
        let flat = self.flat();
        self.offset == 0
            && match flat.as_slice() {
                [] => elements == 1,
                [one] => one.stride == 1 && one.size == elements,
                _ => false,
            }
    }

    /// Does every point of the domain have an element of its own, in a value of so many elements?
    pub(crate) fn is_bijection(&self, elements: u64) -> bool {
        let mut flat = self.flat();
        flat.sort_by_key(|atom| atom.stride);
        let mut reach = 1;
        for atom in &flat {
            if atom.stride != reach {
                return false;
            }
            reach *= atom.size as i64;
        }
        self.offset == 0 && reach as u64 == elements
    }

    /// One stride per dimension, 0 where it has one element; none if a dimension needs several.
    pub(crate) fn strides(&self) -> Option<Vec<i64>> {
        let stride = |atoms: &Atoms| match atoms.as_slice() {
            [] => Some(0),
            [one] => Some(one.stride),
            _ => None,
        };
        self.dims.iter().map(stride).collect()
    }

    /// Number of distinct elements read, at most.
    pub(crate) fn distinct(&self) -> u64 {
        self.dims.iter().flatten().filter(|atom| atom.stride != 0).map(|atom| atom.size).product()
    }

    /// Are the dimensions from `dim` on irrelevant?
    pub(crate) fn is_constant_from(&self, dim: usize) -> bool {
        self.dims[dim..].iter().flatten().all(|atom| atom.stride == 0)
    }
}

/// Elements `start, start + step, ..` of a dimension.
fn slice(atoms: &[Atom], start: u64, len: u64, step: u64) -> Option<(i64, Atoms)> {
    let Some((outer, rest)) = atoms.split_first() else { return Some((0, Atoms::new())) };
    let inner: u64 = rest.iter().map(|atom| atom.size).product();
    let (first, last) = (start / inner, (start + len.saturating_sub(1) * step) / inner);
    let offset = first as i64 * outer.stride;
    if rest.is_empty() {
        return Some((offset, merged([Atom { size: len, stride: outer.stride * step as i64 }])));
    }
    if first == last {
        let (shift, sliced) = slice(rest, start % inner, len, step)?;
        return Some((offset + shift, sliced));
    }
    if step == 1 && start.is_multiple_of(inner) && len.is_multiple_of(inner) {
        let whole = Atom { size: len / inner, stride: outer.stride };
        return Some((offset, merged(std::iter::once(whole).chain(rest.iter().copied()))));
    }
    if step.is_multiple_of(inner) {
        let (shift, _) = slice(rest, start % inner, 1, 1)?;
        let stride = outer.stride * (step / inner) as i64;
        return Some((offset + shift, merged([Atom { size: len, stride }])));
    }
    None
}

/// The common mixed radix of all layouts over a domain: per dimension, the cumulative products at which it is cut.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Cuts {
    sizes: Vec<u64>,
    /// Per dimension, ascending, without 1 and the size itself; each divides the next.
    cuts: Vec<SmallVec<[u64; 2]>>,
    /// Dimensions from here on are never cut.
    frozen: usize,
}

impl Cuts {
    pub(crate) fn new(sizes: &[u64]) -> Cuts {
        Cuts { sizes: sizes.to_vec(), cuts: vec![SmallVec::new(); sizes.len()], frozen: sizes.len() }
    }

    /// The last dimensions, from `frozen` on, stay whole: rows and columns of a product.
    pub(crate) fn frozen(sizes: &[u64], frozen: usize) -> Cuts {
        Cuts { frozen, ..Cuts::new(sizes) }
    }

    /// The same with more dimensions, uncut, after the present ones.
    pub(crate) fn extended(&self, tail: &[u64]) -> Cuts {
        let mut cuts = self.clone();
        cuts.sizes.extend(tail);
        cuts.cuts.resize(cuts.sizes.len(), SmallVec::new());
        cuts.frozen = cuts.frozen.max(cuts.sizes.len());
        cuts
    }

    /// Refines so that every dimension of this layout is cut at its atoms. The layout may cover the first dimensions only.
    /// Unchanged if there is no common radix.
    pub(crate) fn add(&mut self, layout: &Layout) -> bool {
        let mut refined = self.cuts.clone();
        for (dim, atoms) in layout.dims.iter().enumerate() {
            let mut product = 1;
            for atom in atoms.iter().rev().take(atoms.len().saturating_sub(1)) {
                product *= atom.size;
                let cuts = &mut refined[dim];
                let Err(place) = cuts.binary_search(&product) else { continue };
                let divides_next = cuts.get(place).is_none_or(|next| next % product == 0);
                let divided = place == 0 || product.is_multiple_of(cuts[place - 1]);
                if dim >= self.frozen || !divides_next || !divided {
                    return false;
                }
                cuts.insert(place, product);
            }
        }
        self.cuts = refined;
        true
    }

    /// Refines by everything the other refines over the same sizes.
    pub(crate) fn join(&mut self, other: &Cuts) -> bool {
        let mut joined = self.clone();
        for (dim, cuts) in other.cuts.iter().enumerate() {
            let size = self.sizes[dim];
            let mut atoms = Atoms::new();
            let mut inner = 1;
            for cut in cuts.iter().chain(std::iter::once(&size)) {
                // Strides that never merge, so that only the sizes count.
                atoms.push(Atom { size: cut / inner, stride: 0 });
                inner = *cut;
            }
            atoms.reverse();
            let mut dims: SmallVec<[Atoms; 4]> = SmallVec::from_elem(Atoms::new(), dim);
            dims.push(atoms);
            if !joined.add(&Layout { offset: 0, dims }) {
                return false;
            }
        }
        *self = joined;
        true
    }

    /// Sizes of the refined dimensions of one dimension, outermost first.
    pub(crate) fn parts(&self, dim: usize) -> Vec<u64> {
        let mut inner = 1;
        let mut parts: Vec<u64> = Vec::new();
        for cut in self.cuts[dim].iter().chain(std::iter::once(&self.sizes[dim])) {
            parts.push(cut / inner);
            inner = *cut;
        }
        parts.reverse();
        parts
    }

    /// One stride per refined dimension of the domain; dimensions the layout does not cover have stride 0.
    pub(crate) fn strides(&self, layout: &Layout) -> Vec<i64> {
        let mut strides = Vec::new();
        for dim in 0..self.sizes.len() {
            let parts = self.parts(dim);
            let Some(atoms) = layout.dims.get(dim) else {
                strides.extend(std::iter::repeat_n(0, parts.len()));
                continue;
            };
            let mut atoms = atoms.iter().rev().copied();
            let mut current = atoms.next().unwrap_or(Atom { size: 1, stride: 0 });
            let mut inner_first: Vec<i64> = Vec::new();
            for &part in parts.iter().rev() {
                if part > 1 && current.size == 1 {
                    current = atoms.next().unwrap_or(Atom { size: part, stride: 0 });
                }
                inner_first.push(current.stride);
                current = Atom { size: current.size / part, stride: current.stride * part as i64 };
            }
            strides.extend(inner_first.into_iter().rev());
        }
        strides
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Element indices of all points of a layout, in row-major order of its domain.
    fn elements(layout: &Layout, sizes: &[u64]) -> Vec<i64> {
        let mut cuts = Cuts::new(sizes);
        assert!(cuts.add(layout));
        let strides = cuts.strides(layout);
        let parts: Vec<u64> = (0..sizes.len()).flat_map(|dim| cuts.parts(dim)).collect();
        let mut all = vec![layout.offset];
        for (size, stride) in parts.iter().zip(&strides) {
            all = all.iter().flat_map(|at| (0..*size as i64).map(move |i| at + i * stride)).collect();
        }
        all
    }

    /// What the same views do to the numbers 0, 1, 2, ...
    fn by_hand(sizes: &[u64], chain: &[ViewOp]) -> (Vec<u64>, Vec<i64>) {
        let mut sizes = sizes.to_vec();
        let mut data: Vec<i64> = (0..sizes.iter().product::<u64>() as i64).collect();
        for view in chain {
            let old = sizes.clone();
            let at = |coords: &[u64]| coords.iter().zip(&old).fold(0, |i, (c, s)| i * s + c) as usize;
            let points = |sizes: &[u64]| {
                let mut all: Vec<Vec<u64>> = vec![vec![]];
                for &size in sizes {
                    all = all.iter().flat_map(|p| (0..size).map(|i| [p.as_slice(), &[i]].concat())).collect();
                }
                all
            };
            match view {
                ViewOp::Reshape(new) => sizes = new.clone(),
                ViewOp::Transpose(perm) => {
                    sizes = perm.iter().map(|&from| old[from]).collect();
                    let from = |p: &Vec<u64>| {
                        let mut coords = vec![0; p.len()];
                        perm.iter().zip(p).for_each(|(&from, &c)| coords[from] = c);
                        data[at(&coords)]
                    };
                    data = points(&sizes).iter().map(from).collect();
                }
                ViewOp::Broadcast(new, places) => {
                    sizes = new.clone();
                    let from = |p: &Vec<u64>| {
                        let coords: Vec<u64> = places
                            .iter()
                            .zip(&old)
                            .map(|(&place, &size)| if size == 1 { 0 } else { p[place] })
                            .collect();
                        data[at(&coords)]
                    };
                    data = points(&sizes).iter().map(from).collect();
                }
                ViewOp::Slice(ranges) => {
                    sizes = ranges.iter().map(|range| range.1).collect();
                    let from = |p: &Vec<u64>| {
                        let coords: Vec<u64> =
                            ranges.iter().zip(p).map(|(&(start, _, step), &c)| start + c * step).collect();
                        data[at(&coords)]
                    };
                    data = points(&sizes).iter().map(from).collect();
                }
            }
        }
        (sizes, data)
    }

    fn check(sizes: &[u64], chain: &[ViewOp]) {
        let layout = Layout::through(sizes, chain).expect("affine");
        let (sizes, expected) = by_hand(sizes, chain);
        assert_eq!(elements(&layout, &sizes), expected, "{layout:?}");
    }

    #[test]
    fn views_compose() {
        use ViewOp::*;
        check(&[2, 3, 8], &[Reshape(vec![2, 3, 2, 4]), Transpose(vec![0, 2, 1, 3])]);
        check(&[2, 2, 3, 4], &[Transpose(vec![0, 2, 1, 3]), Reshape(vec![2, 3, 8])]);
        check(&[2, 2, 3, 4], &[Transpose(vec![0, 2, 1, 3]), Reshape(vec![6, 8]), Slice(vec![(3, 3, 1), (4, 4, 1)])]);
        check(&[3, 8], &[Slice(vec![(1, 2, 1), (1, 3, 2)]), Broadcast(vec![2, 5, 3], vec![0, 2])]);
        check(&[4, 1], &[Broadcast(vec![4, 6], vec![0, 1]), Reshape(vec![2, 2, 2, 3])]);
        check(&[2, 3, 4], &[Transpose(vec![2, 0, 1]), Slice(vec![(3, 1, 1), (0, 2, 1), (0, 2, 2)])]);
        check(&[2, 3, 4], &[Transpose(vec![2, 1, 0]), Reshape(vec![4, 6]), Slice(vec![(0, 2, 3), (1, 3, 2)])]);
    }

    #[test]
    fn what_is_not_affine_is_refused() {
        let across = [ViewOp::Transpose(vec![1, 0]), ViewOp::Reshape(vec![4, 3])];
        assert_eq!(Layout::through(&[2, 6], &across), None);
        let mut cuts = Cuts::new(&[6]);
        let split = |sizes: [u64; 2]| {
            Layout::through(&sizes, &[ViewOp::Transpose(vec![1, 0]), ViewOp::Reshape(vec![6])]).expect("affine")
        };
        assert!(cuts.add(&split([2, 3])));
        assert!(!cuts.add(&split([3, 2])), "no common radix of 2x3 and 3x2");
    }

    #[test]
    fn chains_of_reshapes_and_transposes_have_an_inverse() {
        let chain = [ViewOp::Reshape(vec![2, 3, 4]), ViewOp::Transpose(vec![2, 0, 1]), ViewOp::Reshape(vec![8, 3])];
        let back = inverse(&[6, 4], &chain).expect("invertible");
        let both = [chain.as_slice(), &back].concat();
        assert!(Layout::through(&[6, 4], &both).expect("affine").is_identity(24));
        assert!(Layout::through(&[6, 4], &chain).expect("affine").is_bijection(24));
    }
}
