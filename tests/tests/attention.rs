//! Attention and its gradients on all devices against the interpreter, at shapes of the published models and where blocks
//! of queries and keys, masks and segments end at odd places; and that the kernels are the ones that were meant.

use std::collections::BTreeMap;

use alip_compiler::autodiff::gradients;
use alip_compiler::ir::{Builder, DType, Graph, NodeId, OriginId, Shape, TensorType, Value, interpret};
use alip_compiler::ops::Op;
use alip_compiler::ops::attention::{Attention, AttentionResult, Rows};
use alip_plan::bounds::{F32, Roundings, assert_within, bound, largest};
use alip_plan::kernel::Loop;
use alip_plan::{Plan, Real, Target, Tiles, philox};
use alip_runtime::device::{DeviceOptions, choose};
use alip_tests::compiled::{Values, devices, model, plan, rounded, run, run_on, stores};

/// What is attended to.
#[derive(Clone)]
struct Case {
    name: &'static str,
    rows: Rows,
    causal: bool,
    /// Samples, queries and keys of each; packed: 1, and all queries and keys.
    sizes: [u64; 3],
    heads: u64,
    d: u64,
    e: u64,
    /// Lengths, or edges among the queries and then among the keys.
    extents: Vec<i32>,
    /// Queries, keys and values are parts of one input.
    packed: bool,
    /// Of everything but lse and delta.
    dtype: DType,
}

impl Case {
    fn dense(name: &'static str, causal: bool, sizes: [u64; 3], [heads, d, e]: [u64; 3]) -> Case {
        Case { name, rows: Rows::Dense, causal, sizes, heads, d, e, extents: vec![], packed: false, dtype: DType::F32 }
    }

    /// Self-attention on a packed projection.
    fn packed(self) -> Case {
        Case { packed: true, ..self }
    }

    fn of(self, name: &'static str, dtype: DType) -> Case {
        Case { name, dtype, ..self }
    }

