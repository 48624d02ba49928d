//! Where each node is computed: the rules of fusion.
//!
//! Nodes are placed from last to first, so a node sees all of its readers. In order of preference it is
//! 1. computed where it is read (no store, no load), if one place reads it or if computing it again is cheap;
//! 2. computed in one of the groups that read it and stored by it, if that makes no cycle;
//! 3. the root of a group of its own, which its inputs may join.
//!
//! A reduction joins a group whose rows (or whose points) are its results; values of a row's shape then are computed once
//! per row. A product takes the pointwise group that reads it at its own points as epilogue.

use super::group::{Group, GroupId, Groups, Input, Kind, Member, MemberId, Site, What};
use super::layout::{Chain, Cuts, Layout, ViewOp, inverse, view_op};
use super::reads::Inputs;
use crate::ir::NodeId;
use crate::ops::{Dot, Op};

impl Groups<'_> {
    /// Places a node; all of its readers are placed.
    pub(crate) fn place(&mut self, id: NodeId) {
        let uses = std::mem::take(&mut self.uses[id.index()]);
        if uses.is_empty() && !self.required[id.index()] {
            return;
        }
        self.readers = uses.iter().map(|(member, _)| *member).collect();
        match &self.graph.node(id).op {
            Op::Input { .. } | Op::State { .. } => self.load(id, &uses),
            Op::Concat { .. } if self.adjoined.contains_key(&id) => self.load(id, &uses),
            Op::Pointwise(_) | Op::Const { .. } | Op::Iota { .. } | Op::Random { .. } | Op::Gather { .. } => {
                self.place_value(id, uses);
            }
            Op::Reduce { axes, .. } => self.place_reduce(id, &axes.clone(), uses),
            Op::Dot(dot) => self.place_dot(id, &dot.clone(), uses),
            Op::Conv2d(_) => self.place_whole(Kind::Conv2d, id, &uses),
            Op::ScatterAdd { .. } => self.place_whole(Kind::ScatterAdd, id, &uses),
            Op::Attention(op) => self.place_attention(id, &op.clone(), uses),
            Op::Concat { axis } => self.place_concat(id, *axis, &uses),
            Op::Pad { low, interior, .. } => self.place_pad(id, &low.clone(), &interior.clone(), &uses),
            _ => {
                debug_assert!(view_op(self.graph, id).is_some(), "every other op is a view");
                let root = self.root(Kind::Map, id, What::Copy(0), self.sizes(id), vec![]);
                self.store(root, id, None);
                self.load(id, &uses);
            }
        }
    }

    /// The places that compute with a node, and the uses that need it in memory.
    pub(super) fn sites(&self, id: NodeId, uses: Vec<(MemberId, usize)>) -> (Vec<Site>, Vec<(MemberId, usize)>) {
        let sizes = self.sizes(id);
        let mut sites: Vec<Site> = Vec::new();
        let mut whole = Vec::new();
        for (member, operand) in uses {
            let reader = &self.members[member];
            if self.whole_operands(reader.node) {
                whole.push((member, operand));
                continue;
            }
            let group = self.find(reader.group);
            let reduces = matches!(self.graph.node(reader.node).op, Op::Reduce { .. });
            let mut row = reader.row && !reduces;
            let mut chain = self.chain_to(member, operand, id);
            let Some(mut layout) = Layout::through(&sizes, &chain) else {
                whole.push((member, operand)); // excluded by `readable`
                continue;
            };
            let start = self.row_start(id, &self.groups[group], &layout).filter(|_| !row);
            if let Some(start) = start {
                let g = &self.groups[group];
                let domain = [g.kept.as_slice(), &g.reduced].concat();
                let first = domain.iter().enumerate().map(|(dim, size)| (0, if dim < start { *size } else { 1 }, 1));
                let of_row = [ViewOp::Slice(first.collect()), ViewOp::Reshape(domain[..start].to_vec())];
                if let Some(once) = of_row.iter().try_fold(layout.clone(), |layout, view| layout.apply(view)) {
                    chain.extend(of_row);
                    (row, layout) = (true, once);
                }
            }
            let split = start.filter(|_| row && self.groups[group].kind == Kind::Map);
            let height = reader.height + u32::from(reduces);
            match sites.iter_mut().find(|site| site.group == group && site.row == row && site.layout == layout) {
                Some(site) => {
                    site.uses.push((member, operand));
                    site.height = site.height.max(height);
                }
                None => sites.push(Site { group, row, chain, layout, uses: vec![(member, operand)], height, split }),
            }
        }
        (sites, whole)
    }

    /// Where the rows of a group begin for which this value is one per row: those of a reduction, or those that a pointwise
    /// group would get when the reduction below the value joined it.
    fn row_start(&self, id: NodeId, group: &Group, layout: &Layout) -> Option<usize> {
        match group.kind {
            Kind::Reduction if layout.is_constant_from(group.kept.len()) => Some(group.kept.len()),
            Kind::Map => {
                let longest = self.fusion.longest_row;
                let length = self.facts[id.index()].row_length.filter(|length| (2..=longest).contains(length))?;
                let start = (0..group.kept.len()).rev().find(|dim| {
                    let row: u64 = group.kept[*dim..].iter().product();
                    row >= length
                })?;
                let row: u64 = group.kept[start..].iter().product();
                let rows: u64 = group.kept[..start].iter().product();
                let fits = row == length && rows == self.graph.shape(id).elements() && self.fuse;
                (fits && layout.is_constant_from(start)).then_some(start)
            }
            _ => None,
        }
    }

    fn place_value(&mut self, id: NodeId, uses: Vec<(MemberId, usize)>) {
        let (mut sites, whole) = self.sites(id, uses);
        let needed = self.required[id.index()] || !whole.is_empty();
        if self.fuse && !needed {
            let anywhere = self.facts[id.index()].cheap || sites.len() == 1;
            if anywhere || self.merge_readers(&mut sites) {
                sites = self.inline(id, sites);
            }
            if sites.is_empty() {
                return;
            }
        }
        self.host_or_root(id, sites, &whole);
    }

    /// Stores the value in a group that computes with it, or in a new one.
    fn host_or_root(&mut self, id: NodeId, mut sites: Vec<Site>, whole: &[(MemberId, usize)]) {
        let host = if self.fuse { self.host(id, &sites) } else { None };
        match host {
            Some((site, inputs)) => {
                let site = sites.swap_remove(site);
                let member = self.join(id, &site, inputs);
                self.store(member, id, None);
            }
            None => {
                let root = self.root(Kind::Map, id, What::Node, self.sizes(id), vec![]);
                self.store(root, id, None);
            }
        }
        for site in &sites {
            self.load(id, &site.uses);
        }
        self.load(id, whole);
    }

    /// Computes the value at all sites; those that remain (usually all or none) need it stored.
    fn inline(&mut self, id: NodeId, sites: Vec<Site>) -> Vec<Site> {
        if !sites.iter().all(|site| self.worthwhile(id, site) && self.ready(id, site, false).is_some()) {
            return sites;
        }
        let mut remaining = Vec::new();
        for site in sites {
            // Again, since an earlier site may have been in the same group.
            match self.ready(id, &site, false) {
                Some(inputs) => {
                    self.join(id, &site, inputs);
                    self.groups[site.group].operands.remove(&id);
                }
                None => remaining.push(site),
            }
        }
        for site in &remaining {
            self.groups[site.group].operands.insert(id);
        }
        remaining
    }

    /// Is the value not computed again and again for one element?
    fn worthwhile(&self, id: NodeId, site: &Site) -> bool {
        let group = &self.groups[site.group];
        let all: u64 = group.kept.iter().chain(&group.reduced).product();
        let points = match (site.row, site.split) {
            (false, _) => all,
            (true, None) => group.kept.iter().product(),
            (true, Some(start)) => group.kept[..start].iter().product(),
        };
        self.facts[id.index()].trivial || points < self.fusion.repeated * site.layout.distinct()
    }

    /// The inputs of the node as a member at this site, if it fits there.
    fn ready(&self, id: NodeId, site: &Site, stored: bool) -> Option<Inputs> {
        let group = &self.groups[site.group];
        let inputs = match site.split {
            // A split changes the roles of dimensions, not the dimensions.
            Some(start) if group.kind == Kind::Map => {
                let (kept, reduced) = group.kept.split_at(start);
                let after = Group { kept: kept.to_vec(), reduced: reduced.to_vec(), ..group.clone() };
                self.inputs(&after, id, What::Node, &site.chain)?
            }
            _ => self.inputs(group, id, What::Node, &site.chain)?,
        };
        let mut operands = group.operands.clone();
        if !stored {
            operands.remove(&id);
        }
        operands.extend(inputs.operands.iter().copied());
        let fits = operands.len() <= self.max_operands && group.members.len() < self.fusion.most_members as usize;
        fits.then_some(inputs)
    }

    /// Adds the node at a site; its uses there read the new member.
    fn join(&mut self, id: NodeId, site: &Site, inputs: Inputs) -> MemberId {
        if let Some(start) = site.split {
            self.split(site.group, start);
        }
        let member = self.add_member(site.group, id, What::Node, site.row, site.chain.clone(), site.height, inputs);
        for (reader, operand) in &site.uses {
            self.members[*reader].inputs[*operand] = Input::Member(member);
        }
        member
    }

    /// Makes a pointwise group loop over rows.
    fn split(&mut self, group: GroupId, start: usize) {
        let group = &mut self.groups[group];
        if group.kind == Kind::Map {
            group.kind = Kind::Reduction;
            group.reduced = group.kept.split_off(start);
        }
    }

    /// Makes one group of all groups that read the value at its own points, so that it need not be stored.
    fn merge_readers(&mut self, sites: &mut Vec<Site>) -> bool {
        let Some((first, rest)) = sites.split_first() else { return false };
        let group = first.group;
        let alike = rest.iter().all(|site| {
            site.group != group && site.row == first.row && site.layout == first.layout && site.split == first.split
        });
        let groups: Vec<GroupId> = rest.iter().map(|site| site.group).collect();
        if !alike || !groups.iter().all(|other| self.merge(group, *other)) {
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
        for (index, site) in sites.iter().enumerate() {
            if self.can_store(id, site)
                && !self.groups[site.group].late
                && !sites.iter().any(|other| other.group == site.group && !std::ptr::eq(other, site))
                && self.no_reader_before(site.group)
                && let Some(inputs) = self.ready(id, site, true)
            {
                return Some((index, inputs));
            }
        }
        None
    }

    /// Does a site visit every element once, in an order in which they can be written?
    fn can_store(&self, id: NodeId, site: &Site) -> bool {
        let elements = self.graph.shape(id).elements();
        let rows = self.groups[site.group].kind == Kind::Reduction || site.split.is_some();
        match (rows, site.row) {
            (true, false) => {
                // Where a product can compute and store it, it is better off.
                site.layout.is_identity(elements) && !self.facts[id.index()].after_product
            }
            _ => site.layout.is_bijection(elements),
        }
    }

    /// Would storing the node being placed in this group let no reader of it run before it is stored: neither another group
    /// nor a product or gather of this one, which read memory?
    pub(super) fn no_reader_before(&mut self, host: GroupId) -> bool {
        let here = |m: &Member| self.find(m.group) == host && self.whole_operands(m.node);
        if self.readers.iter().any(|member| here(&self.members[*member])) {
            return false;
        }
        let mut readers: Vec<GroupId> =
            self.readers.iter().map(|member| self.find(self.members[*member].group)).collect();
        readers.sort_unstable();
        readers.dedup();
        readers.into_iter().filter(|reader| *reader != host).all(|reader| !self.reaches(reader, host))
    }

    fn place_reduce(&mut self, id: NodeId, axes: &[usize], uses: Vec<(MemberId, usize)>) {
        let (mut sites, whole) = self.sites(id, uses);
        let sizes = self.sizes(self.graph.node(id).inputs[0]);
        let length: u64 = axes.iter().map(|axis| sizes[*axis]).product();
        let needed = self.required[id.index()] || !whole.is_empty();
        let alone = sites.len() == 1 && !needed;
        let tail: Vec<u64> = axes.iter().map(|axis| sizes[*axis]).collect();
        let mut member = None;
        for index in 0..if self.fuse { sites.len() } else { 0 } {
            let site = sites[index].clone();
            let shared = sites.iter().filter(|other| other.group == site.group).count() > 1;
            let late = self.groups[site.group].late;
            if shared || late || !(alone || self.can_store_row(id, &site)) || !self.no_reader_before(site.group) {
                continue;
            }
            member = self.join_reduce(id, &site, length, &tail, !alone);
            if member.is_some() {
                sites.remove(index);
                break;
            }
        }
        let joined = member.is_some();
        let member = match member {
            Some(member) => member,
            None => {
                let kept = self.sizes(id);
                self.root(Kind::Reduction, id, What::Node, kept, tail)
            }
        };
        if !(alone && joined) {
            self.store(member, id, None);
        }
        for site in &sites {
            self.load(id, &site.uses);
        }
        self.load(id, &whole);
    }

    fn can_store_row(&self, id: NodeId, site: &Site) -> bool {
        site.layout.is_bijection(self.graph.shape(id).elements())
    }

    /// Adds a reduction to a group whose rows or points are its results.
    fn join_reduce(&mut self, id: NodeId, site: &Site, length: u64, tail: &[u64], stored: bool) -> Option<MemberId> {
        let group = &self.groups[site.group];
        if site.height >= self.fusion.most_stages || group.members.len() >= self.fusion.most_members as usize {
            return None;
        }
        let row_length = |sizes: &[u64]| sizes.iter().product::<u64>() == length;
        let elements = self.graph.shape(id).elements();
        let after = match (group.kind, site.row, site.split) {
            (Kind::Reduction, true, None) if row_length(&group.reduced) => group.clone(),
            (Kind::Map, true, Some(start)) => {
                let (kept, reduced) = group.kept.split_at(start);
                Group { kind: Kind::Reduction, kept: kept.to_vec(), reduced: reduced.to_vec(), ..group.clone() }
            }
            (Kind::Map, false, None) if group.kept.iter().product::<u64>() == elements => {
                let mut after = Group { kind: Kind::Reduction, reduced: tail.to_vec(), ..group.clone() };
                after.cuts = after.cuts.extended(tail);
                after
            }
            _ => return None,
        };
        if !self.worthwhile(id, site) {
            return None;
        }
        let inputs = self.inputs(&after, id, What::Node, &site.chain)?;
        let mut operands = after.operands.clone();
        if !stored {
            operands.remove(&id);
        }
        operands.extend(inputs.operands.iter().copied());
        if operands.len() > self.max_operands {
            return None;
        }
        if group.kind == Kind::Map && site.split.is_none() {
            for member in group.members.clone() {
                self.members[member].row = true;
            }
        }
        self.groups[site.group] = after;
        if !stored {
            self.groups[site.group].operands.remove(&id);
        }
        let member = self.add_member(site.group, id, What::Node, true, site.chain.clone(), site.height, inputs);
        for (reader, operand) in &site.uses {
            self.members[*reader].inputs[*operand] = Input::Member(member);
        }
        Some(member)
    }

    fn place_dot(&mut self, id: NodeId, dot: &Dot, uses: Vec<(MemberId, usize)>) {
        let (mut sites, whole) = self.sites(id, uses);
        let needed = self.required[id.index()] || !whole.is_empty();
        // The first to read it is the one to compute it: for a later one it would have to wait in memory anyway.
        sites.sort_by_key(|site| site.uses.iter().map(|(member, _)| self.members[*member].node).min());
        let domain = self.product_domain(id, dot);
        let mut host = None;
        for index in 0..if self.fuse { sites.len() } else { 0 } {
            let site = sites[index].clone();
            let alone = sites.len() == 1 && !needed;
            // A group that also reads the product at other points can only do so when all of it is stored.
            let shared = sites.iter().filter(|other| other.group == site.group).count() > 1;
            if shared || self.groups[site.group].late {
                continue;
            }
            if let Some(cuts) = self.epilogue(id, &site, &domain)
                && self.no_reader_before(site.group)
            {
                host = Some(self.add_product(id, &site, &domain, cuts));
                sites.remove(index);
                if !alone && let Some(product) = host {
                    self.store(product, id, None);
                } else {
                    self.groups[site.group].operands.remove(&id);
                }
                break;
            }
        }
        if host.is_none() {
            let group = self.new_group(Kind::Map, domain.clone(), vec![]);
            let cuts = Cuts::frozen(&domain, domain.len() - 2);
            let site = Site {
                group,
                row: false,
                chain: vec![],
                layout: Layout::dense(&domain),
                uses: vec![],
                height: 0,
                split: None,
            };
            let product = self.add_product(id, &site, &domain, cuts);
            self.store(product, id, None);
        }
        for site in &sites {
            self.load(id, &site.uses);
        }
        self.load(id, &whole);
    }

    /// `[batch.., m, n]`.
    fn product_domain(&self, id: NodeId, dot: &Dot) -> Vec<u64> {
        let result = self.sizes(id);
        let batch = dot.batch.len();
        let free = self.graph.shape(self.graph.node(id).inputs[0]).rank() - batch - dot.contract.len();
        let (m, n) = result[batch..].split_at(free);
        [&result[..batch], &[m.iter().product(), n.iter().product()]].concat()
    }

    /// The cuts of a pointwise group over the product's own domain, if the group can be the product's epilogue.
    fn epilogue(&self, id: NodeId, site: &Site, domain: &[u64]) -> Option<Cuts> {
        let group = &self.groups[site.group];
        let elements = self.graph.shape(id).elements();
        let operands = group.operands.len() + 2;
        if group.kind != Kind::Map || !site.layout.is_bijection(elements) || operands > self.max_operands {
            return None;
        }
        let back = self.rebase(id, site, domain)?;
        self.cuts_over(group, &back, Cuts::frozen(domain, domain.len() - 2))
    }

    /// Cuts refined by all that a pointwise group reads and stores, seen from another domain of as many points.
    pub(super) fn cuts_over(&self, group: &Group, back: &Chain, mut cuts: Cuts) -> Option<Cuts> {
        for member in &group.members {
            let m = &self.members[*member];
            let chain: Chain = m.chain.iter().chain(back).cloned().collect();
            if self.members[*member].what == What::Node && self.whole_operands(m.node) {
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
        for store in &group.stores {
            let chain: Chain = self.store_chain(store).into_iter().chain(back.iter().cloned()).collect();
            if !cuts.add(&Layout::through(&self.sizes(store.target), &chain)?) {
                return None;
            }
        }
        Some(cuts)
    }

    /// From a group's domain to that of a product which the group reads at this site.
    fn rebase(&self, id: NodeId, site: &Site, domain: &[u64]) -> Option<Chain> {
        let mut back = inverse(&self.sizes(id), &site.chain)?;
        back.push(ViewOp::Reshape(domain.to_vec()));
        Some(back)
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

    fn add_product(&mut self, id: NodeId, site: &Site, domain: &[u64], cuts: Cuts) -> MemberId {
        if let Some(back) = self.rebase(id, site, domain) {
            for member in self.groups[site.group].members.clone() {
                self.members[member].chain.extend(back.iter().cloned());
            }
        }
        self.groups[site.group].kept = domain.to_vec();
        self.groups[site.group].cuts = cuts;
        let inputs = self.inputs(&self.groups[site.group], id, What::Node, &Chain::new());
        let inputs = inputs.expect("operands in the order of `prepare` can be read as they are");
        let chain = vec![ViewOp::Reshape(domain.to_vec())];
        let product = self.add_member(site.group, id, What::Node, false, chain, 0, inputs);
        self.groups[site.group].kind = Kind::Product(product);
        for (reader, operand) in &site.uses {
            self.members[*reader].inputs[*operand] = Input::Member(product);
        }
        product
    }

    /// Convolutions and scatters: dense operands, no fusion.
    fn place_whole(&mut self, kind: Kind, id: NodeId, uses: &[(MemberId, usize)]) {
        let root = self.root(kind, id, What::Node, self.sizes(id), vec![]);
        self.store(root, id, None);
        self.load(id, uses);
    }

    /// Every part is copied, or computed, into its region.
    fn place_concat(&mut self, id: NodeId, axis: usize, uses: &[(MemberId, usize)]) {
        let mut start = 0;
        for (index, part) in self.graph.node(id).inputs.clone().into_iter().enumerate() {
            let sizes = self.sizes(part);
            let region = sizes.iter().enumerate();
            let region = region.map(|(dim, size)| (if dim == axis { start } else { 0 }, *size, 1)).collect();
            start += sizes[axis];
            let root = self.root(Kind::Map, id, What::Copy(index), sizes, vec![]);
            self.store(root, id, Some(ViewOp::Slice(region)));
        }
        self.load(id, uses);
    }

    /// Zeros everywhere, then the input in its region.
    fn place_pad(&mut self, id: NodeId, low: &[u64], interior: &[u64], uses: &[(MemberId, usize)]) {
        let zeros = self.root(Kind::Map, id, What::Zero, self.sizes(id), vec![]);
        self.store(zeros, id, None);
        let sizes = self.sizes(self.graph.node(id).inputs[0]);
        let region = low.iter().zip(&sizes).zip(interior).map(|((low, size), gap)| (*low, *size, gap + 1)).collect();
        let copy = self.root(Kind::Map, id, What::Copy(0), sizes, vec![]);
        self.store(copy, id, Some(ViewOp::Slice(region)));
        self.order(self.find(self.members[zeros].group), self.find(self.members[copy].group));
        self.load(id, uses);
    }
}
