//! Platform properties, resolved against their declarations: what an action requires and what a worker can give.

use std::collections::{BTreeMap, BTreeSet};
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use crate::error::{Error, Kind, Result, shown};
use crate::proto::worker::{CORES, MEMORY};

use super::config::{Config, PropertyKind};
use super::lookup::fingerprint;
use super::task::{Offer, Platform};

/// Amounts of `minimum` properties, by name.
pub(super) type Amounts = BTreeMap<String, u64>;

/// What a worker must have to run an action.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Requirements {
    exact: BTreeSet<(String, String)>,
    amounts: Amounts,
    /// The name of the workers that it must not run on.
    avoided: Option<Arc<str>>,
    /// A hash of the rest, so that finding equal ones does not read texts.
    fingerprint: u64,
}

/// What a worker has, whether in use or not. Workers with equal capacity form a class.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Capacity {
    pub(super) slots: u32,
    exact: BTreeSet<(String, String)>,
    pub(super) amounts: Amounts,
}

/// What actions in one line have in common: requirements, and how big a share of a worker they are known to use.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Shape {
    pub(super) requirements: Arc<Requirements>,
    pub(super) soft: SoftSize,
}

/// What an action is expected to use, in coarse steps, so that actions of about one size share a line. 0 means that nothing is known.
///
/// It binds only beside something else: a worker that runs nothing takes whatever it could run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct SoftSize {
    memory_class: u8,
    cores_class: u8,
}

/// Cores and memory as soft sizes count them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Share {
    pub(super) millicores: u64,
    pub(super) memory_bytes: u64,
}

/// What actions of one shape take from a worker of one class.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Needs {
    /// In the order of the class's amounts.
    pub(super) hard: Box<[u64]>,
    /// What is expected, and what is demanded where that is more.
    pub(super) soft: Share,
    /// The name of the workers that it must not run on.
    pub(super) avoided: Option<Arc<str>>,
}

/// The slots a worker may offer: far above any machine, it bounds what one worker can make us hold.
const SLOTS_MAX: u32 = 4096;

impl Requirements {
    /// Resolves `platform` against the declared properties.
    ///
    /// # Errors
    /// `Precondition` for a property that is not declared; `Invalid` for an amount that is not a whole number.
    pub(super) fn resolve(config: &Config, platform: &Platform) -> Result<Self> {
        let (mut exact, mut amounts) = (BTreeSet::new(), Amounts::new());
        for (name, value) in platform.properties() {
            match config.properties.get(name) {
                None => return Err(undeclared(Kind::Precondition, name)),
                Some(PropertyKind::Any) => {}
                Some(PropertyKind::Exact) => {
                    exact.insert((name.clone(), value.clone()));
                }
                Some(PropertyKind::Minimum) => {
                    let amount = amounts.entry(name.clone()).or_default();
                    *amount = (*amount).max(parse_amount(name, value)?);
                }
            }
        }
        Ok(Self::new(exact, amounts, None))
    }

    fn new(exact: BTreeSet<(String, String)>, amounts: Amounts, avoided: Option<Arc<str>>) -> Self {
        let fingerprint = fingerprint(&(&exact, &amounts, &avoided));
        Self { exact, amounts, avoided, fingerprint }
    }

    /// The same, but not on workers of that name.
    pub(super) fn elsewhere(&self, avoided: Arc<str>) -> Self {
        Self::new(self.exact.clone(), self.amounts.clone(), Some(avoided))
    }

    /// The same on any worker.
    pub(super) fn anywhere(&self) -> Self {
        Self::new(self.exact.clone(), self.amounts.clone(), None)
    }

    /// The name of the workers that it must not run on.
    pub(super) fn avoided(&self) -> Option<&str> {
        self.avoided.as_deref()
    }

    pub(super) fn amounts(&self) -> &Amounts {
        &self.amounts
    }

    /// The properties, as the client wrote them.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&str, String)> {
        let exact = self.exact.iter().map(|(name, value)| (name.as_str(), value.clone()));
        exact.chain(self.amounts.iter().map(|(name, amount)| (name.as_str(), amount.to_string())))
    }
}

impl Default for Requirements {
    fn default() -> Self {
        Self::new(BTreeSet::new(), Amounts::new(), None)
    }
}

impl Hash for Shape {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.requirements.fingerprint);
        self.soft.hash(state);
    }
}

impl SoftSize {
    /// The step that holds an action which uses so many cores and bytes; 0 of either means that nothing is known of it.
    pub(super) fn of(cores: f64, memory_bytes: u64) -> Self {
        let millicores = (cores.max(0.0) * 1000.0).ceil() as u64;
        Self { memory_class: class(memory_bytes, MEMORY_STEP), cores_class: class(millicores, CORES_STEP) }
    }

    pub(super) fn share(self) -> Share {
        Share {
            millicores: size(self.cores_class, CORES_STEP),
            memory_bytes: size(self.memory_class, MEMORY_STEP),
        }
    }
}

