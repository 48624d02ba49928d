//! Reductions: a warp or a block holds a row, a block holds several rows whose elements lie side by side, or a thread a short row.

use std::collections::BTreeSet;

use alip_plan::DType;
use alip_plan::kernel::{Code, Instr, Lanes, Reduce, ReduceKind, Reduction, ScalarOp, Stage};

use super::super::terms::register_dtype;
use super::code::{self, Scope};
use super::{EmitError, Text, register_type};

/// Threads that run in step, and exchange registers.
const WARP: u64 = 32;
/// The longest row of one warp: longer ones keep a block busy.
const WARP_ROW: u64 = 1024;
/// Rows of at least so many elements for each of a block's threads get a larger block.
const LONG: u64 = 16;
/// Index of a largest element before there is one: loses against every other.
const NO_INDEX: &str = "2147483647";

pub(super) fn emit(reduction: &Reduction, text: &mut Text<'_>) -> Result<(), EmitError> {
    let share = Share::of(reduction, text);
    share.begin(text, reduction.kept.iter().product())?;
    let kept = code::unravel(text, "row", &reduction.kept, "c");
    // What holds a slot's value: each stage that sets it names a new one.
    let mut slots = vec![String::new(); usize::from(reduction.slots)];
    for (index, stage) in reduction.stages.iter().enumerate() {
        let later = reduction.stages.get(index + 1..).unwrap_or_default();
        match stage {
            Stage::Row { code, slots: set } => {
                let values = row_stage(reduction, index, code, &kept, &slots, share, text)?;
                for (value, slot) in set {
                    let ty = register_type(register_dtype(code, *value));
                    text.line(format!("const {ty} s{slot}_{index} = {};", values[usize::from(*value)]));
                    slots[usize::from(*slot)] = format!("s{slot}_{index}");
                }
            }
            Stage::Points { code, reduce } => {
                PointsStage { reduction, index, kept: &kept, share, code }.emit(text, reduce, &slots)?;
                for item in reduce {
                    slots[usize::from(item.slot)] = format!("s{}_{index}", item.slot);
                }
            }
        }
        if let Some(barrier) = share.barrier().filter(|_| meet(reduction, stage, later)) {
            text.line(barrier);
        }
    }
    Ok(())
}

/// Whether a stage and one behind it may touch an element in different threads: one stores what the other reads.
fn meet(reduction: &Reduction, stage: &Stage, later: &[Stage]) -> bool {
    let operands = |stage: &Stage, stores: bool| -> BTreeSet<u16> {
        let of = |instr: &Instr| match instr.op {
            ScalarOp::Load(view) if !stores => Some(reduction.views[usize::from(view)].operand),
            ScalarOp::Store(view) if stores => Some(reduction.views[usize::from(view)].operand),
            _ => None,
        };
        stage.code().instrs.iter().filter_map(of).collect()
    };
    let (loads, stores) = (operands(stage, false), operands(stage, true));
    later.iter().any(|other| !stores.is_disjoint(&operands(other, false)) || !loads.is_disjoint(&operands(other, true)))
}

/// Runs code once per row: every thread of the row computes, one stores.
fn row_stage(
    reduction: &Reduction,
    index: usize,
    code: &Code,
    kept: &[String],
    slots: &[String],
    share: Share,
    text: &mut Text<'_>,
) -> Result<Vec<String>, EmitError> {
    let coords: Vec<String> = kept.iter().cloned().chain(reduction.reduced.iter().map(|_| "0u".to_string())).collect();
    let prefix = format!("r{index}_");
    let scope = Scope {
        slots,
        store_if: share.one(),
        barrier: share.barrier(),
        ..Scope::plain(&reduction.views, &coords, &prefix)
    };
    code::write(text, code, &scope)
}

/// How rows are shared out among threads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Share {
    /// A thread per row.
    Thread,
    /// A warp per row, some warps in a block.
    Warp,
    /// A block of so many warps per row.
    Block(u64),
    /// Neighbouring rows, one for each lane of a warp; so many warps take turns at their elements.
    Columns(u64),
}

impl Share {
    fn of(reduction: &Reduction, text: &Text<'_>) -> Share {
        let length: u64 = reduction.reduced.iter().product();
        let warps = u64::from(text.target.workgroup_size) / WARP;
        if length < text.tiles.short_row {
            return Share::Thread;
        }
        // A large block where a thread would go round often, if partial results of so many fit shared memory.
        let fits = |warps: &u64| warps * WARP * 4 * partial_results(reduction) <= text.tiles.workgroup_bytes;
        let sizes = [4 * warps, warps, warps / 2, warps / 4, 1];
        let long = |threads: u64| {
            let most = if length >= LONG * threads { 4 * warps } else { warps };
            sizes.into_iter().filter(|warps| *warps <= most).find(fits).unwrap_or(1)
        };
        match reduction.lanes {
            Lanes::Reduced if length <= WARP_ROW => Share::Warp,
            Lanes::Reduced => Share::Block(long(warps * WARP)),
            Lanes::Kept => Share::Columns(long(warps)),
        }
    }

