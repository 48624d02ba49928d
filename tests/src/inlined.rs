//! A model written out by hand, as it were: one equation per operation, no modules, and every name drawn at random.
//!
//! What the compiler finds in such a spec it can only have found by analysis.

use std::collections::{HashMap, HashSet};
use std::fmt::Write;

use alip_compiler::ir::{Graph, Model, NodeId, Shape};
use alip_compiler::ops::{ConvKind, Op, ReduceKind, ScalarOp};
use alip_compiler::spec::GraphSpec;
use alip_plan::{StateKind, philox};

/// The spec that means what the forward part of a model's `train` means; the loss is the value named `loss`, and optimiser,
/// schedule and the other settings of `train` are those of `spec`. `seed` draws the names.
///
/// # Panics
/// An operation that the language cannot spell; every forward graph comes from the language.
pub fn inlined(model: &Model, spec: &GraphSpec, seed: u32) -> String {
    let graph = &model.programs["train"];
    let mut writer = Writer { graph, names: HashMap::new(), taken: HashSet::new(), seed };
    let mut text = String::new();
    let name = writer.draw();
    let _ = writeln!(
        text,
        "Graph(\n    name: \"{name}\",\n    use: [\"optim/adamw\", \"schedule/one_cycle\"],\n    inputs: {{"
    );
    for id in graph.inputs.values() {
        let (name, ty) = (writer.name(*id), graph.ty(*id));
        let dtype = format!("{:?}", ty.dtype);
        let _ = writeln!(text, "        \"{name}\": (dtype: {dtype}, shape: \"{}\"),", sizes(&ty.shape));
    }
    let (mut params, mut state) = (String::new(), String::new());
    for id in graph.ids() {
        let Op::State { path, ty } = &graph.node(id).op else { continue };
        let (name, shape) = (writer.name(id), sizes(&ty.shape));
        let decl = &model.state[&**path];
        match decl.kind {
            StateKind::Param => {
                let clamp = decl.clamp.map_or(String::new(), |(low, high)| format!(", clamp: (\"{low}\", \"{high}\")"));
                let _ = writeln!(params, "        \"{name}\": (shape: \"{shape}\", init: \"normal(0.02)\"{clamp}),");
            }
            _ => {
                let dtype = format!("{:?}", ty.dtype);
                let _ = writeln!(state, "        \"{name}\": (shape: \"{shape}\", init: \"1\", dtype: {dtype}),");
            }
        }
    }
    let _ = write!(text, "    }},\n    params: {{\n{params}    }},\n    state: {{\n{state}    }},\n    body: [\n");
    for id in graph.ids() {
        if let Some(equation) = writer.equation(id) {
            let _ = writeln!(text, "        \"{} = {equation}\",", writer.name(id));
        }
    }
    for (path, id) in &graph.updates {
        let read = |of: &NodeId| matches!(&graph.node(*of).op, Op::State { path: read, .. } if **read == **path);
        let of = graph.ids().find(read).expect("state that is updated is read");
        let _ = writeln!(text, "        \"{}' = {}\",", writer.name(of), writer.operand(*id));
    }
    let loss = writer.name(graph.values["loss"]);
    let train = spec.train.as_ref().expect("a model that trains");
    let optimizer = train.optimizer.as_ref().map_or("adamw".into(), ToString::to_string);
    let schedule = train.schedule.as_ref().map_or("one_cycle(max_lr: 1e-3)".into(), ToString::to_string);
    let _ = write!(
        text,
        "    ],\n    metrics: {{ \"{loss}\": \"{loss}\" }},\n    train: (loss: \"{loss}\", optimizer: \"{optimizer}\", \
         schedule: \"{schedule}\", clip_grad_norm: 1.0),\n)\n"
    );
    text
}

fn sizes(shape: &Shape) -> String {
    let sizes: Vec<String> = shape.sizes().iter().map(u64::to_string).collect();
    format!("[{}]", sizes.join(", "))
}

fn list(numbers: &[usize]) -> String {
    format!("{numbers:?}")
}

struct Writer<'g> {
    graph: &'g Graph,
    names: HashMap<NodeId, String>,
    taken: HashSet<String>,
    seed: u32,
}

