//! Launches of a plan's programs, made when a program first runs: a packed program has a dozen versions by number of rows, of
//! which a run meets a few. Each kernel is compiled once; a product that is a call of the library asks it for an algorithm once.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::sync::Arc;

use alip_plan::kernel::{Implementation, Loop};
use alip_plan::library::Matmul;
use alip_plan::{Buffer, Plan, Step};
use cudarc::driver::sys::CUdevice_attribute;

use super::super::DeviceError;
use super::SLOTS;
use super::compile::{Compiler, Text};
use super::cublaslt::{Call, CublasLt};
use super::driver::{Context, Function, Memory, Stream};

/// One launch, ready to be submitted.
pub(super) struct Launch {
    what: What,
    /// Addresses of its operands, by slot of the inputs.
    operands: [Vec<u64>; SLOTS],
    /// Whose work it does, for errors.
    origin: String,
}

enum What {
    Kernel { function: Function, grid: [u32; 3], block: u32, shared_bytes: u32 },
    Product { call: Box<Call>, workspace: Arc<Memory> },
}

impl Launch {
    /// Submits it, with inputs of this slot; `parameters` is room to be used again.
    pub(super) fn submit(
        &self,
        stream: &Stream,
        slot: usize,
        parameters: &mut Vec<*mut c_void>,
    ) -> Result<(), DeviceError> {
        let operands = &self.operands[slot];
        match &self.what {
            What::Kernel { function, grid, block, shared_bytes } => {
                parameters.clear();
                // The driver reads the addresses before it returns, and changes none.
                parameters.extend(operands.iter().map(|address| std::ptr::from_ref(address).cast_mut().cast()));
                // Safety: `check` has counted the operands of the text and seen that views keep to them.
                unsafe { function.launch(stream, *grid, *block, *shared_bytes, parameters) }
                    .map_err(|error| at(error, &self.origin))
            }
            What::Product { call, workspace } => {
                // Safety: `check` has seen that views keep to the operands, and all products are on this stream.
                unsafe { call.submit(operands, workspace.address, stream.raw.cast()) }
                    .map_err(|why| refused(&self.origin, &why))
            }
        }
    }
}

/// What the driver says of a launch, with whose work it does.
fn at(error: DeviceError, origin: &str) -> DeviceError {
    match error {
        DeviceError::Driver { device, why } => DeviceError::Driver { device, why: format!("{why}, in `{origin}`") },
        error => error,
    }
}

/// The library, and the memory that its products use beside their operands.
pub(super) struct Products {
    pub(super) library: Arc<CublasLt>,
    pub(super) workspace: Arc<Memory>,
}

/// Makes launches from steps.
pub(super) struct Launcher {
    context: Arc<Context>,
    compiler: Arc<Compiler>,
    plan: Arc<Plan>,
    /// Where the plan has products that are calls of the library.
    products: Option<Products>,
    /// By the name of their texts.
    functions: BTreeMap<String, Function>,
    /// Shared memory that a block may have.
    most_shared: u32,
}

impl Launcher {
    pub(super) fn new(
        context: Arc<Context>,
        compiler: Arc<Compiler>,
        plan: Arc<Plan>,
        products: Option<Products>,
    ) -> Result<Launcher, DeviceError> {
        let most = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        let most_shared = context.attribute(most)?.unsigned_abs();
        Ok(Launcher { context, compiler, plan, products, functions: BTreeMap::new(), most_shared })
    }

    /// All steps of a program, whose buffers are slices of the segments of each slot.
    ///
    /// # Errors
    /// A program the plan lacks; a plan that breaks the laws of its format; what the compiler says of a text, or the library of a
    /// product.
    pub(super) fn prepare(
        &mut self,
        program: &str,
        slots: &[Vec<Arc<Memory>>; SLOTS],
    ) -> Result<Vec<Launch>, DeviceError> {
        let plan = self.plan.clone();
        let missing = || DeviceError::Misuse(format!("the plan has no program `{program}`"));
        let program = plan.programs.get(program).ok_or_else(missing)?;
        self.compile(&plan, &program.steps)?;
        program.steps.iter().map(|step| self.launch(&plan, &program.buffers, step, slots)).collect()
    }

