//! A sum of many sums of one form becomes a sum over one value: `sum(f(a)) + sum(f(b)) + ..` is `sum(f(concat(a, b, ..)))`.
//!
//! The norm of all gradients is such a sum, of a square per parameter. Its operands then lie one after another in memory:
//! whoever computes one writes it into its part, whoever reads one later reads the part, and what is done to all of them
//! alike (the update of an optimiser) can be done to the whole.
//!
//! Nothing is stored that was not stored before: an operand takes part only if it has to be in memory anyway and nobody
//! reads it before all operands are known. Operands are joined in chunks, in the order in which they are computed, so that
//! a chunk lives no longer than the last of its parts has to wait for the first. An operand that is cut into slices, each
//! with a term of its own (the gradients of parameters that lie one after another), takes part as a whole.

use std::borrow::Cow;

use alip_plan::Target;
use indexmap::IndexMap;
use smallvec::SmallVec;

use super::facts::base;
use crate::diag::{Diagnostic, Diagnostics};
use crate::hash::{HashMap, HashSet};
use crate::ir::{DType, Graph, NodeId, OriginId, Shape};
use crate::ops::{Op, OpError, Real, ReduceKind, ScalarOp};

/// Largest expression that is compared between terms.
const LONGEST_FORM: usize = 16;

/// An expression over operands, in postfix order: what terms have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Item {
    Apply(ScalarOp),
    Const(Real, DType),
    Operand(usize, DType),
}

/// A sum over all elements of an expression.
struct Term {
    /// The sum; several where the operands are joined slices.
    reduces: SmallVec<[NodeId; 1]>,
    operands: SmallVec<[NodeId; 1]>,
    /// Slices that make up the only operand.
    slices: Vec<NodeId>,
    elements: u64,
    /// Nodes of the expression.
    own: Vec<NodeId>,
}

/// Terms of one form that become one sum.
struct Chunk {
    form: Vec<Item>,
    terms: Vec<Term>,
    /// The last node that the chunk needs.
    end: NodeId,
    origin: OriginId,
}

/// The same program with sums of many sums joined.
///
/// # Errors
/// An op refuses its inputs, which only a defect of this pass can cause.
pub fn join_sums<'g>(graph: &'g Graph, target: &Target) -> Result<Cow<'g, Graph>, Diagnostics> {
    let found = find(graph, target);
    if found.chunks.is_empty() {
        return Ok(Cow::Borrowed(graph));
    }
    let joining = Joining { graph, new: graph.successor(), parts: HashMap::default() };
    joining.run(&found).map(Cow::Owned).map_err(|error: OpError| {
        let message = format!("internal: joining sums of program `{}`", graph.name);
        Diagnostic::error(message).note(error.message).into()
    })
}

/// Chunks, and for each sum of sums its chunks and what remains of its terms.
#[derive(Default)]
struct Found {
    chunks: Vec<Chunk>,
    roots: HashMap<NodeId, (Vec<usize>, Vec<NodeId>)>,
}

