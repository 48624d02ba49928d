//! Where NVIDIA's libraries are: the driver, which comes with the card's driver package, and NVRTC and cuBLASLt, which may come
//! with the CUDA toolkit or with Python packages.
//!
//! cudarc opens libraries by their names and panics where it finds none. So they are looked for and opened here first, by their
//! whole paths where the system's loader does not know them: a name of what is open already finds that.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

/// The driver's library as loaders know it.
#[cfg(not(windows))]
const DRIVER: &[&str] = &["libcuda.so", "libcuda.so.1"];
#[cfg(windows)]
const DRIVER: &[&str] = &["nvcuda.dll"];

/// A library that is looked for in many places.
struct Wanted {
    /// For messages, with what it does.
    what: &'static str,
    /// For the loader, newest first, as cudarc prefers it.
    names: &'static [&'static str],
    /// How the name of its other half begins, which it asks the system for and which lies beside it.
    half: Option<&'static str>,
    /// The Python package that has it.
    package: &'static str,
}

const NVRTC: Wanted = Wanted {
    what: "NVRTC, which compiles kernels",
    #[cfg(not(windows))]
    names: &["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12"],
    #[cfg(windows)]
    names: &["nvrtc64_130_0.dll", "nvrtc64_120_0.dll"],
    half: Some("libnvrtc-builtins."),
    package: "nvidia-cuda-nvrtc",
};

const CUBLASLT: Wanted = Wanted {
    what: "cuBLASLt, which computes products",
    #[cfg(not(windows))]
    names: &["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"],
    #[cfg(windows)]
    names: &["cublasLt64_13.dll", "cublasLt64_12.dll"],
    half: None,
    package: "nvidia-cublas",
};

/// A library that is open, and stays so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Library {
    /// A name for the loader, or a path.
    pub name: String,
}

/// The driver.
///
/// # Errors
/// What was looked for.
pub(super) fn driver() -> Result<&'static Library, String> {
    static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
    let find = || {
        let found = DRIVER.iter().find(|name| open(Path::new(name)));
        found.map(|name| Library { name: (*name).into() }).ok_or_else(|| {
            format!(
                "there is no NVIDIA driver ({} is not where the system looks for libraries); install the card's driver",
                DRIVER[DRIVER.len() - 1]
            )
        })
    };
    FOUND.get_or_init(find).as_ref().map_err(Clone::clone)
}

/// NVRTC, which compiles kernels.
///
/// # Errors
/// Where it was looked for, and how to get it.
pub fn nvrtc() -> Result<&'static Library, String> {
    static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
    FOUND.get_or_init(|| find(&NVRTC).and_then(has_all_that_is_called)).as_ref().map_err(Clone::clone)
}

/// What is called of NVRTC. The last of these came with 11.2.
const CALLED: &[&str] = &[
    "nvrtcVersion",
    "nvrtcGetErrorString",
    "nvrtcCreateProgram",
    "nvrtcDestroyProgram",
    "nvrtcCompileProgram",
    "nvrtcGetProgramLogSize",
    "nvrtcGetProgramLog",
    "nvrtcGetPTXSize",
    "nvrtcGetPTX",
    "nvrtcGetNumSupportedArchs",
    "nvrtcGetSupportedArchs",
    "nvrtcGetCUBINSize",
    "nvrtcGetCUBIN",
];

/// The library, if it is new enough: cudarc panics where it finds no function of a name.
fn has_all_that_is_called(found: Library) -> Result<Library, String> {
    // Safety: it is open already.
    let library = unsafe { libloading::Library::new(&found.name) }.map_err(|error| error.to_string())?;
    // Safety: functions are looked for, and called below by the type that they have had since there were any.
    let missing = CALLED.iter().find(|name| unsafe { library.get::<unsafe extern "C" fn()>(name.as_bytes()) }.is_err());
    let Some(missing) = missing else { return Ok(found) };
    type Version = unsafe extern "C" fn(*mut i32, *mut i32) -> i32;
    let (mut major, mut minor) = (0, 0);
    // Safety: as above; it writes two numbers.
    let asked = unsafe { library.get::<Version>(b"nvrtcVersion").map(|ask| ask(&raw mut major, &raw mut minor)) };
    let version = if asked.is_ok_and(|status| status == 0) { format!(" {major}.{minor}") } else { String::new() };
    Err(format!(
        "NVRTC{version} ({}) has no `{missing}`, and 11.2 or newer is needed, 12 or newer for Hopper; install a newer CUDA \
         toolkit, or `pip install nvidia-cuda-nvrtc` in the Python environment that is active and take the old one off the \
         system's paths",
        found.name
    ))
}

