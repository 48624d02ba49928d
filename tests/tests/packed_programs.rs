//! Programs that a plan has several of, by number of rows, and the session that picks one: a packed model made by hand.

use std::sync::Arc;

use alip_compiler::compile_model;
use alip_compiler::ir::{Builder, DType, Graph, Model, OriginId, PackedGraphs, TensorType, Value};
use alip_compiler::ops::Op;
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_plan::bounds::{F32, Roundings, assert_within, bound};
use alip_plan::packing::{Group, Role, lengths_output};
use alip_plan::{Plan, Real};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::{ExecError, Session, Tensors};
use alip_runtime::tensor::HostTensor;
use alip_tests::compiled;

const GROUP: Group = Group { samples: 4, context: 6 };

/// The last row of each sample after causal attention of its rows to themselves, and its position.
fn program(rows: u64) -> Graph {
    let mut graph = Graph::new("main");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let made = |b: &mut Builder<'_>, role: Role| {
        let ty = TensorType { dtype: DType::I32, shape: role.shape(GROUP, rows).into_iter().collect() };
        b.input(&role.input(0), ty).unwrap()
    };
    b.input("ids", TensorType::new(DType::I32, [4, 6])).unwrap();
    let x = b.input("x", TensorType::f32([4, 6, 3])).unwrap();
    let [source, position, segments, last] =
        [Role::Source, Role::Position, Role::Segments, Role::Last].map(|role| made(&mut b, role));
    let flat = b.reshape(x, [24, 3].into()).unwrap();
    let picked = b.gather(flat, source, 0).unwrap();
    let heads = b.reshape(picked, [rows, 1, 3].into()).unwrap();
    let attention = Attention { result: AttentionResult::Out, rows: Rows::Segments, causal: true, scale: Real(0.5) };
    let mixed = b.op(Op::Attention(attention), &[heads, heads, heads, segments]).unwrap();
    let y = b.gather(mixed, last, 0).unwrap();
    let at = b.gather(position, last, 0).unwrap();
    graph.outputs.insert("y".into(), y);
    graph.outputs.insert("at".into(), at);
    graph
}

/// The place of the largest id, plus one.
fn lengths() -> Graph {
    let mut graph = Graph::new("lengths");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let ids = b.input("ids", TensorType::new(DType::I32, [4, 6])).unwrap();
    let last = b.argmax(ids, 1).unwrap();
    let one = b.constant(1.0, DType::I32).unwrap();
    let length = b.add(last, one).unwrap();
    graph.outputs.insert(lengths_output(0), length);
    graph
}

fn plan(target: alip_plan::Target) -> Plan {
    let mut model = Model { name: "by_hand".into(), ..Model::default() };
    model.programs.insert("main".into(), program(24));
    let fewer = [8, 16].map(|rows| (vec![rows], program(rows))).to_vec();
    model.packed.insert("main".into(), PackedGraphs { groups: vec![GROUP], lengths: lengths(), fewer });
    let options = alip_compiler::CompileOptions { target, ..Default::default() };
    compile_model(&model, None, &options).unwrap().plan.unwrap()
}

/// Texts of ids 1 with an end at these positions.
fn ids(ends: [usize; 4]) -> Value {
    let mut data = vec![1.0; 24];
    for (sample, end) in ends.iter().enumerate() {
        data[sample * 6 + end] = 9.0;
    }
    Value::new(TensorType::new(DType::I32, [4, 6]), data)
}

/// What the program is to compute, in f64.
fn expected(x: &[f64], ends: [usize; 4]) -> Vec<f64> {
    let row = |sample: usize, at: usize| &x[(sample * 6 + at) * 3..][..3];
    let mixed = |(sample, end): (usize, &usize)| {
        let query = row(sample, *end);
        let weight = |at: usize| (0.5 * query.iter().zip(row(sample, at)).map(|(q, k)| q * k).sum::<f64>()).exp();
        let sum: f64 = (0..=*end).map(weight).sum();
        (0..3).map(move |i| (0..=*end).map(|at| weight(at) * row(sample, at)[i]).sum::<f64>() / sum).collect::<Vec<_>>()
    };
    ends.iter().enumerate().flat_map(mixed).collect()
}

