//! Every graph in `graphs/`, made small: fused equals unfused. Every kernel of a training step, fused and not, is within the
//! bound derived for what it read, and the graph that is scheduled means what was written, as `alip-run bisect` finds.

#![cfg(feature = "compile")]

#[path = "../../tests/src/small.rs"]
#[expect(unreachable_pub, reason = "tests of both crates share it")]
mod small;

use std::process::Command;
use std::sync::atomic::{AtomicUsize, Ordering};

use alip_compiler::resolve::graph_names;

fn check(graph: &str) {
    let folder = tempfile::tempdir().unwrap();
    let spec = small::small(graph);
    let file = format!("{}.ron", small::NAME);
    std::fs::write(folder.path().join(&file), &spec.files[&file]).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    command.current_dir(folder.path()).args(["bisect", &file, "--device", "cpu", "--batch", "4"]);
    for set in &spec.set {
        command.args(["--set", set]);
    }
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    assert_eq!(output.status.code(), Some(0), "{graph}: {text}");
    assert!(text.contains("every result is within its bound, and every kernel on its own"), "{graph}: {text}");
}

#[test]
fn bisect_finds_nothing_wrong() {
    // The interpreter computes on one core: as many graphs at a time as there are.
    let (graphs, next) = (graph_names(), AtomicUsize::new(0));
    let work = || {
        while let Some(graph) = graphs.get(next.fetch_add(1, Ordering::Relaxed)) {
            check(graph);
        }
    };
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    std::thread::scope(|scope| (0..threads).for_each(|_| drop(scope.spawn(work))));
}
