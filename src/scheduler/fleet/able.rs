//! Which workers could run something if they had nothing else to do.

use super::*;

impl Fleet {
    /// The workers that could run this if they were idle and open.
    pub(in crate::scheduler) fn able<'a>(
        &'a self,
        requirements: &'a Requirements,
    ) -> impl Iterator<Item = (WorkerId, &'a Worker)> {
        let able =
            |class: &Option<Class>| class.as_ref().is_some_and(|one| one.capacity.could_run(requirements));
        let classes: Vec<bool> = self.classes.iter().map(able).collect();
        let avoided = requirements.avoided();
        self.iter().filter(move |(_, worker)| classes[worker.class] && avoided != Some(&*worker.name))
    }

    /// Whether the worker takes work and could run what is in `line` when it has room.
    pub(in crate::scheduler) fn expects(&self, worker: WorkerId, line: LineId) -> bool {
        let Some(worker) = self.get(worker).filter(|worker| worker.takes_work) else { return false };
        let is_able = |able: &Able| able.class == worker.class && able.needs.admit(&worker.name);
        worker.reserved_for.is_none_or(|reserved| reserved == line)
            && self.lines[line.index()].able.iter().any(is_able)
    }

    /// The workers that had some of these trees, the one with most of them first.
    pub(in crate::scheduler) fn familiar(
        &self,
        neighbours: &[u64],
    ) -> impl Iterator<Item = WorkerId> + use<> {
        let numbers = self.locality.workers(neighbours);
        let known = numbers.filter_map(|number| self.workers.get(number as usize)?.as_ref());
        known.map(|worker| worker.id).collect::<Vec<_>>().into_iter()
    }

    /// How many connected workers could run this if they were idle and open.
    pub(in crate::scheduler) fn able_workers(&self, shape: &Shape) -> usize {
        if shape.requirements.avoided().is_some() {
            return self.able(&shape.requirements).count();
        }
        let classes = self.classes.iter().flatten();
        let able = classes.filter(|class| class.capacity.could_run(&shape.requirements));
        able.map(|class| class.members).sum()
    }

    /// Whether a worker that takes work could run this: what is to run elsewhere has nowhere to go where there is one worker.
    pub(in crate::scheduler) fn has_taker(&self, requirements: &Requirements) -> bool {
        self.able(requirements).any(|(_, worker)| worker.takes_work)
    }
}
