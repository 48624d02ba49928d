//! Laws of kernels whose operands are dense: convolutions and scatters.

use super::{ByteRange, Checked, Typing, view_range};
use crate::kernel::{Conv2d, ConvKind, ScalarOp, ScatterAdd, View};
use crate::{Buffer, DType};

pub(super) fn conv2d(conv: &Conv2d, operands: &[&Buffer]) -> Checked {
    let [a, b, out] = &conv_domains(conv)?;
    let (b, out) = (("b", &conv.b, b.as_slice()), ("the result", &conv.out, out.as_slice()));
    if conv.prologue.instrs.is_empty() {
        if !conv.a.dtype.is_float() || conv.b.dtype != conv.a.dtype {
            return Err(format!("a convolution of {} and {}", conv.a.dtype, conv.b.dtype));
        }
        return views(operands, [("a", &conv.a, a), b, out], [conv.a.dtype, conv.b.dtype, DType::F32]);
    }
    if !conv.b.dtype.is_float() {
        return Err(format!("a convolution with {}", conv.b.dtype));
    }
    prologue(conv)?;
    let [b, out] = [(b, conv.b.dtype), (out, DType::F32)].map(|(view, dtype)| dense(operands, view, dtype));
    apart([walked(operands, ("a", &conv.a, a))?, b?, out?])
}

/// Code that makes pixels of what one view loads, and does nothing else.
fn prologue(conv: &Conv2d) -> Checked {
    let of = |why: String| format!("the prologue of a convolution: {why}");
    if conv.kind == ConvKind::ImageGrad || conv.a.gather.is_some() {
        return Err(of("before what is no image, or is gathered".into()));
    }
    let typing = Typing { views: std::slice::from_ref(&conv.a), dims: 4, slots: None, product: false };
    let types = typing.check(&conv.prologue).map_err(of)?;
    if conv.prologue.instrs.iter().any(|instr| matches!(instr.op, ScalarOp::Store(_))) {
        return Err(of("it stores".into()));
    }
    match types.last() {
        Some(DType::F32) => Ok(()),
        Some(last) => Err(of(format!("it yields {last}, not f32"))),
        None => Err(of("it yields nothing".into())),
    }
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
    let [a, b, out] = views;
    let [x, y, z] = types;
    apart([dense(operands, a, x)?, dense(operands, b, y)?, dense(operands, out, z)?])
}

/// The bytes of a view that walks a dense value of this type.
fn dense(operands: &[&Buffer], named: (&str, &View, &[u64]), dtype: DType) -> Checked<Option<ByteRange>> {
    let range = walked(operands, named)?;
    let (name, view, domain) = named;
    if view.dtype != dtype || !view.is_dense(domain) {
        return Err(format!("{name} is no dense {dtype} over {domain:?}: {view:?}"));
    }
    Ok(range)
}

/// The bytes of a view over a domain of these sizes.
fn walked(operands: &[&Buffer], (name, view, domain): (&str, &View, &[u64])) -> Checked<Option<ByteRange>> {
    let elements = domain.iter().try_fold(1i64, |all, &size| all.checked_mul(i64::try_from(size).ok()?));
    if elements.is_none() {
        return Err(format!("the domain {domain:?} of {name} is too large"));
    }
    if domain.contains(&0) {
        return Err(format!("the domain {domain:?} of {name} is empty"));
    }
    view_range(operands, view, domain).map_err(|why| format!("{name}: {why}"))
}

/// What the last one writes overlaps no other.
fn apart(ranges: [Option<ByteRange>; 3]) -> Checked {
    match ranges {
        [a, b, Some(out)] if [a, b].into_iter().flatten().any(|range| range.overlaps(&out)) => {
            Err("the result overlaps an operand".into())
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::{Code, ConvKind, Instr, Loop};

    /// Two images of one pixel row, `[2, 3, 1, 4]`, convolved with themselves.
    fn conv() -> Conv2d {
        let dense = |operand, sizes: &[u64]| View::dense(operand, DType::F32, sizes);
        Conv2d {
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
            prologue: Code::default(),
        }
    }

    /// The same, changed; of operands of these sizes.
    fn check(change: impl FnOnce(&mut Conv2d), sizes: [u64; 2]) -> Result<(), String> {
        let mut conv = conv();
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

    /// An image of bytes `[2, 1, 4, 3]`, convolved with floats, and changed: its prologue doubles the bytes.
    fn check_prologue(change: impl FnOnce(&mut Conv2d), bytes: u64) -> Result<(), String> {
        let instr = |op, args| Instr { op, dtype: DType::F32, args };
        let instrs = vec![instr(ScalarOp::Load(0), [0; 3]), instr(ScalarOp::Add, [0, 0, 0])];
        let mut conv = Conv2d {
            a: View { strides: vec![12, 1, 0, 3], ..View::dense(0, DType::U8, &[]) },
            b: View::dense(1, DType::F32, &[2, 3, 1, 4]),
            out: View::dense(2, DType::F32, &[2, 2, 1, 1]),
            prologue: Code { instrs },
            ..conv()
        };
        change(&mut conv);
        let buffer = |offset, dtype, elements| Buffer { segment: 0, offset, dtype, shape: vec![elements] };
        let buffers = [buffer(0, DType::U8, bytes), buffer(64, DType::F32, 24), buffer(192, DType::F32, 4)];
        super::super::description(&Loop::Conv2d(conv), &buffers.each_ref())
    }

    #[test]
    fn a_prologue_makes_pixels_of_one_view() {
        let refused = |change: fn(&mut Conv2d), why: &str| {
            let found = check_prologue(change, 24).expect_err(why);
            assert!(found.contains(why), "{found}");
        };
        let push = |conv: &mut Conv2d, op, dtype| conv.prologue.instrs.push(Instr { op, dtype, args: [1, 0, 0] });
        assert_eq!(check_prologue(|_| {}, 24), Ok(()));
        refused(|conv| conv.b.dtype = DType::Bf16, "operand 1 is f32, viewed as bf16");
        let found = check_prologue(|_| {}, 23).unwrap_err();
        assert_eq!(found, "a: elements 0 to 23 of operand 0, which has 23");
        refused(|conv| conv.kind = ConvKind::ImageGrad, "before what is no image, or is gathered");
        refused(|conv| conv.b.dtype = DType::I32, "a convolution with i32");
        refused(|conv| conv.prologue.instrs[0].op = ScalarOp::Load(1), "view 1 of 1");
        refused(|conv| conv.prologue.instrs[0].dtype = DType::U8, "u8 through a view of f32");
        let refused = |op, dtype, why: &str| {
            let found = check_prologue(|conv| push(conv, op, dtype), 24).expect_err(why);
            assert!(found.contains(why), "{found}");
        };
        refused(ScalarOp::Store(0), DType::F32, "u8 is an input's type, which nothing is stored as");
        refused(ScalarOp::Cast(DType::U8), DType::F32, "u8 is an input's type, which nothing becomes");
        refused(ScalarOp::Cast(DType::I32), DType::F32, "it yields i32, not f32");
    }
}
