//! `alip-run bisect` finds what is wrong on purpose, a rewrite or a kernel, and names the place and what to turn off.

use std::process::Command;

use alip_plan::fault::PLANTABLE;

fn bisect(fault: &str, more: &[&str]) -> (Option<i32>, String) {
    bisect_of("alip_tiny", fault, more)
}

fn bisect_of(spec: &str, fault: &str, more: &[&str]) -> (Option<i32>, String) {
    let unless_given = |option, value| if more.contains(&option) { vec![] } else { vec![option, value] };
    let args = [vec!["bisect", spec], unless_given("--device", "cpu"), unless_given("--batch", "4")].concat();
    let mut command = Command::new(env!("CARGO_BIN_EXE_alip-run"));
    let output = command.args(args).args(more).env("ALIP_FAULT", fault).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&text).into_owned())
}

/// A fault is found at a stage and laid to what is responsible.
fn check(fault: &str, more: &[&str], said: &[&str]) {
    check_of("alip_tiny", fault, more, said);
}

fn check_of(spec: &str, fault: &str, more: &[&str], said: &[&str]) {
    if !PLANTABLE {
        println!("skipped: a release build has no faults to plant");
        return;
    }
    let (status, text) = bisect_of(spec, fault, more);
    assert_eq!(status, Some(1), "{fault}: {text}");
    for said in said {
        assert!(text.contains(said), "no {said:?} in\n{text}");
    }
}

/// A spec as a file in a folder.
fn file(folder: &tempfile::TempDir, spec: &str) -> String {
    let path = folder.path().join("spec.ron");
    std::fs::write(&path, spec).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn a_sound_compiler_is_acquitted() {
    for against in [["no-fuse"].as_slice(), &["no-rule", "packing"]] {
        let (status, text) = bisect("", &[&["--against"], against].concat());
        assert_eq!(status, Some(0), "{text}");
        assert!(text.contains("every result is within its bound, and every kernel on its own"), "{text}");
    }
}

#[test]
fn a_wrong_rewrite_of_the_whole_graph_is_laid_to_that_rewrite() {
    let said = [
        " packed rows, with no-rule packing ",
        "the step that is differentiated means something else than the one written\n  value   `outputs.",
        "responsible: what no-rule packing turns off; everything is right without it",
    ];
    check("RowOffsetShifted", &["--against", "no-rule", "packing"], &said);
}

#[test]
fn a_wrong_lift_is_laid_to_lifting() {
    let said = ["means something else than the one written", "responsible: what no-lift turns off"];
    check("ScaleLost", &["--against", "no-rewrites"], &said);
}

/// Long rows over one number each: as one division per row they take a launch less.
const ROWS: &str = r#"Graph(
    name: "rows",
    use: ["optim/sgd", "schedule/constant"],
    dims: { "B": Batch(64) },
    inputs: { "x": (dtype: F32, shape: "[B, 64]") },
    params: { "w": (shape: "[64, 512]", init: "normal(0.1)") },
    body: ["h = tanh(x @ w)", "y = h / (1 + sum(h * h, axis: 1, keep: true))", "loss = mean(y * y)"],
    train: (loss: "loss", optimizer: "sgd(momentum: 0.9)", schedule: "constant(max_lr: 0.1)"),
)"#;

#[test]
fn a_wrong_rule_of_the_e_graph_is_laid_to_that_rule() {
    let said = [
        "the graph that is scheduled means something else\n  node ",
        "responsible: what no-rule div-by-repeated turns off",
    ];
    let folder = tempfile::tempdir().unwrap();
    let more = ["--batch", "64", "--against", "no-egraph"];
    check_of(&file(&folder, ROWS), "InverseForgotten", &more, &said);
}

/// Two products with a function between them, and sums that a workgroup shares.
const LAYERS: &str = r#"Graph(
    name: "layers",
    use: ["optim/sgd", "schedule/constant"],
    dims: { "B": Batch(4) },
    inputs: { "x": (dtype: F32, shape: "[B, 16]") },
    params: { "first": (shape: "[16, 64]", init: "normal(0.3)"), "second": (shape: "[64, 128]", init: "normal(0.3)") },
    body: ["y = tanh(x @ first) @ second", "loss = mean(y * y)"],
    train: (loss: "loss", optimizer: "sgd(momentum: 0.9)", schedule: "constant(max_lr: 0.1)"),
)"#;

