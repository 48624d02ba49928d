//! From spec to plan in one call.

use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, CompiledSpec, PASSES, SpecOptions, compile_spec};
use alip_plan::check::check;
use alip_plan::kernel::{Implementation, Loop, Product};
use alip_plan::{Buffer, DType, Plan, SegmentKind, Target};

fn compile(options: &SpecOptions) -> Result<CompiledSpec, String> {
    let mut sources = SourceMap::new();
    compile_spec(&mut sources, "alip_tiny", options).map_err(|errors| errors.render(&sources, false))
}

#[test]
fn a_plan_holds_all_programs_and_how_to_train() {
    let options = Options { batch: Some(4), set: vec!["train.epochs=3".into()], ..Options::default() };
    let compiled = compile(&SpecOptions { spec: options, ..SpecOptions::default() }).unwrap();
    let plan = compiled.plan.expect("nothing stopped it");
    for program in ["encode_image", "encode_text", "init", "train"] {
        assert!(plan.programs.contains_key(program), "{program}");
    }
    // Texts index the embedding of tokens, with all rows or fewer.
    let trained = plan.programs.iter().filter(|(name, _)| name.starts_with("train"));
    for (name, program) in trained {
        let rows = |input: &str| program.inputs.iter().find(|port| port.name == input).map(|port| port.rows);
        assert_eq!(["image", "raw", "caption"].map(rows), [Some(None), Some(Some(512)), Some(Some(512))], "{name}");
    }
    let train = plan.train.expect("the spec trains");
    assert_eq!((train.batch, train.epochs), (4, 3.0));
    let timed: Vec<&str> = compiled.timings.iter().map(|(pass, _)| *pass).collect();
    assert_eq!(timed[..PASSES.len()], PASSES);
    assert_eq!(timed[PASSES.len()..], ["check"]);
}

/// Kernels of every target fit its limits and, where they are shaders, are valid.
#[test]
fn every_target_that_ships_compiles() {
    for target in Target::all() {
        let options = CompileOptions { target: target.clone(), ..CompileOptions::default() };
        let compiled = compile(&SpecOptions { compile: options, ..SpecOptions::default() });
        let plan = compiled.unwrap_or_else(|errors| panic!("{}: {errors}", target.name)).plan;
        assert_eq!(plan.expect("nothing stopped it").target, target);
    }
}

fn plan_for(target: Target) -> Plan {
    let compile_options = CompileOptions { target, ..CompileOptions::default() };
    let compiled = compile(&SpecOptions { compile: compile_options, ..SpecOptions::default() });
    compiled.unwrap().plan.expect("nothing stopped it")
}

/// The plan keeps to the laws; changed, it breaks the one that the message names.
fn check_refused(plan: &Plan, change: impl Fn(&mut Plan), message: &str) {
    assert_eq!(check(plan), Ok(()));
    let mut wrong = plan.clone();
    change(&mut wrong);
    let error = check(&wrong).expect_err(message).to_string();
    assert!(error.contains(message), "{error}");
}

/// Kernels are judged by what they compute, whatever the target makes of it.
#[test]
fn plans_that_leave_their_buffers_or_write_inputs_are_refused_for_every_target() {
    for plan in [Target::cpu(), Target::wgpu()].map(plan_for) {
        let inputs =
            plan.segments.iter().position(|segment| segment.kind == SegmentKind::Inputs).expect("there are inputs");
        let scalar = |dtype| Buffer { segment: inputs as u32, offset: 0, dtype, shape: vec![] };
        let state = |plan: &mut Plan| plan.state[0].buffer = scalar(DType::F32);
        check_refused(&plan, state, "is of kind Some(Inputs), not State");
        let moved = |plan: &mut Plan| {
            let train = plan.programs.get_mut("train").expect("the spec trains");
            let loss = train.outputs.iter().find(|port| port.name == "loss").expect("a metric").buffer;
            train.buffers[loss as usize] = scalar(DType::F32);
        };
        check_refused(&plan, moved, "is written, and lies among the inputs");
        let last = plan.programs["train"].steps.last().expect("a step").kernel as usize;
        for (offset, message) in [(1 << 40, "elements 1099511627776 to"), (-1, "elements -1 to")] {
            let leave = |plan: &mut Plan| {
                plan.kernels[last].description.views_mut().into_iter().for_each(|view| view.offset = offset);
            };
            check_refused(&plan, leave, message);
        }
    }
}

