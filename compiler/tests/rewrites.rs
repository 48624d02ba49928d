//! The whole-graph rewrites against the plain graph in f64: every output and every gradient of a training step.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::autodiff::update::{Keep, add_update};
use alip_compiler::diag::SourceMap;
use alip_compiler::ir::{
    Builder, DType, Graph, Model, NodeId, OriginId, TensorType, Value, interpret, verify, verify_model,
};
use alip_compiler::ops::{Op, ReduceKind};
use alip_compiler::resolve::{Options, resolve_source};
use alip_compiler::transform::{self, Applied, Disabled, Results};
use alip_plan::StateKind;
use alip_plan::philox::philox4x32;

/// Of the largest entry of a tensor: both sides are f64, with sums of a few thousand terms in another order.
const RELATIVE: f64 = 1e-12;
/// Gradients that are zero but for rounding (of key biases) have no larger entry to compare with.
const ABSOLUTE: f64 = 1e-15;

/// Towers that the counter-examples are built of.
const TOWERS: &str = r#"[
    Module(
        name: "centred",
        doc: "Two products, between which the batch is centred.",
        args: { "width": Int },
        inputs: { "x": "[N, width]" },
        params: { "v": (shape: "[width, width]", init: "normal(0.3)"), "w": (shape: "[width, width]", init: "normal(0.3)") },
        body: ["h = x @ v", "y = (h - mean(h, axis: 0, keep: true)) @ w"],
        outputs: ["y"],
    ),
    Module(
        name: "deep",
        doc: "The same product three times, one after the other.",
        args: { "width": Int },
        inputs: { "x": "[N, width]" },
        params: { "w": (shape: "[width, width]", init: "normal(0.3)"), "b": (shape: "[width]", init: "normal(0.3)") },
        body: ["h = tanh(x @ w + b)", "g = tanh(h @ w + b)", "y = tanh(g @ w + b)"],
        outputs: ["y"],
    ),
    Module(
        name: "reader",
        doc: "A transformer over tokens that is read at the end, at two positions of each sample, or everywhere.",
        use: ["nn", "activation", "attention"],
        args: { "read": Str, "mask": "none", "context": Int, "out": Int },
        inputs: { "tokens": (dtype: I32, shape: "[N, context]") },
        parts: { "token_embedding": "embedding(512, 32)", "transformer": "residual_stack(32, 2, 2, mask: mask)" },
        params: { "proj": (shape: "[32, out]", init: "normal(0.2)") },
        body: [
            "h = transformer(token_embedding(tokens))",
            "end = gather(h, argmax(tokens, axis: -1), axis: 1, batch: 1)",
            "two = mean(gather(h, tokens[:, 1:3], axis: 1, batch: 1), axis: 1)",
            "y = (end if read == 'end' else two if read == 'two' else mean(h, axis: 1)) @ proj",
        ],
        outputs: ["y"],
    ),
]"#;

/// A number in [0, 1).
fn uniform(tensor: usize, element: u64) -> f64 {
    f64::from(philox4x32([element as u32, tensor as u32, 0, 0], [7, 0])[0]) / 2f64.powi(32)
}

/// Images of unit size, and texts: a start, words, an end of text (the largest id), padding. Some have the end twice, some
/// none but padding, some begin with it.
fn inputs(graph: &Graph) -> BTreeMap<String, Value> {
    let of = |(tensor, ty): (usize, &TensorType)| -> Vec<f64> {
        let row = ty.shape.0.last().map_or(1, |dim| dim.size);
        let number = |i: u64| {
            if ty.dtype.is_float() {
                return 2.0 * uniform(tensor, i) - 1.0;
            }
            let (text, at) = (i / row, i % row);
            let end = [row - 1, 0, 3, 5, row / 2][(text + tensor as u64) as usize % 5];
            match at {
                at if at == end || (at == end + 2 && text % 2 == 0) => 511.0,
                at if at > end => 0.0,
                _ => 1.0 + (uniform(tensor, i) * 500.0).floor(),
            }
        };
        (0..ty.shape.elements()).map(number).collect()
    };
    let types = graph.inputs.values().map(|id| graph.ty(*id)).enumerate();
    let values = types.map(|(tensor, ty)| Value::new(ty.clone(), of((tensor, ty))));
    graph.inputs.keys().cloned().zip(values).collect()
}

