//! Which steps are taken.
//!
//! A step whose loss or gradient norm is not finite leaves all state as it was, the step counter too, so that it can be run again
//! to look for the cause; but for the loss scale, where there is one. If no loss scale can be what was wrong, the run is over:
//! the step sets [`STATE_HALTED`], and as long as that is set steps change nothing at all, so that those which were submitted
//! before anybody saw it do no harm.

use alip_plan::{STATE_HALTED, STATE_LOSS_SCALE};

use super::Update;
use crate::ir::{DType, Names, NodeId};
use crate::resolve::training::{Init, Result};

/// A loss scale below this cannot be what made gradients overflow: it makes them smaller.
const LEAST_SCALE: f64 = 1.0;

impl Update<'_> {
    /// Guards all updates, and adds those of loss scale and [`STATE_HALTED`].
    pub(super) fn guard(&mut self, loss: NodeId, norm: NodeId) -> Result<()> {
        let halted = self.counter(STATE_HALTED, Init::Constant(0.0))?;
        let span = self.train.span;
        let (running, loss_is_finite, finite) = self.emit(span, |builder| {
            let zero = builder.constant(0.0, DType::I32)?;
            let running = builder.eq(halted, zero)?;
            let (loss, norm) = (builder.is_finite(loss)?, builder.is_finite(norm)?);
            Ok((running, loss, builder.and(loss, norm)?))
        })?;
        let taken = self.emit(span, |builder| builder.and(finite, running))?;
        let mut guarded = self.kept_unless(taken)?;
        self.next_loss_scale(finite)?;
        let scale = self.evaluator.graph.updates.get(STATE_LOSS_SCALE).copied();
        guarded.extend(self.kept_unless(running)?);
        let next = self.emit(span, |builder| {
            let sound = match scale {
                Some(scale) => {
                    let least = builder.scalar(LEAST_SCALE)?;
                    let is_large = builder.ge(scale, least)?;
                    let overflowed = builder.and(loss_is_finite, is_large)?;
                    builder.or(finite, overflowed)?
                }
                None => finite,
            };
            let one = builder.constant(1.0, DType::I32)?;
            builder.select(sound, halted, one)
        })?;
        guarded.insert(STATE_HALTED.into(), next);
        self.evaluator.graph.updates = guarded;
        Ok(())
    }

    /// Takes the updates so far; each yields the old state unless `taken`.
    fn kept_unless(&mut self, taken: NodeId) -> Result<Names> {
        let mut guarded = Names::default();
        for (path, new) in std::mem::take(&mut self.evaluator.graph.updates) {
            let ty = self.evaluator.graph.ty(new).clone();
            let old = self.evaluator.read(&self.frame, &path, ty, self.train.span)?;
            let kept = self.emit(self.train.span, |builder| builder.select(taken, new, old))?;
            guarded.insert(path, kept);
        }
        Ok(guarded)
    }
}
