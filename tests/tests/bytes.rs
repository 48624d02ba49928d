//! Images in bytes: what a program makes of them is what their pipeline says, on every device, and they are cast and
//! normalised where they are first read.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, Origin, Shape, TensorType, Value, interpret};
use alip_compiler::ops::{Conv, ConvKind, Op, ReduceKind};
use alip_compiler::resolve::Options;
use alip_compiler::training::Keep;
use alip_compiler::transform::Disabled;
use alip_compiler::transform::bytes::in_bytes;
use alip_compiler::transform::packing::PACKING;
use alip_compiler::trust::judged;
use alip_compiler::{CompileOptions, CompiledSpec, Feed, SpecOptions, compile_spec, transform};
use alip_plan::bounds::golden::{GRADIENT, STEP_ONE};
use alip_plan::bounds::{F32, assert_within, assert_within_each, largest};
use alip_plan::kernel::{Kernel, Loop};
use alip_plan::pipeline::{CLIP_MEAN, CLIP_STD, Mode, Normalization};
use alip_plan::{PROGRAM_TRAIN, Plan, Target};
use alip_runtime::data::{Batch, Loader, LoaderOptions, open_source};
use alip_runtime::device::{DeviceOptions, choose};
use alip_runtime::exec::Session;
use alip_runtime::tensor::{Data, HostTensor};
use alip_runtime::train::begin;
use alip_tests::compiled::{self, Values};

const CLIP: Normalization = Normalization { mean: CLIP_MEAN, std: CLIP_STD };

/// A program of what `body` adds.
fn program(body: impl FnOnce(&mut Builder<'_>) -> Vec<(&'static str, NodeId)>) -> Graph {
    let mut graph = Graph::new("p");
    let origin = graph.add_origin(Origin::default());
    let outputs = body(&mut Builder::new(&mut graph, origin));
    graph.outputs.extend(outputs.into_iter().map(|(name, id)| (name.to_string(), id)));
    graph
}

/// A program of the image `image`, `[n, 3, h, w]`, given in bytes.
fn of_bytes(sizes: [u64; 4], body: impl FnOnce(&mut Builder<'_>, NodeId) -> Vec<(&'static str, NodeId)>) -> Graph {
    let graph = program(|b| {
        let image = b.input("image", TensorType::f32(sizes)).unwrap();
        body(b, image)
    });
    in_bytes(graph, &BTreeMap::from([("image".to_string(), CLIP)])).unwrap()
}

/// Every level in turn, channels one apart, in `[n, h, w, 3]`.
fn levels([n, h, w]: [u64; 3]) -> Value {
    let data = (0..n * h * w).flat_map(|pixel| [0, 1, 2].map(|channel| ((pixel + channel) % 256) as f64));
    Value::new(TensorType::new(DType::U8, [n, h, w, 3]), data.collect())
}

/// What `normalize_rgb` makes of levels `[n, h, w, 3]`: `[n, 3, h, w]`.
fn normalized(levels: &[f64], pixels: usize, how: &Normalization) -> Vec<f64> {
    let plane = |image: &[f64], channel: usize| {
        let of = |pixel: &[f64]| (pixel[channel] / 255.0 - how.mean[channel]) / how.std[channel];
        image.chunks_exact(3).map(of).collect::<Vec<f64>>()
    };
    levels.chunks_exact(3 * pixels).flat_map(|image| [0, 1, 2].map(|channel| plane(image, channel)).concat()).collect()
}

