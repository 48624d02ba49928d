//! Where each node is computed: the rules of fusion.
//!
//! Nodes are placed from last to first, so a node sees all of its readers. In order of preference it is
//! 1. computed where it is read (no store, no load), if one place reads it or if computing it again is cheap;
//! 2. computed in one of the groups that read it and stored by it, if that makes no cycle;
//! 3. the root of a group of its own, which its inputs may join.
//!
//! A reduction joins a group whose rows (or whose points) are its results; values of a row's shape then are computed once
//! per row. A product takes the pointwise group that reads it at its own points as epilogue.

use super::group::{Group, GroupId, Groups, Input, Kind, Member, MemberId, Refusal, Use, What};
use super::layout::{Chain, Cuts, Layout, ViewOp, inverse};
use super::looked;
use super::reads::Inputs;
use super::space::Space;
use crate::diag::Diagnostic;
use crate::hash::HashMap;
use crate::ir::NodeId;
use crate::ops::{Dot, Op};

/// A node seen from one place of a group.
#[derive(Clone, Debug)]
pub(super) struct Site {
    pub(super) group: GroupId,
    pub(super) row: bool,
    pub(super) chain: Chain,
    pub(super) layout: Layout,
    pub(super) uses: Vec<Use>,
    pub(super) height: u32,
    /// The group must first become a reduction whose rows start at this dimension.
    pub(super) split: Option<usize>,
}

impl<'g> Groups<'g> {
    /// Places a node; all of its readers are placed.
    ///
    /// # Errors
    /// Operands cannot be read as they are, which only a defect of `prepare` can cause.
    pub(super) fn place(&mut self, id: NodeId) -> Result<(), Diagnostic> {
        let uses = self.take_uses(id);
        if uses.is_empty() && !self.required[id.index()] {
            return Ok(());
        }
        let graph = self.graph;
        match &graph.node(id).op {
            Op::Input { .. } | Op::State { .. } => self.load(id, &uses),
            Op::Concat { .. } if self.adjoined.contains_key(&id) => self.load(id, &uses),
            Op::Pointwise(_) | Op::Const { .. } | Op::Iota { .. } | Op::Random { .. } | Op::Gather { .. } => {
                self.place_value(id, uses)?;
            }
            Op::Reduce { axes, .. } => self.place_reduce(id, axes, uses)?,
            Op::Dot(dot) => self.place_dot(id, dot, uses)?,
            Op::Conv2d(conv) => self.place_whole(|member| Kind::Conv2d(member, conv), id, What::Node, &uses)?,
            Op::ScatterAdd { batch, rows } => {
                self.place_whole(|member| Kind::ScatterAdd(member, *batch, *rows), id, What::Node, &uses)?;
            }
            Op::Attention(op) => self.place_attention(id, op, uses)?,
            Op::Concat { axis } => self.place_concat(id, *axis, &uses)?,
            Op::Pad { low, interior, .. } => self.place_pad(id, low, interior, &uses)?,
            // Every other op is a view.
            _ => self.place_whole(|_| Kind::Map, id, What::Copy(0), &uses)?,
        }
        Ok(())
    }

    /// The places that compute with a node, and the uses that need it in memory.
    pub(super) fn sites(&self, id: NodeId, uses: Vec<Use>) -> (Vec<Site>, Vec<Use>) {
        let sizes = self.sizes(id);
        let mut sites: Vec<Site> = Vec::new();
        let mut of_group: HashMap<GroupId, Vec<usize>> = HashMap::default();
        let mut whole = Vec::new();
        for (member, operand) in uses {
            let reader = self.member(member);
            if self.reads_memory(reader.node) {
                whole.push((member, operand));
                continue;
            }
            let group = self.group_of(member);
            let reduces = matches!(self.graph.node(reader.node).op, Op::Reduce { .. });
            let mut row = reader.row && !reduces;
            let mut chain = self.chain_to(member, operand, id);
            let Some(mut layout) = Layout::through(&sizes, &chain) else {
                whole.push((member, operand)); // excluded by `readable`
                continue;
            };
            let start = self.row_start(id, self.group(group), &layout).filter(|_| !row);
            if let Some(start) = start {
                let domain = self.group(group).space().sizes();
                let first = domain.iter().enumerate().map(|(dim, size)| (0, if dim < start { *size } else { 1 }, 1));
                let of_row = [ViewOp::Slice(first.collect()), ViewOp::Reshape(domain[..start].to_vec())];
                if let Some(once) = of_row.iter().try_fold(layout.clone(), |layout, view| layout.apply(view)) {
                    chain.extend(of_row);
                    (row, layout) = (true, once);
                }
            }
            let split = start.filter(|_| row && self.group(group).kind() == Kind::Map);
            let height = reader.height + u32::from(reduces);
            let known = of_group.entry(group).or_default();
            looked("sites of a value", 1 + known.len());
            match known.iter().find(|at| sites[**at].row == row && sites[**at].layout == layout) {
                Some(at) => {
                    sites[*at].uses.push((member, operand));
                    sites[*at].height = sites[*at].height.max(height);
                }
                None => {
                    known.push(sites.len());
                    sites.push(Site { group, row, chain, layout, uses: vec![(member, operand)], height, split });
                }
            }
        }
        (sites, whole)
    }

