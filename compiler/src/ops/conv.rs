//! Two-dimensional cross-correlation and its two gradients, which are closed under differentiation.

use super::axes::{self, Along, Layout, No, Packs};
use super::cases::{Case, CaseBuilder};
use super::dot::{Matrix, product};
use super::rounding::{Found, Rounding};
use super::{Builder, Call, Conv, ConvKind, Op, OpError, Primitive, Tensor};
use crate::graph::{DType, Dim, NodeId, Shape, TensorType};

/// Sizes of a convolution, whichever of its three tensors is the result.
struct Sizes {
    n: usize,
    c: usize,
    h: usize,
    w: usize,
    o: usize,
    kh: usize,
    kw: usize,
    oh: usize,
    ow: usize,
    stride: usize,
    padding: usize,
}

impl Sizes {
    fn new(conv: &Conv, image: &Shape, weight: &Shape, out: &Shape) -> Sizes {
        let at = |shape: &Shape, axis: usize| shape.size(axis) as usize;
        Sizes {
            n: at(image, 0),
            c: at(image, 1),
            h: at(image, 2),
            w: at(image, 3),
            o: at(weight, 0),
            kh: at(weight, 2),
            kw: at(weight, 3),
            oh: at(out, 2),
            ow: at(out, 3),
            stride: conv.stride as usize,
            padding: conv.padding as usize,
        }
    }

    fn columns(&self) -> (usize, usize) {
        (self.c * self.kh * self.kw, self.oh * self.ow)
    }

    /// Calls `f(column element, image element)` for every pair that coincides; columns are `[c kh kw, oh ow]`.
    fn for_each(&self, mut f: impl FnMut(usize, usize)) {
        let mut at = 0;
        for c in 0..self.c {
            for ky in 0..self.kh {
                for kx in 0..self.kw {
                    for oy in 0..self.oh {
                        for ox in 0..self.ow {
                            // Below zero in the padding: wraps to a value beyond the image.
                            let y = (oy * self.stride + ky).wrapping_sub(self.padding);
                            let x = (ox * self.stride + kx).wrapping_sub(self.padding);
                            if y < self.h && x < self.w {
                                f(at, (c * self.h + y) * self.w + x);
                            }
                            at += 1;
                        }
                    }
                }
            }
        }
    }
}

/// Output size along one dimension; `None` when the window does not fit.
fn out_size(image: u64, kernel: u64, conv: &Conv) -> Option<u64> {
    let padded = conv.padding.checked_mul(2)?.checked_add(image)?;
    (padded >= kernel).then(|| (padded - kernel) / conv.stride + 1)
}

impl Conv {
    fn of_kind(&self, kind: ConvKind, size: (u64, u64)) -> Conv {
        Conv { kind, size, ..self.clone() }
    }

    /// Checks that an image, a weight and an output belong together.
    fn check(&self, image: &Shape, weight: &Shape, out: Option<&Shape>) -> Result<(Dim, Dim), OpError> {
        if image.size(1) != weight.size(1) {
            let message = format!("{image} has {} channels, the weight {weight} takes {}", image.0[1], weight.0[1]);
            return Err(OpError::new(message).help("images are [n, c, h, w], weights [o, c, kh, kw]"));
        }
        let size = |axis| out_size(image.size(axis), weight.size(axis), self);
        let (Some(oh), Some(ow)) = (size(2), size(3)) else {
            let message = format!("the window of {weight} is larger than {image} with padding {}", self.padding);
            return Err(OpError::new(message));
        };
        if let Some(out) = out {
            let expected = Shape::from([image.size(0), weight.size(0), oh, ow]);
            if *out != expected {
                let message = format!(
                    "{image} and {weight} give {expected} at stride {} and padding {}, not {out}",
                    self.stride, self.padding
                );
                return Err(OpError::new(message));
            }
        }
        Ok((oh.into(), ow.into()))
    }
}

