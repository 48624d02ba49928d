//! Random graphs on every device, fused and not, against the interpreter: within bounds that are derived element by element,
//! so that what no test thought of is wrong loudly.
//!
//! `ALIP_RANDOM_GRAPHS=5000` tries more than the usual number.

use std::collections::BTreeMap;

use alip_compiler::ir::{self, Graph, interpret};
use alip_compiler::schedule::prepare;
use alip_plan::bounds::assert_within_each;
use alip_plan::kernel::{Code, Kernel, Loop, ScalarOp, Stage};
use alip_plan::{Plan, Target};
use alip_tests::compiled::{Numbers, devices, model, plan, run, try_plan};
use alip_tests::random_graph::{RandomGraph, random_graph};
use alip_tests::rounding::{bound_of, update_of, with_bounds};

/// Steps of a graph: about 60 nodes, twice as many with gradients. 15,000 graphs of twice the steps passed once.
const STEPS: usize = 24;
/// Graphs on the reference device and the cpu; the wgpu device, which compiles every shader, gets one of twenty.
/// The defects that the first 3,000 graphs found showed in one of a few hundred.
const GRAPHS: u64 = 600;

/// What must come out, with the largest error of each element.
struct Expected {
    results: BTreeMap<String, (Vec<f64>, Vec<f64>)>,
}

fn expected(case: &RandomGraph) -> Expected {
    let graph = with_bounds(&case.graph);
    let outputs = interpret(&graph, &case.inputs, &case.state).expect("the interpreter runs it").outputs;
    let updates = case.graph.updates.keys().map(|path| update_of(path));
    let names = case.graph.outputs.keys().cloned().chain(updates);
    let result = |name: String| {
        let value = outputs[&name].data.clone();
        // Below the smallest normal number the device may flush to zero.
        let bounds = outputs.get(&bound_of(&name)).map_or(vec![0.0; value.len()], |bounds| bounds.data.clone());
        (name, (value, bounds.into_iter().map(|bound| bound + 1e-37).collect()))
    };
    Expected { results: names.map(result).collect() }
}

/// Runs a plan and compares all outputs and states.
fn compare(case: &RandomGraph, expected: &Expected, device: &str, plan: Plan) -> Result<(), String> {
    let (outputs, after): (Numbers, Numbers) = run(device, plan, &case.graph.name, &case.inputs, &case.state);
    let updated = |(path, value): (&String, &Vec<f64>)| (update_of(path), value.clone());
    let actual: BTreeMap<String, Vec<f64>> = outputs.into_iter().chain(after.iter().map(updated)).collect();
    for (name, (value, bounds)) in &expected.results {
        assert_within_each(&actual[name], value, bounds).map_err(|wrong| format!("`{name}` {wrong}"))?;
    }
    for (path, value) in case.state.iter().filter(|(path, _)| !case.graph.updates.contains_key(*path)) {
        if after[path] != value.data {
            return Err(format!("state `{path}` has changed, and nothing updates it"));
        }
    }
    Ok(())
}

fn try_graph(case: &RandomGraph, device: &str, target: &Target) -> Result<(), String> {
    let expected = expected(case);
    let model = model("random", &case.graph, &case.state);
    for fuse in [true, false] {
        let plan = try_plan(&model, target.clone(), fuse).map_err(|errors| format!("fuse {fuse}: {errors}"))?;
        alip_plan::check::check(&plan).map_err(|why| format!("fuse {fuse}: {why}"))?;
        compare(case, &expected, device, plan).map_err(|why| format!("fuse {fuse}: {why}"))?;
    }
    Ok(())
}

/// Tries a graph; a failure is shown with no more results than it takes to fail.
fn check(seed: u64, device: &str, target: &Target) {
    let mut case = random_graph(seed, STEPS);
    let Err(mut why) = try_graph(&case, device, target) else { return };
    let results = |graph: &Graph| graph.outputs.keys().chain(graph.updates.keys()).cloned().collect::<Vec<_>>();
    for name in results(&case.graph) {
        let whole = case.graph.clone();
        case.graph.outputs.shift_remove(&name);
        case.graph.updates.shift_remove(&name);
        match try_graph(&case, device, target) {
            Err(still) => why = still,
            Ok(()) => case.graph = whole,
        }
    }
    let live = prepare(&case.graph).map_or_else(|errors| errors.to_string(), |graph| ir::print(&graph));
    panic!("seed {seed}, {device}, {} operands: {why}\n{live}", target.max_operands);
}

#[test]
fn random_graphs_compute_what_the_interpreter_does() {
    let graphs = std::env::var("ALIP_RANDOM_GRAPHS").ok().and_then(|text| text.parse().ok()).unwrap_or(GRAPHS);
    let few = Target { max_operands: 6, ..Target::cpu() };
    for (device, target) in devices().into_iter().chain([("reference", few)]) {
        let every = if device == "wgpu" { 20 } else { 1 };
        (0..graphs).filter(|seed| (seed / 2) % every == 0).for_each(|seed| check(seed, device, &target));
    }
}

/// Bounds that let everything through would make the test above worthless: most elements are known to four digits.
#[test]
fn bounds_are_far_below_the_values() {
    let (mut tight, mut all) = (0, 0);
    for seed in 0..GRAPHS {
        for (value, bounds) in expected(&random_graph(seed, STEPS)).results.values() {
            let known = value.iter().zip(bounds).filter(|(value, bound)| **bound <= 1e-4 * value.abs().max(1e-2));
            tight += known.count();
            all += value.len();
        }
    }
    assert!(tight * 10 > all * 9, "{tight} of {all} elements");
}

/// Changes one instruction of a plan, if there is one that can be changed.
fn plant_fault(plan: &mut Plan, which: usize) -> bool {
    let mut codes: Vec<&mut Code> = Vec::new();
    for kernel in &mut plan.kernels {
        match kernel {
            Kernel::Loop(Loop::Map(map)) => codes.push(&mut map.code),
            Kernel::Loop(Loop::Product(product)) => codes.push(&mut product.code),
            Kernel::Loop(Loop::Reduction(reduction)) => {
                codes.extend(reduction.stages.iter_mut().map(|stage| match stage {
                    Stage::Points { code, .. } | Stage::Row { code, .. } => code,
                }));
            }
            _ => {}
        }
    }
    let other = |op| match op {
        // Not one for the other: a softmax is the same whatever is added to its row.
        ScalarOp::Add | ScalarOp::Sub => Some(ScalarOp::Mul),
        ScalarOp::Mul => Some(ScalarOp::Add),
        ScalarOp::Tanh => Some(ScalarOp::Erf),
        _ => None,
    };
    let mut found: Vec<_> =
        codes.into_iter().flat_map(|code| &mut code.instrs).filter(|i| other(i.op).is_some()).collect();
    let count = found.len();
    if count == 0 {
        return false;
    }
    let instr = &mut found[which % count];
    instr.op = other(instr.op).expect("filtered");
    true
}

#[test]
fn planted_faults_are_found() {
    let (mut planted, mut found) = (0, 0);
    for seed in 0..GRAPHS {
        let case = random_graph(seed, STEPS);
        let expected = expected(&case);
        let mut faulty = plan(&model("random", &case.graph, &case.state), Target::cpu(), true);
        if plant_fault(&mut faulty, seed as usize * 7) {
            planted += 1;
            found += u32::from(compare(&case, &expected, "reference", faulty).is_err());
        }
    }
    // Some faults change nothing, such as in the smaller part of a maximum; those looked at were all of this kind.
    assert!(u64::from(planted) * 5 > GRAPHS * 4 && found * 10 >= planted * 9, "{found} of {planted} faults");
}
