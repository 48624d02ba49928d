//! Attention by its definition: one query and head at a time, with all of its scores at hand.

use alip_plan::kernel::{Attention, AttentionResult, Rows, View};

use super::{Memory, points};

/// The rows of a sample or segment, and how many of its keys can be seen at all.
struct Group {
    sample: u64,
    queries: std::ops::Range<u64>,
    keys: std::ops::Range<u64>,
    limit: u64,
}

impl Memory<'_> {
    pub(super) fn attention(&mut self, attention: &Attention) {
        for (result, view) in &attention.results {
            let sums = self.attention_result(attention, *result);
            for (at, sum) in points(&attention.domain(*result)).zip(sums) {
                let element = self.element(view, &at);
                self.put(view.operand, element, sum);
            }
        }
    }

    /// All elements of a result, in the order of its domain.
    fn attention_result(&self, attention: &Attention, result: AttentionResult) -> Vec<f64> {
        let domain = attention.domain(result);
        let width = domain.get(3).copied().unwrap_or(1);
        let mut sums = vec![0.0; domain.iter().product::<u64>() as usize];
        for group in self.groups(attention) {
            for (i, head) in (0..group.queries.end - group.queries.start)
                .flat_map(|i| (0..attention.heads).map(move |head| (i, head)))
            {
                let row = group.queries.start + i;
                let count = group.keys.end - group.keys.start;
                let aligned = (i + 1 + count).saturating_sub(group.queries.end - group.queries.start);
                let seen = if attention.causal { group.limit.min(aligned) } else { group.limit };
                let keys = group.keys.start..group.keys.start + seen;
                for (to, factor, what) in self.query(attention, result, group.sample, [row, head], keys) {
                    let start = ((group.sample * domain[1] + to) * attention.heads + head) * width;
                    for (sum, x) in sums[start as usize..].iter_mut().zip(what) {
                        *sum += factor * x;
                    }
                }
            }
        }
        sums
    }

    /// What a query adds to a result: to which row, a factor, and the row it multiplies.
    fn query(
        &self,
        attention: &Attention,
        result: AttentionResult,
        sample: u64,
        [row, head]: [u64; 2],
        keys: std::ops::Range<u64>,
    ) -> Vec<(u64, f64, Vec<f64>)> {
        let line = |view: &View, row: u64, width: u64| -> Vec<f64> {
            (0..width).map(|x| self.get(view.operand, self.element(view, &[sample, row, head, x]))).collect()
        };
        let one = |view: &Option<View>| {
            view.as_ref().map_or(0.0, |view| self.get(view.operand, self.element(view, &[sample, row, head])))
        };
        let inner = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
        let (d, e) = (attention.d, attention.e);
        let q = line(&attention.q, row, d);
        let value = |key: u64| attention.v.as_ref().map_or(Vec::new(), |v| line(v, key, e));
        let scores: Vec<f64> =
            keys.clone().map(|key| attention.scale.0 * inner(&q, &line(&attention.k, key, d))).collect();
        if scores.is_empty() {
            return Vec::new();
        }
        let top = scores.iter().copied().fold(f64::NEG_INFINITY, super::maximum);
        // Infinities have no distance to be taken.
        let top = top.clamp(f64::from(f32::MIN), f64::from(f32::MAX));
        let lse = match &attention.lse {
            Some(_) => one(&attention.lse),
            None => top + libm::log(scores.iter().map(|score| libm::exp(score - top)).sum()),
        };
        let g = attention.g.as_ref().map_or(Vec::new(), |g| line(g, row, e));
        let delta = one(&attention.delta);
        let weighed = keys.zip(scores).map(|(key, score)| (key, libm::exp(score - lse)));
        let slope = |p: f64, key: u64| attention.scale.0 * p * (inner(&g, &value(key)) - delta);
        match result {
            AttentionResult::Lse => vec![(row, lse, vec![1.0])],
            AttentionResult::Out => weighed.map(|(key, p)| (row, p, value(key))).collect(),
            AttentionResult::GradV => weighed.map(|(key, p)| (key, p, g.clone())).collect(),
            AttentionResult::GradK => weighed.map(|(key, p)| (key, slope(p, key), q.clone())).collect(),
            AttentionResult::GradQ => {
                weighed.map(|(key, p)| (row, slope(p, key), line(&attention.k, key, d))).collect()
            }
        }
    }

    /// Samples, or segments with edges clamped into the rows; one that falls counts as the highest before it.
    fn groups(&self, attention: &Attention) -> Vec<Group> {
        let Attention { queries, keys, .. } = *attention;
        let extent = |at: &[u64]| {
            attention.extents.as_ref().map_or(0, |view| self.get(view.operand, self.element(view, at)) as i64)
        };
        if attention.rows == Rows::Segments {
            let mut last = [0, 0];
            let mut edges = (0..=attention.segments).map(|index| {
                for (side, rows) in [queries, keys].into_iter().enumerate() {
                    last[side] = extent(&[side as u64, index]).clamp(0, rows as i64).max(last[side] as i64) as u64;
                }
                last
            });
            let mut before = edges.next().unwrap_or([0, 0]);
            let group = |edge: [u64; 2]| {
                let (queries, keys) = (before[0]..edge[0], before[1]..edge[1]);
                before = edge;
                Group { sample: 0, limit: keys.end - keys.start, queries, keys }
            };
            return edges.map(group).collect();
        }
        let limit = |sample: u64| match attention.rows {
            Rows::Lengths => (extent(&[sample]).max(1) as u64).min(keys),
            _ => keys,
        };
        let group = |sample: u64| Group { sample, queries: 0..queries, keys: 0..keys, limit: limit(sample) };
        (0..attention.samples).map(group).collect()
    }
}
