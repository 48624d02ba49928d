//! Kernels from text to the card: units of a few texts compiled by NVRTC on several threads, or found compiled on disk.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString};
use std::fmt::Write as _;
use std::sync::{Arc, Mutex, PoisonError};

use cudarc::nvrtc::{result, sys};

use super::super::DeviceError;
use super::cache::Cache;
use super::driver::{Context, Function, Module};

/// Texts that are compiled as one: what NVRTC does per unit weighs little then, and there are units for all threads.
const TEXTS_PER_UNIT: usize = 12;

/// What compiles kernels for a card.
pub(super) struct Compiler {
    /// As `--gpu-architecture` takes it: `sm_90a`.
    pub(super) architecture: String,
    /// Of NVRTC: `12.8`.
    pub(super) version: String,
    cache: Cache,
}

/// A kernel's text and the name of its function.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Text<'a> {
    pub(super) entry: &'a str,
    pub(super) source: &'a str,
}

impl Compiler {
    /// NVRTC, which must be open, for cards of this architecture.
    ///
    /// # Errors
    /// It does not know such cards.
    pub(super) fn new(architecture: String) -> Result<Compiler, String> {
        let (mut major, mut minor) = (0, 0);
        // Safety: it writes two numbers.
        unsafe { sys::nvrtcVersion(&raw mut major, &raw mut minor).result() }
            .map_err(|error| format!("nvrtcVersion: {error}"))?;
        let version = format!("{major}.{minor}");
        let number: i32 = architecture.chars().filter(char::is_ascii_digit).collect::<String>().parse().unwrap_or(0);
        let known = supported().map_err(|error| format!("nvrtcGetSupportedArchs: {error}"))?;
        if !known.is_empty() && !known.contains(&number) {
            return Err(format!(
                "NVRTC {version} compiles for cards up to sm_{}, and this one is {architecture}; install a newer CUDA \
                 toolkit or nvidia-cuda-nvrtc",
                known.iter().max().unwrap_or(&0)
            ));
        }
        Ok(Compiler { architecture, version, cache: Cache::of_user() })
    }

    /// Puts kernels onto the card, by name; each text once.
    ///
    /// # Errors
    /// What NVRTC says of a text, or the driver of what was made of it.
    pub(super) fn load(
        &self,
        context: &Arc<Context>,
        texts: &[Text],
    ) -> Result<BTreeMap<String, Function>, DeviceError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let units = Mutex::new(texts.chunks(TEXTS_PER_UNIT));
        let loaded = Mutex::new(Ok(BTreeMap::new()));
        let work = || {
            loop {
                // No lock is held while a unit is compiled.
                let next = units.lock().unwrap_or_else(PoisonError::into_inner).next();
                let Some(unit) = next else { return };
                let made = self.load_unit(context, unit);
                let mut loaded = loaded.lock().unwrap_or_else(PoisonError::into_inner);
                match (made, &mut *loaded) {
                    (Ok(made), Ok(all)) => all.extend(made),
                    (Err(why), Ok(_)) => *loaded = Err(why),
                    (_, Err(_)) => return,
                }
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..threads.min(texts.len().div_ceil(TEXTS_PER_UNIT)) {
                scope.spawn(work);
            }
        });
        loaded.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn load_unit(&self, context: &Arc<Context>, texts: &[Text]) -> Result<Vec<(String, Function)>, DeviceError> {
        let unit = unit(texts);
        let parts = [unit.as_str(), &self.architecture, &self.version];
        let cubin = match self.cache.find(&parts) {
            Some(cubin) => cubin,
            None => {
                let cubin = compile(&unit, &self.architecture)
                    .map_err(|why| DeviceError::Driver { device: "cuda".into(), why })?;
                self.cache.keep(&parts, &cubin);
                cubin
            }
        };
        let module = Module::new(context, &cubin)?;
        texts.iter().map(|text| Ok((text.entry.to_string(), module.function(text.entry)?))).collect()
    }
}

/// Several texts as one, each in a namespace of its own; what a compiler says names the kernel and its line.
fn unit(texts: &[Text]) -> String {
    let mut unit = String::new();
    for (index, Text { entry, source }) in texts.iter().enumerate() {
        let _ = write!(unit, "namespace k{index} {{\n#line 1 \"{entry}\"\n{source}\n}}\n");
    }
    unit
}

/// The architectures that NVRTC compiles for: 90 for `sm_90` and `sm_90a`.
fn supported() -> Result<Vec<i32>, result::NvrtcError> {
    let mut count = 0;
    // Safety: it writes one number, and then as many.
    unsafe {
        sys::nvrtcGetNumSupportedArchs(&raw mut count).result()?;
        let mut known = vec![0; count.unsigned_abs() as usize];
        if !known.is_empty() {
            sys::nvrtcGetSupportedArchs(known.as_mut_ptr()).result()?;
        }
        Ok(known)
    }
}

/// Code of the card for a text.
///
/// # Errors
/// What the compiler says.
fn compile(text: &str, architecture: &str) -> Result<Vec<u8>, String> {
    let source = CString::new(text).map_err(|_| "a kernel's text holds a zero".to_string())?;
    let call = |name: &'static str| move |error: result::NvrtcError| format!("{name}: {error}");
    let program = result::create_program(&source, None).map_err(call("nvrtcCreateProgram"))?;
    // A product and a sum become one instruction nowhere or where the text says so, and not where a compiler sees them side by
    // side: the same value would be another number in another kernel.
    let options = [format!("--gpu-architecture={architecture}"), "--std=c++17".to_string(), "--fmad=false".to_string()];
    // Safety: the program lives until it is destroyed, once, below.
    let compiled = unsafe { result::compile_program(program, &options) }
        .map_err(|error| format!("nvrtcCompileProgram: {error}\n{}", log(program)))
        .and_then(|()| cubin(program).map_err(call("nvrtcGetCUBIN")));
    // Safety: as above.
    let _ = unsafe { result::destroy_program(program) };
    compiled
}

/// What the compiler said.
fn log(program: sys::nvrtcProgram) -> String {
    // Safety: the program lives.
    let bytes = unsafe { result::get_program_log(program) }.unwrap_or_default();
    let bytes: Vec<u8> = bytes.into_iter().map(|byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

fn cubin(program: sys::nvrtcProgram) -> Result<Vec<u8>, result::NvrtcError> {
    let mut size = 0;
    // Safety: there is room for what is written.
    unsafe {
        sys::nvrtcGetCUBINSize(program, &raw mut size).result()?;
        let mut cubin = vec![0u8; size];
        sys::nvrtcGetCUBIN(program, cubin.as_mut_ptr().cast()).result()?;
        Ok(cubin)
    }
}
