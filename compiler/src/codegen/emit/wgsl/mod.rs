//! WGSL from kernel loops.
//!
//! Contract of the text:
//! - Operand `i` is `p{i}`, at `@group(0) @binding(i)`, all `read_write` (a buffer cannot be bound read-only and writable in
//!   one dispatch, and operands may be slices of one segment). Bool is stored as u32; of bytes four lie in a u32, the first in
//!   its lowest bits, and what is bound reaches to the end of the last.
//! - Work is numbered linearly and folded over two dispatch dimensions, since each is limited.
//! - Transcendental functions are our own (`prelude`): WGSL allows built-in ones errors far above our bounds.
//! - Infinities and NaN are never literals (naga refuses them); they are made from bits at run time.
//! - Sums run in an order fixed by the text: strided partial sums, then a tree.
//! - The number of loop iterations a thread may take is known and goes into the plan: every loop is opened by `repeat`.
//!
//! Every shader is validated with naga when it is emitted; a failure here is a bug of the compiler, reported as such.

mod archetypes;
mod attention;
mod code;
mod prelude;
mod reduction;

use std::fmt::Write;

use alip_plan::kernel::{Implementation, Loop};
use alip_plan::{DType, Target, Tiles};

use super::EmitError;

/// The shader of a loop for a target, validated.
///
/// # Errors
/// A target without generated kernels, more operands than it binds, more work than it dispatches, a storage type it lacks, or
/// text that naga refuses.
pub fn emit(kernel: &Loop, target: &Target) -> Result<Implementation, EmitError> {
    let tiles = target.tiles.ok_or_else(|| EmitError(format!("target {} has no generated kernels", target.name)))?;
    let mut shader = Shader::new(target, tiles);
    archetypes::emit(kernel, &mut shader)?;
    let iterations = shader.iterations;
    let (source, workgroups) = shader.finish()?;
    validate(&source)?;
    Ok(Implementation::Wgsl { source, workgroups, iterations })
}

/// A shader under construction.
struct Shader<'t> {
    target: &'t Target,
    tiles: Tiles,
    operands: Vec<Option<DType>>,
    functions: prelude::Functions,
    /// Module-scope declarations: workgroup memory, helper functions of this kernel.
    globals: String,
    body: String,
    indent: usize,
    /// Loops that are open: the indent of their body, and how often they go round.
    loops: Vec<(usize, u64)>,
    /// Iterations of all loops together that a thread may take.
    iterations: u64,
    workgroup_size: u32,
    workgroups: u64,
}

