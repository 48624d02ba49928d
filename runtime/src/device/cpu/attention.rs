//! Attention: blocks of scores from the `gemm` crate, turned into weights while they are in cache, never stored.
//!
//! Forward, a task owns a block of queries of one head and walks blocks of keys with a running maximum and sum. Backward, a
//! task owns a head, or a block of its keys or queries where heads are too few to keep threads busy; weights are computed
//! again from the stored logarithm of their sum. Blocks and tasks follow from shapes and segments only, and whatever is
//! summed over several blocks is summed by one task in a fixed order, so that results do not depend on threads.
//!
//! Tensors of 16 bits are widened into scratch, a head at a time, and results rounded from there: everything between is f32.
//!
//! Segments come from data: their edges are clamped into the rows and made to rise, so that segments never overlap.

mod matrix;

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use alip_plan::DType;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Attention, AttentionResult, ReduceKind, Rows, View};
use rayon::prelude::*;

use self::matrix::{Place, Side};
use super::Threads;
use super::isa::{CentreFn, ExpFn, Loops, RowFn};
use super::matrix::{Matrix, multiply};
use super::run::Operands;

/// Most queries of a block. With the most keys, scores and their gradients (200 KiB) stay in a second-level cache.
const QUERIES: usize = 96;
/// Most keys of a block: texts and images of the published models have fewer.
const KEYS: usize = 256;
/// Heads that keep threads busy without cutting them further.
const ENOUGH_HEADS: usize = 8;
/// Multiply-adds below which a task is not worth a thread of its own.
const TASK: usize = 1 << 18;

/// Tensors that may have 16 bits: q, k, v, g and the results but for `Lse`.
const COPIES: usize = 8;

/// Attention ready to run.
pub(super) struct PreparedAttention {
    rows: Rows,
    samples: usize,
    queries: usize,
    keys: usize,
    heads: usize,
    d: usize,
    e: usize,
    causal: bool,
    scale: f32,
    q: Place,
    k: Place,
    v: Option<Place>,
    extents: Option<Place>,
    lse: Option<Place>,
    g: Option<Place>,
    delta: Option<Place>,
    results: [Option<Place>; 5],
    /// Where the segments of packed rows begin and end among queries and keys, found anew by every run.
    edges: Mutex<Vec<[usize; 2]>>,
    max: RowFn,
    sum: RowFn,
    exp: ExpFn,
    centre: CentreFn,
}

/// One head of a sample or segment: its rows among queries and keys, and how many of its keys can be seen at all.
struct Scope {
    sample: usize,
    head: usize,
    queries: Range<usize>,
    keys: Range<usize>,
    limit: usize,
    causal: bool,
    /// Rows of this head in f32, of tensors of 16 bits.
    copies: [*mut f32; COPIES],
}

impl Scope {
    /// Number of keys, from the first, that query `i` sees; rises with `i`.
    fn seen(&self, i: usize) -> usize {
        let aligned = (i + 1 + self.keys.len()).saturating_sub(self.queries.len());
        if self.causal { self.limit.min(aligned) } else { self.limit }
    }
}

/// Even blocks of at most `most` rows.
fn blocks(rows: usize, most: usize) -> impl Iterator<Item = Range<usize>> {
    let size = rows.div_ceil(rows.div_ceil(most).max(1)).max(1);
    (0..rows).step_by(size).map(move |first| first..(first + size).min(rows))
}

/// What a task computes of a block of queries and a block of keys, and whether it adds to what is there.
#[derive(Clone, Copy)]
struct Wanted {
    q: Option<bool>,
    keys: Option<bool>,
}

