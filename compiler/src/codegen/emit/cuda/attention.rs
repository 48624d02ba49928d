//! Attention: a block per query and head, or per key and head for the gradients of keys and values.
//!
//! The other rows go by in tiles of one per thread: each thread computes the weight of its row (an inner product and an
//! exponential), then each owns elements of the result's row and adds up the tile's rows times their weights. Forward takes
//! a round over the keys first, for the logarithm of the sum of exponentials. Every result is written everywhere: a row that
//! sees nothing goes round no tile.
//!
//! Which rows belong together comes from data for packed rows and lengths: one thread reads it, and the block takes it over, since
//! tiles have barriers.

use alip_plan::DType;
use alip_plan::kernel::{Attention, AttentionResult, Rows, View};

use super::{EmitError, Text, code};
use crate::codegen::emit::terms::offset;

/// Below every score that is a number, and finite, so that the difference of two is a number.
const LOWEST: &str = "-3.0e38f";
/// The largest score that others have a distance to.
const HIGHEST: &str = "3.4028235e38f";

pub(super) fn emit(attention: &Attention, text: &mut Text<'_>) -> Result<(), EmitError> {
    use AttentionResult::*;
    text.operands(attention.inputs().into_iter().map(|input| input.1))?;
    text.operands(attention.results.iter().map(|result| &result.1))?;
    let wants = |results: &[AttentionResult]| results.iter().any(|result| attention.result(*result).is_some());
    let of_rows = |rows: u64, wanted: bool| if wanted { attention.samples * rows * attention.heads } else { 0 };
    let queries = of_rows(attention.queries, wants(&[Out, Lse, GradQ]));
    let keys = of_rows(attention.keys, wants(&[GradK, GradV]));
    if queries + keys > u64::from(u32::MAX) {
        return Err(EmitError(format!("{} rows in one kernel are more than 32 bits number", queries + keys)));
    }
    text.launch(queries + keys, text.tiles.attention as u32);
    // Small blocks would be given so few registers that some spill.
    text.roomy = true;
    let mut writer = Writer { attention, text };
    writer.declare();
    match (queries, keys) {
        (_, 0) => writer.query_row("blockIdx.x"),
        (0, _) => writer.key_row("blockIdx.x"),
        _ => {
            writer.line(format!("if (blockIdx.x < {queries}u) {{"));
            writer.query_row("blockIdx.x");
            writer.line("} else {");
            writer.text.unsigned("item", format!("blockIdx.x - {queries}u"));
            writer.key_row("item");
            writer.line("}");
        }
    }
    Ok(())
}

struct Writer<'a, 't> {
    attention: &'a Attention,
    text: &'a mut Text<'t>,
}

/// A row of a result that a block computes: `sum over rows of weight * row`.
struct Sum<'a> {
    /// Shared array with the weights of a tile.
    weights: &'static str,
    /// Whose rows are summed.
    of: &'a View,
    /// The result.
    to: &'a View,
    width: u64,
    /// The sums' name.
    name: &'static str,
}

/// The rows of the other side that a row sees: numbers from the first of its sample or segment.
struct Other {
    from: &'static str,
    to: &'static str,
}

impl Writer<'_, '_> {
    fn line(&mut self, text: impl AsRef<str>) {
        self.text.line(text);
    }

    /// Where the element of a view at expressions for its coordinates lies.
    fn place(view: &View, at: &[&str]) -> String {
        let whole = |x: &&str| if x.contains(' ') { format!("({x})") } else { (*x).to_string() };
        let at: Vec<String> = at.iter().map(whole).collect();
        format!("p{}[{}]", view.operand, offset(&at, &view.strides, view.offset))
    }

    /// The value of an element.
    fn element(&mut self, view: &View, at: &[&str]) -> String {
        code::decode(self.text, view.dtype, &Self::place(view, at))
    }

    fn store(&mut self, view: &View, at: &[&str], value: &str) -> String {
        format!("{} = {};", Self::place(view, at), code::encode(self.text, view.dtype, value))
    }

