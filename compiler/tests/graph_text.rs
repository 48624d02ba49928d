//! Text form, simplification and verification of graphs, on every op's cases, their gradients and random graphs.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{
    Builder, DType, Dim, Graph, Model, NodeId, Origin, OriginId, Shape, StopGradients, TensorType, Value,
    eliminate_dead, interpret, parse, print, simplify, verify, verify_model,
};
use alip_compiler::ops::{Op, ReduceKind, ScalarOp, cases};
use alip_plan::philox;

/// A graph with its inputs.
struct Sample {
    name: String,
    graph: Graph,
    inputs: BTreeMap<String, Value>,
    state: BTreeMap<String, Value>,
}

/// Small numbers from a counter, so that a failing graph is named by its seed.
struct Draws {
    seed: u32,
    next: u32,
}

impl Draws {
    fn below(&mut self, n: usize) -> usize {
        self.next += 1;
        philox::philox4x32([self.next, 0, 0, 0], [self.seed, 7])[0] as usize % n
    }
}

/// A random graph of pointwise ops, views and reductions over one input, and the gradient of its sum.
fn random(seed: u32) -> Sample {
    let mut draws = Draws { seed, next: 0 };
    let mut graph = Graph::new(&format!("random_{seed}"));
    let origins: Vec<OriginId> = ["", "a.\"b\" c", "a.b#2"]
        .into_iter()
        .map(|path| graph.add_origin(Origin { path: path.into(), module: "module".into(), span: None }))
        .collect();
    let shape: Shape = [Dim::named(2, "B"), Dim::from(3), Dim::named(4, "D")].into_iter().collect();
    let x = Builder::new(&mut graph, origins[0]).input("x y", TensorType::f32(shape)).unwrap();
    let mut nodes = vec![x];
    for _ in 0..24 {
        let mut b = Builder::new(&mut graph, origins[draws.below(3)]);
        let (a, other) = (nodes[draws.below(nodes.len())], nodes[draws.below(nodes.len())]);
        let rank = b.graph.shape(a).rank();
        let constant = b.scalar([0.0, 1.0, -1.0, 0.5][draws.below(4)]).unwrap();
        let made = match draws.below(12) {
            0 => b.add(a, other),
            1 => b.mul(a, other),
            2 => b.sub(a, constant),
            3 => b.mul(a, constant),
            4 => b.add(constant, a),
            5 => b.neg(a),
            6 => b.tanh(a),
            7 => b.transpose(a, &(0..rank).rev().collect::<Vec<_>>()),
            8 if rank > 0 => b.reduce(ReduceKind::Sum, a, &[draws.below(rank)], draws.below(2) == 0),
            9 => b.reshape(a, Shape::from([b.graph.shape(a).elements()])),
            10 => b.stop_gradient(a),
            11 => b.lt(a, other).and_then(|smaller| b.select(smaller, a, constant)),
            _ => b.max(a, constant),
        };
        // Shapes that do not broadcast are refused; another draw follows.
        nodes.extend(made);
    }
    let mut b = Builder::new(&mut graph, origins[0]);
    let mut loss = b.scalar(0.0).unwrap();
    for id in nodes.iter().rev().take(5) {
        let axes: Vec<usize> = (0..b.graph.shape(*id).rank()).collect();
        let sum = b.reduce(ReduceKind::Sum, *id, &axes, false).unwrap();
        loss = b.add(loss, sum).unwrap();
    }
    graph.outputs.insert("loss".into(), loss);
    graph.values.insert("x".into(), x);
    let gradient = gradients(&mut graph, loss, &[x]).unwrap()[0];
    if let Some(gradient) = gradient {
        graph.updates.insert("gradient \"of\" x".into(), gradient);
    }
    let data = (0..24).map(|i| f64::from(i * 7 % 24) / 12.0 - 1.0).collect();
    let inputs = BTreeMap::from([("x y".into(), Value::new(graph.ty(x).clone(), data))]);
    Sample { name: format!("random graph {seed}"), graph, inputs, state: BTreeMap::new() }
}

fn samples() -> Vec<Sample> {
    let of_ops = cases().into_iter().map(|case| {
        let mut graph = case.graph;
        let y = graph.outputs["y"];
        // What is a gradient itself has none.
        if graph.ty(y).dtype.is_float() && !graph.node(y).op.name().starts_with("attention_grad") {
            let mut b = Builder::new(&mut graph, OriginId::default());
            let axes: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
            let loss = b.reduce(ReduceKind::Sum, y, &axes, false).unwrap();
            let inputs = graph.inputs.clone();
            let wrt: Vec<NodeId> = inputs.values().copied().collect();
            for (name, id) in inputs.keys().zip(gradients(&mut graph, loss, &wrt).unwrap()) {
                graph.outputs.extend(id.map(|id| (format!("grad.{name}"), id)));
            }
        }
        Sample { name: case.name, graph, inputs: case.inputs, state: case.state }
    });
    of_ops.chain((0..60).map(random)).collect()
}