impl Writer<'_> {
    /// A name that means nothing: `q` and six letters.
    fn draw(&mut self) -> String {
        loop {
            let words = philox::philox4x32(philox::counter(self.taken.len() as u64, 0), [self.seed, 7]);
            let letters = (0..6).map(|i| char::from(b'a' + (words[i / 2] >> (8 * (i % 2)) & 0xff) as u8 % 26));
            let name: String = std::iter::once('q').chain(letters).collect();
            if self.taken.insert(name.clone()) {
                return name;
            }
            self.seed = self.seed.wrapping_add(1);
        }
    }

    fn name(&mut self, id: NodeId) -> String {
        if !self.names.contains_key(&id) {
            let name = self.draw();
            self.names.insert(id, name);
        }
        self.names[&id].clone()
    }

    /// A node as an operand of a pointwise operation: constants, also repeated ones, as numbers.
    fn operand(&mut self, id: NodeId) -> String {
        match &self.graph.node(id).op {
            Op::Const { value, .. } => format!("({:e})", value.0),
            Op::Broadcast { .. } if self.constant(self.graph.node(id).inputs[0]) => {
                self.operand(self.graph.node(id).inputs[0])
            }
            _ => self.name(id),
        }
    }

    fn constant(&self, id: NodeId) -> bool {
        matches!(self.graph.node(id).op, Op::Const { .. })
    }

    /// The right side of a node's equation; none for what has none.
    fn equation(&mut self, id: NodeId) -> Option<String> {
        let graph = self.graph;
        let node = graph.node(id);
        let rank = |id: NodeId| graph.shape(id).rank();
        let x: Vec<String> = node.inputs.iter().map(|input| self.operand(*input)).collect();
        Some(match &node.op {
            Op::Input { .. } | Op::State { .. } | Op::Const { .. } => return None,
            Op::Broadcast { .. } if self.constant(node.inputs[0]) => return None,
            Op::Pointwise(op) => scalar(*op, &x),
            Op::Reduce { kind, axes } => match kind {
                ReduceKind::Sum => format!("sum({}, axis: {})", x[0], list(axes)),
                ReduceKind::Prod => format!("prod({}, axis: {})", x[0], list(axes)),
                ReduceKind::Max => format!("reduce_max({}, axis: {})", x[0], list(axes)),
                ReduceKind::Min => format!("reduce_min({}, axis: {})", x[0], list(axes)),
                ReduceKind::ArgMax => format!("argmax({}, axis: {})", x[0], axes[0]),
            },
            Op::Dot(dot) => {
                let (left, right) = (rank(node.inputs[0]), rank(node.inputs[1]));
                let letter = |n: usize| char::from(b'a' + n as u8);
                let of_left: Vec<char> = (0..left).map(letter).collect();
                let mut of_right: Vec<char> = (left..left + right).map(letter).collect();
                for (l, r) in dot.batch.iter().chain(&dot.contract) {
                    of_right[*r] = of_left[*l];
                }
                let summed: Vec<char> = dot.contract.iter().map(|(l, _)| of_left[*l]).collect();
                let batch: Vec<char> = dot.batch.iter().map(|(l, _)| of_left[*l]).collect();
                let free = |axes: &[char]| -> Vec<char> {
                    axes.iter().copied().filter(|c| !summed.contains(c) && !batch.contains(c)).collect()
                };
                let out = [batch.clone(), free(&of_left), free(&of_right)].concat();
                let spaced = |axes: &[char]| axes.iter().map(char::to_string).collect::<Vec<_>>().join(" ");
                let pattern = format!("{}, {} -> {}", spaced(&of_left), spaced(&of_right), spaced(&out));
                format!("einsum('{pattern}', {}, {})", x[0], x[1])
            }
            Op::Conv2d(conv) => {
                assert_eq!(conv.kind, ConvKind::Forward, "gradients come later");
                format!("conv2d({}, {}, stride: {}, padding: {})", x[0], x[1], conv.stride, conv.padding)
            }
            Op::Reshape { shape } => format!("reshape({}, {})", x[0], sizes(shape)),
            Op::Transpose { perm } => format!("transpose({}, {})", x[0], list(perm)),
            Op::Broadcast { shape, dims } => {
                let mut aligned = vec![1; shape.rank()];
                dims.iter().zip(graph.shape(node.inputs[0]).sizes()).for_each(|(dim, size)| aligned[*dim] = size);
                format!("broadcast_to(reshape({}, {aligned:?}), {})", x[0], sizes(shape))
            }
            Op::Slice { start, end, step } => {
                let ranges =
                    start.iter().zip(end).zip(step).map(|((start, end), step)| format!("{start}:{end}:{step}"));
                format!("{}[{}]", x[0], ranges.collect::<Vec<_>>().join(", "))
            }
            Op::Pad { low, high, interior } => {
                assert!(interior.iter().all(|zeros| *zeros == 0), "gradients come later");
                let axes = low.iter().zip(high).enumerate().filter(|(_, (low, high))| **low + **high > 0);
                axes.fold(x[0].clone(), |x, (axis, (low, high))| format!("pad({x}, {axis}, low: {low}, high: {high})"))
            }
            Op::Concat { axis } => format!("concat({}, axis: {axis})", x.join(", ")),
            Op::Gather { batch } => format!("gather({}, {}, axis: {batch}, batch: {batch})", x[0], x[1]),
            Op::Iota { shape, axis } => format!("iota({}, axis: {axis})", sizes(shape)),
            Op::StopGradient => format!("stop_gradient({})", x[0]),
            op => panic!("the language has no `{}`", op.name()),
        })
    }
}

fn scalar(op: ScalarOp, x: &[String]) -> String {
    use ScalarOp::*;
    let call = |name: &str| format!("{name}({})", x.join(", "));
    let infix = |sign: &str| format!("{} {sign} {}", x[0], x[1]);
    match op {
        Neg => format!("-{}", x[0]),
        Abs => call("abs"),
        Exp => call("exp"),
        Ln => call("ln"),
        Sqrt => call("sqrt"),
        Sin => call("sin"),
        Cos => call("cos"),
        Tanh => call("tanh"),
        Erf => call("erf"),
        Floor => call("floor"),
        Not => format!("not {}", x[0]),
        Add => infix("+"),
        Sub => infix("-"),
        Mul => infix("*"),
        Div => infix("/"),
        Rem => infix("%"),
        Pow => infix("**"),
        Min => call("min"),
        Max => call("max"),
        Lt => infix("<"),
        Le => infix("<="),
        Eq => infix("=="),
        And => infix("and"),
        Or => infix("or"),
        Select => call("select"),
        Cast(dtype) => format!("cast({}, '{dtype}')", x[0]),
        op => panic!("{op:?} is no operation of a graph"),
    }
}
