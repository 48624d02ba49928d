//! Reductions: a workgroup holds one long row, or several whose elements lie side by side, or a thread per short row.

use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Lanes, Reduce, ReduceKind, Reduction, Stage};
use alip_plan::{DType, Tiles};

use super::super::terms::register_dtype;
use super::archetypes::thread_per;
use super::code::{self, Scope};
use super::{EmitError, Shader};

/// Index of a largest element before there is one: loses against every other.
const NO_INDEX: &str = "0x7fffffffi";

pub(super) fn emit(reduction: &Reduction, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    let rows: u64 = reduction.kept.iter().product();
    let share = Share::of(reduction, shader.target.workgroup_size.into(), &shader.tiles);
    share.begin(shader, rows)?;
    let kept = code::unravel(shader, "row", &reduction.kept, "c");
    // What holds a slot's value: each stage that sets it names a new one.
    let mut slots = vec![String::new(); usize::from(reduction.slots)];
    for (index, stage) in reduction.stages.iter().enumerate() {
        match stage {
            Stage::Row { code, slots: set } => {
                let first: Vec<String> =
                    kept.iter().cloned().chain(reduction.reduced.iter().map(|_| "0u".to_string())).collect();
                let prefix = format!("r{index}_");
                let views = &reduction.views;
                let scope = Scope {
                    views,
                    coords: &first,
                    slots: &slots,
                    prefix: &prefix,
                    product: None,
                    store_if: (share.threads > 1).then_some("live && part == 0u"),
                    shared: share.threads > 1,
                };
                let values = code::write(shader, code, &scope)?;
                for (value, slot) in set {
                    slots[usize::from(*slot)] = format!("s{slot}_{index}");
                    shader.line(format!("let s{slot}_{index} = {};", values[usize::from(*value)]));
                }
            }
            Stage::Points { code, reduce } => {
                let stage = PointsStage { reduction, index, kept: &kept, share };
                stage.emit(shader, code, reduce, &slots)?;
                for item in reduce {
                    slots[usize::from(item.slot)] = format!("s{}", stage.name(item));
                }
            }
        }
    }
    Ok(())
}

/// How a workgroup is shared out.
#[derive(Clone, Copy)]
struct Share {
    /// Threads that share a row, a power of two. One: no workgroup memory, no barriers.
    threads: u64,
    /// Rows of a workgroup, a power of two; neighbouring threads have neighbouring rows.
    rows: u64,
}

impl Share {
    fn of(reduction: &Reduction, most: u64, tiles: &Tiles) -> Share {
        let rows: u64 = reduction.kept.iter().product();
        let length: u64 = reduction.reduced.iter().product();
        let most = most.min(threads_that_fit(reduction, tiles));
        if length < tiles.short_row {
            return Share { threads: 1, rows: 1 };
        }
        match reduction.lanes {
            Lanes::Reduced => Share { threads: (length.next_power_of_two() / 2).clamp(32.min(most), most), rows: 1 },
            Lanes::Kept => {
                let rows = rows.next_power_of_two().min(tiles.kept_rows).min(most / 2).max(1);
                Share { threads: most / rows, rows }
            }
        }
    }

    /// Declares `row`, and for shared rows `part`, the thread's number among those of its row, and `live`: dead rows
    /// beyond the last repeat it, since all threads must reach the barriers, and store nothing.
    fn begin(self, shader: &mut Shader<'_>, rows: u64) -> Result<(), EmitError> {
        if self.threads == 1 {
            thread_per(shader, rows)?;
            shader.line("let row = point;");
            return Ok(());
        }
        let groups = rows.div_ceil(self.rows);
        shader.launch(groups, (self.threads * self.rows) as u32);
        shader.leave_beyond(&[("work", groups)]);
        if self.rows == 1 {
            shader.line("let row = work;");
            shader.line("let part = lane;");
            shader.line("let live = true;");
        } else {
            shader.line(format!("let slot = work * {0}u + lane % {0}u;", self.rows));
            shader.line(format!("let row = min(slot, {}u);", rows - 1));
            shader.line(format!("let part = lane / {}u;", self.rows));
            shader.line("let live = row == slot;");
        }
        Ok(())
    }
}

/// The largest power of two of threads whose partial results, all reductions together, fit workgroup memory.
fn threads_that_fit(reduction: &Reduction, tiles: &Tiles) -> u64 {
    let arrays = reduction.stages.iter().map(|stage| match stage {
        Stage::Points { reduce, .. } => {
            reduce.iter().map(|item| if item.kind == ReduceKind::ArgMax { 2 } else { 1 }).sum()
        }
        Stage::Row { .. } => 0,
    });
    1 << (tiles.workgroup_bytes / 4 / arrays.sum::<u64>().max(1)).max(1).ilog2()
}

struct PointsStage<'a> {
    reduction: &'a Reduction,
    index: usize,
    kept: &'a [String],
    share: Share,
}

