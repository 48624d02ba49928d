//! From a graph to launches: the one way, by which programs are compiled, their cost is predicted and regions are judged.

use alip_plan::Target;

use super::lower::lower;
use crate::diag::Diagnostics;
use crate::ir::Graph;
use crate::launch::{Launch, Neighbours};
use crate::schedule::{Schedule, ScheduleOptions, normal_form, recompute, schedule, schedule_again};

/// What decides on the launches of a graph.
#[derive(Clone, Copy)]
pub(crate) struct BackEnd<'a> {
    pub(crate) target: &'a Target,
    pub(crate) options: ScheduleOptions,
    pub(crate) neighbours: &'a Neighbours,
}

/// A program as launches.
pub(crate) struct Lowered {
    /// What was scheduled: launches read and write its nodes.
    pub(crate) graph: Graph,
    /// In the order in which they run.
    pub(crate) launches: Vec<Launch>,
}

/// A program on its way.
pub(crate) enum Stage<'a, 'g> {
    /// In the form that is scheduled.
    Prepared(&'a Graph),
    Scheduled(&'a Schedule<'g>),
    Lowered(&'a Schedule<'g>, &'a [Launch]),
}

/// Looks on while a program is lowered.
pub(crate) trait Watch {
    /// Runs a part of a pass.
    fn timed<T>(&mut self, _pass: &'static str, work: impl FnOnce() -> T) -> T {
        work()
    }

    /// What has become of the program; whether it is to go on.
    fn goes_on(&mut self, _stage: Stage<'_, '_>) -> Result<bool, Diagnostics> {
        Ok(true)
    }
}

/// Nobody looks.
pub(crate) struct Unwatched;

impl Watch for Unwatched {}

impl BackEnd<'_> {
    /// The launches of a program; none where who watches has seen enough.
    ///
    /// # Errors
    /// An op refuses its inputs, or a group cannot be made or lowered, which only a defect of a pass can cause.
    pub(crate) fn lower(&self, graph: &Graph, watch: &mut impl Watch) -> Result<Option<Lowered>, Diagnostics> {
        let BackEnd { target, options, neighbours } = *self;
        let graph = watch.timed("prepare", || normal_form(graph, target, options))?;
        if !watch.goes_on(Stage::Prepared(&graph))? {
            return Ok(None);
        }
        let first = watch.timed("schedule", || schedule(&graph, neighbours, target, options))?;
        let again = watch.timed("schedule", || recompute(&first, options))?;
        let scheduled = match &again {
            Some(again) => watch.timed("schedule", || schedule_again(again, neighbours, target, options))?,
            None => first,
        };
        if !watch.goes_on(Stage::Scheduled(&scheduled))? {
            return Ok(None);
        }
        let launches = watch.timed("lower", || lower(&scheduled))?;
        if !watch.goes_on(Stage::Lowered(&scheduled, &launches))? {
            return Ok(None);
        }
        drop(scheduled);
        Ok(Some(Lowered { graph: again.map_or(graph, |again| again.graph), launches }))
    }
}
