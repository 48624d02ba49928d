//! Streaming contrastive loss: the matrix of similarities is never stored.
//!
//! A contrastive loss takes the logsumexp of `s x t^T` along rows and along columns. For a batch of B that is a matrix of
//! B x B logits, written, read twice, and kept for the gradient, whose own matrix is as large. The logsumexp of scores
//! is what attention computes on its way ([`AttentionResult::Lse`], with one head and without values): tiles of logits
//! with a running maximum and sum, in the forward part and again in the gradient (Milakov and Gimelshein, 2018, section 3;
//! Dao et al., FlashAttention, 2022).
//!
//! *What is found.* A product of two matrices that is read, if at all through transposes and products with scalars, by
//! nothing but logsumexps along one dimension, cross entropies, and lookups of one entry per row. Each logsumexp becomes an
//! attention op with its rows as queries; an entry at row `i` and column `j` becomes the inner product of `x[i]` and
//! `t[j]`, of which there are B. If anything else reads the logits (they are an output, or another loss is made of them)
//! they are stored for that, and nothing is done.
//!
//! *What is weighed.* Memory: B^2 floats several times over, against products that are computed again. Those are small
//! beside the towers at any B for which the loss fits a step, so the rewrite is always done.

use std::collections::BTreeMap;

use super::Changed;
use super::analysis::{fault, places};
use crate::diag::Diagnostics;
use crate::hash::HashMap;
use crate::ir::{Builder, DType, Graph, NodeId, Shape};
use crate::ops::attention::{Attention, AttentionResult, Rows};
use crate::ops::{Op, OpError, Real, ReduceKind, ScalarOp};

const NAME: &str = "streaming";

pub(super) fn streaming(graph: &Graph) -> Result<Option<Changed>, Diagnostics> {
    let found = Found::new(graph);
    if found.readers.is_empty() {
        return Ok(None);
    }
    let mut new = graph.successor();
    let mut map: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
    let mut scaled = HashMap::default();
    for id in graph.ids() {
        let node = graph.node(id);
        let added = match found.readers.get(&id) {
            Some(logits) => {
                let mut writer = Writer { b: Builder::new(&mut new, node.origin), map: &map, scaled: &mut scaled };
                writer.read(graph, id, logits)
            }
            None => {
                let inputs = node.inputs.iter().map(|input| map[input.index()]).collect();
                new.copy(graph, id, inputs)
            }
        };
        map.push(added.map_err(|error| fault(graph, NAME, &error))?);
    }
    new.take_names(graph, |id| (!found.logits.contains_key(&id)).then(|| map[id.index()]));
    let places = places(found.readers.values().map(|logits| &*graph.origin(logits.product).path));
    Ok(Some(Changed { graph: new, places }))
}

/// A matrix that is a product of two, times scalars: `rows columns^T`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Logits {
    /// The product.
    product: NodeId,
    /// Positions of the operands of which rows and columns are made: (0, 1), or (1, 0) once transposed.
    rows: usize,
    /// Scalars that it is multiplied with, or divided by.
    factors: Vec<(NodeId, bool)>,
}

/// Every product whose logits nothing stores.
struct Found {
    /// By node: the product times scalars that it is.
    logits: HashMap<NodeId, Logits>,
    /// What reads such a matrix and can do without.
    readers: BTreeMap<NodeId, Logits>,
}

impl Found {
    fn new(graph: &Graph) -> Found {
        let mut logits: HashMap<NodeId, Logits> = HashMap::default();
        let mut readers: BTreeMap<NodeId, Logits> = BTreeMap::new();
        let mut stored: Vec<NodeId> = Vec::new();
        for id in graph.ids() {
            let found = matrix(graph, id, &logits);
            for (position, input) in graph.node(id).inputs.iter().enumerate() {
                let Some(read) = logits.get(input) else { continue };
                let continues = found.as_ref().is_some_and(|found| found.product == read.product);
                if !continues && position == 0 && is_reader(graph, id) {
                    readers.insert(id, read.clone());
                } else if !continues {
                    stored.push(read.product);
                }
            }
            if let Some(found) = found {
                logits.insert(id, found);
            }
        }
        let named = graph.outputs.values().chain(graph.updates.values());
        stored.extend(named.filter_map(|id| Some(logits.get(id)?.product)));
        logits.retain(|_, logits| !stored.contains(&logits.product));
        readers.retain(|_, logits| !stored.contains(&logits.product));
        Found { logits, readers }
    }
}

/// The product times scalars that a node is.
fn matrix(graph: &Graph, id: NodeId, known: &HashMap<NodeId, Logits>) -> Option<Logits> {
    let node = graph.node(id);
    match &node.op {
        Op::Dot(dot) => {
            let mut operands = node.inputs.iter().map(|input| graph.ty(*input));
            let flat = operands.all(|ty| ty.shape.rank() == 2 && ty.dtype == DType::F32);
            let single = dot.batch.is_empty() && dot.contract.len() == 1;
            (flat && single).then(|| Logits { product: id, rows: 0, factors: Vec::new() })
        }
        Op::Transpose { .. } => {
            let inner = known.get(&node.inputs[0])?;
            Some(Logits { rows: 1 - inner.rows, ..inner.clone() })
        }
        Op::Pointwise(op @ (ScalarOp::Mul | ScalarOp::Div)) => {
            let divides = *op == ScalarOp::Div;
            let (x, factor) = match (scalar(graph, node.inputs[0]), scalar(graph, node.inputs[1])) {
                (None, Some(factor)) => (node.inputs[0], factor),
                (Some(factor), None) if !divides => (node.inputs[1], factor),
                _ => return None,
            };
            let mut logits = known.get(&x)?.clone();
            logits.factors.push((factor, divides));
            Some(logits)
        }
        _ => None,
    }
}

