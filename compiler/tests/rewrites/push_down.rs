//! What is not read is not computed.

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

/// The search for parts once never ended on two that begin at the same place and cannot be joined.
#[test]
fn parts_that_begin_alike_and_do_not_meet() {
    let mut graph = Graph::new("strided");
    let mut b = Builder::new(&mut graph, OriginId::default());
    let x = b.input("x", TensorType::f32([12, 4])).unwrap();
    let w = b.state("w", TensorType::f32([4, 4])).unwrap();
    let y = b.dot(x, w, Dot { batch: vec![], contract: vec![(1, 0)] }).unwrap();
    for (name, step) in [("a", 4), ("b", 6)] {
        let picked = b.slice(y, &[0, 0], &[12, 4], &[step, 1]).unwrap();
        let picked = b.tanh(picked).unwrap();
        b.graph.outputs.insert(name.into(), picked);
    }
    check_graph(&graph, "push_down").expect("it fires");
}

/// A program of one attention layer over `x [3, 6, 8]` that is read by `pick`.
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