    fn segments(name: &'static str, queries: &[i32], keys: &[i32], [all_queries, all_keys]: [u64; 2]) -> Case {
        let edges = |lengths: &[i32]| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            std::iter::once(0).chain(ends).collect::<Vec<i32>>()
        };
        let extents = [edges(queries), edges(keys)].concat();
        let dense = Case::dense(name, true, [1, all_queries, all_keys], [8, 64, 64]);
        Case { rows: Rows::Segments, extents, ..dense }
    }

    fn scale(&self) -> f64 {
        f64::from((self.d as f32).sqrt().recip())
    }

    fn op(&self, result: AttentionResult) -> Op {
        Op::Attention(Attention { result, rows: self.rows, causal: self.causal, scale: Real(self.scale()) })
    }

    /// The shape of so many rows.
    fn shape(&self, rows: u64, tail: &[u64]) -> TensorType {
        let lead: &[u64] = if self.rows == Rows::Segments { &[rows] } else { &[self.sizes[0], rows] };
        TensorType::new(self.dtype, [lead, tail].concat().into_iter().collect::<Shape>())
    }

    /// Yields `out` and the gradients of `sum(out g)`: of `x`, or of `q`, `k` and `v`.
    fn graph(&self) -> Graph {
        let mut graph = Graph::new("main");
        let mut b = Builder::new(&mut graph, OriginId::default());
        let [_, queries, keys] = self.sizes;
        let (h, d, e) = (self.heads, self.d, self.e);
        let input = |b: &mut Builder<'_>, name: &str, ty| b.input(name, ty).expect("an input has no rule");
        let (wrt, [q, k, v]) = if self.packed {
            let x = input(&mut b, "x", self.shape(queries, &[3 * h * d]));
            let axis = b.graph.shape(x).rank() - 1;
            let part = |b: &mut Builder<'_>, part: u64| {
                let slice = b.slice_axis(x, axis, part * h * d, (part + 1) * h * d).expect("a third");
                b.reshape(slice, self.shape(queries, &[h, d]).shape).expect("as many")
            };
            (vec![("x", x)], [part(&mut b, 0), part(&mut b, 1), part(&mut b, 2)])
        } else {
            let all = [("q", queries, d), ("k", keys, d), ("v", keys, e)];
            let all = all.map(|(name, rows, width)| (name, input(&mut b, name, self.shape(rows, &[h, width]))));
            (all.to_vec(), all.map(|(_, id)| id))
        };
        let count = self.extents.len() as u64;
        let extents: Option<Shape> = match self.rows {
            Rows::Dense => None,
            Rows::Lengths => Some([count].into()),
            Rows::Segments => Some([2, count / 2].into()),
        };
        let extents = extents.map(|shape| input(&mut b, "extents", TensorType::new(DType::I32, shape)));
        let g = input(&mut b, "g", self.shape(queries, &[h, e]));
        let inputs: Vec<NodeId> = [q, k, v].into_iter().chain(extents).collect();
        let out = b.op(self.op(AttentionResult::Out), &inputs).expect("attention");
        let [wide, g] = [out, g].map(|x| b.cast(x, DType::F32).expect("a float"));
        let weighted = b.mul(wide, g).expect("of one shape");
        let axes: Vec<usize> = (0..b.graph.shape(out).rank()).collect();
        let loss = b.reduce(alip_compiler::ops::ReduceKind::Sum, weighted, &axes, false).expect("a sum");
        let wrt_ids: Vec<NodeId> = wrt.iter().map(|(_, id)| *id).collect();
        let found = gradients(&mut graph, loss, &wrt_ids).unwrap_or_else(|errors| panic!("{errors}"));
        graph.outputs.insert("out".into(), out);
        for ((name, _), gradient) in wrt.iter().zip(found) {
            graph.outputs.insert(format!("d{name}"), gradient.expect("all matter"));
        }
        graph
    }

    /// Uniform in [-1, 1), as f32, or in steps of 2^-7, which types of 16 bits hold.
    fn values(&self, graph: &Graph) -> Values {
        let named = graph.inputs.iter().enumerate().map(|(index, (name, id))| {
            let ty = graph.ty(*id).clone();
            let data = if name == "extents" {
                self.extents.iter().map(|x| f64::from(*x)).collect()
            } else {
                let draw = |i: u64| philox::uniform(philox::philox4x32([i as u32, index as u32, 0, 0], [11, 13])[0]);
                let round = |x: f64| if self.dtype == DType::F32 { x } else { (x * 128.0).round() / 128.0 };
                (0..ty.shape.elements()).map(|i| round(2.0 * f64::from(draw(i)) - 1.0)).collect()
            };
            (name.clone(), Value::new(ty, data))
        });
        rounded(&named.collect())
    }

    /// The largest absolute errors of `out` and of the gradients of q, k and v: those of f32, and of types of 16 bits the
    /// rounding of the result and of the `out` from which delta is computed.
    ///
    /// A score is a sum of D products, wrong by its roundings times the sum of their absolute values, which is at most `m`.
    /// A weight is the exponential of the difference of a score and a logarithm of such exponentials: relatively as wrong as
    /// these two are absolutely, so that `1 + 2 m` multiplies what is weighed. Results are sums of weighed terms: over keys
    /// the weights sum to 1, over queries to at most `mass`.
    fn bounds(&self, values: &Values) -> [f64; 4] {
        let norm = |name: &str, width: u64| {
            let rows = values[name].data.chunks(width as usize);
            rows.map(|row| row.iter().map(|x| x * x).sum::<f64>().sqrt()).fold(0.0, f64::max)
        };
        let [q, k, v] = if self.packed { ["x"; 3] } else { ["q", "k", "v"] };
        let (scale, m) = (self.scale(), self.scale() * norm(q, self.d) * norm(k, self.d));
        let slope = 2.0 * scale * norm("g", self.e) * norm(v, self.e);
        let [_, queries, keys] = self.sizes;
        let mass = self.mass(values);
        let roundings = Roundings::reduction((2 * (self.d + self.e + queries + keys) + 64) as usize);
        let stored = |size| match self.dtype.format() {
            Some(format) if format != F32 => bound(format, Roundings::reduction(2), size),
            _ => 0.0,
        };
        [1.0, slope, slope * mass, mass].map(|size| bound(F32, roundings, size * (1.0 + 2.0 * m)) + stored(size))
    }

    /// The largest sum of one key's weights over all queries: what the gradient of a value is where `g` is 1.
    fn mass(&self, values: &Values) -> f64 {
        let graph = self.graph();
        let mut values = values.clone();
        values.get_mut("g").expect("all have it").data.fill(1.0);
        let outputs = interpret(&graph, &values, &BTreeMap::new()).expect("the interpreter runs it").outputs;
        if !self.packed {
            return largest(&outputs["dv"].data);
        }
        let width = (3 * self.heads * self.d) as usize;
        let of_values = outputs["dx"].data.chunks(width).flat_map(|row| &row[2 * width / 3..]);
        of_values.fold(0.0, |most: f64, x| most.max(x.abs()))
    }

    fn check(
        &self,
        outputs: &BTreeMap<String, Vec<f64>>,
        expected: &BTreeMap<String, Value>,
        on: &str,
        values: &Values,
    ) {
        let [out, q, k, v] = self.bounds(values);
        for (name, value) in expected {
            let bound = match name.as_str() {
                "out" => out,
                "dq" => q,
                "dk" => k,
                "dv" => v,
                _ => q.max(k).max(v),
            };
            assert_within(&outputs[name], &value.data, bound)
                .unwrap_or_else(|wrong| panic!("{}, {on}: `{name}` {wrong}", self.name));
        }
    }
}