impl PreparedAttention {
    pub(super) fn new(attention: &Attention, loops: &Loops) -> PreparedAttention {
        use AttentionResult::*;
        let [samples, queries, keys, heads, d, e] = [
            attention.samples.max(attention.segments),
            attention.queries,
            attention.keys,
            attention.heads,
            attention.d,
            attention.e,
        ]
        .map(|size| size as usize);
        let place = |view: &View, side, width| Place::new(view, side, width);
        let optional = |view: &Option<View>, side, width| view.as_ref().map(|view| place(view, side, width));
        let result = |result, side, width| attention.result(result).map(|view| place(view, side, width));
        let mut prepared = PreparedAttention {
            rows: attention.rows,
            samples,
            queries,
            keys,
            heads,
            d,
            e,
            causal: attention.causal,
            scale: attention.scale.0 as f32,
            q: place(&attention.q, Side::Queries, d),
            k: place(&attention.k, Side::Keys, d),
            v: optional(&attention.v, Side::Keys, e),
            extents: optional(&attention.extents, Side::Queries, 1),
            lse: optional(&attention.lse, Side::Queries, 1),
            g: optional(&attention.g, Side::Queries, e),
            delta: optional(&attention.delta, Side::Queries, 1),
            results: [
                result(Out, Side::Queries, e),
                result(Lse, Side::Queries, 1),
                result(GradQ, Side::Queries, d),
                result(GradK, Side::Keys, d),
                result(GradV, Side::Keys, e),
            ],
            edges: Mutex::new(Vec::with_capacity(attention.segments as usize + 1)),
            max: (loops.row)(ReduceKind::Max, DType::F32),
            sum: (loops.row)(ReduceKind::Sum, DType::F32),
            exp: loops.exp,
            centre: loops.centre,
        };
        let PreparedAttention { q, k, v, g, results, .. } = &mut prepared;
        let inputs = [q, k].into_iter().chain([v, g].into_iter().flatten());
        Place::number(inputs.chain(results.iter_mut().flatten()));
        prepared
    }

    /// What may have 16 bits and is read.
    fn inputs(&self) -> impl Iterator<Item = &Place> {
        [&self.q, &self.k].into_iter().chain([&self.v, &self.g].into_iter().flatten())
    }

    fn packed(&self) -> bool {
        self.rows == Rows::Segments
    }

    pub(super) fn run(&self, operands: &Operands, threads: &Threads) {
        let [out, lse, grad_q, grad_k, grad_v] = self.results;
        // A panic in an earlier run left nothing that this one reads.
        let mut edges = self.edges.lock().unwrap_or_else(PoisonError::into_inner);
        if self.packed() {
            self.find_edges(operands, &mut edges);
            self.clear_rest(operands, &edges);
        }
        let edges = edges.as_slice();
        let (query_blocks, key_blocks) = match self.packed() {
            true => (1, 1),
            false => (blocks(self.queries, QUERIES).count(), blocks(self.keys, KEYS).count()),
        };
        let (all_queries, all_keys) = (0..query_blocks.max(1), 0..key_blocks.max(1));
        if out.is_some() || lse.is_some() {
            self.tasks(operands, threads, edges, all_queries, |scope, block, scratch| {
                let picked = |index: usize| self.packed() || index == block;
                let picked = blocks(scope.queries.len(), QUERIES).enumerate().filter(|(index, _)| picked(*index));
                picked.for_each(|(_, block)| self.forward(operands, scope, block, scratch));
            });
            return;
        }
        let keys = grad_k.is_some() || grad_v.is_some();
        if !keys || grad_q.is_some() && key_blocks > 1 && self.samples * self.heads < ENOUGH_HEADS {
            self.tasks(operands, threads, edges, all_queries, |scope, block, scratch| {
                let picked = |index: usize| self.packed() || index == block;
                let picked = blocks(scope.queries.len(), QUERIES).enumerate().filter(|(index, _)| picked(*index));
                picked.for_each(|(_, block)| self.grad_queries(operands, scope, &block, scratch));
            });
            if keys {
                self.tasks(operands, threads, edges, all_keys, |scope, block, scratch| {
                    let block = blocks(scope.keys.len(), KEYS).nth(block);
                    block.into_iter().for_each(|block| self.grad_keys(operands, scope, &block, false, scratch));
                });
            }
            return;
        }
        self.tasks(operands, threads, edges, 0..1, |scope, _, scratch| {
            if let Some(grad_q) = grad_q {
                let unseen = (0..scope.queries.len()).take_while(|i| scope.seen(*i) == 0).count();
                // SAFETY: rows of this task's head.
                unsafe { grad_q.matrix(operands, scope, scope.queries.start).clear(unseen, self.d) };
            }
            blocks(scope.keys.len(), KEYS)
                .for_each(|block| self.grad_keys(operands, scope, &block, grad_q.is_some(), scratch));
            if let Some(grad_q) = grad_q {
                grad_q.settle(operands, scope, scope.queries.clone());
            }
        });
    }

