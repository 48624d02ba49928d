//! A graph as nested boxes: module instances that hold instances and operations, and the edges between operations.
//!
//! - Constants, broadcasts and `stop_gradient` are left out: their readers take what they pass on.
//! - Parameters and state are lines in the box that reads them.
//! - Children of a box stand in layers: what depends on nothing beside it first, independent towers side by side.

use std::collections::{BTreeMap, HashMap};

use crate::diag::SourceMap;
use crate::ir::{Graph, NodeId};
use crate::ops::Op;

/// What a box stands for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Kind {
    /// A module instance, or a list of them.
    #[default]
    Instance,
    /// One operation.
    Op,
    /// A tensor that the caller gives.
    Input,
    /// A tensor that the caller gets.
    Output,
}

/// A box.
#[derive(Debug, Default)]
pub(super) struct Block {
    pub(super) kind: Kind,
    /// Last part of the path, or the operation's name.
    pub(super) name: String,
    /// Name of the module; empty for operations.
    pub(super) module: String,
    /// The equation that the operation comes from.
    pub(super) code: String,
    /// Parameters and state read here: name and type.
    pub(super) params: Vec<(String, String)>,
    /// Children in layers.
    pub(super) layers: Vec<Vec<usize>>,
    pub(super) children: Vec<usize>,
    parent: usize,
}

/// All boxes; the first is the graph itself.
#[derive(Default)]
pub(super) struct Tree {
    pub(super) blocks: Vec<Block>,
    /// From block, to block, the tensor: its name in the spec, if it has one, and its type.
    pub(super) edges: Vec<(usize, usize, String)>,
    by_path: BTreeMap<String, usize>,
    /// For each node, the block that shows its value, and the tensor as it is there.
    shown: Vec<Option<(usize, String)>>,
}

impl Tree {
    /// The boxes of a graph; places in specs are looked up in `sources`.
    pub(super) fn new(graph: &Graph, sources: &SourceMap) -> Tree {
        let mut tree = Tree::default();
        tree.instance("", "");
        let names: HashMap<NodeId, &str> = graph.values.iter().map(|(name, id)| (*id, name.as_str())).collect();
        for id in graph.ids() {
            let shown = tree.add(graph, id, sources, names.get(&id).copied());
            tree.shown.push(shown);
        }
        for (name, id) in &graph.outputs {
            let output = Block { kind: Kind::Output, name: name.clone(), ..Block::default() };
            let output = tree.push(0, output);
            tree.edge(*id, output);
        }
        tree.name_lists();
        tree.layer();
        tree
    }

    fn add(&mut self, graph: &Graph, id: NodeId, sources: &SourceMap, name: Option<&str>) -> Option<(usize, String)> {
        let node = graph.node(id);
        let origin = graph.origin(id);
        let parent = self.instance(&origin.path, &origin.module);
        let (kind, op) = match &node.op {
            Op::Const { .. } => return None,
            Op::Broadcast { .. } | Op::StopGradient => return self.shown[node.inputs[0].index()].clone(),
            Op::State { path, ty } => {
                let name = path.rsplit('.').next().unwrap_or(path);
                let line = (name.to_owned(), ty.to_string());
                if !self.blocks[parent].params.contains(&line) {
                    self.blocks[parent].params.push(line);
                }
                return None;
            }
            Op::Input { name, .. } => (Kind::Input, name.to_string()),
            op => (Kind::Op, op.name().to_owned()),
        };
        let code = origin.span.filter(|_| kind == Kind::Op).map_or("", |span| sources.slice(span)).to_owned();
        let block = self.push(parent, Block { kind, name: op, code, ..Block::default() });
        for input in &node.inputs {
            self.edge(*input, block);
        }
        let name = name.filter(|_| kind == Kind::Op).map_or(String::new(), |name| format!("{name} "));
        Some((block, format!("{name}{}", node.ty)))
    }

    fn edge(&mut self, from: NodeId, to: usize) {
        if let Some((source, tensor)) = &self.shown[from.index()] {
            self.edges.push((*source, to, tensor.clone()));
        }
    }

    fn push(&mut self, parent: usize, block: Block) -> usize {
        let index = self.blocks.len();
        self.blocks.push(Block { parent, ..block });
        if index > 0 {
            self.blocks[parent].children.push(index);
        }
        index
    }

    /// The block of an instance path; parents are made on the way.
    fn instance(&mut self, path: &str, module: &str) -> usize {
        if let Some(block) = self.by_path.get(path) {
            if self.blocks[*block].module.is_empty() && *block > 0 {
                self.blocks[*block].module = module.to_owned();
            }
            return *block;
        }
        let (above, name) = path.rsplit_once('.').unwrap_or(("", path));
        let parent = if path.is_empty() { 0 } else { self.instance(above, "") };
        let block = self.push(parent, Block { name: name.into(), module: module.into(), ..Block::default() });
        self.by_path.insert(path.into(), block);
        block
    }

    /// Boxes of repeated parts, which no module names, say what is repeated: `12 x residual_attention_block`.
    fn name_lists(&mut self) {
        for index in (1..self.blocks.len()).rev() {
            let block = &self.blocks[index];
            if block.kind != Kind::Instance || !block.module.is_empty() {
                continue;
            }
            let mut modules = block.children.iter().map(|child| self.blocks[*child].module.as_str());
            let Some(first) = modules.next().filter(|first| !first.is_empty()) else { continue };
            if block.children.len() > 1 && modules.all(|module| module == first) {
                self.blocks[index].module = format!("{} \u{d7} {first}", self.blocks[index].children.len());
            }
        }
    }

    /// The innermost instance, input or output that shows a block.
    pub(super) fn box_of(&self, block: usize) -> usize {
        if self.blocks[block].kind == Kind::Op { self.blocks[block].parent } else { block }
    }

    /// The ancestors of a block from the root down to itself.
    fn lineage(&self, mut block: usize) -> Vec<usize> {
        let mut lineage = vec![block];
        while block != 0 {
            block = self.blocks[block].parent;
            lineage.push(block);
        }
        lineage.reverse();
        lineage
    }

    /// Puts the children of every block in layers by the edges between them.
    fn layer(&mut self) {
        let mut siblings: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
        for (from, to, _) in &self.edges {
            let (from, to) = (self.lineage(*from), self.lineage(*to));
            let shared = from.iter().zip(&to).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (from.get(shared), to.get(shared)) {
                siblings.entry(from[shared - 1]).or_default().push((*a, *b));
            }
        }
        for index in 0..self.blocks.len() {
            // A child is numbered by its first node. Where two boxes feed each other, the edge back is left out, so that
            // the order of numbers is one of dependencies.
            let mut edges = siblings.remove(&index).unwrap_or_default();
            edges.retain(|(from, to)| from < to);
            edges.sort_unstable_by_key(|(from, to)| (*to, *from));
            edges.dedup();
            let mut depth: BTreeMap<usize, usize> = BTreeMap::new();
            for (from, to) in edges {
                let below = depth.get(&from).map_or(1, |depth| depth + 1);
                let entry = depth.entry(to).or_default();
                *entry = below.max(*entry);
            }
            let mut layers: Vec<Vec<usize>> = Vec::new();
            for child in &self.blocks[index].children {
                let layer = depth.get(child).copied().unwrap_or(0);
                layers.resize_with(layers.len().max(layer + 1), Vec::new);
                layers[layer].push(*child);
            }
            self.blocks[index].layers = layers;
        }
    }
}
