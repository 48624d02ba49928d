//! Attention: a workgroup per query and head, or per key and head for the gradients of keys and values.
//!
//! The other rows go by in tiles of one per thread: each thread computes the weight of its row (an inner product and an
//! exponential), then each owns elements of the result's row and adds up the tile's rows times their weights. Forward takes
//! a round over the keys first, for the logarithm of the sum of exponentials. Every result is written everywhere: a row that
//! sees nothing goes round no tile.
//!
//! Which rows belong together comes from data for packed rows and lengths: one thread reads it, and the workgroup takes it
//! over uniformly, since tiles have barriers.

use alip_plan::DType;
use alip_plan::kernel::{Attention, AttentionResult, Rows, View};

use super::{EmitError, Shader, code};

/// Below every score that is a number, and finite, so that the difference of two is a number.
const LOWEST: &str = "-3.0e38f";
/// The largest score that others have a distance to.
const HIGHEST: &str = "3.4028235e38f";

pub(super) fn emit(attention: &Attention, shader: &mut Shader<'_>) -> Result<(), EmitError> {
    for view in attention.inputs().into_iter().map(|input| input.1).chain(attention.results.iter().map(|r| &r.1)) {
        shader.operand(view.operand, view.dtype)?;
    }
    use AttentionResult::*;
    let wants = |results: &[AttentionResult]| results.iter().any(|result| attention.result(*result).is_some());
    let of_rows = |rows: u64, wanted: bool| if wanted { attention.samples * rows * attention.heads } else { 0 };
    let queries = of_rows(attention.queries, wants(&[Out, Lse, GradQ]));
    let keys = of_rows(attention.keys, wants(&[GradK, GradV]));
    if queries + keys > u64::from(u32::MAX) {
        return Err(EmitError(format!("{} rows in one kernel are more than 32 bits number", queries + keys)));
    }
    let threads = shader.tiles.attention;
    shader.launch(queries + keys, threads as u32);
    shader.leave_beyond(&[("work", queries + keys)]);
    let mut writer = Writer { attention, shader };
    writer.declare();
    match (queries, keys) {
        (_, 0) => writer.query_row("work"),
        (0, _) => writer.key_row("work"),
        _ => {
            writer.line(format!("if (work < {queries}u) {{"));
            writer.query_row("work");
            writer.line("} else {");
            writer.line(format!("let item = work - {queries}u;"));
            writer.key_row("item");
            writer.line("}");
        }
    }
    Ok(())
}

struct Writer<'a, 't> {
    attention: &'a Attention,
    shader: &'a mut Shader<'t>,
}

/// A row of a result that a workgroup computes: `sum over rows of weight * row`.
struct Sum<'a> {
    /// Workgroup array with the weights of a tile.
    weights: &'static str,
    /// Whose rows are summed.
    of: &'a View,
    /// The result.
    to: &'a View,
    width: u64,
    /// Prefix of the sums' names.
    name: &'static str,
}

/// The rows of the other side that a row sees: numbers from the first of its sample or segment.
struct Other {
    from: &'static str,
    to: &'static str,
    /// At most so many.
    most: u64,
}

impl Writer<'_, '_> {
    fn line(&mut self, text: impl AsRef<str>) {
        self.shader.line(text);
    }

    /// The element of a view at expressions for its coordinates.
    fn element(view: &View, at: &[&str]) -> String {
        let whole = |x: &&str| if x.contains(' ') { format!("({x})") } else { (*x).to_string() };
        let at: Vec<String> = at.iter().map(whole).collect();
        format!("p{}[{}]", view.operand, code::offset(&at, &view.strides, view.offset))
    }

