//! What waits for what: groups run after those whose values they read.

use super::{GroupId, Groups, MemberId};
use crate::schedule::looked;

impl Groups<'_> {
    /// Must `to` run after `from`?
    pub(in crate::schedule) fn reaches(&mut self, from: GroupId, to: GroupId) -> bool {
        self.any_reaches(vec![from], to)
    }

    /// Must `to` run after one of these? Looked for from both ends in turn, until one has nothing left: most groups have little
    /// before them or little after them, and all of the program on the other side.
    fn any_reaches(&mut self, from: Vec<GroupId>, to: GroupId) -> bool {
        let mut visited = std::mem::take(&mut self.visited);
        visited.resize(self.groups.len(), 0);
        self.visit += 2;
        let found = self.meet(from, to, &mut visited, (self.visit - 1, self.visit));
        self.visited = visited;
        found
    }

    /// The same; `visited` holds `ahead` of groups that run after one of `from`, and `behind` of those that run before `to`.
    fn meet(&self, from: Vec<GroupId>, to: GroupId, visited: &mut [u32], (ahead, behind): (u32, u32)) -> bool {
        let level = |group: GroupId| self.groups[group].level;
        // Levels fall along every edge, so that most searches end where they begin.
        let (low, high) = (level(to), from.iter().map(|group| level(*group)).max().unwrap_or(0));
        let mut later: Vec<GroupId> = from.into_iter().filter(|group| level(*group) > low).collect();
        later.iter().for_each(|group| visited[*group] = ahead);
        let mut earlier = vec![to];
        visited[to] = behind;
        loop {
            let Some(group) = later.pop() else { return false };
            for next in self.later_than(group) {
                match visited[next] {
                    met if met == behind => return true,
                    known if known != ahead && level(next) > low => {
                        visited[next] = ahead;
                        later.push(next);
                    }
                    _ => {}
                }
            }
            let Some(group) = earlier.pop() else { return false };
            for next in self.earlier_than(group) {
                match visited[next] {
                    met if met == ahead => return true,
                    known if known != behind && level(next) < high => {
                        visited[next] = behind;
                        earlier.push(next);
                    }
                    _ => {}
                }
            }
        }
    }

    /// Groups that run after this one: those that read what it stores, and those that must.
    fn later_than(&self, group: GroupId) -> impl Iterator<Item = GroupId> {
        let here = &self.groups[group];
        let readers = here.stores.iter().flat_map(|store| self.loads[store.target.index()].iter());
        let readers = readers.map(|member| self.members[*member].group);
        readers.chain(here.before.iter().copied()).map(|group| {
            looked("what runs after a group", 1);
            self.find(group)
        })
    }

    /// Groups that run before this one: those that store what it reads, and those that must.
    fn earlier_than(&self, group: GroupId) -> impl Iterator<Item = GroupId> {
        let here = &self.groups[group];
        let inputs = here.members.iter().flat_map(|member| self.members[*member].inputs.iter());
        let loaded = inputs.filter_map(|input| input.loaded());
        let writers = loaded.flat_map(|value| self.writers[value.index()].iter().copied());
        writers.chain(here.after.iter().copied()).map(|group| {
            looked("what runs before a group", 1);
            self.find(group)
        })
    }

    /// Would storing the node being placed in this group let no reader of it run before it is stored: neither another group
    /// nor a product or gather of this one, which read memory?
    pub(in crate::schedule) fn no_reader_before(&mut self, host: GroupId) -> bool {
        looked("readers of a value", self.readers.len());
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
            let before: Vec<GroupId> = self.earlier_than(group).collect();
            stack.extend(before.into_iter().map(|writer| (writer, below + 1)).filter(|(w, _)| *w != group));
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
