//! Stand-ins of NVIDIA's driver, NVRTC and cuBLASLt on top of the emulator, for programs that load them by name.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use super::compiler::{self, KERNEL_FLAGS, SOURCES};

/// Folders with libraries as a system has them.
pub struct StandIn {
    whole: tempfile::TempDir,
    /// With the driver and without NVRTC.
    driver_only: tempfile::TempDir,
    /// With all but cuBLASLt.
    without_products: tempfile::TempDir,
    /// With the driver and an NVRTC that is too old.
    old: tempfile::TempDir,
}

impl StandIn {
    /// The stand-ins, made once for a process; none on a machine without a C++ compiler.
    ///
    /// # Panics
    /// They do not compile.
    pub fn get() -> Option<&'static StandIn> {
        static STAND_IN: OnceLock<Option<StandIn>> = OnceLock::new();
        let make = || {
            let compiler = compiler::compiler()?;
            Some(StandIn::build(compiler).unwrap_or_else(|why| panic!("the stand-ins: {why}")))
        };
        STAND_IN.get_or_init(make).as_ref()
    }

    fn build(compiler: &str) -> Result<StandIn, String> {
        let folder = || tempfile::tempdir().map_err(|error| error.to_string());
        let (whole, driver_only, without_products, old) = (folder()?, folder()?, folder()?, folder()?);
        let driver = compiler::library(compiler, whole.path(), DRIVER, &["driver"])?;
        let defined = [
            format!("-DALIP_COMPILER=\"{compiler}\""),
            format!("-DALIP_SOURCES=\"{SOURCES}\""),
            format!("-DALIP_KERNEL_FLAGS=\"{}\"", KERNEL_FLAGS.join(" ")),
        ];
        let nvrtc = compiler::objects(compiler, whole.path(), &["nvrtc"], &defined)?;
        let nvrtc = compiler::link(compiler, whole.path(), NVRTC, &nvrtc)?;
        let mut products = compiler::objects(compiler, whole.path(), &["cublaslt"], &[])?;
        products.push(driver.clone());
        compiler::link(compiler, whole.path(), "libcublasLt.so.12", &products)?;
        for (library, folder, name) in
            [(&driver, &driver_only, DRIVER), (&driver, &without_products, DRIVER), (&nvrtc, &without_products, NVRTC)]
        {
            std::fs::copy(library, folder.path().join(name)).map_err(|error| error.to_string())?;
        }
        let too_old = [&defined[..], &["-DALIP_OLD_NVRTC".to_string()]].concat();
        let nvrtc = compiler::objects(compiler, old.path(), &["nvrtc"], &too_old)?;
        compiler::link(compiler, old.path(), NVRTC, &nvrtc)?;
        std::fs::copy(&driver, old.path().join(DRIVER)).map_err(|error| error.to_string())?;
        Ok(StandIn { whole, driver_only, without_products, old })
    }

    /// Lets a child process find all of them.
    pub fn give<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        give(self.whole.path(), command)
    }

    /// Lets a child process find the driver only.
    pub fn give_driver<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        give(self.driver_only.path(), command)
    }

    /// Lets a child process find all but cuBLASLt.
    pub fn give_without_products<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        give(self.without_products.path(), command)
    }

    /// Lets a child process find the driver and an NVRTC that is too old.
    pub fn give_old<'c>(&self, command: &'c mut Command) -> &'c mut Command {
        give(self.old.path(), command)
    }

    /// Where NVRTC is, to put it elsewhere.
    pub fn nvrtc(&self) -> PathBuf {
        self.whole.path().join(NVRTC)
    }
}

const NVRTC: &str = "libnvrtc.so.12";

const DRIVER: &str = "libcuda.so.1";

/// No library of the machine itself is found beside those in the folder, and nothing is kept where users have it.
fn give<'c>(folder: &Path, command: &'c mut Command) -> &'c mut Command {
    command.env("LD_LIBRARY_PATH", folder).env("XDG_CACHE_HOME", folder.join("cache"));
    for variable in ["CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV", "CONDA_PREFIX"] {
        command.env_remove(variable);
    }
    command
}
