//! The emulator of CUDA itself: sound kernels are clean and right, planted faults are found, fragments lie where NVIDIA's PTX
//! manual says.
#![cfg(target_os = "linux")]

use alip_tests::cuda::{Emulator, Module, Operand, Outcome, Text};

/// Compiles one of the kernels in `tests/cuda_emulator/kernels` with some of its text changed.
fn compile(emulator: &'static Emulator, name: &str, changes: &[(&str, &str)]) -> Module {
    let path = format!("{}/cuda_emulator/kernels/{name}.cu", env!("CARGO_MANIFEST_DIR"));
    let mut source = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
    for (from, to) in changes {
        assert!(source.contains(from), "{name} has no `{from}`");
        source = source.replace(from, to);
    }
    let start = source.find("__launch_bounds__(").expect("every kernel says its block") + "__launch_bounds__(".len();
    let block = source[start..].split(')').next().expect("a parenthesis").parse().expect("a number");
    let text = Text { source: &source, entry: name, block, shared_bytes: 256 };
    emulator.compile(&[text]).unwrap_or_else(|why| panic!("{why}"))
}

fn bf16(value: f32) -> u16 {
    (value.to_bits() >> 16) as u16
}

/// Small numbers that bf16 holds exactly.
fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 7 + i / 13) % 31) as f32 / 4.0 - 3.5).collect()
}

/// A kernel with its launch, and what it makes of it.
struct Case {
    name: &'static str,
    grid: [u32; 3],
    operands: Vec<Operand>,
    expected: Vec<(usize, Vec<f32>)>,
}

fn product() -> Case {
    let (a, b) = (numbers(32 * 64), numbers(64 * 16 + 5)[5..].to_vec());
    let term = |row: usize, column: usize, k: usize| a[row * 64 + k] * b[k * 16 + column];
    let c = (0..32 * 16).map(|at| (0..64).map(|k| term(at / 16, at % 16, k)).sum()).collect();
    let narrow = |of: &[f32]| Operand::of(&of.iter().map(|value| bf16(*value)).collect::<Vec<u16>>());
    let operands = vec![narrow(&a), narrow(&b), Operand::unwritten(32 * 16 * 4)];
    Case { name: "product", grid: [1, 1, 1], operands, expected: vec![(2, c)] }
}

fn sum_rows() -> Case {
    let x = numbers(300);
    let y = x.chunks(100).map(|row| row.iter().sum()).collect();
    let operands = vec![Operand::of(&x), Operand::unwritten(12)];
    Case { name: "sum_rows", grid: [3, 1, 1], operands, expected: vec![(1, y)] }
}

fn mirror() -> Case {
    let x = numbers(128);
    let most = |row: &[f32]| row.iter().copied().fold(f32::MIN, f32::max);
    let y = x.chunks(32).flat_map(|row| row.iter().rev().map(|value| value - most(row)).collect::<Vec<_>>()).collect();
    let operands = vec![Operand::of(&x), Operand::unwritten(512)];
    Case { name: "mirror", grid: [2, 1, 1], operands, expected: vec![(1, y)] }
}

fn scale() -> Case {
    let x = numbers(256);
    let y = x.iter().map(|value| value * 2.0).collect();
    let operands = vec![Operand::of(&x), Operand::unwritten(1024), Operand::of(&[5u32, 0, 0])];
    Case { name: "scale", grid: [2, 1, 1], operands, expected: vec![(1, y)] }
}

impl Case {
    fn run(&self, emulator: &'static Emulator, changes: &[(&str, &str)]) -> Outcome {
        compile(emulator, self.name, changes).launch(self.name, self.grid, self.operands.clone())
    }

    fn is_right(&self, outcome: &Outcome) -> bool {
        self.expected.iter().all(|(operand, values)| outcome.operands[*operand].elements::<f32>() == *values)
    }
}