/// The smallest soft sizes: an eighth of a core, 64 MiB.
const CORES_STEP: u64 = 125;
const MEMORY_STEP: u64 = 64 << 20;

/// The first class whose size holds `amount`. There are two classes to an octave.
fn class(amount: u64, step: u64) -> u8 {
    if amount == 0 {
        return 0;
    }
    (1..CLASS_MAX).find(|class| size(*class, step) >= amount).unwrap_or(CLASS_MAX)
}

/// 2^20 steps, which is more than any machine has.
const CLASS_MAX: u8 = 41;

/// 1, 1.5, 2, 3, 4, 6 … steps, and none for class 0.
fn size(class: u8, step: u64) -> u64 {
    let Some(octaves) = class.checked_sub(1) else { return 0 };
    let whole = step << (octaves / 2);
    if octaves.is_multiple_of(2) { whole } else { whole + whole / 2 }
}

impl Needs {
    /// Whether it may run on workers of that name.
    pub(super) fn admit(&self, worker: &str) -> bool {
        self.avoided.as_deref() != Some(worker)
    }
}

impl Share {
    /// What is left when a share is taken; never less than nothing, because a worker that runs nothing takes what does not fit.
    pub(super) fn less(self, taken: Self) -> Self {
        Self {
            millicores: self.millicores.saturating_sub(taken.millicores),
            memory_bytes: self.memory_bytes.saturating_sub(taken.memory_bytes),
        }
    }

    pub(super) fn holds(self, needed: Self) -> bool {
        needed.millicores <= self.millicores && needed.memory_bytes <= self.memory_bytes
    }
}

impl Capacity {
    /// Cores and memory, as far as they are offered; what is not offered has no end.
    pub(super) fn share(&self) -> Share {
        share_of(&self.amounts, u64::MAX)
    }

    /// What a shape takes from a worker of this class; `None` if such a worker cannot run it.
    pub(super) fn needs(&self, shape: &Shape) -> Option<Needs> {
        if !self.could_run(&shape.requirements) {
            return None;
        }
        let demanded = &shape.requirements.amounts;
        let hard = self.amounts.keys().map(|name| demanded.get(name).copied().unwrap_or(0)).collect();
        let (least, expected) = (share_of(demanded, 0), shape.soft.share());
        let soft = Share {
            millicores: least.millicores.max(expected.millicores),
            memory_bytes: least.memory_bytes.max(expected.memory_bytes),
        };
        Some(Needs { hard, soft, avoided: shape.requirements.avoided.clone() })
    }

    /// Resolves `offer` against the declared properties.
    ///
    /// # Errors
    /// `Invalid` for a property that is not declared, an amount that is not one whole number, or an absurd number of slots.
    pub(super) fn resolve(config: &Config, offer: &Offer) -> Result<Self> {
        if !(1..=SLOTS_MAX).contains(&offer.slots) {
            return Err(Error::invalid(format!("a worker has 1 to {SLOTS_MAX} slots, not {}", offer.slots)));
        }
        let mut capacity = Self { slots: offer.slots, ..Self::default() };
        for (name, values) in &offer.properties {
            match (config.properties.get(name), values.as_slice()) {
                (None, _) => return Err(undeclared(Kind::Precondition, name)),
                (Some(PropertyKind::Any), _) => {}
                (Some(PropertyKind::Exact), values) => {
                    capacity.exact.extend(values.iter().map(|value| (name.clone(), value.clone())));
                }
                (Some(PropertyKind::Minimum), [value]) => {
                    capacity.amounts.insert(name.clone(), parse_amount(name, value)?);
                }
                (Some(PropertyKind::Minimum), _) => {
                    return Err(Error::invalid(format!(
                        "platform property `{name}` is offered once or not at all"
                    )));
                }
            }
        }
        Ok(capacity)
    }

    /// Whether an idle worker of this capacity could run an action with these requirements.
    pub(super) fn could_run(&self, requirements: &Requirements) -> bool {
        requirements.exact.is_subset(&self.exact)
            && requirements.amounts.iter().all(|(name, amount)| self.has(name, *amount))
    }

    /// Whether this capacity has one property with the value that the client wrote.
    pub(super) fn offers(&self, name: &str, value: &str) -> bool {
        let is_enough = || value.parse().is_ok_and(|amount| self.has(name, amount));
        self.exact.contains(&(name.to_owned(), value.to_owned())) || is_enough()
    }

    fn has(&self, name: &str, amount: u64) -> bool {
        self.amounts.get(name).is_some_and(|offered| amount <= *offered)
    }
}

fn share_of(amounts: &Amounts, absent: u64) -> Share {
    Share {
        millicores: amounts.get(CORES).map_or(absent, |cores| cores.saturating_mul(1000)),
        memory_bytes: amounts.get(MEMORY).copied().unwrap_or(absent),
    }
}

