//! Attention of bf16 on tensor cores (Dao, FlashAttention-2, 2023): a block per sample or segment and head, a warp per 16 rows of one
//! side, tiles of 64 rows of the other side in shared memory. Scores and weights live in registers only.
//!
//! One scheme serves forward and backward. Of a row's own side are `x1` (queries or keys) and `x2` (the gradient of `out`, or values),
//! of the other side `y1` and `y2` (keys and values, or queries and the gradient):
//!
//! | results | own rows | weight | sum |
//! | --- | --- | --- | --- |
//! | out, lse | queries | `p`, by a running maximum | `p y2` |
//! | gradient of q | queries | `dS = p (x2 y2 - delta) scale` | `dS y1` |
//! | gradients of k and v | keys | the same, transposed | `dS y1`, `p y2` |
//!
//! with `p = exp(x1 y1 scale - lse)`. What a weight loses as bf16 is a second bf16, so that sums are those of f32 weights. Each side
//! computes scores of its own: that takes no atomics and no memory, and is always added up in the same order.
//!
//! What a row does not see has the weight 0 and is multiplied all the same: NaN and infinities in later rows of a causal tile show.
//! Edges are taken to rise, as for WGSL; what is found where they do not is not promised.

use alip_plan::DType;
use alip_plan::kernel::{Attention, AttentionResult, Rows, View};

use super::{EmitError, Text, code};
use crate::codegen::emit::terms::offset;

/// Rows of a block's own side, and of a tile of the other side.
const ROWS: u64 = 64;
/// Threads: a warp for 16 rows.
const THREADS: u64 = 128;
/// The widest row whose sums fit registers.
const WIDEST: u64 = 64;
/// Below every score that is a number, and finite, so that the difference of two is a number.
const LOWEST: &str = "-3.0e38f";
/// The largest score that others have a distance to.
const HIGHEST: &str = "3.4028235e38f";

/// Whether all rows are of bf16, in chunks of 16 bytes, and narrow enough.
pub(super) fn serves(attention: &Attention) -> bool {
    let multiple = |number: i64, of: i64| number.rem_euclid(of) == 0;
    let rows = |view: &View, of: i64| {
        let Some((inner, outer)) = view.strides.split_last() else { return false };
        *inner == 1 && multiple(view.offset, of) && outer.iter().all(|stride| multiple(*stride, of))
    };
    let inputs = [Some(&attention.q), Some(&attention.k), attention.v.as_ref(), attention.g.as_ref()];
    let fits = |width: u64| width.is_multiple_of(16) && width <= WIDEST;
    inputs.into_iter().flatten().all(|view| view.dtype == DType::Bf16 && rows(view, 8))
        && attention.results.iter().all(|(result, view)| *result == AttentionResult::Lse || rows(view, 2))
        && fits(attention.d)
        && fits(attention.e)
}

pub(super) fn emit(attention: &Attention, text: &mut Text<'_>) -> Result<(), EmitError> {
    use AttentionResult::*;
    text.operands(attention.inputs().into_iter().map(|input| input.1))?;
    text.operands(attention.results.iter().map(|result| &result.1))?;
    let result = |result| attention.result(result);
    let (q, k) = (&attention.q, &attention.k);
    let (v, g) = (attention.v.as_ref(), attention.g.as_ref());
    let forward = result(Out).is_some() || result(Lse).is_some();
    let queries = Side {
        attention,
        of_queries: true,
        forward,
        x: [q, g.unwrap_or(q)],
        y: [k, v.unwrap_or(k)],
        sum_of_p: result(Out),
        sum_of_slopes: result(GradQ),
    };
    let keys = Side {
        attention,
        of_queries: false,
        forward: false,
        x: [k, v.unwrap_or(k)],
        y: [q, g.unwrap_or(q)],
        sum_of_p: result(GradV),
        sum_of_slopes: result(GradK),
    };
    let wanted: Vec<&Side<'_>> = [&queries, &keys].into_iter().filter(|side| side.wanted()).collect();
    let counts: Vec<u64> = wanted.iter().map(|side| side.blocks()).collect();
    text.launch(counts.iter().sum(), THREADS as u32);
    for (name, width) in [("t1", attention.d), ("t2", attention.e.max(16))] {
        text.share(format!("__align__(16) unsigned short {name}[{}]", ROWS * (width + 8)));
    }
    if keys.wanted() {
        text.share(format!("float lses[{ROWS}]"));
        text.share(format!("float deltas[{ROWS}]"));
    }
    for name in ["mma_m16n8k16_bf16", "ldmatrix_x4", "cp_async_16_zfill", "cp_async_commit", "cp_async_wait"] {
        text.functions.use_(name);
    }
    text.line("const unsigned lane = threadIdx.x % 32u, warp = threadIdx.x / 32u;");
    let mut first = 0;
    for (side, count) in wanted.iter().zip(&counts) {
        if wanted.len() > 1 {
            text.line(format!("if (blockIdx.x >= {first}u && blockIdx.x < {}u) {{", first + count));
        }
        text.unsigned("item", format!("blockIdx.x - {first}u"));
        side.write(text);
        if wanted.len() > 1 {
            text.line("}");
        }
        first += count;
    }
    Ok(())
}

