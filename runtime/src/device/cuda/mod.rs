//! NVIDIA cards of compute capability 8.0 and up, through the driver, NVRTC and cuBLASLt, which are loaded at run time.
//!
//! A segment of the plan is one piece of the card's memory; an operand of a step is an address in it. All launches go to one
//! stream and so take effect in order. Segments of inputs are there several times ([`SLOTS`]): they are filled from pinned memory
//! on a stream of their own while the steps before still run, and events order the two. Kernels are compiled when a program
//! first runs, as a run meets few of a plan's programs; what was compiled once is found on disk (`cache`). Products that are calls
//! of cuBLASLt share one workspace, as they come one after the other; only a plan that has such needs the library. A program
//! that runs again is one graph of the driver (`program`).
//!
//! A card that fails in the middle fails every call after that; each says which call it was and what the driver said.

mod cache;
mod compile;
mod cublaslt;
mod driver;
mod launch;
mod libraries;
mod loaded;
mod program;

use std::sync::Arc;

use alip_plan::{Plan, Target};
use cudarc::driver::result;
use cudarc::driver::sys::CUdevice_attribute;

use self::compile::Compiler;
pub use self::cublaslt::{Call, CublasLt};
use self::driver::{Context, said};
pub use self::libraries::{Library, cublaslt, nvrtc};
use super::{Device, DeviceError, DeviceOptions, Free, LoadedPlan, check_plan};

/// The oldest driver that has all that is called.
const OLDEST_DRIVER: u32 = 12_000;

/// Programs that wait in the queue beside the one that runs, for the same reasons as on wgpu.
const AHEAD: usize = 2;

/// Copies of the segments of inputs: for the programs that wait and the one that runs.
const SLOTS: usize = AHEAD + 1;

/// An opened card.
pub struct Cuda {
    context: Arc<Context>,
    compiler: Arc<Compiler>,
    facts: Facts,
    /// Where NVRTC was found.
    nvrtc: String,
    /// The version of cuBLASLt and where it was found, if it was.
    cublaslt: Option<(String, String)>,
    /// Whether programs become graphs of the driver.
    graphs: bool,
}

/// What is known of a card before it is opened.
struct Facts {
    name: String,
    /// Compute capability.
    major: i32,
    minor: i32,
    /// The driver's interface.
    driver: String,
}

/// Opens the card with this index in the order of the driver, or the first.
///
/// # Errors
/// No driver or one that is too old, no such card or one that is too old, no NVRTC.
pub fn open(index: Option<usize>, options: &DeviceOptions) -> Result<Box<dyn Device>, String> {
    let driver = start()?;
    let device = device(index.unwrap_or(0))?;
    let facts = facts(device, &driver)?;
    if facts.major < 8 {
        return Err(format!(
            "{} has compute capability {}.{}, and kernels are for 8.0 (Ampere) and up",
            facts.name, facts.major, facts.minor
        ));
    }
    let nvrtc = libraries::nvrtc()?.name.clone();
    let compiler = Arc::new(Compiler::new(architecture(facts.major, facts.minor))?);
    let cublaslt = libraries::cublaslt().ok().map(|library| (cublaslt::version(), library.name.clone()));
    let context = Context::new(device).map_err(|error| error.to_string())?;
    let graphs = !options.launch_by_launch;
    Ok(Box::new(Cuda { context, compiler, facts, nvrtc, cublaslt, graphs }))
}

/// What the cards of this machine compute with, in the order of the driver.
///
/// # Errors
/// There is none, or no driver that can be used.
pub fn list() -> Result<Vec<String>, String> {
    let driver = start()?;
    let count = count()?;
    (0..count).map(|index| Ok(facts(device(index)?, &driver)?.to_string())).collect()
}

/// Loads the driver; its version.
fn start() -> Result<String, String> {
    libraries::driver()?;
    let version = driver::version().map_err(|error| format!("cuDriverGetVersion: {}", said(error)))?;
    let text = |version: u32| format!("{}.{}", version / 1000, version % 1000 / 10);
    if version < OLDEST_DRIVER {
        return Err(format!(
            "the NVIDIA driver is for CUDA {}, and {} or newer is needed; update the driver",
            text(version),
            text(OLDEST_DRIVER)
        ));
    }
    result::init().map_err(|error| format!("cuInit: {}", said(error)))?;
    Ok(text(version))
}

fn count() -> Result<usize, String> {
    let count = result::device::get_count().map_err(|error| format!("cuDeviceGetCount: {}", said(error)))?;
    match usize::try_from(count) {
        Ok(count) if count > 0 => Ok(count),
        _ => Err("the NVIDIA driver knows no card; see whether CUDA_VISIBLE_DEVICES hides it".into()),
    }
}

fn device(index: usize) -> Result<i32, String> {
    let count = count()?;
    if index >= count {
        return Err(format!("there are {count} cards"));
    }
    result::device::get(index as i32).map_err(|error| format!("cuDeviceGet: {}", said(error)))
}

fn facts(device: i32, driver: &str) -> Result<Facts, String> {
    // Safety: the device is one that the driver named.
    let attribute = |attribute| unsafe { result::device::get_attribute(device, attribute) };
    let attribute = |which| attribute(which).map_err(|error| format!("cuDeviceGetAttribute: {}", said(error)));
    Ok(Facts {
        name: result::device::get_name(device).map_err(|error| format!("cuDeviceGetName: {}", said(error)))?,
        major: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
        minor: attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        driver: driver.to_string(),
    })
}

impl std::fmt::Display for Facts {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Facts { name, major, minor, driver } = self;
        write!(out, "{name} (compute capability {major}.{minor}, driver for CUDA {driver})")
    }
}

/// What NVRTC compiles for.
fn architecture(major: i32, minor: i32) -> String {
    // Some instructions of Hopper are of this very card.
    let own = if (major, minor) == (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{own}")
}

impl Device for Cuda {
    fn name(&self) -> &'static str {
        "cuda"
    }

    fn description(&self) -> String {
        let cublaslt = match &self.cublaslt {
            Some((version, name)) => format!("cuBLASLt {version} ({name})"),
            None => "no cuBLASLt".into(),
        };
        format!("{}, NVRTC {} ({}), {cublaslt}", self.facts, self.compiler.version, self.nvrtc)
    }

    /// The description that is nearest to the card: others of its generation and the next one are taken for the first.
    fn target(&self) -> Target {
        match self.facts.major {
            9 => Target::sm_90a(),
            10 => Target::sm_100(),
            _ => Target::sm_80(),
        }
    }

    fn summary(&self) -> String {
        self.facts.name.clone()
    }

    fn arithmetic(&self) -> String {
        let cublaslt = self.cublaslt.as_ref().map_or_else(String::new, |(version, _)| format!(", cuBLASLt {version}"));
        format!("{}, NVRTC {}{cublaslt}", self.facts, self.compiler.version)
    }

    fn room(&self, plan: &Plan) -> Option<Free> {
        loaded::room(&self.context, plan).ok()
    }

    fn load(&self, plan: Arc<Plan>) -> Result<Box<dyn LoadedPlan>, DeviceError> {
        check_plan(&plan, self)?;
        loaded::load(&self.context, &self.compiler, plan, self.graphs)
    }
}
