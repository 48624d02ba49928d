//! Laws of kernels whose operands are dense: convolutions and scatters.

use super::{ByteRange, Checked, view_range};
use crate::kernel::{Conv2d, ScatterAdd, View};
use crate::{Buffer, DType};

pub(super) fn conv2d(conv: &Conv2d, operands: &[&Buffer]) -> Checked {
    let domains = conv_domains(conv)?;
    if !conv.a.dtype.is_float() || conv.b.dtype != conv.a.dtype {
        return Err(format!("a convolution of {} and {}", conv.a.dtype, conv.b.dtype));
    }
    let types = [conv.a.dtype, conv.b.dtype, DType::F32];
    let [a, b, out] = &domains;
    views(operands, [("a", &conv.a, a), ("b", &conv.b, b), ("the result", &conv.out, out)], types)
}

pub(super) fn scatter_add(scatter: &ScatterAdd, operands: &[&Buffer]) -> Checked {
    let [index, updates, out] = &scatter.domains();
    let all = [
        ("the index", &scatter.index, index.as_slice()),
        ("what is added", &scatter.updates, updates),
        ("the result", &scatter.out, out),
    ];
    views(operands, all, [DType::I32, DType::F32, DType::F32])
}

/// The domains of a convolution, whose sizes may be anything.
fn conv_domains(conv: &Conv2d) -> Checked<[[u64; 4]; 3]> {
    let padded = |size: u64| conv.padding.checked_mul(2).and_then(|both| both.checked_add(size));
    let fits = |size: u64, window: u64| window > 0 && padded(size).is_some_and(|padded| padded >= window);
    if conv.stride == 0 || !fits(conv.h, conv.kh) || !fits(conv.w, conv.kw) {
        return Err("the window of a convolution does not fit its padded image".into());
    }
    Ok(conv.domains())
}

/// Views that walk dense values of these types; what the last one writes overlaps no other.
fn views(operands: &[&Buffer], views: [(&str, &View, &[u64]); 3], types: [DType; 3]) -> Checked {
    let mut ranges: Vec<Option<ByteRange>> = Vec::new();
    for ((name, view, domain), dtype) in views.into_iter().zip(types) {
        let elements = domain.iter().try_fold(1i64, |all, &size| all.checked_mul(i64::try_from(size).ok()?));
        if elements.is_none() {
            return Err(format!("the domain {domain:?} of {name} is too large"));
        }
        if domain.contains(&0) {
            return Err(format!("the domain {domain:?} of {name} is empty"));
        }
        if view.dtype != dtype || !view.is_dense(domain) {
            return Err(format!("{name} is no dense {dtype} over {domain:?}: {view:?}"));
        }
        ranges.push(view_range(operands, view, domain).map_err(|why| format!("{name}: {why}"))?);
    }
    match ranges.as_slice() {
        [a, b, Some(out)] if [a, b].into_iter().flatten().any(|range| range.overlaps(out)) => {
            Err("the result overlaps an operand".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{ConvKind, Loop};

    /// Two images of one pixel row, `[2, 3, 1, 4]`, convolved with themselves and changed; of operands of these sizes.
    fn check(change: impl FnOnce(&mut Conv2d), sizes: [u64; 2]) -> Result<(), String> {
        let dense = |operand, sizes: &[u64]| View::dense(operand, DType::F32, sizes);
        let mut conv = Conv2d {
            kind: ConvKind::Forward,
            n: 2,
            c: 3,
            h: 1,
            w: 4,
            o: 2,
            kh: 1,
            kw: 4,
            stride: 1,
            padding: 0,
            a: dense(0, &[2, 3, 1, 4]),
            b: dense(0, &[2, 3, 1, 4]),
            out: dense(1, &[2, 2, 1, 1]),
        };
        change(&mut conv);
        let mut offset = 0;
        let buffers = sizes.map(|size| {
            let buffer = Buffer { segment: 0, offset, dtype: DType::F32, shape: vec![size] };
            offset += buffer.bytes();
            buffer
        });
        super::super::description(&Loop::Conv2d(conv), &[&buffers[0], &buffers[1]])
    }

    #[test]
    fn one_value_is_both_factors() {
        assert_eq!(check(|_| {}, [24, 4]), Ok(()));
        assert_eq!(check(|conv| conv.a.offset = 6, [30, 4]), Ok(()));
    }

    #[test]
    fn views_are_dense_and_stay_in_their_operands() {
        let refused = |change: fn(&mut Conv2d), sizes, why: &str| {
            let found = check(change, sizes).expect_err(why);
            assert!(found.contains(why), "{found}");
        };
        refused(|_| {}, [23, 4], "a: elements 0 to 23 of operand 0, which has 23");
        refused(|conv| conv.a.offset = 6, [24, 4], "a: elements 6 to 29 of operand 0, which has 24");
        refused(|conv| conv.b.strides[1] = 5, [40, 4], "b is no dense f32 over [2, 3, 1, 4]");
        refused(|conv| conv.out = View { operand: 0, ..conv.out.clone() }, [24, 4], "the result overlaps an operand");
        refused(|conv| conv.b.dtype = DType::Bf16, [24, 4], "a convolution of f32 and bf16");
        refused(|conv| conv.n = 1 << 62, [24, 4], "is too large");
        refused(|conv| (conv.n, conv.a.offset) = (0, i64::MAX), [24, 4], "of a is empty");
        refused(|conv| conv.kw = 5, [24, 4], "the window of a convolution does not fit its padded image");
    }
}