/// The reference device runs what a shader is to compute, so it acquits the compiler of what is wrong in the text alone.
#[test]
fn a_wrong_shader_is_told_from_a_wrong_description() {
    if !PLANTABLE {
        println!("skipped: a release build has no faults to plant");
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let spec = file(&folder, LAYERS);
    let described = ["--device", "reference", "--target", "wgpu"];
    let (status, text) = bisect_of(&spec, "TreeHalved", &described);
    assert_eq!(status, Some(0), "{text}");
    let (_, text) = bisect_of(&spec, "TreeHalved", &["--device", "wgpu"]);
    let found = text.contains("a kernel leaves its bound") && text.contains("responsible: the kernel itself");
    let no_adapter = text.contains("device `wgpu` cannot be used") && std::env::var_os("CI").is_none();
    assert!(found || no_adapter, "{text}");
    let said = ["a kernel leaves its bound", "dot, tanh", "responsible: what no-fuse turns off"];
    check_of(&spec, "EpilogueTwice", &described, &said);
}

#[test]
fn a_fault_of_fusion_is_laid_to_fusion() {
    let said =
        ["a kernel leaves its bound", "mlp.gelu at stdlib/activation.ron:7:", "responsible: what no-fuse turns off"];
    check("EpilogueTwice", &[], &said);
}

#[test]
fn a_kernel_that_is_always_wrong_is_laid_to_the_kernel() {
    check("LastRowMissing", &[], &["a kernel leaves its bound", "dot", "responsible: the kernel itself"]);
}

#[test]
fn a_wrong_kernel_of_attention_is_not_looked_for_in_the_graph() {
    let said = ["a kernel leaves its bound", "attention", "responsible: what no-lift turns off"];
    check("CausalOffByOne", &["--against", "no-lift"], &said);
}

/// Parameters, activations and a mean of 16 bits, each rounded where it is made.
const SIXTEEN: &str = r#"Graph(
    name: "sixteen",
    use: ["optim/sgd", "schedule/constant"],
    dims: { "B": Batch(4) },
    inputs: { "x": (dtype: Bf16, shape: "[B, 16]") },
    params: {
        "first": (shape: "[16, 32]", init: "normal(0.3)", dtype: Bf16),
        "bias": (shape: "[32]", init: "normal(0.3)", dtype: Bf16),
        "second": (shape: "[32, 8]", init: "normal(0.3)", dtype: F16),
    },
    body: [
        "h = tanh(cast(x @ first, 'bf16') + bias)",
        "y = cast(h, 'f16') @ second",
        "loss = mean(y * y) + cast(mean(h * h), 'f32')",
    ],
    train: (loss: "loss", optimizer: "sgd(momentum: 0.9)", schedule: "constant(max_lr: 0.1)"),
)"#;

#[test]
fn a_model_of_sixteen_bits_is_judged_by_its_own_roundings() {
    let folder = tempfile::tempdir().unwrap();
    let spec = file(&folder, SIXTEEN);
    let (status, text) = bisect_of(&spec, "", &[]);
    assert_eq!(status, Some(0), "{text}");
    assert!(text.contains("every result is within its bound, and every kernel on its own"), "{text}");
    // What is stored in 16 bits rounds by that; skipped is only what is fused.
    for (fault, responsible) in [("RoundingSkipped", "what no-fuse turns off"), ("LastRowMissing", "the kernel itself")]
    {
        check_of(&spec, fault, &[], &["a kernel leaves its bound", &format!("responsible: {responsible}")]);
    }
}

#[test]
fn what_cannot_be_turned_off_is_refused() {
    let refused = |more: &[&str], said: &str| {
        let (status, text) = bisect("", more);
        assert_eq!(status, Some(1), "{text}");
        assert!(text.contains(said), "{text}");
    };
    refused(
        &["--against", "no-thing"],
        "--against no-thing: there is no-lift, no-rewrites, no-egraph, no-recompute, no-fuse, no-library, no-rule NAME",
    );
    refused(
        &["--against", "no-rule"],
        "--against no-rule: name a rule, a theme of rules, or one of push_down, batching",
    );
    let unknown = "there is no rewrite, rule or theme of rules `paking`; did you mean `packing`?";
    refused(&["--against", "no-rule", "paking"], unknown);
    refused(&["packing"], "`packing`: a name is for `--against no-rule packing` only");
}

#[test]
fn a_step_that_is_not_finite_is_not_acquitted() {
    let spec = r#"Graph(name: "g", use: ["optim/sgd", "schedule/constant"], dims: { "B": Batch(4) },
        inputs: { "x": (dtype: F32, shape: "[B, 6]") }, params: { "w": (shape: "[6]", init: "1") },
        body: ["y = ln(0 - 1 - abs(x * w))", "loss = mean(y)"],
        train: (loss: "loss", optimizer: "sgd()", schedule: "constant(max_lr: 0.1)"))"#;
    let folder = tempfile::tempdir().unwrap();
    let (status, text) = bisect_of(&file(&folder, spec), "", &[]);
    assert_eq!(status, Some(1), "{text}");
    let told = "the step as written is not finite on this batch and state, so what depends on it was not compared";
    assert!(text.contains(told) && text.contains("  value   `outputs.y` is NaN\n  node    %"), "{text}");
}