/// As it stands, a kernel is right and nothing is reported.
fn check_sound(case: &Case) {
    let Some(emulator) = Emulator::get() else { return };
    let outcome = case.run(emulator, &[]);
    assert_eq!(outcome.reports, Vec::<String>::new(), "{}", case.name);
    assert!(case.is_right(&outcome), "{}: {:?}", case.name, outcome.operands);
}

/// With a fault planted, a report says `found`, twice the same; where that is `wrong`, only the numbers say it.
fn check_found(case: &Case, changes: &[(&str, &str)], found: &str) {
    let Some(emulator) = Emulator::get() else { return };
    let outcome = case.run(emulator, changes);
    if found == "wrong" {
        assert!(!case.is_right(&outcome), "{} with {changes:?} is right", case.name);
        return;
    }
    let reports = &outcome.reports;
    assert!(reports.iter().any(|line| line.contains(found)), "{} with {changes:?}: {reports:#?}", case.name);
    let module = compile(emulator, case.name, changes);
    let again = module.launch(case.name, case.grid, case.operands.clone());
    assert_eq!(again, outcome, "{} with {changes:?} differs from run to run", case.name);
    // An outcome of one launch tells nothing to the next.
    assert_eq!(module.launch(case.name, case.grid, case.operands.clone()), outcome);
}

#[test]
fn sound_kernels_are_right_and_clean() {
    [product(), sum_rows(), mirror(), scale()].iter().for_each(check_sound);
}

#[test]
fn races_are_found() {
    let barrier = [("        __syncthreads(); // halved\n", "")];
    check_found(&sum_rows(), &barrier, "sum_rows:9: race: write of what another thread reads (block 0, thread 1)");
    let not_all_read = [("        __syncthreads(); // all have read\n", "")];
    check_found(&product(), &not_all_read, "race: write of what another thread reads");
    let not_all_loaded = [("        __syncthreads(); // all have loaded\n", "")];
    check_found(&product(), &not_all_loaded, "race: ");
    check_found(&mirror(), &[("    __syncwarp();\n", "")], "race: read of what another thread writes");
    let one_place = [("z[1 + blockIdx.x]", "z[1]")];
    check_found(
        &scale(),
        &one_place,
        "race: read of what another thread writes (block 1, thread 0): 4 bytes at 4 of operand 2",
    );
    let both_write = [("blockIdx.x * 32 +", "")];
    check_found(&scale(), &both_write, "race: write of what another thread writes (block 1, thread 0)");
    let in_place = [("*(float4*)(y + i) = v;", "*(float4*)(y + i) = v; ((float*)x)[(i + 128) % 256] = v.x;")];
    check_found(&scale(), &in_place, "; the other is thread 0 of block 0");
}

#[test]
fn accesses_outside_their_memory_are_found() {
    let whole_block = [("thread < 100 ?", "thread < 128 ?")];
    let beyond = "sum_rows:5: outside its memory (block 2, thread 100): 4 bytes at 1200 of operand 0, which has 1200";
    check_found(&sum_rows(), &whole_block, beyond);
    let too_far = [("half = 64", "half = 128")];
    check_found(
        &sum_rows(),
        &too_far,
        "outside its memory (block 0, thread 127): 4 bytes at 1020 of shared `partial`, which has 512",
    );
    check_found(
        &sum_rows(),
        &[("y[blockIdx.x]", "y[(int)blockIdx.x - 1]")],
        "4 bytes at -4 of operand 1, which has 12",
    );
    check_found(&product(), &[("tile + 1 < 4", "tile + 1 < 5")], "16 bytes at 4096 of operand 0, which has 4096");
    check_found(&product(), &[("unsigned short a_tile[2][32][24]", "unsigned short a_tile[2][31][24]")], "of shared `");
    let wild = [("x[i]", "x[i + (1ll << 45)]")];
    check_found(&mirror(), &wild, "outside its memory (block 0, thread 0): 4 bytes at an address far from everything");
}

