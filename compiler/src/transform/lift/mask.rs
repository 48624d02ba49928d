//! What stands between the product of queries and keys and its softmax: a scale, and a mask.
//!
//! A mask is not matched by its form. What of it depends on coordinates alone is evaluated for every query and key, and the
//! outcome compared with what attention knows: all keys, or `j <= i + keys - queries`. What depends on data must be
//! comparisons of the key's position with a length per sample, which is at least 1: masking every key of a query by a
//! large negative number averages all values, and excluding them has no meaning.

use super::axes::{Atom, Atoms, Layout};
use super::known::Known;
use crate::ir::{DType, NodeId};
use crate::ops::{Op, ScalarOp};

/// Below this a mask excludes: -2^26. Of scores up to 2^24 f32 knows differences of 1; beyond, a softmax has no meaning.
/// Whatever such scores are, what is masked lies more than 2^24 below what is not, and e to the power of that is 0.
const EXCLUDES: f64 = -67_108_864.0;

/// Whether a factor is within 2^24 of 1, up or down: it may be applied later or earlier than it is written, since what then
/// over- or underflows would nearly have done so as it is.
pub(super) fn is_moderate(factor: f64) -> bool {
    const MOST: f64 = (1 << 24) as f64;
    (1.0 / MOST..=MOST).contains(&factor.abs())
}

/// A scalar operation on the scores, which are its operand `operand` and have the layout `layout` there.
pub(super) struct Touch {
    pub(super) node: NodeId,
    pub(super) operand: usize,
    pub(super) layout: Layout,
}

/// Rows of queries and of keys, and what counts samples and heads.
pub(super) struct Rows<'a> {
    pub(super) queries: &'a [Atom],
    pub(super) keys: &'a [Atom],
    pub(super) batch: &'a [Atom],
}

/// Keys from this position on are hidden: `node`, one more if `inclusive`.
#[derive(Clone)]
pub(super) struct Length {
    pub(super) node: NodeId,
    pub(super) inclusive: bool,
    /// What its dimensions are.
    pub(super) layout: Layout,
}

/// What the operations on the scores come to.
pub(super) struct Masked {
    pub(super) scale: f64,
    pub(super) causal: bool,
    pub(super) length: Option<Length>,
}

/// Follows the operations on the scores.
///
/// # Errors
/// Why they are no scale and mask that attention covers.
pub(super) fn masked(known: &Known<'_>, atoms: &Atoms, rows: &Rows<'_>, touches: &[Touch]) -> Result<Masked, String> {
    let (queries, keys) = (atoms.product(rows.queries) as usize, atoms.product(rows.keys) as usize);
    let mut reader = Reader {
        known,
        atoms,
        rows,
        queries,
        keys,
        scale: 1.0,
        fill: f64::NEG_INFINITY,
        hidden: None,
        zeroed: None,
        length: None,
    };
    touches.iter().try_for_each(|touch| reader.touch(touch))?;
    reader.done()
}

struct Reader<'a> {
    known: &'a Known<'a>,
    atoms: &'a Atoms,
    rows: &'a Rows<'a>,
    queries: usize,
    keys: usize,
    scale: f64,
    /// The largest number that hides.
    fill: f64,
    /// By query and key: hidden.
    hidden: Option<Vec<bool>>,
    /// By query and key: multiplied by zero, which must be hidden later.
    zeroed: Option<Vec<bool>>,
    length: Option<Length>,
}

type Found<T = ()> = Result<T, String>;