    /// Where the rows of a group begin for which this value is one per row: those of a reduction, or those that a pointwise
    /// group would get when the reduction below the value joined it.
    fn row_start(&self, id: NodeId, group: &Group<'_>, layout: &Layout) -> Option<usize> {
        let kept = group.space().kept();
        match group.kind() {
            Kind::Reduction if layout.is_constant_from(kept.len()) => Some(kept.len()),
            Kind::Map => {
                let length = self.facts[id.index()]
                    .row_length
                    .filter(|length| (2..=self.fusion.longest_row).contains(length))?;
                let start = (0..kept.len()).rev().find(|dim| {
                    let row: u64 = kept[*dim..].iter().product();
                    row >= length
                })?;
                let row: u64 = kept[start..].iter().product();
                let rows: u64 = kept[..start].iter().product();
                let fits = row == length && rows == self.graph.shape(id).elements() && self.fuse;
                (fits && layout.is_constant_from(start)).then_some(start)
            }
            _ => None,
        }
    }

    fn loads_of(&mut self, id: NodeId, sites: &[Site], whole: &[Use]) {
        for site in sites {
            self.load(id, &site.uses);
        }
        self.load(id, whole);
    }

    fn place_value(&mut self, id: NodeId, uses: Vec<Use>) -> Result<(), Diagnostic> {
        let (mut sites, whole) = self.sites(id, uses);
        let needed = self.required[id.index()] || !whole.is_empty();
        if self.fuse && !needed {
            let anywhere = self.facts[id.index()].cheap || sites.len() == 1;
            if anywhere || self.merge_readers(&mut sites) {
                sites = self.inline(id, sites);
            }
            if sites.is_empty() {
                return Ok(());
            }
        }
        self.host_or_root(id, sites, &whole)
    }

    /// Stores the value in a group that computes with it, or in a new one.
    fn host_or_root(&mut self, id: NodeId, mut sites: Vec<Site>, whole: &[Use]) -> Result<(), Diagnostic> {
        let host = if self.fuse { self.host(id, &sites) } else { None };
        let joined = match host {
            Some((at, inputs)) => {
                let site = sites.swap_remove(at);
                self.join(id, &site, inputs).map_err(|why| self.fault(id, &why.to_string()))?
            }
            None => self.root(|_| Kind::Map, id, What::Node, Space::new(self.sizes(id), vec![]))?,
        };
        self.store(joined, id, None);
        self.loads_of(id, &sites, whole);
        Ok(())
    }

    /// Computes the value at all sites; those that remain (usually all or none) need it stored.
    fn inline(&mut self, id: NodeId, sites: Vec<Site>) -> Vec<Site> {
        if !sites.iter().all(|site| self.worthwhile(id, site).is_ok() && self.ready(id, site, false).is_ok()) {
            return sites;
        }
        let mut remaining = Vec::new();
        for site in sites {
            // Again, since an earlier site may have been in the same group.
            match self.ready(id, &site, false).and_then(|inputs| self.join(id, &site, inputs)) {
                Ok(_) => self.drop_operand(site.group, id),
                Err(_) => remaining.push(site),
            }
        }
        for site in &remaining {
            self.keep_operand(site.group, id);
        }
        remaining
    }

    /// Is the value not computed again and again for one element?
    fn worthwhile(&self, id: NodeId, site: &Site) -> Result<(), Refusal> {
        let space = self.group(site.group).space();
        let points = match (site.row, site.split) {
            (false, _) => space.points(),
            (true, None) => space.rows(),
            (true, Some(start)) => space.kept()[..start].iter().product(),
        };
        let few = self.facts[id.index()].trivial || points < self.fusion.repeated * site.layout.distinct();
        few.then_some(()).ok_or(Refusal::Repeated)
    }

