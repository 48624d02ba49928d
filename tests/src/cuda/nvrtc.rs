//! NVRTC, which compiles texts for cards that are not there.

use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use libloading::Library;

use super::Text;
use crate::skip;

/// Kernels of one translation unit.
const TEXTS_PER_UNIT: usize = 16;

/// What a kernel takes of a card.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of registers that are stored and read again for want of room.
    pub spilled: u32,
}

type Program = *mut c_void;
type Create = unsafe extern "C" fn(
    *mut Program,
    *const c_char,
    *const c_char,
    c_int,
    *const *const c_char,
    *const *const c_char,
) -> c_int;
type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
type LogSize = unsafe extern "C" fn(Program, *mut usize) -> c_int;
type Log = unsafe extern "C" fn(Program, *mut c_char) -> c_int;
type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;

/// NVRTC as a library of this process.
pub struct Nvrtc(Library);

impl Nvrtc {
    /// The library; none, and a line that says so, on a machine without it.
    ///
    /// # Panics
    /// Without it under `CI=true`.
    pub fn get() -> Option<Nvrtc> {
        let found = alip_runtime::device::cuda::nvrtc().and_then(|library| {
            // Safety: it is open already.
            unsafe { Library::new(&library.name) }.map_err(|error| error.to_string())
        });
        match found {
            Ok(library) => Some(Nvrtc(library)),
            Err(why) => {
                skip::skipped_outside_ci(&why);
                None
            }
        }
    }

    /// Compiles kernels for an architecture, on all cores; what each takes, by its entry.
    ///
    /// # Errors
    /// What the compiler says of the texts.
    pub fn compile(&self, texts: &[Text<'_>], architecture: &str) -> Result<BTreeMap<String, Taken>, String> {
        let units: Vec<&[Text<'_>]> = texts.chunks(TEXTS_PER_UNIT).collect();
        let (next, found) = (AtomicUsize::new(0), Mutex::new(Ok(BTreeMap::new())));
        let work = || {
            while let Some(unit) = units.get(next.fetch_add(1, Ordering::Relaxed)) {
                let log = self.unit(unit, architecture);
                let mut found = found.lock().unwrap_or_else(PoisonError::into_inner);
                match (log, found.as_mut()) {
                    (Ok(log), Ok(all)) => all.extend(taken(&log)),
                    (Err(why), Ok(_)) => *found = Err(why),
                    (_, Err(_)) => {}
                }
            }
        };
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
        found.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    /// Compiles one translation unit; what was said.
    fn unit(&self, texts: &[Text<'_>], architecture: &str) -> Result<String, String> {
        let spaces = texts.iter().enumerate();
        let source: String = spaces.map(|(n, text)| format!("namespace n{n} {{\n{}}}\n", text.source)).collect();
        let c = |text: &str| CString::new(text).expect("no zeros");
        let options = [
            format!("--gpu-architecture={architecture}"),
            "--std=c++17".into(),
            "--fmad=false".into(),
            "--ptxas-options=-v".into(),
        ]
        .map(|option| c(&option));
        let options = options.each_ref().map(|option| option.as_ptr());
        let (source, name) = (c(&source), c("kernels.cu"));
        // Safety: the signatures are those of nvrtc.h, and all that is pointed to outlives the calls.
        unsafe {
            let get = |name: &str| format!("NVRTC has no {name}");
            let create = self.0.get::<Create>(b"nvrtcCreateProgram\0").map_err(|_| get("nvrtcCreateProgram"))?;
            let compile = self.0.get::<Compile>(b"nvrtcCompileProgram\0").map_err(|_| get("nvrtcCompileProgram"))?;
            let size = self.0.get::<LogSize>(b"nvrtcGetProgramLogSize\0").map_err(|_| get("nvrtcGetProgramLogSize"))?;
            let log = self.0.get::<Log>(b"nvrtcGetProgramLog\0").map_err(|_| get("nvrtcGetProgramLog"))?;
            let destroy = self.0.get::<Destroy>(b"nvrtcDestroyProgram\0").map_err(|_| get("nvrtcDestroyProgram"))?;
            let mut program: Program = std::ptr::null_mut();
            let none = std::ptr::null();
            if create(&raw mut program, source.as_ptr(), name.as_ptr(), 0, none, none) != 0 {
                return Err("nvrtcCreateProgram failed".into());
            }
            let failed = compile(program, options.len() as c_int, options.as_ptr());
            let mut length = 0;
            size(program, &raw mut length);
            let mut said = vec![0u8; length.max(1)];
            log(program, said.as_mut_ptr().cast());
            destroy(&raw mut program);
            let said = CStr::from_bytes_until_nul(&said).map_or(String::new(), |text| text.to_string_lossy().into());
            if failed == 0 { Ok(said) } else { Err(said) }
        }
    }
}

/// What ptxas says of each entry: `Compiling entry function 'NAME'`, then its spills, then its registers.
fn taken(log: &str) -> BTreeMap<String, Taken> {
    let number_before =
        |line: &str, what: &str| -> Option<u32> { line.split(what).next()?.split_whitespace().last()?.parse().ok() };
    let mut all: BTreeMap<String, Taken> = BTreeMap::new();
    let mut entry = String::new();
    for line in log.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '") {
            entry = rest.split('\'').next().unwrap_or_default().to_string();
        }
        if line.contains("bytes spill stores") {
            all.entry(entry.clone()).or_default().spilled = number_before(line, " bytes spill stores").unwrap_or(0);
        }
        if line.contains(" registers") {
            all.entry(entry.clone()).or_default().registers = number_before(line, " registers").unwrap_or(0);
        }
    }
    all
}
