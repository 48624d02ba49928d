//! Training in 16 bits on the cpu device: near the golden runs, and what a loss scale does when gradients overflow.

use std::collections::BTreeMap;

use alip_compiler::ir::{Builder, Graph, OriginId, TensorType, Value};
use alip_compiler::ops::{Op, ScalarOp};
use alip_compiler::resolve::Options;
use alip_compiler::{CompileOptions, SpecOptions};
use alip_plan::bounds::{BF16, F16, FloatFormat, assert_within_each, golden};
use alip_plan::{DType, PROGRAM_TRAIN, STATE_LOSS_SCALE, STATE_STEP, Target};
use alip_runtime::exec::{Session, Tensors};
use alip_runtime::tensor::{HostTensor, bf16_to_f32, f16_to_f32, f32_to_bf16, f32_to_f16};
use alip_tests::compiled::{Values, begun, devices, model, plan, run};
use alip_tests::goldens;

/// `alip_tiny` with this `train` section, at the golden weights.
fn session(train: &str) -> Session {
    let variant = format!(
        r#"Graph(name: "variant", base: "alip_tiny", use: ["optim/loss_scale"], metrics: {{ "loss_scale": "train.loss_scale" }}, train: ({train}))"#
    );
    let files = BTreeMap::from([("variant.ron".to_owned(), variant)]);
    let options = SpecOptions {
        spec: Options { files, ..Options::default() },
        compile: CompileOptions { target: Target::cpu_mixed(), ..CompileOptions::default() },
        ..SpecOptions::default()
    };
    let mut session = begun("variant", &options, "cpu", 0);
    for (path, tensor) in goldens::load("alip_tiny/weights_initial.safetensors").iter() {
        let shape: Vec<u64> = tensor.shape.iter().map(|size| *size as u64).collect();
        let values = tensor.values.iter().map(|value| *value as f32).collect();
        session.write_state(path, &HostTensor::f32(&shape, values).expect("a golden tensor")).expect("it fits");
    }
    session
}

/// The golden batches in turn.
fn batch(session: &Session, step: usize) -> Tensors {
    let golden = goldens::load("alip_tiny/inputs.safetensors");
    let tensor = |name: &str| {
        let tensor = &golden[&format!("batch.{}.{name}", step % 4)];
        let shape: Vec<u64> = tensor.shape.iter().map(|size| *size as u64).collect();
        let made = match session.plan().programs[PROGRAM_TRAIN].input(name).expect("an input").dtype {
            DType::I32 => HostTensor::i32(&shape, tensor.values.iter().map(|x| *x as i32).collect()),
            _ => HostTensor::f32(&shape, tensor.values.iter().map(|x| *x as f32).collect()),
        };
        (name.to_owned(), made.expect("a golden tensor"))
    };
    ["image", "raw", "caption"].into_iter().map(tensor).collect()
}

fn step(session: &mut Session, step: usize) -> BTreeMap<String, f64> {
    let batch = batch(session, step);
    let outputs = session.run(PROGRAM_TRAIN, &batch).expect("a step runs");
    outputs.iter().filter_map(|(name, tensor)| Some((name.clone(), tensor.first()?))).collect()
}