fn find(graph: &Graph, target: &Target) -> Found {
    let readers = graph.readers();
    let named: HashSet<NodeId> = graph.outputs.values().chain(graph.updates.values()).copied().collect();
    let is_sum = |id: NodeId| graph.node(id).op == Op::Pointwise(ScalarOp::Add) && graph.shape(id).rank() == 0;
    let inner = |id: NodeId| is_sum(id) && readers[id.index()].len() == 1 && !named.contains(&id);
    let mut found = Found::default();
    let mut taken = HashSet::default();
    for root in graph.ids().filter(|id| is_sum(*id) && !(inner(*id) && is_sum(readers[id.index()][0]))) {
        let mut leaves = Vec::new();
        let mut open = vec![root];
        while let Some(id) = open.pop() {
            if id == root || inner(id) {
                open.extend(graph.node(id).inputs.iter().rev());
            } else {
                leaves.push(id);
            }
        }
        let mut forms: IndexMap<Vec<Item>, Vec<Term>> = IndexMap::new();
        for leaf in leaves.iter().filter(|leaf| readers[leaf.index()].len() == 1 && !named.contains(leaf)) {
            if let Some((form, term)) = term(graph, *leaf, &readers) {
                forms.entry(form).or_default().push(term);
            }
        }
        let mut of_root = Vec::new();
        for (form, terms) in forms {
            let terms = whole(graph, terms, &readers);
            let Some(end) = terms.iter().flat_map(|term| &term.operands).max().copied() else { continue };
            let mut seen = taken.clone();
            let fits = |term: &Term| {
                let waits = |id: &NodeId| readers[id.index()].iter().all(|r| *r > end || term.own.contains(r));
                let operands = &term.operands;
                let kept = |id: &NodeId| waits(id) && !named.contains(id);
                term.slices.iter().all(kept) && operands.iter().all(|id| kept(id) && seen.insert(base(graph, *id).0))
            };
            let terms: Vec<Term> = terms.into_iter().filter(fits).collect();
            if terms.len() < target.fusion.fewest_terms as usize {
                continue;
            }
            for terms in chunks(terms, target) {
                taken.extend(terms.iter().flat_map(|term| &term.operands).map(|id| base(graph, *id).0));
                of_root.push(found.chunks.len());
                found.chunks.push(Chunk { form: form.clone(), terms, end, origin: graph.node(root).origin });
            }
        }
        if !of_root.is_empty() {
            let joined: HashSet<NodeId> = of_root
                .iter()
                .flat_map(|chunk| &found.chunks[*chunk].terms)
                .flat_map(|term| term.reduces.clone())
                .collect();
            leaves.retain(|leaf| !joined.contains(leaf));
            found.roots.insert(root, (of_root, leaves));
        }
    }
    found
}

/// The sum over all elements of an expression over values that are stored.
fn term(graph: &Graph, id: NodeId, readers: &[Vec<NodeId>]) -> Option<(Vec<Item>, Term)> {
    let node = graph.node(id);
    let Op::Reduce { kind: ReduceKind::Sum, axes } = &node.op else { return None };
    let x = node.inputs[0];
    if axes.len() != graph.shape(x).rank() || node.ty.dtype != DType::F32 {
        return None;
    }
    let mut form = Vec::new();
    let mut term = Term {
        reduces: SmallVec::from_slice(&[id]),
        operands: SmallVec::new(),
        slices: Vec::new(),
        elements: graph.shape(x).elements(),
        own: vec![id],
    };
    expression(graph, x, graph.shape(x), readers, &mut form, &mut term).then_some((form, term))
}

/// Adds the expression of a node to a form; false if it has none that can be joined.
fn expression(
    graph: &Graph,
    id: NodeId,
    shape: &Shape,
    readers: &[Vec<NodeId>],
    form: &mut Vec<Item>,
    term: &mut Term,
) -> bool {
    let node = graph.node(id);
    if let Op::Const { value, dtype } = base(graph, id).1 {
        form.push(Item::Const(*value, *dtype));
        return form.len() <= LONGEST_FORM;
    }
    if let Op::Pointwise(op) = node.op
        && readers[id.index()].len() == 1
    {
        term.own.push(id);
        let all = node.inputs.iter().all(|input| expression(graph, *input, shape, readers, form, term));
        form.push(Item::Apply(op));
        return all && form.len() <= LONGEST_FORM;
    }
    let whole = match is_piece(graph, id) {
        true => node.inputs[0],
        false => id,
    };
    let (below, op) = base(graph, whole);
    // What is written by a kernel of its own kind cannot be written into a part, what is no result at all should not be.
    let stored = matches!(op, Op::Pointwise(_) | Op::Reduce { .. } | Op::Dot(_));
    let alone = below == whole || readers[below.index()].len() == 1;
    if !stored || !alone || graph.shape(id) != shape {
        return false;
    }
    let place = term.operands.iter().position(|operand| *operand == id).unwrap_or_else(|| {
        term.operands.push(id);
        term.operands.len() - 1
    });
    form.push(Item::Operand(place, node.ty.dtype));
    form.len() <= LONGEST_FORM
}

