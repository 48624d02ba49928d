//! The functions of the language: what they compute, and what they say when they cannot.

use std::collections::BTreeMap;

use alip_compiler::ir::{Builder, DType, Dim, Graph, NodeId, OriginId, Shape, Subscript, TensorType, Value, interpret};
use alip_compiler::ops::OpError;
use alip_compiler::ops::functions::{ArgValue, function, functions};

/// A graph with some inputs; element `i` of an input is `i`, shifted by ten per input.
struct Bench {
    graph: Graph,
    inputs: BTreeMap<String, Value>,
}

impl Bench {
    fn new() -> Bench {
        Bench { graph: Graph::new("bench"), inputs: BTreeMap::new() }
    }

    fn builder(&mut self) -> Builder<'_> {
        Builder::new(&mut self.graph, OriginId::default())
    }

    fn input(&mut self, ty: TensorType) -> NodeId {
        let name = format!("x{}", self.inputs.len());
        let data = (0..ty.shape.elements()).map(|i| (i + 10 * self.inputs.len() as u64) as f64).collect();
        self.inputs.insert(name.clone(), Value::new(ty.clone(), data));
        self.builder().input(&name, ty).unwrap()
    }

    fn f32<const N: usize>(&mut self, shape: [u64; N]) -> NodeId {
        self.input(TensorType::f32(shape))
    }

    fn value(&mut self, id: NodeId) -> Value {
        self.graph.outputs.insert("y".into(), id);
        interpret(&self.graph, &self.inputs, &BTreeMap::new()).unwrap().outputs.remove("y").unwrap()
    }

    fn call(&mut self, name: &str, positional: &[ArgValue], named: &[(&str, ArgValue)]) -> Result<NodeId, OpError> {
        let named = named.iter().map(|(name, value)| (name.to_string(), value.clone())).collect();
        function(name).unwrap().call(&mut self.builder(), positional.to_vec(), named)
    }
}

use ArgValue::{Bool, Float, Int, Ints, Tensor};

fn text(value: &str) -> ArgValue {
    ArgValue::Str(value.into())
}

fn message(result: Result<NodeId, OpError>) -> String {
    let error = result.expect_err("should be refused");
    match error.help {
        Some(help) => format!("{}; {help}", error.message),
        None => error.message,
    }
}

#[test]
fn names_are_distinct_and_examples_call_their_function() {
    for (i, function) in functions().iter().enumerate() {
        assert!(functions()[..i].iter().all(|other| other.name != function.name), "{} twice", function.name);
        assert!(function.example.contains(function.name), "{}: {}", function.name, function.example);
        assert!(function.doc.ends_with('.'), "{}: {}", function.name, function.doc);
    }
    assert_eq!(function("sum").unwrap().signature(), "sum(x, axis: none, keep: false)");
    assert_eq!(function("einsum").unwrap().signature(), "einsum(pattern, x...)");
}