/// The scalar that a tensor repeats.
fn scalar(graph: &Graph, id: NodeId) -> Option<NodeId> {
    let node = graph.node(id);
    match &node.op {
        Op::Broadcast { dims, .. } if dims.is_empty() => Some(node.inputs[0]),
        _ => None,
    }
}

/// Whether a node needs no more of a matrix of logits than its rows' or columns' logsumexp and some entries.
fn is_reader(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    match &node.op {
        Op::LogSumExp { axes } => axes.len() == 1,
        Op::CrossEntropy => true,
        Op::Gather { batch: 1 } => graph.shape(node.inputs[1]).rank() == 1,
        _ => false,
    }
}

/// Operands with their factors (dividing or not), each written once.
type Scaled = HashMap<(NodeId, Vec<(NodeId, bool)>), NodeId>;

/// Writes what readers of logits compute without them.
struct Writer<'a, 'g> {
    b: Builder<'g>,
    /// By old node.
    map: &'a [NodeId],
    /// The first operand of a product times its scalars; both directions read it.
    scaled: &'a mut Scaled,
}

impl Writer<'_, '_> {
    fn read(&mut self, graph: &Graph, id: NodeId, logits: &Logits) -> Result<NodeId, OpError> {
        let node = graph.node(id);
        let operands = self.operands(graph, logits)?;
        let (rows, columns) = (operands[logits.rows], operands[1 - logits.rows]);
        match &node.op {
            Op::LogSumExp { axes } if axes[..] == [0] => self.logsumexp(columns, rows),
            Op::LogSumExp { .. } => self.logsumexp(rows, columns),
            op => {
                let target = self.map[node.inputs[1].index()];
                let own = self.entries(graph, node.inputs[1], target, rows, columns)?;
                if *op != Op::CrossEntropy {
                    return Ok(own);
                }
                let lse = self.logsumexp(rows, columns)?;
                self.b.sub(lse, own)
            }
        }
    }

    /// The operands of the product as rows, the first times the scalars.
    fn operands(&mut self, graph: &Graph, logits: &Logits) -> Result<[NodeId; 2], OpError> {
        let Op::Dot(dot) = &graph.node(logits.product).op else {
            return Err(OpError::new("logits that are no product"));
        };
        let inputs = &graph.node(logits.product).inputs;
        let mut rows = [self.map[inputs[0].index()], self.map[inputs[1].index()]];
        for (operand, contracted) in rows.iter_mut().zip([dot.contract[0].0, dot.contract[0].1]) {
            *operand = if contracted == 0 { self.b.transpose(*operand, &[1, 0])? } else { *operand };
        }
        let key = (logits.product, logits.factors.clone());
        rows[0] = match self.scaled.get(&key) {
            Some(scaled) => *scaled,
            None => {
                let mut scaled = rows[0];
                for (factor, divides) in &logits.factors {
                    let factor = self.map[factor.index()];
                    scaled = if *divides { self.b.div(scaled, factor)? } else { self.b.mul(scaled, factor)? };
                }
                self.scaled.insert(key, scaled);
                scaled
            }
        };
        Ok(rows)
    }

    fn logsumexp(&mut self, queries: NodeId, keys: NodeId) -> Result<NodeId, OpError> {
        let count = self.b.graph.shape(queries).0[..1].iter().cloned().collect();
        let mut one_head = |x: NodeId| {
            let shape = self.b.graph.shape(x).0.clone();
            let shape: Shape = [1.into(), shape[0], 1.into(), shape[1]].into_iter().collect();
            self.b.reshape(x, shape)
        };
        let inputs = [one_head(queries)?, one_head(keys)?];
        let op = Attention { result: AttentionResult::Lse, rows: Rows::Dense, causal: false, scale: Real(1.0) };
        let lse = self.b.op(Op::Attention(op), &inputs)?;
        self.b.reshape(lse, count)
    }

    /// One entry of each row: its inner product with the column at an index.
    fn entries(
        &mut self,
        graph: &Graph,
        index: NodeId,
        target: NodeId,
        rows: NodeId,
        columns: NodeId,
    ) -> Result<NodeId, OpError> {
        let is_own = matches!(graph.node(index).op, Op::Iota { .. })
            && self.b.graph.shape(rows).size(0) == self.b.graph.shape(columns).size(0);
        let picked = if is_own { columns } else { self.b.gather(columns, target, 0)? };
        let product = self.b.mul(rows, picked)?;
        self.b.reduce(ReduceKind::Sum, product, &[1], false)
    }
}
