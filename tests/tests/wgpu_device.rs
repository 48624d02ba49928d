//! What the wgpu device refuses and what it promises, on whole plans. What its shaders compute is tested in `wgsl_loops`,
//! `kernels`, `schedule` and `wide_models`.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use alip_compiler::codegen::emit::wgsl;
use alip_compiler::diag::SourceMap;
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions, compile_spec};
use alip_plan::bounds::golden;
use alip_plan::kernel::*;
use alip_plan::{
    Buffer, DType, Plan, Port, Program, Report, STATE_HALTED, STATE_STEP, STATE_TOTAL_STEPS, Segment, SegmentKind,
    Step, Target, philox,
};
use alip_runtime::device::{Device, DeviceOptions, choose};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::HostTensor;
use alip_tests::skip;

fn adapter() -> Option<Box<dyn Device>> {
    match choose("wgpu", &DeviceOptions::default()) {
        Ok(choice) => Some(choice.device),
        Err(why) => {
            skip::skipped_outside_ci(&why.to_string());
            None
        }
    }
}

/// A plan of one kernel from operand 0 to operand 1, F32 of these lengths.
fn plan(kernel: Kernel, target: Target, lengths: [u64; 2]) -> Plan {
    let second = (4 * lengths[0]).next_multiple_of(256);
    let buffer = |(length, offset)| Buffer { segment: 0, offset, dtype: DType::F32, shape: vec![length] };
    let program = Program {
        inputs: vec![Port::new("x", 0)],
        outputs: vec![Port::new("y", 1)],
        buffers: lengths.into_iter().zip([0, second]).map(buffer).collect(),
        steps: vec![Step {
            kernel: 0,
            operands: vec![0, 1],
            origin: "test".into(),
            flops: 0,
            bytes: 0,
            predicted_ns: 0,
        }],
    };
    Plan {
        name: "one".into(),
        compiler: "test".into(),
        target,
        segments: vec![Segment { kind: SegmentKind::Arena, bytes: second + 4 * lengths[1] }],
        state: vec![],
        kernels: vec![kernel],
        programs: BTreeMap::from([("main".to_string(), program)]),
        packed: BTreeMap::new(),
        train: None,
        report: Report::default(),
    }
}

/// Loading the plan, or running its program, fails with a message that holds all of `parts`.
fn check_refused(device: Box<dyn Device>, plan: Plan, parts: &[&str]) {
    let length = plan.programs["main"].buffers[0].shape[0];
    let x = HostTensor::f32(&[length], vec![0.0; length as usize]).expect("as many");
    let run = |mut session: Session| session.run("main", &Tensors::from([("x".into(), x)]));
    let error = match Session::new(Arc::new(plan), device).and_then(run) {
        Ok(_) => panic!("it runs; {parts:?} was expected"),
        Err(error) => error.to_string(),
    };
    assert!(parts.iter().all(|part| error.contains(part)), "{error}");
}

/// `y[i] = sum over j of x[j, i]`.
fn sums(rows: u64, length: u64) -> Loop {
    let view = |operand, strides| View { operand, dtype: DType::F32, offset: 0, strides, gather: None };
    let instr = |op| Code { instrs: vec![Instr { op, dtype: DType::F32, args: [0; 3] }] };
    let mut store = instr(ScalarOp::Slot(0));
    store.instrs.extend(instr(ScalarOp::Store(1)).instrs);
    Loop::Reduction(Reduction {
        kept: vec![rows],
        reduced: vec![length],
        views: vec![view(0, vec![1, rows as i64]), view(1, vec![1, 0])],
        stages: vec![
            Stage::Points {
                code: instr(ScalarOp::Load(0)),
                reduce: vec![Reduce { kind: ReduceKind::Sum, value: 0, slot: 0 }],
            },
            Stage::Row { code: store, slots: vec![] },
        ],
        slots: 1,
        lanes: Lanes::Kept,
    })
}

/// The same as a shader.
fn shader(rows: u64, length: u64, target: &Target) -> Kernel {
    let description = sums(rows, length);
    let implementation = wgsl::emit(&description, target).expect("a small loop");
    Kernel { description, implementation }
}

