//! CUDA without a card: plans for NVIDIA cards, run by the emulator, against the interpreter.
//!
//! As many random graphs as one likes, from any seed: `ALIP_FUZZ=500 ALIP_FUZZ_SEED=1000 cargo test --release -p alip-tests --test
//! cuda_emulated -- --nocapture`.

#![cfg(target_os = "linux")]

use alip_plan::{Plan, Target};
use alip_tests::cuda;
use alip_tests::fuzz::campaign::STEPS;
use alip_tests::fuzz::judge::{Expected, compare_on, expected, plan};
use alip_tests::fuzz::levels::levels;
use alip_tests::fuzz::{Case, random_case};

/// Graphs where nobody asks for more: their kernels are compiled together.
const GRAPHS: u64 = 50;

fn number(variable: &str, default: u64) -> u64 {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A graph with what it must compute, compiled with everything and with nothing.
struct Prepared {
    seed: u64,
    case: Case,
    expected: Expected,
    plans: Vec<(&'static str, Plan)>,
}

/// The card; for every second graph one on which every sum of a product is worth cutting.
fn target(seed: u64) -> Target {
    let mut target = Target::sm_80();
    if let (1, Some(waves)) = (seed % 2, &mut target.rates.waves) {
        waves.fewest_terms = 1;
        target.rates.launch = 0.0;
    }
    target
}

fn prepare(seed: u64) -> Prepared {
    let target = &target(seed);
    let case = random_case(seed, STEPS);
    let expected = expected(&case).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
    let all = levels();
    let levels = [&all[0], &all[all.len() - 1]];
    let compile = |level: &&alip_tests::fuzz::levels::Level| {
        let (plan, _) = plan(&case, level, target).unwrap_or_else(|why| panic!("seed {seed}, {}: {why}", level.name));
        (level.name, plan)
    };
    let plans = levels.iter().map(compile).collect();
    Prepared { seed, case, expected, plans }
}

#[test]
fn random_graphs_compute_what_the_interpreter_does() {
    let (first, graphs) = (number("ALIP_FUZZ_SEED", 0), number("ALIP_FUZZ", GRAPHS));
    let prepared: Vec<Prepared> = (first..first + graphs).map(prepare).collect();
    let plans = prepared.iter().flat_map(|graph| graph.plans.iter().map(|(_, plan)| plan));
    let Some(device) = cuda::device_for(plans) else { return };
    let mut failed = Vec::new();
    for Prepared { seed, case, expected, plans } in prepared {
        for (level, plan) in plans {
            let run = std::panic::AssertUnwindSafe(|| compare_on(&case, &expected, device(), plan));
            let result = std::panic::catch_unwind(run).unwrap_or_else(|_| Err("it panics".into()));
            failed.extend(result.err().map(|why| format!("seed {seed}, {level}: {why}")));
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n"));
}
