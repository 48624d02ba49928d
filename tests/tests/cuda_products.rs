//! Products as calls of cuBLASLt, by its stand-in and the descriptors that the runtime makes, against the reference device: all
//! layouts, types, batches and epilogues that are served. What is planted in a call is found.
#![cfg(target_os = "linux")]

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_plan::bounds::{F32, Roundings, bound};
use alip_plan::kernel::*;
use alip_plan::library::{Matmul, Matrix};
use alip_plan::*;
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::{HostTensor, f32_to_bf16, f32_to_f16};
use alip_tests::cuda::{Emulator, Operand};

/// Of the factors and of the result, as far as the library has them.
const TYPES: [[DType; 2]; 5] = [
    [DType::F32, DType::F32],
    [DType::Bf16, DType::F32],
    [DType::Bf16, DType::Bf16],
    [DType::F16, DType::F32],
    [DType::F16, DType::F16],
];

/// What follows the product.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Follows {
    /// It is halved.
    scaled: bool,
    /// A bias is added to all rows, or to all columns where the result lies by columns.
    bias: bool,
    /// A matrix is added.
    addend: bool,
    /// That is the result's own place.
    in_place: bool,
    /// A rounding is written before the store.
    rounded: bool,
}

/// How operands lie.
#[derive(Clone, Copy, Debug)]
struct Lies {
    /// Whether the sums are neighbours in the left factor, and the columns in the right one and the result.
    by_rows: [bool; 3],
    /// Elements between one row and the next, or one column and the next, that belong to none.
    room: u64,
    /// Of the batch dimensions, which a factor repeats.
    repeats: [bool; 2],
}

struct Case {
    product: Product,
    /// Types and elements.
    operands: Vec<(DType, u64)>,
    out: u16,
}

const M: u64 = 24;
const N: u64 = 40;
/// Long enough that the stand-in splits sums.
const K: u64 = 72;

impl Case {
    fn new([factors, stored]: [DType; 2], batch: &[u64], [m, n, k]: [u64; 3], lies: Lies, follows: Follows) -> Case {
        let mut operands = Vec::new();
        let mut view = |dtype: DType, sizes: [u64; 2], by_rows: bool, repeats: bool| {
            let unit = 16 / dtype.bytes();
            let side = if by_rows { sizes[1] } else { sizes[0] };
            let leading = (side.next_multiple_of(unit) + lies.room * unit) as i64;
            let tail = if by_rows { [leading, 1] } else { [1, leading] };
            let whole = leading as u64 * if by_rows { sizes[0] } else { sizes[1] };
            let mut strides = vec![0; batch.len()];
            let mut elements = whole;
            for (stride, size) in strides.iter_mut().zip(batch).rev().filter(|_| !repeats) {
                *stride = elements as i64;
                elements *= size;
            }
            strides.extend(tail);
            let offset = lies.room * unit;
            operands.push((dtype, elements + offset));
            View { operand: operands.len() as u16 - 1, dtype, offset: offset as i64, strides, gather: None }
        };
        let a = view(factors, [m, k], lies.by_rows[0], lies.repeats[0]);
        let b = view(factors, [k, n], lies.by_rows[1], lies.repeats[1]);
        let out = view(stored, [m, n], lies.by_rows[2], false);
        let addend = match follows.in_place {
            true => out.clone(),
            false => view(stored, [m, n], lies.by_rows[2], false),
        };
        let side = if lies.by_rows[2] { n } else { m };
        operands.push((stored, side));
        let along = if lies.by_rows[2] { [0, 1] } else { [1, 0] };
        let strides = [vec![0; batch.len()].as_slice(), &along].concat();
        let bias = View { operand: operands.len() as u16 - 1, dtype: stored, offset: 0, strides, gather: None };
        let (written, views) = (out.operand, vec![out, addend, bias]);
        let product = Product { batch: batch.to_vec(), m, n, k, a, b, views, code: epilogue(follows, stored) };
        Case { product, operands, out: written }
    }

    fn matmul(&self) -> Matmul {
        Matmul::of(&self.product).unwrap_or_else(|why| panic!("{why}: {:#?}", self.product))
    }