impl<'t> Shader<'t> {
    fn new(target: &'t Target, tiles: Tiles) -> Shader<'t> {
        Shader {
            target,
            tiles,
            operands: Vec::new(),
            functions: prelude::Functions::default(),
            globals: String::new(),
            body: String::new(),
            indent: 1,
            loops: Vec::new(),
            iterations: 0,
            workgroup_size: target.workgroup_size,
            workgroups: 0,
        }
    }

    /// One line of the body at the current indent.
    fn line(&mut self, text: impl AsRef<str>) {
        let text = text.as_ref();
        if text.starts_with('}') {
            self.indent -= 1;
            self.loops.retain(|(body, _)| *body <= self.indent);
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

    /// Ends the threads, or calls, for which a number is beyond the last of so many.
    fn leave_beyond(&mut self, bounds: &[(&str, u64)]) {
        let beyond: Vec<String> = bounds.iter().map(|(name, count)| format!("{name} >= {count}u")).collect();
        self.line(format!("if ({}) {{ return; }}", beyond.join(" || ")));
    }

    /// Opens a loop that goes round at most `trips` times.
    fn repeat(&mut self, head: &str, trips: u64) {
        self.count(trips);
        self.line(format!("{head} {{"));
        self.loops.push((self.indent, trips));
    }

    /// Opens the loop of `name` from 0 to below `limit`.
    fn count_to(&mut self, name: &str, limit: u64) {
        self.repeat(&format!("for (var {name} = 0u; {name} < {limit}u; {name}++)"), limit);
    }

    /// Takes note of a loop that is written here.
    fn count(&mut self, trips: u64) {
        self.iterations += self.loops.iter().map(|(_, trips)| trips).product::<u64>() * trips;
    }

    /// Moves the lines written since `mark` out of the body, to become a helper function.
    fn take_since(&mut self, mark: usize) -> String {
        self.body.split_off(mark)
    }

    /// Declares an operand; its storage type is that of the first view of it.
    fn operand(&mut self, index: u16, dtype: DType) -> Result<(), EmitError> {
        if !matches!(dtype, DType::F32 | DType::I32 | DType::Bool | DType::U8) {
            return Err(EmitError(format!("target {}: storage in {dtype} is not built yet", self.target.name)));
        }
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

    /// Sets the work: `count` workgroups of `size` threads.
    fn launch(&mut self, count: u64, size: u32) {
        self.workgroups = count;
        self.workgroup_size = size;
    }

    /// The fold of the linear workgroup number over two dimensions.
    fn dispatch(&self) -> Result<[u32; 3], EmitError> {
        let limit = u64::from(self.target.max_workgroups);
        let x = self.workgroups.clamp(1, limit);
        let y = self.workgroups.div_ceil(x).max(1);
        if y > limit {
            return Err(EmitError(format!(
                "target {}: {} workgroups are more than two dispatch dimensions of {limit} hold; use a smaller batch",
                self.target.name, self.workgroups
            )));
        }
        Ok([x as u32, y as u32, 1])
    }

    fn finish(self) -> Result<(String, [u32; 3]), EmitError> {
        if self.operands.len() > self.target.max_operands as usize {
            return Err(EmitError(format!(
                "target {}: a kernel has {} operands, the limit is {}",
                self.target.name,
                self.operands.len(),
                self.target.max_operands
            )));
        }
        let workgroups = self.dispatch()?;
        let mut text = String::new();
        for (index, dtype) in self.operands.iter().enumerate() {
            // An operand that no view names still has its place in the bind group.
            let ty = storage_type(dtype.unwrap_or(DType::F32));
            let _ = writeln!(text, "@group(0) @binding({index}) var<storage, read_write> p{index}: array<{ty}>;");
        }
        text.push_str("// Always 0; the compiler must not know, so that infinities can be made from bits.\n");
        text.push_str("var<private> zero: u32;\n");
        text.push_str(&self.functions.text());
        text.push_str(&self.globals);
        let _ = write!(
            text,
            "@compute @workgroup_size({size})\nfn main(@builtin(workgroup_id) group: vec3<u32>, @builtin(local_invocation_index) lane: u32) {{\n  \
             zero = group.z;\n  let work = group.y * {x}u + group.x;\n{body}}}\n",
            size = self.workgroup_size,
            x = workgroups[0],
            body = self.body,
        );
        Ok((text, workgroups))
    }
}

fn storage_type(dtype: DType) -> &'static str {
    match dtype {
        DType::I32 => "i32",
        DType::Bool | DType::U8 => "u32",
        DType::F32 | DType::Bf16 | DType::F16 => "f32",
    }
}

/// Parses and validates a shader.
///
/// # Errors
/// What naga says, with the line.
pub fn validate(source: &str) -> Result<(), EmitError> {
    let module = naga::front::wgsl::parse_str(source)
        .map_err(|error| EmitError(format!("emitted WGSL does not parse: {}", error.emit_to_string(source))))?;
    naga::valid::Validator::new(naga::valid::ValidationFlags::all(), naga::valid::Capabilities::empty())
        .validate(&module)
        .map_err(|error| EmitError(format!("emitted WGSL is not valid: {}", error.emit_to_string(source))))?;
    Ok(())
}

#[cfg(test)]
mod tests;
