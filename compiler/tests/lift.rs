//! What `lift` finds, and that nothing changes by it: values and gradients of the lifted graph are those of the plain one.

mod steps;

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, Value, interpret, verify, verify_model};
use alip_compiler::ops::{Op, ReduceKind};
use alip_compiler::resolve::{Options, resolve, resolve_source};
use alip_compiler::transform::{self, Disabled, Report};
use steps::{Within, assert_close, first_state};

/// Both sides are sums of a few dozen terms in f64, in another order.
const WITHIN: Within = Within { relative: 1e-12, absolute: 1e-14 };

/// A spec of one program `f` of some inputs, with `y` as its output.
fn spec(inputs: &str, body: &[&str], outputs: &str) -> String {
    let body: Vec<String> = body.iter().map(|line| format!("\"{line}\",")).collect();
    let named: Vec<&str> = inputs.split(", ").filter_map(|input| input.split(':').next()).collect();
    let inputs: Vec<String> = inputs
        .split(", ")
        .map(|input| input.split_once(": ").expect("NAME: SIZE x SIZE"))
        .map(|(name, sizes)| {
            let (dtype, sizes) = match sizes.strip_prefix("i32 ") {
                Some(sizes) => ("I32", sizes),
                None => ("F32", sizes),
            };
            format!("\"{name}\": (dtype: {dtype}, shape: \"[{}]\"),", sizes.replace('x', ", "))
        })
        .collect();
    let names: Vec<String> = named.iter().map(|name| format!("\"{name}\"")).collect();
    let outputs: Vec<String> = outputs.split(", ").map(|name| format!("\"{name}\"")).collect();
    format!(
        "Graph(name: \"t\", use: [\"nn\", \"activation\", \"attention\", \"losses\"], inputs: {{ {} }}, body: [ {} ], \
         programs: {{ \"f\": (inputs: [{}], outputs: [{}]) }})",
        inputs.join(" "),
        body.join(" "),
        names.join(", "),
        outputs.join(", ")
    )
}

fn program(spec: &str, lift: bool) -> (Graph, Report) {
    let mut sources = SourceMap::new();
    let id = sources.add("spec", spec);
    let resolved = resolve_source(&mut sources, id, &Options::default());
    let mut resolved = resolved.unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let options = transform::Options { lift, disabled: Disabled::all() };
    let report = transform::forward(&mut resolved, &options).unwrap_or_else(|errors| panic!("{errors}"));
    let graph = resolved.model.programs["f"].clone();
    verify(&graph).unwrap_or_else(|errors| panic!("{errors}"));
    (graph, report)
}

/// Floats of either sign below 1, in no order; integers from 0 to 4.
fn some(graph: &Graph) -> BTreeMap<String, Value> {
    let value = |seed: u64, ty: &alip_compiler::ir::TensorType| {
        let number = |i: u64| ((i + 17 * seed) * 7919 % 1009) as f64;
        let of = |i: u64| if ty.dtype == DType::I32 { number(i) % 5.0 } else { number(i) / 504.0 - 1.0 };
        Value::new(ty.clone(), (0..ty.shape.elements()).map(of).collect())
    };
    graph.inputs.iter().enumerate().map(|(i, (name, id))| (name.clone(), value(i as u64, graph.ty(*id)))).collect()
}

/// Adds gradients of `sum(y * y)` over all outputs with respect to all float inputs, as outputs.
fn differentiated(mut graph: Graph) -> Graph {
    let outputs: Vec<NodeId> = graph.outputs.values().copied().collect();
    let variables: Vec<(String, NodeId)> = graph.inputs.iter().map(|(name, id)| (name.clone(), *id)).collect();
    let variables: Vec<_> = variables.into_iter().filter(|(_, id)| graph.ty(*id).dtype.is_float()).collect();
    let origin = graph.node(outputs[0]).origin;
    let mut b = Builder::new(&mut graph, origin);
    let mut loss = b.scalar(0.0).unwrap();
    for y in outputs {
        let square = b.mul(y, y).unwrap();
        let axes: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
        let sum = b.reduce(ReduceKind::Sum, square, &axes, false).unwrap();
        loss = b.add(loss, sum).unwrap();
    }
    let ids: Vec<NodeId> = variables.iter().map(|(_, id)| *id).collect();
    let found = gradients(&mut graph, loss, &ids).unwrap();
    for ((name, _), grad) in variables.iter().zip(found) {
        graph.outputs.insert(format!("grad {name}"), grad.unwrap_or_else(|| panic!("no gradient of {name}")));
    }
    graph
}

