//! How far a computation in f32 may be from the same one in exact numbers, derived from its graph.
//!
//! Running error analysis (Higham, *Accuracy and Stability of Numerical Algorithms*, 2nd ed., section 3.3): beside every node
//! stands a bound on its error, which is a graph too: what the errors of its inputs become, plus what its own rounding adds.
//! Both are evaluated together by the f64 interpreter, so there is a bound for every element. It holds whatever is fused, in
//! whichever order sums run. It holds for no graph in which an inexact value is compared, since there is none.

use alip_compiler::ir::{Builder, DType, Graph, Node, NodeId, OriginId};
use alip_compiler::ops::{Op, OpError, ReduceKind, ScalarOp};
use alip_plan::bounds::F32;

/// Unit roundoff.
const U: f64 = F32.unit_roundoff;

/// What transcendental functions of the devices may be wrong by, in units of the roundoff: a few units in the last place.
const FUNCTION: f64 = 8.0 * U;

/// Name of the output of [`with_bounds`] that bounds the error of another one.
pub fn bound_of(name: &str) -> String {
    format!("bound of {name}")
}

/// Name of the output of [`with_bounds`] that is the new value of a state.
pub fn update_of(path: &str) -> String {
    format!("update of {path}")
}

/// A graph that yields all outputs and new states (as [`update_of`]) of this one, and a bound ([`bound_of`]) for each that is
/// not exact.
///
/// # Panics
/// The graph compares a value that is not exact, or has an operation for which there is no rule.
pub fn with_bounds(graph: &Graph) -> Graph {
    let mut bounded = Graph::new(&graph.name);
    let mut values: Vec<NodeId> = Vec::new();
    let mut errors: Vec<Option<NodeId>> = Vec::new();
    for id in graph.ids() {
        let node = graph.node(id);
        let pick = |of: &[NodeId]| node.inputs.iter().map(|input| of[input.index()]).collect::<Vec<_>>();
        let x = pick(&values);
        let e: Vec<Option<NodeId>> = node.inputs.iter().map(|input| errors[input.index()]).collect();
        let y = bounded.add(node.op.clone(), &x, OriginId(0)).expect("as in the graph");
        let mut rule = Rule { b: Builder::new(&mut bounded, OriginId(0)), x: &x, e: &e, y };
        errors.push(rule.error(node).unwrap_or_else(|error| panic!("the bound of {node:?}: {error}")));
        values.push(y);
    }
    bounded.inputs = graph.inputs.iter().map(|(name, id)| (name.clone(), values[id.index()])).collect();
    let results = graph.outputs.iter().map(|(name, id)| (name.clone(), *id));
    let results = results.chain(graph.updates.iter().map(|(path, id)| (update_of(path), *id)));
    for (name, id) in results {
        if let Some(error) = errors[id.index()] {
            bounded.outputs.insert(bound_of(&name), error);
        }
        bounded.outputs.insert(name, values[id.index()]);
    }
    bounded
}

/// The rule for one node: inputs `x` with errors `e` (none: exact), result `y`.
struct Rule<'a, 'g> {
    b: Builder<'g>,
    x: &'a [NodeId],
    e: &'a [Option<NodeId>],
    y: NodeId,
}

type Result<T = Option<NodeId>> = std::result::Result<T, OpError>;

impl Rule<'_, '_> {
    fn error(&mut self, node: &Node) -> Result {
        let exact = self.e.iter().all(Option::is_none);
        if node.ty.dtype != DType::F32 {
            assert!(exact, "an inexact value is compared or becomes an integer");
            return Ok(None);
        }
        match &node.op {
            Op::Input { .. } | Op::State { .. } | Op::Iota { .. } | Op::Random { .. } => Ok(None),
            Op::Const { value, .. } if f64::from(value.0 as f32) == value.0 => Ok(None),
            Op::Const { .. } => self.rounded(None, U),
            Op::Concat { .. } | Op::Gather { .. } if exact => Ok(None),
            Op::Concat { .. } => {
                let parts = (0..self.x.len()).map(|input| self.error_or_zero(input)).collect::<Result<Vec<_>>>()?;
                self.b.op(node.op.clone(), &parts).map(Some)
            }
            Op::Gather { .. } => {
                let table = self.error_or_zero(0)?;
                self.b.op(node.op.clone(), &[table, self.x[1]]).map(Some)
            }
            Op::ScatterAdd { .. } => {
                let terms = self.b.graph.shape(self.x[0]).elements();
                let carried = self.e[1].map(|e| self.b.op(node.op.clone(), &[self.x[0], e])).transpose()?;
                let magnitude = self.b.abs(self.x[1])?;
                let magnitude = self.b.op(node.op.clone(), &[self.x[0], magnitude])?;
                self.plus(carried, magnitude, terms as f64 * U)
            }
            Op::Reduce { kind: ReduceKind::Sum, .. } => {
                let terms = self.b.graph.shape(self.x[0]).elements() / node.ty.shape.elements();
                let carried = self.e[0].map(|e| self.b.op(node.op.clone(), &[e])).transpose()?;
                let magnitude = self.b.abs(self.x[0])?;
                let magnitude = self.b.op(node.op.clone(), &[magnitude])?;
                self.plus(carried, magnitude, terms as f64 * U)
            }
            Op::Reduce { axes, .. } => {
                let largest = Op::Reduce { kind: ReduceKind::Max, axes: axes.clone() };
                self.e[0].map(|e| self.b.op(largest, &[e])).transpose()
            }
            Op::Dot(dot) => {
                let terms: u64 =
                    dot.contract.iter().map(|(axis, _)| self.b.graph.shape(self.x[0]).size(*axis)).product();
                self.product(&node.op, terms)
            }
            // Every sum of a convolution or of its gradients is over a part of one of the inputs.
            Op::Conv2d(_) => {
                let elements = |x: &NodeId| self.b.graph.shape(*x).elements();
                let terms = self.x.iter().map(elements).max().unwrap_or(1);
                self.product(&node.op, terms)
            }
            Op::Pointwise(op) => self.pointwise(*op),
            // Views.
            op => self.e[0].map(|e| self.b.op(op.clone(), &[e])).transpose(),
        }
    }

