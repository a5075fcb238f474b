//! A kind of worker, as who adds and removes workers names it: which demands it could serve.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::{Error, Kind, Result, shown};

use super::config::{Config, PropertyKind};
use super::requirements;
use super::view::{Demand, Load, whole_workers};

/// Properties that one kind may name. A worker has a handful; the text comes from outside.
const PROPERTIES_MAX: usize = 100;

/// What a kind of worker offers. One that names no property is any worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct WorkerKind {
    exact: BTreeSet<(String, String)>,
    /// Every declared amount, with how much of it the kind says it has.
    amounts: BTreeMap<String, Option<u64>>,
    is_any: bool,
}

impl WorkerKind {
    /// Reads `name=value,name=value`; a name may repeat.
    ///
    /// # Errors
    /// `Invalid` for what is not such a list, names a property that is not declared, or has an amount that is no whole number.
    pub fn parse(config: &Config, text: &str) -> Result<Self> {
        let parts: Vec<&str> = text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect();
        if parts.len() > PROPERTIES_MAX {
            return Err(Error::invalid(format!("a kind of worker has at most {PROPERTIES_MAX} properties")));
        }
        let declared = config.properties.iter().filter(|(_, kind)| **kind == PropertyKind::Minimum);
        let amounts = declared.map(|(name, _)| (name.clone(), None)).collect();
        let mut kind = Self { exact: BTreeSet::new(), amounts, is_any: parts.is_empty() };
        for part in parts {
            kind.add(config, part)?;
        }
        Ok(kind)
    }

    fn add(&mut self, config: &Config, part: &str) -> Result<()> {
        let malformed =
            || Error::invalid(format!("`{}` is no platform property; one is name=value", shown(part)));
        let (name, value) = part.split_once('=').ok_or_else(malformed)?;
        let (name, value) = (name.trim(), value.trim());
        match config.properties.get(name) {
            None => Err(requirements::undeclared(Kind::Invalid, name)),
            Some(PropertyKind::Any) => Ok(()),
            Some(PropertyKind::Exact) => {
                self.exact.insert((name.to_owned(), value.to_owned()));
                Ok(())
            }
            Some(PropertyKind::Minimum) => {
                self.amounts.insert(name.to_owned(), Some(requirements::parse_amount(name, value)?));
                Ok(())
            }
        }
    }

    /// Whether a worker of this kind could run what has this demand. It must offer every exact property. Of amounts only those
    /// count that the kind names: how large its workers are is often left to the cloud.
    pub fn serves(&self, demand: &Demand) -> bool {
        self.is_any || demand.properties.iter().all(|property| self.offers(property))
    }

    fn offers(&self, property: &(String, String)) -> bool {
        let (name, value) = property;
        match self.amounts.get(name) {
            None => self.exact.contains(property),
            Some(None) => true,
            Some(Some(offered)) => value.parse::<u64>().is_ok_and(|amount| amount <= *offered),
        }
    }

    /// The whole workers that it would take to run at once all that this kind could run.
    pub fn wanted(&self, load: &Load) -> u64 {
        let served = load.demands.iter().filter(|demand| self.serves(demand));
        whole_workers(served.map(|demand| demand.workers_wanted).sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(text: &str) -> WorkerKind {
        WorkerKind::parse(&Config::default(), text).unwrap()
    }

    fn demand(text: &str, workers_wanted: f64) -> Demand {
        let properties = text.split(',').filter_map(|part| part.split_once('='));
        let properties = properties.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Demand { properties, queued: 1, running: 0, workers_wanted }
    }

    #[test]
    fn a_kind_serves_what_it_offers_and_amounts_that_it_does_not_name() {
        let table = [
            ("", "", true),
            ("", "Pool=gpu,cores=4", true),
            ("Pool=gpu", "", true),
            ("Pool=gpu", "Pool=gpu", true),
            ("Pool=gpu", "Pool=gpu,cores=64", true),
            ("Pool=gpu", "Pool=cpu", false),
            ("Pool=gpu", "OSFamily=linux,Pool=gpu", false),
            ("OSFamily=linux,OSFamily=Linux,Pool=gpu", "OSFamily=Linux,Pool=gpu", true),
            (" OSFamily = linux , cores = 8 ", "OSFamily=linux,cores=8", true),
            ("OSFamily=linux,cores=8", "OSFamily=linux,cores=9", false),
        ];
        for (offered, demanded, expected) in table {
            assert_eq!(kind(offered).serves(&demand(demanded, 1.0)), expected, "{offered} for {demanded}");
        }
    }

    #[test]
    fn what_one_kind_could_run_adds_up() {
        let demands = vec![demand("", 0.5), demand("Pool=gpu", 2.25), demand("Pool=cpu", 7.0)];
        let load = Load { demands, ..Load::default() };
        assert_eq!((kind("").wanted(&load), kind("Pool=gpu").wanted(&load)), (10, 3));
        assert_eq!(kind("Pool=cpu").wanted(&Load::default()), 0);
    }

    #[test]
    fn what_names_no_kind_is_refused_with_a_sentence() {
        let many = "Pool=x,".repeat(101);
        for (text, part) in [
            ("gpu", "name=value"),
            ("flavour=big", "`flavour` is not declared"),
            ("cores=many", "`cores` must be a whole number"),
            (many.as_str(), "at most 100"),
        ] {
            let error = WorkerKind::parse(&Config::default(), text).unwrap_err();
            assert_eq!(error.kind(), Kind::Invalid, "{text}");
            assert!(error.to_string().contains(part), "{error}");
        }
    }
}