/// Lifts a spec, compares values and gradients with the plain program, and gives what the report says in short.
fn lifted(name: &str, spec: &str) -> (Graph, String) {
    let (plain, _) = program(spec, false);
    let (graph, report) = program(spec, true);
    let inputs = some(&plain);
    let run = |graph: &Graph| interpret(&differentiated(graph.clone()), &inputs, &BTreeMap::new()).unwrap().outputs;
    let (expected, found) = (run(&plain), run(&graph));
    assert_close(name, &expected, &found, WITHIN);
    let lifted = report.lifted.iter().map(|lifted| lifted.what.to_owned());
    let missed = report.missed.iter().map(|missed| format!("no {}: {}", missed.like, missed.why));
    (graph, lifted.chain(missed).collect::<Vec<_>>().join("; "))
}

fn count(graph: &Graph, wanted: impl Fn(&Op) -> bool) -> usize {
    graph.nodes().iter().filter(|node| wanted(&node.op)).count()
}

/// The towers of a whole model: everything it trains on is the same with attention lifted.
#[test]
fn a_training_step_stays_the_same() {
    let step = |lift: bool| {
        let mut sources = SourceMap::new();
        let mut resolved = resolve(&mut sources, "alip_tiny", &Options::default()).unwrap();
        let options = transform::Options { lift, disabled: Disabled::all() };
        let report = transform::forward(&mut resolved, &options).unwrap();
        add_update(&mut resolved, Keep { grads: true, values: true }).unwrap();
        (resolved.model, report)
    };
    let ((plain, _), (lifted, report)) = (step(false), step(true));
    // Three towers of two layers.
    let in_train = report.lifted.iter().filter(|lifted| lifted.what == "attention" && lifted.program == "train");
    assert_eq!(in_train.count(), 6);
    // Two per layer, one before and one after the image tower, one after each text tower.
    let norms = report.lifted.iter().filter(|lifted| lifted.what == "layer_norm" && lifted.program == "train");
    assert_eq!(norms.count(), 2 * 6 + 4);
    assert_eq!(report.missed, []);
    verify_model(&lifted).unwrap();
    let state = first_state(&plain);
    for (program, graph) in plain.programs.iter().filter(|(name, _)| *name != "init") {
        let inputs = some(graph);
        let run = |graph: &Graph| interpret(graph, &inputs, &state).unwrap();
        let (expected, found) = (run(graph), run(&lifted.programs[program]));
        // Metrics, named values and gradients; the optimiser makes steps of the rounding that is all the gradient of a key's
        // bias has.
        assert_close(program, &expected.outputs, &found.outputs, WITHIN);
    }
}

const QKV: &str = "q: 2x5x2x4, k: 2x5x2x4, v: 2x5x2x3";
const MATRICES: &str = "q: 6x4, k: 5x4, v: 5x3";
const CAUSAL: &str = "m = iota([5, 5], axis: 0) >= iota([5, 5], axis: 1)";