    /// Threads that share a row.
    fn threads(self) -> u64 {
        match self {
            Share::Thread => 1,
            Share::Warp => WARP,
            Share::Block(warps) => warps * WARP,
            Share::Columns(warps) => warps,
        }
    }

    /// The condition that holds for one thread of a live row.
    fn one(self) -> Option<&'static str> {
        match self {
            Share::Thread => None,
            Share::Warp | Share::Block(_) => Some("part == 0u"),
            Share::Columns(_) => Some("live && part == 0u"),
        }
    }

    /// What orders accesses of the threads of a row.
    fn barrier(self) -> Option<&'static str> {
        match self {
            Share::Thread => None,
            Share::Warp => Some("__syncwarp();"),
            Share::Block(_) | Share::Columns(_) => Some("__syncthreads();"),
        }
    }

    /// Declares `row` and, for shared rows, `part`, the thread's number among those of its row; for columns `live`: those beyond the
    /// last repeat it, since all threads must reach the barriers, and store nothing.
    fn begin(self, text: &mut Text<'_>, rows: u64) -> Result<(), EmitError> {
        match self {
            Share::Thread => text.thread_per("row", rows)?,
            Share::Warp => {
                let warps = u64::from(text.target.workgroup_size) / WARP;
                text.launch(rows.div_ceil(warps), (warps * WARP) as u32);
                text.unsigned("row", format!("blockIdx.x * {warps}u + threadIdx.x / {WARP}u"));
                text.line(format!("if (row >= {rows}u) return;"));
                text.unsigned("part", format!("threadIdx.x % {WARP}u"));
            }
            Share::Block(warps) => {
                text.launch(rows, (warps * WARP) as u32);
                text.unsigned("row", "blockIdx.x");
                text.unsigned("part", "threadIdx.x");
            }
            Share::Columns(warps) => {
                text.launch(rows.div_ceil(WARP), (warps * WARP) as u32);
                text.unsigned("column", format!("blockIdx.x * {WARP}u + threadIdx.x % {WARP}u"));
                text.unsigned("row", format!("min(column, {}u)", rows.saturating_sub(1)));
                text.unsigned("part", format!("threadIdx.x / {WARP}u"));
                text.line("const bool live = row == column;");
            }
        }
        Ok(())
    }
}

/// Numbers of a thread that its block shares, of all reductions together.
fn partial_results(reduction: &Reduction) -> u64 {
    let of = |item: &Reduce| if item.kind == ReduceKind::ArgMax { 2 } else { 1 };
    let stages = reduction.stages.iter().map(|stage| match stage {
        Stage::Points { reduce, .. } => reduce.iter().map(of).sum(),
        Stage::Row { .. } => 0,
    });
    stages.sum()
}

struct PointsStage<'a> {
    reduction: &'a Reduction,
    index: usize,
    kept: &'a [String],
    share: Share,
    code: &'a Code,
}

