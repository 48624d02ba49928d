//! Prefix liveness with packing: exact in f64, whatever the texts and the bucket; and what must stop it.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, Shape, TensorType, Value, interpret, verify};
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_compiler::ops::{Op, ReduceKind};
use alip_compiler::transform::packing::{Found, buckets, find};
use alip_plan::bounds::{assert_within, largest};
use alip_plan::{Real, Target};
use alip_tests::compiled::Values;
use alip_tests::packing::{lengths, packing_inputs};

const N: u64 = 5;
const T: u64 = 16;
const WIDTH: u64 = 8;
const VOCABULARY: u64 = 12;
/// Sums in another order, in f64.
const EXACT: f64 = 1e-12;

/// How a tower of causal blocks departs from the plain one.
#[derive(Clone, Copy, Default, PartialEq)]
struct Tower {
    /// The last block computes only what is read, as after push-down.
    pushed: bool,
    not_causal: bool,
    mean_pooled: bool,
    second_reader: bool,
    second_index: bool,
    /// The index comes from a parameter.
    unknown_index: bool,
}

struct Made<'g> {
    b: Builder<'g>,
    params: Vec<(String, NodeId)>,
}

impl Made<'_> {
    fn param(&mut self, name: &str, shape: &[u64]) -> NodeId {
        let ty = TensorType::f32(shape.iter().copied().collect::<Shape>());
        let id = self.b.state(name, ty).unwrap();
        self.params.push((name.into(), id));
        id
    }

    /// (x - mean) / sqrt(var + eps) * weight, over the last dimension.
    fn layer_norm(&mut self, x: NodeId, name: &str) -> NodeId {
        let weight = self.param(name, &[WIDTH]);
        let b = &mut self.b;
        let last = b.graph.shape(x).rank() - 1;
        let mean = b.mean(x, &[last], true).unwrap();
        let centred = b.sub(x, mean).unwrap();
        let square = b.mul(centred, centred).unwrap();
        let variance = b.mean(square, &[last], true).unwrap();
        let eps = b.scalar(1e-5).unwrap();
        let safe = b.add(variance, eps).unwrap();
        let deviation = b.sqrt(safe).unwrap();
        let normal = b.div(centred, deviation).unwrap();
        b.mul(normal, weight).unwrap()
    }

    fn linear(&mut self, x: NodeId, name: &str, out: u64) -> NodeId {
        let width = self.b.graph.shape(x).0.last().unwrap().size;
        let (weight, bias) = (self.param(name, &[width, out]), self.param(&format!("{name}.bias"), &[out]));
        let product = self.b.matmul(x, weight).unwrap();
        self.b.add(product, bias).unwrap()
    }

    /// `[.., 2 WIDTH]` of two heads each of queries, keys and values, packed as `multihead_attention` does.
    fn heads(&mut self, x: NodeId, name: &str, parts: u64) -> Vec<NodeId> {
        let packed = self.linear(x, name, parts * WIDTH);
        let lead = self.b.graph.shape(packed).rank() - 1;
        let mut shape = self.b.graph.shape(packed).clone();
        shape.0.truncate(lead);
        shape.0.extend([parts, 2, WIDTH / 2].map(Into::into));
        let split = self.b.reshape(packed, shape.clone()).unwrap();
        shape.0.remove(lead);
        let part = |part| {
            let one = self.b.slice_axis(split, lead, part, part + 1).unwrap();
            self.b.reshape(one, shape.clone()).unwrap()
        };
        (0..parts).map(part).collect()
    }

    fn join(&mut self, mixed: NodeId) -> NodeId {
        let mut shape = self.b.graph.shape(mixed).clone();
        shape.0.truncate(shape.rank() - 2);
        shape.0.push(WIDTH.into());
        self.b.reshape(mixed, shape).unwrap()
    }

    fn attention(&mut self, rows: Rows, causal: bool, inputs: &[NodeId]) -> NodeId {
        let op = Attention { result: AttentionResult::Out, rows, causal, scale: Real(0.5) };
        let mixed = self.b.op(Op::Attention(op), inputs).unwrap();
        self.join(mixed)
    }

    fn mlp(&mut self, x: NodeId, name: &str) -> NodeId {
        let normal = self.layer_norm(x, &format!("{name}.ln_2"));
        let hidden = self.linear(normal, &format!("{name}.fc"), 3 * WIDTH);
        let curved = self.b.tanh(hidden).unwrap();
        let out = self.linear(curved, &format!("{name}.proj"), WIDTH);
        self.b.add(x, out).unwrap()
    }
}