#[test]
fn text_parses_back_to_the_same_graph() {
    for sample in samples() {
        let text = print(&sample.graph);
        let read = parse(&text).unwrap_or_else(|error| panic!("{}: {error}\n{text}", sample.name));
        assert_eq!(read, sample.graph, "{}\n{text}", sample.name);
        assert_eq!(print(&read), text, "{}", sample.name);
    }
}

#[test]
fn the_text_form_is_readable() {
    let mut graph = Graph::new("demo");
    let origin = graph.add_origin(Origin { path: "text.ln".into(), module: "layer_norm".into(), span: None });
    let mut b = Builder::new(&mut graph, origin);
    let x = b.input("x", TensorType::f32([Dim::named(8, "B"), Dim::from(4)].into_iter().collect::<Shape>())).unwrap();
    let w = b.state("ln.weight", TensorType::f32([4])).unwrap();
    let y = b.mul(x, w).unwrap();
    let y = b.reduce(ReduceKind::Sum, y, &[1], true).unwrap();
    let y = b.einsum("b one, b d -> d", &[y, x]).unwrap();
    graph.outputs.insert("y".into(), y);
    let expected = "\
graph demo
origin 0 \"text.ln\" \"layer_norm\"
%0 = input \"x\" : f32[B=8, 4] @0
%1 = state \"ln.weight\" : f32[4] @0
%2 = broadcast(shape:\"[B=8, 4]\",dims:[1]) %1 : f32[B=8, 4] @0
%3 = mul %0 %2 : f32[B=8, 4] @0
%4 = reduce(kind:Sum,axes:[1]) %3 : f32[B=8] @0
%5 = reshape(shape:\"[B=8, 1]\") %4 : f32[B=8, 1] @0
%6 = reduce(kind:Sum,axes:[1]) %5 : f32[B=8] @0
%7 = dot(batch:[],contract:[(0,0)]) %6 %0 : f32[4] @0
output \"y\" = %7
";
    assert_eq!(print(&graph), expected);
}

#[test]
fn text_that_is_no_graph_names_its_line() {
    let x = "graph g\n%0 = input \"x\" : f32[2]\n";
    let cases = [
        (format!("{x}%1 = add %0 %2 : f32[2]"), "line 3: `%2` is not an earlier node"),
        (format!("{x}%1 = add %0 %0 : f32[3]"), "line 3: `add` gives f32[2], not f32[3]"),
        (format!("{x}%1 = add %0 : f32[2]"), "line 3: `add` takes 2 inputs, not 1"),
        (format!("{x}%2 = neg %0 : f32[2]"), "line 3: %2 stands in the place of %1"),
        (format!("{x}%1 = neg %0"), "line 3: the node has no type: expected ` : f32[...]`"),
        (format!("{x}%1 = neg %0 : f64[2]"), "line 3: `f64[2]` is not a type"),
        (format!("{x}%1 = neg %0 : f32[2] @5"), "line 3: there is no origin 5"),
        ("%0 = input \"x\" : u8[2]\n%1 = add %0 %0 : u8[2]".into(), "line 2: `add` takes no u8"),
        (format!("{x}%1 = cast %0 : u8[2]"), "line 3: `cast` makes no u8, which inputs of a program alone are"),
        (format!("{x}output \"y\" = %1"), "line 3: `%1` is not an earlier node"),
        (format!("{x}loss 3"), "line 3: a line starts with graph, origin, %n, output, update or value, not `loss`"),
        (
            "%0 = reshape(shape:\"[2\") : f32[2]".into(),
            "line 1: `reshape(shape:\"[2\")` is not an op: 1:16-1:19: `[2` is not a shape",
        ),
    ];
    for (text, expected) in cases {
        assert_eq!(parse(&text).unwrap_err().to_string(), expected);
    }
}

fn assert_close(name: &str, found: &BTreeMap<String, Value>, expected: &BTreeMap<String, Value>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{name}");
    for (key, value) in expected {
        assert_eq!(found[key].ty, value.ty, "{name}: {key}");
        for (a, b) in found[key].data.iter().zip(&value.data) {
            // Folds are exact; only products may be summed in another order after operands were swapped.
            assert!((a - b).abs() <= 1e-13 * (1.0 + b.abs()), "{name}: {key} is {a}, was {b}");
        }
    }
}

#[test]
fn simplification_keeps_values_and_never_grows_a_graph() {
    for sample in samples() {
        let simple = simplify(&sample.graph, StopGradients::Drop).unwrap();
        verify(&simple.graph).unwrap();
        let before = interpret(&sample.graph, &sample.inputs, &sample.state).unwrap();
        let after = interpret(&simple.graph, &sample.inputs, &sample.state).unwrap();
        assert_close(&sample.name, &after.outputs, &before.outputs);
        assert_close(&sample.name, &after.updates, &before.updates);
        let live = eliminate_dead(&sample.graph).unwrap().graph.nodes().len();
        // Moving a scalar operation below a broadcast can need the constant at both shapes.
        assert!(simple.graph.nodes().len() <= live + 2, "{}: {live} to {}", sample.name, simple.graph.nodes().len());
        let again = simplify(&simple.graph, StopGradients::Drop).unwrap();
        assert_eq!(again.graph, simple.graph, "{}: a second time changes the graph", sample.name);
    }
}

#[test]
fn litter_goes() {
    let mut graph = Graph::new("litter");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([2, 3])).unwrap();
    let one = b.scalar(1.0).unwrap();
    let zero = b.scalar(0.0).unwrap();
    let y = b.mul(x, one).unwrap();
    let y = b.add(zero, y).unwrap();
    let y = b.transpose(y, &[1, 0]).unwrap();
    let y = b.transpose(y, &[1, 0]).unwrap();
    let y = b.reshape(y, Shape::from([6])).unwrap();
    let y = b.reshape(y, Shape::from([2, 3])).unwrap();
    let y = b.neg(y).unwrap();
    let again = b.neg(x).unwrap();
    let y = b.add(y, again).unwrap();
    graph.outputs.insert("y".into(), y);
    let simple = simplify(&graph, StopGradients::Keep).unwrap();
    let names: Vec<&str> = simple.graph.nodes().iter().map(|node| node.op.name()).collect();
    assert_eq!(names, ["input", "neg", "add"]);
    assert_eq!(simple.map[0], Some(NodeId(0)));
    assert_eq!(simple.map[again.index()], Some(NodeId(1)));
}

#[test]
fn verification_finds_broken_contracts() {
    let mut graph = Graph::new("train");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([2])).unwrap();
    let w = b.state("w", TensorType::f32([3])).unwrap();
    verify(&graph).unwrap();
    graph.outputs.insert("y".into(), NodeId(9));
    assert_eq!(verify(&graph).unwrap_err().to_string(), "program `train`: output `y` names a node that does not exist");
    graph.outputs.clear();
    graph.inputs.clear();
    let expected = "program `train`, node %0 (input): input `x` is not listed among the program's inputs";
    assert_eq!(verify(&graph).unwrap_err().to_string(), expected);
    graph.inputs.insert("x".into(), x);
    graph.updates.insert("w".into(), x);
    let mut model = Model::default();
    model.programs.insert("train".into(), graph.clone());
    let expected = "program `train` reads state `w`, which is not declared; program `train` updates state `w`, which is not declared";
    assert_eq!(verify_model(&model).unwrap_err().to_string(), expected);
    let declared = alip_compiler::ir::StateDecl {
        kind: alip_plan::StateKind::Param,
        ty: graph.ty(w).clone(),
        origin: Origin::default(),
        clamp: None,
        frozen: false,
    };
    model.state.insert("w".into(), declared);
    let expected = "program `train` updates state `w` as f32[2], but it is f32[3]";
    assert_eq!(verify_model(&model).unwrap_err().to_string(), expected);
}

#[test]
fn a_loss_is_a_scalar_float() {
    let mut graph = Graph::new("train");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([Dim::named(8, "B")].into_iter().collect::<Shape>())).unwrap();
    let expected = "the loss is f32[B=8], but only a scalar float can be minimised";
    assert_eq!(gradients(&mut graph, x, &[x]).unwrap_err().to_string(), expected);
}

#[test]
fn gradients_are_none_without_a_path() {
    let mut graph = Graph::new("train");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([])).unwrap();
    let unused = b.input("unused", TensorType::f32([])).unwrap();
    let rounded = b.floor(x).unwrap();
    let integer = b.cast(x, DType::I32).unwrap();
    let back = b.cast(integer, DType::F32).unwrap();
    let loss = b.add(rounded, back).unwrap();
    assert_eq!(gradients(&mut graph, loss, &[x, unused]).unwrap(), [None, None]);
    assert_eq!(graph.node(loss).op, Op::Pointwise(ScalarOp::Add));
}