    /// Numbers between -1 and 1, as each operand stores them, or their sizes.
    fn numbers(&self, sizes: bool) -> Vec<HostTensor> {
        let number = |operand: usize, at: u64| {
            let bits = philox::philox4x32(philox::counter(at, 0), philox::stream_key(operand as u64, 0, 3))[0];
            let number = bits as f32 / u32::MAX as f32 * 2.0 - 1.0;
            if sizes { number.abs() } else { number }
        };
        let tensor = |(operand, (dtype, elements)): (usize, &(DType, u64))| {
            let numbers = (0..*elements).map(|at| number(operand, at));
            let bytes: Vec<u8> = match dtype {
                DType::F32 => numbers.flat_map(f32::to_le_bytes).collect(),
                DType::F16 => numbers.flat_map(|number| f32_to_f16(number).to_le_bytes()).collect(),
                _ => numbers.flat_map(|number| f32_to_bf16(number).to_le_bytes()).collect(),
            };
            HostTensor::from_bytes(*dtype, &[*elements], &bytes).expect("as many bytes")
        };
        self.operands.iter().enumerate().map(tensor).collect()
    }

    /// What the reference device makes of it.
    fn reference(&self, sizes: bool) -> Vec<f32> {
        let mut buffers = Vec::new();
        let mut end = 0;
        for &(dtype, elements) in &self.operands {
            buffers.push(Buffer { segment: 0, offset: end, dtype, shape: vec![elements] });
            end = (end + elements * dtype.bytes()).next_multiple_of(256);
        }
        let port = |index: usize| Port::new(format!("t{index}"), index as u32);
        let out = format!("t{}", self.out);
        let program = Program {
            inputs: (0..buffers.len()).map(port).collect(),
            outputs: vec![port(usize::from(self.out))],
            steps: vec![Step {
                kernel: 0,
                operands: (0..buffers.len() as u32).collect(),
                origin: "case".into(),
                flops: 0,
                bytes: 0,
                predicted_ns: 0,
            }],
            buffers,
        };
        let plan = Plan {
            name: "case".into(),
            compiler: "test".into(),
            target: Target::cpu(),
            segments: vec![Segment { kind: SegmentKind::Arena, bytes: end }],
            state: Vec::new(),
            kernels: vec![Kernel::as_described(Loop::Product(self.product.clone()))],
            programs: BTreeMap::from([("p".to_string(), program)]),
            packed: BTreeMap::new(),
            train: None,
            report: Report::default(),
        };
        let device = choose("reference", &DeviceOptions::default()).expect("always there").device;
        let mut session = Session::new(Arc::new(plan), device).unwrap_or_else(|why| panic!("{why}"));
        let inputs: Tensors =
            self.numbers(sizes).into_iter().enumerate().map(|(index, tensor)| (format!("t{index}"), tensor)).collect();
        session.run("p", &inputs).unwrap_or_else(|why| panic!("{why}"))[&out].to_f32().to_vec()
    }

    /// What must come out, with the largest error of each element.
    fn expected(&self) -> Vec<(f32, f64)> {
        let stored = self.product.views[0].dtype;
        let exact = self.reference(false);
        // The sizes of all terms, added up.
        let sizes = self.reference(true);
        let roundings = Roundings::reduction(self.product.k as usize) + Roundings::ONE * 3;
        let format = stored.format().expect("a float");
        let error = |(exact, size): (&f32, &f32)| {
            // The result is rounded once, here and there.
            let narrow = if stored == DType::F32 { 0.0 } else { bound(format, Roundings::ONE * 2, (*exact).into()) };
            (*exact, bound(F32, roundings, (*size).into()) + narrow)
        };
        exact.iter().zip(&sizes).map(error).collect()
    }

