//! Convolutions as products with image columns (im2col), one image and a group of rows or channels at a time. An image that a
//! prologue makes is made before its columns are, once for all windows.

use alip_plan::DType;
use alip_plan::fault::{Fault, planted};
use alip_plan::kernel::{Conv2d, ConvKind, View};
use rayon::prelude::*;

use super::Threads;
use super::isa::Loops;
use super::matrix::{Matrix, multiply};
use super::pixels::Pixels;
use super::run::{Operands, Scratch, widen};

/// Most elements of a column matrix: 16 MiB per thread.
const COLUMNS: usize = 4 << 20;

/// A convolution ready to run.
pub(super) struct PreparedConv {
    kind: ConvKind,
    /// Both factors, and the result.
    views: [View; 3],
    /// What makes the images, if they are not stored.
    pixels: Option<Pixels>,
    n: usize,
    c: usize,
    h: usize,
    w: usize,
    o: usize,
    kh: usize,
    kw: usize,
    stride: usize,
    padding: usize,
    oh: usize,
    ow: usize,
    /// Output rows whose columns are made at a time.
    rows: usize,
}

/// A part of an operand in f32, perhaps a copy; only ever read.
struct Wide {
    start: *mut f32,
    block: Option<Vec<f32>>,
}

impl Wide {
    fn of(mut block: Vec<f32>) -> Wide {
        Wide { start: block.as_mut_ptr(), block: Some(block) }
    }

    fn give_back(self, scratch: &mut Scratch) {
        if let Some(block) = self.block {
            scratch.return_block(block);
        }
    }
}

impl PreparedConv {
    pub(super) fn new(conv: &Conv2d, alias: &[usize], loops: &Loops) -> PreparedConv {
        let (oh, ow) = conv.extent();
        let [n, c, h, w, o, kh, kw, stride, padding, oh, ow] =
            [conv.n, conv.c, conv.h, conv.w, conv.o, conv.kh, conv.kw, conv.stride, conv.padding, oh, ow]
                .map(|size| size as usize);
        let rows = (COLUMNS / (c * kh * kw * ow).max(1)).clamp(1, oh.max(1));
        let views = [&conv.a, &conv.b, &conv.out].map(View::clone);
        let pixels = (!conv.prologue.instrs.is_empty()).then(|| Pixels::new(conv, alias, loops));
        PreparedConv { kind: conv.kind, views, pixels, n, c, h, w, o, kh, kw, stride, padding, oh, ow, rows }
    }

    pub(super) fn run(&self, operands: &Operands, threads: &Threads) {
        let [first, second, result] = self.views.each_ref().map(|view| operands.start(view) as usize);
        let (image, out, weight) =
            (self.c * self.h * self.w, self.o * self.oh * self.ow, self.o * self.c * self.kh * self.kw);
        let channel = self.h * self.w;
        match self.kind {
            ConvKind::Forward => (0..self.n).into_par_iter().for_each(|n| {
                // SAFETY: image `n` of operands that `check` sized.
                let to = unsafe { (result as *mut f32).add(n * out) };
                threads.with_scratch(|scratch| {
                    let mut columns = scratch.take_block(self.c * self.kh * self.kw * self.rows * self.ow);
                    let weight = self.wide(1, second, 0, weight, scratch);
                    let image = match &self.pixels {
                        Some(pixels) => Wide::of(pixels.make(operands, n * self.c..(n + 1) * self.c, scratch)),
                        None => self.wide(0, first, n * image, image, scratch),
                    };
                    self.forward(image.start, weight.start, to, &mut columns);
                    image.give_back(scratch);
                    weight.give_back(scratch);
                    scratch.return_block(columns);
                });
            }),
            ConvKind::ImageGrad => (0..self.n).into_par_iter().for_each(|n| {
                // SAFETY: as above.
                let to = unsafe { (result as *mut f32).add(n * image) };
                threads.with_scratch(|scratch| {
                    let mut columns = scratch.take_block(self.c * self.kh * self.kw * self.rows * self.ow);
                    let weight = self.wide(1, second, 0, weight, scratch);
                    let out = self.wide(0, first, n * out, out, scratch);
                    self.image_grad(out.start, weight.start, to, &mut columns);
                    out.give_back(scratch);
                    weight.give_back(scratch);
                    scratch.return_block(columns);
                });
            }),
            // Channels are independent: each sums over the images in order.
            ConvKind::WeightGrad => (0..self.c).into_par_iter().for_each(|c| {
                threads.with_scratch(|scratch| {
                    let mut columns = scratch.take_block(self.kh * self.kw * self.rows * self.ow);
                    for n in 0..self.n {
                        let plane = n * self.c + c;
                        let image = match &self.pixels {
                            Some(pixels) => Wide::of(pixels.make(operands, plane..plane + 1, scratch)),
                            None => self.wide(0, first, n * image + c * channel, channel, scratch),
                        };
                        let out = self.wide(1, second, n * out, out, scratch);
                        self.weight_grad(c, n > 0, image.start, out.start, result as *mut f32, &mut columns);
                        out.give_back(scratch);
                        image.give_back(scratch);
                    }
                    scratch.return_block(columns);
                });
            }),
        }
    }

    /// So many elements of a factor in f32: where they are, or widened.
    fn wide(&self, factor: usize, operand: usize, first: usize, count: usize, scratch: &mut Scratch) -> Wide {
        let dtype = self.views[factor].dtype;
        if dtype == DType::F32 {
            // SAFETY: inside an operand that `check` sized.
            return Wide { start: unsafe { (operand as *mut f32).add(first) }, block: None };
        }
        let mut block = scratch.take_block(count);
        // SAFETY: as above.
        unsafe { widen(dtype, (operand as *const u16).add(first), 1, &mut block[..count]) };
        Wide::of(block)
    }