/// Name, inputs, body, whether causal.
const ATTENTION: &[(&str, &str, &[&str], bool)] = &[
    (
        "heads in the middle",
        QKV,
        &[
            "s = einsum('n q h d, n k h d -> n h q k', q, k) / 2",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        false,
    ),
    (
        "weights last",
        QKV,
        &[
            "s = einsum('n q h d, n k h d -> n q k h', q * 0.5, k)",
            "y = einsum('n q k h, n k h e -> n q h e', softmax(s, axis: 2), v)",
        ],
        false,
    ),
    (
        "keys first",
        QKV,
        &[
            "s = einsum('n k h d, n q h d -> n h k q', k * 0.5, q)",
            "y = einsum('n h k q, n k h e -> n h q e', softmax(s, axis: 2), v)",
        ],
        false,
    ),
    (
        "heads first, without the largest",
        "q: 2x2x5x4, k: 2x2x5x4, v: 2x2x5x3",
        &["e = exp(0.5 * (q @ transpose(k, [0, 1, 3, 2])))", "y = (e / sum(e, axis: -1, keep: true)) @ v"],
        false,
    ),
    (
        "merged samples and heads",
        QKV,
        &[
            "a = rearrange(q, 'n l h d -> (n h) l d')",
            "b = rearrange(k, 'n l h d -> (n h) l d')",
            "c = rearrange(v, 'n l h d -> (n h) l d')",
            CAUSAL,
            "s = reshape(a @ transpose(b, [0, 2, 1]), [2, 2, 5, 5]) - 1e9 * (1 - cast(m, 'f32'))",
            "y = rearrange(reshape(softmax(s), [4, 5, 5]) @ c, '(n h) l d -> n l (h d)', h: 2)",
        ],
        true,
    ),
    ("matrices", MATRICES, &["y = softmax(q @ transpose(k)) @ v"], false),
    (
        "matrices, the largest with its gradient",
        MATRICES,
        &[
            "s = q @ transpose(k)",
            "e = exp(s - reduce_max(s, axis: 1, keep: true))",
            "y = (e * sum(e, axis: 1, keep: true) ** -1) @ v",
        ],
        false,
    ),
    (
        "matrices, by logsumexp",
        MATRICES,
        &["s = q @ transpose(k)", "y = exp(s - logsumexp(s, axis: -1, keep: true)) @ v"],
        false,
    ),
    ("matrices, by log_softmax", MATRICES, &["y = exp(log_softmax(-1 * (q @ transpose(k)))) @ v"], false),
    (
        "matrices, values times transposed weights",
        MATRICES,
        &["y = transpose(v) @ transpose(softmax(q @ transpose(k)))"],
        false,
    ),
    (
        "causal by a choice",
        QKV,
        &[
            CAUSAL,
            "s = select(m, einsum('n q h d, n k h d -> n h q k', q, k), -1e30)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by a choice, swapped and scaled later",
        QKV,
        &[
            "m = iota([5, 5], axis: 0) < iota([5, 5], axis: 1)",
            "s = select(m, -1e30, einsum('n q h d, n k h d -> n h q k', q, k)) / sqrt(4)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by a sum",
        QKV,
        &[
            "m = select(iota([5, 1], axis: 0) < iota([1, 5], axis: 1), -1e30, 0)",
            "s = einsum('n q h d, n k h d -> n h q k', q, k * 0.5) + m",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by products",
        QKV,
        &[
            "m = cast(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), 'f32')",
            "s = einsum('n q h d, n k h d -> n h q k', q, k) * m - 1e30 * (1 - m)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "causal by distances",
        QKV,
        &[
            "far = iota([5, 5], axis: 1) - iota([5, 5], axis: 0)",
            "s = select(max(far, 0) == 0, einsum('n q h d, n k h d -> n h q k', q, k), -1e30)",
            "y = einsum('n h q k, n k h e -> n q h e', softmax(s), v)",
        ],
        true,
    ),
    (
        "heads share keys and values",
        "q: 2x5x3x4, k: 2x6x4, v: 2x6x4",
        &["y = einsum('n h q k, n k e -> n q h e', softmax(einsum('n q h d, n k d -> n h q k', q, k)), v)"],
        false,
    ),
    (
        "one query per sample",
        "q: 3x2x4, k: 3x5x2x4, v: 3x5x2x4",
        &["y = einsum('n h k, n k h e -> n h e', softmax(einsum('n h d, n k h d -> n h k', q, k)), v)"],
        false,
    ),
    ("a table that is searched", "q: 2x3x4, k: 5x4, v: 5x3", &["y = softmax(q @ transpose(k)) @ v"], false),
];

#[test]
fn attention_is_found_in_any_spelling() {
    for (name, inputs, body, causal) in ATTENTION {
        let (graph, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, "attention", "{name}");
        let ops: Vec<_> = graph
            .nodes()
            .iter()
            .filter_map(|node| if let Op::Attention(op) = &node.op { Some(op) } else { None })
            .collect();
        assert_eq!(ops.len(), 1, "{name}");
        assert_eq!(ops[0].causal, *causal, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Dot(_))), 0, "{name}");
    }
}

/// Name, lines of the body before the scores `s` are used; what stops it.
const NO_ATTENTION: &[(&str, &[&str], &str, &str)] = &[
    (
        "sigmoid",
        &["p = sigmoid(s)"],
        "y",
        "no attention: the weights are no softmax of the scores; between the two products stands `mul`, `tanh`, `mul`, `add`",
    ),
    (
        "squares",
        &["p = s * s"],
        "y",
        "no attention: the weights are no softmax of the scores; between the two products stands `mul`",
    ),
    ("over the queries", &["p = softmax(s, axis: 2)"], "y", "no attention: softmax does not run over the keys"),
    ("over the heads", &["p = softmax(s, axis: 1)"], "y", "no attention: softmax does not run over the keys"),
    ("weights are read", &["p = softmax(s)"], "y, p", "no attention: scores or weights are read by something else too"),
    (
        "weights are summed up",
        &["p = softmax(s)", "z = sum(p * ln(p), axis: -1)"],
        "y, z",
        "no attention: scores or weights are read by something else too",
    ),
    (
        "scores are read",
        &["p = softmax(s)", "z = reduce_max(s, axis: 2)"],
        "y, z",
        "no attention: scores or weights are read by something else too",
    ),
    (
        "the first query sees nothing",
        &["p = softmax(select(iota([5, 5], axis: 0) > iota([5, 5], axis: 1), s, -1e30))"],
        "y",
        "no attention: a query sees no key",
    ),
    (
        "a window",
        &["p = softmax(select(abs(iota([5, 5], axis: 0) - iota([5, 5], axis: 1)) < 2, s, -1e30))"],
        "y",
        "no attention: a fixed mask that is not causal",
    ),
    (
        "a distance",
        &["p = softmax(s - 0.5 * cast(iota([5, 5], axis: 1), 'f32'))"],
        "y",
        "no attention: a bias is added to the scores, such as -0.5",
    ),
    (
        "a small number",
        &["p = softmax(select(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), s, -5))"],
        "y",
        "no attention: masked scores become -5, which is not far below every score",
    ),
];

#[test]
fn what_is_no_attention_stays_and_says_why() {
    for (name, weights, outputs, why) in NO_ATTENTION {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(weights);
        body.push("y = einsum('n h q k, n k h e -> n q h e', p, v)");
        let (graph, report) = lifted(name, &spec(QKV, &body, outputs));
        let report: String =
            report.split("; ").skip_while(|part| !part.starts_with("no ")).collect::<Vec<_>>().join("; ");
        assert_eq!(report, *why, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Attention(_))), 0, "{name}");
    }
}

/// Name, mask; whether causal too.
const LENGTHS: &[(&str, &[&str], bool)] = &[
    ("below a length", &["m = iota([1, 1, 1, 5], axis: 3) < reshape(max(length, 1), [2, 1, 1, 1])"], false),
    ("up to a position", &["m = iota([5], axis: 0) <= reshape(argmax(tokens, axis: 1), [2, 1, 1, 1])"], false),
    (
        "not beyond",
        &[
            "n = reshape(1 + argmax(tokens, axis: -1), [2, 1, 1, 1])",
            "m = iota([2, 1, 5, 5], axis: 3) >= n",
            "t = select(m, -1e30, s)",
        ],
        false,
    ),
    ("added", &["t = s + select(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), 0, -1e9)"], false),
    (
        "added as a number",
        &["t = s - 1e9 * (1 - cast(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), 'f32'))"],
        false,
    ),
    (
        "up to a position that stands for no limit",
        &["m = iota([5], axis: 0) <= reshape(max(length + 2147483643, 0), [2, 1, 1, 1])"],
        false,
    ),
    (
        "causal too",
        &[
            "a = iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1])",
            "t = select(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), select(a, s, -1e30), -1e30)",
        ],
        true,
    ),
];

#[test]
fn masks_by_lengths_are_found() {
    for (name, mask, causal) in LENGTHS {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(mask);
        if mask.last().is_some_and(|line| line.starts_with("m =")) {
            body.push("t = select(m, s, -1e30)");
        }
        body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)");
        let spec = spec(&format!("{QKV}, length: i32 2, tokens: i32 2x5"), &body, "y");
        let (graph, report) = lifted(name, &spec);
        assert_eq!(report, "attention", "{name}");
        let found = count(
            &graph,
            |op| matches!(op, Op::Attention(op) if op.rows == alip_compiler::ops::attention::Rows::Lengths && op.causal == *causal),
        );
        assert_eq!(found, 1, "{name}");
    }
    let body = [
        "s = einsum('n q h d, n k h d -> n h q k', q, k)",
        "t = select(iota([5], axis: 0) < reshape(length, [2, 1, 1, 1]), s, -1e30)",
        "y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)",
    ];
    let (_, report) = lifted("no bound", &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
    assert_eq!(report, "softmax; no attention: a length might be 0, and then no key is seen: write `max(length, 1)`");
}

/// Name, from the scores `s` to what softmax gets, why it is no attention.
const SHOWN_AGAIN: &[(&str, &[&str], &str)] = &[
    (
        "scaled after a mask by lengths",
        &["t = select(iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1]), s, -2000) * 0.001"],
        "masked scores are scaled to a number that is not far below every score",
    ),
    (
        "scaled after a causal mask",
        &["t = select(iota([5, 5], axis: 1) <= iota([5, 5], axis: 0), s, -2000) * 0.001"],
        "masked scores are scaled to a number that is not far below every score",
    ),
    (
        "multiplied after it",
        &["m = cast(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), 'f32')", "t = (s + (m - 1) * 1e9) * m"],
        "masked scores are multiplied by a tensor",
    ),
    (
        "multiplied after a mask by lengths",
        &[
            "m = cast(iota([5, 5], axis: 0) >= iota([5, 5], axis: 1), 'f32')",
            "l = iota([5], axis: 0) < reshape(max(length, 1), [2, 1, 1, 1])",
            "t = select(l, s, -1e30) * m + (m - 1) * 1e9",
        ],
        "masked scores are multiplied by a tensor",
    ),
];

#[test]
fn what_shows_hidden_keys_again_is_no_attention() {
    for (name, lines, why) in SHOWN_AGAIN {
        let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)"];
        body.extend_from_slice(lines);
        body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)");
        let (_, report) = lifted(name, &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
        assert_eq!(report, format!("softmax; no attention: {why}"), "{name}");
    }
}

