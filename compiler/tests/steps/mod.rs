//! Whole training steps of shipped graphs, and whether two of them compute the same in f64.

#![allow(dead_code, reason = "each test uses a part of it")]

use std::collections::BTreeMap;

use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{DType, Graph, Model, TensorType, Value, interpret};
use alip_compiler::resolve::{Options, resolve};
use alip_compiler::training::{Keep, training_step};

/// The model of a shipped graph with its training step.
pub(crate) fn trained(name: &str, keep: Keep) -> Model {
    let mut sources = SourceMap::new();
    let step = resolve(&mut sources, name, &Options::default())
        .and_then(|resolved| training_step(&resolved, resolved.model.clone(), keep));
    step.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false))).model
}

/// The inputs of `init`.
pub(crate) fn seed() -> BTreeMap<String, Value> {
    BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))])
}

/// The state that a run of twenty steps begins with; a schedule without steps has no learning rate.
pub(crate) fn first_state(model: &Model) -> BTreeMap<String, Value> {
    let mut state = interpret(&model.programs["init"], &seed(), &BTreeMap::new()).unwrap().updates;
    state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
    state
}

/// Floats in [-1, 1), small token ids; no two inputs are equal, since the gate of equal texts is a tie that rounding decides.
pub(crate) fn some_inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |input: usize, ty: &TensorType| {
        let number = |i: u64| ((i * 7919 + 131 * input as u64) % 1000) as f64;
        let of = |i: u64| if ty.dtype.is_float() { number(i) / 500.0 - 1.0 } else { number(i) % 300.0 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    let inputs = graph.inputs.iter().enumerate();
    inputs.map(|(input, (name, id))| (name.clone(), value(input, graph.ty(*id)))).collect()
}

/// How far two results in f64 may be apart, as parts of the largest element of the expected tensor, and in any case: key
/// biases have gradients that are nothing but rounding.
#[derive(Clone, Copy)]
pub(crate) struct Within {
    pub(crate) relative: f64,
    pub(crate) absolute: f64,
}

pub(crate) fn assert_close(
    what: &str,
    expected: &BTreeMap<String, Value>,
    found: &BTreeMap<String, Value>,
    Within { relative, absolute }: Within,
) {
    assert_eq!(expected.keys().collect::<Vec<_>>(), found.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in expected {
        let largest = value.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        assert!(largest.is_finite(), "{what}: {name} is not finite");
        for (a, b) in found[name].data.iter().zip(&value.data) {
            assert!((a - b).abs() <= relative * largest + absolute, "{what}: {name} is {a} and was {b}");
        }
    }
}
