//! What shipped graphs compile to: the size of a training step, and a checksum of the whole plan's bytes.
//!
//! `plans.txt` was written on another machine than the one that runs this, so it also holds that a plan depends on the spec,
//! the target and the compiler alone. Whoever changes what is compiled sees here what it did to launches, operations and
//! memory, and accepts it with `ALIP_BLESS=1 cargo test -p alip-compiler --test plans`.

use std::fmt::Write;
use std::path::Path;

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, Feed, SpecOptions, compile_spec};
use alip_plan::{PROGRAM_TRAIN, Target};

/// A shipped graph, what it is compiled for, and its batch.
type Case = (&'static str, fn() -> Target, u64);

const PLANS: &[Case] = &[
    ("alip_tiny", Target::cpu, 8),
    ("alip_tiny_rn", Target::cpu, 8),
    ("alip_shapes", Target::cpu, 64),
    ("alip_shapes", Target::wgpu, 64),
    ("clip_shapes", Target::cpu, 64),
    ("alip_flickr8k", Target::cpu, 64),
    ("alip_b32", Target::cpu, 16),
    ("alip_rn50", Target::cpu, 16),
];

/// FNV-1a, 64 bits.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}

#[test]
fn plans_are_what_they_were() {
    let mut found = String::from("graph          target  batch  launches     GFLOP       MiB  plan\n");
    for (graph, target, batch) in PLANS {
        let target = target();
        let name = target.name.clone();
        let spec = Options { batch: Some(*batch), ..Options::default() };
        let compile = CompileOptions { target, ..CompileOptions::default() };
        let mut sources = SourceMap::new();
        let options = SpecOptions { spec, compile, feed: Feed::Loader, ..SpecOptions::default() };
        let compiled = compile_spec(&mut sources, graph, &options);
        let plan = compiled.unwrap_or_else(|errors| panic!("{graph}: {}", errors.render(&sources, false))).plan;
        let plan = plan.expect("nothing stopped it");
        let train = &plan.report.programs[PROGRAM_TRAIN];
        let (gflop, mib) = (train.flops as f64 / 1e9, plan.report.peak_bytes() as f64 / f64::from(1 << 20));
        let sum = checksum(&plan.to_bytes());
        writeln!(found, "{graph:14} {name:6} {batch:>6} {:>9} {gflop:>9.3} {mib:>9.1}  {sum:016x}", train.launches)
            .unwrap();
    }
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/plans.txt");
    if std::env::var_os("ALIP_BLESS").is_some() {
        std::fs::write(&path, &found).unwrap();
    }
    let expected = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == expected, "run with ALIP_BLESS=1 to accept the new plans\nwere:\n{expected}\nare:\n{found}");
}