/// A length of which every line says the same twice: what is known of it must not be worked out twice each time.
#[test]
fn a_length_that_is_computed_in_many_steps_is_looked_at_once() {
    let mut body = vec!["s = einsum('n q h d, n k h d -> n h q k', q, k)".to_owned(), "n0 = max(length, 1)".to_owned()];
    body.extend((0..40).map(|i| format!("n{} = max(n{i}, min(n{i}, length + {i}))", i + 1)));
    body.push("t = select(iota([5], axis: 0) < reshape(n40, [2, 1, 1, 1]), s, -1e30)".into());
    body.push("y = einsum('n h q k, n k h e -> n q h e', softmax(t), v)".into());
    let body: Vec<&str> = body.iter().map(String::as_str).collect();
    let (_, report) = lifted("many steps", &spec(&format!("{QKV}, length: i32 2"), &body, "y"));
    assert_eq!(report, "attention");
}

/// Name, inputs, body, what the report says.
const NORMS: &[(&str, &str, &[&str], &str)] = &[
    ("softmax of the library", "x: 4x3x5", &["y = softmax(x, axis: 1)"], "softmax"),
    ("softmax without the largest", "x: 4x5", &["e = exp(x)", "y = e / sum(e, axis: -1, keep: true)"], "softmax"),
    (
        "softmax by a reciprocal",
        "x: 4x5",
        &["e = exp(x - reduce_max(x, axis: 0, keep: true))", "y = (1 / sum(e, axis: 0, keep: true)) * e"],
        "softmax",
    ),
    ("softmax by logsumexp", "x: 4x5", &["y = exp(x - logsumexp(x, axis: -1, keep: true))"], "softmax"),
    ("softmax by einsum", "x: 4x5", &["e = exp(x - 3)", "y = e / reshape(einsum('n c -> n', e), [4, 1])"], "softmax"),
    ("log_softmax of the library", "x: 4x5", &["y = log_softmax(x)"], "logsumexp"),
    ("logsumexp of the library", "x: 4x5", &["y = logsumexp(x, axis: 0)"], "logsumexp"),
    ("logsumexp without the largest", "x: 4x5", &["y = ln(sum(exp(x), axis: 1))"], "logsumexp"),
    (
        "logsumexp with the largest's gradient",
        "x: 4x5",
        &["m = reduce_max(x, axis: 1)", "y = m + ln(sum(exp(x - reshape(m, [4, 1])), axis: 1))"],
        "logsumexp",
    ),
    ("logsumexp of a transposed matrix", "x: 4x5", &["y = logsumexp(transpose(x), axis: 0)"], "logsumexp"),
    (
        "layer_norm by moments",
        "x: 4x5",
        &[
            "m = mean(x, axis: -1, keep: true)",
            "v = mean(x * x, axis: -1, keep: true) - m * m",
            "y = (x - m) / sqrt(v + 1e-3)",
        ],
        "layer_norm",
    ),
    (
        "layer_norm by moments that stay positive",
        "x: 2x3x5",
        &[
            "m = mean(x, axis: [1, 2], keep: true)",
            "v = max(mean(x ** 2, axis: [1, 2], keep: true) - m ** 2, 0)",
            "y = (x - m) * (v + 1e-3) ** -0.5",
        ],
        "layer_norm",
    ),
    (
        "layer_norm by sums and a root",
        "x: 4x5, w: 5, b: 5",
        &[
            "c = x - reshape(sum(x, axis: 1) * 0.2, [4, 1])",
            "v = reshape(einsum('n d, n d -> n', c, c) / 5, [4, 1])",
            "y = c * w * (1 / sqrt(v + 1e-5)) + b",
        ],
        "layer_norm",
    ),
    (
        "layer_norm, weights first",
        "x: 4x5, w: 5, b: 5",
        &["c = x - mean(x, axis: -1, keep: true)", "y = w * c / sqrt(mean(c * c, axis: -1, keep: true) + 1e-5) + b"],
        "layer_norm",
    ),
    ("cross_entropy of the library", "x: 4x5, t: i32 4", &["y = cross_entropy(x, t)"], "cross_entropy"),
    (
        "cross_entropy by log_softmax",
        "x: 4x5, t: i32 4",
        &["y = -mean(gather(log_softmax(x), t, axis: 1, batch: 1))"],
        "cross_entropy",
    ),
    (
        "cross_entropy by softmax",
        "x: 2x4x5, t: i32 2x4",
        &["y = -ln(gather(softmax(x), t, axis: 2, batch: 2))"],
        "cross_entropy",
    ),
    (
        "cross_entropy by the logarithm of softmax",
        "x: 4x5, t: i32 4",
        &["y = sum(gather(-ln(softmax(x)), t, axis: 1, batch: 1))"],
        "cross_entropy",
    ),
];