    /// Workgroup memory, and functions of a query `i` and a key `j`: their score, and the product of `g` and the value.
    fn declare(&mut self) {
        self.shader.functions.use_("exp_f");
        let Attention { q, k, v, g, d, e, scale, .. } = self.attention;
        let product = |name: &str, a: &View, b: &View, width: u64, result: String| {
            let (a, b) = (Self::element(a, &["s", "i", "h", "x"]), Self::element(b, &["s", "j", "h", "x"]));
            format!(
                "fn {name}(s: u32, i: u32, j: u32, h: u32) -> f32 {{\n  var sum = 0.0f;\n  \
                 for (var x = 0u; x < {width}u; x++) {{ sum += {a} * {b}; }}\n  return {result};\n}}\n"
            )
        };
        let scale = code::constant(self.shader, scale.0, DType::F32);
        let threads = self.shader.tiles.attention;
        let mut text = product("score", q, k, *d, format!("sum * {scale}"));
        if let (Some(v), Some(g)) = (v, g) {
            text += &product("slope", g, v, *e, "sum".into());
        }
        text +=
            &format!("var<workgroup> first: array<f32, {threads}>;\nvar<workgroup> second: array<f32, {threads}>;\n");
        if self.attention.rows != Rows::Dense {
            text += "var<workgroup> found: vec4<u32>;\n";
        }
        self.shader.globals.push_str(&text);
    }

    /// Declares `begin`, `count` and `limit`: the first row of the other side, how many there are, and how many of the keys
    /// can be seen; `own` and `owns`: the row's number among its own side's and how many those are. All are 0 for a row of
    /// no segment.
    fn scope(&mut self, row: &str, sample: &str, of_queries: bool) {
        let Attention { rows, queries, keys, segments, extents, .. } = self.attention;
        let (ours, theirs) = if of_queries { (*queries, *keys) } else { (*keys, *queries) };
        let Some(extents) = extents else {
            self.line("let begin = 0u;");
            self.line(format!("let own = {row};"));
            self.line(format!("let owns = {ours}u;"));
            self.line(format!("let count = {theirs}u;"));
            return self.line(format!("let limit = {keys}u;"));
        };
        self.line("if (lane == 0u) {");
        if *rows == Rows::Lengths {
            let length = Self::element(extents, &[sample]);
            self.line(format!("found = vec4<u32>(min(u32(max({length}, 1)), {keys}u), 0u, 0u, 0u);"));
        } else {
            let side = if of_queries { ["0u", "1u"] } else { ["1u", "0u"] };
            let edge = |side: &str, at: &str, least: &str, most: u64| {
                format!("clamp(u32(max({}, 0)), {least}, {most}u)", Self::element(extents, &[side, at]))
            };
            // The first segment that ends after the row.
            self.line("var low = 0u;");
            self.line(format!("var high = {segments}u;"));
            self.shader.repeat("while (low < high)", u64::from(u64::BITS - segments.leading_zeros()) + 1);
            self.line("let middle = (low + high) / 2u;");
            let end = edge(side[0], "middle + 1u", "0u", ours);
            self.line(format!("if ({end} > {row}) {{ high = middle; }} else {{ low = middle + 1u; }}"));
            self.line("}");
            self.line("found = vec4<u32>(0u);");
            self.line(format!("if (low < {segments}u) {{"));
            self.line(format!("let start = {};", edge(side[0], "low", "0u", ours)));
            self.line(format!("let end = {};", edge(side[0], "low + 1u", "start", ours)));
            self.line(format!("let begin = {};", edge(side[1], "low", "0u", theirs)));
            self.line(format!("let stop = {};", edge(side[1], "low + 1u", "begin", theirs)));
            self.line(format!("if ({row} >= start) {{"));
            self.line(format!("found = vec4<u32>(begin, stop - begin, {row} - start, end - start);"));
            self.line("}");
            self.line("}");
        }
        self.line("}");
        self.line("let scope = workgroupUniformLoad(&found);");
        if *rows == Rows::Lengths {
            self.line("let begin = 0u;");
            self.line(format!("let own = {row};"));
            self.line(format!("let owns = {ours}u;"));
            self.line(format!("let count = {theirs}u;"));
            return self.line("let limit = scope.x;");
        }
        self.line("let begin = scope.x;");
        self.line("let count = scope.y;");
        self.line("let own = scope.z;");
        self.line("let owns = scope.w;");
        self.line(format!("let limit = {};", if of_queries { "count" } else { "owns" }));
    }

