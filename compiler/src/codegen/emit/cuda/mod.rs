//! CUDA C++ from kernel loops, for NVRTC; products that cuBLASLt has with all that follows them are calls of it instead.
//!
//! Contract of the text:
//! - It is self-contained: no header, no macro. All but the entry is `static`, so that several texts become one translation unit,
//!   each in a namespace of its own; the entry's name is made from the text, so that no two texts share one.
//! - Operand `i` is the pointer `p{i}`, to a multiple of the target's alignment. Bool lies in 32 bits, a byte in 8, bf16 and f16 in
//!   16 (`unsigned short`); in registers all floats are f32, and a cast to 16 bits rounds there.
//! - Elements are numbered with 32 bits; what is bound has no more.
//! - Where a view's strides and offset are multiples of a vector, its elements are read and written several at a time.
//! - Sums run in an order fixed by the text; there are no atomics.
//! - Instructions that C++ has no word for are a few named primitives (`prelude`): the only place with PTX. Each stands between
//!   `#ifndef ALIP_EMULATOR` and `#endif`, so that whoever runs the text on a processor brings their own.
//! - Functions are those of CUDA's library without fast-math, whose errors are documented (at most 4 units in the last place).

mod attention;
mod code;
mod conv;
mod flash;
mod map;
mod matrix;
mod prelude;
mod product;
mod reduction;
mod scatter;
mod tensor;
mod tiles;

use std::collections::BTreeSet;
use std::fmt::Write;

use alip_plan::kernel::{Implementation, Loop, View};
use alip_plan::library::Matmul;
use alip_plan::{DType, Target, Tiles};

use super::EmitError;

/// Where the name of the entry will stand: it is made from the text around it.
const ENTRY: &str = "ENTRY";

/// The kernel of a loop for a target.
///
/// # Errors
/// A target without generated kernels, more operands than a kernel takes, or more work than a grid holds.
pub fn emit(kernel: &Loop, target: &Target) -> Result<Implementation, EmitError> {
    if is_call(kernel, target) {
        return Ok(Implementation::CublasLt);
    }
    let tiles = target.tiles.ok_or_else(|| EmitError(format!("target {} has no generated kernels", target.name)))?;
    let mut text = Text::new(target, tiles, kernel.written());
    match kernel {
        Loop::Map(map) => map::emit(map, &mut text)?,
        Loop::Reduction(reduction) => reduction::emit(reduction, &mut text)?,
        Loop::Product(product) => product::emit(product, &mut text)?,
        Loop::Conv2d(conv) => conv::emit(conv, &mut text)?,
        Loop::ScatterAdd(scatter) => scatter::emit(scatter, &mut text)?,
        Loop::Attention(attention) if flash::serves(attention) => flash::emit(attention, &mut text)?,
        Loop::Attention(attention) => attention::emit(attention, &mut text)?,
    }
    text.finish()
}

/// Whether the target has a library that computes this.
fn is_call(kernel: &Loop, target: &Target) -> bool {
    matches!(kernel, Loop::Product(product) if target.library.is_some() && Matmul::of(product).is_ok())
}

/// A kernel under construction.
struct Text<'t> {
    target: &'t Target,
    tiles: Tiles,
    operands: Vec<Option<DType>>,
    written: BTreeSet<u16>,
    functions: prelude::Functions,
    /// Helper functions of this kernel.
    globals: String,
    /// Shared arrays, declared where the kernel begins.
    shared: String,
    body: String,
    indent: usize,
    block: u32,
    blocks: u64,
    /// Whether registers come before the number of blocks that a unit of the card holds at a time.
    roomy: bool,
}