#[test]
fn reads_of_what_nobody_wrote_are_found() {
    let only_some = [(
        "    partial[thread] = thread < 100 ? x[blockIdx.x * 100 + thread] : 0.0f;",
        "    if (thread < 100) partial[thread] = x[blockIdx.x * 100 + thread];",
    )];
    check_found(
        &sum_rows(),
        &only_some,
        "read of what was never written (block 0, thread 36): 4 bytes at 400 of shared `partial`",
    );
    let stale = [("    partial[thread] = ", "    if (blockIdx.x == 0) partial[thread] = ")];
    check_found(&sum_rows(), &stale, "read of what was never written (block 1, thread 0)");
    check_found(&scale(), &[("*(float4*)(y + i) = v;", "y[i] += v.x;")], "4 bytes at 0 of operand 1");
}

#[test]
fn barriers_that_not_all_reach_are_found() {
    let inside = [(
        "thread + half];\n        }\n        __syncthreads(); // halved\n",
        "thread + half];\n        __syncthreads(); }\n",
    )];
    check_found(&sum_rows(), &inside, "divergent barrier");
    let ended = [("    __syncthreads();\n    for", "    if (thread >= 100) return;\n    __syncthreads();\n    for")];
    check_found(&sum_rows(), &ended, "divergent barrier (block 0, thread 0): 28 threads of the block have ended");
    let elsewhere = [(
        "    __syncthreads();\n    for",
        "    if (thread < 32) {\n__syncthreads();\n} else {\n__syncthreads();\n}\n    for",
    )];
    check_found(&sum_rows(), &elsewhere, "another thread of the block waits at line 9");
}

#[test]
fn shuffles_with_lanes_that_do_not_come_are_found() {
    let half = [("for (int by", "if (lane < 16) for (int by")];
    check_found(&mirror(), &half, "lanes that never come (block 0, thread 0): a shuffle waits for lanes 16 to 31");
    let fewer = [("0xffffffffu, most", "lane < 16 ? 0xffffu : 0xffff0000u, most")];
    check_found(&mirror(), &fewer, "a shuffle reads lane 16, which takes no part");
}

#[test]
fn copies_that_were_not_waited_for_are_found() {
    let unawaited = [("cp_async_wait<1>();", "cp_async_wait<2>();")];
    check_found(&product(), &unawaited, "before the asynchronous copy was waited for");
    let uncommitted = [("    cp_async_commit();\n    for", "    for")];
    check_found(&product(), &uncommitted, "before the asynchronous copy was waited for");
}

#[test]
fn misaligned_accesses_are_found() {
    let odd = [("(x + i)", "(x + (i + 1) % 250)")];
    check_found(&scale(), &odd, "scale:7: misaligned access (block 0, thread 0): 16 bytes at 4 of operand 0");
    check_found(&product(), &[("[24]", "[20]")], "misaligned access");
}

#[test]
fn what_only_numbers_can_tell_is_told() {
    check_found(&product(), &[("warp * 16 + lane % 16", "warp * 16 + (lane % 16 ^ 8)")], "wrong");
    check_found(&product(), &[("ldmatrix_x2_trans", "ldmatrix_x2")], "wrong");
    check_found(&product(), &[("tile + 1 < 4", "tile + 1 < 3")], "wrong");
    check_found(
        &product(),
        &[("lane / 4 + i / 2 * 8", "lane / 4 + i % 2 * 8"), ("* 2 + i % 2", "* 2 + i / 2")],
        "wrong",
    );
}

#[test]
fn what_a_compiler_says_names_the_line_of_the_text() {
    let Some(emulator) = Emulator::get() else { return };
    let source = "extern \"C\" __global__ void __launch_bounds__(32) broken(float* x) {\n    x[0] = nonsense;\n}\n";
    let text = Text { source, entry: "broken", block: 32, shared_bytes: 0 };
    let Err(why) = emulator.compile(&[text]) else { panic!("it compiles") };
    assert!(why.contains("broken:2:"), "{why}");
}