#[test]
fn functions_compute_what_they_say() {
    let cases = [
        ("sum", vec![2, 3], vec![Int(-1)], vec![3.0, 12.0]),
        ("sum", vec![2, 3], vec![], vec![15.0]),
        ("mean", vec![2, 3], vec![Ints(vec![0])], vec![1.5, 2.5, 3.5]),
        ("prod", vec![2, 2], vec![Int(0)], vec![0.0, 3.0]),
        ("reduce_max", vec![2, 3], vec![Int(0), Bool(true)], vec![3.0, 4.0, 5.0]),
        ("reduce_min", vec![2, 3], vec![Int(1)], vec![0.0, 3.0]),
        ("argmax", vec![2, 3], vec![], vec![2.0, 2.0]),
        ("min", vec![3], vec![Int(1)], vec![0.0, 1.0, 1.0]),
        ("max", vec![3], vec![Float(1.5)], vec![1.5, 1.5, 2.0]),
        ("pow", vec![4], vec![Int(2)], vec![0.0, 1.0, 4.0, 9.0]),
        ("pow", vec![3], vec![Int(5)], vec![0.0, 1.0, 32.0]),
        ("transpose", vec![2, 3], vec![], vec![0.0, 3.0, 1.0, 4.0, 2.0, 5.0]),
        ("reshape", vec![2, 2], vec![Ints(vec![4])], vec![0.0, 1.0, 2.0, 3.0]),
        ("broadcast_to", vec![2, 1], vec![Ints(vec![2, 2])], vec![0.0, 0.0, 1.0, 1.0]),
        ("pad", vec![2], vec![Int(0), Int(1), Int(2)], vec![0.0, 0.0, 1.0, 0.0, 0.0]),
        ("cast", vec![3], vec![text("bool")], vec![0.0, 1.0, 1.0]),
        ("is_finite", vec![2], vec![], vec![1.0, 1.0]),
    ];
    for (name, shape, arguments, expected) in cases {
        let mut bench = Bench::new();
        let x = bench.input(TensorType::f32(shape.into_iter().collect::<Shape>()));
        let y = bench.call(name, &[vec![Tensor(x)], arguments].concat(), &[]).unwrap();
        assert_eq!(bench.value(y).data, expected, "{name}");
    }
}

#[test]
fn sources_compute_what_they_say() {
    let mut bench = Bench::new();
    let eye = bench.call("eye", &[Int(2)], &[]).unwrap();
    assert_eq!(bench.value(eye).data, [1.0, 0.0, 0.0, 1.0]);
    let columns = bench.call("iota", &[Ints(vec![2, 2])], &[("axis", Int(-1))]).unwrap();
    assert_eq!(bench.value(columns).data, [0.0, 1.0, 0.0, 1.0]);
    let full = bench.call("full", &[Ints(vec![2]), Float(0.5)], &[]).unwrap();
    assert_eq!(bench.value(full).data, [0.5, 0.5]);
}

#[test]
fn gather_puts_the_index_where_the_axis_was() {
    let mut bench = Bench::new();
    let x = bench.f32([2, 3, 2]);
    let index = bench.builder().iota(Shape::from([2]), 0).unwrap();
    // Sample b, position index[b] = b.
    let y = bench.call("gather", &[Tensor(x), Tensor(index)], &[("axis", Int(1)), ("batch", Int(1))]).unwrap();
    assert_eq!(bench.value(y), Value::new(TensorType::f32([2, 2]), vec![0.0, 1.0, 8.0, 9.0]));
    // Without a batch the index stands in the place of the axis.
    let y = bench.call("gather", &[Tensor(x), Tensor(index)], &[("axis", Int(2))]).unwrap();
    assert_eq!(bench.value(y).data, (0..12).map(f64::from).collect::<Vec<_>>());
    let y = bench.call("gather", &[Tensor(x), Tensor(index)], &[("axis", Int(1))]).unwrap();
    assert_eq!(bench.value(y).data, [0.0, 1.0, 2.0, 3.0, 6.0, 7.0, 8.0, 9.0]);
    let rows = bench.call("take", &[Tensor(x), Tensor(index)], &[]).unwrap();
    assert_eq!(bench.value(rows).ty.shape, Shape::from([2, 3, 2]));
}

#[test]
fn stack_and_concat() {
    let mut bench = Bench::new();
    let (a, b) = (bench.f32([2]), bench.f32([2]));
    let y = bench.call("stack", &[Tensor(a), Tensor(b)], &[("axis", Int(-1))]).unwrap();
    assert_eq!(bench.value(y), Value::new(TensorType::f32([2, 2]), vec![0.0, 10.0, 1.0, 11.0]));
    let y = bench.call("concat", &[Tensor(a), Tensor(b)], &[]).unwrap();
    assert_eq!(bench.value(y).data, [0.0, 1.0, 10.0, 11.0]);
}

