//! Mixed precision (Micikevicius et al., *Mixed Precision Training*, ICLR 2018): products of 16-bit operands, everything
//! else in f32.
//!
//! A pass over the forward graph of a training step, before it is differentiated, so that the backward pass inherits its
//! casts. Every number is f32 but for what an explicit cast has made of it, so what is computed depends neither on fusion
//! nor on the target:
//! - *Products and convolutions with weights, and attention*, take 16-bit operands and sum in f32. A weight is cast once per
//!   step, below all views of it; the master copy, the optimiser's state and everything pointwise stay f32.
//! - *What such a product makes* is rounded, after its bias, if another such product lies behind it: that is what the
//!   backward pass keeps, and it takes half the memory. After the last product of a tower nothing is rounded, so that
//!   embeddings, gates and statistics are f32.
//! - *Gradients* follow ([`crate::autodiff`]): they are f32, and rounded where a product multiplies them or the value was.
//! - *Products of two computed values* other than attention stay f32. The similarities of the contrastive losses are such:
//!   exponentials of a hundred times them would amplify a rounding to 2^-8 to errors of order one. So does the logsumexp
//!   of streamed losses, which is f32 where it is not the gradient of an attention.

use alip_plan::{PROGRAM_TRAIN, Target};
use smallvec::SmallVec;

use super::Rewritten;
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::HashMap;
use crate::ir::{Builder, DType, Graph, Node, NodeId};
use crate::ops::attention::AttentionResult;
use crate::ops::{Op, OpError, ScalarOp};
use crate::spec::{GraphSpec, Precision, Spanned};

/// Gives the forward part of `train` the precision that the spec asks for. Where the target has no such type, the graph
/// stays in f32 and a warning says so.
///
/// # Errors
/// A fault of this pass.
pub fn apply(spec: &GraphSpec, mut rewritten: Rewritten, target: &Target) -> Result<Rewritten, Diagnostics> {
    let Some(train) = &spec.train else { return Ok(rewritten) };
    let Some(precision) = train.precision else { return Ok(rewritten) };
    match available(precision, target) {
        Ok(DType::F32) => {}
        Ok(low) => {
            if low == DType::F16 && train.loss_scale.is_none() {
                rewritten.warnings.push(unscaled(precision));
            }
            for train in rewritten.model.all_of_mut(PROGRAM_TRAIN) {
                *train = lower(train, low)?;
            }
            rewritten.precision = low;
        }
        Err(warning) => rewritten.warnings.push(warning),
    }
    Ok(rewritten)
}

/// The type that products take on a target; a warning if it is not the one that was asked for.
fn available(precision: Spanned<Precision>, target: &Target) -> Result<DType, Diagnostic> {
    let wanted = match precision.node {
        Precision::F32 => return Ok(DType::F32),
        Precision::Bf16 => DType::Bf16,
        Precision::F16 => DType::F16,
    };
    if target.storage.contains(&wanted) {
        return Ok(wanted);
    }
    let named = Target::all().into_iter().find(|other| other.kind == target.kind && other.storage.contains(&wanted));
    let warning = Diagnostic::warning(format!("`precision: {:?}` is computed in f32", precision.node))
        .label(precision.span, format!("target `{}` has no {wanted}: f32 is used", target.name))
        .note("results are at least as exact; speed and memory are those of f32");
    Err(match named {
        Some(other) => warning.help(format!("`--target {}` stores {wanted}", other.name)),
        None => warning,
    })
}

fn unscaled(precision: Spanned<Precision>) -> Diagnostic {
    Diagnostic::warning("`precision: F16` without a loss scale")
        .label(precision.span, "gradients below 6e-8 become zero")
        .help("add `loss_scale: \"dynamic_loss_scale()\"` and use \"optim/loss_scale\", or take `precision: Bf16`")
}

/// The graph with 16-bit operands for products with weights and for attention.
///
/// # Errors
/// A node its op refuses: a fault of this pass.
pub fn lower(graph: &Graph, low: DType) -> Result<Graph, Diagnostics> {
    let plan = Policy::new(graph);
    let mut pass = Lowering { old: graph, new: graph.successor(), low, wide: Vec::new(), narrow: HashMap::default() };
    for id in graph.ids() {
        pass.node(id, &plan).map_err(|error| {
            let message = format!("internal: the precision of `{}` in `{}`", graph.node(id).op.name(), graph.name);
            Diagnostics::from(Diagnostic::error(message).note(error.message))
        })?;
    }
    let Lowering { mut new, wide, .. } = pass;
    new.take_names(graph, |id| Some(wide[id.index()]));
    Ok(new)
}

/// Which nodes are computed how.
struct Policy {
    /// Products that take 16-bit operands.
    low: Vec<bool>,
    /// Values that are rounded.
    rounded: Vec<bool>,
}