/// All levels of all channels: exact in the interpreter, on devices within what the pass says of its multiply-add.
#[test]
fn levels_are_normalised() {
    let graph = of_bytes([1, 3, 16, 16], |_, image| vec![("y", image)]);
    let inputs = Values::from([("image".to_string(), levels([1, 16, 16]))]);
    let exact = normalized(&inputs["image"].data, 256, &CLIP);
    let meant = &interpret(&graph, &inputs, &Values::new()).unwrap().outputs["y"].data;
    assert_within(meant, &exact, 1e-14).unwrap();
    let shift = CLIP.shift();
    let bounds = exact.iter().enumerate().map(|(at, y)| {
        let shift = shift[at / 256];
        // To first order; what is left is 2^-24 of that.
        F32.unit_roundoff * (2.0 * (y - shift).abs() + shift.abs() + y.abs()) * 1.000_001
    });
    let bounds: Vec<f64> = bounds.collect();
    for (device, target) in compiled::devices() {
        for fuse in [true, false] {
            let plan = compiled::plan(&compiled::model("levels", &graph, &Values::new()), target.clone(), fuse);
            let (outputs, _) = compiled::run(device, plan, "p", &inputs, &Values::new());
            assert_within_each(&outputs["y"], &exact, &bounds).unwrap_or_else(|why| panic!("{device}, {fuse}: {why}"));
        }
    }
}

/// How many steps a plan's program has, and how many convolutions that make their image themselves.
fn steps(plan: &Plan) -> (usize, usize) {
    let makes =
        |kernel: &&Kernel| matches!(&kernel.description, Loop::Conv2d(conv) if !conv.prologue.instrs.is_empty());
    (plan.programs["p"].steps.len(), plan.kernels.iter().filter(makes).count())
}

fn numbers(sizes: &[u64], seed: u64) -> Value {
    let count = sizes.iter().product::<u64>();
    let data = (0..count).map(|i| f64::from(((i * 37 + seed * 11) % 101) as f32 / 50.0 - 1.0)).collect();
    Value::new(TensorType::f32(sizes.iter().copied().collect::<Shape>()), data)
}

/// What devices make of a program is within its bounds, fused or not.
fn check(name: &str, graph: &Graph, inputs: &Values) {
    let judged = judged(graph, inputs, &Values::new(), F32).unwrap();
    for (device, target) in compiled::devices() {
        for fuse in [true, false] {
            let plan = compiled::plan(&compiled::model(name, graph, &Values::new()), target.clone(), fuse);
            let (outputs, _) = compiled::run(device, plan, "p", inputs, &Values::new());
            for (output, judged) in &judged {
                assert!(judged.bounds.iter().all(|bound| bound.is_finite()), "{name}: {output} has no bound");
                judged
                    .admits(&outputs[output])
                    .unwrap_or_else(|why| panic!("{name} on {device}, {fuse}: {output} {why}"));
            }
        }
    }
}

/// Of images whose bytes end within a word, planes that are larger and smaller than a tile, and windows over the border:
/// around an image lie zeros, which are no level of it.
#[test]
fn convolutions_make_their_images() {
    for (sizes, k, stride, padding) in [
        ([2u64, 3, 8, 8], 4u64, 4u64, 0u64),
        ([1, 3, 5, 3], 3, 2, 1),
        ([3, 3, 1, 1], 1, 1, 0),
        ([1, 3, 2, 1100], 2, 3, 1),
        ([2, 3, 40, 50], 3, 1, 2),
    ] {
        let name = format!("{sizes:?}, window {k}, stride {stride}, padding {padding}");
        let [n, _, h, w] = sizes;
        let out = [h, w].map(|size| (size + 2 * padding - k) / stride + 1);
        let graph = of_bytes(sizes, |b, image| {
            let weight = b.input("weight", TensorType::f32([5, 3, k, k])).unwrap();
            let gradient = b.input("gradient", TensorType::f32([n, 5, out[0], out[1]])).unwrap();
            let forward = b.conv2d(image, weight, stride, padding).unwrap();
            let conv = Conv { kind: ConvKind::WeightGrad, stride, padding, size: (k, k) };
            vec![("y", forward), ("g", b.op(Op::Conv2d(conv), &[image, gradient]).unwrap())]
        });
        let inputs = Values::from([
            ("image".to_string(), levels([n, h, w])),
            ("weight".to_string(), numbers(&[5, 3, k, k], 1)),
            ("gradient".to_string(), numbers(&[n, 5, out[0], out[1]], 2)),
        ]);
        check(&name, &graph, &inputs);
        let model = compiled::model("convolutions", &graph, &Values::new());
        assert_eq!(steps(&compiled::plan(&model, Target::cpu(), true)), (2, 2), "{name}");
        assert_eq!(steps(&compiled::plan(&model, Target::cpu(), false)).1, 0, "{name}");
    }
}

