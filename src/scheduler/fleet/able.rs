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
