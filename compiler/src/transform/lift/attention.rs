//! Attention, from the product of queries and keys to the product with values.
//!
//! A site is found from its end: a product, one operand of which is a softmax, of what comes from another product through
//! views, scales and masks. Axes are followed as atoms ([`super::axes`]), so that it does not matter where heads and
//! samples stand, nor whether they are merged on the way. What then has to hold is stated in terms of axes:
//!
//! - softmax and the product with values run over the same axes, which are those that only the keys have;
//! - both products share the same axes otherwise (samples and heads);
//! - nobody reads what lies between but through the product with values.
//!
//! Whether a shared axis counts samples or heads makes no difference to the result. It is taken for a sample where it lies
//! outside of the rows in memory and for a head where it lies inside, so that no element has to move.

use alip_plan::fault::{Fault, planted};

use super::axes::{Atom, Atoms, Layout, Source};
use super::known::Known;
use super::mask::{self, Length, Touch, masked};
use crate::ir::{Builder, DType, NodeId, Shape};
use crate::ops::attention::{Attention, AttentionResult, Rows};
use crate::ops::{Op, OpError, Real, ScalarOp};
use crate::transform::analysis;

/// Operations followed from a product backwards; more than any spelling has.
const FUEL: usize = 64;

/// A site, ready to be written anew.
pub(super) struct Site {
    q: Source,
    k: Source,
    v: Source,
    scale: f64,
    causal: bool,
    length: Option<Length>,
    atoms: Atoms,
    samples: Vec<Atom>,
    queries: Vec<Atom>,
    keys: Vec<Atom>,
    heads: Vec<Atom>,
    width: Vec<Atom>,
    value_width: Vec<Atom>,
    out: Layout,
    shape: Shape,
}

/// One operation between the two products.
enum Step {
    Product(NodeId),
    View(NodeId),
    Touch(NodeId, usize),
    Softmax(Vec<usize>),
}

/// Follows a product's operand backwards.
struct Tracer<'a> {
    known: &'a Known<'a>,
    /// Whether any scalar operation may stand on the way, and no softmax has to.
    any: bool,
    fuel: usize,
}

impl Tracer<'_> {
    /// The way from a product to a node; `seen`: behind the softmax.
    fn trace(&mut self, id: NodeId, seen: bool) -> Option<Vec<Step>> {
        self.fuel = self.fuel.checked_sub(1)?;
        let known = self.known;
        // A value of 16 bits is rounded, which attention does nowhere between its products.
        if known.graph.ty(id).dtype.is_narrow() && !self.any {
            return None;
        }
        let inputs = known.inputs(id);
        let (from, seen, step) = match known.op(id) {
            Op::Dot(_) if seen => return Some(vec![Step::Product(id)]),
            Op::Transpose { .. } | Op::Reshape { .. } => (inputs[0], seen, Some(Step::View(id))),
            Op::Pointwise(op) => match (known.softmax(id).filter(|_| !seen), op) {
                (Some(softmax), _) => (softmax.x, true, Some(Step::Softmax(softmax.axes))),
                _ if seen && (self.any || scales_or_masks(*op)) => {
                    let operands = (0..inputs.len()).filter(|i| known.graph.ty(inputs[*i]).dtype.is_float());
                    let mut operands = operands.filter(|i| known.splat(inputs[*i]).is_none());
                    return operands.find_map(|operand| {
                        let mut steps = self.trace(inputs[operand], seen)?;
                        steps.push(Step::Touch(id, operand));
                        Some(steps)
                    });
                }
                _ => return None,
            },
            _ => return None,
        };
        let mut steps = self.trace(from, seen)?;
        steps.extend(step);
        Some(steps)
    }
}

fn scales_or_masks(op: ScalarOp) -> bool {
    use ScalarOp::*;
    matches!(op, Mul | Div | Add | Sub | Neg | Select)
}

