//! Axes that outlive views: a dimension as a product of atoms, so that a tensor can be followed through the reshapes and
//! transposes of any spelling.

use crate::ir::{Builder, Graph, NodeId, Shape};
use crate::ops::{Dot, Op, OpError};

/// An axis of more than one element, as far as no view cuts it.
pub(super) type Atom = usize;

/// For each dimension of a tensor the atoms it is a product of, outermost first; none for a dimension of size 1.
pub(super) type Layout = Vec<Vec<Atom>>;

/// All atoms of a site. Cutting an atom keeps layouts that hold it valid: [`Atoms::whole`] reads them.
#[derive(Default)]
pub(super) struct Atoms {
    sizes: Vec<u64>,
    parts: Vec<Option<(Atom, Atom)>>,
}

impl Atoms {
    fn fresh(&mut self, size: u64) -> Atom {
        self.sizes.push(size);
        self.parts.push(None);
        self.sizes.len() - 1
    }

    /// A new atom for each dimension.
    pub(super) fn layout(&mut self, shape: &Shape) -> Layout {
        shape.0.iter().map(|dim| if dim.size == 1 { vec![] } else { vec![self.fresh(dim.size)] }).collect()
    }

    /// Number of elements along an atom.
    pub(super) fn size(&self, atom: Atom) -> u64 {
        self.sizes[atom]
    }

    /// The product of sizes.
    pub(super) fn product(&self, atoms: &[Atom]) -> u64 {
        atoms.iter().map(|atom| self.size(*atom)).product()
    }

    /// The atoms, with those that were cut since replaced by their parts.
    pub(super) fn whole(&self, atoms: &[Atom]) -> Vec<Atom> {
        let mut all = Vec::with_capacity(atoms.len());
        for atom in atoms {
            match self.parts[*atom] {
                Some((outer, inner)) => all.extend(self.whole(&[outer, inner])),
                None => all.push(*atom),
            }
        }
        all
    }

    /// The atoms of some dimensions.
    pub(super) fn of(&self, layout: &Layout, dims: impl IntoIterator<Item = usize>) -> Vec<Atom> {
        dims.into_iter().flat_map(|dim| self.whole(&layout[dim])).collect()
    }

    /// The layout after a reshape; `None` if it cuts an axis where it does not divide.
    pub(super) fn reshape(&mut self, layout: &Layout, to: &Shape) -> Option<Layout> {
        let mut rest = self.of(layout, 0..layout.len());
        rest.reverse();
        let mut result = Layout::new();
        for dim in &to.0 {
            let (mut left, mut atoms) = (dim.size, Vec::new());
            while left > 1 {
                let atom = rest.pop()?;
                let size = self.size(atom);
                if left.is_multiple_of(size) {
                    left /= size;
                    atoms.push(atom);
                } else if size.is_multiple_of(left) {
                    let (outer, inner) = (self.fresh(left), self.fresh(size / left));
                    self.parts[atom] = Some((outer, inner));
                    atoms.push(outer);
                    rest.push(inner);
                    left = 1;
                } else {
                    return None;
                }
            }
            result.push(atoms);
        }
        rest.is_empty().then_some(result)
    }

    /// Layouts of the operands and the result of a product, given that of one operand or none.
    pub(super) fn dot(&mut self, graph: &Graph, id: NodeId, known: Option<(usize, &Layout)>) -> Option<Product> {
        let node = graph.node(id);
        let Op::Dot(dot) = &node.op else { return None };
        let (side, first) = match known {
            Some((side, layout)) => (side, layout.clone()),
            None => (0, self.layout(graph.shape(node.inputs[0]))),
        };
        let mut other = self.layout(graph.shape(node.inputs[1 - side]));
        for (l, r) in dot.batch.iter().chain(&dot.contract) {
            let (mine, theirs) = if side == 0 { (*l, *r) } else { (*r, *l) };
            other[theirs] = first[mine].clone();
        }
        let [left, right] = if side == 0 { [first, other] } else { [other, first] };
        let free = |layout: &Layout, axes: &[Vec<usize>; 2]| -> Vec<usize> {
            (0..layout.len()).filter(|dim| !axes.iter().any(|axes| axes.contains(dim))).collect()
        };
        let (left_axes, right_axes) = (sides(dot, |pair| pair.0), sides(dot, |pair| pair.1));
        let (left_free, right_free) = (free(&left, &left_axes), free(&right, &right_axes));
        let batch = left_axes[0].iter().map(|dim| left[*dim].clone());
        let out = batch
            .chain(left_free.iter().map(|dim| left[*dim].clone()))
            .chain(right_free.iter().map(|dim| right[*dim].clone()));
        Some(Product {
            out: out.collect(),
            free: [left_free, right_free],
            axes: [left_axes, right_axes],
            sides: [left, right],
        })
    }
}

fn sides(dot: &Dot, side: impl Fn(&(usize, usize)) -> usize) -> [Vec<usize>; 2] {
    [dot.batch.iter().map(&side).collect(), dot.contract.iter().map(&side).collect()]
}

/// A product by its axes.
pub(super) struct Product {
    /// Layouts of both operands.
    pub(super) sides: [Layout; 2],
    /// Layout of the result.
    pub(super) out: Layout,
    /// Per operand the dimensions that only it has.
    pub(super) free: [Vec<usize>; 2],
    /// Per operand its batch dimensions and its contracted ones.
    pub(super) axes: [[Vec<usize>; 2]; 2],
}

/// A tensor and what its dimensions are.
#[derive(Clone)]
pub(super) struct Source {
    pub(super) node: NodeId,
    pub(super) layout: Layout,
}

impl Source {
    /// The tensor that this one is a view of, as it lies in memory.
    pub(super) fn below_views(mut self, graph: &Graph, atoms: &mut Atoms) -> Source {
        loop {
            let node = graph.node(self.node);
            let layout = match &node.op {
                Op::Transpose { perm } => {
                    let mut layout = vec![vec![]; perm.len()];
                    perm.iter().zip(&self.layout).for_each(|(axis, atoms)| layout[*axis] = atoms.clone());
                    layout
                }
                Op::Reshape { .. } => match atoms.reshape(&self.layout, graph.shape(node.inputs[0])) {
                    Some(layout) => layout,
                    None => return self,
                },
                _ => return self,
            };
            self = Source { node: node.inputs[0], layout };
        }
    }

    /// The atoms in the order in which they lie.
    pub(super) fn order(&self, atoms: &Atoms) -> Vec<Atom> {
        atoms.of(&self.layout, 0..self.layout.len())
    }

    /// The tensor with these atoms as its dimensions; `x` is the node that stands for it.
    pub(super) fn arranged(
        &self,
        b: &mut Builder<'_>,
        atoms: &Atoms,
        x: NodeId,
        dims: &[&[Atom]],
    ) -> Result<NodeId, OpError> {
        let order = self.order(atoms);
        let cut = b.reshape(x, order.iter().map(|atom| atoms.size(*atom)).collect())?;
        let wanted = dims.iter().copied().flatten();
        let perm: Vec<usize> = wanted.filter_map(|atom| order.iter().position(|other| other == atom)).collect();
        let turned = b.transpose(cut, &perm)?;
        b.reshape(turned, dims.iter().map(|atoms_there| atoms.product(atoms_there)).collect())
    }
}