#[test]
fn a_run_stays_as_near_to_the_golden_one_as_its_roundings_allow() {
    let trajectory = goldens::load("alip_tiny/trajectory.safetensors");
    let sensitivity = trajectory.section("sensitivity.");
    let table: [(&str, FloatFormat); 2] =
        [("precision: Bf16", BF16), (r#"precision: F16, loss_scale: "dynamic_loss_scale(init: 128)""#, F16)];
    for (train, format) in table {
        let mut session = session(train);
        let narrow = session.plan().programs[PROGRAM_TRAIN].buffers.iter().filter(|b| b.dtype.bytes() == 2).count();
        assert!(narrow > 50, "{narrow} tensors of 16 bits");
        let steps: Vec<BTreeMap<String, f64>> = (0..20).map(|at| step(&mut session, at)).collect();
        for name in ["loss", "loss_raw", "loss_caption", "grad_norm", "sample_weight_mean", "logit_scale_after"] {
            let expected = &trajectory[&format!("f64.{name}")].values;
            let actual: Vec<f64> = steps.iter().map(|step| step[name]).collect();
            let in_f32 = golden::trajectory(expected, &sensitivity[name].values);
            let bounds: Vec<f64> = in_f32.iter().map(|bound| golden::in_format(*bound, format)).collect();
            assert_within_each(&actual, expected, &bounds).unwrap_or_else(|wrong| panic!("{train}: {name} {wrong}"));
            let is_f32 = assert_within_each(&actual, expected, &in_f32).is_ok();
            assert!(name != "grad_norm" || !is_f32, "{train}: it is f32 under another name");
        }
    }
}

#[test]
fn a_step_that_overflows_changes_the_scale_and_nothing_else() {
    let scale = r#"precision: F16, loss_scale: "dynamic_loss_scale(init: 1073741824, growth_interval: 2)""#;
    let mut session = session(scale);
    let paths: Vec<String> = session.plan().state.iter().map(|state| state.path.clone()).collect();
    let state = |session: &mut Session| -> BTreeMap<String, HostTensor> {
        paths.iter().map(|path| (path.clone(), session.read_state(path).expect("it is there"))).collect()
    };
    let first = |session: &mut Session, path: &str| session.read_state(path).ok().and_then(|tensor| tensor.first());
    let mut expected = 1_073_741_824.0;
    let mut overflows = 0;
    loop {
        let before = state(&mut session);
        let metrics = step(&mut session, 0);
        assert_eq!(metrics["loss_scale"], expected, "the scale of this step");
        assert!(metrics["loss"].is_finite(), "the loss is not scaled");
        if metrics["grad_norm"].is_finite() {
            break;
        }
        overflows += 1;
        expected /= 2.0;
        for (path, after) in state(&mut session) {
            if path == STATE_LOSS_SCALE {
                assert_eq!(after.first(), Some(expected), "halved");
            } else {
                assert_eq!(after, before[&path], "{path} moved in a step that was not taken");
            }
        }
        assert!(overflows < 30, "it never recovers");
    }
    assert!(overflows > 3, "2^30 times the gradient does not fit f16");
    assert_eq!(first(&mut session, STATE_STEP), Some(1.0), "the first step that was taken");
    assert_eq!(first(&mut session, "loss_scale.finite_steps"), Some(1.0));
    assert_eq!(first(&mut session, STATE_LOSS_SCALE), Some(expected), "as it was");
    let metrics = step(&mut session, 0);
    if metrics["grad_norm"].is_finite() {
        assert_eq!(first(&mut session, STATE_LOSS_SCALE), Some(2.0 * expected), "two finite steps in a row");
        assert_eq!(first(&mut session, "loss_scale.finite_steps"), Some(0.0));
    }
}

/// Registers hold f32: a cast to 16 bits and back rounds on every device, also where nothing of 16 bits can be stored.
#[test]
fn casts_to_sixteen_bits_round() {
    let edges = [
        0.0,
        1.0,
        1.003_906_2,
        1.005_859_4,
        1.011_718_8,
        1.000_488_3,
        1.000_976_6,
        1.001_464_8,
        3.0e-5,
        6.0e-8,
        2.9e-8,
        2.0e-8,
        6.103e-5,
        65_504.0,
        65_519.0,
        65_520.0,
        1.0e6,
        3.39e38,
        f32::MAX,
        f32::INFINITY,
    ];
    let x: Vec<f32> = edges.into_iter().chain(edges.map(|x| -x)).collect();
    for dtype in [DType::Bf16, DType::F16] {
        let round = |x: f32| match dtype {
            DType::Bf16 => bf16_to_f32(f32_to_bf16(x)),
            _ => f16_to_f32(f32_to_f16(x)),
        };
        let mut graph = Graph::new("cast");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let input = b.input("x", TensorType::f32([x.len() as u64])).unwrap();
        let narrow = b.cast(input, dtype).unwrap();
        let wide = b.op(Op::Pointwise(ScalarOp::Cast(DType::F32)), &[narrow]).unwrap();
        graph.outputs.insert("y".into(), wide);
        let data = x.iter().map(|x| f64::from(*x)).collect();
        let inputs = Values::from([("x".into(), Value::new(graph.ty(input).clone(), data))]);
        let expected: Vec<f64> = x.iter().map(|x| f64::from(round(*x))).collect();
        for (device, target) in devices() {
            let plan = plan(&model("cast", &graph, &Values::new()), target, true);
            let (outputs, _) = run(device, plan, "cast", &inputs, &Values::new());
            assert_eq!(outputs["y"], expected, "{device}: {dtype}");
        }
    }
}

/// Sums of a table's gradient are kept in f32, whatever the table is read in.
#[test]
fn a_table_that_is_read_in_sixteen_bits_is_trained() {
    let spec = r#"Graph(name: "table", use: ["optim/sgd", "schedule/constant"], dims: { "B": Batch(4) },
        inputs: { "ids": (dtype: I32, shape: "[B]") }, params: { "table": (shape: "[8, 3]", init: "normal(1)") },
        body: ["rows = take(cast(table, 'bf16'), ids)", "loss = mean(cast(rows, 'f32'))"],
        train: (loss: "loss", optimizer: "sgd(momentum: 0)", schedule: "constant(max_lr: 12)"))"#;
    let options = SpecOptions {
        spec: Options { files: [("table.ron".to_owned(), spec.to_owned())].into(), ..Options::default() },
        ..SpecOptions::default()
    };
    let mut session = begun("table", &options, "cpu", 0);
    session.write_state("table", &HostTensor::f32(&[8, 3], vec![1.0; 24]).expect("24")).expect("it fits");
    let ids = HostTensor::i32(&[4], vec![5, 2, 5, 7]).expect("four");
    session.run(PROGRAM_TRAIN, &Tensors::from([("ids".into(), ids)])).expect("a step runs");
    // The mean of twelve numbers: each has a gradient of one twelfth.
    let rows: Vec<f32> =
        session.read_state("table").expect("it is there").to_f32().chunks(3).map(|row| row[0]).collect();
    assert_eq!(rows.iter().map(|x| x.round()).collect::<Vec<_>>(), [1.0, 1.0, 0.0, 1.0, 1.0, -1.0, 1.0, 0.0]);
}