/// Two blocks over embedded ids, read at the place of the largest id; the loss weighs what is read unevenly.
fn tower(kind: Tower) -> (Graph, Vec<(String, NodeId)>) {
    let mut graph = Graph::new("train");
    let mut made = Made { b: Builder::new(&mut graph, OriginId::default()), params: Vec::new() };
    let ids = made.b.input("ids", TensorType::new(DType::I32, [N, T])).unwrap();
    let weights = made.b.input("weights", TensorType::f32([N, WIDTH])).unwrap();
    let table = made.param("embedding", &[VOCABULARY, WIDTH]);
    let positions = made.param("positions", &[T, WIDTH]);
    let by_sample = made.b.reshape(weights, [N, 1, WIDTH].into()).unwrap();
    let mut x = made.b.gather(table, ids, 0).unwrap();
    x = made.b.add(x, positions).unwrap();
    // Something that varies by sample alone.
    let shifted = made.b.add(x, by_sample).unwrap();
    x = made.layer_norm(shifted, "ln_pre");
    let index = match kind.unknown_index {
        true => {
            let state = made.b.state("at", TensorType::f32([N, T])).unwrap();
            made.b.argmax(state, 1).unwrap()
        }
        false => made.b.argmax(ids, 1).unwrap(),
    };
    let normal = made.layer_norm(x, "0.ln_1");
    let qkv = made.heads(normal, "0.in", 3);
    let mixed = made.attention(Rows::Dense, !kind.not_causal, &qkv);
    let out = made.linear(mixed, "0.out", WIDTH);
    x = made.b.add(x, out).unwrap();
    x = made.mlp(x, "0");
    let mut y = match kind.pushed {
        true => last_block_pushed(&mut made, x, index),
        false => {
            let normal = made.layer_norm(x, "1.ln_1");
            let qkv = made.heads(normal, "1.in", 3);
            let mixed = made.attention(Rows::Dense, true, &qkv);
            let out = made.linear(mixed, "1.out", WIDTH);
            let h = made.b.add(x, out).unwrap();
            let h = made.mlp(h, "1");
            if kind.mean_pooled { made.b.mean(h, &[1], false).unwrap() } else { made.b.gather(h, index, 1).unwrap() }
        }
    };
    y = made.layer_norm(y, "ln_final");
    if kind.second_reader {
        let all = made.b.mean(x, &[1], false).unwrap();
        y = made.b.add(y, all).unwrap();
    }
    if kind.second_index {
        let first = made.b.reduce(ReduceKind::Max, ids, &[1], false).unwrap();
        let other = made.b.gather(x, first, 1).unwrap();
        y = made.b.add(y, other).unwrap();
    }
    let weighed = made.b.mul(y, weights).unwrap();
    let loss = made.b.reduce(ReduceKind::Sum, weighed, &[0, 1], false).unwrap();
    let params = made.params;
    graph.outputs.insert("y".into(), y);
    graph.outputs.insert("loss".into(), loss);
    (graph, params)
}

/// Queries, projection and MLP of one row per sample; keys and values of all, of which the query sees those up to its own.
fn last_block_pushed(made: &mut Made<'_>, x: NodeId, index: NodeId) -> NodeId {
    let normal = made.layer_norm(x, "1.ln_1");
    let keys = made.heads(normal, "1.in_kv", 2);
    let read = made.b.gather(normal, index, 1).unwrap();
    let read = made.b.reshape(read, [N, 1, WIDTH].into()).unwrap();
    let query = made.heads(read, "1.in_q", 1)[0];
    let one = made.b.constant(1.0, DType::I32).unwrap();
    let length = made.b.add(index, one).unwrap();
    let mixed = made.attention(Rows::Lengths, false, &[query, keys[0], keys[1], length]);
    let mixed = made.b.reshape(mixed, [N, WIDTH].into()).unwrap();
    let out = made.linear(mixed, "1.out", WIDTH);
    let row = made.b.gather(x, index, 1).unwrap();
    let h = made.b.add(row, out).unwrap();
    made.mlp(h, "1")
}

/// Numbers that look random and are the same everywhere.
fn numbers(seed: u64, count: u64) -> Vec<f64> {
    let draw = |i: u64| alip_plan::philox::philox4x32([i as u32, seed as u32, 7, 0], [1, 2])[0];
    (0..count).map(|i| f64::from(draw(i)) / f64::from(u32::MAX) * 2.0 - 1.0).collect()
}

fn state(graph: &Graph) -> Values {
    let mut state = Values::new();
    for node in graph.nodes() {
        if let Op::State { path, ty } = &node.op {
            let seed = path.bytes().fold(17u64, |hash, byte| hash.wrapping_mul(31).wrapping_add(byte.into()));
            state.insert(path.to_string(), Value::new(ty.clone(), numbers(seed, ty.shape.elements())));
        }
    }
    state
}

/// The end of a text, the largest id, at these places; with `again` it stands at the last place too. Padding is 0, which
/// is also a token inside.
fn ids(ends: [u64; N as usize], again: bool) -> Value {
    let end = VOCABULARY as f64 - 1.0;
    let mut data: Vec<f64> = (0..N * T).map(|i| ((i * 7 + i / T) % (VOCABULARY - 1)) as f64).collect();
    for (sample, place) in ends.iter().enumerate() {
        let text = &mut data[sample * T as usize..][..T as usize];
        text[*place as usize] = end;
        text[*place as usize + 1..].fill(0.0);
        if again {
            text[T as usize - 1] = end;
        }
    }
    Value::new(TensorType::new(DType::I32, [N, T]), data)
}

