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
