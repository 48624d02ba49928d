//! Groups that become one.

use super::{Group, GroupId, Groups, Kind, MemberId, Refusal, Space, Store};
use crate::ops::Op;
use crate::schedule::layout::{Chain, Cuts};
use crate::schedule::looked;

impl<'g> Groups<'g> {
    /// Whether two groups together have no more operands and members than one may.
    pub(in crate::schedule) fn room_for_both(&self, a: GroupId, b: GroupId) -> Result<(), Refusal> {
        let (a, b) = (&self.groups[a], &self.groups[b]);
        looked("operands of two groups", a.operands.len() + b.operands.len());
        self.room(a.members.len() + b.members.len(), a.operands.union(&b.operands).count())
    }

    /// Does it store a part of a concatenation that is dense, since it is along the outermost dimension?
    fn is_outer_part(&self, store: &Store) -> bool {
        match &self.graph.node(store.target).op {
            Op::Concat { axis } => {
                store.region.is_some() && (0..*axis).all(|dim| self.graph.shape(store.target).size(dim) == 1)
            }
            _ => false,
        }
    }

    /// Makes one group of two that loop over the same space and do not depend on each other.
    pub(in crate::schedule) fn merge(&mut self, a: GroupId, b: GroupId) -> Result<(), Refusal> {
        let (x, y) = (&self.groups[a], &self.groups[b]);
        if x.kind != y.kind || x.late != y.late || !matches!(x.kind, Kind::Map | Kind::Reduction) {
            return Err(Refusal::Kind);
        }
        if !x.space.is_like(&y.space) {
            return Err(Refusal::Space);
        }
        // A kernel stores an operand through one view, or through several that are apart in memory.
        let apart = |a: &Store, b: &Store| {
            a.target != b.target || self.is_outer_part(a) && self.is_outer_part(b) && a.region != b.region
        };
        looked("stores of two groups", x.stores.len() * y.stores.len());
        if x.stores.iter().any(|store| y.stores.iter().any(|other| !apart(store, other))) {
            return Err(Refusal::StoredTwice);
        }
        let mut cuts = x.space.cuts().clone();
        if !cuts.join(y.space.cuts()) {
            return Err(Refusal::Access);
        }
        self.room_for_both(a, b)?;
        if self.reaches(a, b) || self.reaches(b, a) {
            return Err(Refusal::Waits);
        }
        self.take_in(a, b, cuts);
        Ok(())
    }

    /// Adds a pointwise group to one that reads the same value at the same points, if neither waits for the other; `back`
    /// leads from its space to the other's, `cuts` are both groups' there.
    pub(in crate::schedule) fn absorb(
        &mut self,
        host: GroupId,
        map: GroupId,
        back: &Chain,
        cuts: Cuts,
    ) -> Result<(), Refusal> {
        self.room_for_both(host, map)?;
        if self.groups[map].kind != Kind::Map {
            return Err(Refusal::Kind);
        }
        if self.reaches(host, map) || self.reaches(map, host) {
            return Err(Refusal::Waits);
        }
        self.rebase(map, back);
        self.take_in(host, map, cuts);
        Ok(())
    }

    /// Moves all that a group has to another one; neither reads what the other stores.
    fn take_in(&mut self, a: GroupId, b: GroupId, cuts: Cuts) {
        let gone = self.retire(b, a);
        for member in &gone.members {
            self.members[*member].group = a;
        }
        let into = &mut self.groups[a];
        into.space.refine(cuts);
        into.members.extend(gone.members);
        into.stores.extend(gone.stores);
        into.operands.extend(gone.operands);
        into.before.extend(gone.before);
        into.after.extend(gone.after);
        let level = std::mem::take(&mut into.level).max(gone.level);
        if level > 0 {
            self.relevel(a, level - 1);
        }
    }

    /// Makes a group's member store what another group, of nothing else, copied.
    pub(in crate::schedule) fn take_over(&mut self, group: GroupId, copy: GroupId, member: MemberId) {
        let gone = self.retire(copy, group);
        let into = &mut self.groups[group];
        into.stores.extend(gone.stores.into_iter().map(|store| Store { member, ..store }));
        into.operands.extend(into.stores.iter().map(|store| store.target));
        into.before.extend(gone.before);
        into.after.extend(gone.after);
        if gone.level > into.level {
            self.relevel(group, gone.level - 1);
        }
    }

    /// Leaves in a group's place that it has become part of another; what it was.
    fn retire(&mut self, group: GroupId, into: GroupId) -> Group<'g> {
        let nothing = Group::new(Kind::Map, Space::new(Vec::new(), Vec::new()));
        let remains = Group { merged_into: Some(into), ..nothing };
        std::mem::replace(&mut self.groups[group], remains)
    }
}
