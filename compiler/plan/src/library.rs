//! Products as calls of cuBLASLt: which ones the library computes, and how it is told.
//!
//! A call says nothing that the description of its kernel does not say: it is derived from that, by one function, whenever
//! somebody asks. The compiler asks whether there is one, the check of plans whether there is one indeed, and the device which.
//!
//! The library computes `D = alpha op(A) op(B) + beta C + bias` in f32 and rounds once, to the type of D. Its matrices are
//! column-major: the elements of a column are neighbours, and columns lie a leading dimension apart; `op` transposes. So the
//! rows of D here are whichever dimension of the result has neighbours in memory. For a row-major result these are the
//! columns of the description, and the factors change sides.

use crate::DType;
use crate::kernel::{Instr, Product, ScalarOp, View};

/// What pointers, columns and products of a batch begin at multiples of, in bytes: kernels on tensor cores need that, and without
/// it the library is slow or has none.
pub const ALIGNMENT: u64 = 16;

/// The library counts rows and columns with 32 bits and a sign.
const MOST: u64 = i32::MAX as u64;

/// Products of a batch that it is known to take: XLA and TensorFlow met refusals from 2^16 on.
const MOST_PRODUCTS: u64 = (1 << 16) - 1;

/// A call: `D = alpha op(A) op(B) + C + bias`, so many times.
#[derive(Clone, Debug, PartialEq)]
pub struct Matmul {
    /// Products of a batch.
    pub batch: u64,
    /// Rows of D and of op(A).
    pub rows: u64,
    /// Columns of D and of op(B).
    pub columns: u64,
    /// Length of the sums.
    pub depth: u64,
    /// The left factor.
    pub a: Matrix,
    /// The right factor.
    pub b: Matrix,
    /// What is added, of the type of D; perhaps D itself, before it is written.
    pub c: Option<Matrix>,
    /// The result.
    pub d: Matrix,
    /// What the product is multiplied with: finite, and not 0, for which the library would not look at its factors.
    pub alpha: f32,
    /// What is added to every column.
    pub bias: Option<Vector>,
}

/// Column-major matrices of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Matrix {
    /// Position in the operands of the step.
    pub operand: u16,
    /// Type of the elements.
    pub dtype: DType,
    /// Elements of the operand before the first.
    pub offset: u64,
    /// Rows in memory: neighbours.
    pub rows: u64,
    /// Columns in memory.
    pub columns: u64,
    /// Elements from one column to the next.
    pub leading: u64,
    /// Whether the transpose is multiplied.
    pub transposed: bool,
    /// Elements from one matrix of the batch to the next; 0 where all are the same.
    pub batch_stride: u64,
}

/// As many elements, side by side, as D has rows; of its type.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vector {
    /// Position in the operands of the step.
    pub operand: u16,
    /// Elements of the operand before the first.
    pub offset: u64,
}

impl Matmul {
    /// The call that computes a product with all that follows it.
    ///
    /// # Errors
    /// What the library has not: why there is none.
    pub fn of(product: &Product) -> Result<Matmul, &'static str> {
        let epilogue = Epilogue::of(product)?;
        if product.a.dtype != product.b.dtype {
            return Err("its factors are of two types");
        }
        match (product.a.dtype, epilogue.stored.dtype) {
            (DType::Bf16, DType::Bf16 | DType::F32) | (DType::F16, DType::F16 | DType::F32) => {}
            (DType::F32, DType::F32) => {}
            _ => return Err("its factors and its result are of types that the library does not join"),
        }
        // A result of one row or column may be taken for either; what fits first serves.
        Dimensions::new(product, true).call(&epilogue).or_else(|_| Dimensions::new(product, false).call(&epilogue))
    }
}

/// What follows a product, as far as the library has it.
struct Epilogue<'p> {
    alpha: f32,
    added: Vec<&'p View>,
    stored: &'p View,
}

/// What a value of the code is.
#[derive(Clone)]
enum Value<'p> {
    Constant(f64),
    Loaded(&'p View),
    /// The product times `alpha`, plus what was loaded, perhaps rounded to a type of 16 bits.
    Result {
        alpha: f32,
        added: Vec<&'p View>,
        rounded: Option<DType>,
    },
}

const NOT_SERVED: &str = "what follows it is no epilogue of the library";