/// The initial state, parameters moved a little, so that nothing is zero or one by chance.
fn state(model: &Model) -> BTreeMap<String, Value> {
    let seed = BTreeMap::from([("seed".to_owned(), Value::scalar(DType::I32, 1.0))]);
    let mut state = interpret(&model.programs["init"], &seed, &BTreeMap::new()).expect("init runs").updates;
    let params = state.iter_mut().filter(|(path, _)| model.state[*path].kind == StateKind::Param);
    for (tensor, (_, value)) in params.enumerate() {
        let moved = |(i, x): (usize, &mut f64)| *x += 0.02 * (uniform(100 + tensor, i as u64) - 0.5);
        value.data.iter_mut().enumerate().for_each(moved);
    }
    state.insert("train.total_steps".into(), Value::scalar(DType::I32, 20.0));
    state
}

/// A spec's programs with its training step, and what was rewritten.
fn model(spec: &str, lift: bool, disabled: &Disabled) -> (Model, Vec<Applied>) {
    let mut sources = SourceMap::new();
    let source = sources.add("spec.ron", spec);
    let files = BTreeMap::from([("towers.ron".to_owned(), TOWERS.to_owned())]);
    let options = Options { batch: Some(5), files, ..Options::default() };
    let mut resolved = resolve_source(&mut sources, source, &options)
        .unwrap_or_else(|errors| panic!("{}", errors.render(&sources, false)));
    let options = transform::Options { lift, disabled: disabled.clone() };
    let applied = transform::forward(&mut resolved, &options).unwrap_or_else(|errors| panic!("{errors}")).applied;
    add_update(&mut resolved, Keep { grads: true, values: false }).unwrap_or_else(|errors| panic!("{errors}"));
    verify_model(&resolved.model).unwrap_or_else(|errors| panic!("{errors}"));
    (resolved.model, applied)
}

fn all_but(rewrites: &[&str]) -> Disabled {
    Disabled(transform::names().filter(|name| !rewrites.contains(name)).map(str::to_owned).collect())
}

fn assert_equal(what: &str, plain: &BTreeMap<String, Value>, rewritten: &BTreeMap<String, Value>) {
    assert_eq!(plain.keys().collect::<Vec<_>>(), rewritten.keys().collect::<Vec<_>>(), "{what}");
    for (name, value) in plain {
        let largest = value.data.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        for (a, b) in rewritten[name].data.iter().zip(&value.data) {
            assert!((a - b).abs() <= RELATIVE * largest + ABSOLUTE, "{what}: {name}: {a} was {b}");
        }
    }
}

/// Compares a spec with these rewrites, with semantic ops and without, to the spec without any: all programs, all outputs
/// and gradients. Yields what was rewritten in `train`, which but for streaming is the same for both.
fn check(spec: &str, rewrites: &[&str]) -> Vec<Applied> {
    let (plain, _) = model(spec, false, &all_but(&[]));
    let state = state(&plain);
    let run = |model: &Model| -> Vec<(String, BTreeMap<String, Value>)> {
        let programs = model.programs.iter().filter(|(name, _)| *name != "init");
        let run = |graph: &Graph| interpret(graph, &inputs(graph), &state).expect("the program runs").outputs;
        programs.map(|(name, graph)| (name.clone(), run(graph))).collect()
    };
    let expected = run(&plain);
    let rewritten = |lift: bool| {
        let (rewritten, applied) = model(spec, lift, &all_but(rewrites));
        assert_eq!(plain.state, rewritten.state, "{spec}");
        for ((name, plain), (_, rewritten)) in expected.iter().zip(run(&rewritten)) {
            assert_equal(&format!("{spec}: {name}, lift {lift}"), plain, &rewritten);
        }
        applied.into_iter().filter(|done| done.program == "train").collect::<Vec<_>>()
    };
    let (as_written, lifted) = (rewritten(false), rewritten(true));
    // Streaming begins with the logsumexps that lifting finds.
    let places = |applied: &[Applied]| {
        let without = applied.iter().filter(|done| done.rewrite != "streaming");
        without.map(|done| (done.rewrite, done.places.clone())).collect::<Vec<_>>()
    };
    assert_eq!(places(&as_written), places(&lifted), "{spec}");
    lifted
}

