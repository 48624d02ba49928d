//! Graphs and models.

use std::collections::BTreeMap;
use std::sync::Arc;

use alip_plan::StateKind;
use alip_plan::packing::Group;
use indexmap::IndexMap;
use rustc_hash::FxBuildHasher;
use smallvec::SmallVec;

use super::{Op, Shape, TensorType};
use crate::diag::Span;

/// Index of a node in its graph.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NodeId(pub u32);

impl NodeId {
    /// Position in [`Graph::nodes`].
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Index of an origin in its graph.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OriginId(pub u32);

/// Where a node comes from.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Origin {
    /// Path of the application: `text#2.transformer.resblocks.3.attn`; empty at the top of the graph.
    pub path: Arc<str>,
    /// Name of the module applied there, for pictures and explanations: `multihead_attention`.
    pub module: Arc<str>,
    /// The equation or expression in a spec.
    pub span: Option<Span>,
}

/// One operation applied to earlier nodes.
#[derive(Clone, Debug, PartialEq)]
pub struct Node {
    /// What is computed.
    pub op: Op,
    /// Operands in order.
    pub inputs: SmallVec<[NodeId; 3]>,
    /// Type of the result.
    pub ty: TensorType,
    /// Where it comes from.
    pub origin: OriginId,
}

/// Nodes by what they are called, in the order in which they were named. Every pass takes all names of a graph over.
pub type Names = IndexMap<String, NodeId, FxBuildHasher>;

/// One program: from inputs and state to outputs and new state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Graph {
    /// `train`, `init`, `encode_image`, ...
    pub name: String,
    /// In topological order.
    nodes: Vec<Node>,
    origins: Vec<Origin>,
    /// Input nodes by name, in the order of the spec.
    pub inputs: Names,
    /// Results by name: outputs and metrics.
    pub outputs: Names,
    /// New values of state tensors by path.
    pub updates: Names,
    /// Named values of the top-level body (`x`, `tr`, `loss`), for metrics by name and for dumps.
    pub values: Names,
}

impl Graph {
    /// An empty graph.
    pub fn new(name: &str) -> Graph {
        Graph { name: name.into(), ..Graph::default() }
    }

    /// An empty graph with the name and the origins of this one: what a pass starts from.
    pub fn successor(&self) -> Graph {
        let nodes = Vec::with_capacity(self.nodes.len());
        Graph { name: self.name.clone(), nodes, origins: self.origins.clone(), ..Graph::default() }
    }

    /// Takes the names of another graph's inputs, outputs, updates and values, each for the node that `map` gives for the
    /// named one; names of nodes for which it gives none are dropped.
    pub fn take_names(&mut self, from: &Graph, map: impl Fn(NodeId) -> Option<NodeId>) {
        let moved = |names: &Names| names.iter().filter_map(|(name, id)| Some((name.clone(), map(*id)?))).collect();
        self.inputs = moved(&from.inputs);
        self.outputs = moved(&from.outputs);
        self.updates = moved(&from.updates);
        self.values = moved(&from.values);
    }

    /// All nodes, in topological order.
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// All ids, in topological order.
    pub fn ids(&self) -> impl DoubleEndedIterator<Item = NodeId> + use<> {
        (0..self.nodes.len() as u32).map(NodeId)
    }

    /// One node.
    pub fn node(&self, id: NodeId) -> &Node {
        &self.nodes[id.index()]
    }

    /// Type of a node.
    pub fn ty(&self, id: NodeId) -> &TensorType {
        &self.node(id).ty
    }

    /// Shape of a node.
    pub fn shape(&self, id: NodeId) -> &Shape {
        &self.node(id).ty.shape
    }

    /// Bytes of a node's value.
    pub fn bytes(&self, id: NodeId) -> u64 {
        self.shape(id).elements() * self.ty(id).dtype.bytes()
    }

    /// Of each node those that read it, in their order; twice where both operands are it.
    pub(crate) fn readers(&self) -> Vec<Vec<NodeId>> {
        let mut readers = vec![Vec::new(); self.nodes.len()];
        for id in self.ids() {
            self.node(id).inputs.iter().for_each(|input| readers[input.index()].push(id));
        }
        readers
    }

