//! The reference device with something around each plan that it loads.

use std::sync::Arc;

use alip_plan::{Plan, Target};

use crate::device::reference::Reference;
use crate::device::{Device, DeviceError, LoadedPlan};

/// The device, and what it makes of a loaded plan.
pub(crate) struct Wrapped<F>(pub(crate) F);

impl<F: Fn(Box<dyn LoadedPlan>) -> Box<dyn LoadedPlan> + Send> Device for Wrapped<F> {
    fn name(&self) -> &'static str {
        "wrapped"
    }
    fn description(&self) -> String {
        Reference.description()
    }
    fn target(&self) -> Target {
        Reference.target()
    }
    fn summary(&self) -> String {
        Reference.summary()
    }
    fn arithmetic(&self) -> String {
        Reference.arithmetic()
    }
    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        Ok((self.0)(Reference.load(plan)?))
    }
}