    /// Runs `task(head, block, scratch)` for all heads and blocks.
    fn tasks(
        &self,
        operands: &Operands,
        threads: &Threads,
        edges: &[[usize; 2]],
        blocks: Range<usize>,
        task: impl Fn(&Scope, usize, &mut [f32]) + Sync,
    ) {
        let count = blocks.len();
        let per_head = if self.packed() { self.samples.max(1) } else { 1 };
        let pairs = (self.queries / per_head).max(1) * (self.keys / per_head).max(1);
        let least = (TASK * count / (pairs * (self.d + self.e)).max(1)).max(1);
        let scores = self.queries.min(QUERIES) * self.keys.min(KEYS);
        (0..self.samples * self.heads * count).into_par_iter().with_min_len(least).for_each(|index| {
            let (head, block) = (index / count, index % count);
            let mut scope = self.scope(operands, edges, head / self.heads, head % self.heads);
            threads.with_scratch(|scratch| {
                let copied: usize = self.inputs().chain(self.results.iter().flatten()).map(|x| x.copied(&scope)).sum();
                let mut memory = scratch.take_block(copied + 2 * scores + 2 * QUERIES);
                let mut rest = memory.as_mut_slice();
                for place in self.inputs().chain(self.results.iter().flatten()) {
                    rest = place.take(&mut scope, rest);
                }
                self.inputs().for_each(|place| place.read(operands, &scope));
                task(&scope, block, rest);
                scratch.return_block(memory);
            });
        });
    }

    fn scope(&self, operands: &Operands, edges: &[[usize; 2]], group: usize, head: usize) -> Scope {
        let (causal, copies) = (self.causal, [std::ptr::null_mut(); COPIES]);
        if self.packed() {
            let (queries, keys) = (edges[group][0]..edges[group + 1][0], edges[group][1]..edges[group + 1][1]);
            return Scope { sample: 0, head, limit: keys.len(), queries, keys, causal, copies };
        }
        let limit = self.extents.map_or(self.keys, |lengths| {
            // SAFETY: `check` keeps the view of lengths inside its operand.
            let length = unsafe { *self.extent(operands, &lengths, [group, 0]) };
            (length.max(1) as usize).min(self.keys)
        });
        Scope { sample: group, head, queries: 0..self.queries, keys: 0..self.keys, limit, causal, copies }
    }

    fn extent(&self, operands: &Operands, place: &Place, at: [usize; 2]) -> *const i32 {
        let element = place.offset + at[0] as isize * place.strides[0] + at[1] as isize * place.strides[1];
        // SAFETY: `check` keeps the view inside its operand.
        unsafe { operands.0[place.operand].cast::<i32>().offset(element) }
    }

    /// Edges as data has them, clamped into the rows; one that falls counts as the highest before it.
    fn find_edges(&self, operands: &Operands, edges: &mut Vec<[usize; 2]>) {
        edges.clear();
        let Some(place) = self.extents else { return };
        let mut last = [0, 0];
        for index in 0..=self.samples {
            for (side, rows) in [self.queries, self.keys].into_iter().enumerate() {
                // SAFETY: as in `extent`.
                let edge = unsafe { *self.extent(operands, &place, [side, index]) };
                let leaks = planted(Fault::SegmentBoundaryLeak) && (1..self.samples).contains(&index);
                let edge = if leaks { edge - 1 } else { edge };
                last[side] = (edge.max(0) as usize).min(rows).max(last[side]);
            }
            edges.push(last);
        }
    }