impl<'t> Text<'t> {
    fn new(target: &'t Target, tiles: Tiles, written: Vec<u16>) -> Text<'t> {
        Text {
            target,
            tiles,
            operands: Vec::new(),
            written: written.into_iter().collect(),
            functions: prelude::Functions::default(),
            globals: String::new(),
            shared: String::new(),
            body: String::new(),
            indent: 1,
            block: target.workgroup_size,
            blocks: 0,
            roomy: false,
        }
    }

    /// One line of the body at the current indent.
    fn line(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        if text.starts_with('}') {
            self.indent -= 1;
        }
        for _ in 0..self.indent {
            self.body.push_str("  ");
        }
        self.body.push_str(text);
        self.body.push('\n');
        if text.ends_with('{') {
            self.indent += 1;
        }
    }

    /// Several lines.
    fn lines(&mut self, text: &str) {
        text.lines().map(str::trim).filter(|line| !line.is_empty()).for_each(|line| self.line(line));
    }

    /// Declares a number without sign.
    fn unsigned(&mut self, name: &str, value: impl AsRef<str>) {
        self.line(format!("const unsigned {name} = {};", value.as_ref()));
    }

    /// A shared array.
    fn share(&mut self, declaration: impl AsRef<str>) {
        let _ = writeln!(self.shared, "  __shared__ {};", declaration.as_ref());
    }

    /// Opens the loop of `name` from 0 to below `limit`, unrolled if it is short.
    fn count_to(&mut self, name: &str, limit: u64) {
        self.line(format!("for (unsigned {name} = 0u; {name} < {limit}u; {name}++) {{"));
    }

    /// Moves the lines written since `mark` out of the body, to become a helper function.
    fn take_since(&mut self, mark: usize) -> String {
        self.body.split_off(mark)
    }

    /// Declares an operand; its storage type is that of the first view of it.
    fn operand(&mut self, index: u16, dtype: DType) -> Result<(), EmitError> {
        let index = usize::from(index);
        if self.operands.len() <= index {
            self.operands.resize(index + 1, None);
        }
        match self.operands[index] {
            Some(other) if other != dtype => {
                Err(EmitError(format!("operand {index} is read as {other} and as {dtype}")))
            }
            _ => {
                self.operands[index] = Some(dtype);
                Ok(())
            }
        }
    }

    /// Declares the operands of views.
    fn operands<'v>(&mut self, views: impl IntoIterator<Item = &'v View>) -> Result<(), EmitError> {
        views.into_iter().try_for_each(|view| self.operand(view.operand, view.dtype))
    }

    /// Sets the work: `count` blocks of `size` threads.
    fn launch(&mut self, count: u64, size: u32) {
        self.blocks = count;
        self.block = size;
    }

    /// A thread per item: declares `name` and leaves when it is beyond `count`.
    fn thread_per(&mut self, name: &str, count: u64) -> Result<(), EmitError> {
        if count > u64::from(u32::MAX) {
            return Err(EmitError(format!(
                "{count} points in one kernel are more than 32 bits number; use a smaller batch"
            )));
        }
        let size = self.target.workgroup_size;
        self.launch(count.div_ceil(u64::from(size)), size);
        self.unsigned(name, format!("blockIdx.x * {size}u + threadIdx.x"));
        self.line(format!("if ({name} >= {count}u) return;"));
        Ok(())
    }

    /// The parameter of an operand. Those that are not written are read through the read-only cache.
    fn parameter(&self, index: usize) -> String {
        // An operand that no view names still has its place.
        let ty = storage_type(self.operands[index].unwrap_or(DType::F32));
        let constant = if self.written.contains(&(index as u16)) { "" } else { "const " };
        format!("{constant}{ty}* __restrict__ p{index}")
    }

    fn finish(self) -> Result<Implementation, EmitError> {
        let (target, most) = (&self.target.name, self.target.max_operands as usize);
        if self.operands.len() > most {
            let count = self.operands.len();
            return Err(EmitError(format!("target {target}: a kernel has {count} operands, the limit is {most}")));
        }
        if self.blocks > u64::from(self.target.max_workgroups) {
            return Err(EmitError(format!(
                "target {target}: {} blocks are more than a grid holds; use a smaller batch",
                self.blocks
            )));
        }
        let parameters: Vec<String> = (0..self.operands.len()).map(|index| self.parameter(index)).collect();
        let text = format!(
            "{}{}extern \"C\" __global__ void __launch_bounds__({}{}) {ENTRY}({}) {{\n{}{}}}\n",
            self.functions.text(),
            self.globals,
            self.block,
            if self.roomy { ", 1" } else { "" },
            parameters.join(", "),
            self.shared,
            self.body,
        );
        let entry = format!("alip_{:032x}", fingerprint(&text));
        Ok(Implementation::Cuda {
            source: text.replace(&format!(" {ENTRY}("), &format!(" {entry}(")),
            entry,
            grid: [self.blocks.max(1) as u32, 1, 1],
            block: self.block,
            shared_bytes: 0,
        })
    }
}

/// FNV-1a of 128 bits: the same on every machine and with every compiler.
fn fingerprint(text: &str) -> u128 {
    const BASIS: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    text.bytes().fold(BASIS, |hash, byte| (hash ^ u128::from(byte)).wrapping_mul(PRIME))
}

/// The type of an element in memory.
fn storage_type(dtype: DType) -> &'static str {
    match dtype {
        DType::F32 => "float",
        DType::I32 => "int",
        DType::Bool => "unsigned",
        DType::U8 => "unsigned char",
        DType::Bf16 | DType::F16 => "unsigned short",
    }
}

/// The type of a value in registers.
fn register_type(dtype: DType) -> &'static str {
    match dtype {
        DType::I32 => "int",
        DType::Bool => "bool",
        DType::F32 | DType::Bf16 | DType::F16 | DType::U8 => "float",
    }
}
