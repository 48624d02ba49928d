//! Every graph in `graphs/`, made small: fused equals unfused. Every kernel of a training step, fused and not, is within the
//! bound derived for what it read, and the graph that is scheduled means what was written, as `alip-run bisect` finds.

#![cfg(feature = "compile")]

#[path = "../../tests/src/small.rs"]
#[expect(unreachable_pub, reason = "tests of both crates share it")]
mod small;

use std::process::Command;

use alip_compiler::resolve::graph_names;

#[test]
fn bisect_finds_nothing_wrong() {
    let folder = tempfile::tempdir().unwrap();
    for graph in graph_names() {
        let spec = small::small(&graph);
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
}