/// The places at which one rewrite alone was done in `train`.
fn places(spec: &str, rewrite: &str) -> Vec<String> {
    check(spec, &[rewrite]).into_iter().flat_map(|done| done.places).collect()
}

/// Compares a program and its gradients by all state with what one rewrite makes of it; none if it does nothing.
fn check_graph(graph: &Graph, rewrite: &str) -> Option<Graph> {
    let (rewritten, applied) =
        transform::rewrite(graph, &Results::default(), &all_but(&[rewrite])).expect("it rewrites");
    verify(&rewritten).unwrap_or_else(|errors| panic!("{errors}"));
    let floats = |(i, x): (u64, &mut f64)| *x = 2.0 * uniform(31, i) - 1.0;
    let value = |ty: &TensorType| {
        let mut data = vec![0.0; ty.shape.elements() as usize];
        match ty.dtype.is_float() {
            true => (0..).zip(&mut data).for_each(floats),
            // Two that are clamped, and some between.
            false => (0..).zip(&mut data).for_each(|(i, x)| *x = [2.0, 9.0, -1.0, 0.0][i % 4]),
        }
        Value::new(ty.clone(), data)
    };
    let inputs: BTreeMap<String, Value> =
        graph.inputs.iter().map(|(name, id)| (name.clone(), value(graph.ty(*id)))).collect();
    let states = |graph: &Graph| -> BTreeMap<String, NodeId> {
        let path = |id: NodeId| match &graph.node(id).op {
            Op::State { path, .. } => Some((path.to_string(), id)),
            _ => None,
        };
        graph.ids().filter_map(path).collect()
    };
    let state = states(graph).into_iter().map(|(path, id)| (path, value(graph.ty(id)))).collect();
    let run = |graph: &Graph| {
        let mut graph = graph.clone();
        let states = states(&graph);
        let outputs: Vec<NodeId> = graph.outputs.values().copied().collect();
        let mut b = Builder::new(&mut graph, OriginId::default());
        let mut loss = b.scalar(0.0).expect("a scalar");
        for y in outputs {
            let all: Vec<usize> = (0..b.graph.shape(y).rank()).collect();
            let square = b.mul(y, y).expect("floats");
            let sum = b.reduce(ReduceKind::Sum, square, &all, false).expect("floats");
            loss = b.add(loss, sum).expect("scalars");
        }
        let wrt: Vec<NodeId> = states.values().copied().collect();
        let grads = gradients(&mut graph, loss, &wrt).expect("a scalar loss");
        let grads = states.keys().zip(grads).filter_map(|(path, grad)| Some((format!("grads.{path}"), grad?)));
        graph.outputs.extend(grads.collect::<Vec<_>>());
        interpret(&graph, &inputs, &state).expect("it runs").outputs
    };
    assert_equal(&graph.name, &run(graph), &run(&rewritten));
    (!applied.is_empty()).then_some(rewritten)
}

const NOTHING: [&str; 0] = [];

/// A graph like another one but for these entries.
fn variant(base: &str, entries: &str) -> String {
    format!("Graph(name: \"variant\", base: \"{base}\", {entries})")
}

mod batching {
    use super::{NOTHING, check, places, variant};

    fn found(entries: &str) -> Vec<String> {
        places(&variant("alip_tiny", entries), "batching")
    }

    #[test]
    fn two_texts_are_read_at_once() {
        for base in ["alip_tiny", "alip_tiny_rn"] {
            assert_eq!(places(&variant(base, ""), "batching"), ["text, text#2"], "{base}");
        }
        let done = check(&variant("alip_tiny", ""), &["batching"]);
        assert_eq!(done[0].before.flops, done[0].after.flops);
        assert!(done[0].after.bytes < done[0].before.bytes, "{done:?}");
    }

    #[test]
    fn three_texts_are_read_at_once() {
        let third = r#"
            inputs: { "title": (dtype: I32, shape: "[B, T]") },
            body: ["tt = normalize(text(title))", "loss = loss_raw + loss_caption + clip_loss(x, tt, s)"]"#;
        assert_eq!(found(third), ["text, text#2, text#3"]);
    }

    #[test]
    fn towers_that_diverge_are_one_up_to_there() {
        let heads = r#"
            use: ["nn"],
            parts: { "head": "linear(D, D)" },
            body: ["tr = normalize(head(text(raw)))", "tc = normalize(tanh(text(caption)))"]"#;
        assert_eq!(found(heads), ["text, text#2"]);
    }