    /// Shared memory, and the functions `score`, of a query `i` and a key `j`, and `slope`, the product of `g` and the value.
    fn declare(&mut self) {
        let Attention { q, k, v, g, d, e, scale, .. } = self.attention;
        let scale = code::constant(scale.0, DType::F32);
        self.product("score", [q, k], *d, &format!("sum * {scale}"));
        if let (Some(v), Some(g)) = (v, g) {
            self.product("slope", [g, v], *e, "sum");
        }
        let threads = self.text.tiles.attention;
        self.text.share(format!("float first[{threads}]"));
        self.text.share(format!("float second[{threads}]"));
        if self.attention.rows != Rows::Dense {
            self.text.share("unsigned found[4]");
        }
    }

    /// A function of a row of either side, their inner product.
    fn product(&mut self, name: &str, [a, b]: [&View; 2], width: u64, result: &str) {
        let (x, y) = (self.element(a, &["s", "i", "h", "x"]), self.element(b, &["s", "j", "h", "x"]));
        let parameters: String = (0..self.text.operands.len()).map(|index| self.text.parameter(index) + ", ").collect();
        self.text.globals += &format!(
            "static __device__ __forceinline__ float {name}({parameters}unsigned s, unsigned i, unsigned j, unsigned h) {{\n  \
             float sum = 0.0f;\n  for (unsigned x = 0u; x < {width}u; x++) sum = fmaf({x}, {y}, sum);\n  return {result};\n}}\n"
        );
    }

    /// A call of such a function.
    fn call(&self, name: &str, at: &[&str; 4]) -> String {
        let operands: String = (0..self.text.operands.len()).map(|index| format!("p{index}, ")).collect();
        format!("{name}({operands}{})", at.join(", "))
    }

    /// Declares `begin`, `count` and `limit`: the first row of the other side, how many there are, and how many of the keys
    /// can be seen; `own` and `owns`: the row's number among its own side's and how many those are. All are 0 for a row of
    /// no segment.
    fn scope(&mut self, row: &str, sample: &str, of_queries: bool) {
        let Attention { rows, queries, keys, segments, extents, .. } = self.attention;
        let (ours, theirs) = if of_queries { (*queries, *keys) } else { (*keys, *queries) };
        let dense = |writer: &mut Self, limit: &str| {
            for (name, value) in [
                ("begin", "0u"),
                ("own", row),
                ("owns", &format!("{ours}u")),
                ("count", &format!("{theirs}u")),
                ("limit", limit),
            ] {
                writer.text.unsigned(name, value);
            }
        };
        let Some(extents) = extents else { return dense(self, &format!("{keys}u")) };
        self.line("if (threadIdx.x == 0u) {");
        if *rows == Rows::Lengths {
            let length = Self::place(extents, &[sample]);
            self.line(format!("found[0] = min((unsigned)max({length}, 1), {keys}u);"));
        } else {
            self.find_segment(extents, row, of_queries, [ours, theirs], *segments);
        }
        self.line("}");
        self.line("__syncthreads();");
        if *rows == Rows::Lengths {
            return dense(self, "found[0]");
        }
        for (at, name) in ["begin", "count", "own", "owns"].into_iter().enumerate() {
            self.text.unsigned(name, format!("found[{at}]"));
        }
        self.text.unsigned("limit", if of_queries { "count" } else { "owns" });
    }

    /// Sets `found` to the segment that holds a row: where its other rows begin and how many they are, the row's number and how many
    /// its own are.
    fn find_segment(&mut self, extents: &View, row: &str, of_queries: bool, [ours, theirs]: [u64; 2], segments: u64) {
        let side = if of_queries { ["0u", "1u"] } else { ["1u", "0u"] };
        let edge = |side: &str, at: &str, least: &str, most: u64| {
            format!("min(max((unsigned)max({}, 0), {least}), {most}u)", Self::place(extents, &[side, at]))
        };
        // The first segment that ends after the row.
        self.line("unsigned low = 0u;");
        self.line(format!("unsigned high = {segments}u;"));
        self.line("while (low < high) {");
        self.line("const unsigned middle = (low + high) / 2u;");
        let end = edge(side[0], "middle + 1u", "0u", ours);
        self.line(format!("if ({end} > {row}) high = middle; else low = middle + 1u;"));
        self.line("}");
        self.line("found[0] = found[1] = found[2] = found[3] = 0u;");
        self.line(format!("if (low < {segments}u) {{"));
        self.text.unsigned("start", edge(side[0], "low", "0u", ours));
        self.text.unsigned("end", edge(side[0], "low + 1u", "start", ours));
        self.text.unsigned("begin", edge(side[1], "low", "0u", theirs));
        self.text.unsigned("stop", edge(side[1], "low + 1u", "begin", theirs));
        self.line(format!("if ({row} >= start) {{"));
        self.line("found[0] = begin;");
        self.line("found[1] = stop - begin;");
        self.line(format!("found[2] = {row} - start;"));
        self.line("found[3] = end - start;");
        self.line("}");
        self.line("}");
    }