/// What no prologue can read is stored first: bytes seen in two ways.
#[test]
fn other_images_are_stored() {
    let graph = program(|b| {
        let bytes = b.input("image", TensorType::new(DType::U8, [2, 6, 6, 3])).unwrap();
        let seen = [[0, 3, 1, 2], [0, 3, 2, 1]].map(|perm| {
            let planes = b.transpose(bytes, &perm).unwrap();
            b.cast(planes, DType::F32).unwrap()
        });
        let image = b.add(seen[0], seen[1]).unwrap();
        let weight = b.input("weight", TensorType::f32([2, 3, 3, 3])).unwrap();
        vec![("y", b.conv2d(image, weight, 1, 1).unwrap())]
    });
    let inputs =
        Values::from([("image".to_string(), levels([2, 6, 6])), ("weight".to_string(), numbers(&[2, 3, 3, 3], 3))]);
    check("two ways", &graph, &inputs);
    let model = compiled::model("two ways", &graph, &Values::new());
    assert_eq!(steps(&compiled::plan(&model, Target::cpu(), true)), (2, 0));
}

/// Who reads an image otherwise than as it lies has it stored as floats, since bytes are an input's type alone.
#[test]
fn any_reader_takes_images_in_bytes() {
    let graph = of_bytes([2, 3, 6, 5], |b, image| {
        let flat = b.reshape(image, [180].into()).unwrap();
        let total = b.reduce(ReduceKind::Sum, flat, &[0], false).unwrap();
        let most = b.reduce(ReduceKind::Max, image, &[0, 1, 2, 3], false).unwrap();
        let part = b.slice(image, &[0, 1, 2, 0], &[2, 3, 6, 5], &[1, 1, 2, 1]).unwrap();
        let mean = b.reduce(ReduceKind::Sum, image, &[1, 2, 3], true).unwrap();
        let centred = b.sub(image, mean).unwrap();
        let weight = b.input("weight", TensorType::f32([2, 3, 3, 3])).unwrap();
        let y = b.conv2d(centred, weight, 1, 1).unwrap();
        let table = b.reshape(image, [12, 15].into()).unwrap();
        let square = b.einsum("a x, b x -> a b", &[table, table]).unwrap();
        vec![("total", total), ("most", most), ("part", part), ("y", y), ("square", square)]
    });
    let inputs =
        Values::from([("image".to_string(), levels([2, 6, 5])), ("weight".to_string(), numbers(&[2, 3, 3, 3], 3))]);
    check("any reader", &graph, &inputs);
}

/// `alip_shapes` compiled for who gives it its inputs.
fn shapes(feed: Feed) -> CompiledSpec {
    let mut sources = SourceMap::new();
    let spec = Options { batch: Some(8), ..Options::default() };
    // Whole rows, so that the step takes what the pipeline delivers and nothing else.
    let transform = transform::Options { disabled: Disabled::only(PACKING), ..Default::default() };
    let compile = CompileOptions { transform, ..CompileOptions::default() };
    let options =
        SpecOptions { spec, compile, feed, keep: Keep { grads: true, values: false }, ..SpecOptions::default() };
    compile_spec(&mut sources, "alip_shapes", &options).unwrap_or_else(|e| panic!("{}", e.render(&sources, false)))
}

