//! A program's launches, which are recorded as a graph of the driver for each slot of inputs: hundreds of launches then cost the
//! host one call, and the card hardly a gap between them.
//!
//! The first time a program runs, it is launch by launch. That loads its kernels, which a recording does not allow everywhere, and a
//! program that runs once needs no graph. So does whoever wants a part of the steps, to measure or to judge them.

use std::ffi::c_void;
use std::ops::Range;

use super::super::DeviceError;
use super::SLOTS;
use super::driver::{Graph, Stream};
use super::launch::Launch;

/// A program that is ready to run.
pub(super) struct Program {
    launches: Vec<Launch>,
    /// All launches, by slot of inputs.
    graphs: [Option<Graph>; SLOTS],
    /// Whether all of it ran before; no graphs are made where that does not count.
    ran: Option<bool>,
}

impl Program {
    /// With graphs, or launch by launch whenever it runs.
    pub(super) fn new(launches: Vec<Launch>, graphs: bool) -> Program {
        // A graph of one launch is no better than the launch.
        let ran = (graphs && launches.len() > 1).then_some(false);
        Program { launches, graphs: std::array::from_fn(|_| None), ran }
    }

    /// Submits some of its launches, in order; none where there are not so many.
    ///
    /// # Errors
    /// What the driver says of one of them, those before which run all the same unless they were to be recorded.
    pub(super) fn submit(
        &mut self,
        steps: &Range<usize>,
        stream: &Stream,
        slot: usize,
        parameters: &mut Vec<*mut c_void>,
    ) -> Option<Result<(), DeviceError>> {
        let launches = self.launches.get(steps.clone())?;
        let mut one_by_one = || launches.iter().try_for_each(|launch| launch.submit(stream, slot, parameters));
        let whole = launches.len() == self.launches.len();
        if !whole || self.ran != Some(true) {
            let submitted = one_by_one();
            if whole && submitted.is_ok() {
                self.ran = self.ran.map(|_| true);
            }
            return Some(submitted);
        }
        let graph = &mut self.graphs[slot];
        if graph.is_none() {
            match stream.capture(one_by_one) {
                Ok(captured) => *graph = Some(captured),
                Err(why) => return Some(Err(why)),
            }
        }
        // Safety: its launches keep their kernels, and the plan's memory outlives its queues.
        graph.as_ref().map(|graph| unsafe { stream.launch(graph) })
    }
}
