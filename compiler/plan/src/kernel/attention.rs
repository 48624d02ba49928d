//! The attention family as one kernel.

use serde::{Deserialize, Serialize};

use super::View;
use crate::Real;

/// What attention computes; the formulas stand with the compiler's op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AttentionResult {
    /// Values mixed by the softmax of the scores.
    Out,
    /// Logarithm of the sum of the scores' exponentials, per query and head.
    Lse,
    /// Gradient of `Out` with respect to the queries.
    GradQ,
    /// Gradient of `Out` with respect to the keys.
    GradK,
    /// Gradient of `Out` with respect to the values.
    GradV,
}

/// Which query and key rows of attention belong together.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rows {
    /// Those of a sample.
    Dense,
    /// Those of a sample, of whose keys only the first `lengths[n]` (I32 `[N]`, clamped to `1..=Lk`) are seen.
    Lengths,
    /// Those of a segment: an operand I32 `[2, S + 1]` holds where each segment begins among the queries and among the
    /// keys, rising from 0. Rows from the last entry on belong to no segment: their results are 0.
    Segments,
}

/// Results of one attention for every sample (or segment), head and query or key, without ever holding all scores.
///
/// Views are affine and never gathered: q and what has its width or that of v is viewed over `[samples, rows, heads,
/// width]`, lse and delta over `[samples, rows, heads]`; packed rows are those of one sample. q, k, v, g and all
/// results but `Lse` are of one float type; sums, weights, lse and delta are F32. Results are written everywhere, also at rows of no segment. Lengths and segment offsets come from data: a device clamps them.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Attention {
    /// Which rows belong together.
    pub rows: Rows,
    /// Number of samples; 1 when rows are packed.
    pub samples: u64,
    /// Number of segments when rows are packed, else 0.
    pub segments: u64,
    /// Query rows of a sample, or of all segments together.
    pub queries: u64,
    /// Key rows of a sample, or of all segments together.
    pub keys: u64,
    /// Heads.
    pub heads: u64,
    /// Width of a query and a key.
    pub d: u64,
    /// Width of a value.
    pub e: u64,
    /// Query `i` of `Lq` sees key `j` of `Lk` only if `j <= i + Lk - Lq`.
    pub causal: bool,
    /// Factor of the scores.
    pub scale: Real,
    /// Queries.
    pub q: View,
    /// Keys.
    pub k: View,
    /// Values; for `Out`, `GradQ` and `GradK`.
    pub v: Option<View>,
    /// I32: lengths over `[samples]`, or segments over `[2, segments + 1]`; none for dense rows.
    pub extents: Option<View>,
    /// What `Lse` is, F32; for gradients.
    pub lse: Option<View>,
    /// Gradient of `Out`; for gradients.
    pub g: Option<View>,
    /// Sum of `g` times `Out` over its width, F32; for `GradQ` and `GradK`.
    pub delta: Option<View>,
    /// What is computed and where it goes: `Out` and `Lse`, or gradients; at least one, each once.
    pub results: Vec<(AttentionResult, View)>,
}

impl Attention {
    /// The domain of a result.
    pub fn domain(&self, result: AttentionResult) -> Vec<u64> {
        let over = |rows, width| vec![self.samples, rows, self.heads, width];
        match result {
            AttentionResult::Out => over(self.queries, self.e),
            AttentionResult::Lse => vec![self.samples, self.queries, self.heads],
            AttentionResult::GradQ => over(self.queries, self.d),
            AttentionResult::GradK => over(self.keys, self.d),
            AttentionResult::GradV => over(self.keys, self.e),
        }
    }

    /// All that is read: name, view and its domain.
    pub fn inputs(&self) -> Vec<(&'static str, &View, Vec<u64>)> {
        use AttentionResult::*;
        let extents = if self.rows == Rows::Segments { vec![2, self.segments + 1] } else { vec![self.samples] };
        let all = [
            ("q", Some(&self.q), self.domain(GradQ)),
            ("k", Some(&self.k), self.domain(GradK)),
            ("v", self.v.as_ref(), self.domain(GradV)),
            ("extents", self.extents.as_ref(), extents),
            ("lse", self.lse.as_ref(), self.domain(Lse)),
            ("g", self.g.as_ref(), self.domain(Out)),
            ("delta", self.delta.as_ref(), self.domain(Lse)),
        ];
        all.into_iter().filter_map(|(name, view, domain)| Some((name, view?, domain))).collect()
    }

    /// All views, to give their operands other numbers.
    pub fn views_mut(&mut self) -> impl Iterator<Item = &mut View> {
        let optional = [&mut self.v, &mut self.extents, &mut self.lse, &mut self.g, &mut self.delta];
        let inputs = [&mut self.q, &mut self.k].into_iter().chain(optional.into_iter().flatten());
        inputs.chain(self.results.iter_mut().map(|(_, view)| view))
    }

    /// Where a result goes, if it is computed.
    pub fn result(&self, result: AttentionResult) -> Option<&View> {
        self.results.iter().find(|(of, _)| *of == result).map(|(_, view)| view)
    }
}
