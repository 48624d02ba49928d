//! Every graph of the house resolves to programs that verify, and has the parameters it should have.

use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::resolve::{Options, Resolved, graph_names, resolve};
use alip_plan::StateKind;

fn build(graph: &str, options: &Options) -> Resolved {
    let mut sources = SourceMap::new();
    let built = resolve(&mut sources, graph, options).and_then(|mut resolved| {
        add_update(&mut resolved, Keep::default())?;
        Ok(resolved)
    });
    built.unwrap_or_else(|errors: Diagnostics| panic!("{graph}\n{}", errors.render(&sources, false)))
}

fn parameters(resolved: &Resolved) -> u64 {
    let params = resolved.model.state.values().filter(|decl| decl.kind == StateKind::Param);
    params.map(|decl| decl.ty.shape.elements()).sum()
}

#[test]
fn every_graph_resolves_to_a_step_over_its_whole_state() {
    for name in graph_names() {
        let resolved = build(&name, &Options { batch: Some(4), ..Options::default() });
        assert!(resolved.warnings.is_empty(), "{name}: {:?}", resolved.warnings);
        let init = &resolved.model.programs["init"];
        let train = &resolved.model.programs["train"];
        for (path, decl) in &resolved.model.state {
            let first = init.updates.get(path).unwrap_or_else(|| panic!("{name}: {path} has no first value"));
            assert_eq!(init.ty(*first), &decl.ty, "{name}: {path}");
            let fixed = path == "train.total_steps" || path == "train.seed";
            assert_eq!(train.updates.contains_key(path), !fixed, "{name}: {path}");
        }
        for metric in resolved.spec.metrics.keys() {
            let node = train.outputs[metric.as_str()];
            assert_eq!(train.shape(node).rank(), 0, "{name}: {metric}");
        }
    }
}

#[test]
fn towers_have_as_many_parameters_as_published() {
    let published =
        [("alip_b32", 151_277_313), ("clip_b32", 151_277_313), ("alip_rn50", 102_007_137), ("alip_tiny", 199_233)];
    for (name, count) in published {
        assert_eq!(parameters(&build(name, &Options { batch: Some(2), ..Options::default() })), count, "{name}");
    }
}

#[test]
fn every_variant_differs_from_its_base_where_it_says() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/variants");
    let base = build("alip_shapes", &Options::default());
    let variant = |name: &str| build(&folder.join(format!("{name}.ron")).to_string_lossy(), &Options::default());
    // Same parameters or not, and whether the training step is another one.
    let table = [
        ("linear_gate", 0),
        ("quick_gelu", 0),
        ("gamma_1", 0),
        ("no_dcg", 0),
        ("sigmoid_loss", 2),
        // A block of width w has 12 w^2 + 13 w numbers.
        ("shallow_text", -(12 * 96 * 96 + 13 * 96)),
        ("frozen_image", 0),
        ("averaged_sgd", 0),
    ];
    for (name, more) in table {
        let resolved = variant(name);
        assert_eq!(parameters(&resolved) as i64 - parameters(&base) as i64, more, "{name}");
        assert_ne!(resolved.model.programs["train"], base.model.programs["train"], "{name}");
    }
    let count = std::fs::read_dir(&folder).expect("the folder is there");
    let files = count.filter_map(Result::ok).filter(|entry| entry.path().extension().is_some_and(|e| e == "ron"));
    assert_eq!(files.count(), table.len(), "every variant is in the table");
}

#[test]
fn groups_freeze_and_average() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/variants");
    let build = |name: &str| build(&folder.join(name).to_string_lossy(), &Options::default());
    let frozen = build("frozen_image.ron");
    let train = &frozen.model.programs["train"];
    for (path, decl) in frozen.model.state.iter().filter(|(_, decl)| decl.kind == StateKind::Param) {
        assert_eq!(decl.train.freeze, path.starts_with("visual."), "{path}");
        assert_eq!(train.updates.contains_key(path), !decl.train.freeze, "{path}");
        assert_eq!(frozen.model.state.contains_key(&format!("optimizer.m.{path}")), !decl.train.freeze, "{path}");
    }
    let averaged = build("averaged_sgd.ron");
    for (path, _) in averaged.model.state.iter().filter(|(_, decl)| decl.kind == StateKind::Param) {
        let kind = averaged.model.state[&format!("average.{path}")].kind;
        assert_eq!(kind, StateKind::Average, "{path}");
    }
}

#[test]
fn disk_files_win_over_embedded_ones_and_are_found_beside_the_spec() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let gates = "Module(name: \"mine\", inputs: { \"x\": \"[..]\" }, body: [\"y = x * 2\"], outputs: [\"y\"])";
    std::fs::write(folder.path().join("gates.ron"), gates).expect("written");
    let graph = r#"Graph(name: "g", use: ["gates"], inputs: { "x": (dtype: F32, shape: "[4]") }, body: ["y = mine(x)"],
        programs: { "run": (inputs: ["x"], outputs: ["y"]) })"#;
    let path = folder.path().join("g.ron");
    std::fs::write(&path, graph).expect("written");
    let resolved = build(&path.to_string_lossy(), &Options::default());
    assert!(resolved.model.programs.contains_key("run"));
}