    /// What these nodes depend on, and they themselves.
    pub(crate) fn live<'a>(&self, results: impl IntoIterator<Item = &'a NodeId>) -> Vec<bool> {
        self.live_from(results, |_| false)
    }

    /// The same, where some nodes are given: what only they depend on is not needed.
    pub(crate) fn live_from<'a>(
        &self,
        results: impl IntoIterator<Item = &'a NodeId>,
        given: impl Fn(NodeId) -> bool,
    ) -> Vec<bool> {
        let mut live = vec![false; self.nodes.len()];
        results.into_iter().for_each(|id| live[id.index()] = true);
        for id in self.ids().rev() {
            if live[id.index()] && !given(id) {
                self.node(id).inputs.iter().for_each(|input| live[input.index()] = true);
            }
        }
        live
    }

    /// The one number that a tensor holds everywhere: a constant, repeated or not.
    pub(crate) fn splat(&self, mut id: NodeId) -> Option<f64> {
        loop {
            let node = self.node(id);
            match node.op {
                Op::Const { value, .. } => return Some(value.0),
                Op::Broadcast { .. } | Op::Reshape { .. } => id = node.inputs[0],
                _ => return None,
            }
        }
    }

    /// Adds an origin.
    pub fn add_origin(&mut self, origin: Origin) -> OriginId {
        if self.origins.last() != Some(&origin) {
            self.origins.push(origin);
        }
        OriginId(self.origins.len() as u32 - 1)
    }

    /// Replaces all origins; for reading a graph from text, before its nodes.
    pub(crate) fn set_origins(&mut self, origins: Vec<Origin>) {
        self.origins = origins;
    }

    /// All origins; [`Node::origin`] is an index into them.
    pub fn origins(&self) -> &[Origin] {
        &self.origins
    }

    /// Origin of a node.
    pub fn origin(&self, id: NodeId) -> &Origin {
        &self.origins[self.node(id).origin.0 as usize]
    }

    /// Adds a node of another graph, whose type is known, with these inputs.
    pub(crate) fn push(&mut self, node: &Node, inputs: SmallVec<[NodeId; 3]>) -> NodeId {
        let id = NodeId(self.nodes.len() as u32);
        self.nodes.push(Node { inputs, ..node.clone() });
        id
    }

    /// Adds a node of a type that its op gives for these inputs (`Graph::add`, in [`crate::ops`], finds it).
    pub(crate) fn append(&mut self, node: Node) -> NodeId {
        if self.origins.is_empty() {
            self.origins.push(Origin::default());
        }
        self.nodes.push(node);
        NodeId(self.nodes.len() as u32 - 1)
    }
}

/// A tensor that survives a step.
#[derive(Clone, Debug, PartialEq)]
pub struct StateDecl {
    /// What it is.
    pub kind: StateKind,
    /// Type.
    pub ty: TensorType,
    /// Where it was declared.
    pub origin: Origin,
    /// For parameters: values are clamped to this range after each update.
    pub clamp: Option<(f64, f64)>,
    /// For parameters: a group of the spec keeps it as it is.
    pub frozen: bool,
}

/// All programs of a spec over one state.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Model {
    /// Name of the graph spec.
    pub name: String,
    /// State tensors by path, in a deterministic order: parameters first, in the order of their first use.
    pub state: IndexMap<String, StateDecl>,
    /// Programs by name.
    pub programs: IndexMap<String, Graph>,
    /// Those of the programs that there are several of, by number of rows.
    pub packed: IndexMap<String, PackedGraphs>,
    /// Of each program's inputs that are indices of tables, the rows of the smallest table.
    pub tables: BTreeMap<String, BTreeMap<String, u64>>,
}

/// A program for batches of fewer rows; [`alip_plan::packing`] says what rows are.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PackedGraphs {
    /// Samples whose rows are packed together.
    pub groups: Vec<Group>,
    /// From inputs of the program to the lengths of each group.
    pub lengths: Graph,
    /// Rows of each group and the program for them, rising; the program for all rows is the model's own.
    pub fewer: Vec<(Vec<u64>, Graph)>,
}

/// `train@464`: the name of a program for so many rows.
pub fn name_with_rows(program: &str, rows: &[u64]) -> String {
    let rows: Vec<String> = rows.iter().map(u64::to_string).collect();
    format!("{program}@{}", rows.join("+"))
}

impl Model {
    /// The tables of the inputs of a program, or of one for fewer rows.
    pub(crate) fn tables(&self, program: &str) -> Option<&BTreeMap<String, u64>> {
        self.tables.get(program.split('@').next().unwrap_or(program))
    }

    /// A program, and those for fewer rows by rising rows.
    pub fn all_of_mut(&mut self, name: &str) -> impl Iterator<Item = &mut Graph> {
        let fewer = self.packed.get_mut(name).into_iter().flat_map(|packed| &mut packed.fewer);
        self.programs.get_mut(name).into_iter().chain(fewer.map(|(_, graph)| graph))
    }

    /// All programs, those for fewer rows among them, by the names that they have in a plan.
    pub fn all_programs(&self) -> impl Iterator<Item = (String, &Graph)> {
        let own = self.programs.iter().map(|(name, graph)| (name.clone(), graph));
        let fewer = self.packed.iter().flat_map(|(name, packed)| {
            packed.fewer.iter().map(move |(rows, graph)| (name_with_rows(name, rows), graph))
        });
        own.chain(fewer)
    }
}
