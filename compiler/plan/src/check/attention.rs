//! Laws of attention: what is needed is there, every view stays in its buffer, and every element of the results is written
//! by one point, apart from all that is read.
//!
//! Results may lie inside one another's rows (three gradients in one packed buffer), so that their spans overlap although no
//! element does.

use super::{ByteRange, Checked, one_to_one, view_range};
use crate::kernel::{Attention, AttentionResult, Rows, View};
use crate::{Buffer, DType};

/// A view that is written or read, with the bytes it spans (none: it has no element).
struct Access<'a> {
    name: String,
    view: &'a View,
    domain: Vec<u64>,
    range: Option<ByteRange>,
}

pub(super) fn check(attention: &Attention, operands: &[&Buffer]) -> Checked {
    complete(attention)?;
    if !attention.q.dtype.is_float() {
        return Err(format!("attention of {}", attention.q.dtype));
    }
    let access = |name: String, view, domain: Vec<u64>| {
        let wanted = match name.as_str() {
            "extents" => DType::I32,
            "lse" | "delta" | "Lse" | "GradQ" | "GradK" | "GradV" => DType::F32,
            _ => attention.q.dtype,
        };
        let range = access(attention, operands, view, &domain, wanted);
        range.map_err(|why| format!("{name}: {why}")).map(|range| Access { name, view, domain, range })
    };
    let inputs = attention.inputs().into_iter().map(|(name, view, domain)| access(name.into(), view, domain));
    let inputs = inputs.collect::<Checked<Vec<Access<'_>>>>()?;
    let results = attention.results.iter();
    let results = results.map(|(result, view)| access(format!("{result:?}"), view, attention.domain(*result)));
    let results = results.collect::<Checked<Vec<Access<'_>>>>()?;
    for (index, result) in results.iter().enumerate() {
        if !one_to_one(result.view.strides.iter().copied().zip(result.domain.iter().copied())) {
            return Err(format!("{} stores several points to one element", result.name));
        }
        for other in inputs.iter().chain(&results[..index]) {
            if !apart(result, other) {
                return Err(format!("{} is stored where {} lies", result.name, other.name));
            }
        }
    }
    Ok(())
}

/// Is all there that the results are computed from?
fn complete(attention: &Attention) -> Checked {
    let Attention { rows, samples, segments, v, extents, lse, g, delta, results, .. } = attention;
    let forward = |result: AttentionResult| matches!(result, AttentionResult::Out | AttentionResult::Lse);
    let mut distinct: Vec<AttentionResult> = results.iter().map(|(result, _)| *result).collect();
    distinct.sort_unstable();
    distinct.dedup();
    let Some(first) = distinct.first() else { return Err("nothing is computed".into()) };
    if distinct.len() < results.len() || distinct.iter().any(|result| forward(*result) != forward(*first)) {
        return Err(format!("{distinct:?} are not results of one kernel"));
    }
    if extents.is_some() != (*rows != Rows::Dense) || (*rows == Rows::Segments) != (*segments > 0) {
        return Err(format!("{rows:?} rows with {segments} segments"));
    }
    if *rows == Rows::Segments && *samples != 1 {
        return Err(format!("packed rows of {samples} samples"));
    }
    for result in distinct {
        use AttentionResult::*;
        let needs = match result {
            Out => v.is_some(),
            Lse => true,
            GradQ | GradK => v.is_some() && lse.is_some() && g.is_some() && delta.is_some(),
            GradV => lse.is_some() && g.is_some(),
        };
        if !needs {
            return Err(format!("{result:?} lacks an operand"));
        }
    }
    Ok(())
}

/// The bytes a view spans.
fn access(
    attention: &Attention,
    operands: &[&Buffer],
    view: &View,
    domain: &[u64],
    wanted: DType,
) -> Checked<Option<ByteRange>> {
    let elements = domain.iter().try_fold(1i64, |product, &size| product.checked_mul(i64::try_from(size).ok()?));
    if elements.is_none() || attention.queries.max(attention.keys) > i32::MAX as u64 {
        return Err(format!("the domain {domain:?} is too large"));
    }
    if view.gather.is_some() {
        return Err("is gathered".into());
    }
    if view.dtype != wanted {
        return Err(format!("{} instead of {wanted}", view.dtype));
    }
    view_range(operands, view, domain)
}