/// The site that ends in a product, if it is one; why not, where it looks like one.
pub(super) fn site(known: &Known<'_>, end: NodeId) -> Option<Result<Site, String>> {
    let trace = |side: usize, any: bool| {
        Tracer { known, any, fuel: FUEL }.trace(known.inputs(end)[side], any).map(|steps| (side, steps))
    };
    if let Some((side, steps)) = (0..2).find_map(|side| trace(side, false)) {
        return Some(follow(known, end, side, &steps));
    }
    let (side, steps) = (0..2).find_map(|side| trace(side, true))?;
    without_softmax(known, end, side, &steps).map(Err)
}

/// Why two products that have the axes of attention are none, if they have; layers of a perceptron have parameters in one
/// of the three places.
fn without_softmax(known: &Known<'_>, end: NodeId, side: usize, steps: &[Step]) -> Option<String> {
    let Some((Step::Product(start), rest)) = steps.split_first() else { return None };
    let rounded = steps.iter().find_map(|step| match step {
        Step::View(id) | Step::Touch(id, _) => Some(known.graph.ty(*id).dtype).filter(|dtype| dtype.is_narrow()),
        _ => None,
    });
    let given = [known.inputs(*start)[0], known.inputs(*start)[1], known.inputs(end)[1 - side]];
    let mut atoms = Atoms::default();
    let is_parameter = |id: NodeId| {
        let mut below = id;
        while let (Op::Transpose { .. } | Op::Reshape { .. } | Op::Broadcast { .. } | Op::Slice { .. }, [x]) =
            (known.op(below), known.inputs(below))
        {
            below = *x;
        }
        matches!(known.op(below), Op::State { .. })
    };
    if given.into_iter().any(is_parameter) {
        return None;
    }
    let scores = atoms.dot(known.graph, *start, None)?;
    let mut layout = scores.out.clone();
    let mut on_the_way = Vec::new();
    for step in rest {
        match step {
            Step::View(id) => match known.op(*id) {
                Op::Transpose { perm } => layout = perm.iter().map(|axis| layout[*axis].clone()).collect(),
                _ => layout = atoms.reshape(&layout, known.graph.shape(*id))?,
            },
            Step::Touch(id, _) => on_the_way.push(format!("`{}`", known.op(*id).name())),
            _ => {}
        }
    }
    let mixed = atoms.dot(known.graph, end, Some((side, &layout)))?;
    let summed = atoms.of(&mixed.sides[side], mixed.axes[side][1].iter().copied());
    let of_keys = (0..2).any(|side| {
        let free = atoms.of(&scores.sides[side], scores.free[side].iter().copied());
        !summed.is_empty() && free.len() == summed.len() && free.iter().all(|atom| summed.contains(atom))
    });
    let by = if on_the_way.is_empty() { "nothing".into() } else { on_the_way.join(", ") };
    if let (true, Some(dtype)) = (of_keys, rounded) {
        return Some(format!("scores or weights are rounded to {dtype} between the two products"));
    }
    of_keys.then(|| format!("the weights are no softmax of the scores; between the two products stands {by}"))
}