impl Reader<'_> {
    fn touch(&mut self, touch: &Touch) -> Found {
        let Touch { node, operand, layout } = touch;
        let Some((op, inputs)) = self.known.scalar(*node) else { return Err("an operation on the scores".into()) };
        let other =
            if op == ScalarOp::Select { inputs[3 - operand] } else { inputs[(1 - operand).min(inputs.len() - 1)] };
        match (op, operand, self.known.splat(other)) {
            (ScalarOp::Neg, ..) => self.scaled(-1.0),
            (ScalarOp::Mul, _, Some(factor)) => self.scaled(factor),
            (ScalarOp::Div, 0, Some(divisor)) => self.scaled(1.0 / divisor),
            (ScalarOp::Mul, _, None) => self.multiplied(other, layout),
            (ScalarOp::Add, ..) => self.added(other, 1.0, layout),
            (ScalarOp::Sub, 0, _) => self.added(other, -1.0, layout),
            (ScalarOp::Select, _, Some(fill)) => {
                self.fills(fill)?;
                self.shown(inputs[0], *operand == 1, layout)
            }
            (ScalarOp::Select, ..) => {
                Err("masked scores are replaced by a tensor, not by a large negative number".into())
            }
            _ => Err("an operation on the scores that is neither a scale nor a mask".into()),
        }
    }

    fn scaled(&mut self, factor: f64) -> Found {
        if !is_moderate(factor) {
            return Err(format!("scores are multiplied by {factor:e}, which keeps something else from overflowing"));
        }
        if self.hidden.is_some() || self.length.is_some() {
            if factor <= 0.0 {
                return Err("masked scores are multiplied by a number that is not positive".into());
            }
            self.fill *= factor;
        }
        self.scale *= factor;
        Ok(())
    }

    fn fills(&mut self, fill: f64) -> Found {
        self.fill = self.fill.max(fill);
        if fill.is_nan() || fill > EXCLUDES {
            return Err(format!("masked scores become {fill}, which is not far below every score"));
        }
        Ok(())
    }

    /// Times a tensor: one of zeros and ones is half of a mask, the first half. After the other it shows again what was
    /// hidden, as scores of 0.
    fn multiplied(&mut self, factor: NodeId, layout: &Layout) -> Found {
        if self.hidden.is_some() || self.length.is_some() {
            return Err("masked scores are multiplied by a tensor".into());
        }
        let grid = self.grid(factor, layout).ok_or("scores are multiplied by a tensor that data decide")?;
        if grid.iter().any(|x| *x != 0.0 && *x != 1.0) {
            return Err("scores are multiplied by a tensor that is not one number".into());
        }
        let zeroed = grid.iter().map(|x| *x == 0.0);
        self.zeroed = Some(both(self.zeroed.take(), zeroed.collect()));
        Ok(())
    }

    /// Plus a tensor: what is far below zero hides.
    fn added(&mut self, bias: NodeId, sign: f64, layout: &Layout) -> Found {
        if let Some(grid) = self.grid(bias, layout) {
            let mut hidden = Vec::with_capacity(grid.len());
            for x in grid.iter().map(|x| x * sign) {
                hidden.push(x != 0.0);
                if x != 0.0 {
                    self.fills(x).map_err(|_| format!("a bias is added to the scores, such as {x}"))?;
                }
            }
            self.hidden = Some(both(self.hidden.take(), hidden));
            return Ok(());
        }
        // A repeated bias, then the scalar operations that make one of a condition.
        let (bias, layout) = self.below_broadcast(bias, layout);
        let by_data = || "a bias that data or parameters decide is added to the scores".to_owned();
        match self.known.scalar(bias) {
            Some((ScalarOp::Select, [seen, a, b])) => match (self.known.splat(*a), self.known.splat(*b)) {
                (Some(0.0), Some(fill)) => self.fills(fill * sign).and_then(|()| self.shown(*seen, true, &layout)),
                (Some(fill), Some(0.0)) => self.fills(fill * sign).and_then(|()| self.shown(*seen, false, &layout)),
                _ => Err(by_data()),
            },
            Some((ScalarOp::Mul, [a, b])) => match (self.known.splat(*a), self.known.splat(*b)) {
                (_, Some(factor)) => self.added_times(*a, factor * sign, &layout).ok_or_else(by_data)?,
                (Some(factor), _) => self.added_times(*b, factor * sign, &layout).ok_or_else(by_data)?,
                _ => Err(by_data()),
            },
            _ => Err(by_data()),
        }
    }

    /// `factor * (1 - seen)`, `factor * (seen - 1)` or `factor * hidden` for conditions as numbers.
    fn added_times(&mut self, x: NodeId, factor: f64, layout: &Layout) -> Option<Found> {
        let (x, layout) = self.below_broadcast(x, layout);
        let condition = |id: NodeId| match self.known.scalar(id) {
            Some((ScalarOp::Cast(_), [from])) if self.known.graph.ty(*from).dtype == DType::Bool => Some(*from),
            _ => None,
        };
        let (seen, fill, positive) = match self.known.scalar(x)? {
            (ScalarOp::Sub, [one, seen]) if self.known.splat(*one) == Some(1.0) => (condition(*seen)?, factor, true),
            (ScalarOp::Sub, [seen, one]) if self.known.splat(*one) == Some(1.0) => (condition(*seen)?, -factor, true),
            _ => (condition(x)?, factor, false),
        };
        Some(self.fills(fill).and_then(|()| self.shown(seen, positive, &layout)))
    }

    /// Only keys for which `condition` is `positive` are seen.
    fn shown(&mut self, condition: NodeId, positive: bool, layout: &Layout) -> Found {
        if let Some(grid) = self.grid(condition, layout) {
            let hidden = grid.iter().map(|x| (*x != 0.0) != positive).collect();
            self.hidden = Some(both(self.hidden.take(), hidden));
            return Ok(());
        }
        let (condition, layout) = self.below_broadcast(condition, layout);
        match self.known.scalar(condition) {
            Some((ScalarOp::Not, [x])) => self.shown(*x, !positive, &layout),
            Some((ScalarOp::And, [a, b])) if positive => {
                self.shown(*a, true, &layout).and_then(|()| self.shown(*b, true, &layout))
            }
            Some((ScalarOp::Or, [a, b])) if !positive => {
                self.shown(*a, false, &layout).and_then(|()| self.shown(*b, false, &layout))
            }
            Some((op @ (ScalarOp::Lt | ScalarOp::Le), [a, b])) => self.compared(op, *a, *b, positive, &layout),
            _ => Err("a mask that data decide, other than by a length per sample".into()),
        }
    }

    /// `j < length`, `j <= length`, or the opposites of `length <= j` and `length < j`.
    fn compared(&mut self, op: ScalarOp, a: NodeId, b: NodeId, positive: bool, layout: &Layout) -> Found {
        let (position, length) = if positive { (a, b) } else { (b, a) };
        let inclusive = (op == ScalarOp::Le) == positive;
        let positions = self.grid(position, layout);
        if !positions.is_some_and(|grid| grid.iter().enumerate().all(|(i, x)| *x == (i % self.keys) as f64)) {
            return Err("a mask by lengths that does not compare them with the positions of the keys".into());
        }
        let (mut node, layout) = self.below_broadcast(length, layout);
        if let Some((ScalarOp::Cast(DType::F32 | DType::I32), [from])) = self.known.scalar(node) {
            node = *from;
        }
        let of_samples = self.atoms.of(&layout, 0..layout.len()).iter().all(|atom| self.rows.batch.contains(atom));
        if self.known.graph.ty(node).dtype != DType::I32 || !of_samples {
            return Err("a mask by lengths that are not integers, one per sample".into());
        }
        if self.known.bounds(node).0 + f64::from(u8::from(inclusive)) < 1.0 {
            return Err("a length might be 0, and then no key is seen: write `max(length, 1)`".into());
        }
        if self.length.is_some() {
            return Err("two masks by lengths".into());
        }
        self.length = Some(Length { node, inclusive, layout });
        Ok(())
    }

    /// What a tensor repeats, and what its dimensions are.
    fn below_broadcast(&self, mut id: NodeId, layout: &Layout) -> (NodeId, Layout) {
        let mut layout = layout.clone();
        loop {
            let inner = self.known.inputs(id).first().map(|inner| (*inner, self.known.graph.shape(*inner)));
            layout = match (self.known.op(id), inner) {
                (Op::Broadcast { dims, .. }, Some((_, from))) => {
                    let kept = dims.iter().enumerate();
                    kept.map(|(i, axis)| if from.size(i) == 1 { vec![] } else { layout[*axis].clone() }).collect()
                }
                // Only dimensions of size 1 come and go.
                (Op::Reshape { shape }, Some((_, from))) if shape.elements() == from.elements() => {
                    let mut wide = layout.iter().zip(&shape.0).filter(|(_, dim)| dim.size != 1);
                    let sizes = |shape: &crate::ir::Shape| -> Vec<u64> {
                        shape.sizes().into_iter().filter(|size| *size != 1).collect()
                    };
                    if sizes(shape) != sizes(from) {
                        return (id, layout);
                    }
                    let next = |size: u64| {
                        if size == 1 { vec![] } else { wide.next().map(|w| w.0.clone()).unwrap_or_default() }
                    };
                    from.sizes().into_iter().map(next).collect()
                }
                (Op::Transpose { perm }, Some(_)) => {
                    let mut turned = vec![vec![]; perm.len()];
                    perm.iter().zip(&layout).for_each(|(axis, atoms)| turned[*axis] = atoms.clone());
                    turned
                }
                _ => return (id, layout),
            };
            id = self.known.inputs(id)[0];
        }
    }

    /// By query and key: the elements of a tensor that is the same for all samples and heads.
    fn grid(&self, id: NodeId, layout: &Layout) -> Option<Vec<f64>> {
        let (id, layout) = self.below_broadcast(id, layout);
        let data = self.known.array(id)?;
        let dims = self.atoms.of(&layout, 0..layout.len());
        let mut stride = data.len() as u64;
        let mut strides = Vec::new();
        for atom in &dims {
            stride /= self.atoms.size(*atom);
            strides.push((*atom, stride));
        }
        let offsets = |row: &[Atom], count: usize| -> Vec<usize> {
            let mut inner = count as u64;
            let mut offsets = vec![0; count];
            for atom in row {
                let size = self.atoms.size(*atom);
                inner /= size;
                let Some((_, stride)) = strides.iter().find(|(other, _)| other == atom) else { continue };
                for (i, offset) in offsets.iter_mut().enumerate() {
                    *offset += (i as u64 / inner % size * stride) as usize;
                }
            }
            offsets
        };
        let row = |atom: &Atom| self.rows.queries.contains(atom) || self.rows.keys.contains(atom);
        for (atom, stride) in strides.iter().filter(|(atom, _)| !row(atom)) {
            let (stride, size) = (*stride as usize, self.atoms.size(*atom) as usize);
            if (0..data.len()).any(|i| data[i] != data[i - i / stride % size * stride]) {
                return None;
            }
        }
        let (queries, keys) = (offsets(self.rows.queries, self.queries), offsets(self.rows.keys, self.keys));
        Some(queries.iter().flat_map(|q| keys.iter().map(|k| data[*q + *k]).collect::<Vec<_>>()).collect())
    }

    fn done(self) -> Found<Masked> {
        let hidden = self.hidden.unwrap_or_default();
        if self
            .zeroed
            .is_some_and(|zeroed| zeroed.iter().enumerate().any(|(i, z)| *z && !hidden.get(i).is_some_and(|h| *h)))
        {
            return Err("scores are multiplied by 0 where they are not masked".into());
        }
        let any = hidden.iter().any(|hidden| *hidden);
        if (any || self.length.is_some()) && self.fill > EXCLUDES {
            return Err("masked scores are scaled to a number that is not far below every score".into());
        }
        if hidden.chunks(self.keys.max(1)).any(|row| row.iter().all(|hidden| *hidden)) {
            return Err("a query sees no key".into());
        }
        let after = |i: usize| i % self.keys + self.queries > i / self.keys + self.keys;
        let causal = any && hidden.iter().enumerate().all(|(i, hidden)| *hidden == after(i));
        if any && !causal {
            return Err("a fixed mask that is not causal".into());
        }
        Ok(Masked { scale: self.scale, causal, length: self.length })
    }
}

fn both(earlier: Option<Vec<bool>>, now: Vec<bool>) -> Vec<bool> {
    match earlier {
        Some(earlier) => earlier.iter().zip(&now).map(|(a, b)| *a || *b).collect(),
        None => now,
    }
}
