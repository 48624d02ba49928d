//! From texts to a library of kernels for the emulator.

use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use super::compiler::{KERNEL_FLAGS, SOURCES, run, run_all};

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

/// Kernels of one translation unit: the header is most of the work for fewer, and more leave cores idle.
const TEXTS_PER_UNIT: usize = 12;

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
        command.args(KERNEL_FLAGS).arg("-c");
        command.arg(&source).arg("-o").arg(&object);
        commands.push(command);
        objects.push(object);
    }
    run_all(commands)?;
    let mut link = Command::new(compiler);
    run(link.args(["-shared", "-o"]).arg(library).args(objects).arg(emulator))
}