    fn forward(&self, image: *mut f32, weight: *mut f32, out: *mut f32, columns: &mut [f32]) {
        let depth = self.c * self.kh * self.kw;
        for y in (0..self.oh).step_by(self.rows) {
            let width = self.rows.min(self.oh - y) * self.ow;
            self.gather(image, 0..self.c, y, width / self.ow, columns);
            // SAFETY: rows `y..` of every output channel.
            let out = unsafe { out.add(y * self.ow) };
            let weight = Matrix { data: weight, row: depth as isize, column: 1 };
            let (out, columns) = (self.pixels(out), Matrix::block(columns, width));
            // SAFETY: all are inside their memory; the rows of the result are this task's.
            unsafe { multiply([self.o, width, depth], out, false, weight, columns, 1.0) };
        }
    }

    fn image_grad(&self, out: *mut f32, weight: *mut f32, image: *mut f32, columns: &mut [f32]) {
        let depth = self.c * self.kh * self.kw;
        // SAFETY: the image of this task.
        unsafe { std::slice::from_raw_parts_mut(image, self.c * self.h * self.w) }.fill(0.0);
        for y in (0..self.oh).step_by(self.rows) {
            let width = self.rows.min(self.oh - y) * self.ow;
            // SAFETY: rows `y..` of every output channel.
            let out = unsafe { out.add(y * self.ow) };
            let weight = Matrix { data: weight, row: 1, column: depth as isize };
            // SAFETY: all are inside their memory; columns are this task's.
            unsafe {
                let to = Matrix::block(columns, width);
                multiply([depth, width, self.o], to, false, weight, self.pixels(out), 1.0);
            }
            self.visit(
                0..self.c,
                y,
                width / self.ow,
                |element, column| {
                    // SAFETY: `visit` stays inside image and columns.
                    unsafe { *image.add(element) += *columns.get_unchecked(column) };
                },
                |_| {},
            );
        }
    }

    /// Of channel `c`, from that channel of an image.
    fn weight_grad(
        &self,
        c: usize,
        add: bool,
        channel: *mut f32,
        out: *mut f32,
        weight: *mut f32,
        columns: &mut [f32],
    ) {
        let (window, depth) = (self.kh * self.kw, self.c * self.kh * self.kw);
        for y in (0..self.oh).step_by(self.rows) {
            let width = self.rows.min(self.oh - y) * self.ow;
            self.gather(channel, 0..1, y, width / self.ow, columns);
            // SAFETY: rows `y..` of every output channel; channel `c` of the weight, which is this task's.
            let (out, weight) = unsafe { (out.add(y * self.ow), weight.add(c * window)) };
            let weight = Matrix { data: weight, row: depth as isize, column: 1 };
            let columns = Matrix::block(columns, width).transposed();
            // SAFETY: all are inside their memory; the channel of the weight is this task's.
            unsafe { multiply([self.o, window, width], weight, add || y > 0, self.pixels(out), columns, 1.0) };
        }
    }

    /// Pixels of all output channels, a channel in a row.
    fn pixels(&self, out: *mut f32) -> Matrix {
        Matrix { data: out, row: (self.oh * self.ow) as isize, column: 1 }
    }

    /// The columns of output rows `y..y + rows`: a matrix [channels * kh * kw, rows * ow].
    fn gather(&self, image: *mut f32, channels: std::ops::Range<usize>, y: usize, rows: usize, columns: &mut [f32]) {
        let columns = columns.as_mut_ptr();
        self.visit(
            channels,
            y,
            rows,
            // SAFETY: `visit` stays inside image and columns.
            |element, column| unsafe { *columns.add(column) = *image.add(element) },
            // SAFETY: as above.
            |column| unsafe { *columns.add(column) = 0.0 },
        );
    }

    /// Calls `inside(element of the image, element of the columns)` or, in the padding, `outside(element of the columns)`.
    #[inline(always)]
    fn visit(
        &self,
        channels: std::ops::Range<usize>,
        y: usize,
        rows: usize,
        inside: impl Fn(usize, usize),
        outside: impl Fn(usize),
    ) {
        let mut column = 0;
        for c in channels {
            for ky in 0..self.kh {
                for kx in 0..self.kw {
                    // Outputs whose x lies inside the image: kx + x * stride - padding in 0..w.
                    let low = self.padding.saturating_sub(kx).div_ceil(self.stride).min(self.ow);
                    let high = (self.w + self.padding).saturating_sub(kx).div_ceil(self.stride).clamp(low, self.ow);
                    let lost = usize::from(self.padding > 0 && high > low && planted(Fault::ConvLastColumnLost));
                    let high = high - lost;
                    for row in y..y + rows {
                        let iy = (row * self.stride + ky).wrapping_sub(self.padding);
                        let (low, high) = if iy < self.h { (low, high) } else { (0, 0) };
                        (0..low).for_each(|x| outside(column + x));
                        if low < high {
                            let first = (c * self.h + iy) * self.w + low * self.stride + kx - self.padding;
                            (low..high).for_each(|x| inside(first + (x - low) * self.stride, column + x));
                        }
                        (high..self.ow).for_each(|x| outside(column + x));
                        column += self.ow;
                    }
                }
            }
        }
    }
}