impl<'p> Epilogue<'p> {
    fn of(product: &'p Product) -> Result<Epilogue<'p>, &'static str> {
        if product.views.iter().any(|view| view.gather.is_some()) {
            return Err("what follows it gathers");
        }
        let mut values: Vec<Value<'p>> = Vec::with_capacity(product.code.instrs.len());
        let mut found = None;
        for instr in &product.code.instrs {
            let arg = |n: usize| values.get(usize::from(instr.args[n])).cloned().ok_or(NOT_SERVED);
            let view = |view: u16| product.views.get(usize::from(view)).ok_or(NOT_SERVED);
            let value = match instr.op {
                ScalarOp::Product => Value::Result { alpha: 1.0, added: Vec::new(), rounded: None },
                ScalarOp::Const(constant) => Value::Constant(constant.0),
                ScalarOp::Load(of) => Value::Loaded(view(of)?),
                ScalarOp::Store(to) => {
                    let (value, stored) = (arg(0)?, view(to)?);
                    if found.replace(Epilogue::stored(&value, stored)?).is_some() {
                        return Err("it has several results");
                    }
                    value
                }
                _ => Value::computed(instr, arg)?,
            };
            values.push(value);
        }
        found.ok_or(NOT_SERVED)
    }

    fn stored(value: &Value<'p>, stored: &'p View) -> Result<Epilogue<'p>, &'static str> {
        match value {
            Value::Result { alpha, added, rounded } if rounded.is_none_or(|rounded| rounded == stored.dtype) => {
                Ok(Epilogue { alpha: *alpha, added: added.clone(), stored })
            }
            Value::Result { .. } => Err("its result is rounded to another type than it is stored in"),
            _ => Err(NOT_SERVED),
        }
    }
}

impl<'p> Value<'p> {
    fn computed(
        instr: &Instr,
        arg: impl Fn(usize) -> Result<Value<'p>, &'static str>,
    ) -> Result<Value<'p>, &'static str> {
        use Value::{Constant, Loaded, Result};
        match instr.op {
            ScalarOp::Cast(to) if to == instr.dtype => arg(0),
            ScalarOp::Cast(to @ (DType::Bf16 | DType::F16)) => match arg(0)? {
                Result { alpha, added, rounded: None } => Ok(Result { alpha, added, rounded: Some(to) }),
                _ => Err("it is rounded more than once"),
            },
            ScalarOp::Mul => match (arg(0)?, arg(1)?) {
                (Result { alpha, added, rounded: None }, Constant(factor))
                | (Constant(factor), Result { alpha, added, rounded: None })
                    if alpha == 1.0 && added.is_empty() && factor as f32 != 0.0 && (factor as f32).is_finite() =>
                {
                    Ok(Result { alpha: factor as f32, added, rounded: None })
                }
                _ => Err(NOT_SERVED),
            },
            ScalarOp::Add => match (arg(0)?, arg(1)?) {
                (Result { alpha, mut added, rounded: None }, Loaded(view))
                | (Loaded(view), Result { alpha, mut added, rounded: None }) => {
                    added.push(view);
                    Ok(Result { alpha, added, rounded: None })
                }
                (Result { rounded: Some(_), .. }, _) | (_, Result { rounded: Some(_), .. }) => {
                    Err("it is rounded before something is added")
                }
                _ => Err(NOT_SERVED),
            },
            _ => Err(NOT_SERVED),
        }
    }
}