    /// Compiles the kernels of steps that are not there yet.
    fn compile(&mut self, plan: &Plan, steps: &[Step]) -> Result<(), DeviceError> {
        let mut texts: Vec<Text<'_>> = steps.iter().filter_map(|step| text(plan, step)).collect();
        texts.retain(|text| !self.functions.contains_key(text.entry));
        texts.sort_unstable();
        texts.dedup();
        if let Some(pair) = texts.windows(2).find(|pair| pair[0].entry == pair[1].entry) {
            return Err(invalid(&format!("two texts have the entry `{}`", pair[0].entry)));
        }
        self.functions.extend(self.compiler.load(&self.context, &texts)?);
        Ok(())
    }

    fn launch(
        &self,
        plan: &Plan,
        buffers: &[Buffer],
        step: &Step,
        slots: &[Vec<Arc<Memory>>; SLOTS],
    ) -> Result<Launch, DeviceError> {
        let addresses = |segments: &Vec<Arc<Memory>>| -> Result<Vec<u64>, DeviceError> {
            step.operands.iter().map(|operand| address(buffers, *operand, segments)).collect()
        };
        let mut operands = std::array::from_fn(|_| Vec::new());
        for (of_slot, segments) in operands.iter_mut().zip(slots) {
            *of_slot = addresses(segments)?;
        }
        let kernel = plan.kernels.get(step.kernel as usize).ok_or_else(|| invalid("a step names no kernel"))?;
        let what = match (&kernel.implementation, &kernel.description) {
            (Implementation::Cuda { entry, grid, block, shared_bytes, .. }, _) => {
                let function = self.function(entry, *shared_bytes, &step.origin)?;
                What::Kernel { function, grid: *grid, block: *block, shared_bytes: *shared_bytes }
            }
            (Implementation::CublasLt, Loop::Product(product)) => {
                let matmul = Matmul::of(product).map_err(invalid)?;
                self.product(&matmul, &operands[0], &step.origin)?
            }
            _ => return Err(invalid("a step names a kernel that is not CUDA")),
        };
        Ok(Launch { what, operands, origin: step.origin.clone() })
    }

    /// A kernel that was compiled, with the shared memory that it needs.
    fn function(&self, entry: &str, shared_bytes: u32, origin: &str) -> Result<Function, DeviceError> {
        if shared_bytes > self.most_shared {
            return Err(DeviceError::Limit {
                what: format!("shared memory of `{origin}` in bytes"),
                needed: shared_bytes.into(),
                device: "this card".into(),
                allowed: self.most_shared.into(),
                limit: "MAX_SHARED_MEMORY_PER_BLOCK_OPTIN",
            });
        }
        let function = self.functions.get(entry).ok_or_else(|| invalid("a kernel was not compiled"))?.clone();
        function.allow_shared(shared_bytes)?;
        Ok(function)
    }

    fn product(&self, matmul: &Matmul, operands: &[u64], origin: &str) -> Result<What, DeviceError> {
        let Products { library, workspace } = self.products.as_ref().ok_or_else(|| invalid("it has no library"))?;
        self.context.enter()?;
        // Segments of all slots begin where the driver puts memory, and so are aligned alike.
        let call = Call::new(library, matmul, operands, workspace.bytes).map_err(|why| {
            let help = "compile the spec with `alipc compile --no-library` to do without the library";
            refused(origin, &format!("{why}; {help}"))
        })?;
        Ok(What::Product { call: Box::new(call), workspace: workspace.clone() })
    }
}

/// The text of a step's kernel, if it has one.
fn text<'a>(plan: &'a Plan, step: &Step) -> Option<Text<'a>> {
    match &plan.kernels.get(step.kernel as usize)?.implementation {
        Implementation::Cuda { source, entry, .. } => Some(Text { entry, source }),
        _ => None,
    }
}

/// What the library says of a step.
fn refused(origin: &str, why: &str) -> DeviceError {
    DeviceError::Driver { device: "cuda".into(), why: format!("`{origin}`: {why}") }
}

/// Where an operand begins.
fn address(buffers: &[Buffer], operand: u32, segments: &[Arc<Memory>]) -> Result<u64, DeviceError> {
    let buffer = buffers.get(operand as usize).ok_or_else(|| invalid("a step names no buffer"))?;
    let segment = segments.get(buffer.segment as usize).ok_or_else(|| invalid("a buffer names no segment"))?;
    if buffer.offset.checked_add(buffer.bytes()).is_none_or(|end| end > segment.bytes) {
        return Err(invalid("a buffer leaves its segment"));
    }
    Ok(segment.address + buffer.offset)
}

fn invalid(what: &str) -> DeviceError {
    DeviceError::InvalidPlan(what.to_string())
}
