//! What a graph draws and reads of the step it is in: `noise(shape, kind)`, `train.step`, `train.total_steps`.
//!
//! A draw is a function of the run's seed, of the step, and of the place that draws: the equations and parts on the way to
//! it ([`Frame::stream`]). Layers of a repetition, two applications of one part and two equations of one body thus draw
//! different numbers; a run that is resumed, or a program that has fewer equations, draws the same. Element `i` of a value
//! takes the number of counter `i`, however the value is fused, computed again or picked from (see [`Op::Random`]).
//!
//! Seed and step are state, so that every program over it has them: those for evaluation read the seed and the number of
//! steps taken so far. A graph without `train` has the seed that `init` was given, and stays at step 0.

use std::collections::HashSet;

use alip_plan::{STATE_SEED, STATE_STEP, STATE_TOTAL_STEPS, StateKind};

use super::apply::not_a_size;
use super::call::Given;
use super::eval::{Evaluator, Frame, Result};
use super::instance::join;
use super::state::{Init, decl};
use super::value::{Value, wrong_kind};
use crate::diag::{Diagnostic, Span};
use crate::ir::{DType, Graph, NodeId, Origin, Shape, TensorType};
use crate::ops::Op;
use crate::spec::{Arg, Expr, Name};

/// Values of the step that expressions read as `train.NAME`.
pub(crate) const STEP_VALUES: [&str; 2] = ["step", "total_steps"];

impl Evaluator<'_> {
    /// `noise(shape, kind)`.
    pub(super) fn noise(&mut self, frame: &Frame, expr: &Expr, args: &[Arg]) -> Result<Value> {
        let [shape, kind] = self.noise_args(frame, expr, args)?;
        let Some(shape) = shape else {
            return Err(noise_error("`noise` needs a shape", expr.span));
        };
        let normal = match &kind {
            None => false,
            Some(Given { value: Value::Str(kind), .. }) if &**kind == "uniform" => false,
            Some(Given { value: Value::Str(kind), .. }) if &**kind == "normal" => true,
            Some(other) => {
                return Err(noise_error(&format!("`noise` is not of the kind {}", other.value), other.expr.span)
                    .help("kinds are 'uniform', in [0, 1), and 'normal', with mean 0 and standard deviation 1"));
            }
        };
        let (Value::List(sizes) | Value::Tuple(sizes)) = &shape.value else {
            return Err(wrong_kind(shape.expr, &shape.value, "a shape").help("write `noise([N, L])`"));
        };
        let dims: Shape = sizes
            .iter()
            .map(|size| size.dim().ok_or_else(|| frame.values_in(shape.expr, not_a_size(shape.expr, size))))
            .collect::<Result<_>>()?;
        let seed = self.step_state(frame, STATE_SEED, Init::Seed, expr.span)?;
        let step = self.step_state(frame, STATE_STEP, Init::Constant(0.0), expr.span)?;
        let stream = self.stream(frame);
        let drawn = self.emit(frame, expr.span, |builder| match normal {
            true => builder.random_normal(seed, step, dims, stream),
            false => builder.random_uniform(seed, step, dims, stream, 0),
        })?;
        Ok(Value::Tensor(drawn))
    }

    /// Shape and kind, as given.
    fn noise_args<'e>(&mut self, frame: &Frame, expr: &Expr, args: &'e [Arg]) -> Result<[Option<Given<'e>>; 2]> {
        let mut found = [None, None];
        for (position, arg) in args.iter().enumerate() {
            let index = match &arg.name {
                None => position,
                Some(name) => ["shape", "kind"].iter().position(|known| *known == name.as_str()).ok_or_else(|| {
                    noise_error(&format!("`noise` has no argument `{name}`"), name.span)
                        .suggest(name, ["shape", "kind"])
                })?,
            };
            let value = self.eval(frame, &arg.value)?;
            match found.get_mut(index) {
                Some(slot @ None) => *slot = Some(Given { name: arg.name.as_ref(), value, expr: &arg.value }),
                _ => return Err(noise_error("too many arguments for `noise`", expr.span)),
            }
        }
        Ok(found)
    }

    /// The stream of the next draw at this place, which no other draw of the program has.
    fn stream(&mut self, frame: &Frame) -> u64 {
        let mut place = join(&frame.stream, &frame.equation);
        let mut number = stream(&place);
        // Two draws of one equation, and places whose hashes meet.
        while !self.streams.insert(number) {
            place.push('\'');
            number = stream(&place);
        }
        number
    }

    /// `train.step` or `train.total_steps`, F32 [].
    pub(super) fn step_value(&mut self, frame: &Frame, expr: &Expr, name: &Name) -> Result<Value> {
        let path = match name.as_str() {
            "step" => STATE_STEP,
            "total_steps" => STATE_TOTAL_STEPS,
            _ => return Err(no_step_value(name)),
        };
        if !self.states.trains {
            return Err(Diagnostic::error("this graph has no `train`, so it takes no steps")
                .label(expr.span, "")
                .help("add `train: (...)` to the graph"));
        }
        let state = self.step_state(frame, path, Init::Constant(0.0), expr.span)?;
        self.emit(frame, expr.span, |builder| builder.cast(state, DType::F32)).map(Value::Tensor)
    }

    /// A state of the step itself, I32 [].
    pub(crate) fn step_state(&mut self, frame: &Frame, path: &str, init: Init, span: Span) -> Result<NodeId> {
        frame.admits_tensors(span)?;
        let ty = TensorType::new(DType::I32, []);
        let origin = Origin { path: "train".into(), module: "train".into(), span: Some(span) };
        self.states.declare(path, 0, decl(StateKind::Optimizer, ty.clone(), origin), init)?;
        self.read(frame, path, ty, span)
    }
}

/// A name that `train` does not have while a body is computed.
pub(super) fn no_step_value(name: &Name) -> Diagnostic {
    Diagnostic::error(format!("`train.{name}` is not known here")).label(name.span, "").suggest(name, STEP_VALUES).help(
        "bodies, schedules and groups read `train.step` and `train.total_steps`; metrics also what the update computes",
    )
}

fn noise_error(message: &str, span: Span) -> Diagnostic {
    Diagnostic::error(message).label(span, "").help("write `noise([N, L])` or `noise([N, L], 'normal')`")
}

/// The streams that a program draws from already.
pub(super) fn streams(graph: &Graph) -> HashSet<u64> {
    let stream = |node: &crate::ir::Node| match node.op {
        Op::Random { stream, .. } => Some(stream),
        _ => None,
    };
    graph.nodes().iter().filter_map(stream).collect()
}

/// The stream of a place: its 64-bit FNV-1a hash, with the highest bits so that it is none of a parameter's start, which
/// have 32.
fn stream(place: &str) -> u64 {
    let hash = place
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    hash >> 2 | 1 << 62
}

#[cfg(test)]
mod tests {
    use super::stream;

    #[test]
    fn streams_are_those_of_parameters_never() {
        for place in ["", "a", "visual.transformer.resblocks.3.drop.keep", "visual.transformer.resblocks.4.drop.keep"] {
            assert!(stream(place) >> 32 != 0 && stream(place) >> 63 == 0, "{place}");
        }
        assert_eq!(stream(""), 0xcbf2_9ce4_8422_2325 >> 2 | 1 << 62);
    }
}
