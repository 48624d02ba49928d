//! Matrix products, with what follows them.

use alip_plan::kernel::Product;

use super::code::{self, Scope};
use super::matrix::{Matrix, Task, multiply};
use super::{EmitError, Text};
use crate::codegen::emit::terms::offset;

pub(super) fn emit(product: &Product, text: &mut Text<'_>) -> Result<(), EmitError> {
    let rank = product.batch.len();
    let (a, b) = (&product.a, &product.b);
    text.operands([a, b])?;
    let rows = [a.strides[rank], a.strides[rank + 1]];
    let columns = [b.strides[rank + 1], b.strides[rank]];
    let task = Task {
        batches: product.batch.iter().product(),
        a: Matrix::strided("a", a, rows, [product.m, product.k], &a.strides[..rank]),
        b: Matrix::strided("b", b, columns, [product.n, product.k], &b.strides[..rank]),
    };
    let base = |text: &mut Text<'_>| {
        let coords = code::unravel(text, "batch", &product.batch, "c");
        text.unsigned("base_a", offset(&coords, &a.strides[..rank], a.offset));
        text.unsigned("base_b", offset(&coords, &b.strides[..rank], b.offset));
    };
    multiply(&task, text, base, |text| {
        let mut coords = code::unravel(text, "batch", &product.batch, "c");
        coords.extend(["row".to_string(), "column".to_string()]);
        let scope = Scope { product: Some("value"), ..Scope::plain(&product.views, &coords, "v") };
        code::write(text, &product.code, &scope).map(drop)
    })
}