pub(super) fn undeclared(kind: Kind, name: &str) -> Error {
    Error::new(kind, format!("platform property `{}` is not declared by this farm", shown(name)))
}

pub(super) fn parse_amount(name: &str, value: &str) -> Result<u64> {
    let refusal = || {
        let value = shown(value);
        Error::invalid(format!("platform property `{name}` must be a whole number, not `{value}`"))
    };
    value.parse().map_err(|_| refusal())
}

/// What operators ask.
impl Capacity {
    /// The properties with each value that is offered, sorted.
    pub(super) fn properties(&self) -> impl Iterator<Item = (&str, String)> {
        let exact = self.exact.iter().map(|(name, value)| (name.as_str(), value.clone()));
        exact.chain(self.amounts.iter().map(|(name, amount)| (name.as_str(), amount.to_string())))
    }

    /// The part of an idle worker that one action takes: the largest of its parts of the slots, of each amount, and of
    /// what it is expected to use; `None` if the worker cannot run it.
    pub(super) fn part_of(&self, shape: &Shape) -> Option<f64> {
        let needs = self.needs(shape)?;
        let part = |needed: u64, offered: u64| needed as f64 / offered.max(1) as f64;
        let hard =
            needs.hard.iter().zip(self.amounts.values()).map(|(needed, offered)| part(*needed, *offered));
        let share = self.share();
        let soft = [
            part(needs.soft.millicores, share.millicores),
            part(needs.soft.memory_bytes, share.memory_bytes),
        ];
        let slot = 1.0 / f64::from(self.slots.max(1));
        Some(hard.chain(soft).fold(slot, f64::max).min(1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn required(properties: &[(&str, &str)]) -> Result<Requirements> {
        let properties = properties.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Requirements::resolve(&Config::default(), &Platform::new(properties))
    }

    fn offered(properties: &[(&str, &[&str])]) -> Result<Capacity> {
        let list = |values: &[&str]| values.iter().map(|value| (*value).to_owned()).collect();
        let properties = properties.iter().map(|(name, values)| ((*name).to_owned(), list(values))).collect();
        let worker = crate::scheduler::WorkerId::new(1);
        let offer =
            Offer { worker, name: "w".into(), owner: "".into(), slots: 1, properties, leases: Vec::new() };
        Capacity::resolve(&Config::default(), &offer)
    }

    #[test]
    fn a_worker_must_offer_every_value_that_is_demanded() {
        let table: [(&[(&str, &str)], bool); 8] = [
            (&[], true),
            (&[("ISA", "x86-64")], true),
            (&[("ISA", "x86-64"), ("ISA", "x86-avx2")], true),
            (&[("ISA", "x86-64"), ("ISA", "x86-avx512")], false),
            (&[("OSFamily", "linux")], false),
            (&[("cores", "4")], true),
            (&[("cores", "5")], false),
            (&[("cache-silo-key", "anything")], true),
        ];
        let worker = offered(&[("ISA", &["x86-64", "x86-avx2"]), ("cores", &["4"])]).unwrap();
        for (properties, expected) in table {
            assert_eq!(worker.could_run(&required(properties).unwrap()), expected, "{properties:?}");
        }
    }

    #[test]
    fn a_property_that_is_not_declared_is_refused_by_name() {
        let error = required(&[("foo", "bar")]).unwrap_err();
        assert_eq!(error.kind(), Kind::Precondition);
        assert_eq!(error.to_string(), "platform property `foo` is not declared by this farm");
        assert_eq!(offered(&[("foo", &["bar"])]).unwrap_err().kind(), Kind::Precondition);
    }

    #[test]
    fn an_amount_is_one_whole_number() {
        assert_eq!(required(&[("cores", "many")]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(offered(&[("cores", &["1", "2"])]).unwrap_err().kind(), Kind::Invalid);
        assert_eq!(required(&[("cores", "2"), ("cores", "3")]).unwrap().amounts()["cores"], 3);
    }

    #[test]
    fn a_soft_size_is_at_most_half_as_much_again() {
        assert_eq!(SoftSize::of(0.0, 0), SoftSize::default());
        for (cores, bytes) in [(0.01, 1), (1.0, 1 << 30), (3.3, 5 << 30), (100.0, 700 << 30)] {
            let share = SoftSize::of(cores, bytes).share();
            let (millicores, memory) = (share.millicores as f64, share.memory_bytes as f64);
            assert!(
                (cores * 1000.0..=(cores * 1500.0).max(125.0)).contains(&millicores),
                "{cores}: {share:?}"
            );
            let most = (bytes as f64 * 1.5).max((64 << 20) as f64);
            assert!((bytes as f64..=most).contains(&memory), "{bytes}: {share:?}");
        }
    }

    #[test]
    fn properties_of_kind_any_do_not_split_the_queue() {
        let one = required(&[("cache-silo-key", "a")]).unwrap();
        assert_eq!(one, required(&[("cache-silo-key", "b")]).unwrap());
    }
}
