use super::*;
use crate::Real;
use crate::kernel::{Code, Gather};
use DType::{Bf16, F16, F32};

/// `out[m, n] = a[m, k] b[k, n]` of 24 x 40 results and sums of 16, row-major, with a batch of as many.
fn product(batch: &[u64], factors: DType, stored: DType) -> Product {
    let over = |operand, dtype, tail: [u64; 2]| View::dense(operand, dtype, &[batch, &tail].concat());
    Product {
        batch: batch.to_vec(),
        m: 24,
        n: 40,
        k: 16,
        a: over(0, factors, [24, 16]),
        b: over(1, factors, [16, 40]),
        views: vec![over(2, stored, [24, 40])],
        code: code(&[(ScalarOp::Product, F32, &[]), (ScalarOp::Store(0), F32, &[0])]),
    }
}

fn code(instrs: &[(ScalarOp, DType, &[u16])]) -> Code {
    let instr = |(op, dtype, given): &(ScalarOp, DType, &[u16])| {
        let mut args = [0; 3];
        args[..given.len()].copy_from_slice(given);
        Instr { op: *op, dtype: *dtype, args }
    };
    Code { instrs: instrs.iter().map(instr).collect() }
}

/// The product with these views added to it, in order, before it is stored.
fn with_added(mut product: Product, views: &[View]) -> Product {
    let mut instrs = vec![(ScalarOp::Product, F32, vec![])];
    for view in views {
        let last = instrs.len() as u16 - 1;
        instrs.push((ScalarOp::Load(product.views.len() as u16), F32, vec![]));
        instrs.push((ScalarOp::Add, F32, vec![last + 1, last]));
        product.views.push(view.clone());
    }
    let last = instrs.len() as u16 - 1;
    instrs.push((ScalarOp::Store(0), F32, vec![last]));
    let instrs: Vec<_> = instrs.iter().map(|(op, dtype, args)| (*op, *dtype, args.as_slice())).collect();
    product.code = code(&instrs);
    product
}

fn bias(dtype: DType, strides: &[i64]) -> View {
    View { operand: 3, dtype, offset: 0, strides: strides.to_vec(), gather: None }
}

fn refused(product: &Product, why: &str) {
    assert_eq!(Matmul::of(product), Err(why));
}

#[test]
fn a_row_major_result_exchanges_the_factors() {
    let found = Matmul::of(&product(&[], Bf16, F32)).unwrap();
    let matrix = |operand, dtype, rows, columns| Matrix {
        operand,
        dtype,
        offset: 0,
        rows,
        columns,
        leading: rows,
        transposed: false,
        batch_stride: 0,
    };
    let expected = Matmul {
        batch: 1,
        rows: 40,
        columns: 24,
        depth: 16,
        a: matrix(1, Bf16, 40, 16),
        b: matrix(0, Bf16, 16, 24),
        c: None,
        d: matrix(2, F32, 40, 24),
        alpha: 1.0,
        bias: None,
    };
    assert_eq!(found, expected);
}

#[test]
fn factors_lie_either_way() {
    let mut product = product(&[], F32, F32);
    product.a.strides = vec![1, 24];
    product.b.strides = vec![1, 20];
    let found = Matmul::of(&product).unwrap();
    // `b` lies by columns of 16 in 20: as rows and columns of the transpose.
    let Matrix { rows, columns, leading, transposed, .. } = found.a;
    assert_eq!((rows, columns, leading, transposed), (16, 40, 20, true));
    let Matrix { rows, columns, leading, transposed, .. } = found.b;
    assert_eq!((rows, columns, leading, transposed), (24, 16, 24, true));
}

#[test]
fn a_column_major_result_keeps_the_sides_of_its_factors() {
    let mut product = product(&[], F32, F32);
    product.views[0].strides = vec![1, 24];
    let found = Matmul::of(&product).unwrap();
    assert_eq!((found.a.operand, found.b.operand, found.rows, found.columns), (0, 1, 24, 40));
    assert!(found.a.transposed && found.b.transposed);
}

#[test]
fn batches_merge_or_repeat() {
    let mut product = product(&[3, 1, 5], F16, F16);
    product.b.strides = vec![0, 7, 0, 40, 1];
    let found = Matmul::of(&product).unwrap();
    assert_eq!(found.batch, 15);
    assert_eq!([found.a, found.b, found.d].map(|matrix| matrix.batch_stride), [0, 24 * 16, 24 * 40]);
    product.a.strides[0] += 8;
    refused(&product, "the dimensions of its batch are not one");
}

#[test]
fn dimensions_of_one_have_no_stride() {
    let mut product = product(&[], F32, F32);
    (product.m, product.a.strides[0], product.views[0].strides[0]) = (1, 3, 5);
    let found = Matmul::of(&product).unwrap();
    assert_eq!((found.columns, found.b.leading, found.d.leading), (1, 16, 40));
    // A single column of a row-major result lies by its stride, which must be a leading dimension.
    (product.m, product.a.strides[0], product.views[0].strides[0]) = (24, 16, 1);
    (product.n, product.b.strides) = (1, vec![1, 7]);
    let found = Matmul::of(&product).unwrap();
    assert_eq!((found.rows, found.columns, found.d.leading), (24, 1, 24));
    product.views[0].strides[0] = 3;
    refused(&product, NO_MATRIX);
}