impl Primitive for Conv {
    fn name(&self) -> &'static str {
        match self.kind {
            ConvKind::Forward => "conv2d",
            ConvKind::ImageGrad => "conv2d_image_grad",
            ConvKind::WeightGrad => "conv2d_weight_grad",
        }
    }

    fn arity(&self) -> Option<usize> {
        Some(2)
    }

    fn infer(&self, inputs: &[&TensorType]) -> Result<TensorType, OpError> {
        let (a, b) = (inputs[0], inputs[1]);
        if !a.dtype.is_float() || a.dtype != b.dtype || a.shape.rank() != 4 || b.shape.rank() != 4 {
            let message = format!("`{}` takes two floats of four dimensions, not {a} and {b}", self.name());
            return Err(OpError::new(message).help("images are [n, c, h, w], weights [o, c, kh, kw]"));
        }
        if self.stride == 0 {
            return Err(OpError::new("the stride of a convolution is at least 1"));
        }
        let (a_shape, b_shape) = (&a.shape, &b.shape);
        let (height, width) = (Dim::from(self.size.0), Dim::from(self.size.1));
        let dims = match self.kind {
            ConvKind::Forward => {
                let (oh, ow) = self.check(a_shape, b_shape, None)?;
                [a_shape.0[0], b_shape.0[0], oh, ow]
            }
            ConvKind::ImageGrad => [a_shape.0[0], b_shape.0[1], height, width],
            ConvKind::WeightGrad => [b_shape.0[1], a_shape.0[1], height, width],
        };
        let result: Shape = dims.into_iter().collect();
        match self.kind {
            ConvKind::Forward => {}
            ConvKind::ImageGrad => drop(self.check(&result, b_shape, Some(a_shape))?),
            ConvKind::WeightGrad => drop(self.check(a_shape, &result, Some(b_shape))?),
        }
        Ok(TensorType::f32(result))
    }

    /// By image columns and a library product, one image at a time.
    fn eval(&self, inputs: &[Tensor<'_>], out: &TensorType) -> Vec<f64> {
        let (a, b) = (inputs[0], inputs[1]);
        let mut result = vec![0.0; out.shape.elements() as usize];
        let s = match self.kind {
            ConvKind::Forward => Sizes::new(self, &a.ty.shape, &b.ty.shape, &out.shape),
            ConvKind::ImageGrad => Sizes::new(self, &out.shape, &b.ty.shape, &a.ty.shape),
            ConvKind::WeightGrad => Sizes::new(self, &a.ty.shape, &out.shape, &b.ty.shape),
        };
        let (rows, points) = s.columns();
        let (image_size, out_size) = (s.c * s.h * s.w, s.o * points);
        let mut columns = vec![0.0; rows * points];
        for image in 0..s.n {
            let at_image = image * image_size..(image + 1) * image_size;
            let at_out = image * out_size..(image + 1) * out_size;
            match self.kind {
                ConvKind::Forward => {
                    let pixels = &a.data[at_image];
                    s.for_each(|column, pixel| columns[column] = pixels[pixel]);
                    let weight = Matrix::new(b.data, s.o, rows);
                    product(&mut result[at_out], weight, Matrix::new(&columns, rows, points), false);
                }
                ConvKind::ImageGrad => {
                    let weight = Matrix::new(b.data, s.o, rows);
                    product(&mut columns, weight.t(), Matrix::new(&a.data[at_out], s.o, points), false);
                    let pixels = &mut result[at_image];
                    s.for_each(|column, pixel| pixels[pixel] += columns[column]);
                }
                ConvKind::WeightGrad => {
                    let pixels = &a.data[at_image];
                    s.for_each(|column, pixel| columns[column] = pixels[pixel]);
                    let gradient = Matrix::new(&b.data[at_out], s.o, points);
                    product(&mut result, gradient, Matrix::new(&columns, rows, points).t(), true);
                }
            }
        }
        result
    }

    /// With F(x, w) = y, I(g, w) = the gradient of x and W(x, g) = the gradient of w, all three bilinear.
    fn vjp(&self, b: &mut Builder<'_>, call: Call<'_>, g: NodeId, input: usize) -> Result<Option<NodeId>, OpError> {
        let (first, second) = (call.inputs[0], call.inputs[1]);
        let window = |b: &Builder<'_>, id: NodeId| (b.graph.shape(id).size(2), b.graph.shape(id).size(3));
        let (kind, inputs) = match (self.kind, input) {
            (ConvKind::Forward, 0) => (ConvKind::ImageGrad, [g, second]),
            (ConvKind::Forward, _) => (ConvKind::WeightGrad, [first, g]),
            (ConvKind::ImageGrad, 0) => (ConvKind::Forward, [g, second]),
            (ConvKind::ImageGrad, _) => (ConvKind::WeightGrad, [g, first]),
            (ConvKind::WeightGrad, 0) => (ConvKind::ImageGrad, [second, g]),
            (ConvKind::WeightGrad, _) => (ConvKind::Forward, [first, g]),
        };
        let size = if kind == ConvKind::Forward { (0, 0) } else { window(b, call.inputs[input]) };
        // As for `dot`: rounded to the operands' type, multiplied.
        let dtype = b.graph.ty(first).dtype;
        let inputs = [b.cast(inputs[0], dtype)?, b.cast(inputs[1], dtype)?];
        b.op(Op::Conv2d(self.of_kind(kind, size)), &inputs).map(Some)
    }

    fn flops(&self, inputs: &[&TensorType], out: &TensorType) -> u64 {
        let (a, b) = (&inputs[0].shape, &inputs[1].shape);
        // The products are the same three ways: output points times window times channels.
        let (points, window) = match self.kind {
            ConvKind::Forward => (out.shape.elements(), b),
            ConvKind::ImageGrad => (a.elements(), b),
            ConvKind::WeightGrad => (b.elements(), &out.shape),
        };
        points.saturating_mul(2 * window.size(1) * window.size(2) * window.size(3))
    }

    fn along(&self, _: &[&TensorType], axis: usize) -> Result<Along, No> {
        match (self.kind, axis) {
            (ConvKind::Forward, 0) => axes::two(Some(0), None),
            (ConvKind::Forward, 1) => axes::two(None, Some(0)),
            (ConvKind::Forward, _) => Err(No("a window sees its neighbours")),
            (ConvKind::ImageGrad | ConvKind::WeightGrad, _) => Err(No("gradients do not stand in forward graphs")),
        }
    }

    fn packs(&self, _: &[&TensorType], _: Layout) -> Packs {
        Packs::No("a window sees its neighbours")
    }

    fn error(&self, r: &mut Rounding<'_, '_>) -> Found {
        // Every sum of a convolution or of its gradients is over a part of one of the inputs.
        let elements = |x: &NodeId| r.b.graph.shape(*x).elements();
        let terms = r.x.iter().map(elements).max().unwrap_or(1);
        r.product(&Op::Conv2d(self.clone()), terms)
    }
}