    /// The space of a site's group as the site needs it.
    fn space_at(&self, site: &Site) -> Space {
        let group = self.group(site.group);
        match site.split {
            // A split changes the roles of dimensions, not the dimensions.
            Some(start) if group.kind() == Kind::Map => group.space().split(start),
            _ => group.space().clone(),
        }
    }

    /// The inputs of the node as a member at this site, if it fits there.
    fn ready(&self, id: NodeId, site: &Site, stored: bool) -> Result<Inputs, Refusal> {
        let inputs = self.inputs(&self.space_at(site), id, What::Node, &site.chain)?;
        self.admits(site.group, &inputs.operands, (!stored).then_some(id))?;
        Ok(inputs)
    }

    /// Adds the node at a site; its uses there read the new member.
    fn join(&mut self, id: NodeId, site: &Site, inputs: Inputs) -> Result<MemberId, Refusal> {
        if site.split.is_some() {
            self.make_rows(site.group, self.space_at(site))?;
        }
        Ok(self.seat(id, site, inputs))
    }

    /// Adds the node at a site of a group that has the space for it.
    fn seat(&mut self, id: NodeId, site: &Site, inputs: Inputs) -> MemberId {
        let Site { group, row, ref chain, height, .. } = *site;
        let member = Member { row, chain: chain.clone(), height, ..Member::new(group, id, What::Node) };
        let member = self.add(member, inputs);
        self.wire(&site.uses, member);
        member
    }

    /// Makes one group of all groups that read the value at its own points, so that it need not be stored.
    fn merge_readers(&mut self, sites: &mut Vec<Site>) -> bool {
        let Some((first, rest)) = sites.split_first() else { return false };
        let group = first.group;
        let alike = rest.iter().all(|site| {
            site.group != group && site.row == first.row && site.layout == first.layout && site.split == first.split
        });
        let groups: Vec<GroupId> = rest.iter().map(|site| site.group).collect();
        if !alike || !groups.iter().all(|other| self.merge(group, *other).is_ok()) {
            // Groups merged before a failure stay merged: the sites follow them.
            for site in sites.iter_mut() {
                site.group = self.find(site.group);
            }
            return false;
        }
        let merged = Site {
            uses: sites.iter().flat_map(|site| site.uses.iter().copied()).collect(),
            height: sites.iter().map(|site| site.height).max().unwrap_or(0),
            ..sites[0].clone()
        };
        *sites = vec![merged];
        true
    }

    /// The first site whose group can store the value without waiting for one of the other readers.
    fn host(&mut self, id: NodeId, sites: &[Site]) -> Option<(usize, Inputs)> {
        let alone = alone(sites);
        for (index, site) in sites.iter().enumerate() {
            if self.can_store(id, site)
                && !self.group(site.group).is_late()
                && alone[index]
                && self.no_reader_before(site.group)
                && let Ok(inputs) = self.ready(id, site, true)
            {
                return Some((index, inputs));
            }
        }
        None
    }

    /// Does a site visit every element once, in an order in which they can be written?
    fn can_store(&self, id: NodeId, site: &Site) -> bool {
        let elements = self.graph.shape(id).elements();
        let rows = self.group(site.group).kind() == Kind::Reduction || site.split.is_some();
        match (rows, site.row) {
            (true, false) => {
                // Where a product can compute and store it, it is better off.
                site.layout.is_identity(elements) && !self.facts[id.index()].after_product
            }
            _ => site.layout.is_bijection(elements),
        }
    }

    fn place_reduce(&mut self, id: NodeId, axes: &[usize], uses: Vec<Use>) -> Result<(), Diagnostic> {
        let (mut sites, whole) = self.sites(id, uses);
        let sizes = self.sizes(self.graph.node(id).inputs[0]);
        let needed = self.required[id.index()] || !whole.is_empty();
        let only = sites.len() == 1 && !needed;
        let tail: Vec<u64> = axes.iter().map(|axis| sizes[*axis]).collect();
        let mut joined = None;
        let candidates = if self.fuse { alone(&sites) } else { Vec::new() };
        for index in (0..candidates.len()).filter(|index| candidates[*index]) {
            let site = &sites[index];
            let late = self.group(site.group).is_late();
            if late || !(only || self.can_store_row(id, site)) || !self.no_reader_before(site.group) {
                continue;
            }
            if let Ok(member) = self.join_reduce(id, site, &tail, !only) {
                joined = Some(member);
                sites.remove(index);
                break;
            }
        }
        let stored = !only || joined.is_none();
        let member = match joined {
            Some(member) => member,
            None => self.root(|_| Kind::Reduction, id, What::Node, Space::new(self.sizes(id), tail))?,
        };
        if stored {
            self.store(member, id, None);
        }
        self.loads_of(id, &sites, &whole);
        Ok(())
    }