fn follow(known: &Known<'_>, end: NodeId, side: usize, steps: &[Step]) -> Result<Site, String> {
    let cut = || "a reshape cuts an axis where it does not divide".to_owned();
    let mut atoms = Atoms::default();
    let Some((Step::Product(start), steps)) = steps.split_first() else { return Err(cut()) };
    // The gradient of such a product rounds the slopes that it multiplies; that of attention rounds none.
    let narrow = |product: NodeId| known.inputs(product).iter().any(|x| known.graph.ty(*x).dtype.is_narrow());
    if narrow(*start) || narrow(end) {
        return Err("a product of 16 bits as written rounds its gradients, which attention does not".into());
    }
    let scores = atoms.dot(known.graph, *start, None).ok_or_else(cut)?;
    let mut layout = scores.out.clone();
    let (mut touches, mut over) = (Vec::new(), Vec::new());
    for step in steps {
        match step {
            Step::Product(_) => {}
            Step::View(id) => {
                layout = match known.op(*id) {
                    Op::Transpose { perm } => perm.iter().map(|axis| layout[*axis].clone()).collect(),
                    _ => atoms.reshape(&layout, known.graph.shape(*id)).ok_or_else(cut)?,
                }
            }
            Step::Touch(node, operand) => {
                touches.push(Touch { node: *node, operand: *operand, layout: layout.clone() });
            }
            Step::Softmax(axes) => over = axes.iter().flat_map(|axis| layout[*axis].clone()).collect(),
        }
    }
    let mixed = atoms.dot(known.graph, end, Some((side, &layout))).ok_or_else(cut)?;
    let source =
        |node: NodeId, side: usize, layout: &Layout| Source { node: known.inputs(node)[side], layout: layout.clone() };
    let summed = atoms.of(&mixed.sides[side], mixed.axes[side][1].iter().copied());
    let alike = |atoms: &Atoms, a: &[Atom], b: &[Atom]| {
        let sorted = |list: &[Atom]| {
            let mut list = atoms.whole(list);
            list.sort_unstable();
            list
        };
        sorted(a) == sorted(b)
    };
    let free = |atoms: &Atoms, side: usize| atoms.of(&scores.sides[side], scores.free[side].iter().copied());
    let of_keys = (0..2).rev().find(|side| alike(&atoms, &free(&atoms, *side), &summed));
    let Some(of_keys) = of_keys.filter(|_| !summed.is_empty()) else {
        return Err("the product with values does not sum over the axes that only the keys have".into());
    };
    if !alike(&atoms, &over, &summed) {
        return Err("softmax does not run over the keys".into());
    }
    let batch = atoms.of(&scores.sides[0], scores.axes[0][0].iter().copied());
    let of_values = atoms.of(&mixed.sides[side], mixed.axes[side][0].iter().copied());
    if !alike(&atoms, &batch, &of_values) {
        return Err("scores and values do not share the same samples and heads".into());
    }
    if !known.read_only_through(*start, end) {
        return Err("scores or weights are read by something else too".into());
    }
    let (q, q_scale) = unscaled(known, &mut atoms, source(*start, 1 - of_keys, &scores.sides[1 - of_keys]));
    let (k, k_scale) = unscaled(known, &mut atoms, source(*start, of_keys, &scores.sides[of_keys]));
    let v = source(end, 1 - side, &mixed.sides[1 - side]).below_views(known.graph, &mut atoms);
    let ordered = |of: &Source, list: &[Atom]| -> Vec<Atom> {
        let list = atoms.whole(list);
        of.order(&atoms).into_iter().filter(|atom| list.contains(atom)).collect()
    };
    let queries = ordered(&q, &free(&atoms, 1 - of_keys));
    let keys = ordered(&k, &summed);
    let batch = ordered(&q, &batch);
    let rows = mask::Rows { queries: &queries, keys: &keys, batch: &batch };
    let masked = masked(known, &atoms, &rows, &touches)?;
    let length = masked.length.as_ref().map(|length| atoms.of(&length.layout, 0..length.layout.len()));
    let (lies, rows_there) = if queries.is_empty() { (k.order(&atoms), &keys) } else { (q.order(&atoms), &queries) };
    let first = lies.iter().position(|atom| rows_there.contains(atom)).unwrap_or(lies.len());
    let outside = |atom: &Atom| lies[..first].contains(atom) || length.as_ref().is_some_and(|of| of.contains(atom));
    let (samples, heads): (Vec<Atom>, Vec<Atom>) = batch.into_iter().partition(outside);
    let contracted = atoms.of(&scores.sides[0], scores.axes[0][1].iter().copied());
    let value_width = atoms.of(&mixed.sides[1 - side], mixed.free[1 - side].iter().copied());
    let (width, value_width) = (ordered(&q, &contracted), ordered(&v, &value_width));
    let (scale, causal, length) = (masked.scale * q_scale * k_scale, masked.causal, masked.length);
    let shape = known.graph.shape(end).clone();
    let out = mixed.out;
    Ok(Site { q, k, v, scale, causal, length, atoms, samples, queries, keys, heads, width, value_width, out, shape })
}

