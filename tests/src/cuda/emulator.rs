//! The emulator as a library of this process.

use std::ffi::{CString, c_char, c_int, c_void};
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use alip_plan::library::Matmul;
use alip_runtime::device::cuda::{Call, CublasLt, cublaslt};
use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use super::build::{self, Text};
use super::compiler;
use crate::skip;

/// What an operand of a launch holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Operand {
    /// Exactly the bytes that the kernel may touch.
    pub bytes: Vec<u8>,
    /// Whether somebody wrote them before the launch; to read them is a fault if not.
    pub written: bool,
}

impl Operand {
    /// An operand with these elements.
    pub fn of<T: bytemuck::NoUninit>(elements: &[T]) -> Operand {
        Operand { bytes: bytemuck::cast_slice(elements).to_vec(), written: true }
    }

    /// An operand that nobody has written.
    pub fn unwritten(bytes: usize) -> Operand {
        Operand { bytes: vec![0; bytes], written: false }
    }

    /// Its elements.
    pub fn elements<T: bytemuck::Pod>(&self) -> Vec<T> {
        self.bytes.chunks_exact(size_of::<T>()).map(bytemuck::pod_read_unaligned).collect()
    }
}

/// What came of a launch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the operands hold after it.
    pub operands: Vec<Operand>,
    /// What was found, a line each, `ENTRY:LINE: KIND (block, thread): place`; the same for every run.
    pub reports: Vec<String>,
}

#[repr(C)]
struct RawOperand {
    bytes: *mut u8,
    length: u64,
    written: u32,
}

type Load = unsafe extern "C" fn(*const c_char, *mut c_char, usize) -> *mut c_void;
type Unload = unsafe extern "C" fn(*mut c_void);
type Launch = unsafe extern "C" fn(*mut c_void, *const c_char, *const u32, u32, *const RawOperand, u32) -> c_int;
type Alloc = unsafe extern "C" fn(*const RawOperand) -> *mut c_void;
type Finish = unsafe extern "C" fn(*mut c_void, *const RawOperand);
type Reports = unsafe extern "C" fn(*mut c_char, usize) -> usize;

/// The emulator, loaded once; it runs one launch at a time.
pub struct Emulator {
    compiler: &'static str,
    library: PathBuf,
    folder: tempfile::TempDir,
    modules: AtomicUsize,
    running: Mutex<()>,
    load: Symbol<Load>,
    unload: Symbol<Unload>,
    launch: Symbol<Launch>,
    reports: Symbol<Reports>,
    alloc: Symbol<Alloc>,
    finish: Symbol<Finish>,
    /// The stand-in of cuBLASLt, once somebody has asked for it.
    products: OnceLock<Result<Arc<CublasLt>, String>>,
}

impl Emulator {
    /// The emulator; none, and a line that says so, on a machine without a C++ compiler.
    ///
    /// # Panics
    /// Without a compiler under `CI=true`, or if the emulator does not compile.
    pub fn get() -> Option<&'static Emulator> {
        static EMULATOR: OnceLock<Option<Emulator>> = OnceLock::new();
        let found = EMULATOR.get_or_init(|| {
            let compiler = compiler::compiler()?;
            Some(Emulator::open(compiler).unwrap_or_else(|why| panic!("the emulator: {why}")))
        });
        if found.is_none() {
            skip::skipped_outside_ci("no C++ compiler (c++, g++ or clang++) for the CUDA emulator");
        }
        found.as_ref()
    }

    fn open(compiler: &'static str) -> Result<Emulator, String> {
        let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
        let library = compiler::library(compiler, folder.path(), "libalip_emulator.so", &[])?;
        // Safety: its constructors do nothing, and the signatures are those of reports.cpp.
        unsafe {
            let loaded = Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL).map_err(|error| error.to_string())?;
            let get = |error: libloading::Error| error.to_string();
            let emulator = Emulator {
                compiler,
                library,
                folder,
                modules: AtomicUsize::new(0),
                running: Mutex::new(()),
                load: loaded.get(b"emulator_load\0").map_err(get)?,
                unload: loaded.get(b"emulator_unload\0").map_err(get)?,
                launch: loaded.get(b"emulator_launch\0").map_err(get)?,
                reports: loaded.get(b"emulator_reports\0").map_err(get)?,
                alloc: loaded.get(b"emulator_alloc\0").map_err(get)?,
                finish: loaded.get(b"emulator_finish\0").map_err(get)?,
                products: OnceLock::new(),
            };
            // It stays as long as the process: kernels that are loaded refer to it.
            std::mem::forget(loaded);
            Ok(emulator)
        }
    }

    /// Compiles kernels, all of them into one library.
    ///
    /// # Errors
    /// What the compiler says of the texts.
    pub fn compile(&'static self, texts: &[Text]) -> Result<Module, String> {
        let number = self.modules.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.path().join(format!("kernels{number}.so"));
        build::kernels(self.compiler, &self.library, texts, &path)?;
        let name = CString::new(path.as_os_str().as_encoded_bytes()).map_err(|error| error.to_string())?;
        let mut why = vec![0u8; 4096];
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Safety: the name ends with a zero, and there is room for what is written.
        let handle = unsafe { (self.load)(name.as_ptr(), why.as_mut_ptr().cast(), why.len()) };
        if handle.is_null() {
            return Err(text(&why));
        }
        Ok(Module {
            emulator: self,
            handle,
            blocks: texts.iter().map(|text| (text.entry.into(), text.block)).collect(),
        })
    }
}