    #[test]
    fn inputs_of_a_shared_tower_may_be_computed_differently() {
        let projected = r#"
            use: ["towers", "nn"],
            parts: { "a": "linear(D, D)", "b": "linear(D, D)", "tower": "deep(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
            body: ["tr = normalize(tower(a(text(raw))))", "tc = normalize(tower(tanh(b(other(caption)))))"]"#;
        assert_eq!(found(projected), ["tower, tower#2"]);
    }

    #[test]
    fn different_weights_are_not_batched() {
        let two = r#"
            parts: { "other": "text_transformer(vocab: 512, context: T, width: 48, layers: 2, heads: 4, out: D)" },
            body: ["tc = normalize(other(caption))"]"#;
        assert_eq!(found(two), NOTHING);
        assert_eq!(places(&variant("clip_shapes", ""), "batching"), NOTHING);
    }

    #[test]
    fn one_application_after_the_other_is_not_batched() {
        let chained = r#"
            use: ["towers"],
            parts: { "tower": "deep(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
            body: ["tr = normalize(text(raw))", "tc = normalize(tower(other(caption)))"]"#;
        assert_eq!(found(chained), NOTHING);
    }

    #[test]
    fn what_couples_samples_ends_the_batch() {
        let centred = r#"
            use: ["towers"],
            parts: { "tower": "centred(D)", "other": "text_transformer(vocab: 512, context: T, width: 32, layers: 1, heads: 2, out: D)" },
            body: ["tr = normalize(tower(text(raw)))", "tc = normalize(tower(other(caption)))"]"#;
        assert_eq!(found(centred), NOTHING);
        // Behind a tower that is batched, the product before the mean is still part of the batch.
        let behind = r#"
            use: ["towers"],
            parts: { "tower": "centred(D)" },
            body: ["tr = normalize(tower(text(raw)))", "tc = normalize(tower(text(caption)))"]"#;
        assert_eq!(found(behind), ["text + tower, text#2 + tower#2"]);
    }
}

mod push_down {
    use super::{NOTHING, check, check_graph, places, variant};
    use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, TensorType};
    use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
    use alip_compiler::ops::{Dot, Op, Real};

    #[test]
    fn the_last_block_computes_what_is_read() {
        let of = |base| places(&variant(base, ""), "push_down");
        let texts = ["text.transformer.resblocks.1", "text#2.transformer.resblocks.1"];
        assert_eq!(of("alip_tiny"), ["visual.transformer.resblocks.1", texts[0], texts[1]]);
        assert_eq!(of("alip_tiny_rn"), ["text.transformer.resblocks.0", "text#2.transformer.resblocks.0"]);
        let done = check(&variant("alip_tiny", ""), &["push_down", "batching"]);
        assert_eq!(done.iter().map(|done| done.rewrite).collect::<Vec<_>>(), ["push_down", "batching"]);
        // Of two blocks per tower, one keeps a third of its first product and little else.
        assert!(done[0].after.flops * 4 < done[0].before.flops * 3, "{done:?}");
        assert_eq!(done[1].before, done[0].after);
    }

    #[test]
    fn a_second_reader_of_the_sequence_stops_it() {
        let read = variant("clip_shapes", r#"metrics: { "all": "mean(visual.h)" }"#);
        assert_eq!(places(&read, "push_down"), ["text.transformer.resblocks.1"]);
        let read = variant("clip_shapes", r#"metrics: { "one": "mean(visual.h[:, 1])" }"#);
        assert_eq!(places(&read, "push_down"), ["visual.transformer.resblocks.2", "text.transformer.resblocks.1"]);
    }

    #[test]
    fn what_is_found_depends_on_what_is_read() {
        let found = |read: &str, mask: &str| {
            let module = format!("reader(read: '{read}', mask: '{mask}', context: T, out: D)");
            let entries =
                format!(r#"use: ["towers"], parts: {{ "tower": "{module}" }}, body: ["tr = normalize(tower(raw))"]"#);
            let places = places(&variant("clip_shapes", &entries), "push_down");
            places.into_iter().filter(|place| place.starts_with("tower")).collect::<Vec<_>>()
        };
        for mask in ["none", "causal"] {
            assert_eq!(found("end", mask), ["tower.transformer.resblocks.1"], "{mask}");
            assert_eq!(found("mean", mask), NOTHING, "{mask}");
        }
        assert_eq!(found("two", "none"), ["tower.transformer.resblocks.1"]);
    }

    /// A program of one attention layer over `x [3, 6, 8]` that is read by `pick`.
    /// An index counts the samples that are left: parts of a batch are not joined across it.
    #[test]
    fn parts_of_a_batch_are_picked_from_by_their_own_index() {
        let start = |graph: &mut Graph, sizes: [u64; 3]| {
            let mut b = Builder::new(graph, OriginId::default());
            let h = b.input("h", TensorType::f32(sizes)).unwrap();
            let e = b.input("e", TensorType::new(DType::I32, [2])).unwrap();
            let w = b.state("w", TensorType::f32([8, 6])).unwrap();
            let x = b.dot(h, w, Dot { batch: vec![], contract: vec![(2, 0)] }).unwrap();
            (b.tanh(x).unwrap(), e)
        };
        let mut halves = Graph::new("halves");
        let (x, e) = start(&mut halves, [4, 5, 8]);
        let mut b = Builder::new(&mut halves, OriginId::default());
        for (name, from, to) in [("a", 0, 2), ("b", 2, 4)] {
            let half = b.slice_axis(x, 0, from, to).unwrap();
            let picked = b.gather(half, e, 1).unwrap();
            b.graph.outputs.insert(name.into(), picked);
        }
        check_graph(&halves, "push_down").expect("it fires");

        let mut turned = Graph::new("turned");
        let (x, e) = start(&mut turned, [5, 4, 8]);
        let mut b = Builder::new(&mut turned, OriginId::default());
        let x = b.transpose(x, &[1, 0, 2]).unwrap();
        let half = b.slice_axis(x, 0, 0, 2).unwrap();
        let picked = b.gather(half, e, 1).unwrap();
        b.graph.outputs.insert("a".into(), picked);
        check_graph(&turned, "push_down").expect("it fires");
    }

    fn layer(rows: Rows, causal: bool, pick: impl Fn(&mut Builder<'_>, NodeId, NodeId) -> NodeId) -> Graph {
        let mut graph = Graph::new("layer");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let x = b.input("x", TensorType::f32([3, 6, 8])).unwrap();
        let at = b.input("at", TensorType::new(DType::I32, [3])).unwrap();
        let project = |b: &mut Builder<'_>, x: NodeId, path: &str| {
            let w = b.state(path, TensorType::f32([8, 8])).unwrap();
            b.dot(x, w, Dot { batch: vec![], contract: vec![(2, 0)] }).unwrap()
        };
        let packed = b.state("qkv", TensorType::f32([8, 24])).unwrap();
        let packed = b.dot(x, packed, Dot { batch: vec![], contract: vec![(2, 0)] }).unwrap();
        let packed = b.reshape(packed, [3, 6, 3, 2, 4].into()).unwrap();
        let mut inputs: Vec<NodeId> = Vec::new();
        for nth in 0..3 {
            let one = b.slice_axis(packed, 2, nth, nth + 1).unwrap();
            inputs.push(b.reshape(one, [3, 6, 2, 4].into()).unwrap());
        }
        if rows == Rows::Lengths {
            inputs.push(at);
        }
        let attention = Attention { result: AttentionResult::Out, rows, causal, scale: Real(0.5) };
        let mixed = b.op(Op::Attention(attention), &inputs).unwrap();
        let mixed = b.reshape(mixed, [3, 6, 8].into()).unwrap();
        let mixed = project(&mut b, mixed, "out");
        let h = b.add(x, mixed).unwrap();
        let y = pick(&mut b, h, at);
        let y = b.tanh(y).unwrap();
        graph.outputs.insert("y".into(), y);
        graph
    }

    #[test]
    fn attention_keeps_the_queries_that_are_read() {
        for rows in [Rows::Dense, Rows::Lengths] {
            for causal in [false, true] {
                let found = |pick: &dyn Fn(&mut Builder<'_>, NodeId, NodeId) -> NodeId| {
                    check_graph(&layer(rows, causal, pick), "push_down").expect("it fires")
                };
                // First, one in the middle, some, the last, every other; and one per sample.
                for (start, end) in [(0, 1), (3, 4), (1, 3), (5, 6)] {
                    let graph = found(&|b, h, _| b.slice_axis(h, 1, start, end).unwrap());
                    let attention = |node: &alip_compiler::ir::Node| matches!(node.op, Op::Attention(_));
                    let node = graph.nodes().iter().find(|node| attention(node)).expect("still attention");
                    let [q, k] = [0, 1].map(|operand| graph.shape(node.inputs[operand]).size(1));
                    assert_eq!((q, k), (end - start, if causal { end } else { 6 }), "{start}..{end}, causal {causal}");
                }
                let graph = found(&|b, h, at| b.gather(h, at, 1).unwrap());
                let lengths = |node: &alip_compiler::ir::Node| match &node.op {
                    Op::Attention(attention) => (attention.rows == Rows::Lengths, attention.causal),
                    _ => (false, false),
                };
                let lengths = graph.nodes().iter().map(lengths).find(|(lengths, _)| *lengths);
                assert_eq!(lengths.is_some(), causal || rows == Rows::Lengths);
                assert!(!lengths.is_some_and(|(_, causal)| causal));
            }
        }
        let strided = |b: &mut Builder<'_>, h, _| b.slice(h, &[0, 0, 0], &[3, 6, 8], &[1, 2, 1]).unwrap();
        assert!(check_graph(&layer(Rows::Dense, false, strided), "push_down").is_some());
    }

    #[test]
    fn a_mean_over_positions_reads_them_all() {
        let mean = |b: &mut Builder<'_>, h, _| b.mean(h, &[1], false).unwrap();
        assert!(check_graph(&layer(Rows::Dense, true, mean), "push_down").is_none());
    }
}

mod streaming {
    use super::{NOTHING, check, check_graph, places, variant};
    use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, TensorType};
    use alip_compiler::ops::{Dot, Op, ReduceKind};

    #[test]
    fn contrastive_losses_store_no_logits() {
        for base in ["alip_tiny", "clip_shapes"] {
            let done = check(&variant(base, ""), &["streaming"]);
            assert_eq!(done.len(), 1, "{base}");
            assert!(!done[0].places.is_empty(), "{base}: {done:?}");
        }
        let all = ["push_down", "batching", "streaming"];
        let done = check(&variant("alip_tiny_rn", ""), &all);
        assert_eq!(done.iter().map(|done| done.rewrite).collect::<Vec<_>>(), all);
    }

    #[test]
    fn logits_that_something_else_reads_stay() {
        let read = r#"body: ["logits = x @ transpose(tr)"], metrics: { "largest": "reduce_max(logits)" }"#;
        assert_eq!(places(&variant("clip_shapes", read), "streaming"), NOTHING);
    }

    /// The same program with the operands of its last product rounded to 16 bits.
    fn narrow(graph: &Graph) -> Graph {
        let last = graph.ids().rfind(|id| matches!(graph.node(*id).op, Op::Dot(_))).unwrap();
        let mut new = graph.successor();
        let mut moved = Vec::new();
        for id in graph.ids() {
            let node = graph.node(id);
            let mut inputs: Vec<NodeId> = node.inputs.iter().map(|input| moved[input.index()]).collect();
            if id == last {
                let mut b = Builder::new(&mut new, node.origin);
                inputs.iter_mut().for_each(|input| *input = b.cast(*input, DType::Bf16).unwrap());
            }
            moved.push(new.add(node.op.clone(), &inputs, node.origin).unwrap());
        }
        new.take_names(graph, |id: NodeId| Some(moved[id.index()]));
        new
    }

    /// A program over logits [5, 6], times and divided by a scalar each, that are read in some way.
    fn logits(read: impl Fn(&mut Builder<'_>, NodeId) -> Vec<NodeId>) -> Graph {
        let mut graph = Graph::new("logits");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let a = b.input("a", TensorType::f32([5, 3])).unwrap();
        let w = b.state("w", TensorType::f32([3, 4])).unwrap();
        let t = b.state("t", TensorType::f32([6, 4])).unwrap();
        let (s, r) = (b.state("s", TensorType::f32([])).unwrap(), b.state("r", TensorType::f32([])).unwrap());
        let x = b.dot(a, w, Dot { batch: vec![], contract: vec![(1, 0)] }).unwrap();
        let product = b.dot(x, t, Dot { batch: vec![], contract: vec![(1, 1)] }).unwrap();
        let logits = b.mul(product, s).unwrap();
        let logits = b.div(logits, r).unwrap();
        for (nth, y) in read(&mut b, logits).into_iter().enumerate() {
            b.graph.outputs.insert(format!("y{nth}"), y);
        }
        graph
    }

    fn target(b: &mut Builder<'_>, count: u64) -> NodeId {
        let name = format!("target{count}");
        b.input(&name, TensorType::new(DType::I32, [count])).unwrap()
    }

    #[test]
    fn every_reader_that_can_do_without_does() {
        type Read = fn(&mut Builder<'_>, NodeId) -> Vec<NodeId>;
        let readers: [(&str, Read); 6] = [
            ("rows", |b, x| vec![b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap()]),
            ("columns", |b, x| vec![b.op(Op::LogSumExp { axes: vec![0] }, &[x]).unwrap()]),
            ("transposed", |b, x| {
                let x = b.transpose(x, &[1, 0]).unwrap();
                vec![b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap()]
            }),
            ("cross entropy", |b, x| {
                let target = target(b, 5);
                vec![b.op(Op::CrossEntropy, &[x, target]).unwrap()]
            }),
            ("both cross entropies", |b, x| {
                let (rows, columns) = (target(b, 5), target(b, 6));
                let y = b.op(Op::CrossEntropy, &[x, rows]).unwrap();
                let x = b.transpose(x, &[1, 0]).unwrap();
                vec![y, b.op(Op::CrossEntropy, &[x, columns]).unwrap()]
            }),
            ("an entry of each row", |b, x| {
                let target = target(b, 5);
                let lse = b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap();
                let own = b.gather(x, target, 1).unwrap();
                vec![b.sub(lse, own).unwrap()]
            }),
        ];
        for (name, read) in readers {
            let Some(graph) = check_graph(&logits(read), "streaming") else { panic!("{name} still stores its logits") };
            let stored = |id: &NodeId| [[5, 6], [6, 5]].iter().any(|sizes| graph.shape(*id).sizes() == *sizes);
            assert_eq!(graph.ids().find(stored), None, "{name}");
        }
        let kept: [(&str, Read); 3] = [
            ("an output", |b, x| vec![b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap(), x]),
            ("a sum", |b, x| {
                let lse = b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap();
                vec![lse, b.reduce(ReduceKind::Sum, x, &[1], false).unwrap()]
            }),
            ("softmax", |b, x| vec![b.op(Op::Softmax { axes: vec![1] }, &[x]).unwrap()]),
        ];
        for (name, read) in kept {
            assert!(check_graph(&logits(read), "streaming").is_none(), "{name}");
        }
        // What is rounded to 16 bits before it is multiplied is that, and no factor of it.
        let rounded = narrow(&logits(|b, x| vec![b.op(Op::LogSumExp { axes: vec![1] }, &[x]).unwrap()]));
        assert!(check_graph(&rounded, "streaming").is_none(), "16-bit operands");
    }
}

mod projections {
    use super::{NOTHING, check, check_graph, places, variant};
    use alip_compiler::ir::{Builder, Graph, NodeId, OriginId, TensorType};
    use alip_compiler::ops::Op;

    #[test]
    fn keys_and_values_of_the_same_rows_are_one_product() {
        assert_eq!(places(&variant("alip_tiny_rn", ""), "projections"), ["visual.attnpool"]);
        assert_eq!(places(&variant("alip_tiny", ""), "projections"), NOTHING); // written as one
        let done = check(&variant("alip_tiny_rn", ""), &["projections"]);
        assert_eq!(done[0].before.flops, done[0].after.flops);
        assert!(done[0].after.bytes < done[0].before.bytes, "{done:?}");
    }

    /// How many products with a parameter are left of those that `build` makes of `x`, `y` `[6, 64]`.
    fn left(build: impl Fn(&mut Builder<'_>, NodeId, NodeId) -> Vec<NodeId>) -> usize {
        let mut graph = Graph::new("projections");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let [x, y] = ["x", "y"].map(|name| b.input(name, TensorType::f32([6, 64])).unwrap());
        let outputs = build(&mut b, x, y);
        graph.outputs = outputs.into_iter().enumerate().map(|(at, id)| (at.to_string(), id)).collect();
        let rewritten = check_graph(&graph, "projections").unwrap_or(graph);
        let given = |id: NodeId| matches!(rewritten.node(id).op, Op::Input { .. });
        rewritten.nodes().iter().filter(|node| matches!(node.op, Op::Dot(_)) && given(node.inputs[0])).count()
    }

    /// A weight of so many rows, and a bias.
    fn parameters(b: &mut Builder<'_>, name: &str, rows: u64) -> [NodeId; 2] {
        let bias = b.state(&format!("{name}.bias"), TensorType::f32([rows])).unwrap();
        [b.state(&format!("{name}.weight"), TensorType::f32([rows, 64])).unwrap(), bias]
    }

    /// `x w^T`.
    fn times(b: &mut Builder<'_>, x: NodeId, weight: NodeId) -> NodeId {
        let weight = b.transpose(weight, &[1, 0]).unwrap();
        b.matmul(x, weight).unwrap()
    }

    /// `x w^T + b`.
    fn linear(b: &mut Builder<'_>, x: NodeId, name: &str, rows: u64) -> NodeId {
        let [weight, bias] = parameters(b, name, rows);
        let product = times(b, x, weight);
        b.add(product, bias).unwrap()
    }

    fn bare(b: &mut Builder<'_>, x: NodeId, name: &str, rows: u64) -> NodeId {
        let weight = b.state(&format!("{name}.weight"), TensorType::f32([rows, 64])).unwrap();
        times(b, x, weight)
    }

    /// A product of two values.
    fn product(b: &mut Builder<'_>, x: NodeId, y: NodeId) -> NodeId {
        let y = b.transpose(y, &[1, 0]).unwrap();
        b.matmul(x, y).unwrap()
    }

    #[test]
    fn what_is_alike_and_read_from_memory_is_joined() {
        let of = |first: fn(&mut Builder<'_>, NodeId) -> NodeId, second: fn(&mut Builder<'_>, NodeId) -> NodeId| {
            left(|b, x, _| {
                let (first, second) = (first(b, x), second(b, x));
                vec![product(b, first, first), product(b, second, second)]
            })
        };
        assert_eq!(of(|b, x| linear(b, x, "k", 64), |b, x| linear(b, x, "q", 64)), 1);
        assert_eq!(of(|b, x| bare(b, x, "k", 64), |b, x| bare(b, x, "q", 128)), 1);
        assert_eq!(of(|b, x| linear(b, x, "k", 64), |b, x| bare(b, x, "q", 64)), 2, "one has a bias");
        assert_eq!(of(|b, x| linear(b, x, "k", 3), |b, x| linear(b, x, "q", 64)), 2, "12 bytes have no neighbour");
        let pointwise = |b: &mut Builder<'_>, x| {
            let y = linear(b, x, "q", 64);
            b.exp(y).unwrap()
        };
        assert_eq!(of(|b, x| linear(b, x, "k", 64), pointwise), 2, "the exponential is an epilogue");
        let other_way = |b: &mut Builder<'_>, x| {
            let weight = b.state("q.weight", TensorType::f32([64, 64])).unwrap();
            b.matmul(x, weight).unwrap()
        };
        assert_eq!(of(|b, x| bare(b, x, "k", 64), other_way), 2, "one lies the other way round");
    }

    #[test]
    fn other_operands_and_results_stay_apart() {
        let two = left(|b, x, y| {
            let (q, k) = (linear(b, x, "q", 64), linear(b, y, "k", 64));
            vec![product(b, q, k)]
        });
        assert_eq!(two, 2);
        let yielded = left(|b, x, _| {
            let (q, k) = (linear(b, x, "q", 64), linear(b, x, "k", 64));
            vec![product(b, q, k), q]
        });
        assert_eq!(yielded, 2);
        // Of x q and k are joined, of y k and v cannot be: k has one place.
        let shared = left(|b, x, y| {
            let [k, q, v] = ["k", "q", "v"].map(|name| parameters(b, name, 64));
            let of = |(x, [weight, bias]): (NodeId, [NodeId; 2])| {
                let one = times(b, x, weight);
                let one = b.add(one, bias).unwrap();
                product(b, one, one)
            };
            [(x, k), (x, q), (y, k), (y, v)].map(of).to_vec()
        });
        assert_eq!(shared, 3);
    }
}