    fn can_store_row(&self, id: NodeId, site: &Site) -> bool {
        site.layout.is_bijection(self.graph.shape(id).elements())
    }

    /// Adds a reduction to a group whose rows or points are its results.
    fn join_reduce(&mut self, id: NodeId, site: &Site, tail: &[u64], stored: bool) -> Result<MemberId, Refusal> {
        if site.height >= self.fusion.most_stages {
            return Err(Refusal::Stages);
        }
        let group = self.group(site.group);
        let space = match (group.kind(), site.row, site.split) {
            (Kind::Reduction, true, None) if group.space().row_length() == tail.iter().product::<u64>() => {
                group.space().clone()
            }
            (Kind::Map, true, Some(start)) => group.space().split(start),
            (Kind::Map, false, None) if group.space().rows() == self.graph.shape(id).elements() => {
                group.space().over(tail)
            }
            (Kind::Map | Kind::Reduction, ..) => return Err(Refusal::Space),
            _ => return Err(Refusal::Kind),
        };
        self.worthwhile(id, site)?;
        let inputs = self.inputs(&space, id, What::Node, &site.chain)?;
        let without = (!stored).then_some(id);
        self.admits(site.group, &inputs.operands, without)?;
        self.make_rows(site.group, space)?;
        if let Some(id) = without {
            self.drop_operand(site.group, id);
        }
        Ok(self.seat(id, &Site { row: true, ..site.clone() }, inputs))
    }

    fn place_dot(&mut self, id: NodeId, dot: &'g Dot, uses: Vec<Use>) -> Result<(), Diagnostic> {
        let (mut sites, whole) = self.sites(id, uses);
        let needed = self.required[id.index()] || !whole.is_empty();
        // The first to read it is the one to compute it: for a later one it would have to wait in memory anyway.
        sites.sort_by_key(|site| site.uses.iter().map(|(member, _)| self.member(*member).node).min());
        let space = Space::of_product(self.product_domain(id, dot));
        let only = sites.len() == 1 && !needed;
        // A group that also reads the product at other points can only do so when all of it is stored.
        let candidates = if self.fuse { alone(&sites) } else { Vec::new() };
        let mut host = None;
        for index in (0..candidates.len()).filter(|index| candidates[*index]) {
            let group = sites[index].group;
            if !self.group(group).is_late()
                && let Ok((space, back)) = self.epilogue(id, &sites[index], &space)
                && self.no_reader_before(group)
            {
                host = Some((sites.remove(index), space, back));
                break;
            }
        }
        let hosted = host.is_some();
        let (group, uses, space, back) = match host {
            Some((site, space, back)) => (site.group, site.uses, space, back),
            None => (self.new_group(Kind::Map, space.clone()), Vec::new(), space, Chain::new()),
        };
        let product = self.add_product(group, id, dot, space, &back);
        let product = product.map_err(|why| self.fault(id, &why.to_string()))?;
        self.wire(&uses, product);
        match only && hosted {
            true => self.drop_operand(group, id),
            false => self.store(product, id, None),
        }
        self.loads_of(id, &sites, &whole);
        Ok(())
    }

    /// `[batch.., m, n]`.
    fn product_domain(&self, id: NodeId, dot: &Dot) -> Vec<u64> {
        let result = self.sizes(id);
        let batch = dot.batch.len();
        let free = self.graph.shape(self.graph.node(id).inputs[0]).rank() - batch - dot.contract.len();
        let (m, n) = result[batch..].split_at(free);
        [&result[..batch], &[m.iter().product(), n.iter().product()]].concat()
    }

    /// The space of a product as a pointwise group cuts it, and the way there from the group's own, if the group can be the
    /// product's epilogue.
    fn epilogue(&self, id: NodeId, site: &Site, space: &Space) -> Result<(Space, Chain), Refusal> {
        let group = self.group(site.group);
        if group.kind() != Kind::Map {
            return Err(Refusal::Kind);
        }
        if !site.layout.is_bijection(self.graph.shape(id).elements()) {
            return Err(Refusal::Space);
        }
        self.admits_factors(site.group)?;
        let mut back = inverse(&self.sizes(id), &site.chain).ok_or(Refusal::Space)?;
        back.push(ViewOp::Reshape(space.sizes()));
        let mut space = space.clone();
        space.refine(self.cuts_over(group, &back, space.cuts().clone()).ok_or(Refusal::Access)?);
        Ok((space, back))
    }