/// A product with the dimension of the result whose elements are to be neighbours as its rows.
struct Dimensions<'p> {
    product: &'p Product,
    /// Sizes of the library's rows and columns, and where their strides stand in views of the result.
    rows: (u64, usize),
    columns: (u64, usize),
    /// The factors, with the place of their free and of the contracted dimension.
    a: (&'p View, [usize; 2]),
    b: (&'p View, [usize; 2]),
}

const NO_MATRIX: &str = "an operand is no matrix with a leading dimension, aligned as tensor cores need it";

impl<'p> Dimensions<'p> {
    /// With the columns of the description as rows (a row-major result), or as it stands.
    fn new(product: &'p Product, row_major: bool) -> Dimensions<'p> {
        let m = product.batch.len();
        let (left, right) = ((&product.a, [m, m + 1]), (&product.b, [m + 1, m]));
        let (of_m, of_n) = ((product.m, m), (product.n, m + 1));
        match row_major {
            true => Dimensions { product, rows: of_n, columns: of_m, a: right, b: left },
            false => Dimensions { product, rows: of_m, columns: of_n, a: left, b: right },
        }
    }

    fn call(&self, epilogue: &Epilogue<'_>) -> Result<Matmul, &'static str> {
        let Product { batch, k: depth, .. } = self.product;
        let (rows, columns) = (self.rows.0, self.columns.0);
        let count =
            batch.iter().try_fold(1u64, |count, size| count.checked_mul(*size)).ok_or("its batch is too large")?;
        let sizes = [(rows, MOST), (columns, MOST), (*depth, MOST), (count, MOST_PRODUCTS)];
        if sizes.iter().any(|(size, most)| !(1..=*most).contains(size)) {
            return Err("it has a dimension that is empty or too large");
        }
        let (mut c, mut bias) = (None, None);
        for view in &epilogue.added {
            if view.dtype != epilogue.stored.dtype {
                return Err("what is added is not of the type of the result");
            }
            match self.vector(view) {
                Some(vector) if bias.is_none() => bias = Some(vector),
                _ if c.is_none() => c = Some(*view),
                _ => return Err("more is added than the library adds"),
            }
        }
        let batched: Vec<&View> = [self.a.0, self.b.0, epilogue.stored].into_iter().chain(c).collect();
        let strides = merged(batch, &batched).ok_or("the dimensions of its batch are not one")?;
        let of_result = |view: &View, stride: i64| {
            self.matrix(view, [(rows, self.rows.1), (columns, self.columns.1)], stride, false).ok_or(NO_MATRIX)
        };
        Ok(Matmul {
            batch: count,
            rows,
            columns,
            depth: *depth,
            a: self.factor(self.a, rows, strides[0], false)?,
            b: self.factor(self.b, columns, strides[1], true)?,
            c: c.map(|view| of_result(view, strides[3])).transpose()?,
            d: of_result(epilogue.stored, strides[2])?,
            alpha: epilogue.alpha,
            bias,
        })
    }

    /// A factor; of the right one the sums are rows where it is not transposed.
    fn factor(
        &self,
        (view, [free, sum]): (&View, [usize; 2]),
        size: u64,
        batch_stride: i64,
        right: bool,
    ) -> Result<Matrix, &'static str> {
        let (free, sum) = ((size, free), (self.product.k, sum));
        let by_free = self.matrix(view, [free, sum], batch_stride, right);
        by_free.or_else(|| self.matrix(view, [sum, free], batch_stride, !right)).ok_or(NO_MATRIX)
    }

    /// The matrix whose rows and columns in memory are these dimensions (size, and place of the stride), if it is one.
    fn matrix(
        &self,
        view: &View,
        [(rows, row), (columns, column)]: [(u64, usize); 2],
        batch_stride: i64,
        transposed: bool,
    ) -> Option<Matrix> {
        let unit = ALIGNMENT / view.dtype.bytes();
        if rows > 1 && view.strides[row] != 1 {
            return None;
        }
        // Where there is one column, the next is nowhere.
        let leading =
            if columns == 1 { rows.next_multiple_of(unit) } else { u64::try_from(view.strides[column]).ok()? };
        let (offset, batch_stride) = (u64::try_from(view.offset).ok()?, u64::try_from(batch_stride).ok()?);
        let aligned = [leading, offset, batch_stride].iter().all(|elements| elements.is_multiple_of(unit));
        let matrix = Matrix {
            operand: view.operand,
            dtype: view.dtype,
            offset,
            rows,
            columns,
            leading,
            transposed,
            batch_stride,
        };
        (aligned && leading >= rows && leading <= MOST).then_some(matrix)
    }

    /// What a view adds to every column, if it is the same for all of them and for the batch.
    fn vector(&self, view: &View) -> Option<Vector> {
        let (rows, row) = self.rows;
        let (columns, column) = self.columns;
        let still = |(stride, size): (&i64, &u64)| *stride == 0 || *size == 1;
        let offset = u64::try_from(view.offset).ok()?;
        let same = view.strides.iter().zip(&self.product.batch).all(still) && still((&view.strides[column], &columns));
        let aligned = (offset * view.dtype.bytes()).is_multiple_of(ALIGNMENT);
        let packed = rows == 1 || view.strides[row] == 1;
        (same && aligned && packed).then_some(Vector { operand: view.operand, offset })
    }
}

/// The strides of views along a batch as one dimension, if it is one for all of them; 0 where there is one product.
fn merged(batch: &[u64], views: &[&View]) -> Option<Vec<i64>> {
    let mut strides = vec![0; views.len()];
    // Of the inner dimensions so far.
    let mut inside = 1i64;
    for (axis, size) in batch.iter().enumerate().rev().filter(|(_, size)| **size > 1) {
        for (stride, view) in strides.iter_mut().zip(views) {
            match inside {
                1 => *stride = view.strides[axis],
                _ if view.strides[axis] == stride.checked_mul(inside)? => {}
                _ => return None,
            }
        }
        inside = inside.checked_mul(i64::try_from(*size).ok()?)?;
    }
    Some(strides)
}

#[cfg(test)]
mod tests;
