//! The packed graph, for a number of rows.

use alip_plan::packing::{Group, Role};

use super::region::{Packing, Region};
use crate::hash::HashMap;
use crate::ir::{Builder, DType, Dim, Graph, NodeId, OriginId, Shape, TensorType};
use crate::ops::attention::{Attention, Rows};
use crate::ops::axes::{Layout, Operand, Operands, PackedCall};
use crate::ops::{Op, OpError};

type Result<T = NodeId> = std::result::Result<T, OpError>;

/// The graph in which the regions have so many rows.
pub(super) fn rewrite(graph: &Graph, regions: &[Region], rows: &[u64]) -> Result<Graph> {
    let mut rewrite = Rewrite {
        graph,
        new: graph.successor(),
        whole: vec![None; graph.nodes().len()],
        regions: regions
            .iter()
            .zip(rows)
            .enumerate()
            .map(|(number, (region, rows))| Rowed::new(number, region, *rows))
            .collect(),
    };
    let mut reader = vec![None; graph.nodes().len()];
    for (number, region) in regions.iter().enumerate() {
        region.reads.iter().for_each(|id| reader[id.index()] = Some(number));
    }
    for id in graph.ids() {
        rewrite.node(id, reader[id.index()])?;
    }
    for id in graph.inputs.values().chain(graph.outputs.values()).chain(graph.updates.values()) {
        rewrite.whole(*id)?;
    }
    let Rewrite { mut new, whole, regions, .. } = rewrite;
    new.take_names(graph, |id| whole[id.index()]);
    for rowed in &regions {
        new.inputs.extend(rowed.inputs.iter().map(|(role, id)| (role.input(rowed.number), *id)));
    }
    Ok(new)
}

/// A region on its way.
struct Rowed<'a> {
    number: usize,
    region: &'a Region,
    rows: u64,
    /// Inputs that say where rows are, as they were needed.
    inputs: Vec<(Role, NodeId)>,
    values: HashMap<NodeId, NodeId>,
}

impl<'a> Rowed<'a> {
    fn new(number: usize, region: &'a Region, rows: u64) -> Rowed<'a> {
        Rowed { number, region, rows, inputs: Vec::new(), values: HashMap::default() }
    }
}

struct Rewrite<'a> {
    graph: &'a Graph,
    new: Graph,
    /// Values as they were.
    whole: Vec<Option<NodeId>>,
    regions: Vec<Rowed<'a>>,
}

