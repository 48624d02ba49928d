//! Groups of attention to kernels: roles to views.

use alip_plan::kernel::{self, AttentionResult, Loop, View};
use indexmap::IndexSet;

use crate::ir::NodeId;
use crate::ops::Op;
use crate::ops::attention::{Attention, Role, Rows, flops};
use crate::schedule::{Group, Groups, Input, Layout, MemberId};

/// The kernel of a group, and its operations.
pub(super) fn attention(groups: &Groups<'_>, group: &Group, operands: &mut IndexSet<NodeId>) -> (Loop, u64) {
    let lowering = Lowering { groups, group };
    let (op, inputs) = lowering.op(group.members[0]);
    let packed = op.rows == Rows::Segments;
    let lead = if packed { 1 } else { 2 };
    let shape = |index: usize| groups.sizes(inputs[index]);
    let (q, k) = (shape(0), shape(1));
    let mut view = |role: Role| lowering.operand(role, packed, operands);
    let (q_view, k_view) = (view(Role::Q).expect("all have queries"), view(Role::K).expect("all have keys"));
    let [v, extents, lse, g, delta] = [Role::V, Role::Rows, Role::Lse, Role::G, Role::Delta].map(view);
    let wide = lowering.input(Role::V).or(lowering.input(Role::G));
    let e = wide.and_then(|(member, operand)| groups.sizes(lowering.op(member).1[operand]).last().copied());
    let segments = lowering.input(Role::Rows).filter(|_| packed);
    let segments = segments.map_or(0, |(member, operand)| groups.sizes(lowering.op(member).1[operand])[1] - 1);
    let results = lowering.results(packed, operands);
    let kernel = kernel::Attention {
        rows: op.rows,
        samples: if packed { 1 } else { q[0] },
        segments,
        queries: q[lead - 1],
        keys: k[lead - 1],
        heads: q[lead],
        d: q[lead + 1],
        e: e.unwrap_or(0),
        causal: op.causal,
        scale: op.scale,
        q: q_view,
        k: k_view,
        v,
        extents,
        lse,
        g,
        delta,
        results,
    };
    let computed: Vec<AttentionResult> = kernel.results.iter().map(|(result, _)| *result).collect();
    let rows = [if packed { segments } else { kernel.samples }, kernel.queries, kernel.keys];
    let flops = flops(&computed, op, rows, [kernel.heads, kernel.d, kernel.e]);
    (Loop::Attention(Box::new(kernel)), flops)
}

struct Lowering<'a> {
    groups: &'a Groups<'a>,
    group: &'a Group,
}

impl<'a> Lowering<'a> {
    fn op(&self, member: MemberId) -> (&'a Attention, &'a [NodeId]) {
        let node = self.groups.graph.node(self.groups.members[member].node);
        let Op::Attention(op) = &node.op else { unreachable!("a group of attention has nothing else") };
        (op, &node.inputs)
    }

    /// The first member that has this input, and which of its operands it is.
    fn input(&self, role: Role) -> Option<(MemberId, usize)> {
        self.group.members.iter().find_map(|member| {
            let operand = self.op(*member).0.roles().iter().position(|of| *of == role)?;
            Some((*member, operand))
        })
    }

    fn operand(&self, role: Role, packed: bool, operands: &mut IndexSet<NodeId>) -> Option<View> {
        let (member, operand) = self.input(role)?;
        let (Input::Load(value) | Input::Pending(value)) = self.groups.members[member].inputs[operand] else {
            unreachable!("attention reads memory")
        };
        let chain = self.groups.chain_to(member, operand, value);
        let layout = Layout::through(&self.groups.sizes(value), &chain).expect("grouping admits strided operands only");
        Some(self.view(value, &layout, packed && role != Role::Rows, operands))
    }

    fn results(&self, packed: bool, operands: &mut IndexSet<NodeId>) -> Vec<(AttentionResult, View)> {
        let mut results: Vec<(AttentionResult, View)> = Vec::new();
        for store in &self.group.stores {
            let layout = Layout::through(&self.groups.sizes(store.target), &self.groups.store_chain(store));
            let layout = layout.expect("grouping stores strided only");
            let view = self.view(store.target, &layout, packed, operands);
            results.push((self.op(store.member).0.result, view));
        }
        results.sort_by_key(|(result, _)| *result);
        results
    }

    /// One stride per dimension; packed rows are those of one sample.
    fn view(&self, value: NodeId, layout: &Layout, one_sample: bool, operands: &mut IndexSet<NodeId>) -> View {
        let strides = layout.dims.iter().map(|atoms| atoms.first().map_or(0, |atom| atom.stride));
        View {
            operand: operands.insert_full(value).0 as u16,
            dtype: self.groups.graph.ty(value).dtype,
            offset: layout.offset,
            strides: one_sample.then_some(0).into_iter().chain(strides).collect(),
            gather: None,
        }
    }
}