    /// Whether a call gives what must come out.
    fn judge(&self, matmul: &Matmul, expected: &[(f32, f64)]) -> Result<(), String> {
        let emulator = Emulator::get().ok_or("no emulator")?;
        let operands =
            self.numbers(false).into_iter().map(|tensor| Operand { bytes: tensor.bytes().to_vec(), written: true });
        let outcome = emulator.multiply(matmul, operands.collect(), 1 << 20)?;
        if !outcome.reports.is_empty() {
            return Err(outcome.reports.join("\n"));
        }
        let out = usize::from(self.out);
        let (dtype, elements) = self.operands[out];
        let found = HostTensor::from_bytes(dtype, &[elements], &outcome.operands[out].bytes);
        let found = found.map_err(|why| why.to_string())?;
        for (at, (found, (exact, error))) in found.to_f32().iter().zip(expected).enumerate() {
            let off = f64::from(found - exact).abs();
            if off.is_nan() || off > *error {
                return Err(format!("element {at} is {found}, not {exact}, which may be off by {error}"));
            }
        }
        Ok(())
    }

    fn check(&self) {
        let expected = self.expected();
        self.judge(&self.matmul(), &expected).unwrap_or_else(|why| panic!("{why}: {:#?}", self.product));
    }
}

/// View 0 is the result, 1 the matrix that is added and 2 the bias.
fn epilogue(follows: Follows, stored: DType) -> Code {
    let mut instrs = vec![Instr { op: ScalarOp::Product, dtype: DType::F32, args: [0; 3] }];
    let mut push = |op, args: [u16; 2]| {
        instrs.push(Instr { op, dtype: DType::F32, args: [args[0], args[1], 0] });
        instrs.len() as u16 - 1
    };
    let mut value = 0;
    if follows.scaled {
        let factor = push(ScalarOp::Const(Real(0.5)), [0; 2]);
        value = push(ScalarOp::Mul, [factor, value]);
    }
    for view in [2, 1].into_iter().filter(|view| if *view == 1 { follows.addend } else { follows.bias }) {
        let loaded = push(ScalarOp::Load(view), [0; 2]);
        value = push(ScalarOp::Add, [value, loaded]);
    }
    if follows.rounded && stored != DType::F32 {
        value = push(ScalarOp::Cast(stored), [value, 0]);
    }
    push(ScalarOp::Store(0), [value, 0]);
    Code { instrs }
}

fn all_follows() -> Vec<Follows> {
    let none = Follows::default();
    vec![
        none,
        Follows { scaled: true, rounded: true, ..none },
        Follows { bias: true, rounded: true, ..none },
        Follows { addend: true, ..none },
        Follows { addend: true, in_place: true, ..none },
        Follows { scaled: true, bias: true, addend: true, in_place: true, rounded: true },
    ]
}

const BATCHES: [(&[u64], [bool; 2]); 5] = [
    (&[], [false, false]),
    (&[3], [false, false]),
    (&[2, 1, 2], [false, false]),
    (&[3], [true, false]),
    (&[2, 2], [false, true]),
];

#[test]
fn all_layouts_and_types_are_computed() {
    if Emulator::get().is_none() {
        return;
    }
    for (number, types) in TYPES.into_iter().enumerate() {
        for layout in 0..8 {
            for (epilogue, follows) in all_follows().into_iter().enumerate() {
                let (batch, repeats) = BATCHES[(number + layout + epilogue) % BATCHES.len()];
                let by_rows = [layout & 1 == 0, layout & 2 == 0, layout & 4 == 0];
                let lies = Lies { by_rows, room: (layout + epilogue) as u64 % 2, repeats };
                Case::new(types, batch, [M, N, K], lies, follows).check();
            }
        }
    }
}

#[test]
fn single_rows_columns_and_terms_are_computed() {
    if Emulator::get().is_none() {
        return;
    }
    let follows = Follows { bias: true, ..Follows::default() };
    for sizes in [[1, N, K], [M, 1, K], [M, N, 1], [1, 1, 1], [1, 1, K]] {
        for layout in 0..8 {
            let by_rows = [layout & 1 == 0, layout & 2 == 0, layout & 4 == 0];
            let lies = Lies { by_rows, room: 0, repeats: [false, false] };
            Case::new([DType::F32, DType::F32], &[], sizes, lies, follows).check();
        }
    }
}

/// A call that was made wrong is refused, reported or gives other numbers.
fn check_found(what: &str, case: &Case, plant: impl Fn(&mut Matmul)) {
    let expected = case.expected();
    let mut matmul = case.matmul();
    case.judge(&matmul, &expected).unwrap_or_else(|why| panic!("{what}: as it stands: {why}"));
    plant(&mut matmul);
    assert!(case.judge(&matmul, &expected).is_err(), "{what} is not found");
}