impl Emulator {
    /// The stand-in of cuBLASLt, through what the runtime calls.
    fn products(&self) -> Result<&Arc<CublasLt>, String> {
        let open = || {
            // The first name by which it is looked for.
            let name = "libcublasLt.so";
            let objects = compiler::objects(self.compiler, self.folder.path(), &["cublaslt"], &[])?;
            let objects = [&objects[..], std::slice::from_ref(&self.library)].concat();
            let library = compiler::link(self.compiler, self.folder.path(), name, &objects)?;
            // Safety: its constructors do nothing.
            let loaded = unsafe { Library::open(Some(&library), RTLD_NOW | RTLD_GLOBAL) };
            std::mem::forget(loaded.map_err(|error| error.to_string())?);
            cublaslt()?;
            CublasLt::new()
        };
        self.products.get_or_init(open).as_ref().map_err(Clone::clone)
    }

    /// Computes a product by the stand-in of cuBLASLt, with the descriptors that the runtime makes.
    ///
    /// # Errors
    /// What the library says to the product.
    pub fn multiply(
        &self,
        matmul: &Matmul,
        mut operands: Vec<Operand>,
        workspace_bytes: u64,
    ) -> Result<Outcome, String> {
        let library = self.products()?;
        let mut workspace = Operand::unwritten(workspace_bytes as usize);
        let raw: Vec<RawOperand> = operands.iter_mut().chain([&mut workspace]).map(RawOperand::of).collect();
        let _running = self.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Safety: the operands live until they are given back, below.
        let addresses: Vec<*mut c_void> = raw.iter().map(|operand| unsafe { (self.alloc)(operand) }).collect();
        let numbers: Vec<u64> = addresses.iter().map(|address| *address as u64).collect();
        let called = match numbers.split_last() {
            Some((workspace, operands)) if !numbers.contains(&0) => {
                Call::new(library, matmul, operands, workspace_bytes)
                    // Safety: the stand-in reports what it may not touch, and does not.
                    .and_then(|call| unsafe { call.submit(operands, *workspace, std::ptr::null_mut()) })
            }
            _ => Err("no memory".into()),
        };
        for (address, operand) in addresses.into_iter().zip(&raw).filter(|(address, _)| !address.is_null()) {
            // Safety: it was given for this operand.
            unsafe { (self.finish)(address, operand) };
        }
        let reports = self.take_reports();
        operands.iter_mut().for_each(|operand| operand.written = true);
        called.map(|()| Outcome { operands, reports })
    }

    /// What was found since somebody asked; the caller has the lock.
    fn take_reports(&self) -> Vec<String> {
        // Safety: there is room for what is written.
        let all = unsafe {
            let length = (self.reports)(std::ptr::null_mut(), 0);
            let mut all = vec![0u8; length + 1];
            (self.reports)(all.as_mut_ptr().cast(), all.len());
            text(&all)
        };
        all.lines().map(str::to_string).collect()
    }
}

impl RawOperand {
    fn of(operand: &mut Operand) -> RawOperand {
        RawOperand {
            bytes: operand.bytes.as_mut_ptr(),
            length: operand.bytes.len() as u64,
            written: operand.written.into(),
        }
    }
}

/// What stands before the first zero.
fn text(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

/// Compiled kernels.
pub struct Module {
    emulator: &'static Emulator,
    handle: *mut c_void,
    blocks: std::collections::BTreeMap<String, u32>,
}

// Safety: the handle is used under the emulator's lock only.
unsafe impl Send for Module {}
unsafe impl Sync for Module {}

impl Module {
    /// Runs a kernel on operands.
    ///
    /// # Panics
    /// The module has no such kernel, or it takes another number of operands: a mistake of the caller.
    pub fn launch(&self, entry: &str, grid: [u32; 3], mut operands: Vec<Operand>) -> Outcome {
        let name = CString::new(entry).expect("a name without zeros");
        let block = *self.blocks.get(entry).unwrap_or_else(|| panic!("no kernel `{entry}` was compiled"));
        let raw: Vec<RawOperand> = operands.iter_mut().map(RawOperand::of).collect();
        let _running = self.emulator.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Safety: the operands live until it returns, and it reads and writes their bytes only.
        let failed = unsafe {
            (self.emulator.launch)(self.handle, name.as_ptr(), grid.as_ptr(), block, raw.as_ptr(), raw.len() as u32)
        };
        let why = ["", "it is not in the library", "it takes another number of operands", "no memory", "its block"];
        assert_eq!(failed, 0, "`{entry}` was not launched: {}", why.get(failed as usize).unwrap_or(&""));
        operands.iter_mut().for_each(|operand| operand.written = true);
        Outcome { operands, reports: self.emulator.take_reports() }
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        let _running = self.emulator.running.lock().unwrap_or_else(PoisonError::into_inner);
        // Safety: nothing refers to the library any more.
        unsafe { (self.emulator.unload)(self.handle) };
    }
}