impl Policy {
    fn new(graph: &Graph) -> Policy {
        let weights = weights(graph);
        let low: Vec<bool> = graph.nodes().iter().map(|node| is_low(graph, node, &weights)).collect();
        let readers = graph.readers();
        // Values from which a product with 16-bit operands is computed.
        let mut feeds = vec![false; graph.nodes().len()];
        for id in graph.ids().rev() {
            feeds[id.index()] = readers[id.index()].iter().any(|reader| low[reader.index()] || feeds[reader.index()]);
        }
        let mut rounded = vec![false; graph.nodes().len()];
        for id in graph.ids().filter(|id| low[id.index()] && feeds[id.index()]) {
            rounded[with_bias(graph, id, &readers, &weights).index()] = true;
        }
        Policy { low, rounded }
    }
}

/// Values computed from state alone: weights, and views or other functions of them. Noise is none, though it follows from
/// the seed and the step.
fn weights(graph: &Graph) -> Vec<bool> {
    let mut of_state = vec![false; graph.nodes().len()];
    for id in graph.ids() {
        let node = graph.node(id);
        let constant = |input: &NodeId| matches!(graph.node(*input).op, Op::Const { .. } | Op::Iota { .. });
        of_state[id.index()] = matches!(node.op, Op::State { .. })
            || !matches!(node.op, Op::Random { .. })
                && node.inputs.iter().any(|input| of_state[input.index()])
                && node.inputs.iter().all(|input| of_state[input.index()] || constant(input));
    }
    of_state
}

fn is_low(graph: &Graph, node: &Node, weights: &[bool]) -> bool {
    match &node.op {
        Op::Dot(_) | Op::Conv2d(_) => {
            let f32s = node.inputs.iter().all(|input| graph.ty(*input).dtype == DType::F32);
            f32s && weights[node.inputs[0].index()] != weights[node.inputs[1].index()]
        }
        Op::Attention(attention) => {
            attention.result == AttentionResult::Out && graph.ty(node.inputs[0]).dtype == DType::F32
        }
        _ => false,
    }
}

/// The sum with a bias to which alone a product goes, perhaps through views, or the product itself.
fn with_bias(graph: &Graph, product: NodeId, readers: &[Vec<NodeId>], weights: &[bool]) -> NodeId {
    let mut at = product;
    while let [reader] = readers[at.index()].as_slice() {
        match &graph.node(*reader).op {
            Op::Reshape { .. } | Op::Transpose { .. } => at = *reader,
            Op::Pointwise(ScalarOp::Add) if graph.node(*reader).inputs.iter().any(|id| weights[id.index()]) => {
                return *reader;
            }
            _ => break,
        }
    }
    product
}

struct Lowering<'g> {
    old: &'g Graph,
    new: Graph,
    low: DType,
    /// Every node as f32 (or of its own type, if that is no float).
    wide: Vec<NodeId>,
    /// What also exists in 16 bits.
    narrow: HashMap<NodeId, NodeId>,
}

impl Lowering<'_> {
    fn node(&mut self, id: NodeId, plan: &Policy) -> Result<(), OpError> {
        let node = self.old.node(id);
        let mut inputs: SmallVec<[NodeId; 3]> = node.inputs.iter().map(|input| self.wide[input.index()]).collect();
        if plan.low[id.index()] {
            for (input, old) in inputs.iter_mut().zip(&node.inputs) {
                if self.old.ty(*old).dtype.is_float() {
                    *input = self.narrow(*old)?;
                }
            }
        }
        let mut result = self.new.copy(self.old, id, inputs)?;
        let mut b = Builder::new(&mut self.new, node.origin);
        if plan.rounded[id.index()] {
            result = b.cast(result, self.low)?;
        }
        if b.graph.ty(result).dtype == self.low && node.ty.dtype == DType::F32 {
            self.narrow.insert(id, result);
            result = b.cast(result, DType::F32)?;
        }
        self.wide.push(result);
        Ok(())
    }

    /// A value in 16 bits: below its views, so that all of them share one cast.
    fn narrow(&mut self, id: NodeId) -> Result<NodeId, OpError> {
        if let Some(narrow) = self.narrow.get(&id) {
            return Ok(*narrow);
        }
        let node = self.old.node(id);
        let through = match node.op {
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } => true,
            // A part of something large is cast alone, unless the whole has been rounded.
            Op::Slice { .. } => self.has_narrow(node.inputs[0]),
            _ => false,
        };
        let narrow = if through {
            let input = self.narrow(node.inputs[0])?;
            self.new.add(node.op.clone(), &[input], node.origin)?
        } else {
            Builder::new(&mut self.new, node.origin).cast(self.wide[id.index()], self.low)?
        };
        self.narrow.insert(id, narrow);
        Ok(narrow)
    }

    fn has_narrow(&self, mut id: NodeId) -> bool {
        loop {
            let node = self.old.node(id);
            match node.op {
                _ if self.narrow.contains_key(&id) => return true,
                Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => id = node.inputs[0],
                _ => return false,
            }
        }
    }
}