#[test]
fn normalisations_are_found_in_any_spelling() {
    for (name, inputs, body, what) in NORMS {
        let (graph, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, *what, "{name}");
        assert_eq!(graph.nodes().iter().filter(|node| node.op.name() == *what).count(), 1, "{name}");
    }
}

/// Name, body: what looks like a normalisation of x, which is `[4, 5]`, and is none.
const NO_NORMS: &[(&str, &[&str], &str)] = &[
    ("another sum", &["e = exp(x)", "y = e / sum(exp(2 * x), axis: -1, keep: true)"], ""),
    ("half of the sum", &["e = exp(x)", "y = e / sum(e[:, 0:3], axis: -1, keep: true)"], ""),
    ("a stopped sum", &["e = exp(x)", "y = e / stop_gradient(sum(e, axis: -1, keep: true))"], ""),
    // The gradient of the shift is not that of a shift which cancels: only what is below it is a logsumexp.
    (
        "a shift stopped once",
        &["m = reduce_max(x, axis: 1)", "y = m + ln(sum(exp(x - reshape(stop_gradient(m), [4, 1])), axis: 1))"],
        "logsumexp",
    ),
    ("two axes", &["c = x - mean(x, axis: 0, keep: true)", "y = c / sqrt(mean(c * c, axis: 1, keep: true) + 1)"], ""),
    (
        "unbiased",
        &["c = x - mean(x, axis: 1, keep: true)", "y = c / sqrt(sum(c * c, axis: 1, keep: true) / 4 + 1)"],
        "",
    ),
    ("not centred", &["y = x / sqrt(mean(x * x, axis: 1, keep: true) + 1)"], ""),
];

