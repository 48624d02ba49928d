//! Laws of the primitive operations, driven by each op's own cases.

use std::collections::{BTreeMap, BTreeSet};

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{Builder, Evaluated, Graph, NodeId, OriginId, TensorType, Value, interpret};
use alip_compiler::ops::{Case, Op, ReduceKind, cases, pointwise_rows};
use alip_compiler::transform::narrow::unrounded;
use alip_compiler::trust::in_f32;

/// Half the distance of the finite difference: its error is about h^2 times a third derivative (of order 1), and
/// 1e-16 / h times the loss (of order 10) from rounding, which balance near 1e-5.
const H: f64 = 1e-5;
/// Both errors of the difference, for third derivatives up to 100 and losses up to 100.
const BOUND: f64 = 1e-7;

fn run(graph: &Graph, case: &Case) -> Evaluated {
    interpret(graph, &case.inputs, &case.state).unwrap_or_else(|error| panic!("{}: {error}", case.name))
}

/// Names of the ops that are not pointwise; `every_op_has_a_case_with_a_distinct_name` asks for new ones.
const OTHERS: [&str; 32] = [
    "input",
    "state",
    "const",
    "sum",
    "prod",
    "reduce_max",
    "reduce_min",
    "argmax",
    "dot",
    "conv2d",
    "conv2d_image_grad",
    "conv2d_weight_grad",
    "reshape",
    "transpose",
    "broadcast",
    "slice",
    "pad",
    "concat",
    "gather",
    "scatter_add",
    "iota",
    "random_uniform",
    "stop_gradient",
    "softmax",
    "logsumexp",
    "layer_norm",
    "cross_entropy",
    "attention",
    "attention_lse",
    "attention_grad_q",
    "attention_grad_k",
    "attention_grad_v",
];

/// What has no float to differentiate, or no gradient by design.
const WITHOUT_GRADIENT: [&str; 16] = [
    "input",
    "state",
    "const",
    "iota",
    "random_uniform",
    "argmax",
    "stop_gradient",
    "not",
    "lt",
    "le",
    "eq",
    "and",
    "or",
    "attention_grad_q",
    "attention_grad_k",
    "attention_grad_v",
];

/// Names of all ops.
fn op_names() -> impl Iterator<Item = &'static str> {
    OTHERS.into_iter().chain(pointwise_rows().iter().map(|row| row.name))
}

#[test]
fn inferred_shapes_are_those_of_the_evaluated_tensors() {
    for case in cases() {
        let result = run(&case.graph, &case);
        let y = &result.outputs["y"];
        let inferred = case.graph.ty(case.graph.outputs["y"]);
        assert_eq!(y.ty, *inferred, "{}", case.name);
        assert_eq!(y.data.len() as u64, inferred.shape.elements(), "{}", case.name);
        assert!(y.data.iter().all(|x| x.is_finite()), "{}: {:?}", case.name, y.data);
    }
}

#[test]
fn every_op_has_a_case_with_a_distinct_name() {
    let all = cases();
    let names: BTreeSet<&str> = all.iter().map(|case| case.name.as_str()).collect();
    assert_eq!(names.len(), all.len(), "two cases have one name");
    let tested: BTreeSet<&str> = all.iter().flat_map(|case| case.graph.nodes()).map(|node| node.op.name()).collect();
    let missing: Vec<&str> = op_names().filter(|name| !tested.contains(name)).collect();
    assert!(missing.is_empty(), "ops without a case: {missing:?}");
    // A new variant of Op fails to compile here, and so asks for its name above.
    fn listed(op: &Op) {
        match op {
            Op::Input { .. } | Op::State { .. } | Op::Const { .. } | Op::Pointwise(_) | Op::Reduce { .. } => {}
            Op::Dot(_) | Op::Conv2d(_) | Op::Reshape { .. } | Op::Transpose { .. } | Op::Broadcast { .. } => {}
            Op::Slice { .. } | Op::Pad { .. } | Op::Concat { .. } | Op::Gather { .. } | Op::ScatterAdd { .. } => {}
            Op::Softmax { .. } | Op::LogSumExp { .. } | Op::LayerNorm { .. } | Op::CrossEntropy => {}
            Op::Iota { .. } | Op::Random { .. } | Op::StopGradient | Op::Attention(_) => {}
        }
    }
    all.iter().flat_map(|case| case.graph.nodes()).for_each(|node| listed(&node.op));
}

/// The case in mid-graph: `loss = sum(c * op(g(x)))` with `g(x) = x + 0.1 x^2` before it, which keeps order, ties and
/// zeros, and an upstream gradient `c` that is not 1.
fn embedded(case: &Case) -> (Graph, NodeId, Vec<(String, NodeId)>) {
    let mut graph = Graph::new("law");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let mut map: Vec<NodeId> = Vec::new();
    let mut variables = Vec::new();
    for node in case.graph.nodes() {
        let id = match &node.op {
            Op::Input { name, ty } if ty.dtype.is_float() => {
                let x = b.input(name, ty.clone()).unwrap();
                variables.push((name.to_string(), x));
                let (square, tenth) = (b.mul(x, x).unwrap(), b.scalar(0.1).unwrap());
                let bend = b.mul(square, tenth).unwrap();
                b.add(x, bend).unwrap()
            }
            Op::Input { name, ty } => b.input(name, ty.clone()).unwrap(),
            op => {
                let inputs: Vec<NodeId> = node.inputs.iter().map(|id| map[id.index()]).collect();
                b.op(op.clone(), &inputs).unwrap()
            }
        };
        map.push(id);
    }
    let y = map[case.graph.outputs["y"].index()];
    let c = b.input("upstream", b.graph.ty(y).clone()).unwrap();
    let weighted = b.mul(y, c).unwrap();
    let axes: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
    let loss = b.reduce(ReduceKind::Sum, weighted, &axes, false).unwrap();
    graph.outputs.insert("loss".into(), loss);
    (graph, loss, variables)
}