#[test]
fn shaders_that_cannot_be_what_they_are_to_compute_are_refused() {
    let plan = plan_for(Target::wgpu());
    let refused = |change: fn(&mut String, &mut [u32; 3]), message: &str| {
        let change = |plan: &mut Plan| match &mut plan.kernels[0].implementation {
            Implementation::Wgsl { source, workgroups, .. } => change(source, workgroups),
            other => panic!("kernels for wgpu are WGSL, not {other:?}"),
        };
        check_refused(&plan, change, message);
    };
    refused(|source, _| source.clear(), "a shader without text");
    refused(|_, workgroups| workgroups[1] = 0, ", 0, 1] workgroups computes nothing");
    refused(|source, _| source.push_str(&"@binding(9)".repeat(9)), " operands, applied to ");
}

/// The first product of the training step that is a call of cuBLASLt.
fn called(plan: &mut Plan) -> &mut Product {
    let called = plan.programs["train"].steps.iter().map(|step| step.kernel as usize);
    let mut called = called.filter(|kernel| plan.kernels[*kernel].implementation == Implementation::CublasLt);
    let first = called.next().expect("a product that the library has");
    match &mut plan.kernels[first].description {
        Loop::Product(product) => product,
        other => panic!("a call is no {other:?}"),
    }
}

#[test]
fn calls_that_the_library_does_not_compute_are_refused() {
    let plan = plan_for(Target::sm_80());
    let without = |plan: &mut Plan| plan.target.library = None;
    check_refused(&plan, without, "a call of cuBLASLt, of which the plan's target knows nothing");
    let sums = |plan: &mut Plan| called(plan).code.instrs.clear();
    check_refused(&plan, sums, "a call of cuBLASLt, which has it not: what follows it is no epilogue of the library");
    let other = |plan: &mut Plan| {
        let is_map = |kernel: &u32| matches!(plan.kernels[*kernel as usize].description, Loop::Map(_));
        let map = plan.programs["train"].steps.iter().map(|step| step.kernel).find(is_map).expect("a map");
        plan.kernels[map as usize].implementation = Implementation::CublasLt;
    };
    check_refused(&plan, other, "a call of cuBLASLt for what is no product");
    let leave = |plan: &mut Plan| called(plan).a.offset = 1 << 40;
    check_refused(&plan, leave, "operand a: elements 1099511627776 to");
}

#[test]
fn products_are_no_calls_where_the_library_is_turned_off() {
    let calls = |target: Target| plan_for(target).report.programs["train"].library_calls;
    assert!(calls(Target::sm_80()) > 0);
    assert_eq!(calls(Target { library: None, ..Target::sm_80() }), 0);
    assert_eq!(calls(Target::wgpu()), 0);
}

#[test]
fn it_stops_after_the_pass_that_was_named_and_dumps_what_was_asked_for() {
    for (index, pass) in PASSES.iter().enumerate() {
        let dump = PASSES.map(str::to_owned).to_vec();
        let compile_options = CompileOptions { dump, stop_after: Some((*pass).into()), ..CompileOptions::default() };
        let compiled = compile(&SpecOptions { compile: compile_options, ..SpecOptions::default() }).unwrap();
        assert_eq!(compiled.plan.is_some(), *pass == "assemble", "{pass}");
        let mut dumped: Vec<&str> =
            compiled.dumps.iter().filter_map(|(name, _)| name.split_once(' ')).map(|(pass, _)| pass).collect();
        dumped.dedup();
        dumped.sort_by_key(|pass| PASSES.iter().position(|name| name == pass));
        dumped.dedup();
        assert_eq!(dumped, PASSES[..=index], "{pass}");
    }
}

#[test]
fn an_unknown_pass_is_named_before_anything_else_is_looked_at() {
    let check = |pass: &str, expected: &str| {
        let compile_options = CompileOptions { stop_after: Some(pass.into()), ..CompileOptions::default() };
        let error = compile_spec(
            &mut SourceMap::new(),
            "no_such_graph",
            &SpecOptions { compile: compile_options, ..SpecOptions::default() },
        );
        assert_eq!(error.expect_err("no such pass").render(&SourceMap::new(), false), expected);
    };
    check("shedule", "error: unknown pass `shedule`\n |\n = help: did you mean `schedule`?\n");
    let passes = "resolve, lift, model, optimize, bytes, prepare, schedule, lower, join, memory, assemble";
    check("fuse", &format!("error: unknown pass `fuse`\n |\n = help: passes are {passes}\n"));
}