    /// Rows of no segment have results of zero.
    fn clear_rest(&self, operands: &Operands, edges: &[[usize; 2]]) {
        let (Some(first), Some(last)) = (edges.first(), edges.last()) else { return };
        let [out, lse, grad_q, grad_k, grad_v] = self.results;
        for (place, side) in [(out, 0), (lse, 0), (grad_q, 0), (grad_k, 1), (grad_v, 1)] {
            let Some(place) = place else { continue };
            let rows = [self.queries, self.keys][side];
            for head in 0..self.heads {
                let copies = [std::ptr::null_mut(); COPIES];
                let scope = Scope { sample: 0, head, queries: 0..0, keys: 0..0, limit: 0, causal: false, copies };
                for rest in [0..first[side], last[side]..rows] {
                    // SAFETY: rows of the result, before any task runs.
                    unsafe { place.clear(operands, &scope, rest) };
                }
            }
        }
    }

    /// Scores of a block of queries with a block of keys, times the scale.
    fn scores(&self, operands: &Operands, scope: &Scope, queries: &Range<usize>, keys: &Range<usize>, to: Matrix) {
        let q = self.q.matrix(operands, scope, scope.queries.start + queries.start);
        let k = self.k.matrix(operands, scope, scope.keys.start + keys.start);
        // SAFETY: rows of the scope, which are rows of the views; `to` is scratch.
        unsafe { multiply([queries.len(), keys.len(), self.d], to, false, q, k.transposed(), self.scale) };
    }

    /// `Out` and `Lse` of a block of queries.
    fn forward(&self, operands: &Operands, scope: &Scope, queries: Range<usize>, scratch: &mut [f32]) {
        let [place, lse, ..] = self.results;
        let rows = queries.len();
        let row = scope.queries.start + queries.start;
        let out = place.map(|place| place.matrix(operands, scope, row));
        let most = scope.seen(queries.end - 1);
        let (stats, scores) = scratch.split_at_mut(2 * QUERIES);
        let (top, sum) = stats.split_at_mut(QUERIES);
        top.fill(f32::NEG_INFINITY);
        sum.fill(0.0);
        for keys in blocks(most, KEYS) {
            let columns = keys.len();
            self.scores(operands, scope, &queries, &keys, Matrix::block(scores, columns));
            for i in 0..rows {
                let seen = scope.seen(queries.start + i).saturating_sub(keys.start).min(columns);
                let line = &mut scores[i * columns..(i + 1) * columns];
                let fade = self.weigh(line, seen, &mut top[i], &mut sum[i]);
                if let (Some(out), true) = (out, keys.start > 0 && fade != 1.0) {
                    // SAFETY: a row of this task.
                    unsafe { out.scale_row(i, self.e, fade) };
                }
            }
            if let (Some(out), Some(v)) = (out, self.v) {
                let v = v.matrix(operands, scope, scope.keys.start + keys.start);
                let weights = Matrix::block(scores, columns);
                // SAFETY: rows of this task; rows of the scope.
                unsafe { multiply([rows, self.e, columns], out, keys.start > 0, weights, v, 1.0) };
            }
        }
        for i in 0..rows {
            let none = scope.seen(queries.start + i) == 0;
            // SAFETY: rows of this task.
            unsafe {
                if let Some(out) = out {
                    out.scale_row(i, self.e, if none { 0.0 } else { 1.0 / sum[i] });
                }
                if let Some(lse) = lse {
                    let top = if planted(Fault::LseWithoutMax) { 0.0 } else { f64::from(top[i]) };
                    let value = top + libm::log(f64::from(sum[i]));
                    *lse.matrix(operands, scope, row).at(i, 0) = if none { 0.0 } else { value as f32 };
                }
            }
        }
        if let Some(place) = place {
            place.settle(operands, scope, row..row + rows);
        }
    }