    /// `Out`, `Lse` and `GradQ` of one query.
    fn query_row(&mut self, item: &str) {
        use AttentionResult::*;
        let attention = self.attention;
        let at = code::unravel(self.text, item, &[attention.samples, attention.queries, attention.heads], "c");
        let [s, i, h] = [0, 1, 2].map(|dim| at[dim].as_str());
        self.scope(i, s, true);
        // The last query sees the last key.
        let aligned = if attention.causal { "min(limit, max(own + 1u + count, owns) - owns)" } else { "limit" };
        self.text.unsigned("seen", format!("owns == 0u ? 0u : {aligned}"));
        let other = Other { from: "0u", to: "seen" };
        if let (Some(to), Some(lse), Some(delta)) = (attention.result(GradQ), &attention.lse, &attention.delta) {
            let (lse, delta) = (self.element(lse, &[s, i, h]), self.element(delta, &[s, i, h]));
            self.line(format!("const float lse = {lse};"));
            self.line(format!("const float delta = {delta};"));
            let sum = Sum { weights: "second", of: &attention.k, to, width: attention.d, name: "q" };
            return self.tiles(&other, &[sum], [s, i, h], |writer| {
                writer.weight(&[s, i, "begin + j", h], "lse");
                writer.slope(&[s, i, "begin + j", h], "delta");
            });
        }
        self.log_sum_exp([s, i, h]);
        if let Some(to) = attention.result(Lse) {
            let store = self.store(to, &[s, i, h], "(seen == 0u ? 0.0f : lse)");
            self.line(format!("if (threadIdx.x == 0u) {store}"));
        }
        if let (Some(to), Some(v)) = (attention.result(Out), &attention.v) {
            let sum = Sum { weights: "first", of: v, to, width: attention.e, name: "o" };
            self.tiles(&other, &[sum], [s, i, h], |writer| writer.weight(&[s, i, "begin + j", h], "lse"));
        }
    }

    /// Declares `lse`: every thread's part of the keys, with a running maximum, and a tree over the threads.
    fn log_sum_exp(&mut self, [s, i, h]: [&str; 3]) {
        for name in ["min_f", "max_f"] {
            self.text.functions.use_(name);
        }
        let threads = self.text.tiles.attention;
        let score = self.call("score", &[s, i, "begin + j", h]);
        self.text.lines(&format!(
            "float top = {LOWEST};
             float sum = 0.0f;
             for (unsigned j = threadIdx.x; j < seen; j += {threads}u) {{
             const float x = {score};
             const float next = min_f(max_f(top, x), {HIGHEST});
             sum = sum * expf(top - next) + expf(x - next);
             top = next;
             }}
             first[threadIdx.x] = top;
             second[threadIdx.x] = sum;
             __syncthreads();
             for (unsigned half = {}u; half > 0u; half >>= 1) {{
             if (threadIdx.x < half) {{
             const float a = first[threadIdx.x];
             const float b = first[threadIdx.x + half];
             const float next = max_f(a, b);
             second[threadIdx.x] = second[threadIdx.x] * expf(a - next) + second[threadIdx.x + half] * expf(b - next);
             first[threadIdx.x] = next;
             }}
             __syncthreads();
             }}
             const float lse = first[0] + logf(second[0]);
             __syncthreads();",
            threads / 2
        ));
    }