/// "Matrix Fragments for mma.m16n8k16 with floating point type": a row of A for each line; `T.ij` says that lane T holds two
/// neighbours of the row as elements i and j of its fragment.
const A: &str = "
     0.01  1.01  2.01  3.01   0.45  1.45  2.45  3.45
     4.01  5.01  6.01  7.01   4.45  5.45  6.45  7.45
     8.01  9.01 10.01 11.01   8.45  9.45 10.45 11.45
    12.01 13.01 14.01 15.01  12.45 13.45 14.45 15.45
    16.01 17.01 18.01 19.01  16.45 17.45 18.45 19.45
    20.01 21.01 22.01 23.01  20.45 21.45 22.45 23.45
    24.01 25.01 26.01 27.01  24.45 25.45 26.45 27.45
    28.01 29.01 30.01 31.01  28.45 29.45 30.45 31.45
     0.23  1.23  2.23  3.23   0.67  1.67  2.67  3.67
     4.23  5.23  6.23  7.23   4.67  5.67  6.67  7.67
     8.23  9.23 10.23 11.23   8.67  9.67 10.67 11.67
    12.23 13.23 14.23 15.23  12.67 13.67 14.67 15.67
    16.23 17.23 18.23 19.23  16.67 17.67 18.67 19.67
    20.23 21.23 22.23 23.23  20.67 21.67 22.67 23.67
    24.23 25.23 26.23 27.23  24.67 25.67 26.67 27.67
    28.23 29.23 30.23 31.23  28.67 29.67 30.67 31.67";

/// The same of B: a column for each line, since lanes hold neighbours of a column.
const B: &str = "
     0.01  1.01  2.01  3.01   0.23  1.23  2.23  3.23
     4.01  5.01  6.01  7.01   4.23  5.23  6.23  7.23
     8.01  9.01 10.01 11.01   8.23  9.23 10.23 11.23
    12.01 13.01 14.01 15.01  12.23 13.23 14.23 15.23
    16.01 17.01 18.01 19.01  16.23 17.23 18.23 19.23
    20.01 21.01 22.01 23.01  20.23 21.23 22.23 23.23
    24.01 25.01 26.01 27.01  24.23 25.23 26.23 27.23
    28.01 29.01 30.01 31.01  28.23 29.23 30.23 31.23";

/// Of C and D: a row for each line.
const D: &str = "
     0.01  1.01  2.01  3.01
     4.01  5.01  6.01  7.01
     8.01  9.01 10.01 11.01
    12.01 13.01 14.01 15.01
    16.01 17.01 18.01 19.01
    20.01 21.01 22.01 23.01
    24.01 25.01 26.01 27.01
    28.01 29.01 30.01 31.01
     0.23  1.23  2.23  3.23
     4.23  5.23  6.23  7.23
     8.23  9.23 10.23 11.23
    12.23 13.23 14.23 15.23
    16.23 17.23 18.23 19.23
    20.23 21.23 22.23 23.23
    24.23 25.23 26.23 27.23
    28.23 29.23 30.23 31.23";