    /// `Out`, `Lse` and `GradQ` of one query.
    fn query_row(&mut self, item: &str) {
        use AttentionResult::*;
        let attention = self.attention;
        let at = code::unravel(self.shader, item, &[attention.samples, attention.queries, attention.heads], "c");
        let [s, i, h] = [0, 1, 2].map(|dim| at[dim].as_str());
        self.scope(i, s, true);
        // The last query sees the last key.
        let aligned = if attention.causal { "min(limit, max(own + 1u + count, owns) - owns)" } else { "limit" };
        self.line(format!("let seen = select({aligned}, 0u, owns == 0u);"));
        let other = Other { from: "0u", to: "seen", most: attention.keys };
        if let (Some(to), Some(lse), Some(delta)) = (attention.result(GradQ), &attention.lse, &attention.delta) {
            self.line(format!("let lse = {};", Self::element(lse, &[s, i, h])));
            self.line(format!("let delta = {};", Self::element(delta, &[s, i, h])));
            let sum = Sum { weights: "second", of: &attention.k, to, width: attention.d, name: "q" };
            return self.tiles(&other, &[sum], [s, i, h], |writer| {
                writer.weight(&[s, i, "begin + j", h], "lse");
                writer.slope(&[s, i, "begin + j", h], "delta");
            });
        }
        self.log_sum_exp([s, i, h], attention.keys);
        if let Some(to) = attention.result(Lse) {
            let to = Self::element(to, &[s, i, h]);
            self.line(format!("if (lane == 0u) {{ {to} = select(lse, 0.0f, seen == 0u); }}"));
        }
        if let (Some(to), Some(v)) = (attention.result(Out), &attention.v) {
            let sum = Sum { weights: "first", of: v, to, width: attention.e, name: "o" };
            self.tiles(&other, &[sum], [s, i, h], |writer| writer.weight(&[s, i, "begin + j", h], "lse"));
        }
    }

    /// Declares `lse`: every thread's part of the keys, with a running maximum, and a tree over the threads.
    fn log_sum_exp(&mut self, [s, i, h]: [&str; 3], keys: u64) {
        for name in ["min_f", "max_f", "ln_f"] {
            self.shader.functions.use_(name);
        }
        self.line(format!("var top = {LOWEST};"));
        self.line("var sum = 0.0f;");
        let threads = self.shader.tiles.attention;
        let trips = keys.div_ceil(threads);
        self.shader.repeat(&format!("for (var j = lane; j < seen; j += {threads}u)"), trips);
        self.shader.count(self.attention.d);
        self.line(format!("let x = score({s}, {i}, begin + j, {h});"));
        self.line(format!("let next = min_f(max_f(top, x), {HIGHEST});"));
        self.line("sum = sum * exp_f(top - next) + exp_f(x - next);");
        self.line("top = next;");
        self.line("}");
        self.line("first[lane] = top;");
        self.line("second[lane] = sum;");
        self.line("workgroupBarrier();");
        let halves = format!("for (var half = {}u; half > 0u; half = half >> 1u)", threads / 2);
        self.shader.repeat(&halves, threads.ilog2().into());
        self.line("if (lane < half) {");
        self.line("let a = first[lane];");
        self.line("let b = first[lane + half];");
        self.line("let next = max_f(a, b);");
        self.line("second[lane] = second[lane] * exp_f(a - next) + second[lane + half] * exp_f(b - next);");
        self.line("first[lane] = next;");
        self.line("}");
        self.line("workgroupBarrier();");
        self.line("}");
        self.line("let lse = first[0] + ln_f(second[0]);");
        self.line("workgroupBarrier();");
    }