#[test]
fn subscripts_follow_python() {
    let range = |start, stop, step| Subscript::Range { start, stop, step };
    let cases = [
        (vec![Subscript::At(1)], vec![3], vec![3.0, 4.0, 5.0]),
        (vec![range(None, None, None), Subscript::At(-1)], vec![2], vec![2.0, 5.0]),
        (vec![Subscript::Rest, Subscript::At(0)], vec![2], vec![0.0, 3.0]),
        (vec![Subscript::At(0), range(Some(1), None, None)], vec![2], vec![1.0, 2.0]),
        (vec![Subscript::At(0), range(None, Some(-1), None)], vec![2], vec![0.0, 1.0]),
        (vec![Subscript::At(0), range(None, None, Some(2))], vec![2], vec![0.0, 2.0]),
        (vec![Subscript::At(0), range(Some(1), Some(99), None)], vec![2], vec![1.0, 2.0]),
    ];
    for (items, shape, expected) in cases {
        let mut bench = Bench::new();
        let x = bench.f32([2, 3]);
        let y = bench.builder().subscript(x, &items).unwrap();
        let shape: Shape = shape.into_iter().map(|size: u64| Dim::from(size)).collect();
        assert_eq!(bench.value(y), Value::new(TensorType::f32(shape), expected), "{items:?}");
    }
    let mut bench = Bench::new();
    let x = bench.f32([2, 3]);
    let refused = [
        (vec![Subscript::At(2)], "index 2 is outside of dimension 0 (2) of [2, 3]"),
        (
            vec![range(Some(2), Some(1), None)],
            "the slice `2:1` of dimension 0 (2) of [2, 3] is empty; a slice runs from its first position up to, but without, \
             its last; both count from 0, negative ones from the end",
        ),
        (vec![range(None, None, Some(0))], "the step of a slice is at least 1, not 0"),
        (vec![Subscript::At(0); 3], "3 positions for the 2 dimensions of [2, 3]"),
        (vec![Subscript::Rest; 2], "`..` stands twice in one index"),
    ];
    for (items, expected) in refused {
        assert_eq!(message(bench.builder().subscript(x, &items)), expected);
    }
}

/// Sums over every assignment of positions to axes.
fn naive_einsum(pattern: &str, operands: &[Value], sizes: &BTreeMap<&str, usize>) -> Vec<f64> {
    let (left, right) = pattern.split_once("->").unwrap();
    let names: Vec<&str> = sizes.keys().copied().collect();
    let offset = |axes: &str, at: &[usize]| {
        let position = |axis: &str| names.iter().position(|name| *name == axis).unwrap();
        axes.split_whitespace().fold(0, |offset, axis| offset * sizes[axis] + at[position(axis)])
    };
    let mut out = vec![0.0; right.split_whitespace().map(|axis| sizes[axis]).product()];
    for point in 0..sizes.values().product::<usize>() {
        let mut rest = point;
        let at: Vec<usize> = sizes
            .values()
            .map(|size| {
                let i = rest % size;
                rest /= size;
                i
            })
            .collect();
        let factors = left.split(',').zip(operands).map(|(axes, value)| value.data[offset(axes, &at)]);
        out[offset(right, &at)] += factors.product::<f64>();
    }
    out
}