    /// `GradK` and `GradV` of one key.
    fn key_row(&mut self, item: &str) {
        let attention = self.attention;
        let at = code::unravel(self.text, item, &[attention.samples, attention.keys, attention.heads], "c");
        let [s, j, h] = [0, 1, 2].map(|dim| at[dim].as_str());
        self.scope(j, s, false);
        // The first query that sees the key.
        let aligned = if attention.causal { "max(own + count, owns) - owns" } else { "0u" };
        self.text.unsigned("start", format!("own >= limit ? count : {aligned}"));
        let other = Other { from: "start", to: "count" };
        let (grad_k, grad_v) = (AttentionResult::GradK, AttentionResult::GradV);
        let mut sums = Vec::new();
        if let Some(to) = attention.result(grad_k) {
            sums.push(Sum { weights: "second", of: &attention.q, to, width: attention.d, name: "k" });
        }
        if let (Some(to), Some(g)) = (attention.result(grad_v), &attention.g) {
            sums.push(Sum { weights: "first", of: g, to, width: attention.e, name: "v" });
        }
        let mut stat = |view: &Option<View>| match view {
            Some(view) => self.element(view, &[s, "begin + j", h]),
            None => "0.0f".into(),
        };
        let (lse, delta) = (stat(&attention.lse), stat(&attention.delta));
        let slopes = attention.result(grad_k).is_some();
        self.tiles(&other, &sums, [s, j, h], |writer| {
            writer.weight(&[s, "begin + j", j, h], &lse);
            if slopes {
                writer.slope(&[s, "begin + j", j, h], &delta);
            }
        });
    }

    /// Sets `p` and the thread's first weight to the exponential of a score.
    fn weight(&mut self, at: &[&str; 4], lse: &str) {
        self.line(format!("const float p = expf({} - {lse});", self.call("score", at)));
        self.line("first[threadIdx.x] = p;");
    }

    /// Sets the thread's second weight to the gradient of a score.
    fn slope(&mut self, at: &[&str; 4], delta: &str) {
        let scale = code::constant(self.attention.scale.0, DType::F32);
        self.line(format!("second[threadIdx.x] = p * ({} - {delta}) * {scale};", self.call("slope", at)));
    }

    /// Goes over the other side's rows in tiles: `weigh` sets the weights of row `begin + j`; then all threads add up. Stores
    /// the sums at the row's own place.
    fn tiles(&mut self, other: &Other, sums: &[Sum<'_>], [s, row, h]: [&str; 3], weigh: impl FnOnce(&mut Self)) {
        let threads = self.text.tiles.attention;
        let Other { from, to } = *other;
        for sum in sums {
            self.line(format!("float {}[{}] = {{}};", sum.name, sum.width.div_ceil(threads)));
        }
        self.line(format!("for (unsigned tile = {from}; tile < {to}; tile += {threads}u) {{"));
        self.line("const unsigned j = tile + threadIdx.x;");
        self.line(format!("if (j < {to}) {{"));
        weigh(self);
        self.line("}");
        self.line("__syncthreads();");
        self.line(format!("const unsigned rows = min({to} - tile, {threads}u);"));
        self.line("for (unsigned r = 0u; r < rows; r++) {");
        for sum in sums {
            let element = self.element(sum.of, &[s, "begin + tile + r", h, "x"]);
            self.each(sum, &format!("{0}[c] = fmaf({1}[r], {element}, {0}[c]);", sum.name, sum.weights));
        }
        self.line("}");
        self.line("__syncthreads();");
        self.line("}");
        for sum in sums {
            let store = self.store(sum.to, &[s, row, h, "x"], &format!("{}[c]", sum.name));
            self.each(sum, &store);
        }
    }

    /// A statement for each element `x` of a row that the thread owns, the `c`th.
    fn each(&mut self, sum: &Sum<'_>, statement: &str) {
        let threads = self.text.tiles.attention;
        let count = sum.width.div_ceil(threads);
        self.line("#pragma unroll");
        self.line(format!("for (unsigned c = 0u; c < {count}u; c++) {{"));
        self.line(format!("const unsigned x = threadIdx.x + c * {threads}u;"));
        match sum.width % threads {
            0 => self.line(statement),
            _ => self.line(format!("if (x < {}u) {statement}", sum.width)),
        }
        self.line("}");
    }
}
