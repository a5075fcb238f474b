//! Platform properties, resolved against their declarations: what an action requires and what a worker can give.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Kind, Result};

use super::config::{Config, PropertyKind};
use super::task::{Offer, Platform};

/// Amounts of `minimum` properties, by name.
pub(super) type Amounts = BTreeMap<String, u64>;

/// What a worker must have to run an action. Actions with equal requirements share a queue.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Requirements {
    exact: BTreeSet<(String, String)>,
    amounts: Amounts,
}

/// What a worker has, whether in use or not. Workers with equal capacity form a class.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Capacity {
    pub(super) slots: u32,
    exact: BTreeSet<(String, String)>,
    pub(super) amounts: Amounts,
}

/// The slots a worker may offer: far above any machine, it bounds what one worker can make us hold.
const SLOTS_MAX: u32 = 4096;

impl Requirements {
    /// Resolves `platform` against the declared properties.
    ///
    /// # Errors
    /// `Precondition` for a property that is not declared; `Invalid` for an amount that is not a whole number.
    pub(super) fn resolve(config: &Config, platform: &Platform) -> Result<Self> {
        let mut requirements = Self::default();
        for (name, value) in platform.properties() {
            match config.properties.get(name) {
                None => return Err(undeclared(name)),
                Some(PropertyKind::Any) => {}
                Some(PropertyKind::Exact) => {
                    requirements.exact.insert((name.clone(), value.clone()));
                }
                Some(PropertyKind::Minimum) => {
                    let amount = requirements.amounts.entry(name.clone()).or_default();
                    *amount = (*amount).max(parse_amount(name, value)?);
                }
            }
        }
        Ok(requirements)
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

impl Capacity {
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
                (None, _) => return Err(undeclared(name)),
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

fn undeclared(name: &str) -> Error {
    Error::new(Kind::Precondition, format!("platform property `{name}` is not declared by this farm"))
}

fn parse_amount(name: &str, value: &str) -> Result<u64> {
    let refusal =
        || Error::invalid(format!("platform property `{name}` must be a whole number, not `{value}`"));
    value.parse().map_err(|_| refusal())
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
        let offer = Offer { worker, name: "w".into(), slots: 1, properties, leases: Vec::new() };
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
    fn properties_of_kind_any_do_not_split_the_queue() {
        let one = required(&[("cache-silo-key", "a")]).unwrap();
        assert_eq!(one, required(&[("cache-silo-key", "b")]).unwrap());
    }
}
