//! Every fault of [`alip_plan::fault`] is found by the random graphs that run for every change, on the cpu alone.
//!
//! `cargo test -p alip-tests --features planted-faults --test planted_faults -- --nocapture` prints what found what.

use alip_compiler::CompileOptions;
use alip_compiler::ir::{Graph, NodeId};
use alip_compiler::trust::rewritten::rewritten;
use alip_plan::Target;
use alip_plan::fault::{Fault, plant};
use alip_tests::compiled::model;
use alip_tests::fuzz::campaign::{Campaign, STEPS, campaign};
use alip_tests::fuzz::judge::{Place, try_case};
use alip_tests::fuzz::shrink::shrunk;
use alip_tests::fuzz::{Case, differentiated, random_case};

/// As many as `random_graphs` tries.
const GRAPHS: u64 = 2000;

/// The first node of a case that the compiler takes for something else.
fn first_rewritten(case: &Case) -> (Option<NodeId>, Graph) {
    let program = differentiated(&case.graph).expect("a program");
    let model = model("random", &program, &case.state);
    let found = rewritten(&model, &program.name, &CompileOptions::default(), &case.inputs, &case.state);
    (found.expect("it compiles").and_then(|found| found.node), program)
}

#[test]
fn every_planted_fault_is_found() {
    // A fault may make a kernel panic; what it says belongs to nobody.
    std::panic::set_hook(Box::new(|_| {}));
    let place = Place { device: "cpu", target: Target::cpu() };
    let what = Campaign { seeds: 0..GRAPHS, steps: STEPS, place: place.clone(), wild: true, enough: 1 };
    let mut missed = Vec::new();
    println!("{:26} {:>6} {:>6}  found as", "fault", "graphs", "nodes");
    for fault in Fault::ALL {
        plant(Some(fault));
        let met = campaign(&what);
        let name = format!("{fault:?}");
        let Some((seed, failure)) = met.failures.first() else {
            println!("{name:26} {:>6}         not found", met.cases);
            missed.push(fault);
            continue;
        };
        let small = shrunk(&random_case(*seed, STEPS), |case| try_case(case, &place).is_err());
        println!("{name:26} {:>6} {:>6}  {failure}", seed + 1, small.graph.nodes().len());
        // What `alip-run bisect` asks first: is the graph wrong that is scheduled, and from which node on?
        match fault {
            Fault::LseWithoutMax | Fault::CausalOffByOne => {
                let (node, graph) = first_rewritten(&small);
                let name = node.map(|node| graph.node(node).op.name());
                assert!(name.is_some_and(|name| name.starts_with("attention")), "{fault:?}: {name:?}");
            }
            Fault::LastRowMissing | Fault::EpilogueTwice => assert_eq!(first_rewritten(&small).0, None),
            _ => {}
        }
    }
    plant(None);
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {missed:?}");
    assert!(campaign(&Campaign { seeds: 0..100, ..what }).failures.is_empty(), "there is a fault that nobody planted");
}