/// "Matrix Fragments for mma.m16n8k8" with .tf32: `T.i` for every element; A by rows, B by columns.
const A_TF32: &str = "
     0.0  1.0  2.0  3.0   0.2  1.2  2.2  3.2
     4.0  5.0  6.0  7.0   4.2  5.2  6.2  7.2
     8.0  9.0 10.0 11.0   8.2  9.2 10.2 11.2
    12.0 13.0 14.0 15.0  12.2 13.2 14.2 15.2
    16.0 17.0 18.0 19.0  16.2 17.2 18.2 19.2
    20.0 21.0 22.0 23.0  20.2 21.2 22.2 23.2
    24.0 25.0 26.0 27.0  24.2 25.2 26.2 27.2
    28.0 29.0 30.0 31.0  28.2 29.2 30.2 31.2
     0.1  1.1  2.1  3.1   0.3  1.3  2.3  3.3
     4.1  5.1  6.1  7.1   4.3  5.3  6.3  7.3
     8.1  9.1 10.1 11.1   8.3  9.3 10.3 11.3
    12.1 13.1 14.1 15.1  12.3 13.3 14.3 15.3
    16.1 17.1 18.1 19.1  16.3 17.3 18.3 19.3
    20.1 21.1 22.1 23.1  20.3 21.3 22.3 23.3
    24.1 25.1 26.1 27.1  24.3 25.3 26.3 27.3
    28.1 29.1 30.1 31.1  28.3 29.3 30.3 31.3";
const B_TF32: &str = "
     0.0  1.0  2.0  3.0   0.1  1.1  2.1  3.1
     4.0  5.0  6.0  7.0   4.1  5.1  6.1  7.1
     8.0  9.0 10.0 11.0   8.1  9.1 10.1 11.1
    12.0 13.0 14.0 15.0  12.1 13.1 14.1 15.1
    16.0 17.0 18.0 19.0  16.1 17.1 18.1 19.1
    20.0 21.0 22.0 23.0  20.1 21.1 22.1 23.1
    24.0 25.0 26.0 27.0  24.1 25.1 26.1 27.1
    28.0 29.0 30.0 31.0  28.1 29.1 30.1 31.1";

/// For each line of a table, the (lane, element) of its places in order.
fn places(table: &str) -> Vec<Vec<(usize, usize)>> {
    let place = |word: &str| -> Vec<(usize, usize)> {
        let (lane, elements) = word.split_once('.').expect("a lane and elements");
        let lane = lane.parse().expect("a lane");
        elements.chars().map(|digit| (lane, digit.to_digit(10).expect("a digit") as usize)).collect()
    };
    let line = |line: &str| line.split_whitespace().flat_map(place).collect();
    table.lines().filter(|line| !line.is_empty()).map(line).collect()
}

/// How elements lie in the registers of lanes: 16 bits as the upper half of an f32, or as f16, or f32.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Bf16,
    F16,
    Tf32,
}

/// Small integers are exact in every type.
fn f16(value: f32) -> u16 {
    if value == 0.0 {
        return 0;
    }
    let bits = value.to_bits();
    let exponent = (bits >> 23 & 0xff) as u16 - 112;
    (bits >> 16 & 0x8000) as u16 | exponent << 10 | (bits >> 13 & 0x3ff) as u16
}

/// The registers of all lanes, `registers` of each, of a matrix given line by line of its table.
fn fragments(kind: Kind, table: &str, registers: usize, lines: &[Vec<f32>]) -> Vec<u32> {
    let mut all = vec![0u32; 32 * registers];
    for (places, line) in places(table).iter().zip(lines) {
        for (&(lane, element), &value) in places.iter().zip(line) {
            let (register, bits) = match kind {
                Kind::Bf16 => (element / 2, u32::from(bf16(value)) << (element % 2 * 16)),
                Kind::F16 => (element / 2, u32::from(f16(value)) << (element % 2 * 16)),
                Kind::Tf32 => (element, value.to_bits()),
            };
            all[lane * registers + register] |= bits;
        }
    }
    all
}