/// Whether a node is some of the outermost positions of a value, one after another.
fn is_piece(graph: &Graph, id: NodeId) -> bool {
    let node = graph.node(id);
    let Op::Slice { start, end, step } = &node.op else { return false };
    let sizes = graph.shape(node.inputs[0]).sizes();
    step.iter().all(|step| *step == 1) && (1..sizes.len()).all(|axis| (start[axis], end[axis]) == (0, sizes[axis]))
}

/// Do pieces of a value make it up, each element once?
fn tile(graph: &Graph, value: NodeId, pieces: &[NodeId]) -> bool {
    let range = |id: &NodeId| match &graph.node(*id).op {
        Op::Slice { start, end, .. } => Some((*start.first()?, *end.first()?)),
        _ => None,
    };
    let mut ranges: Vec<(u64, u64)> = pieces.iter().filter_map(range).collect();
    ranges.sort_unstable();
    let end = ranges.iter().try_fold(0, |at, (start, end)| (*start == at).then_some(*end));
    end.is_some_and(|end| end > 0 && end == graph.shape(value).size(0))
}

/// Terms over pieces that make up a value, as one term over that; those over other pieces are none.
fn whole(graph: &Graph, terms: Vec<Term>, readers: &[Vec<NodeId>]) -> Vec<Term> {
    let mut pieces: IndexMap<NodeId, Vec<Term>> = IndexMap::new();
    let mut all = Vec::new();
    for term in terms {
        match term.operands[..] {
            [one] if is_piece(graph, one) => pieces.entry(graph.node(one).inputs[0]).or_default().push(term),
            _ if term.operands.iter().any(|id| is_piece(graph, *id)) => {}
            _ => all.push(term),
        }
    }
    for (value, terms) in pieces {
        let slices: Vec<NodeId> = terms.iter().flat_map(|term| term.operands.clone()).collect();
        let elements = terms.iter().map(|term| term.elements).sum();
        let known: HashSet<NodeId> = slices.iter().copied().collect();
        let only = readers[value.index()].iter().all(|reader| known.contains(reader));
        if !only || !tile(graph, value, &slices) {
            continue;
        }
        let (mut reduces, mut own) = (SmallVec::new(), slices.clone());
        for term in terms {
            reduces.extend(term.reduces);
            own.extend(term.own);
        }
        all.push(Term { reduces, operands: SmallVec::from_slice(&[value]), slices, elements, own });
    }
    all
}

/// Cuts terms into chunks that fit the target, in the order in which they are computed; those of odd size come last, so
/// that they move no other from its alignment.
fn chunks(mut terms: Vec<Term>, target: &Target) -> Vec<Vec<Term>> {
    let bytes = |term: &Term| term.elements * DType::F32.bytes();
    let limit = target.fusion.chunk_bytes.min(target.max_binding_bytes).min(target.max_segment_bytes);
    terms.retain(|term| bytes(term) <= limit);
    let odd = |term: &Term| !bytes(term).is_multiple_of(target.alignment.max(1));
    terms.sort_by_key(|term| (odd(term), term.operands.iter().max().copied()));
    let mut chunks: Vec<Vec<Term>> = Vec::new();
    let mut room = 0;
    for term in terms {
        match chunks.last_mut().filter(|_| bytes(&term) <= room) {
            Some(chunk) => {
                room -= bytes(&term);
                chunk.push(term);
            }
            None => {
                room = limit - bytes(&term);
                chunks.push(vec![term]);
            }
        }
    }
    chunks.retain(|chunk| chunk.len() > 1);
    chunks
}

struct Joining<'g> {
    graph: &'g Graph,
    new: Graph,
    /// Where operands are read once they are joined.
    parts: HashMap<NodeId, NodeId>,
}