pub(super) fn cases() -> Vec<Case> {
    let table = [
        // name, image, weight, stride, padding
        ("patches", [2, 3, 8, 8], [5, 3, 4, 4], 4, 0),
        ("same", [2, 3, 5, 6], [4, 3, 3, 3], 1, 1),
        ("stride_two", [1, 2, 7, 8], [3, 2, 3, 3], 2, 1),
        ("one_by_one", [2, 4, 3, 3], [2, 4, 1, 1], 1, 0),
        ("uneven", [1, 2, 6, 7], [2, 2, 2, 3], 3, 2),
    ];
    let mut cases = Vec::new();
    let types = [DType::Bf16, DType::F16].map(|dtype| (dtype, "stride_two"));
    let all = table.iter().map(|row| (DType::F32, row));
    let low =
        types.iter().flat_map(|(dtype, of)| table.iter().filter(move |row| row.0 == *of).map(|row| (*dtype, row)));
    for (dtype, &(name, image, weight, stride, padding)) in all.chain(low) {
        let forward = Conv { kind: ConvKind::Forward, stride, padding, size: (0, 0) };
        let size = |axis: usize| out_size(image[axis], weight[axis], &forward).unwrap_or(1);
        let out = [image[0], weight[0], size(2), size(3)];
        for (kind, a, b, size) in [
            (ConvKind::Forward, image, weight, (0, 0)),
            (ConvKind::ImageGrad, out, weight, (image[2], image[3])),
            (ConvKind::WeightGrad, image, out, (weight[2], weight[3])),
        ] {
            let suffix = if dtype == DType::F32 { String::new() } else { format!("_{dtype}") };
            let mut case = CaseBuilder::new(&format!("conv2d_{kind:?}_{name}{suffix}").to_lowercase());
            let a = case.uniform_of("a", TensorType::new(dtype, a), -1.0, 1.0);
            let b = case.uniform_of("b", TensorType::new(dtype, b), -1.0, 1.0);
            cases.push(case.op(Op::Conv2d(forward.of_kind(kind, size)), &[a, b]));
        }
    }
    cases
}