#[test]
fn what_is_no_normalisation_stays() {
    for (name, body, what) in NO_NORMS {
        let (_, report) = lifted(name, &spec("x: 4x5", body, "y"));
        assert_eq!(report, *what, "{name}");
    }
}

/// Name, body: the losses of images x among texts t and of texts among images, both `[4, 3]`, at the scale s.
const CONTRASTIVE: &[(&str, &[&str])] = &[
    ("of the library", &["y = clip_loss(x, t, s)"]),
    (
        "by cross entropies",
        &[
            "l = s * (x @ transpose(t))",
            "own = iota([4], axis: 0)",
            "y = 0.5 * (cross_entropy(l, own) + cross_entropy(transpose(l), own))",
        ],
    ),
    (
        "by log_softmax and the unit matrix",
        &[
            "l = x @ transpose(t) * s",
            "eye = cast(iota([4, 4], axis: 0) == iota([4, 4], axis: 1), 'f32')",
            "y = -0.5 * (mean(sum(eye * log_softmax(l, axis: 1), axis: 1)) + mean(sum(eye * log_softmax(l, axis: 0), axis: 0)))",
        ],
    ),
    (
        "by a choice",
        &[
            "l = (s * x) @ transpose(t)",
            "own = sum(select(iota([4, 4], axis: 0) == iota([4, 4], axis: 1), l, 0))",
            "y = (0.5 * (sum(logsumexp(l, axis: 1)) + sum(logsumexp(l, axis: 0))) - own) / 4",
        ],
    ),
    (
        "one product each way",
        &[
            "a = s * (x @ transpose(t))",
            "b = s * einsum('i d, j d -> j i', x, t)",
            "own = iota([4], axis: 0)",
            "y = mean(-ln(gather(softmax(a), own, axis: 1, batch: 1)) - gather(log_softmax(b), own, axis: 1, batch: 1)) / 2",
        ],
    ),
];