impl Joining<'_> {
    fn run(mut self, found: &Found) -> Result<Graph, OpError> {
        let graph = self.graph;
        let mut sums: Vec<Option<NodeId>> = vec![None; found.chunks.len()];
        let mut ends: HashMap<NodeId, Vec<usize>> = HashMap::default();
        found.chunks.iter().enumerate().for_each(|(at, chunk)| ends.entry(chunk.end).or_default().push(at));
        let mut moved: Vec<NodeId> = Vec::with_capacity(graph.nodes().len());
        for id in graph.ids() {
            let node = graph.node(id);
            let new = match found.roots.get(&id) {
                Some((chunks, rest)) => {
                    let joined = chunks.iter().filter_map(|chunk| sums[*chunk]);
                    let all: Vec<NodeId> = joined.chain(rest.iter().map(|leaf| moved[leaf.index()])).collect();
                    self.total(&all, node.origin)?
                }
                None => {
                    let input = |input: &NodeId| self.parts.get(input).copied().unwrap_or(moved[input.index()]);
                    let inputs = node.inputs.iter().map(input).collect();
                    self.new.copy(self.graph, id, inputs)?
                }
            };
            moved.push(new);
            for at in ends.remove(&id).unwrap_or_default() {
                sums[at] = Some(self.chunk(&found.chunks[at], &moved)?);
            }
        }
        self.new.take_names(graph, |id| Some(moved[id.index()]));
        Ok(self.new)
    }

    fn total(&mut self, terms: &[NodeId], origin: OriginId) -> Result<NodeId, OpError> {
        let (first, rest) = terms.split_first().ok_or_else(|| OpError::new("a sum without terms"))?;
        rest.iter().try_fold(*first, |sum, term| self.new.add(Op::Pointwise(ScalarOp::Add), &[sum, *term], origin))
    }

    /// Joins the operands of a chunk; the sum.
    fn chunk(&mut self, chunk: &Chunk, moved: &[NodeId]) -> Result<NodeId, OpError> {
        let count = chunk.terms.iter().map(|term| term.operands.len()).next().unwrap_or_default();
        let mut joined = Vec::new();
        for place in 0..count {
            let mut flat = Vec::new();
            for term in &chunk.terms {
                let id = term.operands[place];
                let shape = Shape::from([term.elements]);
                flat.push(self.new.add(Op::Reshape { shape }, &[moved[id.index()]], self.graph.node(id).origin)?);
            }
            joined.push(self.new.add(Op::Concat { axis: 0 }, &flat, chunk.origin)?);
            let mut start = 0;
            for term in &chunk.terms {
                let id = term.operands[place];
                let (origin, shape) = (self.graph.node(id).origin, self.graph.shape(id).clone());
                let end = start + term.elements;
                let slice = Op::Slice { start: vec![start], end: vec![end], step: vec![1] };
                let part = self.new.add(slice, &[joined[place]], origin)?;
                let part = self.new.add(Op::Reshape { shape }, &[part], origin)?;
                self.parts.insert(id, part);
                for slice in &term.slices {
                    let node = self.graph.node(*slice);
                    self.parts.insert(*slice, self.new.add(node.op.clone(), &[part], node.origin)?);
                }
                start = end;
            }
        }
        let shape = Shape::from([chunk.terms.iter().map(|term| term.elements).sum::<u64>()]);
        let mut stack = Vec::new();
        for item in &chunk.form {
            let value = match item {
                Item::Operand(place, _) => joined[*place],
                Item::Const(value, dtype) => {
                    let scalar = self.new.add(Op::Const { value: *value, dtype: *dtype }, &[], chunk.origin)?;
                    self.new.add(Op::Broadcast { shape: shape.clone(), dims: vec![] }, &[scalar], chunk.origin)?
                }
                Item::Apply(op) => {
                    let inputs = stack.split_off(stack.len().saturating_sub(op.arity()));
                    self.new.add(Op::Pointwise(*op), &inputs, chunk.origin)?
                }
            };
            stack.push(value);
        }
        let value = stack.pop().ok_or_else(|| OpError::new("a sum of nothing"))?;
        self.new.add(Op::Reduce { kind: ReduceKind::Sum, axes: vec![0] }, &[value], chunk.origin)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ir::{Builder, TensorType};

    /// The sizes of the values that are joined in `sum of f(x_i)`, when the graph is built by `terms` from an input of
    /// shape [n, 8].
    fn check(terms: impl Fn(&mut Builder<'_>, NodeId) -> Result<Vec<NodeId>, OpError>, joined: &[u64]) {
        let mut graph = Graph::new("sums");
        let mut builder = Builder::new(&mut graph, OriginId::default());
        let built = builder.input("x", TensorType::f32([4, 8])).and_then(|x| {
            let terms = terms(&mut builder, x)?;
            let square = |builder: &mut Builder<'_>, id: NodeId| {
                let square = builder.mul(id, id)?;
                let axes: Vec<usize> = (0..builder.graph.shape(square).rank()).collect();
                builder.reduce(ReduceKind::Sum, square, &axes, false)
            };
            let squares = terms.iter().map(|id| square(&mut builder, *id)).collect::<Result<Vec<_>, _>>()?;
            squares[1..].iter().try_fold(squares[0], |sum, term| builder.add(sum, *term))
        });
        let sum = built.expect("well typed");
        graph.outputs.insert("sum".into(), sum);
        let target = Target { max_binding_bytes: 4096, ..Target::cpu() };
        let new = join_sums(&graph, &target).expect("well typed");
        let concats = new.ids().filter(|id| matches!(new.node(*id).op, Op::Concat { .. }));
        assert_eq!(concats.map(|id| new.shape(id).elements()).collect::<Vec<_>>(), joined);
        crate::ir::verify(&new).expect("well typed");
    }

    fn products(b: &mut Builder<'_>, x: NodeId, sizes: &[u64]) -> Result<Vec<NodeId>, OpError> {
        let product = |(index, size): (usize, &u64)| {
            let w = b.state(&format!("w{index}"), TensorType::f32([8, *size]))?;
            b.matmul(x, w)
        };
        sizes.iter().enumerate().map(product).collect()
    }

    #[test]
    fn squares_of_many_results_become_one_sum() {
        check(|b, x| products(b, x, &[4, 8, 4, 16]), &[16 + 32 + 16 + 64]);
    }

    #[test]
    fn few_are_left_alone() {
        check(|b, x| products(b, x, &[4, 8, 4]), &[]);
    }

    #[test]
    fn chunks_are_no_larger_than_the_target_binds() {
        check(|b, x| products(b, x, &[128, 64, 128, 128]), &[512 + 256, 512 + 512]);
        check(|b, x| products(b, x, &[512, 64, 64, 64]), &[3 * 256]);
    }

    #[test]
    fn those_of_odd_size_come_last() {
        let order = |b: &mut Builder<'_>, x| {
            let mut all = products(b, x, &[4, 8, 16, 4])?;
            all.insert(0, b.slice(x, &[0, 0], &[3, 1], &[1, 1]).and_then(|part| b.exp(part))?);
            Ok(all)
        };
        check(order, &[3 + 16 + 32 + 64 + 16]);
    }

    #[test]
    fn state_is_not_copied_for_its_norm() {
        check(|b, _| (0..8).map(|i| b.state(&format!("w{i}"), TensorType::f32([8, 8]))).collect(), &[]);
    }

    #[test]
    fn what_is_read_before_all_are_known_stays_where_it_is() {
        let chain = |b: &mut Builder<'_>, x: NodeId| {
            let mut all = products(b, x, &[8, 4, 4, 4, 4])?;
            // Read at once.
            let next = b.matmul(all[0], all[0]).or_else(|_| {
                let turned = b.transpose(all[0], &[1, 0])?;
                b.matmul(all[0], turned)
            })?;
            all.push(next);
            Ok(all)
        };
        check(chain, &[4 * 16 + 16]);
    }
}
