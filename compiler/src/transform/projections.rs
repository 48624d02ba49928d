//! Products of one value with several parameters become one product.
//!
//! Queries, keys and values that are written as three projections of the same rows cost what one packed projection costs:
//! the rows are read once, and the gradient of the rows, of all weights and of all biases is one product or sum each. It is
//! done before gradients are added, so that the backward pass has the packed form without any rule for it: the gradient of
//! a concatenation is slices, and those of its results are written part by part.
//!
//! *What is found.* Products of one value with whole parameters of which the free dimension is the outermost, so that
//! parameters that lie one after another are the joined parameter as it stands; with or without a bias each, alike. They
//! stay tensors of their own, with their names: the concatenation is a view of neighbours (`schedule::neighbours`), and the
//! plan lays them out as such.
//!
//! *What is weighed.* Nothing where all results have to lie in memory anyway, since products or attention read them: one
//! launch takes the place of several. A result that only pointwise operations read stays apart, because the epilogue of a
//! product of its own computes those, and its slice would have to be stored first. A parameter has one place: of two sets
//! that share a parameter and differ, the later one stays apart.

use std::collections::BTreeMap;

use alip_plan::Target;
use indexmap::IndexMap;

use super::Changed;
use super::analysis::{fault, places};
use crate::diag::Diagnostics;
use crate::hash::{HashMap, HashSet};
use crate::ir::{Builder, DType, Graph, NodeId};
use crate::launch::{adjoin, path};
use crate::ops::{Dot, Op, OpError, ScalarOp};

const NAME: &str = "projections";

/// What parameters must keep to, to have neighbours: they fill their place to the last byte, of so many it is a multiple, and
/// together they have at most so many bytes. What is joined must hold on every target, since a model has one form for all.
fn limits() -> (u64, u64) {
    let all = Target::all();
    let alignment = all.iter().map(|target| target.alignment).max();
    let bytes = all.iter().map(|target| target.fusion.chunk_bytes).min();
    (alignment.unwrap_or(1), bytes.unwrap_or(0))
}

pub(super) fn projections(graph: &Graph) -> Result<Option<Changed>, Diagnostics> {
    let sets = find(graph);
    if sets.is_empty() {
        return Ok(None);
    }
    let new = Joining { graph, new: graph.successor(), map: vec![None; graph.nodes().len()] }.run(&sets);
    let new = new.map_err(|error| fault(graph, NAME, &error))?;
    let products = sets.iter().flatten().map(|one| &*graph.origin(one.product).path);
    Ok(Some(Changed { graph: new, places: places(products) }))
}

/// A product with a parameter, and what is added to it.
struct Projection {
    product: NodeId,
    weight: NodeId,
    /// The parameter that is added to every row, and the sum.
    bias: Option<(NodeId, NodeId)>,
    /// Size along the free dimension of the parameter.
    size: u64,
}

impl Projection {
    /// The product, with its bias.
    fn result(&self) -> NodeId {
        self.bias.map_or(self.product, |(_, sum)| sum)
    }
}

/// What products have in common that become one: operand, form, how the parameter is turned, its other sizes, and whether
/// there is a bias.
type Form<'g> = (NodeId, &'g Dot, Option<&'g [usize]>, Vec<u64>, DType, bool);

fn find(graph: &Graph) -> Vec<Vec<Projection>> {
    let readers = graph.readers();
    let named: HashSet<NodeId> = graph.outputs.values().chain(graph.updates.values()).copied().collect();
    let mut forms: IndexMap<Form<'_>, Vec<Projection>> = IndexMap::new();
    for id in graph.ids() {
        if let Some((form, found)) = projection(graph, id, &readers, &named)
            && stored(graph, found.result(), &readers, &named)
        {
            forms.entry(form).or_default().push(found);
        }
    }
    let mut sets: Vec<Vec<Projection>> = forms.into_values().filter(|set| set.len() > 1).collect();
    // By path, so that all programs agree, in whatever order their nodes stand.
    sets.iter_mut().for_each(|set| set.sort_by_key(|one| path(graph, one.weight)));
    let parameters = |set: &[Projection], of: fn(&Projection) -> Option<NodeId>| -> Vec<NodeId> {
        set.iter().filter_map(of).collect()
    };
    let (alignment, most_bytes) = limits();
    // The first and whoever reads the same set again.
    let mut of_parameter: BTreeMap<NodeId, Vec<NodeId>> = BTreeMap::new();
    sets.retain(|set| {
        let weights = parameters(set, |one| Some(one.weight));
        let biases = parameters(set, |one| one.bias.map(|(bias, _)| bias));
        let both = [weights, biases];
        let free = |all: &Vec<NodeId>| all.iter().all(|id| of_parameter.get(id).is_none_or(|known| known == all));
        let distinct = |all: &Vec<NodeId>| all.iter().collect::<HashSet<_>>().len() == all.len();
        let fits = both.iter().all(|all| free(all) && distinct(all) && adjoin(graph, all, alignment, most_bytes));
        if fits {
            both.iter().for_each(|all| of_parameter.extend(all.iter().map(|id| (*id, all.clone()))));
        }
        fits
    });
    sets
}