fn cases() -> Vec<Case> {
    let ragged = [1, 77, 5, 0, 32];
    let text = Case::dense("text tower", true, [2, 77, 77], [8, 64, 64]).packed();
    let segments = Case::segments("segments", &ragged, &ragged, [128, 128]).packed();
    let many = Case::dense("blocks of many heads", true, [3, 100, 300], [4, 16, 24]);
    vec![
        text.clone().of("text tower in bf16", DType::Bf16),
        segments.clone().of("segments in bf16", DType::Bf16),
        many.clone().of("blocks in f16", DType::F16),
        Case::dense("blocks of one head", true, [1, 130, 700], [1, 16, 8]).of("blocks of one head in f16", DType::F16),
        Case::dense("image tower", false, [2, 50, 50], [12, 64, 64]).packed(),
        text,
        Case::dense("contrastive loss", false, [1, 300, 300], [1, 512, 512]),
        Case::dense("blocks of one head", true, [1, 130, 700], [1, 16, 8]),
        many,
        Case::dense("one query", true, [3, 1, 77], [8, 64, 64]),
        Case {
            rows: Rows::Lengths,
            extents: vec![1, 77, 30, 0, 99],
            ..Case::dense("lengths", false, [5, 1, 77], [8, 64, 64])
        },
        segments,
        Case::segments("segments, one query each", &[1; 5], &ragged, [6, 128]),
        Case::segments("segments with fewer keys", &[20, 3, 0, 9], &[5, 90, 4, 0], [40, 99]),
    ]
}

fn attention_launches(plan: &Plan) -> usize {
    let of_attention = |index: u32| matches!(plan.kernels[index as usize].description, Loop::Attention(_));
    plan.programs["main"].steps.iter().filter(|step| of_attention(step.kernel)).count()
}

#[test]
fn devices_agree_with_the_interpreter() {
    for case in cases() {
        let graph = case.graph();
        let values = case.values(&graph);
        let expected = interpret(&graph, &values, &BTreeMap::new()).expect("the interpreter runs it").outputs;
        let model = model(case.name, &graph, &Values::new());
        for (device, target) in devices().into_iter().filter(|(_, target)| stores(target, &graph)) {
            // Generated kernels also with smaller workgroups.
            let tiles = target.tiles.map(|tiles| Tiles { attention: 16, ..tiles });
            let other = tiles.map(|tiles| Target { tiles: Some(tiles), ..target.clone() });
            for target in [Some(target), other].into_iter().flatten() {
                let (outputs, _) = run(device, plan(&model, target, true), "main", &values, &Values::new());
                case.check(&outputs, &expected, device, &values);
            }
        }
        let unfused = plan(&model, Target::cpu(), false);
        assert_eq!(attention_launches(&unfused), 5, "{}", case.name);
        let (outputs, _) = run("cpu", unfused, "main", &values, &Values::new());
        case.check(&outputs, &expected, "cpu, not fused", &values);
    }
}

