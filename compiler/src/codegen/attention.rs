//! Groups of attention to kernels: roles to views.

use alip_plan::kernel::{self, AttentionResult, Loop, View};

use super::operands::Operands;
use crate::diag::Diagnostic;
use crate::ir::NodeId;
use crate::ops::Op;
use crate::ops::attention::{Attention, Role, Rows, flops};
use crate::schedule::{Group, Groups, Layout, MemberId};

/// The kernel of a group for results of a call, and its operations.
pub(super) fn attention(
    groups: &Groups<'_>,
    group: &Group<'_>,
    op: &Attention,
    operands: &mut Operands,
) -> Result<(Loop, u64), Diagnostic> {
    let packed = op.rows == Rows::Segments;
    let mut lowering = Lowering { groups, group, packed, operands };
    let lead = if packed { 1 } else { 2 };
    let (q, k) = (lowering.needed(Role::Q)?, lowering.needed(Role::K)?);
    let mut view = |role: Role| lowering.read(role).transpose();
    let [v, extents, lse, g, delta] =
        [view(Role::V)?, view(Role::Rows)?, view(Role::Lse)?, view(Role::G)?, view(Role::Delta)?];
    let shape = |role: Role| lowering.input(role).map_or(Vec::new(), |(_, _, input)| groups.sizes(input));
    let (queries, keys) = (shape(Role::Q), shape(Role::K));
    let wide = [Role::V, Role::G].map(shape).into_iter().find_map(|sizes| sizes.last().copied());
    let segments = shape(Role::Rows).get(1).map_or(0, |edges| edges - 1);
    let results = lowering.results()?;
    let kernel = kernel::Attention {
        rows: op.rows,
        samples: if packed { 1 } else { queries[0] },
        segments,
        queries: queries[lead - 1],
        keys: keys[lead - 1],
        heads: queries[lead],
        d: queries[lead + 1],
        e: wide.unwrap_or(0),
        causal: op.causal,
        scale: op.scale,
        q,
        k,
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
    Ok((Loop::Attention(Box::new(kernel)), flops))
}

struct Lowering<'a, 'g> {
    groups: &'a Groups<'g>,
    group: &'a Group<'g>,
    packed: bool,
    operands: &'a mut Operands,
}

impl<'g> Lowering<'_, 'g> {
    fn op(&self, member: MemberId) -> Option<(&'g Attention, &'g [NodeId])> {
        let node = self.groups.graph.node(self.groups.member(member).node);
        if let Op::Attention(op) = &node.op { Some((op, &node.inputs)) } else { None }
    }

    /// The first member that has this input, which of its operands it is, and the input.
    fn input(&self, role: Role) -> Option<(MemberId, usize, NodeId)> {
        self.group.members().iter().find_map(|member| {
            let (op, inputs) = self.op(*member)?;
            let operand = op.roles().iter().position(|of| *of == role)?;
            Some((*member, operand, *inputs.get(operand)?))
        })
    }

    fn read(&mut self, role: Role) -> Option<Result<View, Diagnostic>> {
        let (member, operand, _) = self.input(role)?;
        let access = self.groups.access(member, operand);
        Some(access.and_then(|(value, layout)| self.view(value, &layout, self.packed && role != Role::Rows)))
    }

    fn needed(&mut self, role: Role) -> Result<View, Diagnostic> {
        let missing = "attention without queries or keys";
        self.read(role).unwrap_or_else(|| {
            let first = self.group.members().first().map_or(NodeId(0), |member| self.groups.member(*member).node);
            Err(self.groups.fault(first, missing))
        })
    }

    fn results(&mut self) -> Result<Vec<(AttentionResult, View)>, Diagnostic> {
        let mut results: Vec<(AttentionResult, View)> = Vec::new();
        for store in self.group.stores() {
            let fault = || self.groups.fault(store.target, "what is no result of attention");
            let (op, _) = self.op(store.member).ok_or_else(fault)?;
            let layout = self.groups.store_layout(store)?;
            results.push((op.result, self.view(store.target, &layout, self.packed)?));
        }
        results.sort_by_key(|(result, _)| *result);
        Ok(results)
    }

    /// One stride per dimension; packed rows are those of one sample.
    fn view(&mut self, value: NodeId, layout: &Layout, one_sample: bool) -> Result<View, Diagnostic> {
        let mut view = self.operands.strided(self.groups, value, layout)?;
        if one_sample {
            view.strides.insert(0, 0);
        }
        Ok(view)
    }
}