/// Numbers between 0.5 and 1.5 of either sign, none of them 1.
fn upstream(ty: &TensorType) -> Value {
    let sign = |i: u64| if i.is_multiple_of(3) { -1.0 } else { 1.0 };
    let data = (0..ty.shape.elements()).map(|i| sign(i) * (0.5 + ((i * 37 + 11) % 100) as f64 / 101.0)).collect();
    Value::new(ty.clone(), data)
}

fn loss_at(graph: &Graph, inputs: &BTreeMap<String, Value>, state: &BTreeMap<String, Value>) -> f64 {
    interpret(graph, inputs, state).unwrap().outputs["loss"].data[0]
}

fn check_gradients(case: &Case) -> usize {
    let (mut graph, loss, variables) = embedded(case);
    let sizes: Vec<usize> = variables.iter().map(|(_, id)| graph.shape(*id).elements() as usize).collect();
    let ids: Vec<NodeId> = variables.iter().map(|(_, id)| *id).collect();
    let forward = graph.clone();
    let found = gradients(&mut graph, loss, &ids).unwrap();
    for ((name, _), id) in variables.iter().zip(&found) {
        if let Some(id) = id {
            graph.outputs.insert(format!("grad.{name}"), *id);
        }
    }
    // Steps of 16 bits have no slope: gradients are those of what is rounded.
    let (graph, forward) = (unrounded(&graph).unwrap(), unrounded(&forward).unwrap());
    let mut inputs = in_f32(&case.inputs);
    inputs.insert("upstream".into(), upstream(graph.ty(graph.inputs["upstream"])));
    let result = interpret(&graph, &inputs, &case.state).unwrap();
    // At a tie the loss has a kink: the difference then errs by h/4 times the second derivative of g, 0.2, times c.
    let kink = if case.name.ends_with("ties") { 0.1 * H } else { 0.0 };
    let mut checked = 0;
    for ((name, _), count) in variables.iter().zip(sizes) {
        let zeros = vec![0.0; count];
        let gradient = result.outputs.get(&format!("grad.{name}")).map_or(&zeros, |gradient| &gradient.data);
        // Every element of small tensors, some of long ones.
        for i in (0..count).step_by(count.div_ceil(64)) {
            let mut moved = |by: f64| {
                let old = inputs[name].data[i];
                inputs.get_mut(name).unwrap().data[i] = old + by;
                let loss = loss_at(&forward, &inputs, &case.state);
                inputs.get_mut(name).unwrap().data[i] = old;
                loss
            };
            let expected = (moved(H) - moved(-H)) / (2.0 * H);
            let difference = (gradient[i] - expected).abs();
            assert!(
                difference <= (BOUND + kink) * (1.0 + expected.abs()),
                "{}: d loss / d {name}[{i}] is {} by autodiff, {expected} by finite differences",
                case.name,
                gradient[i],
            );
            checked += 1;
        }
    }
    checked
}

#[test]
fn gradients_equal_finite_differences_in_mid_graph() {
    let mut checked = BTreeSet::new();
    for case in cases() {
        let y = case.graph.outputs["y"];
        // Nothing flows through integers and bools; stop_gradient is meant to differ from the difference; floor has
        // steps, between which both are zero. Gradients of gradients are refused.
        let op = &case.graph.node(y).op;
        if !case.graph.ty(y).dtype.is_float() || *op == Op::StopGradient || op.name().starts_with("attention_grad") {
            continue;
        }
        if check_gradients(&case) > 0 {
            checked.insert(case.graph.node(y).op.name());
        }
    }
    let expected = op_names().filter(|name| !WITHOUT_GRADIENT.contains(name));
    let missing: Vec<&str> = expected.filter(|name| !checked.contains(name)).collect();
    assert!(missing.is_empty(), "differentiable ops without a case: {missing:?}");
}

#[test]
fn gradients_of_gradients_are_refused() {
    let case = cases().into_iter().find(|case| case.name == "attention_grad_v_dense").unwrap();
    let (mut graph, loss, variables) = embedded(&case);
    let error = gradients(&mut graph, loss, &[variables[0].1]).unwrap_err().to_string();
    assert!(error.contains("`attention_grad_v` cannot be differentiated"), "{error}");
}

#[test]
fn nothing_flows_through_stop_gradient() {
    let case = cases().into_iter().find(|case| case.name == "stop_gradient").unwrap();
    let (mut graph, loss, variables) = embedded(&case);
    assert_eq!(gradients(&mut graph, loss, &[variables[0].1]).unwrap(), [None]);
}