impl Rewrite<'_> {
    fn node(&mut self, id: NodeId, reader: Option<usize>) -> Result<()> {
        let node = self.graph.node(id);
        let mut packs = false;
        for number in 0..self.regions.len() {
            let Some((layout, packing)) = self.regions[number].region.values.get(&id) else { continue };
            let value = match packing {
                Packing::Op(operands) => self.packed(number, id, *layout, operands)?,
                // With counters of its own it is picked like anything else.
                Packing::Pick
                    if matches!(node.op, Op::Random { .. }) && node.inputs.len() == 2 && *layout == Layout::FIRST =>
                {
                    self.drawn(number, id)?
                }
                Packing::Pick => {
                    let whole = self.whole(id)?;
                    self.pick(number, whole, *layout, node.origin)?
                }
            };
            self.regions[number].values.insert(id, value);
            packs = true;
        }
        if let Some(number) = reader {
            self.whole[id.index()] = Some(self.read(number, id)?);
        } else if !packs {
            self.whole(id)?;
        }
        Ok(())
    }

    /// The value as it was. Of packed values, integers and what is repeated may be read as a whole too: they are computed
    /// where they are.
    fn whole(&mut self, id: NodeId) -> Result {
        if let Some(copied) = self.whole[id.index()] {
            return Ok(copied);
        }
        let node = self.graph.node(id);
        let inputs = node.inputs.iter().map(|input| self.whole(*input)).collect::<Result<_>>()?;
        let copied = self.new.copy(self.graph, id, inputs)?;
        self.whole[id.index()] = Some(copied);
        Ok(copied)
    }

    fn rows(&self, number: usize, id: NodeId) -> Result {
        let found = self.regions[number].values.get(&id);
        found.copied().ok_or_else(|| OpError::new(format!("%{} is not packed, but its rows are read", id.0)))
    }

    /// An input that says where rows are.
    fn input(&mut self, number: usize, role: Role) -> Result {
        let rowed = &mut self.regions[number];
        if let Some((_, id)) = rowed.inputs.iter().find(|(known, _)| *known == role) {
            return Ok(*id);
        }
        let shape: Shape = role.shape(rowed.region.group, rowed.rows).into_iter().collect();
        let ty = TensorType::new(DType::I32, shape);
        let id = Builder::new(&mut self.new, OriginId::default()).input(&role.input(number), ty)?;
        rowed.inputs.push((role, id));
        Ok(id)
    }

    /// Dimensions `lead` of a value, taken together, picked for each row: `[rows, ..]`.
    fn picked(&mut self, number: usize, value: NodeId, lead: &[usize], role: Role, origin: OriginId) -> Result {
        let index = self.input(number, role)?;
        let mut b = Builder::new(&mut self.new, origin);
        let shape = b.graph.shape(value).clone();
        let rest = (0..shape.rank()).filter(|axis| !lead.contains(axis));
        let perm: Vec<usize> = lead.iter().copied().chain(rest.clone()).collect();
        let first = b.transpose(value, &perm)?;
        let together: u64 = lead.iter().map(|axis| shape.size(*axis)).product();
        let dims = std::iter::once(Dim::from(together)).chain(rest.map(|axis| shape.0[axis]));
        let flat = b.reshape(first, dims.collect())?;
        b.gather(flat, index, 0)
    }

    /// The rows of a value that was computed as written.
    fn pick(&mut self, number: usize, whole: NodeId, layout: Layout, origin: OriginId) -> Result {
        let Layout { samples, positions } = layout;
        let picked = self.picked(number, whole, &[samples, positions], Role::Source, origin)?;
        let mut b = Builder::new(&mut self.new, origin);
        let rank = b.graph.shape(picked).rank();
        let mut perm: Vec<usize> = (1..rank).collect();
        perm.insert(layout.rows(), 0);
        b.transpose(picked, &perm)
    }

    /// The rows of a draw: by the counters that they have in the whole, so that it need not be drawn.
    fn drawn(&mut self, number: usize, id: NodeId) -> Result {
        let node = self.graph.node(id);
        let shape = Layout::FIRST.shape(&node.ty.shape, self.regions[number].rows);
        let Op::Random { stream, lane, .. } = node.op else { return self.whole(id) };
        let (seed, step) = (self.whole(node.inputs[0])?, self.whole(node.inputs[1])?);
        let row = self.input(number, Role::Source)?;
        let mut b = Builder::new(&mut self.new, node.origin);
        let rows = shape.size(0);
        let inner = shape.elements() / rows;
        let (row, width) = (b.reshape(row, [rows, 1].into())?, b.constant(inner as f64, DType::I32)?);
        let first = b.mul(row, width)?;
        let within = b.iota([1, inner].into(), 1)?;
        let counters = b.add(first, within)?;
        let counters = b.reshape(counters, shape.clone())?;
        b.op(Op::Random { shape, stream, lane }, &[seed, step, counters])
    }

    /// A value of the region from packed operands.
    fn packed(&mut self, number: usize, id: NodeId, layout: Layout, operands: &Operands) -> Result {
        let node = self.graph.node(id);
        let shape = layout.shape(&node.ty.shape, self.regions[number].rows);
        if let Op::Broadcast { dims, .. } = &node.op {
            return self.broadcast(number, id, layout, operands[0], dims, shape);
        }
        let mut inputs = Vec::with_capacity(node.inputs.len());
        for (input, operand) in node.inputs.iter().zip(operands) {
            inputs.push(match operand {
                Operand::Rows(_) => self.rows(number, *input)?,
                _ => self.whole(*input)?,
            });
        }
        if matches!(node.op, Op::Attention(_)) {
            inputs.push(self.input(number, Role::Segments)?);
        }
        let op = node.op.packed(&PackedCall { layout, operands, shape: &shape });
        self.new.add(op, &inputs, node.origin)
    }

    fn broadcast(
        &mut self,
        number: usize,
        id: NodeId,
        layout: Layout,
        operand: Operand,
        dims: &[usize],
        shape: Shape,
    ) -> Result {
        let node = self.graph.node(id);
        let input = node.inputs[0];
        let kept = |axis: usize| layout.packed(dims[axis]);
        let (value, images): (NodeId, Vec<Option<usize>>) = match operand {
            Operand::Rows(from) => {
                let axes = (0..dims.len()).filter(|axis| *axis != from.positions);
                (self.rows(number, input)?, axes.map(kept).collect())
            }
            Operand::Same => (self.whole(input)?, (0..dims.len()).map(kept).collect()),
            Operand::Positions(axis) | Operand::Samples(axis) => {
                let by_position = matches!(operand, Operand::Positions(_));
                let role = if by_position { Role::Position } else { Role::Sample };
                let whole = self.whole(input)?;
                let value = self.picked(number, whole, &[axis], role, node.origin)?;
                // Size 1 along the other of the two is what it is repeated from.
                let other = if by_position { layout.samples } else { layout.positions };
                let image = |axis: usize| if dims[axis] == other { None } else { kept(axis) };
                let rest = (0..dims.len()).filter(|other| *other != axis).map(image);
                (value, std::iter::once(Some(layout.rows())).chain(rest).collect())
            }
        };
        let mut b = Builder::new(&mut self.new, node.origin);
        let sizes = b.graph.shape(value).clone();
        let squeezed = images.iter().zip(&sizes.0).filter(|(image, _)| image.is_some()).map(|(_, dim)| *dim);
        let value = b.reshape(value, squeezed.collect())?;
        let images: Vec<usize> = images.into_iter().flatten().collect();
        let mut order: Vec<usize> = (0..images.len()).collect();
        order.sort_by_key(|axis| images[*axis]);
        let value = b.transpose(value, &order)?;
        let dims: Vec<usize> = order.iter().map(|axis| images[*axis]).collect();
        if *b.graph.shape(value) == shape {
            return Ok(value);
        }
        b.op(Op::Broadcast { shape, dims }, &[value])
    }

    /// What was read at one position per sample: the last row of each.
    fn read(&mut self, number: usize, id: NodeId) -> Result {
        let node = self.graph.node(id);
        let Group { samples, .. } = self.regions[number].region.group;
        let rows = |rewrite: &Self, operand: usize| rewrite.rows(number, node.inputs[operand]);
        let result = match &node.op {
            Op::Attention(attention) => {
                let (k, v) = (rows(self, 1)?, rows(self, 2)?);
                let reads = self.input(number, Role::Reads)?;
                let query = self.whole(node.inputs[0])?;
                let mut b = Builder::new(&mut self.new, node.origin);
                let mut shape = b.graph.shape(query).clone();
                shape.0.remove(1);
                let query = b.reshape(query, shape)?;
                // One query sees all rows of its sample, causal or not.
                let op = Attention { rows: Rows::Segments, causal: false, ..attention.clone() };
                b.op(Op::Attention(op), &[query, k, v, reads])?
            }
            _ => {
                let (value, last) = (rows(self, 0)?, self.input(number, Role::Last)?);
                debug_assert_eq!(self.new.shape(last).size(0), samples);
                self.new.add(Op::Gather { batch: 0 }, &[value, last], node.origin)?
            }
        };
        Builder::new(&mut self.new, node.origin).reshape(result, node.ty.shape.clone())
    }
}
