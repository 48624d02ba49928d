//! Convolutions whose windows do not overlap are products: every pixel is read once, so that columns of pixels are a view of
//! the image. With a window of one pixel the image itself is.

use egg::Id;

use super::Rule;
use super::Tag::Reassociates;
use crate::ir::Shape;
use crate::ops::{Conv, Dot, Op};
use crate::optimize::language::Kind;
use crate::optimize::pattern::*;
use crate::optimize::site::Site;

pub(super) fn rules() -> Vec<Rule> {
    vec![
        Rule::build("patches", Reassociates, node(Kind::Conv, [X, Y]), patches),
        Rule::build("patches-image-grad", Reassociates, node(Kind::ImageGrad, [X, Y]), patches_image_grad),
        Rule::build("patches-weight-grad", Reassociates, node(Kind::WeightGrad, [X, Y]), patches_weight_grad),
        Rule::build("pixels", Reassociates, node(Kind::Conv, [X, Y]), pixels),
        Rule::build("pixels-image-grad", Reassociates, node(Kind::ImageGrad, [X, Y]), pixels_image_grad),
    ]
}

/// Sides of the window, if windows do not overlap.
fn window(conv: &Conv, weight: &[u64]) -> Option<u64> {
    let fits = conv.padding == 0 && weight[2] == conv.stride && weight[3] == conv.stride;
    fits.then_some(conv.stride)
}

/// `[n, c, oh, k, ow, k]` of an image, which loses the pixels that no window reads.
fn blocks(s: &mut Site<'_>, image: Id, k: u64, [oh, ow]: [u64; 2]) -> Option<Id> {
    let whole = s.slice_axis(image, 2, 0, oh * k)?;
    let whole = s.slice_axis(whole, 3, 0, ow * k)?;
    let shape = s.shape(image);
    let tail = [oh, k, ow, k].into_iter().map(Into::into);
    s.reshape(whole, Shape(shape.0[..2].iter().cloned().chain(tail).collect()))
}

fn patches(s: &mut Site<'_>) -> Option<Id> {
    let Op::Conv2d(conv) = s.op(0) else { return None };
    let (image, weight) = (s.var(&X)?, s.var(&Y)?);
    let (k, out) = (window(&conv, &s.sizes(weight))?, s.sizes(s.root()));
    let blocks = blocks(s, image, k, [out[2], out[3]])?;
    let product = s.dot(blocks, weight, Dot { batch: vec![], contract: vec![(1, 1), (3, 2), (5, 3)] })?;
    s.transpose(product, vec![0, 3, 1, 2])
}

fn patches_image_grad(s: &mut Site<'_>) -> Option<Id> {
    let Op::Conv2d(conv) = s.op(0) else { return None };
    let (gradient, weight) = (s.var(&X)?, s.var(&Y)?);
    let (k, out) = (window(&conv, &s.sizes(weight))?, s.sizes(gradient));
    let product = s.dot(gradient, weight, Dot { batch: vec![], contract: vec![(1, 0)] })?;
    let blocks = s.transpose(product, vec![0, 3, 1, 4, 2, 5])?;
    let image = s.sizes(s.root());
    let whole = s.reshape(blocks, [image[0], image[1], out[2] * k, out[3] * k])?;
    let high = vec![0, 0, image[2] - out[2] * k, image[3] - out[3] * k];
    s.add(Op::Pad { low: vec![0; 4], high, interior: vec![0; 4] }, &[whole])
}

fn patches_weight_grad(s: &mut Site<'_>) -> Option<Id> {
    let Op::Conv2d(conv) = s.op(0) else { return None };
    let (image, gradient) = (s.var(&X)?, s.var(&Y)?);
    let (k, out) = (window(&conv, &s.sizes(s.root()))?, s.sizes(gradient));
    let blocks = blocks(s, image, k, [out[2], out[3]])?;
    s.dot(gradient, blocks, Dot { batch: vec![], contract: vec![(0, 0), (2, 2), (3, 4)] })
}

/// `[n, c, pixels]`.
fn flat(s: &mut Site<'_>, image: Id) -> Option<Id> {
    let sizes = s.sizes(image);
    let shape = s.shape(image);
    let pixels = (sizes[2] * sizes[3]).into();
    s.reshape(image, Shape(shape.0[..2].iter().cloned().chain([pixels]).collect()))
}

/// The weight as a matrix, the same for every image.
fn matrices(s: &mut Site<'_>, weight: Id, images: u64) -> Option<Id> {
    let sizes = s.sizes(weight);
    let matrix = s.reshape(weight, [sizes[0], sizes[1]])?;
    s.broadcast(matrix, [images, sizes[0], sizes[1]].into(), vec![1, 2])
}

/// A window of one pixel mixes channels: a product per image, without a transpose.
fn pixels(s: &mut Site<'_>) -> Option<Id> {
    let Op::Conv2d(conv) = s.op(0) else { return None };
    let (image, weight) = (s.var(&X)?, s.var(&Y)?);
    window(&conv, &s.sizes(weight)).filter(|k| *k == 1)?;
    let image = flat(s, image)?;
    let matrix = matrices(s, weight, s.sizes(image)[0])?;
    let product = s.dot(matrix, image, Dot { batch: vec![(0, 0)], contract: vec![(2, 1)] })?;
    s.reshape(product, s.shape(s.root()))
}

fn pixels_image_grad(s: &mut Site<'_>) -> Option<Id> {
    let Op::Conv2d(conv) = s.op(0) else { return None };
    let (gradient, weight) = (s.var(&X)?, s.var(&Y)?);
    window(&conv, &s.sizes(weight)).filter(|k| *k == 1)?;
    let gradient = flat(s, gradient)?;
    let matrix = matrices(s, weight, s.sizes(gradient)[0])?;
    let product = s.dot(matrix, gradient, Dot { batch: vec![(0, 0)], contract: vec![(1, 1)] })?;
    s.reshape(product, s.shape(s.root()))
}
