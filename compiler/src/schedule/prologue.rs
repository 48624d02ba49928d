//! What a convolution computes of the bytes of its image, as it reads them.
//!
//! An image that is pointwise arithmetic on an input in bytes is never stored: it would be four times as large as what it is
//! made of, which the loops over pixels may as well read. Images of anything else are stored: windows overlap, so that a
//! convolution may read a pixel many times.

use alip_plan::check::register_type;

use super::group::{Groups, MemberId, Refusal};
use super::layout::{Chain, Layout, view_op};
use super::reads::Form;
use crate::hash::HashMap;
use crate::ir::{DType, NodeId, Real};
use crate::ops::{Op, ScalarOp, rounds_to};

/// A step of a prologue; arguments are earlier steps.
pub(crate) enum Pixel {
    /// A number.
    Const(Real, DType),
    /// The coordinates of a pixel as a number.
    Coordinate(Layout),
    /// The element of the bytes that lies so.
    Load(Layout),
    /// A scalar operation on numbers of this type.
    Point(ScalarOp, DType, Vec<u16>),
}

/// What makes pixels of bytes: the last step yields them. Layouts are over the image's own dimensions, with one stride each.
pub(crate) struct Prologue {
    /// The input in bytes.
    pub(crate) value: NodeId,
    pub(crate) steps: Vec<Pixel>,
    /// The nodes that are computed.
    pub(super) nodes: Vec<NodeId>,
}

impl Groups<'_> {
    /// The prologue of a convolution that has one.
    pub(crate) fn prologue(&self, member: MemberId) -> Option<Prologue> {
        let member = self.member(member);
        let node = self.graph.node(member.node);
        let loaded = member.inputs.first()?.loaded()?;
        let image = *node.inputs.first().filter(|_| Form::of(&node.op, 0) == Form::Image)?;
        self.pixels(image).ok().filter(|prologue| prologue.value == loaded)
    }

    /// How the pixels of an image are made of bytes.
    ///
    /// # Errors
    /// [`Refusal::Kind`] if they are made otherwise, [`Refusal::Members`] if a kernel would be too long, [`Refusal::Access`] if
    /// the bytes do not lie with one stride per dimension.
    pub(super) fn pixels(&self, image: NodeId) -> Result<Prologue, Refusal> {
        if !self.fuse {
            return Err(Refusal::Kind);
        }
        let (steps, nodes, made) = (Vec::new(), Vec::new(), HashMap::default());
        let mut making = Making { groups: self, bytes: None, steps, nodes, visits: 0, made };
        making.pixel(image, Chain::new())?;
        let (value, _) = making.bytes.ok_or(Refusal::Kind)?;
        Ok(Prologue { value, steps: making.steps, nodes: making.nodes })
    }
}

struct Making<'a, 'g> {
    groups: &'a Groups<'g>,
    /// What is read, in one way.
    bytes: Option<(NodeId, Layout)>,
    steps: Vec<Pixel>,
    nodes: Vec<NodeId>,
    /// Nodes looked at, views among them.
    visits: u32,
    /// Steps by node, where it is seen through no view.
    made: HashMap<NodeId, u16>,
}

impl Making<'_, '_> {
    /// The step that is a node, seen through views that lead to the image.
    fn pixel(&mut self, node: NodeId, chain: Chain) -> Result<u16, Refusal> {
        if let Some(made) = self.made.get(&node).filter(|_| chain.is_empty()) {
            return Ok(*made);
        }
        self.visits += 1;
        if self.visits > self.groups.fusion.most_members {
            return Err(Refusal::Members);
        }
        let graph = self.groups.graph;
        let whole = chain.is_empty();
        let of = graph.node(node);
        let step = match &of.op {
            Op::Const { value, dtype } => Pixel::Const(*value, *dtype),
            Op::Iota { .. } => Pixel::Coordinate(self.strided(node, &chain)?),
            Op::Input { .. } if of.ty.dtype == DType::U8 => {
                let bytes = (node, self.strided(node, &chain)?);
                match &self.bytes {
                    Some(known) if *known != bytes => return Err(Refusal::Access),
                    _ => self.bytes = Some(bytes.clone()),
                }
                Pixel::Load(bytes.1)
            }
            Op::Pointwise(op) => {
                let args = of.inputs.iter().map(|input| self.pixel(*input, chain.clone()));
                let args = args.collect::<Result<Vec<u16>, Refusal>>()?;
                let number = usize::from(*op == ScalarOp::Select);
                let dtype = of.inputs.get(number).map_or(of.ty.dtype, |input| graph.ty(*input).dtype);
                self.nodes.push(node);
                // In registers a byte is a float already.
                if *op == ScalarOp::Cast(DType::F32) && register_type(dtype) == DType::F32 {
                    return Ok(args[0]);
                }
                Pixel::Point(rounds_to(*op).map_or(*op, ScalarOp::Cast), dtype, args)
            }
            _ => {
                let view = view_op(graph, node).ok_or(Refusal::Kind)?;
                return self.pixel(of.inputs[0], std::iter::once(view).chain(chain).collect());
            }
        };
        self.steps.push(step);
        let made = (self.steps.len() - 1) as u16;
        if whole {
            self.made.insert(node, made);
        }
        Ok(made)
    }

    fn strided(&self, node: NodeId, chain: &Chain) -> Result<Layout, Refusal> {
        self.groups.layout(node, chain).filter(|layout| layout.strides().is_some()).ok_or(Refusal::Access)
    }
}