#[test]
fn einsum_sums_products_by_axis_name() {
    let sizes = BTreeMap::from([("b", 2), ("l", 3), ("d", 4), ("e", 5), ("h", 2)]);
    let patterns = [
        "b l d, e d -> b l e",
        "b l d -> b d",
        "b l d -> d l b",
        "b l d -> ",
        "b h l d, b h e d -> b h l e",
        "b d, b d -> b",
        "b d, b d -> b d",
        "b, d -> d b",
        "b l, l d, d e -> e b",
        "b l, l d, d e -> b",
        "l b d, d e b -> b e l",
        "d b l, d -> l b",
    ];
    for pattern in patterns {
        let mut bench = Bench::new();
        let (left, _) = pattern.split_once("->").unwrap();
        let shape = |axes: &str| axes.split_whitespace().map(|axis| sizes[axis] as u64).collect::<Shape>();
        let nodes: Vec<NodeId> = left.split(',').map(|axes| bench.input(TensorType::f32(shape(axes)))).collect();
        let y = bench.builder().einsum(pattern, &nodes).unwrap();
        let operands: Vec<Value> = bench.inputs.values().cloned().collect();
        let used =
            sizes.iter().filter(|(axis, _)| pattern.contains(**axis)).map(|(axis, size)| (*axis, *size)).collect();
        let expected = naive_einsum(pattern, &operands, &used);
        assert_eq!(bench.value(y).data, expected, "{pattern}");
        assert_eq!(*bench.graph.shape(y), shape(pattern.split_once("->").unwrap().1), "{pattern}");
    }
}

#[test]
fn einsum_ellipsis_stands_for_further_axes() {
    let mut bench = Bench::new();
    let (x, w) = (bench.f32([2, 3, 4]), bench.f32([5, 4]));
    let y = bench.builder().einsum("... d, e d -> ... e", &[x, w]).unwrap();
    let z = bench.builder().einsum("b l d, e d -> b l e", &[x, w]).unwrap();
    assert_eq!(bench.value(y), bench.value(z));
}

#[test]
fn rearrange_splits_orders_and_merges() {
    let cases = [
        ("b (h d) -> h b d", vec![2, 4], vec![("h", 2)], vec![2, 2, 2], vec![0., 1., 4., 5., 2., 3., 6., 7.]),
        ("a b -> b a", vec![2, 2], vec![], vec![2, 2], vec![0., 2., 1., 3.]),
        ("a b -> (b a)", vec![2, 2], vec![], vec![4], vec![0., 2., 1., 3.]),
        ("a -> a 1", vec![2], vec![], vec![2, 1], vec![0., 1.]),
        ("a 1 -> a", vec![2, 1], vec![], vec![2], vec![0., 1.]),
        ("... a -> a ...", vec![2, 2], vec![], vec![2, 2], vec![0., 2., 1., 3.]),
        ("(a b) -> a b", vec![4], vec![("a", 2), ("b", 2)], vec![2, 2], vec![0., 1., 2., 3.]),
    ];
    for (pattern, shape, sizes, expected_shape, expected) in cases {
        let mut bench = Bench::new();
        let x = bench.input(TensorType::f32(shape.into_iter().collect::<Shape>()));
        let named: Vec<(&str, ArgValue)> = sizes.iter().map(|(name, size)| (*name, Int(*size as i64))).collect();
        let y = bench.call("rearrange", &[Tensor(x), text(pattern)], &named).unwrap();
        let ty = TensorType::f32(expected_shape.into_iter().collect::<Shape>());
        assert_eq!(bench.value(y), Value::new(ty, expected), "{pattern}");
    }
}

#[test]
fn matmul_follows_numpy() {
    let cases: [(&[u64], &[u64], &[u64]); 7] = [
        (&[2, 3], &[3, 4], &[2, 4]),
        (&[3], &[3, 4], &[4]),
        (&[2, 3], &[3], &[2]),
        (&[3], &[3], &[]),
        (&[5, 2, 3], &[3, 4], &[5, 2, 4]),
        (&[5, 2, 3], &[5, 3, 4], &[5, 2, 4]),
        (&[2, 3], &[5, 3, 4], &[5, 2, 4]),
    ];
    for (a, b, expected) in cases {
        let mut bench = Bench::new();
        let shape = |sizes: &[u64]| sizes.iter().copied().collect::<Shape>();
        let (left, right) = (bench.input(TensorType::f32(shape(a))), bench.input(TensorType::f32(shape(b))));
        let y = bench.builder().matmul(left, right).unwrap();
        assert_eq!(*bench.graph.shape(y), shape(expected), "{a:?} @ {b:?}");
    }
}