fn small_shader() -> Kernel {
    shader(4, 5, &Target::wgpu())
}

#[test]
fn plans_for_other_targets_are_refused() {
    let shader = plan(small_shader(), Target::wgpu(), [20, 4]);
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    check_refused(device, shader, &["compiled for target `wgpu`", "device `cpu`", "--target cpu"]);
    let Some(device) = adapter() else { return };
    let cpu = plan(Kernel::as_described(sums(4, 5)), Target::cpu(), [20, 4]);
    check_refused(device, cpu, &["compiled for target `cpu`", "device `wgpu`", "--target wgpu"]);
}

#[test]
fn kernels_of_other_targets_are_refused() {
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    let shader = plan(small_shader(), Target::cpu(), [20, 4]);
    check_refused(device, shader, &["kernel 0 is for targets of kind Wgpu, and the plan for Cpu"]);
    let Some(device) = adapter() else { return };
    let described = plan(Kernel::as_described(sums(4, 5)), Target::wgpu(), [20, 4]);
    check_refused(device, described, &["kernel 0 is for targets of kind Cpu, and the plan for Wgpu"]);
}

#[test]
fn shaders_that_are_not_valid_are_refused() {
    let Some(device) = adapter() else { return };
    let (source, workgroups) = ("fn main() { let x = ; }".into(), [1; 3]);
    let implementation = Implementation::Wgsl { source, workgroups, iterations: 0 };
    let broken = Kernel { implementation, ..small_shader() };
    check_refused(device, plan(broken, Target::wgpu(), [20, 4]), &["device `wgpu` failed"]);
}

#[test]
fn plans_that_break_a_law_are_refused() {
    let Some(device) = adapter() else { return };
    let mut plan = plan(small_shader(), Target::wgpu(), [20, 4]);
    plan.segments[0].bytes = 64;
    check_refused(device, plan, &["the plan is not valid", "leaves its segment of 64 bytes"]);
}

/// A plan of another machine, in the terms of this one.
#[test]
fn plans_beyond_the_adapter_are_refused() {
    let refused = |change: fn(&mut Plan), parts: &[&str]| {
        let Some(device) = adapter() else { return };
        let mut plan = plan(small_shader(), Target::wgpu(), [20, 4]);
        change(&mut plan);
        check_refused(device, plan, &[parts, &["--target native", "--target wgpu"]].concat());
    };
    refused(
        |plan| plan.segments[0].bytes = 1 << 60,
        &["a memory segment in bytes: the plan asks for 1152921504606846976", "(max_buffer_size)"],
    );
    let many = |plan: &mut Plan| {
        let Implementation::Wgsl { workgroups, .. } = &mut plan.kernels[0].implementation else { panic!("a shader") };
        workgroups[0] = u32::MAX;
    };
    refused(
        many,
        &[
            "workgroups of launch 0 of `main` (`test`): the plan asks for 4294967295",
            "(max_compute_workgroups_per_dimension)",
        ],
    );
}

/// What `wgpu` cannot bind on every adapter, this one binds if it can.
#[test]
fn the_native_target_has_the_limits_of_the_adapter() {
    let Some(device) = adapter() else { return };
    let native = device.target();
    assert_eq!(Target::named(&native.name).as_ref(), Some(&native));
    assert_eq!(native.portable(), Target::wgpu());
    let rows = Target::wgpu().max_binding_bytes / 4 + 64;
    if native.max_binding_bytes < 4 * rows || native.max_segment_bytes < 8 * rows + 256 {
        return skip::skipped("this adapter binds no more than any other");
    }
    let plan = plan(shader(rows, 1, &native), native, [rows, rows]);
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    let numbers: Vec<f32> = (0..rows).map(|row| (row % 1000) as f32).collect();
    let x = HostTensor::f32(&[rows], numbers.clone()).expect("as many");
    let outputs = session.run("main", &Tensors::from([("x".into(), x)])).expect("it runs");
    assert!(*outputs["y"].to_f32() == *numbers, "a copy of {rows} numbers");
}