/// What blocks compute whose own rows are of one side.
struct Side<'a> {
    attention: &'a Attention,
    of_queries: bool,
    /// Whether the logarithm of the sum of exponentials is found on the way, and not given.
    forward: bool,
    x: [&'a View; 2],
    y: [&'a View; 2],
    /// Where the sum of `p y2` goes.
    sum_of_p: Option<&'a View>,
    /// Where the sum of `dS y1` goes.
    sum_of_slopes: Option<&'a View>,
}

impl Side<'_> {
    fn wanted(&self) -> bool {
        self.forward || self.sum_of_p.is_some() || self.sum_of_slopes.is_some()
    }

    fn packed(&self) -> bool {
        self.attention.rows == Rows::Segments
    }

    /// Rows of this side and of the other, of a sample or of all segments.
    fn counts(&self) -> [u64; 2] {
        let Attention { queries, keys, .. } = *self.attention;
        if self.of_queries { [queries, keys] } else { [keys, queries] }
    }

    /// Width of `x1` and `y1`, and of `x2` and `y2`.
    fn widths(&self) -> [u64; 2] {
        [self.attention.d, self.attention.e]
    }

    /// Blocks, those included that write zeros to rows of no segment.
    fn blocks(&self) -> u64 {
        let Attention { samples, segments, heads, .. } = *self.attention;
        let tiles = self.counts()[0].div_ceil(ROWS);
        if self.packed() { segments * heads + tiles } else { samples * heads * tiles }
    }

    fn write(&self, text: &mut Text<'_>) {
        if self.packed() {
            self.find_segment(text);
            text.line(format!("for (unsigned first = 0u; first < owns; first += {ROWS}u) {{"));
        } else {
            self.find_sample(text);
            text.line("{");
        }
        self.load_own(text);
        self.statistics(text);
        self.go_over_tiles(text);
        self.finish(text);
        text.line("}");
    }

    /// Declares the rows of a sample: `own_begin`, `owns`, `other_begin`, `others`, `limit`, how many keys are seen at all, and `first`,
    /// the first row of the block.
    fn find_sample(&self, text: &mut Text<'_>) {
        let Attention { samples, heads, keys, extents, .. } = self.attention;
        let [ours, theirs] = self.counts();
        let at = code::unravel(text, "item", &[*samples, *heads, ours.div_ceil(ROWS)], "c");
        text.unsigned("s", &at[0]);
        text.unsigned("h", &at[1]);
        text.unsigned("first", format!("({}) * {ROWS}u", at[2]));
        let limit = match extents {
            Some(view) => {
                let length = offset(&["s".into()], &view.strides, view.offset);
                format!("min((unsigned)max(p{}[{length}], 1), {keys}u)", view.operand)
            }
            None => format!("{keys}u"),
        };
        for (name, value) in [
            ("own_begin", "0u".to_string()),
            ("owns", format!("{ours}u")),
            ("other_begin", "0u".to_string()),
            ("others", format!("{theirs}u")),
            ("limit", limit),
        ] {
            text.unsigned(name, value);
        }
    }

    /// The same of a segment; blocks beyond the last write zeros to the rows behind it.
    fn find_segment(&self, text: &mut Text<'_>) {
        let Attention { segments, heads, extents, .. } = self.attention;
        let [ours, theirs] = self.counts();
        let edge = |side: usize, at: &str, most: u64| {
            let view = extents.as_ref().unwrap_or(&self.attention.q);
            let row = if (side == 0) == self.of_queries { "0u" } else { "1u" };
            let place = offset(&[row.into(), at.into()], &view.strides, view.offset);
            format!("min((unsigned)max(p{}[{place}], 0), {most}u)", view.operand)
        };
        text.line("const unsigned s = 0u;");
        text.line(format!("if (item >= {}u) {{", segments * heads));
        text.unsigned("begin", edge(0, "0u", ours));
        text.unsigned("end", edge(0, &format!("{segments}u"), ours));
        text.unsigned("first", format!("(item - {}u) * {ROWS}u", segments * heads));
        self.clear(text);
        text.line("return;");
        text.line("}");
        text.unsigned("segment", format!("item / {heads}u"));
        text.unsigned("h", format!("item % {heads}u"));
        text.unsigned("own_begin", edge(0, "segment", ours));
        text.unsigned("owns", format!("max({}, own_begin) - own_begin", edge(0, "(segment + 1u)", ours)));
        text.unsigned("other_begin", edge(1, "segment", theirs));
        text.unsigned("others", format!("max({}, other_begin) - other_begin", edge(1, "(segment + 1u)", theirs)));
        text.unsigned("limit", if self.of_queries { "others" } else { "owns" });
    }

    /// Writes zeros to the rows of a block before `begin` and from `end` on, for all heads.
    fn clear(&self, text: &mut Text<'_>) {
        let Attention { heads, .. } = self.attention;
        let [ours, _] = self.counts();
        let [d, e] = self.widths();
        let lse = self.lse_result().map(|view| (view, 1));
        let wide = [self.sum_of_p.map(|view| (view, e)), self.sum_of_slopes.map(|view| (view, d)), lse];
        for (view, width) in wide.into_iter().flatten() {
            text.line(format!("for (unsigned z = threadIdx.x; z < {}u; z += {THREADS}u) {{", ROWS * heads * width));
            text.unsigned("row", format!("first + z / {}u", heads * width));
            text.unsigned("h", format!("z / {width}u % {heads}u"));
            text.unsigned("x", format!("z % {width}u"));
            let at =
                offset(&["0u", "row", "h", "x"].map(String::from)[..view.strides.len()], &view.strides, view.offset);
            let zero = code::encode(text, view.dtype, "0.0f");
            text.line(format!("if ((row < begin || row >= end) && row < {ours}u) p{}[{at}] = {zero};", view.operand));
            text.line("}");
        }
    }

    fn lse_result(&self) -> Option<&View> {
        self.attention.result(AttentionResult::Lse).filter(|_| self.forward)
    }

    /// Whether gradients of scores are computed.
    fn slopes(&self) -> bool {
        self.sum_of_slopes.is_some()
    }

    /// Whether rows of `y2` are needed.
    fn second(&self) -> bool {
        self.slopes() || self.sum_of_p.is_some()
    }

    /// Copies rows of a side from `from` on into a tile, zeros beyond the last.
    fn copy(&self, text: &mut Text<'_>, tile: &str, view: &View, width: u64, [begin, from, count]: [&str; 3]) {
        let per_row = width / 8;
        let row = format!("({begin} + {from} + r)");
        let at = offset(&["s".into(), row, "h".into(), "c".into()], &view.strides, view.offset);
        text.lines(&format!(
            "#pragma unroll
             for (unsigned e = threadIdx.x; e < {}u; e += {THREADS}u) {{
             const unsigned r = e / {per_row}u, c = e % {per_row}u * 8u;
             const bool inside = {from} + r < {count};
             cp_async_16_zfill(&{tile}[r * {}u + c], inside ? &p{operand}[{at}] : p{operand}, inside);
             }}",
            ROWS * per_row,
            width + 8,
            operand = view.operand,
        ));
    }

    /// Waits until all copies are there for every thread.
    fn arrive(text: &mut Text<'_>) {
        text.lines(
            "cp_async_commit();
             cp_async_wait<0>();
             __syncthreads();",
        );
    }

    /// Declares `x1` and `x2`, the warp's rows as fragments.
    fn load_own(&self, text: &mut Text<'_>) {
        let widths = self.widths();
        let own = ["own_begin", "first", "owns"];
        self.copy(text, "t1", self.x[0], widths[0], own);
        if self.slopes() {
            self.copy(text, "t2", self.x[1], widths[1], own);
        }
        Self::arrive(text);
        for (name, width) in ["1", "2"].into_iter().zip(widths).take(if self.slopes() { 2 } else { 1 }) {
            text.lines(&format!(
                "unsigned x{name}[{}][4];
                 #pragma unroll
                 for (unsigned q = 0u; q < {}u; q++) {{
                 ldmatrix_x4(x{name}[q], &t{name}[(warp * 16u + lane % 16u) * {}u + q * 16u + lane / 16u * 8u]);
                 }}",
                width / 16,
                width / 16,
                width + 8
            ));
        }
        text.line("__syncthreads();");
    }

    /// Declares the sums, and what is known of the own rows: those at `lane / 4` and 8 further.
    fn statistics(&self, text: &mut Text<'_>) {
        let [d, e] = self.widths();
        text.unsigned("own", "first + warp * 16u + lane / 4u");
        if self.sum_of_p.is_some() {
            text.line(format!("float sum_p[{}][4] = {{}};", e / 8));
        }
        if self.slopes() {
            text.line(format!("float sum_s[{}][4] = {{}};", d / 8));
        }
        if self.forward {
            text.functions.use_("min_f");
            text.functions.use_("max_f");
            text.line(format!("float top[2] = {{{LOWEST}, {LOWEST}}}, total[2] = {{}};"));
        } else if self.of_queries {
            text.line("float lse[2] = {}, delta[2] = {};");
            text.line("#pragma unroll");
            text.line("for (unsigned r = 0u; r < 2u; r++) {");
            text.line("if (own + r * 8u < owns) {");
            let row = "own_begin + own + r * 8u";
            for (name, view) in self.given() {
                let at = Self::at_row(view, row);
                text.line(format!("{name}[r] = {at};"));
            }
            text.line("}");
            text.line("}");
        }
    }

    /// What is read beside rows.
    fn given(&self) -> impl Iterator<Item = (&'static str, &View)> {
        let Attention { lse, delta, .. } = self.attention;
        let delta = delta.as_ref().filter(|_| self.slopes());
        [("lse", lse.as_ref()), ("delta", delta)].into_iter().filter_map(|(name, view)| Some((name, view?)))
    }

    /// A number of a query and head.
    fn at_row(view: &View, row: &str) -> String {
        let at = offset(&["s".into(), format!("({row})"), "h".into()], &view.strides, view.offset);
        format!("p{}[{at}]", view.operand)
    }

    fn go_over_tiles(&self, text: &mut Text<'_>) {
        let [d, e] = self.widths();
        let causal = self.attention.causal;
        let (start, stop) = match (self.of_queries, causal) {
            // The block's last query sees most.
            (true, true) => ("0u".into(), format!("min(limit, max(first + {ROWS}u + others, owns) - owns)")),
            (true, false) => ("0u".into(), "limit".into()),
            // The first query that sees the block's first key.
            (false, true) => (format!("(max(first + others, owns) - owns) / {ROWS}u * {ROWS}u"), "others".to_string()),
            (false, false) => ("0u".into(), "others".into()),
        };
        text.line(format!("for (unsigned other = {start}; other < {stop}; other += {ROWS}u) {{"));
        // What lies beyond a length is not read: it may be anything.
        let others = ["other_begin", "other", if self.of_queries { "limit" } else { "others" }];
        self.copy(text, "t1", self.y[0], d, others);
        if self.second() {
            self.copy(text, "t2", self.y[1], e, others);
        }
        if !self.of_queries {
            text.line(format!("if (threadIdx.x < {ROWS}u) {{"));
            text.unsigned("row", "other + threadIdx.x");
            for (name, view) in self.given() {
                let at = Self::at_row(view, "other_begin + row");
                text.line(format!("{name}s[threadIdx.x] = row < others ? {at} : 0.0f;"));
            }
            text.line("}");
        }
        Self::arrive(text);
        self.scores(text, "scores", "1", d);
        if self.slopes() {
            self.scores(text, "slopes", "2", e);
        }
        if self.forward {
            self.weigh_on_the_way(text)
        } else {
            self.weigh(text)
        }
        if self.sum_of_p.is_some() {
            self.add_up(text, "scores", "sum_p", "t2", e);
        }
        if self.slopes() {
            self.add_up(text, "slopes", "sum_s", "t1", d);
        }
        text.line("__syncthreads();");
        text.line("}");
    }

    /// Products of the own rows with those of a tile.
    fn scores(&self, text: &mut Text<'_>, to: &str, number: &str, width: u64) {
        text.lines(&format!(
            "float {to}[8][4] = {{}};
             #pragma unroll
             for (unsigned q = 0u; q < {}u; q++) {{
             #pragma unroll
             for (unsigned j = 0u; j < 4u; j++) {{
             unsigned y[4];
             ldmatrix_x4(y, &t{number}[(j * 16u + lane % 8u + lane / 16u * 8u) * {}u + q * 16u + lane / 8u % 2u * 8u]);
             const unsigned low[2] = {{y[0], y[1]}}, high[2] = {{y[2], y[3]}};
             mma_m16n8k16_bf16({to}[2u * j], x{number}[q], low);
             mma_m16n8k16_bf16({to}[2u * j + 1u], x{number}[q], high);
             }}
             }}",
            width / 16,
            width + 8
        ));
    }

    /// Opens loops over a warp's scores, of which `scores[j][e]` is of query `i` and key `k`, and declares `visible`.
    fn open_scores(&self, text: &mut Text<'_>) {
        text.lines(
            "#pragma unroll
             for (unsigned j = 0u; j < 8u; j++) {
             #pragma unroll
             for (unsigned e = 0u; e < 4u; e++) {
             const unsigned row = own + e / 2u * 8u, column = other + j * 8u + lane % 4u * 2u + e % 2u;",
        );
        let (i, k, queries, keys) =
            if self.of_queries { ("row", "column", "owns", "others") } else { ("column", "row", "others", "owns") };
        let causal =
            if self.attention.causal { format!(" && {i} + 1u + {keys} > {k} + {queries}") } else { String::new() };
        text.line(format!("const bool visible = {i} < {queries} && {k} < limit{causal};"));
    }

    /// Turns scores into weights by the logarithms that are known, and slopes into gradients of scores.
    fn weigh(&self, text: &mut Text<'_>) {
        let scale = code::constant(self.attention.scale.0, DType::F32);
        self.open_scores(text);
        let (lse, delta) = if self.of_queries {
            ("lse[e / 2u]", "delta[e / 2u]")
        } else {
            ("lses[column - other]", "deltas[column - other]")
        };
        text.line(format!("scores[j][e] = visible ? expf(scores[j][e] * {scale} - {lse}) : 0.0f;"));
        if self.slopes() {
            text.line(format!("slopes[j][e] = visible ? scores[j][e] * (slopes[j][e] - {delta}) * {scale} : 0.0f;"));
        }
        text.line("}");
        text.line("}");
    }

    /// Turns scores into exponentials by the largest score so far, and scales what was summed before.
    fn weigh_on_the_way(&self, text: &mut Text<'_>) {
        let scale = code::constant(self.attention.scale.0, DType::F32);
        text.line("float next[2] = {top[0], top[1]};");
        self.open_scores(text);
        text.lines(&format!(
            "scores[j][e] = visible ? scores[j][e] * {scale} : -__uint_as_float(0x7f800000u);
             next[e / 2u] = max_f(next[e / 2u], scores[j][e]);
             }}
             }}
             #pragma unroll
             for (unsigned r = 0u; r < 2u; r++) {{
             next[r] = max_f(next[r], __shfl_xor_sync(0xffffffffu, next[r], 1u));
             next[r] = min_f(max_f(next[r], __shfl_xor_sync(0xffffffffu, next[r], 2u)), {HIGHEST});
             const float fade = expf(top[r] - next[r]);
             top[r] = next[r];
             total[r] = total[r] * fade;"
        ));
        if self.sum_of_p.is_some() {
            text.lines(&format!(
                "#pragma unroll
                 for (unsigned n = 0u; n < {}u; n++) {{
                 sum_p[n][2u * r] *= fade;
                 sum_p[n][2u * r + 1u] *= fade;
                 }}",
                self.widths()[1] / 8
            ));
        }
        text.lines(
            "}
             #pragma unroll
             for (unsigned j = 0u; j < 8u; j++) {
             #pragma unroll
             for (unsigned e = 0u; e < 4u; e++) {
             scores[j][e] = expf(scores[j][e] - top[e / 2u]);
             total[e / 2u] += scores[j][e];
             }
             }",
        );
    }

    /// Adds the rows of a tile times their weights, each of which is two numbers of 16 bits.
    fn add_up(&self, text: &mut Text<'_>, weights: &str, sum: &str, tile: &str, width: u64) {
        text.functions.use_("split_bf16");
        text.functions.use_("ldmatrix_x4_trans");
        text.lines(&format!(
            "#pragma unroll
             for (unsigned j = 0u; j < 4u; j++) {{
             unsigned high[4], low[4];
             #pragma unroll
             for (unsigned r = 0u; r < 4u; r++) {{
             const unsigned of = 2u * j + r / 2u, e = r % 2u * 2u;
             split_bf16({weights}[of][e], {weights}[of][e + 1u], high[r], low[r]);
             }}
             #pragma unroll
             for (unsigned n = 0u; n < {}u; n++) {{
             unsigned y[4];
             ldmatrix_x4_trans(y, &{tile}[(j * 16u + lane % 16u) * {}u + n * 16u + lane / 16u * 8u]);
             const unsigned left[2] = {{y[0], y[1]}}, right[2] = {{y[2], y[3]}};
             mma_m16n8k16_bf16({sum}[2u * n], high, left);
             mma_m16n8k16_bf16({sum}[2u * n], low, left);
             mma_m16n8k16_bf16({sum}[2u * n + 1u], high, right);
             mma_m16n8k16_bf16({sum}[2u * n + 1u], low, right);
             }}
             }}",
            width / 16,
            width + 8
        ));
    }

    /// Stores the sums.
    fn finish(&self, text: &mut Text<'_>) {
        if self.forward {
            text.lines(
                "#pragma unroll
                 for (unsigned r = 0u; r < 2u; r++) {
                 total[r] += __shfl_xor_sync(0xffffffffu, total[r], 1u);
                 total[r] += __shfl_xor_sync(0xffffffffu, total[r], 2u);
                 }",
            );
        }
        text.line("#pragma unroll");
        text.line("for (unsigned r = 0u; r < 2u; r++) {");
        text.unsigned("row", "own + r * 8u");
        text.line("if (row >= owns) continue;");
        if self.forward {
            let sees = if self.attention.causal { " && row + 1u + others > owns" } else { "" };
            text.line(format!("const bool sees = limit > 0u{sees};"));
            if let Some(view) = self.lse_result() {
                let at = Self::at_row(view, "own_begin + row");
                text.line(format!("if (lane % 4u == 0u) {at} = sees ? top[r] + logf(total[r]) : 0.0f;"));
            }
        }
        let [d, e] = self.widths();
        if let Some(view) = self.sum_of_p {
            let value = if self.forward { "(sees ? sum_p[n][AT] / total[r] : 0.0f)" } else { "sum_p[n][AT]" };
            Self::store(text, view, e, value);
        }
        if let Some(view) = self.sum_of_slopes {
            Self::store(text, view, d, "sum_s[n][AT]");
        }
        text.line("}");
    }

    /// Stores a row's elements, two neighbours at a time.
    fn store(text: &mut Text<'_>, view: &View, width: u64, value: &str) {
        let coords = ["s", "(own_begin + row)", "h", "(n * 8u + lane % 4u * 2u)"].map(String::from);
        let at = offset(&coords, &view.strides, view.offset);
        let [left, right] = ["2u * r", "2u * r + 1u"].map(|at| value.replace("AT", at));
        let pair = match view.dtype {
            DType::F32 => format!("*(float2*)&p{}[{at}] = make_float2({left}, {right});", view.operand),
            dtype => {
                let [encode, _] = text.functions.narrow(dtype);
                format!("*(unsigned*)&p{}[{at}] = {encode}({left}) | (unsigned){encode}({right}) << 16;", view.operand)
            }
        };
        text.lines(&format!(
            "#pragma unroll
             for (unsigned n = 0u; n < {}u; n++) {{
             {pair}
             }}",
            width / 8
        ));
    }
}
