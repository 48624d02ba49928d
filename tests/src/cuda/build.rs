//! From texts to libraries: the emulator itself and the kernels that it runs, by the C++ compiler of the machine.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// A kernel's text, as `Implementation::Cuda` holds it.
#[derive(Clone, Copy, Debug)]
pub struct Text<'a> {
    /// Self-contained CUDA C.
    pub source: &'a str,
    /// The name of its entry, unique among texts.
    pub entry: &'a str,
    /// Threads of a block.
    pub block: u32,
    /// Bytes of the array that the text declares as `extern __shared__`; 0 where it declares none.
    pub shared_bytes: u32,
}

/// The folder of the emulator's own sources.
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda_emulator");

/// Kernels of one translation unit: the header is most of the work for fewer, and more leave cores idle.
const TEXTS_PER_UNIT: usize = 12;

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
fn run(command: &mut Command) -> Result<(), String> {
    let ran = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if ran.status.success() {
        return Ok(());
    }
    Err(format!("{command:?}:\n{}", String::from_utf8_lossy(&ran.stderr)))
}

/// Runs commands, as many at a time as the machine has cores.
fn run_all(commands: Vec<Command>) -> Result<(), String> {
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

/// The emulator as a library in `folder`.
pub(super) fn emulator(compiler: &str, folder: &Path) -> Result<PathBuf, String> {
    let parts = ["machine", "memory", "warp", "modules", "reports"];
    let object = |part: &str| folder.join(format!("{part}.o"));
    let compile = |part: &&str| {
        let mut command = Command::new(compiler);
        command.args(["-std=c++17", "-O2", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra", "-Werror", "-c"]);
        command.arg(Path::new(SOURCES).join(format!("{part}.cpp"))).arg("-o").arg(object(part));
        command
    };
    run_all(parts.iter().map(compile).collect())?;
    let library = folder.join("libalip_emulator.so");
    let mut link = Command::new(compiler);
    link.args(["-shared", "-Wl,-soname,libalip_emulator.so", "-o"]).arg(&library);
    run(link.args(parts.map(object)).arg("-ldl"))?;
    Ok(library)
}

/// The text as C++: memory of a size known only at launch becomes an array of that size.
fn as_cpp(text: &Text) -> String {
    const DYNAMIC: &str = "extern __shared__";
    let mut source = text.source.replace("static __shared__", "__shared__");
    while let Some(start) = source.find(DYNAMIC) {
        source.replace_range(start..start + DYNAMIC.len(), "__shared__ __align__(16)");
        if let Some(brackets) = source[start..].find("[]") {
            source.replace_range(start + brackets..start + brackets + 2, &format!("[{}]", text.shared_bytes));
        }
    }
    source
}

/// One translation unit of several kernels, each in a namespace and with shared memory in a section of its own.
fn unit(texts: &[Text], first: usize) -> String {
    let mut unit = format!("#include \"{SOURCES}/device.h\"\n");
    for (index, text) in (first..).zip(texts) {
        let Text { entry, block, .. } = text;
        let _ = write!(
            unit,
            "#undef ALIP_SHARED\n#define ALIP_SHARED \"alip_shared_{index}\"\n\
             extern \"C\" __attribute__((weak, visibility(\"hidden\"))) unsigned char \
             __start_alip_shared_{index}[], __stop_alip_shared_{index}[];\n\
             namespace n{index} {{\n#line 1 \"{entry}\"\n{}\n\
             __shared__ unsigned char alip_redzone_last[512];\n}}\n\
             extern \"C\" __attribute__((visibility(\"default\"))) const AlipKernel alip_kernel_{entry};\n\
             const AlipKernel alip_kernel_{entry} = {{\"{entry}\", \
             [](void** operands) {{ alip_call(&n{index}::{entry}, operands); }}, \
             __start_alip_shared_{index}, __stop_alip_shared_{index}, alip_operands(&n{index}::{entry}), {block}}};\n",
            as_cpp(text)
        );
    }
    unit
}

/// A library of kernels, linked to the emulator, under a name that no other has.
pub(super) fn kernels(compiler: &str, emulator: &Path, texts: &[Text], library: &Path) -> Result<(), String> {
    let mut commands = Vec::new();
    let mut objects = Vec::new();
    for (number, texts) in texts.chunks(TEXTS_PER_UNIT).enumerate() {
        let source = library.with_extension(format!("{number}.cpp"));
        let object = source.with_extension("o");
        std::fs::write(&source, unit(texts, number * TEXTS_PER_UNIT)).map_err(|error| error.to_string())?;
        let mut command = Command::new(compiler);
        // Without reordering, an array's neighbours are the bytes that belong to none; what is one access in the text stays one.
        command.args(["-std=c++17", "-O1", "-g1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-toplevel-reorder"]);
        command.args(["-fsanitize=thread,alignment", "-ffp-contract=off", "-fno-exceptions", "-c"]);
        command.arg(&source).arg("-o").arg(&object);
        commands.push(command);
        objects.push(object);
    }
    run_all(commands)?;
    let mut link = Command::new(compiler);
    run(link.args(["-shared", "-o"]).arg(library).args(objects).arg(emulator))
}
