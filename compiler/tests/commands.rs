//! `alipc compile` and `alipc graph` as a user calls them: what they print, what they write, what they say when they cannot.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use alip_compiler::ir;
use alip_plan::{Plan, kernel::Implementation};

fn alipc(args: &[&str], folder: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_alipc"));
    command.args(args).current_dir(folder).output().expect("alipc runs")
}

/// Runs a command that must succeed; what it prints.
fn succeed(args: &[&str], folder: &Path) -> String {
    let output = alipc(args, folder);
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

/// Runs a command that must fail with this message, and print nothing else.
fn fail(args: &[&str], folder: &Path, expected: &str) {
    let output = alipc(args, folder);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!((stderr.trim_end(), output.status.code()), (expected.trim_end(), Some(1)), "{args:?}");
    assert_eq!(output.stdout, b"", "{args:?}");
}

fn folder() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[test]
fn two_compilations_give_the_same_bytes_and_no_other_files() {
    let folder = folder();
    for target in ["cpu", "wgpu"] {
        let compile = |to: &str| {
            succeed(&["compile", "alip_tiny", "-o", to, "--target", target], folder.path());
            fs::read(folder.path().join(to).join("plan.alip")).expect("written")
        };
        let first = compile("a/b");
        assert_eq!(first, compile("c"), "{target}");
        assert_eq!(first, compile("c"), "{target}, over an old one");
        let plan = Plan::from_bytes(&first).expect("a plan");
        assert_eq!((plan.name.as_str(), plan.target.name.as_str()), ("alip_tiny", target));
        assert_eq!(fs::read_dir(folder.path().join("c")).expect("read").count(), 1, "no temporary file is left");
    }
}

#[test]
fn it_says_what_the_plan_costs() {
    let folder = folder();
    let printed = succeed(&["compile", "alip_b32", "--batch", "16"], folder.path());
    for line in ["alip_b32 for cpu, batch 16\n", "\nparameters    151,277,313\n", "\nkernels  ", "\npeak memory  "] {
        assert!(printed.contains(line), "{line:?} in {printed}");
    }
    for program in ["encode_image", "encode_text", "init", "train"] {
        let of = |line: &&str| line.starts_with(&format!("{program} ")) && line.contains(" launches, ");
        let lines: Vec<&str> = printed.lines().filter(of).collect();
        assert!(lines.len() == 1 && lines[0].contains(" moved, predicted "), "{program} in {printed}");
    }
    let line = |start: &str| printed.lines().filter(|line| line.starts_with(start)).collect::<Vec<_>>();
    // What a step costs for the fewest rows and for all.
    let rows = line("  by rows ");
    assert!(rows.iter().any(|line| line.contains(" 320: ") && line.contains("; 2,464: ")), "{printed}");
    for category in ["activations", "gradients", "inputs", "optimizer", "weights", "workspace"] {
        assert!(line("peak memory ")[0].contains(&format!("{category} ")), "{category} in {printed}");
    }
}

#[test]
fn json_holds_the_same_and_dumps() {
    let folder = folder();
    let printed = succeed(
        &["compile", "alip_tiny", "--json", "-o", "out", "--timings", "--dump", "after:schedule"],
        folder.path(),
    );
    let value: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
    let plan = Plan::from_bytes(&fs::read(folder.path().join("out/plan.alip")).expect("written")).expect("a plan");
    assert_eq!(value["parameters"], plan.report.parameters);
    assert_eq!(value["kernels"], plan.kernels.len());
    assert_eq!(value["peak_bytes"], plan.report.peak_bytes());
    assert_eq!(value["programs"]["train"]["launches"], plan.programs["train"].steps.len());
    assert!(value["programs"]["train"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0));
    assert!(value["memory"]["gradients"].as_u64().is_some_and(|bytes| bytes > 0));
    assert_eq!(value["files"], serde_json::json!(["out/plan.alip"]));
    assert!(value["dumps"]["schedule train"].as_str().is_some_and(|text| text.contains("product")));
    assert!(value["seconds"]["resolve"].as_f64().is_some_and(|seconds| seconds > 0.0));
}

/// Programs, and of the regions the ten dearest, the dearest first.
#[test]
fn timings_fit_a_screen() {
    let output = alipc(&["compile", "alip_tiny", "--timings"], folder().path());
    let shown = String::from_utf8(output.stderr).expect("text");
    let lines: Vec<&str> = shown.lines().collect();
    assert!(lines.iter().any(|line| line.starts_with("resolve ") && line.ends_with(" ms")), "{shown}");
    assert!(lines.iter().any(|line| line.starts_with("encode_image: ") && line.contains(" launches to ")), "{shown}");
    let is_region = |line: &&&str| line.contains(" terms in ") && line.contains(" classes after ");
    let regions: Vec<&&str> = lines.iter().filter(is_region).collect();
    assert_eq!(regions.len(), 10, "{shown}");
    let cost = |line: &str| {
        let (times, before) = (line.split(" x ").next()?.parse::<f64>().ok()?, line.rsplit_once("; ")?.1);
        Some(times * before.split(" ms ").next()?.parse::<f64>().ok()?)
    };
    let costs: Vec<f64> = regions.iter().map(|line| cost(line).expect("a cost")).collect();
    assert!(costs.windows(2).all(|pair| pair[0] >= pair[1]), "{costs:?}");
    assert!(lines.last().is_some_and(|line| line.starts_with("and ") && line.ends_with(" cheaper regions")), "{shown}");
}

#[test]
fn every_kind_of_file_is_written_and_old_shaders_go() {
    let folder = folder();
    fs::create_dir_all(folder.path().join("out/wgsl")).expect("made");
    // Numbers of kernels are consecutive; this one is the first after those of the plan below.
    let emit = ["compile", "alip_tiny", "--target", "wgpu", "-o", "out", "--emit", "plan,wgsl,ir,dot"];
    succeed(&emit, folder.path());
    let read = |name: &str| fs::read_to_string(folder.path().join("out").join(name)).expect(name);
    let plan = Plan::from_bytes(&fs::read(folder.path().join("out/plan.alip")).expect("written")).expect("a plan");
    let old = folder.path().join(format!("out/wgsl/{:04}.wgsl", plan.kernels.len()));
    fs::write(&old, "of a longer plan").expect("written");
    succeed(&emit, folder.path());
    assert!(!old.exists());
    for (index, kernel) in plan.kernels.iter().enumerate() {
        let Implementation::Wgsl { source, .. } = &kernel.implementation else { panic!("kernels for wgpu are WGSL") };
        assert_eq!(&read(&format!("wgsl/{index:04}.wgsl")), source);
    }
    // Packed programs are written once, at their largest number of rows.
    for name in plan.programs.keys().filter(|name| !name.contains('@')) {
        let text = read(&format!("{name}.ir"));
        let graph = ir::parse(&text).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        assert_eq!(ir::print(&graph), text);
        let dot = read(&format!("{name}.dot"));
        assert!(dot.starts_with("digraph ") && dot.matches('{').count() == dot.matches('}').count(), "{name}");
    }
}

#[test]
fn it_stops_where_it_was_told_to() {
    let folder = folder();
    let args = ["compile", "alip_tiny", "-o", "out", "--stop-after", "schedule", "--dump", "after:schedule"];
    let printed = succeed(&args, folder.path());
    assert!(printed.starts_with("== schedule train\n"), "{printed}");
    assert!(printed.ends_with("no plan: `--stop-after` came before the last pass\n"), "{printed}");
    assert!(!folder.path().join("out").exists());
}

#[test]
fn without_fusion_there_are_more_launches() {
    let folder = folder();
    let launches = |more: &[&str]| {
        let printed = succeed(&[&["compile", "alip_tiny", "--json"], more].concat(), folder.path());
        let value: serde_json::Value = serde_json::from_str(&printed).expect("JSON");
        value["programs"]["train"]["launches"].as_u64().expect("a number")
    };
    assert!(launches(&["--no-fuse"]) > 2 * launches(&[]));
}

#[test]
fn what_cannot_be_done_is_said_with_a_way_out() {
    let folder = folder();
    fs::write(folder.path().join("file"), "in the way").expect("written");
    let check =
        |args: &[&str], expected: &str| fail(&[&["compile", "alip_tiny"], args].concat(), folder.path(), expected);
    check(&["--target", "wgp"], "error: unknown target `wgp`\n |\n = help: did you mean `wgpu`?");
    let whole = "\n |\n = help: `alip-run devices` prints the whole names of the targets that machine has; `alip-run` itself takes \
                 `--target native`";
    let limit = "there is no limit `foo`, but there are segment, binding, operands, workgroups";
    check(&["--target", "wgpu:foo=3"], &format!("error: `wgpu:foo=3` is no target: {limit}{whole}"));
    check(&["--target", "native"], &format!("error: this compiler sees no device, so `native` says too little{whole}"));
    check(
        &["--target", "tpu_v5"],
        "error: unknown target `tpu_v5`\n |\n = help: targets are cpu, cpu_mixed, wgpu, sm_80, sm_90a, sm_100",
    );
    check(&["--stop-after", "shedule"], "error: unknown pass `shedule`\n |\n = help: did you mean `schedule`?");
    check(&["--dump", "after:lowered"], "error: unknown pass `lowered`\n |\n = help: did you mean `lower`?");
    check(
        &["--dump", "memory"],
        "error: `--dump memory` does not say after which pass\n |\n = help: write `--dump after:memory`",
    );
    check(
        &["--emit", "wgsl", "-o", "out"],
        "error: `--emit wgsl`: the target `cpu` has no shaders\n |\n = help: add `--target wgpu`",
    );
    check(
        &["-o", "file/out"],
        "error: cannot make the folder `file/out`: a part of the path is a file\n |\n = help: give a folder that you may write to",
    );
    check(
        &["-o", "file"],
        "error: cannot make the folder `file`: a part of the path is a file\n |\n = help: give a folder that you may write to",
    );
    fs::create_dir_all(folder.path().join("taken/plan.alip")).expect("made");
    check(
        &["-o", "taken"],
        "error: cannot write `taken/plan.alip`: it is a folder\n |\n = help: check the permissions and the space of its folder",
    );
}

#[test]
fn a_page_is_written_and_other_programs_can_be_drawn() {
    let folder = folder();
    let printed = succeed(&["graph", "alip_tiny", "-o", "page.html"], folder.path());
    assert!(printed.starts_with("wrote page.html: alip_tiny: train, "), "{printed}");
    let page = fs::read_to_string(folder.path().join("page.html")).expect("written");
    assert!(page.contains("<title>alip_tiny: train</title>"));
    succeed(&["graph", "alip_tiny", "-o", "page.html", "--program", "encode_text"], folder.path());
    let page = fs::read_to_string(folder.path().join("page.html")).expect("written");
    assert!(page.contains("<title>alip_tiny: encode_text</title>"));
    let spec = "Graph(name: \"small\", inputs: { \"x\": (dtype: F32, shape: \"[2]\") }, body: [\"y = x + 1\"],
        programs: { \"encode_text\": (inputs: [\"x\"], outputs: [\"y\"]) })";
    fs::write(folder.path().join("small.ron"), spec).expect("written");
    fail(
        &["graph", "small.ron", "-o", "other.html", "--program", "encode_txt"],
        folder.path(),
        "error: `small` has no program `encode_txt`\n |\n = note: its programs are encode_text, init\n \
         = help: did you mean `encode_text`?",
    );
    assert!(!folder.path().join("other.html").exists());
}

#[test]
fn diff_shows_what_two_graphs_mean_differently() {
    let folder = folder();
    let graph = |name: &str, rest: &str| {
        let text = format!("Graph(name: \"{name}\", base: \"alip_tiny\", {rest})");
        fs::write(folder.path().join(format!("{name}.ron")), text).expect("written");
    };
    graph("same", "");
    graph("softer", "parts: { \"lcg\": \"language_consistency_gate(gamma: 1, momentum: 0.99)\" }");
    let same = succeed(&["diff", "alip_tiny", "same.ron"], folder.path());
    assert_eq!(same, "- alip_tiny\n+ same\nnothing differs\n");
    let softer = succeed(&["diff", "alip_tiny", "softer.ron"], folder.path());
    assert!(softer.contains("operations of train\n  lcg\n    - const 2.0 f32[]\n    + const 1.0 f32[]\n"), "{softer}");
    let json = succeed(&["diff", "alip_tiny", "softer.ron", "--json"], folder.path());
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["programs"]["train"]["lcg"]["added"]["const 1.0 f32[]"], 1);
    let set = succeed(&["diff", "alip_tiny", "alip_tiny", "--batch", "4", "--set", "dims.D=16"], folder.path());
    assert!(set.contains("\nstate\n") && set.contains("visual.proj"), "{set}");
    let unknown = alipc(&["diff", "alip_tiny", "alip_tony"], folder.path());
    let stderr = String::from_utf8_lossy(&unknown.stderr);
    assert!(stderr.contains("no spec named `alip_tony`") && stderr.contains("did you mean `alip_tiny`?"), "{stderr}");
}

#[test]
fn explain_shows_what_is_predicted_for_so_many_rows() {
    let folder = folder();
    let dearest = |args: &[&str]| {
        let json = succeed(&[&["explain", "alip_tiny", "--json"], args].concat(), folder.path());
        serde_json::from_str::<serde_json::Value>(&json).expect("JSON")["dearest"].clone()
    };
    let (all, few) = (dearest(&[]), dearest(&["--rows", "1"]));
    let seconds = |of: &serde_json::Value| of["seconds"].as_f64().expect("a time");
    assert!(few["rows"][0].as_u64() < all["rows"][0].as_u64() && seconds(&few) < seconds(&all), "{few} {all}");
    let kernels = all["kernels"].as_array().expect("a list");
    let sum: f64 = kernels.iter().map(seconds).sum();
    assert!((sum - seconds(&all)).abs() < 1e-9 && kernels.windows(2).all(|two| seconds(&two[0]) >= seconds(&two[1])));
    assert_eq!(kernels.iter().filter_map(|kernel| kernel["launches"].as_u64()).sum::<u64>(), all["launches"]);

    let most = all["rows"][0].as_u64().expect("packed");
    fail(
        &["explain", "alip_tiny", "--rows", "1000000"],
        folder.path(),
        &format!("error: `train` has {most} rows at most\n |\n = help: give `--rows` a smaller number"),
    );
    fail(
        &["explain", "alip_tiny", "--program", "init", "--rows", "1"],
        folder.path(),
        "error: `init` packs no rows\n |\n = help: leave `--rows` away",
    );
}

#[test]
fn explain_shows_kernels_and_what_keeps_them_apart() {
    let folder = folder();
    let all = succeed(&["explain", "alip_tiny"], folder.path());
    assert!(all.starts_with("alip_tiny for cpu: train\n\npush_down "), "{all}");
    assert!(all.contains("\n\nwhere "), "{all}");
    assert!(all.contains("lifted          2 x attention     in `visual.transformer.resblocks.*.attn`\n"), "{all}");
    let of_mlp = |line: &&str| line.starts_with("visual.transformer.resblocks.*.mlp.c_fc ");
    assert_eq!(all.lines().filter(of_mlp).count(), 1, "layers count together: {all}");
    assert!(all.contains("  `dot` reads its operands from memory\n"), "{all}");

    let mlp = succeed(&["explain", "alip_tiny", "visual.transformer.resblocks.0.mlp.c_fc"], folder.path());
    let first = mlp.split("\n\n").nth(1).expect("a kernel");
    for part in
        ["product over [136, 256]", "    computes  erf ", "state `visual.transformer.resblocks.0.mlp.c_fc.bias`"]
    {
        assert!(first.contains(part), "{part:?} in {first}");
    }
    let json = succeed(&["explain", "alip_tiny", "text.ln_final", "--json"], folder.path());
    let json: serde_json::Value = serde_json::from_str(&json).expect("JSON");
    assert_eq!(json["lifted"][0], serde_json::json!({ "what": "layer_norm", "path": "text.ln_final" }));
    assert!(json["kernels"][0]["stores"][0]["readers"][0]["why"].is_string(), "{json}");

    let alone = succeed(&["explain", "alip_tiny", "normalize", "--no-fuse"], folder.path());
    assert!(alone.contains("fusion is off (--no-fuse)"), "{alone}");

    let path = "visual.transformer.resblocks.0";
    fail(
        &["explain", "alip_tiny", &format!("{path}.mpl")],
        folder.path(),
        &format!(
            "error: no kernel of `train` computes anything of `{path}.mpl`\n |\n = help: did you mean `{path}`?\n = help: `alipc explain SPEC` without a node lists where kernels are"
        ),
    );
    let wrong = alipc(&["explain", "alip_tiny", "--program", "trian"], folder.path());
    let stderr = String::from_utf8_lossy(&wrong.stderr);
    assert!(stderr.contains("`alip_tiny` has no program `trian`") && stderr.contains("`train`?"), "{stderr}");
}
