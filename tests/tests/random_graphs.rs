//! Random graphs on every device, at every level of optimisation, against the interpreter: within bounds that are derived
//! element by element, so that what no test thought of is wrong loudly.
//!
//! As many as one likes, from any seed: `ALIP_FUZZ=100000 ALIP_FUZZ_SEED=5000 cargo test --release -p alip-tests --test
//! random_graphs random_graphs_compute -- --nocapture`; with `ALIP_FUZZ_DEVICE=cpu` on that device alone.

use std::collections::BTreeSet;
use std::path::Path;

use alip_compiler::ops::cases;
use alip_compiler::transform;
use alip_plan::Target;
use alip_tests::compiled::devices;
use alip_tests::fuzz::campaign::{Campaign, Report, STEPS, campaign};
use alip_tests::fuzz::judge::{Failure, Place, expected, try_case};
use alip_tests::fuzz::shrink::shrunk;
use alip_tests::fuzz::{random_case, text};

/// Graphs on the cpu.
const GRAPHS: u64 = 2000;
/// Of how many graphs on the cpu one is for the reference device, twice over: also with kernels of few operands.
const REFERENCE: u64 = 8;
/// The same for the wgpu device, which compiles every shader: 100 graphs, and those are small.
const WGPU: u64 = 19;
const WGPU_STEPS: usize = 6;
/// Failures on one device before it is left alone.
const ENOUGH: usize = 8;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// Where failing cases are kept, and replayed from.
fn kept() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/fuzz"))
}

/// Makes a failing case small and keeps it as a file; says where.
fn keep(seed: u64, steps: usize, failure: &Failure, place: &Place) -> String {
    let fails = |case: &_| try_case(case, place).is_err_and(|other| other.level == failure.level);
    let small = shrunk(&random_case(seed, steps), fails);
    let why = try_case(&small, place).err().map_or_else(|| failure.to_string(), |failure| failure.to_string());
    let path = kept().join(format!("{}-{}-{seed}.graph", failure.device, failure.level));
    let text = text::print(&small, &why);
    match std::fs::create_dir_all(kept()).and_then(|()| std::fs::write(&path, &text)) {
        Ok(()) => format!("seed {seed}, {failure}\n  kept as {}\n{text}", path.display()),
        Err(error) => format!("seed {seed}, {failure}\n  cannot be kept as {}: {error}\n{text}", path.display()),
    }
}

#[test]
fn random_graphs_compute_what_the_interpreter_does() {
    let (first, graphs) = (number("ALIP_FUZZ_SEED", 0), number("ALIP_FUZZ", GRAPHS));
    let only = std::env::var("ALIP_FUZZ_DEVICE").ok();
    let few = Target { max_operands: 6, ..Target::cpu() };
    let places = devices().into_iter().chain([("reference", few)]);
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for (device, target) in places.filter(|(device, _)| only.as_deref().is_none_or(|only| only == *device)) {
        let (part, steps) = match device {
            "reference" => (graphs.div_ceil(REFERENCE), STEPS),
            "wgpu" => (graphs.div_ceil(WGPU), WGPU_STEPS),
            _ => (graphs, STEPS),
        };
        let start = std::time::Instant::now();
        let (seeds, wild) = (first..first + part, device != "wgpu");
        let what = Campaign { seeds, steps, place: Place { device, target }, wild, enough: ENOUGH };
        let met = campaign(&what);
        println!("{device}: {} graphs in {:.1} s", met.cases, start.elapsed().as_secs_f64());
        // Making them small takes longer than finding them.
        met.failures.iter().for_each(|(seed, why)| println!("seed {seed}, {why}"));
        failed.extend(met.failures.iter().map(|(seed, why)| keep(*seed, steps, why, &what.place)));
        report.add(met);
    }
    println!("{}", report.table());
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let known: BTreeSet<&str> = cases().iter().flat_map(|case| case.graph.nodes()).map(|node| node.op.name()).collect();
    let missed: Vec<&str> = known.into_iter().filter(|name| !report.ops.contains_key(name)).collect();
    let rewrites = transform::names().chain(transform::lift::NAMES);
    let unused: Vec<&str> = rewrites.filter(|name| !report.rewrites.contains_key(name)).collect();
    let rules = report.unused_rules();
    assert!(unused.is_empty() || graphs < GRAPHS, "rewrites of no graph: {unused:?}");
    assert!(rules.is_empty() || graphs < GRAPHS, "rules of no graph: {rules:?}; `fuzz/steps/idiom.rs` is for these");
    assert!(missed.is_empty() || graphs < GRAPHS, "ops in no graph: {missed:?}");
}

/// What failed once stays right.
#[test]
fn kept_cases_pass() {
    let files = std::fs::read_dir(kept()).expect("tests/fuzz").map(|entry| entry.expect("an entry").path());
    let mut replayed = 0;
    for path in files.filter(|path| path.extension().is_some_and(|extension| extension == "graph")) {
        let text = std::fs::read_to_string(&path).expect("a text");
        let case = text::parse(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        for (device, target) in devices() {
            if device == "wgpu" && case.is_wild() {
                continue;
            }
            let tried = try_case(&case, &Place { device, target });
            tried.unwrap_or_else(|failure| panic!("{}: {failure}", path.display()));
            replayed += 1;
        }
    }
    assert!(replayed > 0, "no case is kept");
}

/// Bounds that let everything through would make the test above worthless: most elements are known to four digits.
#[test]
fn bounds_are_far_below_the_values() {
    let (mut tight, mut all) = (0, 0);
    for seed in 0..GRAPHS / 4 {
        for result in expected(&random_case(seed, STEPS)).expect("a case").results.values() {
            let known = result
                .value
                .iter()
                .zip(&result.bounds)
                .filter(|(value, bound)| **bound <= 1e-4 * value.abs().max(1e-2));
            tight += known.count();
            all += result.value.len();
        }
    }
    assert!(tight * 10 > all * 9, "{tight} of {all} elements");
}