/// cuBLASLt, which computes products.
///
/// # Errors
/// Where it was looked for, and how to get it.
pub fn cublaslt() -> Result<&'static Library, String> {
    static FOUND: OnceLock<Result<Library, String>> = OnceLock::new();
    FOUND.get_or_init(|| find(&CUBLASLT)).as_ref().map_err(Clone::clone)
}

fn find(wanted: &Wanted) -> Result<Library, String> {
    let Wanted { what, names, half, package } = wanted;
    if let Some(name) = names.iter().find(|name| open(Path::new(name))) {
        return Ok(Library { name: (*name).into() });
    }
    let folders = folders();
    for folder in &folders {
        let half = |path: &&PathBuf| half.is_some_and(|half| file_name(path).starts_with(half));
        let files = files(folder);
        files.iter().filter(half).for_each(|path| {
            open(path);
        });
        // The names end in versions: the last is the newest.
        let whole = |path: &&PathBuf| names.iter().any(|name| file_name(path).starts_with(name));
        if let Some(path) = files.iter().rev().filter(whole).find(|path| open(path)) {
            return Ok(Library { name: path.display().to_string() });
        }
    }
    let looked: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
    let looked = if looked.is_empty() { String::new() } else { format!(", nor in {}", looked.join(", ")) };
    Err(format!(
        "there is no {what} ({} is not where the system looks for libraries{looked}); install the CUDA toolkit and set \
         CUDA_HOME, or `pip install {package}` in the Python environment that is active",
        names[names.len() - 1]
    ))
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(|name| name.to_str()).unwrap_or_default()
}

/// What lies in a folder, in order of names; nothing if there is none.
fn files(folder: &Path) -> Vec<PathBuf> {
    let mut files: Vec<PathBuf> =
        std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

/// Folders beyond the system's that may hold a library: of the toolkit, and of packages in Python environments.
fn folders() -> Vec<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let mut toolkits: Vec<PathBuf> = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(variable).collect();
    toolkits.push("/usr/local/cuda".into());
    let mut folders: Vec<PathBuf> =
        toolkits.iter().flat_map(|toolkit| ["lib64", "lib", "bin"].map(|lib| toolkit.join(lib))).collect();
    let mut prefixes: Vec<PathBuf> = ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(variable).collect();
    prefixes.extend(python_prefixes());
    folders.extend(prefixes.iter().flat_map(|prefix| packages(prefix)));
    let mut seen = BTreeSet::new();
    folders.retain(|folder| folder.is_dir() && seen.insert(folder.clone()));
    folders
}

/// Where the `python3` of the path lives, which is not run for that.
fn python_prefixes() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path).map(|folder| folder.join("python3")).find(|program| program.is_file());
    let Some(program) = found else { return Vec::new() };
    let real = program.canonicalize().unwrap_or_else(|_| program.clone());
    [program, real].iter().filter_map(|program| Some(program.parent()?.parent()?.to_path_buf())).collect()
}

/// The folders of libraries of NVIDIA's packages under a prefix: `nvidia/cuda_nvrtc/lib`, or `nvidia/cu13/lib`.
fn packages(prefix: &Path) -> Vec<PathBuf> {
    let versions = |lib: &str| files(&prefix.join(lib));
    let pythons = ["lib", "local/lib"].into_iter().flat_map(versions);
    let pythons = pythons.filter(|folder| file_name(folder).starts_with("python3"));
    let sites = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|site| python.join(site)));
    let mut folders: Vec<PathBuf> = sites.flat_map(|site| files(&site.join("nvidia"))).collect();
    // Newer packages are named by the version of CUDA and hold everything; they come first.
    folders.sort_by_key(|folder| !file_name(folder).starts_with("cu1"));
    folders.iter().map(|folder| folder.join("lib")).collect()
}

/// Opens a library and keeps it open; whether that worked.
fn open(name: &Path) -> bool {
    // Safety: these are NVIDIA's libraries, by their names; what they do when loaded is what every user of them asks for.
    match unsafe { libloading::Library::new(name) } {
        Ok(library) => {
            std::mem::forget(library);
            true
        }
        Err(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packages_are_found_by_folder() {
        let prefix = tempfile::tempdir().unwrap();
        let site = prefix.path().join("lib/python3.12/site-packages/nvidia");
        for package in ["cuda_nvrtc/lib", "cublas/lib", "cu13/lib"] {
            std::fs::create_dir_all(site.join(package)).unwrap();
        }
        let expected = ["cu13/lib", "cublas/lib", "cuda_nvrtc/lib"].map(|package| site.join(package));
        assert_eq!(packages(prefix.path()), expected);
        assert_eq!(packages(&prefix.path().join("nowhere")), Vec::<PathBuf>::new());
    }
}
