//! Noise on every device, fused and not: the numbers that the interpreter draws.

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Model, TensorType, Value, interpret};
use alip_compiler::resolve::{Options, resolve_source};
use alip_plan::bounds::{assert_within, largest};
use alip_tests::compiled::{Values, devices, plan, run};

/// A dropout in a repetition, noise that is read through views, and normal noise.
const GRAPH: &str = r#"Graph(
    name: "noise", use: ["dropout", "layer"],
    inputs: { "x": (dtype: F32, shape: "[5, 33]") },
    parts: { "layers": "[layer(); 3]" },
    body: [
        "u = noise([5, 33])",
        "kept = chain(layers, x)",
        "seen = transpose(noise([8, 9]))[1:4] + noise([3, 8])",
        "n = noise([40, 50], 'normal')",
    ],
    programs: { "look": (inputs: ["x"], outputs: ["u", "kept", "seen", "n"]) },
)"#;

/// What is compared is exact; what is added is rounded.
const LAYER: &str = r#"Module(name: "layer", inputs: { "x": "[..S]" },
    body: ["y = select(noise([..S]) < 0.3, 0.0, x + noise([..S]))"], outputs: ["y"])"#;

/// Three sums below 4 in f32, each off by half of 2^-22.
const SUMS: f64 = 3.0 / 8_388_608.0;

fn model() -> Model {
    let mut sources = SourceMap::new();
    let source = sources.add("noise.ron", GRAPH);
    let options = Options { files: [("layer.ron".to_owned(), LAYER.to_owned())].into(), ..Options::default() };
    match resolve_source(&mut sources, source, &options) {
        Ok(resolved) => resolved.model,
        Err(errors) => panic!("{}", errors.render(&sources, false)),
    }
}

#[test]
fn every_device_draws_the_same_numbers() {
    let model = model();
    let x = Value::new(TensorType::f32([5, 33]), vec![0.25; 165]);
    let inputs = Values::from([("x".to_owned(), x)]);
    for (seed, step) in [(0, 0), (-7, 3), (i32::MAX, 123_456)] {
        let of = |value: i32| Value::scalar(DType::I32, f64::from(value));
        let state = Values::from([("train.seed".to_owned(), of(seed)), ("train.step".to_owned(), of(step))]);
        let expected = interpret(&model.programs["look"], &inputs, &state).expect("it runs").outputs;
        for (device, target) in devices() {
            for fuse in [true, false] {
                let (found, _) = run(device, plan(&model, target.clone(), fuse), "look", &inputs, &state);
                assert_eq!(found["u"], expected["u"].data, "on {device}, fuse {fuse}");
                for sum in ["kept", "seen"] {
                    assert_within(&found[sum], &expected[sum].data, SUMS)
                        .unwrap_or_else(|why| panic!("{sum} on {device}, fuse {fuse}: {why}"));
                }
                // A logarithm, a root and a cosine of what is the same everywhere.
                let bound = 64.0 * f64::from(f32::EPSILON) * largest(&expected["n"].data);
                assert_within(&found["n"], &expected["n"].data, bound)
                    .unwrap_or_else(|why| panic!("n on {device}, fuse {fuse}: {why}"));
            }
        }
    }
}
