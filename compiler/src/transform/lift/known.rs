//! What a graph says before any data is there: constants, values that depend on coordinates alone, bounds of integers,
//! readers.

use std::cell::RefCell;
use std::rc::Rc;

use super::softmax::Along;
use crate::hash::HashMap;
use crate::ir::{DType, Graph, NodeId};
use crate::ops::{Op, ReduceKind, ScalarOp, Tensor};

/// Most elements of a tensor that is worked out here: a mask of 1024 queries by 1024 keys.
const LIMIT: u64 = 1 << 20;

/// A graph with what is known of it.
pub(super) struct Known<'g> {
    pub(super) graph: &'g Graph,
    /// Nodes that a result depends on, and results.
    pub(super) live: Vec<bool>,
    results: Vec<bool>,
    /// Live readers.
    readers: Vec<Vec<NodeId>>,
    arrays: RefCell<HashMap<NodeId, Option<Rc<Vec<f64>>>>>,
    bounds: RefCell<HashMap<NodeId, (f64, f64)>>,
    pub(super) logsumexps: RefCell<HashMap<NodeId, Option<Along>>>,
    /// By node and how far is looked.
    pub(super) reach: RefCell<HashMap<(NodeId, usize), Option<bool>>>,
}

impl<'g> Known<'g> {
    pub(super) fn new(graph: &'g Graph, results: &[NodeId]) -> Known<'g> {
        let live = graph.live(results);
        let mut readers = graph.readers();
        readers.iter_mut().for_each(|readers| readers.retain(|id| live[id.index()]));
        let mut is_result = vec![false; live.len()];
        results.iter().for_each(|id| is_result[id.index()] = true);
        Known {
            graph,
            live,
            results: is_result,
            readers,
            arrays: RefCell::default(),
            bounds: RefCell::default(),
            logsumexps: RefCell::default(),
            reach: RefCell::default(),
        }
    }

    pub(super) fn op(&self, id: NodeId) -> &'g Op {
        &self.graph.node(id).op
    }

    pub(super) fn inputs(&self, id: NodeId) -> &'g [NodeId] {
        &self.graph.node(id).inputs
    }

    /// The operands of a scalar operation.
    pub(super) fn scalar(&self, id: NodeId) -> Option<(ScalarOp, &'g [NodeId])> {
        match self.op(id) {
            Op::Pointwise(op) => Some((*op, self.inputs(id))),
            _ => None,
        }
    }

    /// The one value that a tensor holds everywhere.
    pub(super) fn splat(&self, id: NodeId) -> Option<f64> {
        self.graph.splat(id)
    }

    /// Whether everything that is computed from `from` goes through `to`: then nobody misses what lies between.
    pub(super) fn read_only_through(&self, from: NodeId, to: NodeId) -> bool {
        /// More nodes than any spelling of a masked softmax.
        const MOST: usize = 64;
        let (mut between, mut next) = (vec![from], 0);
        while let Some(id) = between.get(next).copied() {
            next += 1;
            if self.results[id.index()] || between.len() > MOST {
                return false;
            }
            for reader in &self.readers[id.index()] {
                if *reader != to && !between.contains(reader) {
                    between.push(*reader);
                }
            }
        }
        true
    }

    /// The elements of a tensor that is computed from constants and coordinates only, if there are not too many.
    pub(super) fn array(&self, id: NodeId) -> Option<Rc<Vec<f64>>> {
        if let Some(known) = self.arrays.borrow().get(&id) {
            return known.clone();
        }
        let array = self.evaluate(id);
        self.arrays.borrow_mut().insert(id, array.clone());
        array
    }

    fn evaluate(&self, id: NodeId) -> Option<Rc<Vec<f64>>> {
        let node = self.graph.node(id);
        let given = matches!(node.op, Op::Input { .. } | Op::State { .. } | Op::Random { .. });
        let heavy = matches!(node.op, Op::Dot(_) | Op::Conv2d(_) | Op::Attention(_));
        if given || heavy || node.ty.shape.elements() > LIMIT {
            return None;
        }
        let inputs = node.inputs.iter().map(|input| self.array(*input)).collect::<Option<Vec<_>>>()?;
        let tensors: Vec<Tensor<'_>> =
            node.inputs.iter().zip(&inputs).map(|(id, data)| Tensor { ty: self.graph.ty(*id), data }).collect();
        Some(Rc::new(node.op.eval(&tensors, &node.ty)))
    }

    /// Between which numbers all elements of an integer tensor lie.
    pub(super) fn bounds(&self, id: NodeId) -> (f64, f64) {
        if let Some(bounds) = self.bounds.borrow().get(&id) {
            return *bounds;
        }
        let found = self.find_bounds(id);
        // What leaves the integers wraps around, to anywhere.
        let any = (f64::from(i32::MIN), f64::from(i32::MAX));
        let bounds = if found.0 >= any.0 && found.1 <= any.1 { found } else { any };
        self.bounds.borrow_mut().insert(id, bounds);
        bounds
    }

    fn find_bounds(&self, id: NodeId) -> (f64, f64) {
        let inputs = self.inputs(id);
        let of = |i: usize| self.bounds(inputs[i]);
        let size = |i: usize| self.graph.shape(inputs[i]).elements() as f64;
        match self.op(id) {
            Op::Const { value, .. } => (value.0, value.0),
            Op::Iota { shape, axis } => (0.0, shape.size(*axis) as f64 - 1.0),
            Op::Reduce { kind: ReduceKind::ArgMax, .. } => (0.0, size(0) - 1.0),
            Op::Reduce { kind: ReduceKind::Sum, .. } => {
                let count = size(0) / self.graph.shape(id).elements() as f64;
                (of(0).0 * count, of(0).1 * count)
            }
            Op::Reduce { kind: ReduceKind::Max | ReduceKind::Min, .. } => of(0),
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } | Op::Slice { .. } => of(0),
            Op::StopGradient => of(0),
            Op::Pointwise(ScalarOp::Cast(DType::I32)) => match self.graph.ty(inputs[0]).dtype {
                DType::Bool => (0.0, 1.0),
                DType::I32 => of(0),
                _ => (f64::NEG_INFINITY, f64::INFINITY),
            },
            Op::Pointwise(ScalarOp::Max) => (of(0).0.max(of(1).0), of(0).1.max(of(1).1)),
            Op::Pointwise(ScalarOp::Min) => (of(0).0.min(of(1).0), of(0).1.min(of(1).1)),
            Op::Pointwise(ScalarOp::Select) => (of(1).0.min(of(2).0), of(1).1.max(of(2).1)),
            Op::Pointwise(ScalarOp::Add) => (of(0).0 + of(1).0, of(0).1 + of(1).1),
            _ => (f64::NEG_INFINITY, f64::INFINITY),
        }
    }
}