/// A product of fragments that are laid out by the tables is the product of the matrices, by sums in f64; with `transposed`
/// one operand is laid out the other way.
fn product_of_fragments(kind: Kind, transposed: bool) -> bool {
    let Some(emulator) = Emulator::get() else { return !transposed };
    let (depth, table_a, table_b, name) = match kind {
        Kind::Bf16 => (16, A, B, "mma_m16n8k16_bf16"),
        Kind::F16 => (16, A, B, "mma_m16n8k16_f16"),
        Kind::Tf32 => (8, A_TF32, B_TF32, "mma_m16n8k8_tf32"),
    };
    let value = |i: usize, j: usize| ((i * 5 + j * 11 + i * j) % 17) as f32 - 8.0;
    let a = |row: usize, k: usize| value(row, k);
    let b = |k: usize, column: usize| value(column + 3, k + 7);
    let start = |row: usize, column: usize| value(column, row) / 2.0;
    let rows_of = |count: usize, length: usize, f: &dyn Fn(usize, usize) -> f32| -> Vec<Vec<f32>> {
        (0..count).map(|i| (0..length).map(|j| f(i, j)).collect()).collect()
    };
    let lines_b = match transposed {
        false => rows_of(8, depth, &|column, k| b(k, column)),
        // As if lanes held neighbours of a row.
        true => rows_of(8, depth, &|i, j| b((i * depth + j) / 8, (i * depth + j) % 8)),
    };
    let a_fragments = fragments(kind, table_a, 4, &rows_of(16, depth, &a));
    let b_fragments = fragments(kind, table_b, 2, &lines_b);
    let d_fragments = fragments(Kind::Tf32, D, 4, &rows_of(16, 8, &start));
    let module = compile(emulator, "fragments", &[("mma_m16n8k16_bf16", name)]);
    let operands = vec![Operand::of(&a_fragments), Operand::of(&b_fragments), Operand::of(&d_fragments)];
    let outcome = module.launch("fragments", [1, 1, 1], operands);
    assert_eq!(outcome.reports, Vec::<String>::new());
    let sum = |row: usize, column: usize| -> f32 {
        let products = (0..depth).map(|k| f64::from(a(row, k)) * f64::from(b(k, column)));
        (f64::from(start(row, column)) + products.sum::<f64>()) as f32
    };
    outcome.operands[2].elements::<u32>() == fragments(Kind::Tf32, D, 4, &rows_of(16, 8, &sum))
}

#[test]
fn products_of_fragments_are_products_of_matrices() {
    for kind in [Kind::Bf16, Kind::F16, Kind::Tf32] {
        assert!(product_of_fragments(kind, false));
        assert!(!product_of_fragments(kind, true));
    }
}

/// "ldmatrix": lane 4 r + c holds elements 2 c and 2 c + 1 of row r, of the transpose if that is asked for; lanes 8 m to
/// 8 m + 7 give the rows of matrix m.
fn check_ldmatrix(name: &str, matrices: usize, transposed: bool) {
    let Some(emulator) = Emulator::get() else { return };
    let own = format!("unsigned own[{matrices}];");
    let module = compile(
        emulator,
        "matrices",
        &[("ldmatrix_x4", name), ("unsigned own[4];", &own), ("i < 4", &format!("i < {matrices}"))],
    );
    let x: Vec<u16> = (0..256).collect();
    let outcome = module.launch("matrices", [1, 1, 1], vec![Operand::of(&x), Operand::of(&[0u32; 128])]);
    assert_eq!(outcome.reports, Vec::<String>::new());
    let registers = outcome.operands[1].elements::<u32>();
    for lane in 0..32 {
        for matrix in 0..matrices {
            let element = |half: usize| {
                let (row, column) = (lane / 4, lane % 4 * 2 + half);
                let (row, column) = if transposed { (column, row) } else { (row, column) };
                u32::from(x[matrix * 64 + row * 8 + column])
            };
            assert_eq!(registers[lane * 4 + matrix], element(0) | element(1) << 16, "{name}, lane {lane}");
        }
    }
}

#[test]
fn ldmatrix_gives_fragments() {
    check_ldmatrix("ldmatrix_x4", 4, false);
    check_ldmatrix("ldmatrix_x2", 2, false);
    check_ldmatrix("ldmatrix_x4_trans", 4, true);
    check_ldmatrix("ldmatrix_x2_trans", 2, true);
}