    /// Turns scores into exponentials below the new running maximum; adds them to the running sum. What was accumulated
    /// so far must be multiplied by the result.
    fn weigh(&self, line: &mut [f32], seen: usize, top: &mut f32, sum: &mut f32) -> f32 {
        let seen = if seen > 1 && planted(Fault::CausalOffByOne) { seen - 1 } else { seen };
        let (shown, hidden) = line.split_at_mut(seen);
        hidden.fill(0.0);
        if shown.is_empty() {
            return 1.0;
        }
        // SAFETY: lanes of the slice, at least one.
        let here = f32::from_bits(unsafe { (self.max)(shown.as_ptr().cast(), seen) });
        // Infinities have no distance to be taken. NaN stays NaN.
        let here = here.clamp(f32::MIN, f32::MAX);
        let new = if here <= *top { *top } else { here };
        let fade = if new == *top { 1.0 } else { libm::exp(f64::from(*top) - f64::from(new)) as f32 };
        // SAFETY: as above.
        unsafe { (self.exp)(shown.as_mut_ptr(), new, seen) };
        // SAFETY: as above.
        let part = f32::from_bits(unsafe { (self.sum)(shown.as_ptr().cast(), seen) });
        *sum = *sum * fade + part;
        *top = new;
        fade
    }

    /// `GradK` and `GradV` of a block of keys, and what it adds to `GradQ`.
    fn grad_keys(
        &self,
        operands: &Operands,
        scope: &Scope,
        keys: &Range<usize>,
        with_queries: bool,
        scratch: &mut [f32],
    ) {
        let shown = keys.start..keys.end.min(scope.limit).max(keys.start);
        let mut begun = false;
        if !shown.is_empty() {
            for queries in blocks(scope.queries.len(), QUERIES) {
                if scope.seen(queries.end - 1) > shown.start {
                    let q = with_queries.then_some(shown.start > 0);
                    self.pair(operands, scope, &queries, &shown, Wanted { q, keys: Some(begun) }, scratch);
                    begun = true;
                }
            }
        }
        let written = if begun { shown.end } else { keys.start };
        let [.., grad_k, grad_v] = self.results;
        for (place, width) in [(grad_k, self.d), (grad_v, self.e)] {
            let Some(place) = place else { continue };
            // SAFETY: rows of this task's keys.
            unsafe { place.matrix(operands, scope, scope.keys.start + written).clear(keys.end - written, width) };
            place.settle(operands, scope, scope.keys.start + keys.start..scope.keys.start + keys.end);
        }
    }

    /// `GradQ` of a block of queries.
    fn grad_queries(&self, operands: &Operands, scope: &Scope, queries: &Range<usize>, scratch: &mut [f32]) {
        let most = scope.seen(queries.end - 1);
        for keys in blocks(most, KEYS) {
            let wanted = Wanted { q: Some(keys.start > 0), keys: None };
            self.pair(operands, scope, queries, &keys, wanted, scratch);
        }
        let [_, _, Some(grad_q), ..] = self.results else { return };
        let first = scope.queries.start + queries.start;
        if most == 0 {
            let rows = grad_q.matrix(operands, scope, first);
            // SAFETY: rows of this task.
            unsafe { rows.clear(queries.len(), self.d) };
        }
        grad_q.settle(operands, scope, first..first + queries.len());
    }