/// A plan for this adapter alone computes what the plan for any computes, in fewer or as many launches.
#[test]
fn native_plans_train_alike() {
    let Some(device) = adapter() else { return };
    let plans = [tiny(), tiny_for(device.target())];
    let launches = plans.each_ref().map(|plan| plan.programs["train"].steps.len());
    assert!(launches[1] <= launches[0], "{launches:?}");
    let [any, native] = plans.map(|plan| {
        let mut session = started(&plan, adapter().expect("it was there"));
        let outputs = session.run("train", &batch(&plan, 0.5)).expect("it runs");
        outputs["loss"].to_f32()[0]
    });
    let bound = golden::of_largest(golden::STEP_ONE, &[any.into()]);
    assert!(f64::from((any - native).abs()) <= bound, "{any} {native}");
}

/// What the kernels of a plan for wgpu describe is what its shaders compute: a whole step, by all its metrics.
#[test]
fn the_reference_device_runs_what_shaders_are_to_compute() {
    let plan = tiny();
    let step = |device| started(&plan, device).run("train", &batch(&plan, 0.5)).expect("it runs");
    let reference = choose("reference", &DeviceOptions::default()).expect("always there").device;
    let described = step(reference);
    let Some(device) = adapter() else { return };
    let computed = step(device);
    let metrics = &plan.train.as_ref().expect("the spec trains").metrics;
    assert!(metrics.iter().any(|name| name == "grad_norm"), "{metrics:?}");
    for name in metrics {
        let [described, computed] = [&described, &computed].map(|all| f64::from(all[name].to_f32()[0]));
        let bound = golden::of_largest(golden::GRADIENT, &[described]);
        assert!((described - computed).abs() <= bound, "{name}: {described} {computed}");
    }
}

/// Mesa's software adapter would leave the loop early and say nothing.
#[test]
fn loops_longer_than_the_adapter_runs_are_refused() {
    let Some(device) = adapter() else { return };
    let (rows, length) = (2, 9_000_000);
    let plan = plan(shader(rows, length, &Target::wgpu()), Target::wgpu(), [rows * length, rows]);
    if device.description().contains("llvmpipe") {
        return check_refused(device, plan, &["after 65535 iterations", "takes 70320", "--device cpu"]);
    }
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    let ones = HostTensor::f32(&[rows * length], vec![1.0; (rows * length) as usize]).expect("as many");
    let outputs = session.run("main", &Tensors::from([("x".into(), ones)])).expect("it runs");
    assert_eq!(*outputs["y"].to_f32(), [length as f32; 2]);
}

fn tiny() -> Arc<Plan> {
    tiny_for(Target::wgpu())
}

