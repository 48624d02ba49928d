//! Every kernel of the published model and of the small ResNet compiles for the cards that are meant, and keeps its registers.

#![cfg(target_os = "linux")]

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::kernel::Implementation;
use alip_plan::{PROGRAM_INIT, Plan, Target};
use alip_tests::cuda::{Nvrtc, Text};

fn plan(spec: &str, batch: u64, target: Target) -> Plan {
    let options = SpecOptions {
        spec: Options { batch: Some(batch), ..Options::default() },
        compile: CompileOptions { target, ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, spec, &options);
    compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).plan.expect("a plan")
}

/// Texts of the programs that are called by their own names: of the packed ones, one of their sizes.
fn texts(plan: &Plan) -> BTreeMap<&str, Text<'_>> {
    let programs = plan.programs.iter().filter(|(name, _)| *name != PROGRAM_INIT && !name.contains('/'));
    let sized =
        |name: &String| plan.packed.values().any(|packed| packed.buckets.iter().skip(1).any(|b| b.program == *name));
    let steps = programs.filter(|(name, _)| !sized(name)).flat_map(|(_, program)| &program.steps);
    let text = |kernel: u32| match &plan.kernels[kernel as usize].implementation {
        Implementation::Cuda { source, entry, block, shared_bytes, .. } => {
            Some((entry.as_str(), Text { source, entry, block: *block, shared_bytes: *shared_bytes }))
        }
        Implementation::CublasLt => None,
        other => panic!("a kernel for a card is no {other:?}"),
    };
    steps.filter_map(|step| text(step.kernel)).collect()
}

fn check(spec: &str, batch: u64, target: Target) {
    let Some(nvrtc) = Nvrtc::get() else { return };
    let architecture = target.name.clone();
    let plan = plan(spec, batch, target);
    let texts: Vec<Text<'_>> = texts(&plan).into_values().collect();
    let taken = nvrtc.compile(&texts, &architecture).unwrap_or_else(|why| panic!("{spec}, {architecture}: {why}"));
    assert_eq!(taken.len(), texts.len(), "{spec}: every kernel is spoken of");
    let spilled: Vec<_> = taken.iter().filter(|(_, taken)| taken.spilled > 0).collect();
    assert!(spilled.is_empty(), "{spec}, {architecture}: {spilled:?}");
    let most = taken.values().map(|taken| taken.registers).max();
    println!("{spec}, {architecture}: {} kernels, at most {most:?} registers", texts.len());
}

#[test]
fn the_published_model_compiles() {
    check("alip_b32", 512, Target::sm_90a());
}

#[test]
fn convolutions_in_f32_compile() {
    check("alip_tiny_rn", 16, Target::sm_80());
}