#[test]
fn errors_show_both_shapes_with_dimension_names() {
    let named = |dims: &[(&str, u64)]| -> TensorType {
        let dim = |(name, size): &(&str, u64)| if name.is_empty() { Dim::from(*size) } else { Dim::named(*size, name) };
        TensorType::f32(dims.iter().map(dim).collect::<Shape>())
    };
    let mut bench = Bench::new();
    let x = bench.input(named(&[("B", 8), ("T", 16), ("", 48)]));
    let y = bench.input(named(&[("B", 8), ("", 17), ("", 48)]));
    let ids = bench.input(TensorType::new(DType::I32, Shape::from([8])));
    let (tensor, other, ids) = (Tensor(x), Tensor(y), Tensor(ids));
    let one = |bench: &mut Bench, name: &str, rest: &[ArgValue], named: &[(&str, ArgValue)]| {
        message(bench.call(name, &[std::slice::from_ref(&tensor), rest].concat(), named))
    };
    let both = |bench: &mut Bench, pattern: &str| {
        message(bench.call("einsum", &[text(pattern), tensor.clone(), other.clone()], &[]))
    };
    let found = [
        message(bench.builder().add(x, y)),
        message(bench.builder().matmul(x, y)),
        one(&mut bench, "sum", &[Int(3)], &[]),
        one(&mut bench, "sum", &[], &[("axes", Int(1))]),
        one(&mut bench, "sum", &[text("x")], &[]),
        one(&mut bench, "sum", &[Int(0), Bool(true), Int(3)], &[]),
        message(bench.call("sum", &[], &[])),
        one(&mut bench, "sum", &[Int(0)], &[("axis", Int(1))]),
        one(&mut bench, "sum", &[Ints(vec![0, -3])], &[]),
        one(&mut bench, "take", std::slice::from_ref(&other), &[]),
        one(&mut bench, "reshape", &[Ints(vec![8, 5])], &[]),
        one(&mut bench, "broadcast_to", &[Ints(vec![1 << 30, 8, 16, 48])], &[]),
        message(bench.call("min", &[tensor.clone(), ids.clone()], &[])),
        message(bench.call("concat", &[tensor.clone(), other.clone()], &[])),
        one(&mut bench, "cast", &[text("f64")], &[]),
        both(&mut bench, "b t d, b s d, b t s"),
        both(&mut bench, "b t d, b t d -> b"),
        both(&mut bench, "b t d -> b"),
        both(&mut bench, "b b d, b s d -> b s"),
        both(&mut bench, "b t d, b s d -> b q"),
        both(&mut bench, "b t, b s d -> b s"),
        both(&mut bench, "b t d, b s d -> b s s"),
        both(&mut bench, "b t d, b s+1 d -> b"),
        one(&mut bench, "rearrange", &[text("b t (h d) -> b h t d")], &[]),
        one(&mut bench, "rearrange", &[text("b t (h d) -> b h t d")], &[("h", Int(5))]),
        one(&mut bench, "rearrange", &[text("b t (h d) -> b h t d")], &[("heads", Int(4))]),
        one(&mut bench, "rearrange", &[text("b t (h d) -> b h t")], &[("h", Int(4))]),
        one(&mut bench, "rearrange", &[text("b t d -> b t e d")], &[]),
        one(&mut bench, "rearrange", &[text("b t d -> b t d")], &[("t", Int(15))]),
        one(&mut bench, "rearrange", &[text("b (t d -> b t d")], &[]),
    ];
    let expected = include_str!("functions_errors.txt");
    let found = found.join("\n") + "\n";
    if std::env::var_os("ALIP_BLESS").is_some() {
        std::fs::write(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/functions_errors.txt"), &found).unwrap();
    }
    assert_eq!(found, expected, "run with ALIP_BLESS=1 to accept the new messages");
}