    /// `GradK` and `GradV` of one key.
    fn key_row(&mut self, item: &str) {
        let attention = self.attention;
        let at = code::unravel(self.shader, item, &[attention.samples, attention.keys, attention.heads], "c");
        let [s, j, h] = [0, 1, 2].map(|dim| at[dim].as_str());
        self.scope(j, s, false);
        // The first query that sees the key.
        let aligned = if attention.causal { "max(own + count, owns) - owns" } else { "0u" };
        self.line(format!("let start = select({aligned}, count, own >= limit);"));
        let other = Other { from: "start", to: "count", most: attention.queries };
        let (grad_k, grad_v) = (AttentionResult::GradK, AttentionResult::GradV);
        let mut sums = Vec::new();
        if let Some(to) = attention.result(grad_k) {
            sums.push(Sum { weights: "second", of: &attention.q, to, width: attention.d, name: "k" });
        }
        if let (Some(to), Some(g)) = (attention.result(grad_v), &attention.g) {
            sums.push(Sum { weights: "first", of: g, to, width: attention.e, name: "v" });
        }
        let stat =
            |view: &Option<View>| view.as_ref().map_or("0.0f".into(), |v| Self::element(v, &[s, "begin + j", h]));
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
        self.shader.count(self.attention.d);
        self.line(format!("let p = exp_f(score({}) - {lse});", at.join(", ")));
        self.line("first[lane] = p;");
    }

    /// Sets the thread's second weight to the gradient of a score.
    fn slope(&mut self, at: &[&str; 4], delta: &str) {
        self.shader.count(self.attention.e);
        let scale = code::constant(self.shader, self.attention.scale.0, DType::F32);
        self.line(format!("second[lane] = p * (slope({}) - {delta}) * {scale};", at.join(", ")));
    }

    /// Goes over the other side's rows in tiles: `weigh` sets the weights of row `begin + j`; then all threads add up. Stores
    /// the sums at the row's own place.
    fn tiles(&mut self, other: &Other, sums: &[Sum<'_>], [s, row, h]: [&str; 3], weigh: impl FnOnce(&mut Self)) {
        let threads = self.shader.tiles.attention;
        let owned = |sum: &Sum<'_>| -> Vec<(String, String)> {
            let element = |c: u64| if c == 0 { "lane".into() } else { format!("lane + {}u", c * threads) };
            (0..sum.width.div_ceil(threads)).map(|c| (format!("{}{c}", sum.name), element(c))).collect()
        };
        let inside = |sum: &Sum<'_>, x: &str, statement: String| match sum.width % threads {
            0 => statement,
            _ => format!("if ({x} < {}u) {{ {statement} }}", sum.width),
        };
        for (name, _) in sums.iter().flat_map(owned) {
            self.line(format!("var {name} = 0.0f;"));
        }
        let Other { from, to, most } = *other;
        let tiles = format!("for (var tile = {from}; tile < {to}; tile += {threads}u)");
        self.shader.repeat(&tiles, most.div_ceil(threads));
        self.line("let j = tile + lane;");
        self.line(format!("if (j < {to}) {{"));
        weigh(self);
        self.line("}");
        self.line("workgroupBarrier();");
        self.line(format!("let rows = min({threads}u, {to} - tile);"));
        self.shader.repeat("for (var y = 0u; y < rows; y++)", threads.min(most));
        self.line("let at = begin + tile + y;");
        for sum in sums {
            for (name, x) in owned(sum) {
                let of = Self::element(sum.of, &[s, "at", h, &x]);
                self.line(inside(sum, &x, format!("{name} += {}[y] * {of};", sum.weights)));
            }
        }
        self.line("}");
        self.line("workgroupBarrier();");
        self.line("}");
        for sum in sums {
            for (name, x) in owned(sum) {
                let to = Self::element(sum.to, &[s, row, h, &x]);
                self.line(inside(sum, &x, format!("{to} = {name};")));
            }
        }
    }
}
