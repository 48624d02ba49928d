//! The loss scale: the loss is multiplied by a state before it is differentiated, its gradients are divided by it.
//!
//! Which value the scale has next is a module of the language, `train: (loss_scale: "dynamic_loss_scale()")`. It is applied to
//! `finite`, 1 for a step that is taken and 0 for one that is not; its state is not guarded by that, so that a step that overflowed
//! changes the scale and nothing else.

use std::collections::BTreeMap;

use alip_plan::{STATE_LOSS_SCALE, StateKind};

use super::{Param, Update};
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Graph, NodeId, TensorType};
use crate::ops::OpError;
use crate::resolve::training::{Place, Result, Value};
use crate::spec::{Expr, TrainSpec};

/// Where the state of the module is.
const PLACE: &str = "loss_scale";

/// What is differentiated: the loss, times the scale where there is one.
pub(super) fn objective(graph: &mut Graph, loss: NodeId, train: &TrainSpec) -> Result<NodeId, Diagnostics> {
    let Some(expr) = &train.loss_scale else { return Ok(loss) };
    let origin = crate::ir::Origin { path: "train".into(), module: "train".into(), span: Some(expr.span) };
    let origin = graph.add_origin(origin);
    let mut b = Builder::new(graph, origin);
    let scaled = b.state(STATE_LOSS_SCALE, TensorType::f32([])).and_then(|scale| {
        let loss = b.cast(loss, DType::F32)?;
        b.mul(loss, scale)
    });
    scaled.map_err(|error: OpError| Diagnostic::error(error.message).label(expr.span, "").into())
}

impl Update<'_> {
    /// The scale of this step; none without one.
    pub(super) fn loss_scale(&mut self) -> Option<NodeId> {
        self.evaluator.reads.get(STATE_LOSS_SCALE).copied()
    }

    /// Divides gradients by the scale.
    pub(super) fn unscale(&mut self, scale: NodeId, params: &mut [Param]) -> Result<()> {
        self.emit(self.train.span, |builder| {
            let one = builder.scalar(1.0)?;
            let inverse = builder.div(one, scale)?; // exact: scales are powers of two unless a spec says otherwise
            for param in params {
                param.grad = builder.mul(param.grad, inverse)?;
            }
            Ok(())
        })
    }

    /// The next scale, from whether this step was finite.
    pub(super) fn next_loss_scale(&mut self, finite: NodeId) -> Result<()> {
        let Some(expr) = &self.train.loss_scale else { return Ok(()) };
        let (template, spec) = self.module(expr, "a loss scale")?;
        let instance = self.evaluator.instantiate(&template, PLACE.into(), Place::Path(PLACE.into()), expr.span)?;
        let finite = self.emit(expr.span, |builder| builder.cast(finite, DType::F32))?;
        let known = BTreeMap::from([("finite".to_owned(), Value::Tensor(finite))]);
        self.apply(&instance, &spec, &known, expr)?;
        for name in spec.state.keys() {
            if let Some(entry) = self.evaluator.states.entries.get_mut(&format!("{PLACE}.{name}")) {
                entry.decl.kind = StateKind::Optimizer;
            }
        }
        match self.evaluator.states.entries.get(STATE_LOSS_SCALE) {
            Some(entry) if entry.decl.ty == TensorType::f32([]) => Ok(()),
            _ => Err(not_a_scale(&spec.name, expr)),
        }
    }
}

fn not_a_scale(name: &str, expr: &Expr) -> Diagnostic {
    Diagnostic::error(format!("`{name}` is not a loss scale"))
        .label(expr.span, "has no scalar state `scale`")
        .help("`loss_scale: \"dynamic_loss_scale()\"` is one, of \"optim/loss_scale\"")
}