    fn pointwise(&mut self, op: ScalarOp) -> Result {
        match op {
            ScalarOp::Neg | ScalarOp::Abs | ScalarOp::Cast(_) => Ok(self.e[0]),
            ScalarOp::Floor => {
                assert!(self.e[0].is_none(), "an inexact value is rounded to an integer");
                Ok(None)
            }
            ScalarOp::Add | ScalarOp::Sub => {
                let carried = self.sum(self.e[0], self.e[1])?;
                self.rounded(carried, U)
            }
            ScalarOp::Max | ScalarOp::Min => self.sum(self.e[0], self.e[1]),
            ScalarOp::Mul => self.product(&Op::Pointwise(op), 1),
            // |y + dy - y| <= (da + |y| db) / (|b| - db), and db is far below |b| / 2.
            ScalarOp::Div => {
                let magnitude = self.b.abs(self.y)?;
                let second = self.e[1].map(|e| self.b.mul(e, magnitude)).transpose()?;
                let above = self.sum(self.e[0], second)?;
                let below = self.b.abs(self.x[1])?;
                let carried = above.map(|above| self.b.div(above, below)).transpose()?;
                self.twice(carried, U)
            }
            ScalarOp::Sqrt => {
                let carried = self.e[0].map(|e| self.b.div(e, self.y)).transpose()?;
                self.rounded(carried, U)
            }
            ScalarOp::Ln => {
                let below = self.b.abs(self.x[0])?;
                let carried = self.e[0].map(|e| self.b.div(e, below)).transpose()?;
                self.twice(carried, FUNCTION)
            }
            ScalarOp::Exp => {
                let carried = self.e[0].map(|e| self.b.mul(e, self.y)).transpose()?;
                self.twice(carried, FUNCTION)
            }
            // Slopes are at most 1, for erf 2 / sqrt(pi). Sine and cosine are exact to the roundoff of 1, not of their value.
            ScalarOp::Tanh => self.rounded(self.e[0], FUNCTION),
            ScalarOp::Erf => self.twice(self.e[0], FUNCTION),
            ScalarOp::Sin | ScalarOp::Cos => {
                let one = self.b.full(1.0, &self.b.graph.ty(self.y).clone())?;
                self.plus(self.e[0], one, FUNCTION)
            }
            ScalarOp::Select if self.e[1].is_none() && self.e[2].is_none() => Ok(None),
            ScalarOp::Select => {
                let (a, b) = (self.error_or_zero(1)?, self.error_or_zero(2)?);
                self.b.select(self.x[0], a, b).map(Some)
            }
            op => panic!("there is no rule for {op:?}"),
        }
    }

    /// A product that is linear in both inputs: `|a| db + da (|b| + db)`, and a rounding for each of its terms and one more.
    fn product(&mut self, op: &Op, terms: u64) -> Result {
        let (a, b) = (self.b.abs(self.x[0])?, self.b.abs(self.x[1])?);
        let first = self.e[1].map(|e| self.b.op(op.clone(), &[a, e])).transpose()?;
        let reach = match self.e[1] {
            Some(e) => self.b.add(b, e)?,
            None => b,
        };
        let second = self.e[0].map(|e| self.b.op(op.clone(), &[e, reach])).transpose()?;
        let carried = self.sum(first, second)?;
        let magnitude = self.b.op(op.clone(), &[a, b])?;
        self.plus(carried, magnitude, (terms + 1) as f64 * U)
    }

    fn error_or_zero(&mut self, input: usize) -> Result<NodeId> {
        match self.e[input] {
            Some(e) => Ok(e),
            None => self.b.full(0.0, &self.b.graph.ty(self.x[input]).clone()),
        }
    }

    fn sum(&mut self, a: Option<NodeId>, b: Option<NodeId>) -> Result {
        match (a, b) {
            (Some(a), Some(b)) => self.b.add(a, b).map(Some),
            (a, b) => Ok(a.or(b)),
        }
    }

    fn plus(&mut self, carried: Option<NodeId>, magnitude: NodeId, roundings: f64) -> Result {
        let roundings = self.b.scalar(roundings)?;
        let own = self.b.mul(magnitude, roundings)?;
        self.sum(carried, Some(own))
    }

    fn rounded(&mut self, carried: Option<NodeId>, roundings: f64) -> Result {
        let magnitude = self.b.abs(self.y)?;
        self.plus(carried, magnitude, roundings)
    }

    /// With twice the carried error, where its first order alone would be too little.
    fn twice(&mut self, carried: Option<NodeId>, roundings: f64) -> Result {
        let carried = self.sum(carried, carried)?;
        self.rounded(carried, roundings)
    }
}
