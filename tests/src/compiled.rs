//! Compiling and running a program, as tests do that compare it with the interpreter.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_compiler::diag::{Diagnostics, SourceMap};
use alip_compiler::ir::{DType, Graph, Model, Origin, StateDecl, TensorType, Value};
use alip_compiler::schedule::ScheduleOptions;
use alip_compiler::{CompileOptions, SpecOptions, compile_model, compile_spec};
use alip_plan::{Plan, STATE_TOTAL_STEPS, StateKind, Target};
use alip_runtime::device::{Device, DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::tensor::{Data, HostTensor, f32_to_bf16, f32_to_f16};

use crate::skip;

/// The plan of a model.
///
/// # Errors
/// Those of the compiler.
pub fn try_plan(model: &Model, target: Target, fuse: bool) -> Result<Plan, Diagnostics> {
    let options = CompileOptions {
        target,
        schedule: ScheduleOptions { fuse, ..ScheduleOptions::default() },
        ..CompileOptions::default()
    };
    Ok(compile_model(model, None, &options)?.plan.expect("no pass was asked to be the last"))
}

/// The plan of a model. Panics with the errors of the compiler.
pub fn plan(model: &Model, target: Target, fuse: bool) -> Plan {
    try_plan(model, target, fuse).unwrap_or_else(|errors| panic!("{}: {errors}", model.name))
}

/// A spec on a device, initialised, at the beginning of a run of 20 steps. Panics with the errors of the compiler.
pub fn begun(spec: &str, options: &SpecOptions, device: &str, seed: i32) -> Session {
    let mut sources = SourceMap::new();
    let compiled = compile_spec(&mut sources, spec, options);
    let compiled = compiled.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let plan = compiled.plan.expect("no pass was asked to be the last");
    let device = choose(device, &DeviceOptions::default()).expect("it was there before").device;
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    session.init(seed).expect("init runs");
    session.write_state(STATE_TOTAL_STEPS, &HostTensor::scalar_i32(20)).expect("it is there");
    session
}

/// A value as a device receives it.
pub fn tensor(value: &Value) -> HostTensor {
    let shape = value.ty.shape.sizes();
    let tensor = match value.ty.dtype {
        DType::I32 => HostTensor::i32(&shape, value.data.iter().map(|x| *x as i32).collect()),
        DType::Bool => {
            let words: Vec<u8> = value.data.iter().flat_map(|x| u32::from(*x != 0.0).to_le_bytes()).collect();
            HostTensor::from_bytes(DType::Bool, &shape, &words)
        }
        DType::F32 => HostTensor::f32(&shape, value.data.iter().map(|x| *x as f32).collect()),
        DType::U8 => HostTensor::new(&shape, Data::U8(value.data.iter().map(|x| *x as u8).collect())),
        dtype @ (DType::Bf16 | DType::F16) => {
            let round = if dtype == DType::Bf16 { f32_to_bf16 } else { f32_to_f16 };
            let words: Vec<u8> = value.data.iter().flat_map(|x| round(*x as f32).to_le_bytes()).collect();
            HostTensor::from_bytes(dtype, &shape, &words)
        }
    };
    tensor.expect("as many elements as the shape says")
}

/// What a device gives back.
pub fn numbers(tensor: &HostTensor) -> Vec<f64> {
    match tensor.dtype() {
        dtype if dtype.is_float() || dtype == DType::U8 => tensor.to_f32().iter().map(|x| f64::from(*x)).collect(),
        _ => tensor.bytes().chunks_exact(4).map(|b| f64::from(i32::from_le_bytes([b[0], b[1], b[2], b[3]]))).collect(),
    }
}

/// Values by name.
pub type Values = BTreeMap<String, Value>;

/// Devices of this machine, and what to compile for each.
pub fn devices() -> Vec<(&'static str, Target)> {
    let known = [("reference", Target::cpu()), ("cpu", Target::cpu()), ("wgpu", Target::wgpu())];
    let here = |(device, _): &(&str, Target)| match choose(device, &DeviceOptions::default()) {
        Ok(_) => true,
        Err(why) => {
            skip::skipped_outside_ci(&why.to_string());
            false
        }
    };
    known.into_iter().filter(here).collect()
}

/// Whether a target stores every type that a graph computes with: wgpu has none of 16 bits.
pub fn stores(target: &Target, graph: &Graph) -> bool {
    target.narrow_memory || graph.nodes().iter().all(|node| node.ty.dtype.bytes() == 4)
}

/// Elements by name.
pub type Numbers = BTreeMap<String, Vec<f64>>;

/// Runs a program once on a device: outputs and the new state.
pub fn run(device: &str, plan: Plan, program: &str, inputs: &Values, state: &Values) -> (Numbers, Numbers) {
    let device = choose(device, &DeviceOptions::default()).expect("it was there before").device;
    run_on(device, plan, program, inputs, state)
}

/// The same on a device that is there already.
pub fn run_on(
    device: Box<dyn Device>,
    plan: Plan,
    program: &str,
    inputs: &Values,
    state: &Values,
) -> (Numbers, Numbers) {
    let mut session = Session::new(Arc::new(plan), device).expect("the plan loads");
    for (path, value) in state {
        session.write_state(path, &tensor(value)).expect("state fits");
    }
    let inputs = inputs.iter().map(|(name, value)| (name.clone(), tensor(value))).collect();
    let outputs = session.run(program, &inputs).expect("the program runs");
    let read = |path: &String| (path.clone(), numbers(&session.read_state(path).expect("state is there")));
    let state = state.keys().cloned().collect::<Vec<_>>();
    let state = state.iter().map(read).collect();
    (outputs.iter().map(|(name, tensor)| (name.clone(), numbers(tensor))).collect(), state)
}

/// The values as an f32 device receives them.
pub fn rounded(values: &Values) -> Values {
    let round = |value: &Value| match value.ty.dtype {
        DType::F32 => Value::new(value.ty.clone(), value.data.iter().map(|x| f64::from(*x as f32)).collect()),
        _ => value.clone(),
    };
    values.iter().map(|(name, value)| (name.clone(), round(value))).collect()
}

fn decl(ty: &TensorType) -> StateDecl {
    StateDecl { kind: StateKind::Buffer, ty: ty.clone(), origin: Origin::default(), clamp: None, frozen: false }
}

/// A model of one program over this state.
pub fn model(name: &str, graph: &Graph, state: &Values) -> Model {
    let mut model = Model { name: name.into(), ..Model::default() };
    model.state.extend(state.iter().map(|(path, value)| (path.clone(), decl(&value.ty))));
    model.programs.insert(graph.name.clone(), graph.clone());
    model
}
