//! Every fault of [`alip_plan::fault`] is found by the random graphs that run for every change, those of shaders where there
//! is an adapter.
//!
//! `cargo test -p alip-tests --test planted_faults -- --nocapture` prints what found what.

use alip_compiler::trust::forward::Written;
use alip_compiler::trust::rewritten::rewritten;
use alip_compiler::trust::rows::chosen;
use alip_plan::Target;
use alip_plan::fault::{Fault, PLANTABLE, plant};
use alip_tests::compiled::devices;
use alip_tests::fuzz::campaign::{Campaign, STEPS, campaign};
use alip_tests::fuzz::judge::{Place, try_case};
use alip_tests::fuzz::levels::levels;
use alip_tests::fuzz::shrink::shrunk;
use alip_tests::fuzz::{Case, differentiated, random_case};

/// As many as `random_graphs` tries on the cpu, and the size and number of those it tries where shaders are compiled.
const GRAPHS: u64 = 2000;
const WGPU_GRAPHS: u64 = 106;
const WGPU_STEPS: usize = 6;

/// Where a case goes wrong, asked in the order in which `alip-run bisect` does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Before differentiation: lifting, rewrites, packing.
    Forward,
    /// Before the schedule.
    Graph,
    Kernel,
}

fn stage(case: &Case) -> Stage {
    let (inputs, state) = (&case.inputs, &case.state);
    let written = differentiated(&case.graph).and_then(|program| Written::new(&program, inputs, state));
    let everything = &levels()[0];
    let options = everything.options(Target::cpu());
    // What cannot even be rewritten is wrong there.
    let Ok((model, _)) = everything.model(case, &options) else { return Stage::Forward };
    let chosen = chosen(&model, &case.graph.name, inputs).expect("a program");
    let changed = written.and_then(|written| written.first_changed(chosen.graph, &chosen.inputs, state));
    if changed.expect("it runs").is_some() {
        return Stage::Forward;
    }
    let rewritten = rewritten(&model, chosen.graph, &options, &chosen.inputs, state);
    if rewritten.expect("it compiles").is_some() { Stage::Graph } else { Stage::Kernel }
}

/// Where a fault shows.
fn what(fault: Fault) -> Option<Campaign> {
    let name = if fault == Fault::TreeHalved { "wgpu" } else { "cpu" };
    let (device, target) = match name {
        "cpu" => ("cpu", Target::cpu()),
        _ => devices().into_iter().find(|(device, _)| *device == name)?,
    };
    let (graphs, steps) = if device == "cpu" { (GRAPHS, STEPS) } else { (WGPU_GRAPHS, WGPU_STEPS) };
    let place = Place { device, target };
    Some(Campaign { seeds: 0..graphs, steps, place, wild: device == "cpu", enough: 1 })
}

/// Where bisecting must find a fault; a gradient that is wrong is so before anything is compiled, and a memory plan that is
/// wrong is refused.
fn expected(fault: Fault) -> Option<Stage> {
    use Fault::*;
    match fault {
        TimesZeroIsIdentity | TransposesComposedBackwards | ScaleLost | RowOffsetShifted => Some(Stage::Forward),
        InverseForgotten => Some(Stage::Graph),
        SliceOffByOne | EpilogueTwice | EpilogueSubSwapped | RoundingSkipped => Some(Stage::Kernel),
        LseWithoutMax | CausalOffByOne | SegmentBoundaryLeak => Some(Stage::Kernel),
        LastLaneLost | LastRowMissing | ScatterOverwrites | ConvLastColumnLost => Some(Stage::Kernel),
        _ => None,
    }
}

#[test]
fn every_planted_fault_is_found() {
    if !PLANTABLE {
        println!("skipped: a release build has no faults to plant");
        return;
    }
    // A fault may make a kernel panic; what it says belongs to nobody.
    std::panic::set_hook(Box::new(|_| {}));
    let (mut missed, mut misplaced) = (Vec::new(), Vec::new());
    println!("{:26} {:>6} {:>6}  found as", "fault", "graphs", "nodes");
    for fault in Fault::ALL {
        let name = format!("{fault:?}");
        let Some(what) = what(fault) else {
            println!("{name:26}               there is no adapter");
            continue;
        };
        plant(Some(fault));
        let met = campaign(&what);
        let Some((seed, failure)) = met.failures.first() else {
            println!("{name:26} {:>6}         not found", met.cases);
            missed.push(fault);
            continue;
        };
        let same = |case: &Case| try_case(case, &what.place).is_err_and(|other| other.level == failure.level);
        let small = shrunk(&random_case(*seed, what.steps), same);
        let failure = try_case(&small, &what.place).expect_err("it fails as long as it is made smaller");
        println!("{name:26} {:>6} {:>6}  {failure}", seed + 1, small.graph.nodes().len());
        if let Some(expected) = expected(fault) {
            let found = stage(&small);
            if found != expected {
                misplaced.push((fault, found));
            }
        }
    }
    plant(None);
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
    assert!(misplaced.is_empty(), "looked for at another stage: {misplaced:?}");
    let sound = what(Fault::ALL[0]).expect("a cpu");
    assert!(campaign(&Campaign { seeds: 0..100, ..sound }).failures.is_empty(), "there is a fault that nobody planted");
}
