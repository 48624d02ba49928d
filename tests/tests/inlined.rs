//! What the compiler finds does not depend on modules or names.

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::{CompiledSpec, SpecOptions, compile_spec};
use alip_tests::inlined::inlined;

/// Most by which FLOPs and launches of the two spellings may differ.
const DIFFERENCE: f64 = 0.01;

fn compiled(sources: &mut SourceMap, spec: &str, options: Options) -> CompiledSpec {
    let options = SpecOptions { spec: options, ..SpecOptions::default() };
    compile_spec(sources, spec, &options).unwrap_or_else(|errors| panic!("{}", errors.render(sources, false)))
}

#[test]
fn a_hand_inlined_alip_b32_with_random_names_compiles_to_the_same() {
    let mut sources = SourceMap::new();
    let options = Options { batch: Some(16), ..Options::default() };
    let resolved = resolve(&mut sources, "alip_b32", &options).expect("it resolves");
    let text = inlined(&resolved.model, &resolved.spec, 20_231);
    assert!(!text.contains("text") && !text.contains("visual") && !text.contains("attn"), "names are gone");
    let written = compiled(&mut sources, "alip_b32", options).plan.expect("a plan");
    let files = BTreeMap::from([("inlined.ron".to_owned(), text)]);
    let spelled = compiled(&mut sources, "inlined", Options { files, ..Options::default() }).plan.expect("a plan");
    assert_eq!(written.report.parameters, spelled.report.parameters);
    let (a, b) = (&written.report.programs["train"], &spelled.report.programs["train"]);
    println!("as modules: {} launches, {} FLOP; inlined: {}, {}", a.launches, a.flops, b.launches, b.flops);
    for (what, a, b) in [("launches", a.launches, b.launches), ("FLOPs", a.flops, b.flops)] {
        let difference = (a as f64 - b as f64).abs() / a as f64;
        assert!(difference <= DIFFERENCE, "{what}: {a} as modules, {b} inlined");
    }
}
