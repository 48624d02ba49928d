//! Laws of the primitive operations, driven by each op's own cases.

use std::collections::{BTreeMap, BTreeSet};

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{
    Builder, DType, Evaluated, Graph, NodeId, OriginId, Shape, TensorType, Value, interpret, interpret_with,
};
use alip_compiler::ops::axes::{Along, Layout, Operand, Operands, PackedCall, Packs};
use alip_compiler::ops::{Case, Op, Pointwise, ReduceKind, Rule, cases, fold, pointwise_rows};
use alip_compiler::transform::narrow::unrounded;
use alip_compiler::trust::in_f32;
use alip_compiler::trust::rounding::{bound_of, with_bounds};
use alip_plan::bounds::F32;

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

/// What only moves elements, or makes them of nothing.
const WITHOUT_ARITHMETIC: [&str; 11] = [
    "const",
    "iota",
    "random_uniform",
    "reshape",
    "transpose",
    "broadcast",
    "slice",
    "pad",
    "concat",
    "gather",
    "stop_gradient",
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

/// What computes says how much, or it would cost nothing.
#[test]
fn what_computes_counts_its_operations() {
    let mut idle = BTreeSet::new();
    for case in cases() {
        let Applied { op, operands, result } = Applied::of(&case);
        let types: Vec<&TensorType> = operands.iter().map(|operand| &operand.ty).collect();
        if op.flops(&types, &result.ty) == 0 {
            idle.insert(op.name());
        }
    }
    assert_eq!(idle, BTreeSet::from(WITHOUT_ARITHMETIC));
}

/// A scalar operation says whether it jumps: constants near a jump are not folded.
#[test]
fn steps_of_scalar_operations_are_declared() {
    // Steps so short that the smallest jump, of a rounding to f16 near 1, is steeper than any slope.
    const STEPS: u32 = 1 << 20;
    const STEEP: f64 = 100.0;
    let of_floats = |row: &&Pointwise| matches!(row.rule, Rule::Float | Rule::Number | Rule::Select | Rule::Cast);
    for row in pointwise_rows().iter().filter(of_floats) {
        let (low, high) = row.range;
        let at = |number: u32| low + (high - low) * f64::from(number) / f64::from(STEPS);
        // The condition of a choice is no number that moves.
        let first = usize::from(row.rule == Rule::Select);
        let jumps = (first..row.op.arity()).any(|moving| {
            let value = |number: u32| {
                let mut operands = [0.7 * low + 0.3 * high, 0.2 * low + 0.8 * high, high];
                operands[moving] = at(number);
                fold(row.op, DType::F32, &operands[..row.op.arity()]).expect("an operation of graphs")
            };
            let rise = |number| (value(number + 1) - value(number)).abs() / (at(1) - at(0));
            (0..STEPS).any(|number| rise(number) > STEEP)
        });
        assert_eq!(jumps, row.jumps, "`{}`", row.name);
    }
}

/// The case behind other nodes: `y = op(g(x))` with `g(x) = x + 0.1 x^2`, which keeps order, ties and zeros; and its floats `x`
/// by name.
fn bent(case: &Case) -> (Graph, NodeId, Vec<(String, NodeId)>) {
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
    graph.outputs.insert("y".into(), y);
    (graph, y, variables)
}

/// The case in mid-graph: `loss = sum(c * y)` of what [`bent`] gives, with an upstream gradient `c` that is not 1.
fn embedded(case: &Case) -> (Graph, NodeId, Vec<(String, NodeId)>) {
    let (mut graph, y, variables) = bent(case);
    let mut b = Builder::new(&mut graph, OriginId::default());
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

/// What an op says of its rounding holds when every value before it, and its own, is rounded to f32.
#[test]
fn results_in_f32_are_within_the_bounds() {
    let mut off = BTreeSet::new();
    for case in cases() {
        let (graph, y, _) = bent(&case);
        let bounded = with_bounds(&graph, F32).unwrap();
        let exact = interpret(&bounded, &in_f32(&case.inputs), &case.state).unwrap().outputs;
        let float = |id: NodeId| graph.ty(id).dtype.is_float();
        let rounded = interpret_with(&graph, &case.inputs, &case.state, |id, values| {
            values.iter_mut().filter(|_| float(id)).for_each(|x| *x = f64::from(*x as f32));
        });
        let (rounded, expected) = (&rounded.unwrap().outputs["y"].data, &exact["y"].data);
        let exactly = vec![0.0; expected.len()];
        let bounds = exact.get(&bound_of("y")).map_or(&exactly, |bound| &bound.data);
        for ((x, expected), bound) in rounded.iter().zip(expected).zip(bounds) {
            // Nothing is known of rows some of whose scores are hidden by a large number.
            if !bound.is_finite() && case.name.starts_with("attention") {
                continue;
            }
            // Of integers and truth values the bound is whether they may be others.
            let within = if float(y) {
                bound.is_finite() && (x - expected).abs() <= *bound
            } else {
                x == expected || *bound == 1.0
            };
            assert!(within, "{}: {x} is {expected} in exact numbers, and the bound is {bound}", case.name);
            if x != expected {
                off.insert(graph.node(y).op.name());
            }
        }
    }
    // What computes is rounded, or the law says nothing.
    for op in ["sum", "prod", "dot", "conv2d", "scatter_add", "exp", "div", "softmax", "layer_norm", "attention"] {
        assert!(off.contains(op), "`{op}` is exact in every case");
    }
}

/// Ops that are row-wise along no dimension, or whose results have none; all others are in a case that shows along which.
const NEVER_ROW_WISE: [&str; 9] = [
    "input",
    "state",
    "const",
    "random_uniform",
    "conv2d_image_grad",
    "conv2d_weight_grad",
    "attention_grad_q",
    "attention_grad_k",
    "attention_grad_v",
];

/// An application of an op on numbers.
struct Applied {
    op: Op,
    operands: Vec<Value>,
    result: Value,
}

impl Applied {
    fn of(case: &Case) -> Applied {
        let mut graph = case.graph.clone();
        let node = graph.node(graph.outputs["y"]).clone();
        for (number, id) in node.inputs.iter().enumerate() {
            graph.outputs.insert(number.to_string(), *id);
        }
        let mut values = run(&graph, case).outputs;
        let result = values.remove("y").unwrap();
        let operands = (0..node.inputs.len()).map(|number| values.remove(&number.to_string()).unwrap()).collect();
        Applied { op: node.op, operands, result }
    }

    fn types(&self) -> Vec<&TensorType> {
        self.operands.iter().map(|operand| &operand.ty).collect()
    }
}

/// An op of other operands.
fn apply(op: &Op, operands: Vec<Value>) -> Value {
    let mut graph = Graph::new("law");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let names = (0..operands.len()).map(|number| number.to_string());
    let inputs: BTreeMap<String, Value> = names.zip(operands).collect();
    let ids: Vec<NodeId> = (0..inputs.len())
        .map(|number| b.input(&number.to_string(), inputs[&number.to_string()].ty.clone()).unwrap())
        .collect();
    let y = b.op(op.clone(), &ids).unwrap();
    graph.outputs.insert("y".into(), y);
    interpret(&graph, &inputs, &BTreeMap::new()).unwrap().outputs.remove("y").unwrap()
}

/// The value whose element at a place is that of `from` at the place that `place` says.
fn moved(from: &Value, shape: Shape, place: impl Fn(&[u64]) -> Vec<u64>) -> Value {
    let element = |mut number: u64| {
        let mut at = vec![0; shape.rank()];
        for axis in (0..shape.rank()).rev() {
            (at[axis], number) = (number % shape.size(axis), number / shape.size(axis));
        }
        let place = place(&at);
        let index = place.iter().zip(&from.ty.shape.0).fold(0, |index, (at, dim)| index * dim.size + at);
        from.data[index as usize]
    };
    let data = (0..shape.elements()).map(element).collect();
    Value::new(TensorType::new(from.ty.dtype, shape), data)
}

/// Positions of a value along a dimension.
fn picked(from: &Value, axis: usize, positions: &[u64]) -> Value {
    let mut shape = from.ty.shape.clone();
    shape.0[axis] = (positions.len() as u64).into();
    moved(from, shape, |at| {
        let mut place = at.to_vec();
        place[axis] = positions[at[axis] as usize];
        place
    })
}

fn check_equal(what: &str, found: &Value, expected: &Value) {
    assert_eq!(found.ty.shape.sizes(), expected.ty.shape.sizes(), "{what}");
    for (found, expected) in found.data.iter().zip(&expected.data) {
        // Sums of another order.
        assert!((found - expected).abs() <= 1e-12 * (1.0 + expected.abs()), "{what}: {found}, not {expected}");
    }
}

/// An op that says that it is row-wise commutes with picking positions: backwards, some not, some twice.
#[test]
fn picking_positions_commutes_with_what_is_row_wise() {
    let mut row_wise = BTreeSet::new();
    for case in cases() {
        let applied = Applied::of(&case);
        for axis in 0..applied.result.ty.shape.rank() {
            let along = match applied.op.along(&applied.types(), axis) {
                Ok(along) => along,
                Err(why) => {
                    assert!(!why.0.is_empty(), "{}: no reason along {axis}", case.name);
                    continue;
                }
            };
            assert_eq!(along.len(), applied.operands.len(), "{}: operands along {axis}", case.name);
            let size = applied.result.ty.shape.size(axis);
            let positions: Vec<u64> = (0..size).rev().filter(|at| size < 3 || *at != 1).chain([0, 0]).collect();
            let pick = |(operand, along): (&Value, &Option<usize>)| {
                along.map_or_else(|| operand.clone(), |axis| picked(operand, axis, &positions))
            };
            let operands = applied.operands.iter().zip(&along).map(pick).collect();
            let found = apply(&applied.op.resized(axis, positions.len() as u64), operands);
            check_equal(&format!("{} along {axis}", case.name), &found, &picked(&applied.result, axis, &positions));
            row_wise.insert(applied.op.name());
        }
    }
    let expected: BTreeSet<&str> = op_names().filter(|name| !NEVER_ROW_WISE.contains(name)).collect();
    assert_eq!(row_wise, expected);
}

/// Row-wise ops that are not themselves of packed rows; all others are in a case that shows what they are. To `broadcast` the
/// rewrite gives picked rows.
const NEVER_PACKED: [&str; 4] = ["conv2d", "scatter_add", "attention_lse", "broadcast"];

/// The first rows of each sample, of some one, of others more.
fn rows(samples: u64, positions: u64) -> Vec<(u64, u64)> {
    (0..samples).flat_map(|sample| (0..=(sample + 1) % positions).map(move |position| (sample, position))).collect()
}

fn packed(from: &Value, layout: Layout, rows: &[(u64, u64)]) -> Value {
    moved(from, layout.shape(&from.ty.shape, rows.len() as u64), |at| {
        let (sample, position) = rows[at[layout.rows()] as usize];
        let entry = |axis: usize| match layout.packed(axis) {
            None => position,
            Some(_) if axis == layout.samples => sample,
            Some(place) => at[place],
        };
        (0..from.ty.shape.rank()).map(entry).collect()
    })
}

/// How the operands follow the rows, if the op can be applied to packed ones.
fn follows(applied: &Applied, layout: Layout) -> Option<Operands> {
    let types = applied.types();
    match applied.op.packs(&types, layout) {
        Packs::Segments => Some(types.iter().map(|_| Operand::Rows(layout)).collect()),
        Packs::Rows => {
            let along = |axis| applied.op.along(&types, axis).ok();
            let (samples, positions): (Along, Along) = (along(layout.samples)?, along(layout.positions)?);
            let operand = |(samples, positions): (&Option<usize>, &Option<usize>)| match (*samples, *positions) {
                (Some(samples), Some(positions)) => Some(Operand::Rows(Layout { samples, positions })),
                (None, None) => Some(Operand::Same),
                _ => None,
            };
            samples.iter().zip(&positions).map(operand).collect()
        }
        Packs::Repeats | Packs::No(_) => None,
    }
}

/// Where the rows of samples begin and end, for queries and for keys.
fn segments(rows: &[(u64, u64)], samples: u64) -> Value {
    let edge = |sample: u64| rows.iter().filter(|(of, _)| *of < sample).count() as f64;
    let edges = (0..2).flat_map(|_| (0..=samples).map(edge)).collect();
    Value::new(TensorType::new(DType::I32, [2, samples + 1]), edges)
}

/// An op that says what it is of packed rows gives the rows of what it was, whichever dimensions are samples and positions.
#[test]
fn packing_rows_commutes_with_what_packs() {
    let mut packs = BTreeSet::new();
    for case in cases() {
        let applied = Applied::of(&case);
        let shape = &applied.result.ty.shape;
        let pairs = (0..shape.rank()).flat_map(|samples| (0..shape.rank()).map(move |positions| (samples, positions)));
        for (samples, positions) in pairs.filter(|(samples, positions)| samples != positions) {
            let layout = Layout { samples, positions };
            let Some(operands) = follows(&applied, layout) else { continue };
            let rows = rows(shape.size(samples), shape.size(positions));
            let pick = |(value, operand): (&Value, &Operand)| match operand {
                Operand::Rows(layout) => packed(value, *layout, &rows),
                _ => value.clone(),
            };
            let mut values: Vec<Value> = applied.operands.iter().zip(&operands).map(pick).collect();
            if applied.op.packs(&applied.types(), layout) == Packs::Segments {
                values.push(segments(&rows, shape.size(samples)));
            }
            let expected = packed(&applied.result, layout, &rows);
            let call = PackedCall { layout, operands: &operands, shape: &expected.ty.shape };
            let found = apply(&applied.op.packed(&call), values);
            check_equal(&format!("{} in {layout:?}", case.name), &found, &expected);
            packs.insert(applied.op.name());
        }
    }
    let never = |name: &str| NEVER_PACKED.contains(&name) || NEVER_ROW_WISE.contains(&name);
    let expected: BTreeSet<&str> = op_names().filter(|name| !never(name)).collect();
    assert_eq!(packs, expected);
}