#[test]
fn planted_faults_are_found() {
    if Emulator::get().is_none() {
        return;
    }
    let follows = Follows { scaled: true, bias: true, addend: true, ..Follows::default() };
    let lies = Lies { by_rows: [true, true, true], room: 1, repeats: [false, false] };
    for types in TYPES {
        // All sides are equal, so that nothing but numbers can tell.
        let case = Case::new(types, &[3], [N, N, N], lies, follows);
        let found = |what: &str, plant: &dyn Fn(&mut Matmul)| check_found(what, &case, plant);
        found("a transposed left factor", &|matmul| matmul.a.transposed ^= true);
        found("a transposed right factor", &|matmul| matmul.b.transposed ^= true);
        found("exchanged factors", &|matmul| std::mem::swap(&mut matmul.a, &mut matmul.b));
        found("a bias along the columns", &|matmul| {
            // The transpose of the product, with the bias of its rows.
            std::mem::swap(&mut matmul.a, &mut matmul.b);
            [&mut matmul.a, &mut matmul.b].into_iter().for_each(|factor| factor.transposed ^= true);
        });
        for (name, of) in [("left", 0), ("right", 1), ("added", 2), ("resulting", 3)] {
            let change = |what: &str, plant: fn(&mut Matrix)| {
                found(&format!("{what} of the {name} matrix"), &|matmul| match of {
                    0 => plant(&mut matmul.a),
                    1 => plant(&mut matmul.b),
                    2 => plant(matmul.c.as_mut().expect("a matrix is added")),
                    _ => plant(&mut matmul.d),
                });
            };
            change("the leading dimension", |matrix| matrix.leading -= 16 / matrix.dtype.bytes());
            change("too small a leading dimension", |matrix| matrix.leading = 16 / matrix.dtype.bytes());
            change("too large a leading dimension", |matrix| matrix.leading *= 2);
            change("the batch stride", |matrix| matrix.batch_stride -= 16 / matrix.dtype.bytes());
            change("a repeated batch", |matrix| matrix.batch_stride = 0);
            change("the offset", |matrix| matrix.offset -= 16 / matrix.dtype.bytes());
            change("an unaligned offset", |matrix| matrix.offset -= 1);
        }
        found("a batch too few", &|matmul| matmul.batch -= 1);
        found("a term too few", &|matmul| {
            (matmul.a.columns, matmul.b.rows) = (N - 1, N - 1);
        });
        found("no factor", &|matmul| matmul.alpha = 1.0);
        found("no bias", &|matmul| matmul.bias = None);
        found("nothing added", &|matmul| matmul.c = None);
    }
}

#[test]
fn what_the_library_refuses_names_the_call_and_the_product() {
    let Some(emulator) = Emulator::get() else { return };
    let lies = Lies { by_rows: [true, true, true], room: 0, repeats: [false, false] };
    let case = Case::new([DType::Bf16, DType::F32], &[3], [M, N, K], lies, Follows::default());
    let operands: Vec<Operand> =
        case.numbers(false).iter().map(|tensor| Operand { bytes: tensor.bytes().to_vec(), written: true }).collect();
    let refused = |plant: fn(&mut Matmul), why: &str| {
        let mut matmul = case.matmul();
        plant(&mut matmul);
        assert_eq!(emulator.multiply(&matmul, operands.clone(), 0).map(drop), Err(why.to_string()));
    };
    let product = "3 times 40 x 72 by 72 x 24, bf16";
    refused(
        |matmul| matmul.d.dtype = DType::F16,
        &format!("cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_NOT_SUPPORTED for {product} to f16"),
    );
    refused(
        |matmul| matmul.a.leading = 8,
        &format!("cublasLtMatmulAlgoGetHeuristic: CUBLAS_STATUS_INVALID_VALUE for {product} to f32"),
    );
    refused(
        |matmul| matmul.a.batch_stride += 1,
        &format!("cublasLtMatmul: CUBLAS_STATUS_NOT_SUPPORTED for {product} to f32"),
    );
    refused(|matmul| matmul.d.dtype = DType::I32, "a product of i32");
}