#[test]
fn contrastive_losses_need_of_the_matrix_only_logsumexps() {
    for (name, body) in CONTRASTIVE {
        let (graph, _) = lifted(name, &spec("x: 4x3, t: 4x3, s: ", body, "y"));
        // Who reads something that depends on a product, as a matrix?
        let mut wide = vec![false; graph.nodes().len()];
        for id in graph.ids() {
            let node = graph.node(id);
            let of_product = node.inputs.iter().any(|input| wide[input.index()]);
            assert!(
                !of_product || matches!(node.op, Op::LogSumExp { .. } | Op::Pointwise(_) | Op::Transpose { .. }),
                "{name}: {}",
                node.op.name()
            );
            wide[id.index()] =
                matches!(node.op, Op::Dot(_)) || (of_product && !matches!(node.op, Op::LogSumExp { .. }));
        }
        assert_eq!(count(&graph, |op| matches!(op, Op::LogSumExp { .. })), 2, "{name}");
        assert_eq!(count(&graph, |op| matches!(op, Op::Gather { .. } | Op::CrossEntropy)), 0, "{name}");
    }
}

/// Name, inputs, body: sums of parts of a matrix that are not its diagonal.
const NO_DIAGONALS: &[(&str, &str, &[&str])] = &[
    (
        "a column",
        "x: 4x3, t: 1x3",
        &["l = x @ transpose(t)", "y = sum(l * cast(iota([4, 1], axis: 0) == iota([4, 1], axis: 1), 'f32'))"],
    ),
    (
        "a matrix that is no square",
        "x: 4x3, t: 6x3",
        &["l = x @ transpose(t)", "y = sum(l * cast(iota([4, 6], axis: 0) == iota([4, 6], axis: 1), 'f32'))"],
    ),
    (
        "numbers as conditions",
        "x: 4x3, t: 4x3",
        &[
            "l = x @ transpose(t)",
            "y = sum(select(cast(iota([4, 4], axis: 0), 'bool') == cast(iota([4, 4], axis: 1), 'bool'), l, 0))",
        ],
    ),
];

#[test]
fn only_a_square_has_a_diagonal() {
    for (name, inputs, body) in NO_DIAGONALS {
        let (_, report) = lifted(name, &spec(inputs, body, "y"));
        assert_eq!(report, "", "{name}");
    }
}