#[test]
fn what_is_added_is_a_bias_or_a_matrix() {
    let plain = || product(&[2], F32, F32);
    let addend = View { operand: 4, ..plain().views[0].clone() };
    let found = Matmul::of(&with_added(plain(), &[addend.clone(), bias(F32, &[0, 0, 1])])).unwrap();
    assert_eq!(found.bias, Some(Vector { operand: 3, offset: 0 }));
    assert_eq!(found.c, Some(Matrix { operand: 4, ..found.d }));
    // Along the columns of D there is no bias, and it is no matrix.
    refused(&with_added(plain(), &[bias(F32, &[0, 1, 0])]), NO_MATRIX);
    // One for each product of the batch is none either.
    refused(&with_added(plain(), &[bias(F32, &[40, 0, 1])]), NO_MATRIX);
    refused(&with_added(plain(), &[addend.clone(), addend.clone()]), "more is added than the library adds");
    let narrow = with_added(product(&[], Bf16, Bf16), &[bias(F32, &[0, 1])]);
    refused(&narrow, "what is added is not of the type of the result");
    assert!(Matmul::of(&with_added(product(&[], Bf16, F32), &[bias(F32, &[0, 1])])).is_ok());
}

#[test]
fn a_bias_follows_the_columns_of_a_result_that_lies_by_them() {
    let mut product = with_added(product(&[], F32, F32), &[bias(F32, &[1, 0])]);
    product.views[0].strides = vec![1, 24];
    assert_eq!(Matmul::of(&product).unwrap().bias, Some(Vector { operand: 3, offset: 0 }));
}

#[test]
fn a_factor_is_alpha_unless_it_would_hide_the_product() {
    let scaled = |factor: f64| {
        let mut product = product(&[], F32, F32);
        product.code = code(&[
            (ScalarOp::Const(Real(factor)), F32, &[]),
            (ScalarOp::Product, F32, &[]),
            (ScalarOp::Mul, F32, &[0, 1]),
            (ScalarOp::Store(0), F32, &[2]),
        ]);
        Matmul::of(&product).map(|found| found.alpha)
    };
    assert_eq!(scaled(0.125), Ok(0.125));
    for hiding in [0.0, 1e-60, f64::INFINITY, f64::NAN] {
        assert_eq!(scaled(hiding), Err(NOT_SERVED));
    }
}

#[test]
fn results_are_rounded_once() {
    let rounded = |to: DType, stored: DType, more: &[(ScalarOp, DType, &[u16])]| {
        let mut product = with_added(product(&[], Bf16, stored), &[]);
        let mut instrs: Vec<(ScalarOp, DType, &[u16])> =
            vec![(ScalarOp::Product, F32, &[]), (ScalarOp::Cast(to), F32, &[0])];
        instrs.extend(more);
        product.code = code(&instrs);
        Matmul::of(&product).map(drop)
    };
    let store: (ScalarOp, DType, &[u16]) = (ScalarOp::Store(0), F32, &[1]);
    assert_eq!(rounded(Bf16, Bf16, &[store]), Ok(()));
    assert_eq!(rounded(Bf16, F32, &[store]), Err("its result is rounded to another type than it is stored in"));
    let again: &[(ScalarOp, DType, &[u16])] = &[(ScalarOp::Cast(F16), F32, &[1]), (ScalarOp::Store(0), F32, &[2])];
    assert_eq!(rounded(Bf16, F16, again), Err("it is rounded more than once"));
    let added: &[(ScalarOp, DType, &[u16])] = &[(ScalarOp::Add, F32, &[1, 1]), (ScalarOp::Store(0), F32, &[2])];
    assert_eq!(rounded(Bf16, Bf16, added), Err("it is rounded before something is added"));
}

#[test]
fn what_the_library_has_not_is_refused() {
    let types = "its factors and its result are of types that the library does not join";
    refused(&product(&[], F32, Bf16), types);
    refused(&product(&[], F16, Bf16), types);
    let mut mixed = product(&[], F32, F32);
    mixed.a.dtype = Bf16;
    refused(&mixed, "its factors are of two types");
    let changed = |change: fn(&mut Product)| {
        let mut product = product(&[2], Bf16, Bf16);
        change(&mut product);
        product
    };
    let empty = "it has a dimension that is empty or too large";
    refused(&changed(|product| product.k = 0), empty);
    refused(&changed(|product| product.m = 1 << 31), empty);
    refused(&changed(|product| product.batch = vec![1 << 16]), empty);
    assert!(Matmul::of(&changed(|product| product.batch = vec![(1 << 16) - 1])).is_ok());
    refused(&changed(|product| product.a.offset = 4), NO_MATRIX);
    refused(&changed(|product| product.a.strides[1] = 20), NO_MATRIX);
    refused(&changed(|product| product.a.strides[1] = 8), NO_MATRIX);
    refused(&changed(|product| product.a.strides[1] = -16), NO_MATRIX);
    refused(&changed(|product| product.a.strides[2] = 2), NO_MATRIX);
    refused(&changed(|product| product.b.strides[0] = 644), NO_MATRIX);
    refused(&changed(|product| product.code = Code::default()), NOT_SERVED);
    let gathered = changed(|product| {
        let gather = Gather { operand: 4, offset: 0, strides: vec![0; 3], stride: 1, limit: 1 };
        product.views[0].gather = Some(gather);
    });
    refused(&gathered, "what follows it gathers");
    let twice = changed(|product| {
        product.views.push(View { operand: 5, ..product.views[0].clone() });
        let twice = (ScalarOp::Store(1), F32, [0].as_slice());
        product.code = code(&[(ScalarOp::Product, F32, &[]), (ScalarOp::Store(0), F32, &[0]), twice]);
    });
    refused(&twice, "it has several results");
}