impl PointsStage<'_> {
    fn dtype(&self, item: &Reduce) -> DType {
        register_dtype(self.code, item.value)
    }

    /// What the names of a reduction's variables end in.
    fn name(&self, item: &Reduce) -> String {
        format!("{}_{}", item.slot, self.index)
    }

    fn emit(&self, text: &mut Text<'_>, reduce: &[Reduce], slots: &[String]) -> Result<(), EmitError> {
        for item in reduce {
            let (name, dtype) = (self.name(item), self.dtype(item));
            text.line(format!("{} a{name} = {};", register_type(dtype), start(item.kind, dtype)));
            if item.kind == ReduceKind::ArgMax {
                text.line(format!("int i{name} = {NO_INDEX};"));
            }
        }
        let length: u64 = self.reduction.reduced.iter().product();
        let threads = self.share.threads();
        let first = match self.share {
            Share::Thread => "0u".into(),
            Share::Warp | Share::Block(_) => "part".into(),
            Share::Columns(_) => format!("(live ? part : {length}u)"),
        };
        text.line(format!("for (unsigned j = {first}; j < {length}u; j += {threads}u) {{"));
        let reduced = code::unravel(text, "j", &self.reduction.reduced, "d");
        let coords: Vec<String> = self.kept.iter().cloned().chain(reduced).collect();
        let prefix = format!("v{}_", self.index);
        let scope = Scope { slots, ..Scope::plain(&self.reduction.views, &coords, &prefix) };
        let values = code::write(text, self.code, &scope)?;
        for item in reduce {
            self.combine(text, item, &values[usize::from(item.value)], "(int)j");
        }
        text.line("}");
        for item in reduce {
            self.finish(text, item);
        }
        Ok(())
    }

    /// Joins the threads' partial results in an order that is always the same, and declares the slot for all of them.
    fn finish(&self, text: &mut Text<'_>, item: &Reduce) {
        let name = self.name(item);
        let arg = item.kind == ReduceKind::ArgMax;
        if matches!(self.share, Share::Warp | Share::Block(_)) {
            text.line(format!("for (unsigned step = {}u; step > 0u; step >>= 1) {{", WARP / 2));
            let other = |variable: &str| format!("__shfl_xor_sync(0xffffffffu, {variable}, step)");
            let ty = register_type(self.dtype(item));
            text.line(format!("const {ty} b = {};", other(&format!("a{name}"))));
            if arg {
                text.line(format!("const int at = {};", other(&format!("i{name}"))));
            }
            self.combine(text, item, "b", "at");
            text.line("}");
        }
        match self.share {
            Share::Block(warps) => {
                let first_lane = format!("if (threadIdx.x % {WARP}u == 0u) ");
                self.gather(text, item, warps, 1, &first_lane, ["threadIdx.x / 32u", "0u"]);
            }
            Share::Columns(warps) => {
                self.gather(text, item, warps, WARP, "", ["threadIdx.x", "threadIdx.x % 32u"]);
            }
            Share::Thread | Share::Warp => {}
        }
        let ty = if arg { "int" } else { register_type(self.dtype(item)) };
        // A row of NaN has no largest element; its first one stands for it.
        let result = if arg { format!("i{name} == {NO_INDEX} ? 0 : i{name}") } else { format!("a{name}") };
        text.line(format!("const {ty} s{name} = {result};"));
    }

    /// Goes over `count` partial results of a row, which lie `stride` apart in shared memory, in their order. Each array is written
    /// once.
    fn gather(
        &self,
        text: &mut Text<'_>,
        item: &Reduce,
        count: u64,
        stride: u64,
        writes: &str,
        [own, first]: [&str; 2],
    ) {
        let name = self.name(item);
        let arg = item.kind == ReduceKind::ArgMax;
        let ty = register_type(self.dtype(item));
        text.share(format!("{ty} w{name}[{}]", count * stride));
        text.line(format!("{writes}w{name}[{own}] = a{name};"));
        if arg {
            text.share(format!("int x{name}[{}]", count * stride));
            text.line(format!("{writes}x{name}[{own}] = i{name};"));
        }
        text.line("__syncthreads();");
        text.line(format!("a{name} = w{name}[{first}];"));
        if arg {
            text.line(format!("i{name} = x{name}[{first}];"));
        }
        text.line(format!("for (unsigned w = 1u; w < {count}u; w++) {{"));
        let at = format!("{first} + w * {stride}u");
        self.combine(text, item, &format!("w{name}[{at}]"), &format!("x{name}[{at}]"));
        text.line("}");
    }

    /// Takes one more value (and, for ArgMax, its index) into the accumulator.
    fn combine(&self, text: &mut Text<'_>, item: &Reduce, value: &str, index: &str) {
        let slot = self.name(item);
        let float = self.dtype(item) == DType::F32;
        let call = match item.kind {
            ReduceKind::Sum => return text.line(format!("a{slot} = a{slot} + {value};")),
            ReduceKind::Prod => return text.line(format!("a{slot} = a{slot} * {value};")),
            ReduceKind::ArgMax => {
                return text.line(format!(
                    "if ({value} > a{slot} || ({value} == a{slot} && {index} < i{slot})) \
                     {{ a{slot} = {value}; i{slot} = {index}; }}"
                ));
            }
            ReduceKind::Max if float => text.functions.use_("max_f"),
            ReduceKind::Min if float => text.functions.use_("min_f"),
            ReduceKind::Max => "max",
            ReduceKind::Min => "min",
        };
        text.line(format!("a{slot} = {call}(a{slot}, {value});"));
    }
}

fn start(kind: ReduceKind, dtype: DType) -> String {
    let float = dtype == DType::F32;
    let value = match kind {
        ReduceKind::Sum => 0.0,
        ReduceKind::Prod => 1.0,
        ReduceKind::Max | ReduceKind::ArgMax if float => f64::NEG_INFINITY,
        ReduceKind::Min if float => f64::INFINITY,
        ReduceKind::Max | ReduceKind::ArgMax => f64::from(i32::MIN),
        ReduceKind::Min => f64::from(i32::MAX),
    };
    code::constant(value, dtype)
}