    /// Cuts refined by all that a pointwise group reads and stores, seen from another domain of as many points.
    pub(super) fn cuts_over(&self, group: &Group<'_>, back: &Chain, mut cuts: Cuts) -> Option<Cuts> {
        for member in group.members() {
            let m = self.member(*member);
            let chain: Chain = m.chain.iter().chain(back).cloned().collect();
            if m.what == What::Node && self.reads_memory(m.node) {
                return None; // a gather; its indices would have to be affine too
            }
            let own = match m.what {
                What::Node => self.layout(m.node, &chain)?,
                _ => Layout::through(&self.member_sizes(m), &chain)?,
            };
            if !cuts.add(&own) {
                return None;
            }
            for (operand, input) in m.inputs.iter().enumerate() {
                let (Input::Pending(value) | Input::Load(value)) = *input else { continue };
                let mut chain = self.chain_to(*member, operand, value);
                chain.extend(back.iter().cloned());
                if !cuts.add(&self.layout(value, &chain)?) {
                    return None;
                }
            }
        }
        for store in group.stores() {
            let chain: Chain = self.store_chain(store).into_iter().chain(back.iter().cloned()).collect();
            if !cuts.add(&Layout::through(&self.sizes(store.target), &chain)?) {
                return None;
            }
        }
        Some(cuts)
    }

    /// The shape that a member's chain starts from.
    fn member_sizes(&self, member: &Member) -> Vec<u64> {
        match (member.what, &self.graph.node(member.node).op) {
            (What::Copy(part), Op::Concat { .. } | Op::Pad { .. }) => {
                self.sizes(self.graph.node(member.node).inputs[part])
            }
            _ => self.sizes(member.node),
        }
    }

    /// What has no part in fusion: a kernel of its own.
    fn place_whole(
        &mut self,
        kind: impl FnOnce(MemberId) -> Kind<'g>,
        id: NodeId,
        what: What,
        uses: &[Use],
    ) -> Result<(), Diagnostic> {
        let root = self.root(kind, id, what, Space::new(self.sizes(id), vec![]))?;
        self.store(root, id, None);
        self.load(id, uses);
        Ok(())
    }

    /// Every part is copied, or computed, into its region.
    fn place_concat(&mut self, id: NodeId, axis: usize, uses: &[Use]) -> Result<(), Diagnostic> {
        let mut start = 0;
        for (index, part) in self.graph.node(id).inputs.iter().enumerate() {
            let sizes = self.sizes(*part);
            let region = sizes.iter().enumerate();
            let region = region.map(|(dim, size)| (if dim == axis { start } else { 0 }, *size, 1)).collect();
            start += sizes[axis];
            let root = self.root(|_| Kind::Map, id, What::Copy(index), Space::new(sizes, vec![]))?;
            self.store(root, id, Some(ViewOp::Slice(region)));
        }
        self.load(id, uses);
        Ok(())
    }

    /// Zeros everywhere, then the input in its region.
    fn place_pad(&mut self, id: NodeId, low: &[u64], interior: &[u64], uses: &[Use]) -> Result<(), Diagnostic> {
        let zeros = self.root(|_| Kind::Map, id, What::Zero, Space::new(self.sizes(id), vec![]))?;
        self.store(zeros, id, None);
        let sizes = self.sizes(self.graph.node(id).inputs[0]);
        let region = low.iter().zip(&sizes).zip(interior).map(|((low, size), gap)| (*low, *size, gap + 1)).collect();
        let copy = self.root(|_| Kind::Map, id, What::Copy(0), Space::new(sizes, vec![]))?;
        self.store(copy, id, Some(ViewOp::Slice(region)));
        self.order(zeros, copy);
        self.load(id, uses);
        Ok(())
    }
}

/// Of each site, whether no other one is in its group.
fn alone(sites: &[Site]) -> Vec<bool> {
    let mut count: HashMap<GroupId, u32> = HashMap::default();
    sites.iter().for_each(|site| *count.entry(site.group).or_default() += 1);
    sites.iter().map(|site| count.get(&site.group) == Some(&1)).collect()
}