/// A node as a product of anything with a parameter whose free dimension is its outermost.
fn projection<'g>(
    graph: &'g Graph,
    id: NodeId,
    readers: &[Vec<NodeId>],
    named: &HashSet<NodeId>,
) -> Option<(Form<'g>, Projection)> {
    let node = graph.node(id);
    let Op::Dot(dot) = &node.op else { return None };
    let right = graph.node(node.inputs[1]);
    let (weight, perm) = match &right.op {
        Op::Transpose { perm } => (right.inputs[0], Some(perm.as_slice())),
        _ => (node.inputs[1], None),
    };
    let [free] = dot.rhs_free(right.ty.shape.rank())[..] else { return None };
    let outermost = perm.map_or(free, |perm| perm[free]) == 0;
    if !matches!(graph.node(weight).op, Op::State { .. }) || !outermost || !dot.batch.is_empty() {
        return None;
    }
    let bias = bias(graph, id, readers, named);
    let sizes = graph.shape(weight).sizes();
    let form = (node.inputs[0], dot, perm, sizes[1..].to_vec(), graph.ty(weight).dtype, bias.is_some());
    Some((form, Projection { product: id, weight, bias, size: sizes[0] }))
}

/// The parameter that is added to every row of a product, and the sum, if nothing else reads the product.
fn bias(graph: &Graph, product: NodeId, readers: &[Vec<NodeId>], named: &HashSet<NodeId>) -> Option<(NodeId, NodeId)> {
    let [sum] = readers[product.index()][..] else { return None };
    let node = graph.node(sum);
    if node.op != Op::Pointwise(ScalarOp::Add) || named.contains(&product) {
        return None;
    }
    let rows = *node.inputs.iter().find(|input| **input != product)?;
    let Op::Broadcast { dims, .. } = &graph.node(rows).op else { return None };
    let bias = graph.node(rows).inputs[0];
    let last = graph.shape(product).rank() - 1;
    let whole = *dims == [last] && graph.shape(bias).sizes() == [graph.shape(product).size(last)];
    (whole && matches!(graph.node(bias).op, Op::State { .. })).then_some((bias, sum))
}

/// Does everything that reads a value, if at all through views, read it from memory?
fn stored(graph: &Graph, id: NodeId, readers: &[Vec<NodeId>], named: &HashSet<NodeId>) -> bool {
    let all = &readers[id.index()];
    !named.contains(&id)
        && !all.is_empty()
        && all.iter().all(|reader| match &graph.node(*reader).op {
            Op::Dot(_) | Op::Attention(_) => true,
            Op::Reshape { .. } | Op::Transpose { .. } | Op::Slice { .. } => stored(graph, *reader, readers, named),
            _ => false,
        })
}

struct Joining<'g> {
    graph: &'g Graph,
    new: Graph,
    /// New nodes of old ones; of a set, all as soon as its first product is met.
    map: Vec<Option<NodeId>>,
}

impl Joining<'_> {
    fn run(mut self, sets: &[Vec<Projection>]) -> Result<Graph, OpError> {
        let graph = self.graph;
        let first: HashMap<NodeId, &Vec<Projection>> =
            sets.iter().filter_map(|set| Some((set.iter().map(|one| one.product).min()?, set))).collect();
        for id in graph.ids() {
            if let Some(set) = first.get(&id) {
                self.join(set)?;
            }
            self.moved(id)?;
        }
        let map = self.map;
        self.new.take_names(graph, |id| map[id.index()]);
        Ok(self.new)
    }

    /// The new node of an old one whose operands are there.
    fn moved(&mut self, id: NodeId) -> Result<NodeId, OpError> {
        if let Some(new) = self.map[id.index()] {
            return Ok(new);
        }
        let node = self.graph.node(id);
        let inputs = node.inputs.iter().map(|input| self.moved(*input)).collect::<Result<_, _>>()?;
        let new = self.new.copy(self.graph, id, inputs)?;
        self.map[id.index()] = Some(new);
        Ok(new)
    }

    /// One product for all of a set, and the result of each as a slice of it.
    fn join(&mut self, set: &[Projection]) -> Result<(), OpError> {
        let graph = self.graph;
        let Some(one) = set.first() else { return Ok(()) };
        let node = graph.node(one.product);
        let Op::Dot(dot) = &node.op else { return Ok(()) };
        let rows = self.moved(node.inputs[0])?;
        let weights = set.iter().map(|one| self.moved(one.weight)).collect::<Result<Vec<_>, _>>()?;
        let biases = set.iter().filter_map(|one| one.bias);
        let biases = biases.map(|(bias, _)| self.moved(bias)).collect::<Result<Vec<_>, _>>()?;
        let mut b = Builder::new(&mut self.new, node.origin);
        let mut weight = b.concat(&weights, 0)?;
        if let Op::Transpose { perm } = &graph.node(node.inputs[1]).op {
            weight = b.transpose(weight, perm)?;
        }
        let mut joined = b.dot(rows, weight, dot.clone())?;
        let axis = graph.shape(one.product).rank() - 1;
        if !biases.is_empty() {
            let bias = b.concat(&biases, 0)?;
            let shape = b.graph.shape(joined).clone();
            let bias = b.op(Op::Broadcast { shape, dims: vec![axis] }, &[bias])?;
            joined = b.add(joined, bias)?;
        }
        let mut start = 0;
        for one in set {
            let end = start + one.size;
            self.map[one.result().index()] = Some(b.slice_axis(joined, axis, start, end)?);
            start = end;
        }
        Ok(())
    }
}
