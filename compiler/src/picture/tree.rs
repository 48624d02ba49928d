//! A graph as nested boxes: module instances that hold instances and operations, and the edges between operations.
//!
//! - Broadcasts and `stop_gradient` are left out: their readers take what they pass on.
//! - Constants, parameters and state are words beside the operations that read them; parameters and state are lines in the
//!   box that does so, too.

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
    /// Name of the module; for an operation, its operands that have no box.
    pub(super) module: String,
    /// The equation that the operation comes from.
    pub(super) code: String,
    /// Parameters and state read here: name and type.
    pub(super) params: Vec<(String, String)>,
    /// In the order of their first nodes.
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
    shown: Vec<Shown>,
}

/// How the value of a node is shown.
#[derive(Clone)]
enum Shown {
    /// By a block, and the tensor as it is there.
    Block(usize, String),
    /// By a word beside its readers.
    Word(String),
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
            let module = match &tree.shown[id.index()] {
                Shown::Word(word) => word.clone(),
                Shown::Block(..) => String::new(),
            };
            let output = Block { kind: Kind::Output, name: name.clone(), module, ..Block::default() };
            let output = tree.push(0, output);
            tree.edge(*id, output);
        }
        tree.name_lists();
        tree
    }

    fn add(&mut self, graph: &Graph, id: NodeId, sources: &SourceMap, name: Option<&str>) -> Shown {
        let node = graph.node(id);
        let origin = graph.origin(id);
        let parent = self.instance(&origin.path, &origin.module);
        let (kind, op) = match &node.op {
            Op::Const { value, .. } => return Shown::Word((value.0 as f32).to_string()),
            Op::Broadcast { .. } | Op::StopGradient => return self.shown[node.inputs[0].index()].clone(),
            Op::State { path, ty } => {
                let name = path.rsplit('.').next().unwrap_or(path);
                let line = (name.to_owned(), ty.to_string());
                if !self.blocks[parent].params.contains(&line) {
                    self.blocks[parent].params.push(line);
                }
                return Shown::Word(name.to_owned());
            }
            Op::Input { name, .. } => (Kind::Input, name.to_string()),
            op => (Kind::Op, op.name().to_owned()),
        };
        let code = origin.span.filter(|_| kind == Kind::Op).map_or("", |span| sources.slice(span)).to_owned();
        let words = node.inputs.iter().filter_map(|input| match &self.shown[input.index()] {
            Shown::Word(word) => Some(word.as_str()),
            Shown::Block(..) => None,
        });
        let module = words.collect::<Vec<_>>().join(", ");
        let block = self.push(parent, Block { kind, name: op, module, code, ..Block::default() });
        for input in &node.inputs {
            self.edge(*input, block);
        }
        let name = name.filter(|_| kind == Kind::Op).map_or(String::new(), |name| format!("{name} "));
        Shown::Block(block, format!("{name}{}", node.ty))
    }

    fn edge(&mut self, from: NodeId, to: usize) {
        if let Shown::Block(source, tensor) = &self.shown[from.index()] {
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
            let mut modules = block.children.iter().map(|child| match &self.blocks[*child] {
                Block { kind: Kind::Instance, module, .. } => module.as_str(),
                _ => "",
            });
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
}