/// Do two views share no element? Either their spans are apart, or they walk alike and the distance of their first elements
/// is one more dimension under which every point keeps an element of its own.
fn apart(a: &Access<'_>, b: &Access<'_>) -> bool {
    let (Some(first), Some(second)) = (a.range, b.range) else { return true };
    if !first.overlaps(&second) {
        return true;
    }
    if a.domain.len() != b.domain.len() {
        return false;
    }
    let walks = a.view.strides.iter().zip(&a.domain).zip(b.view.strides.iter().zip(&b.domain));
    let mut dims = Vec::new();
    for ((&stride, &size), (&other, &others)) in walks {
        match (size > 1, others > 1) {
            (true, true) if stride != other => return false,
            (true, _) => dims.push((stride, size.max(others))),
            _ => dims.push((other, others)),
        }
        if dims.last().is_some_and(|dim| dim.0 < 0 && dim.1 > 1) {
            return false; // spans begin at the first element only where nothing runs backwards
        }
    }
    let bytes = (first.start - second.start).unsigned_abs();
    let size = u128::from(a.view.dtype.bytes());
    let Ok(distance) = i64::try_from(bytes / size) else { return false };
    dims.push((distance, 2));
    bytes.is_multiple_of(size) && one_to_one(dims.into_iter())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Real;

    const SIZES: [i64; 4] = [2, 5, 3, 4];

    fn view(operand: u16, offset: i64, strides: &[i64]) -> View {
        View { operand, dtype: DType::F32, offset, strides: strides.to_vec(), gather: None }
    }

    /// Gradients of packed projections: operand 0 holds q, k and v, operand 1 lse and delta, operand 2 g, 3 the gradients.
    fn packed() -> (Attention, Vec<Buffer>) {
        let [n, l, h, d] = SIZES;
        let row = 3 * h * d;
        let part = |operand, part: i64| view(operand, part * h * d, &[l * row, row, d, 1]);
        let stat = |offset| view(1, offset, &[l * h, h, 1]);
        let attention = Attention {
            rows: Rows::Dense,
            samples: n as u64,
            segments: 0,
            queries: l as u64,
            keys: l as u64,
            heads: h as u64,
            d: d as u64,
            e: d as u64,
            causal: true,
            scale: Real(0.5),
            q: part(0, 0),
            k: part(0, 1),
            v: Some(part(0, 2)),
            extents: None,
            lse: Some(stat(0)),
            g: Some(view(2, 0, &[l * h * d, h * d, d, 1])),
            delta: Some(stat(n * l * h)),
            results: vec![
                (AttentionResult::GradQ, part(3, 0)),
                (AttentionResult::GradK, part(3, 1)),
                (AttentionResult::GradV, part(3, 2)),
            ],
        };
        let elements = [n * l * row, 2 * n * l * h, n * l * h * d, n * l * row];
        let buffer = |(index, elements): (usize, i64)| Buffer {
            segment: index as u32,
            offset: 0,
            dtype: DType::F32,
            shape: vec![elements as u64],
        };
        (attention, elements.into_iter().enumerate().map(buffer).collect())
    }

    /// What `check` says of the packed case after a change.
    fn checked(change: impl FnOnce(&mut Attention, &mut Vec<Buffer>)) -> Checked {
        let (mut attention, mut buffers) = packed();
        change(&mut attention, &mut buffers);
        check(&attention, &buffers.iter().collect::<Vec<_>>())
    }

    #[test]
    fn gradients_may_lie_between_one_another() {
        assert_eq!(checked(|_, _| {}), Ok(()));
    }

    #[test]
    fn what_breaks_a_law_is_named() {
        let refused = |change: fn(&mut Attention, &mut Vec<Buffer>), part: &str| {
            let error = checked(change).expect_err(part);
            assert!(error.contains(part), "{error}");
        };
        refused(|a, _| a.results[1].1.offset -= 1, "GradK is stored where GradQ lies");
        refused(|a, _| a.results[2].1.offset += 1, "GradV: elements");
        refused(|a, _| a.results[0].1.strides[2] = 3, "GradQ stores several points to one element");
        refused(|a, _| a.results[0].1.operand = 0, "GradQ is stored where q lies");
        refused(|a, _| a.k.offset = -1, "k: elements -1 to");
        refused(|_, b| b[2].shape[0] -= 1, "g: elements 0 to 119 of operand 2, which has 119");
        refused(|a, _| a.q.operand = 9, "q: operand 9 of 4");
        refused(|a, _| a.delta = None, "GradQ lacks an operand");
        refused(|a, _| a.results.clear(), "nothing is computed");
        refused(|a, _| a.results[1].0 = AttentionResult::Out, "are not results of one kernel");
        refused(|a, _| a.rows = Rows::Segments, "Segments rows with 0 segments");
        refused(|a, _| a.lse.as_mut().unwrap().dtype = DType::Bf16, "lse: bf16 instead of f32");
        refused(|a, _| a.q.dtype = DType::I32, "attention of i32");
        let narrow_queries = |a: &mut Attention, b: &mut Vec<Buffer>| {
            (a.q.dtype, b[0].dtype) = (DType::Bf16, DType::Bf16);
        };
        refused(narrow_queries, "k: f32 instead of bf16");
        refused(|a, _| a.queries = u64::MAX, "is too large");
    }

    #[test]
    fn segments_are_checked_as_a_tensor() {
        let packed = |count: u64| {
            checked(|a, b| {
                (a.rows, a.segments, a.samples) = (Rows::Segments, 4, 1);
                a.extents = Some(View { dtype: DType::I32, ..view(4, 0, &[5, 1]) });
                b.push(Buffer { segment: 4, offset: 0, dtype: DType::I32, shape: vec![2, count] });
            })
        };
        assert_eq!(packed(5), Ok(()));
        assert!(packed(4).is_err_and(|error| error.starts_with("extents: elements 0 to 9")));
    }
}
