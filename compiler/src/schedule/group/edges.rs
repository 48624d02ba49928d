//! What waits for what: groups run after those whose values they read.

use super::{GroupId, Groups, MemberId};

impl Groups<'_> {
    /// Must `to` run after `from`?
    pub(in crate::schedule) fn reaches(&mut self, from: GroupId, to: GroupId) -> bool {
        self.any_reaches(vec![from], to)
    }

    /// Must `to` run after one of these?
    fn any_reaches(&mut self, from: Vec<GroupId>, to: GroupId) -> bool {
        self.visit += 1;
        self.visited.resize(self.groups.len(), 0);
        let level = self.groups[to].level;
        let mut stack = from;
        while let Some(group) = stack.pop() {
            // Levels fall along every edge, so that most searches end where they begin.
            if self.groups[group].level <= level || self.visited[group] == self.visit {
                continue;
            }
            self.visited[group] = self.visit;
            let here = &self.groups[group];
            let readers = here.stores.iter().flat_map(|store| self.loads[store.target.index()].iter());
            let next = readers.map(|member| self.members[*member].group).chain(here.before.iter().copied());
            for next in next.map(|group| self.find(group)) {
                if next == to && group != to {
                    return true;
                }
                stack.push(next);
            }
        }
        false
    }

    /// Would storing the node being placed in this group let no reader of it run before it is stored: neither another group
    /// nor a product or gather of this one, which read memory?
    pub(in crate::schedule) fn no_reader_before(&mut self, host: GroupId) -> bool {
        let here = |member: &MemberId| self.group_of(*member) == host && self.reads_memory(self.members[*member].node);
        if self.readers.iter().any(here) {
            return false;
        }
        let readers = self.readers.iter().map(|member| self.group_of(*member));
        let others = readers.filter(|reader| *reader != host).collect();
        !self.any_reaches(others, host)
    }

    /// Whether whatever must run before one group can: none of it waits for another group.
    pub(in crate::schedule) fn can_follow_all_before(&mut self, group: GroupId, other: GroupId) -> bool {
        let before: Vec<GroupId> = self.groups[other].after.iter().map(|first| self.find(*first)).collect();
        before.into_iter().all(|first| !self.reaches(group, first))
    }

    /// Lifts a group, and whatever must run before it, above a level.
    pub(super) fn relevel(&mut self, group: GroupId, below: u32) {
        let mut stack = vec![(group, below)];
        while let Some((group, below)) = stack.pop() {
            if self.groups[group].level > below {
                continue;
            }
            self.groups[group].level = below + 1;
            let members = self.groups[group].members.iter().flat_map(|member| self.members[*member].inputs.iter());
            let loaded = members.filter_map(|input| input.loaded());
            let writers = loaded.flat_map(|value| self.writers[value.index()].iter().copied());
            let before: Vec<GroupId> = writers.chain(self.groups[group].after.iter().copied()).collect();
            stack.extend(before.into_iter().map(|writer| (self.find(writer), below + 1)).filter(|(w, _)| *w != group));
        }
    }

    /// Groups that must run later than this one although they read nothing from it.
    pub(in crate::schedule) fn ordered_after(&self, group: GroupId) -> impl Iterator<Item = GroupId> {
        self.groups[group].before.iter().map(|later| self.find(*later))
    }

    /// Makes the group of one member run before that of another.
    pub(in crate::schedule) fn order(&mut self, first: MemberId, then: MemberId) {
        let (first, then) = (self.group_of(first), self.group_of(then));
        self.groups[first].before.push(then);
        self.groups[then].after.push(first);
        self.relevel(first, self.groups[then].level);
    }
}
