//! The matrix of similarities of a contrastive loss is not stored.

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