/// The first training batch of a plan's own pipeline.
fn first_batch(plan: &Plan) -> Batch {
    let pipeline = plan.train.as_ref().and_then(|train| train.data.as_ref()).expect("it names data");
    let source = open_source(&pipeline.source, Mode::Train).expect("rendered scenes need no files");
    let mut loader = Loader::new(pipeline, source, &LoaderOptions::train(1, 8)).expect("a pipeline that was checked");
    loader.next().expect("scenes can be rendered").expect("training is endless")
}

/// A step on a batch from the loader, after `init`: outputs by name.
fn step(plan: &Arc<Plan>, batch: &Batch) -> BTreeMap<String, HostTensor> {
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    let mut session = Session::new(Arc::clone(plan), device).expect("the plan loads");
    begin(&mut session, 1, 100).expect("the state is set");
    session.run(PROGRAM_TRAIN, &batch.tensors).expect("the step runs")
}

/// A step from bytes and one from floats are both the step, in f64, on the images that the pipeline means; outputs and
/// gradients are.
#[test]
fn training_from_bytes_is_training() {
    let (caller, loader) = (shapes(Feed::Caller), shapes(Feed::Loader));
    let plans = [&caller, &loader].map(|compiled| Arc::new(compiled.plan.clone().expect("nothing stopped it")));
    let batches = plans.each_ref().map(|plan| first_batch(plan));
    let image = |batch: &Batch| batch.tensors["image"].clone();
    let Data::U8(bytes) = image(&batches[1]).data().clone() else { panic!("images are not in bytes") };
    assert_eq!(image(&batches[0]).shape(), [8, 3, 32, 32]);
    assert_eq!(image(&batches[1]).shape(), [8, 32, 32, 3]);
    assert_eq!((&batches[0].rows, &batches[0].tensors["raw"]), (&batches[1].rows, &batches[1].tensors["raw"]));
    let data = plans[1].train.as_ref().and_then(|train| train.data.as_ref()).expect("it names data");
    let levels: Vec<f64> = bytes.iter().map(|byte| f64::from(*byte)).collect();
    let meant = normalized(&levels, 32 * 32, &data.in_bytes()["image"]);
    assert_within(&compiled::numbers(&image(&batches[0])), &meant, F32.unit_roundoff * largest(&meant)).unwrap();

    let graph = &caller.model.programs[PROGRAM_TRAIN];
    let inputs = graph.inputs.iter().map(|(name, id)| {
        let data = if &**name == "image" { meant.clone() } else { compiled::numbers(&batches[0].tensors[&**name]) };
        (name.to_string(), Value::new(graph.ty(*id).clone(), data))
    });
    let inputs: Values = inputs.collect();
    let device = choose("cpu", &DeviceOptions::default()).expect("always there").device;
    let mut session = Session::new(Arc::clone(&plans[0]), device).expect("the plan loads");
    begin(&mut session, 1, 100).expect("the state is set");
    let state = caller.model.state.iter().map(|(path, decl)| {
        let tensor = session.read_state(path).expect("a state of the plan");
        (path.to_string(), Value::new(decl.ty.clone(), compiled::numbers(&tensor)))
    });
    let expected = interpret(graph, &inputs, &state.collect()).expect("the step runs").outputs;
    for (plan, batch) in plans.iter().zip(&batches) {
        let outputs = step(plan, batch);
        // The gradient of a key bias is noise around zero.
        for (name, expected) in expected.iter().filter(|(name, _)| !name.ends_with("in_proj_bias")) {
            let relative = if name.starts_with("grads.") { GRADIENT } else { STEP_ONE };
            // A margin is a difference of numbers near 1, whose size is what rounds.
            let size = if name.ends_with("margin") { 1.0 } else { largest(&expected.data).max(1e-6) };
            assert_within(&compiled::numbers(&outputs[name]), &expected.data, relative * size)
                .unwrap_or_else(|why| panic!("{name}: {why}"));
        }
    }
}