#[test]
fn the_session_takes_the_smallest_program_that_holds_the_batch() {
    let x: Vec<f64> = (0..72).map(|i| f64::from(((i * 37) % 64) as f32 / 32.0 - 1.0)).collect();
    for (device, target) in compiled::devices() {
        let plan = Arc::new(plan(target));
        let device = choose(device, &DeviceOptions::default()).unwrap().device;
        let mut session = Session::new(plan, device).unwrap();
        assert!(session.rows_run("main").is_none());
        let table = [([0, 0, 0, 0], 8), ([1, 1, 1, 1], 8), ([5, 0, 0, 0], 16), ([5, 5, 5, 5], 24), ([0, 2, 1, 0], 8)];
        for (ends, room) in table {
            let x = Value::new(TensorType::f32([4, 6, 3]), x.clone());
            let inputs: Tensors =
                [("ids", &ids(ends)), ("x", &x)].map(|(name, value)| (name.into(), compiled::tensor(value))).into();
            let outputs = session.run("main", &inputs).unwrap();
            let at = ends.map(|end| end as i32);
            assert_eq!(outputs["at"].as_i32(), Some(&at[..]), "{ends:?}");
            let run = session.rows_run("main").unwrap();
            let rows = ends.iter().map(|end| *end as u64 + 1).sum();
            assert_eq!((&run.rows, &run.room, &run.bound), (&vec![rows], &vec![room], &vec![24]));
            let found = compiled::numbers(&outputs["y"]);
            // A score, its exponential (a few ulps and the score's own error), a sum, a quotient, a second sum.
            let roundings = Roundings::reduction(3) + Roundings::pointwise(8.0) + Roundings::reduction(6) * 2;
            assert_within(&found, &expected(&x.data, ends), bound(F32, roundings, 1.0)).unwrap();
        }
    }
}

#[test]
fn inputs_that_the_session_makes_are_not_asked_of_the_caller() {
    let plan = plan(alip_plan::Target::cpu());
    let names: Vec<&str> = plan.programs["main@8"].batch_inputs().map(|(name, _)| name).collect();
    assert_eq!(names, ["ids", "x"]);
    let buckets: Vec<u64> = plan.report.programs["main"].buckets.iter().map(|bucket| bucket.rows[0]).collect();
    assert_eq!(buckets, [8, 16, 24]);
    assert!(!plan.report.programs.contains_key("main@8"));
    let device = choose("cpu", &DeviceOptions::default()).unwrap().device;
    let mut session = Session::new(Arc::new(plan), device).unwrap();
    let fails = |session: &mut Session, inputs: Tensors, message: &str| {
        let error: ExecError = session.run("main", &inputs).unwrap_err();
        assert_eq!(error.to_string(), message);
    };
    fails(&mut session, Tensors::new(), "input of main `ids` is missing; there is none");
    let short = Tensors::from([("ids".into(), HostTensor::i32(&[4], vec![0; 4]).unwrap())]);
    fails(&mut session, short, "input of main `ids` must be i32 [4, 6], but is i32 [4]");
}

#[test]
fn plans_in_which_a_bucket_cannot_run_are_refused() {
    let plan = plan(alip_plan::Target::cpu());
    assert_eq!(alip_plan::check::check(&plan), Ok(()));
    let refused = |change: &dyn Fn(&mut Plan), message: &str| {
        let mut wrong = plan.clone();
        change(&mut wrong);
        let error = alip_plan::check::check(&wrong).unwrap_err().to_string();
        assert!(error.starts_with("packed program `main`: ") && error.contains(message), "{error}");
    };
    fn packed(plan: &mut Plan) -> &mut alip_plan::packing::Packed {
        plan.packed.get_mut("main").unwrap()
    }
    refused(&|plan| packed(plan).buckets.swap(0, 1), "rows do not rise");
    refused(
        &|plan| drop(packed(plan).buckets.pop()),
        "the last bucket is `main@16` with [16] rows, not `main` with [24]",
    );
    refused(&|plan| packed(plan).buckets[0].program = "other".into(), "is program `other`, which there is not");
    refused(&|plan| packed(plan).buckets[0].rows = vec![9], "input `packing.0.source` of bucket [9] is not i32 [9]");
    refused(&|plan| packed(plan).groups[0].context = u64::MAX, "a group of 4 samples");
    refused(&|plan| packed(plan).lengths.program.outputs.clear(), "output `packing.0.lengths` is not i32 [4]");
    refused(&|plan| plan.programs.get_mut("main@8").unwrap().outputs.truncate(1), "other inputs or outputs");
}