/// Kernels for NVIDIA cards: those of 16 bits on tensor cores, others a row at a time.
#[cfg(target_os = "linux")]
#[test]
fn emulated_cuda_agrees_with_the_interpreter() {
    let of = |case: &Case| {
        let graph = case.graph();
        let plan = plan(&model(case.name, &graph, &Values::new()), Target::sm_80(), true);
        (case.clone(), graph, plan)
    };
    let all: Vec<(Case, Graph, Plan)> = cases().iter().map(of).collect();
    let Some(device) = alip_tests::cuda::device_for(all.iter().map(|(_, _, plan)| plan)) else { return };
    for (case, graph, plan) in all {
        let values = case.values(&graph);
        let expected = interpret(&graph, &values, &BTreeMap::new()).expect("the interpreter runs it").outputs;
        let (outputs, _) = run_on(device(), plan, "main", &values, &Values::new());
        case.check(&outputs, &expected, "emulated cuda", &values);
    }
}

/// Scores are never stored, a packed projection is neither taken apart nor its gradient put together.
#[test]
fn a_call_is_two_launches() {
    for case in cases() {
        let graph = case.graph();
        let plan = plan(&model(case.name, &graph, &Values::new()), Target::cpu(), true);
        assert_eq!(attention_launches(&plan), 2, "{}", case.name);
        // Beside attention the sum of g and out over the width.
        assert_eq!(plan.programs["main"].steps.len(), 3, "{}", case.name);
        let [samples, queries, keys] = case.sizes;
        let most = plan.programs["main"].buffers.iter().map(|buffer| buffer.elements()).max();
        let widest = (queries.max(keys)) * case.heads * case.d.max(case.e) * if case.packed { 3 } else { 1 };
        assert_eq!(most, Some(samples * widest), "{}", case.name);
    }
}

#[test]
fn the_number_of_threads_does_not_change_a_bit() {
    for case in cases() {
        let graph = case.graph();
        let values = case.values(&graph);
        let plan = plan(&model(case.name, &graph, &Values::new()), Target::cpu(), true);
        let with = |threads| {
            let device = choose("cpu", &DeviceOptions { threads: Some(threads), ..DeviceOptions::default() })
                .expect("always there")
                .device;
            run_on(device, plan.clone(), "main", &values, &Values::new()).0
        };
        let one = with(1);
        for threads in [2, 3] {
            assert!(one == with(threads), "{}: {threads} threads", case.name);
        }
    }
}

/// Edges that fall, lie outside or are negative mean the same on host devices, and nothing leaves its buffer.
#[test]
fn edges_from_bad_data_are_clamped() {
    let good = Case::segments("bad edges", &[9, 9, 9], &[9, 9, 9], [30, 30]).packed();
    for edges in [[0, 20, 10, 25], [5, 9, 40, 41], [-7, 4, 4, 1 << 30], [i32::MIN, i32::MAX, 0, 3]] {
        let case = Case { extents: [edges, edges].concat(), ..good.clone() };
        let graph = case.graph();
        let values = case.values(&graph);
        let expected = interpret(&graph, &values, &BTreeMap::new()).expect("the interpreter runs it").outputs;
        let model = model(case.name, &graph, &Values::new());
        for (device, target) in devices() {
            let (outputs, _) = run(device, plan(&model, target, true), "main", &values, &Values::new());
            // A shader looks for a row's segment as if edges rose; what it finds where they do not is not promised.
            if device != "wgpu" {
                case.check(&outputs, &expected, device, &values);
            }
        }
    }
}
