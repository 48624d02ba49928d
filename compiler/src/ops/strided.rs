//! Walks over strided tensors, shared by the reference meanings.

use crate::graph::Shape;

/// Strides, in elements, of a dense row-major tensor.
pub(super) fn strides(shape: &Shape) -> Vec<usize> {
    let mut strides = vec![1; shape.rank()];
    for axis in (1..shape.rank()).rev() {
        strides[axis - 1] = strides[axis] * shape.size(axis) as usize;
    }
    strides
}

/// Calls `f` with the offset of every point of `domain`, in row-major order of the points.
pub(super) fn for_each(domain: &[usize], offset: usize, strides: &[usize], mut f: impl FnMut(usize)) {
    let Some((&inner, outer)) = domain.split_last() else { return f(offset) };
    let inner_stride = strides[outer.len()];
    let mut index = vec![0; outer.len()];
    let mut start = offset;
    loop {
        for i in 0..inner {
            f(start + i * inner_stride);
        }
        // Advance the odometer of the outer dimensions.
        let mut axis = outer.len();
        loop {
            if axis == 0 {
                return;
            }
            axis -= 1;
            index[axis] += 1;
            start += strides[axis];
            if index[axis] < outer[axis] {
                break;
            }
            start -= strides[axis] * outer[axis];
            index[axis] = 0;
        }
    }
}

/// The elements at every point of `domain`, in row-major order.
pub(super) fn read(data: &[f64], domain: &[usize], offset: usize, strides: &[usize]) -> Vec<f64> {
    let mut out = Vec::with_capacity(domain.iter().product());
    for_each(domain, offset, strides, |at| out.push(data[at]));
    out
}

/// The tensor with its dimensions in another order: dimension `i` of the result is dimension `perm[i]`.
pub(super) fn permuted(data: &[f64], shape: &Shape, perm: &[usize]) -> Vec<f64> {
    if perm.iter().enumerate().all(|(i, axis)| i == *axis) {
        return data.to_vec();
    }
    let all = strides(shape);
    let domain: Vec<usize> = perm.iter().map(|axis| shape.size(*axis) as usize).collect();
    let strides: Vec<usize> = perm.iter().map(|axis| all[*axis]).collect();
    read(data, &domain, 0, &strides)
}

/// Sizes as indices.
pub(super) fn sizes(shape: &Shape) -> Vec<usize> {
    shape.0.iter().map(|dim| dim.size as usize).collect()
}
