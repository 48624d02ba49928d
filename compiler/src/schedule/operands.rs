//! Operands that are read by hardware-shaped loops: products and gathers.

use super::layout::{Atom, Atoms, Chain, Layout, ViewOp, merged};

/// An operand of a product: `[batch.., free.., contracted..]` with one stride each for free and contracted dimensions.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct ProductOperand {
    pub(crate) offset: i64,
    pub(crate) batch: Vec<Atoms>,
    pub(crate) free: Atom,
    pub(crate) contracted: Atom,
}

/// The operand of a product with so many batch and contracted dimensions, if its layout is one.
pub(crate) fn product(layout: &Layout, batch: usize, contracted: usize) -> Option<ProductOperand> {
    let single = |dims: &[Atoms]| match merged(dims.iter().flatten().copied()).as_slice() {
        [] => Some(Atom { size: 1, stride: 0 }),
        // Libraries for matrix products take no repeated elements along a summed or free dimension.
        [one] if one.stride != 0 => Some(*one),
        _ => None,
    };
    let free = batch..layout.dims.len() - contracted;
    Some(ProductOperand {
        offset: layout.offset,
        batch: layout.dims[..batch].to_vec(),
        free: single(&layout.dims[free.clone()])?,
        contracted: single(&layout.dims[free.end..])?,
    })
}

/// A gather as affine maps over the domain of its reader.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Gathered {
    /// Where the row with index 0 lies.
    pub(crate) data: Layout,
    /// Elements per unit of the index.
    pub(crate) stride: i64,
    /// Number of rows.
    pub(crate) limit: u64,
    /// Where the index lies.
    pub(crate) index: Layout,
}

/// The maps of a gather whose operands `[b.., n, r..]` and `[b.., i..]` have these layouts, read through a chain from
/// `[b.., i.., r..]`.
pub(crate) fn gather(
    data: &Layout,
    index: &Layout,
    batch: usize,
    index_rank: usize,
    chain: &Chain,
) -> Option<Gathered> {
    let (stride, limit) = match data.dims[batch].as_slice() {
        [] => (0, 1),
        [one] => (one.stride, one.size),
        _ => return None,
    };
    let repeat = |dims: &[Atoms]| -> Vec<Atoms> {
        let size = |atoms: &Atoms| atoms.iter().map(|atom| atom.size).product();
        dims.iter().map(|atoms| merged([Atom { size: size(atoms), stride: 0 }])).collect()
    };
    let rows = &data.dims[batch + 1..];
    let picks = &index.dims[batch..index_rank];
    let over = |offset, parts: [&[Atoms]; 3]| Layout { offset, dims: parts.concat().into_iter().collect() };
    let through = |layout: Layout| chain.iter().try_fold(layout, |layout, view: &ViewOp| layout.apply(view));
    Some(Gathered {
        data: through(over(data.offset, [&data.dims[..batch], &repeat(picks), rows]))?,
        stride,
        limit,
        index: through(over(index.offset, [&index.dims[..batch], picks, &repeat(rows)]))?,
    })
}
