//! Kernels from text to the card: units of a few texts compiled by NVRTC on several threads, or found compiled on disk.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char};
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
    /// What NVRTC says of itself in code that it makes, down to its build: two of one version may differ.
    build: String,
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
        let build =
            build(&architecture).map_err(|why| format!("NVRTC {version} compiles not even an empty text: {why}"))?;
        Ok(Compiler { architecture, version, build, cache: Cache::of_user() })
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
        let options = options(&self.architecture);
        let mut parts = vec![unit.as_str(), &self.version, &self.build];
        parts.extend(options.iter().map(String::as_str));
        // What the driver does not take is made again, as what is damaged is: a driver of another day may have written it.
        let kept = self.cache.find(&parts).and_then(|cubin| functions(context, &cubin, texts).ok());
        if let Some(functions) = kept {
            return Ok(functions);
        }
        let cubin =
            compile(&unit, &options, cubin).map_err(|why| DeviceError::Driver { device: "cuda".into(), why })?;
        self.cache.keep(&parts, &cubin);
        functions(context, &cubin, texts)
    }
}

/// The functions of these texts in code that was made of them.
fn functions(context: &Arc<Context>, cubin: &[u8], texts: &[Text]) -> Result<Vec<(String, Function)>, DeviceError> {
    let module = Module::new(context, cubin)?;
    texts.iter().map(|text| Ok((text.entry.to_string(), module.function(text.entry)?))).collect()
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

/// What decides, beside the text, what it is compiled to.
fn options(architecture: &str) -> Vec<String> {
    // A product and a sum become one instruction nowhere or where the text says so, and not where a compiler sees them side by
    // side: the same value would be another number in another kernel.
    vec![format!("--gpu-architecture={architecture}"), "--std=c++17".to_string(), "--fmad=false".to_string()]
}

/// What NVRTC says of itself: PTX begins with comments that name the release and the build that made it.
fn build(architecture: &str) -> Result<String, String> {
    let ptx = compile("", &options(architecture), ptx)?;
    let comments: Vec<&str> = ptx.lines().take_while(|line| line.is_empty() || line.starts_with("//")).collect();
    Ok(comments.join("\n"))
}

/// Compiles a text; what `take` takes of it.
///
/// # Errors
/// What the compiler says.
fn compile<T>(
    text: &str,
    options: &[String],
    take: impl FnOnce(sys::nvrtcProgram) -> Result<T, result::NvrtcError>,
) -> Result<T, String> {
    let source = CString::new(text).map_err(|_| "a kernel's text holds a zero".to_string())?;
    let program = result::create_program(&source, None).map_err(|error| format!("nvrtcCreateProgram: {error}"))?;
    // Safety: the program lives until it is destroyed, once, below.
    let compiled = unsafe { result::compile_program(program, options) }
        .map_err(|error| format!("nvrtcCompileProgram: {error}\n{}", log(program)))
        .and_then(|()| take(program).map_err(|error| format!("what NVRTC has compiled cannot be had: {error}")));
    // Safety: as above.
    let _ = unsafe { result::destroy_program(program) };
    compiled
}

/// What the compiler said.
fn log(program: sys::nvrtcProgram) -> String {
    // Safety: the program lives.
    string(unsafe { result::get_program_log(program) }.unwrap_or_default())
}

/// A text of NVRTC, which ends in a zero.
fn string(chars: Vec<c_char>) -> String {
    let bytes: Vec<u8> = chars.into_iter().map(|byte| byte as u8).collect();
    CStr::from_bytes_until_nul(&bytes).map_or_else(|_| String::new(), |text| text.to_string_lossy().into_owned())
}

/// What was made on the way to code of the card.
fn ptx(program: sys::nvrtcProgram) -> Result<String, result::NvrtcError> {
    // Safety: the program lives.
    unsafe { result::get_ptx(program) }.map(string)
}

/// Code of the card.
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
