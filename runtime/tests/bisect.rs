//! `alip-run bisect` finds a kernel that is wrong on purpose, and names the place that it computes.

use std::process::Command;

fn bisect(fault: &str, more: &[&str]) -> (Option<i32>, String) {
    let args = ["bisect", "alip_tiny", "--device", "cpu"];
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    let output = command.args(args).args(more).env("ALIP_FAULT", fault).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

#[test]
fn a_sound_compiler_is_acquitted() {
    let (status, text) = bisect("", &["--against", "no-fuse"]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("every result is within its bound, and every kernel on its own"), "{text}");
}

#[test]
fn a_fault_of_fusion_is_laid_to_fusion() {
    let (status, text) = bisect("EpilogueTwice", &[]);
    assert_eq!(status, Some(1), "{text}");
    for said in
        ["a kernel leaves its bound", "mlp.gelu at stdlib/activation.ron:7:", "responsible: what no-fuse turns off"]
    {
        assert!(text.contains(said), "no {said:?} in\n{text}");
    }
}

#[test]
fn a_kernel_that_is_always_wrong_is_laid_to_the_kernel() {
    let (status, text) = bisect("LastRowMissing", &[]);
    assert_eq!(status, Some(1), "{text}");
    for said in ["a kernel leaves its bound", "dot", "responsible: the kernel itself"] {
        assert!(text.contains(said), "no {said:?} in\n{text}");
    }
}

#[test]
fn what_cannot_be_turned_off_is_refused() {
    let (status, text) = bisect("", &["--against", "no-thing"]);
    assert_eq!(status, Some(1), "{text}");
    assert!(text.contains("--against no-thing: there is no-fuse"), "{text}");
}