    /// What a block of queries and a block of keys add to the gradients.
    fn pair(
        &self,
        operands: &Operands,
        scope: &Scope,
        queries: &Range<usize>,
        keys: &Range<usize>,
        wanted: Wanted,
        scratch: &mut [f32],
    ) {
        let [_, _, grad_q, grad_k, grad_v] = self.results;
        let (Some(lse), Some(g)) = (self.lse, self.g) else { return };
        let (rows, columns) = (queries.len(), keys.len());
        let (row, key) = (scope.queries.start + queries.start, scope.keys.start + keys.start);
        let (p, ds) = scratch.split_at_mut(rows * columns);
        let seen = |i: usize| scope.seen(queries.start + i).saturating_sub(keys.start).min(columns);
        self.scores(operands, scope, queries, keys, Matrix::block(p, columns));
        let (lse, g) = (lse.matrix(operands, scope, row), g.matrix(operands, scope, row));
        for (i, line) in p.chunks_exact_mut(columns).enumerate() {
            let (shown, hidden) = line.split_at_mut(seen(i));
            hidden.fill(0.0);
            // SAFETY: lanes of the slice; a row of the scope.
            unsafe { (self.exp)(shown.as_mut_ptr(), *lse.at(i, 0), shown.len()) };
        }
        let weights = Matrix::block(p, columns);
        if let (Some(grad_v), Some(add)) = (grad_v, wanted.keys) {
            let to = grad_v.matrix(operands, scope, key);
            // SAFETY: rows of this task's keys; rows of the scope.
            unsafe { multiply([columns, self.e, rows], to, add, weights.transposed(), g, 1.0) };
        }
        let (Some(v), Some(delta)) = (self.v, self.delta) else { return };
        let (v, delta) = (v.matrix(operands, scope, key), delta.matrix(operands, scope, row));
        let slopes = Matrix::block(ds, columns);
        // SAFETY: rows of the scope; scratch.
        unsafe { multiply([rows, columns, self.e], slopes, false, g, v.transposed(), 1.0) };
        for (i, line) in ds[..rows * columns].chunks_exact_mut(columns).enumerate() {
            // SAFETY: as many lanes in both lines; a row of the scope.
            unsafe {
                (self.centre)(line.as_mut_ptr(), p[i * columns..].as_ptr(), *delta.at(i, 0), self.scale, seen(i))
            };
            line[seen(i)..].fill(0.0);
        }
        if let (Some(grad_k), Some(add)) = (grad_k, wanted.keys) {
            let q = self.q.matrix(operands, scope, row);
            let to = grad_k.matrix(operands, scope, key);
            // SAFETY: rows of this task's keys; rows of the scope.
            unsafe { multiply([columns, self.d, rows], to, add, slopes.transposed(), q, 1.0) };
        }
        if let (Some(grad_q), Some(add)) = (grad_q, wanted.q) {
            let k = self.k.matrix(operands, scope, key);
            let to = grad_q.matrix(operands, scope, row);
            // SAFETY: rows of this task's queries; rows of the scope.
            unsafe { multiply([rows, self.d, columns], to, add, slopes, k, 1.0) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_even_and_cover_all_rows() {
        for (rows, sizes) in [(0, vec![]), (1, vec![1]), (77, vec![77]), (197, vec![66, 66, 65]), (300, vec![75; 4])] {
            let found: Vec<Range<usize>> = blocks(rows, QUERIES).collect();
            assert_eq!(found.iter().map(ExactSizeIterator::len).collect::<Vec<_>>(), sizes);
            assert!(found.windows(2).all(|pair| pair[0].end == pair[1].start));
        }
    }

    #[test]
    fn the_last_query_sees_the_last_key() {
        let scope = |queries, keys, limit| Scope {
            sample: 0,
            head: 0,
            queries: 0..queries,
            keys: 0..keys,
            limit,
            causal: true,
            copies: [std::ptr::null_mut(); COPIES],
        };
        let seen = |scope: Scope| (0..scope.queries.len()).map(|i| scope.seen(i)).collect::<Vec<_>>();
        assert_eq!(seen(scope(3, 5, 5)), [3, 4, 5]);
        assert_eq!(seen(scope(1, 7, 4)), [4]);
        assert_eq!(seen(scope(4, 2, 2)), [0, 0, 1, 2]);
    }
}
