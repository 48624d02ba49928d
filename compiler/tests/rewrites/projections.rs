//! Products of one value with several parameters become one.

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
