//! The C++ compiler of the machine, and the emulator's libraries by it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The folder of the emulator's own sources.
pub(super) const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/cuda_emulator");

/// How texts are compiled: every access is seen, and misaligned ones. Without reordering, an array's neighbours are the bytes that
/// belong to none; without contraction, results do not depend on the processor.
pub(super) const KERNEL_FLAGS: &[&str] = &[
    "-std=c++17",
    "-O1",
    "-g1",
    "-w",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-toplevel-reorder",
    "-fsanitize=thread,alignment",
    "-ffp-contract=off",
    "-fno-exceptions",
];

/// The first C++ compiler of this machine, by the names that people have for it.
pub(super) fn compiler() -> Option<&'static str> {
    ["c++", "g++", "clang++"].into_iter().find(|name| {
        let asked = Command::new(name).arg("--version").output();
        asked.is_ok_and(|asked| asked.status.success())
    })
}

/// Runs a compiler.
///
/// # Errors
/// What it said.
pub(super) fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&ran.stderr)))
}

/// Runs commands, as many at a time as the machine has cores.
pub(super) fn run_all(commands: Vec<Command>) -> Result<(), String> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let queue = Mutex::new(commands.into_iter());
    let failed = Mutex::new(None);
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                loop {
                    let next = queue.lock().expect("no worker panics").next();
                    let Some(mut command) = next else { return };
                    if let Err(why) = run(&mut command) {
                        failed.lock().expect("no worker panics").get_or_insert(why);
                    }
                }
            });
        }
    });
    failed.into_inner().expect("no worker panics").map_or(Ok(()), Err)
}

/// The emulator with some more parts as a library with this name.
pub(super) fn library(compiler: &str, folder: &Path, name: &str, more: &[&str]) -> Result<PathBuf, String> {
    let mut parts = vec!["machine", "memory", "warp", "modules", "reports"];
    parts.extend(more);
    let objects = objects(compiler, folder, &parts, &[])?;
    link(compiler, folder, name, &objects)
}

/// Compiles parts of the emulator.
pub(super) fn objects(
    compiler: &str,
    folder: &Path,
    parts: &[&str],
    defined: &[String],
) -> Result<Vec<PathBuf>, String> {
    let object = |part: &&str| folder.join(format!("{part}.o"));
    let compile = |part: &&str| {
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-c"]);
        command.args(defined).arg(Path::new(SOURCES).join(format!("{part}.cpp"))).arg("-o").arg(object(part));
        command
    };
    run_all(parts.iter().map(compile).collect())?;
    Ok(parts.iter().map(object).collect())
}

/// Links a library.
pub(super) fn link(compiler: &str, folder: &Path, name: &str, objects: &[PathBuf]) -> Result<PathBuf, String> {
    let library = folder.join(name);
    let mut link = Command::new(compiler);
    link.args(["-shared", &format!("-Wl,-soname,{name}"), "-o"]).arg(&library);
    run(link.args(objects).arg("-ldl"))?;
    Ok(library)
}