fn tiny_for(target: Target) -> Arc<Plan> {
    let mut sources = SourceMap::new();
    let options = SpecOptions {
        spec: Options::default(),
        compile: CompileOptions { target, ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let compiled = compile_spec(&mut sources, "alip_tiny", &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    Arc::new(compiled.plan.expect("no pass was asked to be the last"))
}

/// Noise for images and texts, another one for each; the first pixel is `pixel`.
fn batch(plan: &Plan, pixel: f32) -> Tensors {
    let train = &plan.programs["train"];
    let tensor = |name: &str| {
        let buffer = train.input(name).expect("named by the program");
        let count: u64 = buffer.shape.iter().product();
        let uniform =
            (0..count).map(|i| philox::uniform(philox::philox4x32([i as u32, name.len() as u32, 0, 0], [3, 5])[0]));
        let tensor = match buffer.dtype {
            DType::I32 => HostTensor::i32(&buffer.shape, uniform.map(|x| (512.0 * x) as i32).collect()),
            _ => HostTensor::f32(&buffer.shape, std::iter::once(pixel).chain(uniform.skip(1)).collect()),
        };
        (name.to_owned(), tensor.expect("as many elements as the shape says"))
    };
    train.batch_inputs().map(|(name, _)| tensor(name)).collect()
}

fn started(plan: &Arc<Plan>, device: Box<dyn Device>) -> Session {
    let mut session = Session::new(Arc::clone(plan), device).expect("the plan loads");
    session.init(0).expect("init runs");
    session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(20)).expect("every plan that trains has it");
    session
}

/// Every bit of the state.
fn state(session: &mut Session, plan: &Plan) -> Vec<(String, HostTensor)> {
    let paths = plan.state.iter().map(|state| state.path.clone());
    paths.map(|path| (path.clone(), session.read_state(&path).expect("state is there"))).collect()
}

#[test]
fn training_twice_gives_the_same_bits() {
    let (Some(first), Some(second)) = (adapter(), adapter()) else { return };
    let plan = tiny();
    let inputs = batch(&plan, 0.5);
    let [first, second] = [first, second].map(|device| {
        let mut session = started(&plan, device);
        for _ in 0..3 {
            session.run_for("train", &inputs, &[]).expect("it runs");
        }
        state(&mut session, &plan)
    });
    for ((path, first), (_, second)) in first.iter().zip(&second) {
        assert_eq!(first.bytes(), second.bytes(), "{path}");
    }
}

/// Steps that are submitted before the results of those before them are read, each with inputs of its own.
#[test]
fn steps_in_flight_read_their_own_inputs() {
    let (Some(first), Some(second)) = (adapter(), adapter()) else { return };
    let plan = tiny();
    let batches = [0.5, -40.0, 3.0, 100.0, -0.25].map(|pixel| batch(&plan, pixel));
    let (mut waiting, mut ahead) = (started(&plan, first), started(&plan, second));
    let names: Vec<&str> = plan.programs["train"].outputs.iter().map(|port| port.name.as_str()).collect();
    let in_flight = batches.each_ref().map(|batch| {
        ahead.submit("train", batch).expect("it runs");
        ahead.download("train", &names, &[STATE_STEP]).expect("all is there")
    });
    for (step, (batch, results)) in batches.iter().zip(in_flight).enumerate() {
        let found = results.wait().expect("the adapter stays");
        assert_eq!(found.outputs, waiting.run("train", batch).expect("it runs"), "step {step}");
        assert_eq!(found.state[STATE_STEP].first(), Some(step as f64 + 1.0));
    }
    assert!(state(&mut waiting, &plan) == state(&mut ahead, &plan));
}

/// Who submits steps and reads nothing has no more of them in the queue than the device asks for. (Of a software adapter that is
/// true by itself: it is done with a step when that is submitted.)
#[test]
fn who_never_waits_is_held_back() {
    let Some(device) = adapter() else { return };
    let plan = tiny();
    let mut session = started(&plan, device);
    let inputs = batch(&plan, 0.5);
    let mut behind = VecDeque::new();
    for step in 0..12 {
        session.submit("train", &inputs).expect("it runs");
        behind.push_back(session.download("train", &["loss"], &[]).expect("it is there"));
        // The inputs of a step lie where those of an earlier one did, which is done; so is what was downloaded before that.
        if behind.len() > session.ahead() + 2 {
            assert!(behind.pop_front().is_some_and(|mut results| results.poll()), "step {step}");
        }
    }
}

#[test]
fn a_step_on_an_image_that_is_not_finite_changes_nothing() {
    let Some(device) = adapter() else { return };
    let plan = tiny();
    let mut session = started(&plan, device);
    session.run_for("train", &batch(&plan, 0.5), &[]).expect("it runs");
    let before = state(&mut session, &plan);
    for pixel in [f32::NAN, f32::INFINITY] {
        let outputs = session.run("train", &batch(&plan, pixel)).expect("it runs");
        assert!(!outputs["loss"].to_f32()[0].is_finite(), "a loss of {:?}", outputs["loss"].to_f32());
        for ((path, before), (_, after)) in before.iter().zip(&state(&mut session, &plan)) {
            let expected = if path == STATE_HALTED { HostTensor::scalar_i32(1) } else { before.clone() };
            assert_eq!(expected.bytes(), after.bytes(), "{path} after {pixel}");
        }
        session.write_state(STATE_HALTED, &HostTensor::scalar_i32(0)).expect("it is there");
    }
    let found = session.first_nonfinite("train", &batch(&plan, f32::NAN)).expect("it runs");
    let found = found.expect("the image is not finite");
    assert!(found.origin.starts_with("visual") && found.value.is_nan(), "{found:?}");
    session.run_for("train", &batch(&plan, 0.5), &[]).expect("it runs");
    assert!(before != state(&mut session, &plan), "a good step goes on");
}