/// Outputs of a program and gradients of its loss.
fn evaluate(graph: &Graph, params: &[String], inputs: &Values, state: &Values) -> BTreeMap<String, Vec<f64>> {
    let mut graph = graph.clone();
    let node = |path: &String| {
        let reads = |id: &NodeId| matches!(&graph.node(*id).op, Op::State { path: own, .. } if **own == **path);
        graph.ids().find(reads).expect("the program reads it")
    };
    let wrt: Vec<NodeId> = params.iter().map(node).collect();
    let loss = graph.outputs["loss"];
    let grads = gradients(&mut graph, loss, &wrt).unwrap();
    graph.outputs.extend(params.iter().zip(grads).map(|(name, grad)| (format!("grads.{name}"), grad.unwrap())));
    verify(&graph).unwrap();
    let outputs = interpret(&graph, inputs, state).unwrap().outputs;
    outputs.into_iter().map(|(name, value)| (name, value.data)).collect()
}

fn check_exact(what: &str, found: &BTreeMap<String, Vec<f64>>, expected: &BTreeMap<String, Vec<f64>>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>());
    // The gradient of a key bias is zero: only its size beside that of the others says whether it is.
    let scale = expected.values().map(|values| largest(values)).fold(0.0, f64::max);
    for (name, expected) in expected {
        let bound = EXACT * largest(expected).max(1e-3 * scale);
        assert_within(&found[name], expected, bound).unwrap_or_else(|why| panic!("{what}, {name}: {why}"));
    }
}

fn pushed(pushed: bool) -> Tower {
    Tower { pushed, ..Tower::default() }
}

fn found(graph: &Graph) -> Found {
    find(graph, &[])
}

#[test]
fn packed_towers_are_exact() {
    for kind in [pushed(false), pushed(true)] {
        let (graph, params) = tower(kind);
        let params: Vec<String> = params.into_iter().map(|(name, _)| name).collect();
        let found = found(&graph);
        assert_eq!(found.stopped, []);
        let groups = found.groups();
        let state = state(&graph);
        let texts = [
            ("empty texts", [0; 5], false),
            ("full texts", [15; 5], false),
            ("mixed", [3, 0, 15, 7, 1], false),
            ("the end repeats", [3, 9, 14, 7, 1], true),
            ("the end first and repeated", [0, 9, 0, 7, 15], true),
        ];
        for (what, ends, again) in texts {
            let mut inputs = Values::from([("ids".to_string(), ids(ends, again))]);
            inputs.insert("weights".into(), Value::new(TensorType::f32([N, WIDTH]), numbers(3, N * WIDTH)));
            let expected = evaluate(&graph, &params, &inputs, &state);
            let lengths = lengths(&found.lengths(&graph).unwrap(), &inputs);
            assert_eq!(lengths, [ends.map(|end| end as i32 + 1).to_vec()], "{what}");
            let live = lengths[0].iter().map(|length| *length as u64).sum::<u64>();
            let rows = [live, live + 3]
                .into_iter()
                .map(|rows| vec![rows])
                .chain(buckets(&groups, &Target::cpu().packing.trained));
            for rows in rows.filter(|rows| rows[0] >= live) {
                let packed = found.pack(&graph, &rows).unwrap();
                let mut inputs = inputs.clone();
                inputs.extend(packing_inputs(&groups, &lengths, &rows, &packed));
                let found = evaluate(&packed, &params, &inputs, &state);
                check_exact(&format!("{what}, {rows:?} rows"), &found, &expected);
            }
        }
    }
}

#[test]
fn packed_towers_compute_on_packed_rows_only() {
    for kind in [pushed(false), pushed(true)] {
        let packed = found(&tower(kind).0).pack(&tower(kind).0, &[24]).unwrap();
        let live = alip_compiler::ir::eliminate_dead(&packed).unwrap().graph;
        for node in live.nodes().iter().filter(|node| node.ty.dtype.is_float()) {
            let sizes = node.ty.shape.sizes();
            assert!(!(sizes.contains(&N) && sizes.contains(&T)), "{} {}", node.op.name(), node.ty);
        }
    }
}

#[test]
fn what_stops_packing() {
    let check = |kind: Tower, why: &[&str]| {
        let found = found(&tower(kind).0);
        assert!(found.is_empty());
        let stopped: Vec<&str> = found.stopped.iter().map(|stopped| stopped.why.as_str()).collect();
        assert_eq!(stopped, why);
    };
    let plain = Tower::default();
    let not_causal = "`attention` f32[5, 16, 2, 4]: positions see later ones: the attention is not causal";
    check(Tower { not_causal: true, ..plain }, &[not_causal]);
    check(Tower { not_causal: true, pushed: true, ..plain }, &[not_causal]);
    check(Tower { mean_pooled: true, ..plain }, &[]);
    check(Tower { unknown_index: true, ..plain }, &[]);
    let elsewhere = "`add` f32[5, 16, 8]: all its positions are read elsewhere too";
    check(Tower { second_reader: true, ..plain }, &[elsewhere]);
    check(Tower { second_index: true, ..plain }, &[elsewhere, elsewhere]);
}