impl PointsStage<'_> {
    /// What the names of a reduction's variables end in.
    fn name(&self, item: &Reduce) -> String {
        format!("{}_{}", item.slot, self.index)
    }

    fn emit(
        &self,
        shader: &mut Shader<'_>,
        code: &alip_plan::kernel::Code,
        reduce: &[Reduce],
        slots: &[String],
    ) -> Result<(), EmitError> {
        let dtype = |reduce: &Reduce| register_dtype(code, reduce.value);
        for item in reduce {
            let start = start(shader, item.kind, dtype(item));
            shader.line(format!("var a{} = {start};", self.name(item)));
            if item.kind == ReduceKind::ArgMax {
                shader.line(format!("var i{} = {NO_INDEX};", self.name(item)));
            }
        }
        let length: u64 = self.reduction.reduced.iter().product();
        let Share { threads, rows } = self.share;
        let first = if threads > 1 { "part" } else { "0u" };
        let head = format!("for (var j = {first}; j < {length}u; j += {threads}u)");
        shader.repeat(&head, length.div_ceil(threads));
        let reduced = code::unravel(shader, "j", &self.reduction.reduced, "d");
        let coords: Vec<String> = self.kept.iter().cloned().chain(reduced).collect();
        let prefix = format!("v{}_", self.index);
        let views = &self.reduction.views;
        let store_if = (rows > 1).then_some("live");
        let scope = Scope { views, coords: &coords, slots, prefix: &prefix, store_if, shared: false, product: None };
        let values = code::write(shader, code, &scope)?;
        for item in reduce {
            combine(shader, item.kind, dtype(item), &self.name(item), &values[usize::from(item.value)], "i32(j)");
        }
        shader.line("}");
        for item in reduce {
            self.finish(shader, item, dtype(item));
        }
        if threads > 1 && reduce.is_empty() {
            // Later stages may read what this one stored.
            shader.line("storageBarrier();");
        }
        Ok(())
    }

    /// Joins the threads' partial results in a tree of fixed shape and declares the slot.
    fn finish(&self, shader: &mut Shader<'_>, item: &Reduce, dtype: DType) {
        let slot = self.name(item);
        let arg = item.kind == ReduceKind::ArgMax;
        let Share { threads, rows } = self.share;
        if threads > 1 {
            let ty = super::storage_type(dtype);
            shader.globals.push_str(&format!("var<workgroup> w{slot}: array<{ty}, {}>;\n", threads * rows));
            shader.line(format!("w{slot}[lane] = a{slot};"));
            if arg {
                shader.globals.push_str(&format!("var<workgroup> x{slot}: array<i32, {}>;\n", threads * rows));
                shader.line(format!("x{slot}[lane] = i{slot};"));
            }
            shader.line("workgroupBarrier();");
            let half = if planted(Fault::TreeHalved) { threads / 4 } else { threads / 2 };
            let head = format!("for (var half = {half}u; half > 0u; half = half >> 1u)");
            shader.repeat(&head, threads.ilog2().into());
            shader.line("if (part < half) {");
            shader.line(format!("let other = lane + half * {rows}u;"));
            combine(shader, item.kind, dtype, &slot, &format!("w{slot}[other]"), &format!("x{slot}[other]"));
            shader.line(format!("w{slot}[lane] = a{slot};"));
            if arg {
                shader.line(format!("x{slot}[lane] = i{slot};"));
            }
            shader.line("}");
            shader.line("workgroupBarrier();");
            shader.line("}");
        }
        let first = if rows > 1 { format!("lane % {rows}u") } else { "0".into() };
        let result = match (arg, threads > 1) {
            (true, true) => format!("x{slot}[{first}]"),
            (false, true) => format!("w{slot}[{first}]"),
            (true, false) => format!("i{slot}"),
            (false, false) => format!("a{slot}"),
        };
        // A row of NaN has no largest element; its first one stands for it.
        let result = if arg { format!("select({result}, 0i, {result} == {NO_INDEX})") } else { result };
        shader.line(format!("let s{slot} = {result};"));
    }
}

fn start(shader: &mut Shader<'_>, kind: ReduceKind, dtype: DType) -> String {
    let float = dtype == DType::F32;
    let value = match kind {
        ReduceKind::Sum => 0.0,
        ReduceKind::Prod => 1.0,
        ReduceKind::Max | ReduceKind::ArgMax if float => f64::NEG_INFINITY,
        ReduceKind::Min if float => f64::INFINITY,
        ReduceKind::Max | ReduceKind::ArgMax => f64::from(i32::MIN),
        ReduceKind::Min => f64::from(i32::MAX),
    };
    code::constant(shader, value, dtype)
}

/// Takes one more value (and, for ArgMax, its index) into the accumulator whose name ends in `slot`.
fn combine(shader: &mut Shader<'_>, kind: ReduceKind, dtype: DType, slot: &str, value: &str, index: &str) {
    let float = dtype == DType::F32;
    match kind {
        ReduceKind::Sum => shader.line(format!("a{slot} = a{slot} + {value};")),
        ReduceKind::Prod => shader.line(format!("a{slot} = a{slot} * {value};")),
        ReduceKind::Max if float => {
            let max = shader.functions.use_("max_f");
            shader.line(format!("a{slot} = {max}(a{slot}, {value});"));
        }
        ReduceKind::Min if float => {
            let min = shader.functions.use_("min_f");
            shader.line(format!("a{slot} = {min}(a{slot}, {value});"));
        }
        ReduceKind::Max => shader.line(format!("a{slot} = max(a{slot}, {value});")),
        ReduceKind::Min => shader.line(format!("a{slot} = min(a{slot}, {value});")),
        ReduceKind::ArgMax => {
            shader.line(format!(
                "if ({value} > a{slot} || ({value} == a{slot} && {index} < i{slot})) {{ a{slot} = {value}; i{slot} = {index}; }}"
            ));
        }
    }
}
