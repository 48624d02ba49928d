//! Parameters and states of a model, with how they start; the `init` program.

use std::collections::HashMap;
use std::sync::Arc;

use alip_plan::{PROGRAM_INIT, StateKind};
use indexmap::IndexMap;

use super::eval::op_error;
use super::groups::Groups;
use crate::diag::{Diagnostic, Diagnostics};
use crate::ir::{Builder, DType, Graph, NodeId, StateDecl, TensorType};
use crate::ops::{Op, OpError};

/// How a tensor starts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Init {
    /// The same value everywhere.
    Constant(f64),
    /// Normal with mean 0 and this standard deviation.
    Normal(f64),
    /// Uniform between minus and plus this bound.
    Uniform(f64),
    /// The input `seed`.
    Seed,
}

/// A state tensor and how it starts.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) decl: StateDecl,
    pub(crate) init: Init,
    /// Path whose random numbers it takes: its own, or that of the parameter it is an average of.
    pub(crate) stream: String,
    /// The instance it belongs to.
    pub(crate) owner: usize,
}

/// All state of a model, in the order of first use.
#[derive(Clone, Debug, Default)]
pub(crate) struct States {
    pub(crate) entries: IndexMap<String, Entry>,
    /// Whether the model takes training steps.
    pub(crate) trains: bool,
    /// What is different for some of them.
    pub(crate) groups: Arc<Groups>,
    instances: usize,
}

impl States {
    /// No state yet, of a model that takes training steps or not.
    pub(crate) fn new(trains: bool) -> States {
        States { trains, ..States::default() }
    }

    /// A number that no other instance of the model has.
    pub(crate) fn new_id(&mut self) -> usize {
        self.instances += 1;
        self.instances
    }

    /// Declares a state tensor; again for every application of its instance.
    pub(crate) fn declare(&mut self, path: &str, owner: usize, decl: StateDecl, init: Init) -> Result<(), Diagnostic> {
        let Some(first) = self.entries.get(path) else {
            self.entries.insert(path.to_owned(), Entry { decl, init, stream: path.to_owned(), owner });
            return Ok(());
        };
        let place = |decl: &StateDecl| decl.origin.span;
        if first.owner != owner {
            let mut error = Diagnostic::error(format!("two tensors have the path `{path}`"))
                .help("give one of the parts another `path` or name");
            if let (Some(again), Some(first)) = (place(&decl), place(&first.decl)) {
                error = error.label(again, "declared again").context(first, "first declared here");
            }
            return Err(error);
        }
        if first.decl.ty != decl.ty {
            let mut error =
                Diagnostic::error(format!("`{path}` would be {} here and {} elsewhere", decl.ty, first.decl.ty))
                    .help("shapes of parameters depend on arguments, not on what a part is applied to");
            if let Some(span) = place(&decl) {
                error = error.label(span, "");
            }
            return Err(error);
        }
        Ok(())
    }

    /// The declarations alone.
    pub(crate) fn decls(&self) -> IndexMap<String, StateDecl> {
        self.entries.iter().map(|(path, entry)| (path.clone(), entry.decl.clone())).collect()
    }

    /// The program that sets every state tensor to its first value.
    ///
    /// A random tensor draws from a stream of its own, named by the FNV-1a hash of its path, at key (seed, 0): it does not
    /// depend on what else the model has.
    pub(crate) fn init_program(&self) -> Result<Graph, Diagnostics> {
        let mut graph = Graph::new(PROGRAM_INIT);
        let built = |graph: &mut Graph| -> Result<(), OpError> {
            let origin = graph.add_origin(Default::default());
            let mut builder = Builder::new(graph, origin);
            let seed = builder.input("seed", TensorType::new(DType::I32, []))?;
            let step = builder.constant(0.0, DType::I32)?;
            for (path, entry) in &self.entries {
                builder.origin = builder.graph.add_origin(entry.decl.origin.clone());
                // The average of a parameter of 16 bits begins as that does, rounded.
                let of = self.entries.get(&entry.stream).filter(|of| of.decl.ty.dtype.is_narrow()).unwrap_or(entry);
                let value = initial(&mut builder, of, seed, step)?;
                let value = builder.cast(value, entry.decl.ty.dtype)?;
                builder.graph.updates.insert(path.clone(), value);
            }
            Ok(())
        };
        match built(&mut graph) {
            Ok(()) => Ok(graph),
            Err(error) => {
                let span = graph.origins().last().and_then(|origin| origin.span);
                Err(match span {
                    Some(span) => op_error(error, span),
                    None => Diagnostic::error(error.message),
                }
                .into())
            }
        }
    }
}

fn initial(builder: &mut Builder<'_>, entry: &Entry, seed: NodeId, step: NodeId) -> Result<NodeId, OpError> {
    let ty = &entry.decl.ty;
    let value = drawn(builder, entry, seed, step)?;
    builder.cast(value, ty.dtype)
}

fn drawn(builder: &mut Builder<'_>, entry: &Entry, seed: NodeId, step: NodeId) -> Result<NodeId, OpError> {
    let ty = &entry.decl.ty;
    let stream = u64::from(fnv1a(&entry.stream));
    match entry.init {
        Init::Constant(value) => builder.full(value, ty),
        Init::Seed => Ok(seed),
        Init::Uniform(bound) => {
            let draw = builder.random_uniform(seed, step, ty.shape.clone(), stream, 0)?;
            let (width, bound) = (builder.scalar(2.0 * bound)?, builder.scalar(bound)?);
            let scaled = builder.mul(draw, width)?;
            builder.sub(scaled, bound)
        }
        Init::Normal(std) => {
            let normal = builder.random_normal(seed, step, ty.shape.clone(), stream)?;
            let std = builder.scalar(std)?;
            builder.mul(normal, std)
        }
    }
}

/// 32-bit FNV-1a, which is fixed forever: it decides which numbers a parameter starts with.
pub(crate) fn fnv1a(text: &str) -> u32 {
    text.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The nodes of a graph that read state, by path.
pub(crate) fn reads(graph: &Graph) -> HashMap<String, NodeId> {
    let state = |id: NodeId| match &graph.node(id).op {
        Op::State { path, .. } => Some((path.to_string(), id)),
        _ => None,
    };
    // The first read of a path wins.
    graph.ids().rev().filter_map(state).collect()
}

/// A buffer, optimiser state or parameter as it is declared.
pub(crate) fn decl(kind: StateKind, ty: TensorType, origin: crate::ir::Origin) -> StateDecl {
    StateDecl { kind, ty, origin, clamp: None, frozen: false }
}

#[cfg(test)]
mod tests {
    use super::fnv1a;

    #[test]
    fn fnv1a_gives_the_published_vectors() {
        assert_eq!(fnv1a(""), 0x811c_9dc5);
        assert_eq!(fnv1a("a"), 0xe40c_292c);
        assert_eq!(fnv1a("foobar"), 0xbf9c_f968);
    }
}
