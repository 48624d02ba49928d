//! From a graph to launches: the one way, by which programs are compiled, their cost is predicted and regions are judged.

use alip_plan::Target;

use super::lower::lower;
use crate::diag::Diagnostics;
use crate::ir::Graph;
use crate::launch::{Launch, Neighbours};
use crate::schedule::{Choice, Schedule, ScheduleOptions, normal_form, same_nodes, schedule, schedule_again};

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
    /// What it computes again, where that was not given.
    chosen: Option<Choice>,
    /// The program without that, where there is any.
    without: Option<Graph>,
}

impl Lowered {
    /// What a program computes again that has the same nodes as this one.
    fn choice_for(&self, graph: &Graph) -> Option<&Choice> {
        self.chosen.as_ref().filter(|_| same_nodes(self.without.as_ref().unwrap_or(&self.graph), graph))
    }
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
        self.lower_like(graph, None, watch)
    }

    /// The same of a program that is another one with other sizes, and computes again what that one does.
    ///
    /// # Errors
    /// As [`BackEnd::lower`].
    pub(crate) fn lower_like(
        &self,
        graph: &Graph,
        like: Option<&Lowered>,
        watch: &mut impl Watch,
    ) -> Result<Option<Lowered>, Diagnostics> {
        let BackEnd { target, options, neighbours } = *self;
        let graph = watch.timed("prepare", || normal_form(graph, target, options))?;
        if !watch.goes_on(Stage::Prepared(&graph))? {
            return Ok(None);
        }
        let like = like.and_then(|like| like.choice_for(&graph));
        let first = || schedule(&graph, neighbours, target, options);
        let first = like.is_none().then(|| watch.timed("schedule", first)).transpose()?;
        let chosen = first.as_ref().map(|first| watch.timed("schedule", || Choice::of(first, options)));
        let again = match like.or(chosen.as_ref()) {
            Some(choice) => watch.timed("schedule", || choice.apply(&graph))?,
            None => None,
        };
        let scheduled = watch.timed("schedule", || match (&again, first) {
            (Some(again), _) => schedule_again(again, neighbours, target, options),
            (None, Some(first)) => Ok(first),
            (None, None) => schedule(&graph, neighbours, target, options),
        })?;
        if !watch.goes_on(Stage::Scheduled(&scheduled))? {
            return Ok(None);
        }
        let launches = watch.timed("lower", || lower(&scheduled))?;
        if !watch.goes_on(Stage::Lowered(&scheduled, &launches))? {
            return Ok(None);
        }
        drop(scheduled);
        let (graph, without) = match again {
            Some(again) => (again.graph, Some(graph)),
            None => (graph, None),
        };
        Ok(Some(Lowered { graph, launches, chosen, without }))
    }
}