/// The tensor below views and factors, and the product of these factors.
fn unscaled(known: &Known<'_>, atoms: &mut Atoms, mut source: Source) -> (Source, f64) {
    let mut scale = 1.0;
    loop {
        source = source.below_views(known.graph, atoms);
        // What is rounded after it was scaled is not what is scaled after it was rounded.
        let scalar = known.scalar(source.node).filter(|_| !known.graph.ty(source.node).dtype.is_narrow());
        let (node, factor) = match scalar {
            Some((ScalarOp::Neg, [x])) => (*x, -1.0),
            Some((ScalarOp::Mul, [x, y])) => match (known.splat(*x), known.splat(*y)) {
                (_, Some(factor)) => (*x, factor),
                (Some(factor), _) => (*y, factor),
                _ => return (source, scale),
            },
            Some((ScalarOp::Div, [x, y])) => match known.splat(*y) {
                Some(divisor) => (*x, 1.0 / divisor),
                None => return (source, scale),
            },
            _ => return (source, scale),
        };
        if !mask::is_moderate(factor) {
            return (source, scale);
        }
        source.node = node;
        scale *= factor;
    }
}

impl Site {
    /// Writes the op and the views around it; `map` gives the nodes that stand for the old ones.
    pub(super) fn write(&self, b: &mut Builder<'_>, map: &[NodeId]) -> Result<NodeId, OpError> {
        let Site { atoms, samples, queries, keys, heads, width, value_width, .. } = self;
        let at = |source: &Source| map[source.node.index()];
        // Operands may be of several types; all that is computed of them is f32.
        let arranged = |b: &mut Builder<'_>, source: &Source, rows: &[Atom], width: &[Atom]| {
            let x = source.arranged(b, atoms, at(source), &[samples, rows, heads, width])?;
            b.cast(x, DType::F32)
        };
        let q = arranged(b, &self.q, queries, width)?;
        let k = arranged(b, &self.k, keys, width)?;
        let v = arranged(b, &self.v, keys, value_width)?;
        let mut inputs = vec![q, k, v];
        if let Some(length) = &self.length {
            inputs.push(self.lengths(b, length, map[length.node.index()])?);
        }
        let rows = if self.length.is_some() { Rows::Lengths } else { Rows::Dense };
        let scale = if planted(Fault::ScaleLost) { 1.0 } else { self.scale };
        let op = Attention { result: AttentionResult::Out, rows, causal: self.causal, scale: Real(scale) };
        let mixed = b.op(Op::Attention(op), &inputs)?;
        // From samples, rows, heads, width to how the product laid them.
        let dims = [samples, queries, heads, value_width];
        let lies = Source { node: mixed, layout: dims.iter().map(|atoms| atoms.to_vec()).collect() };
        let out: Vec<Vec<Atom>> = self.out.iter().map(|dim| atoms.whole(dim)).collect();
        let result = lies.arranged(b, atoms, mixed, &out.iter().map(Vec::as_slice).collect::<Vec<_>>())?;
        b.reshape(result, self.shape.clone())
    }

    /// One length per sample.
    fn lengths(&self, b: &mut Builder<'_>, length: &Length, x: NodeId) -> Result<NodeId, OpError> {
        let source = Source { node: x, layout: length.layout.clone() };
        let has: Vec<Atom> =
            self.samples.iter().copied().filter(|atom| source.order(&self.atoms).contains(atom)).collect();
        let one_each: Vec<&[Atom]> = has.iter().map(std::slice::from_ref).collect();
        let mut x = source.arranged(b, &self.atoms, x, &one_each)?;
        if length.inclusive {
            x = analysis::one_more(b, x)?;
        }
        let shape: Shape = self.samples.iter().map(|atom| self.atoms.size(*atom)).collect();
        if has.len() < self.samples.len() {
            let dims = (0..self.samples.len()).filter(|i| has.contains(&self.samples[*i])).collect();
            x = b.op(Op::Broadcast { shape, dims }, &[x])?;
        }
        b.reshape(x, [self.atoms.product(&self.samples)].into())
    }
}
