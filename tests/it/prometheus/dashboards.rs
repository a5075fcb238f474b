//! The dashboards as files: in order, about metrics and labels that there are, with the thresholds of the alerts.

use std::collections::{BTreeMap, BTreeSet};

use croft::metrics::Described;
use serde_json::Value;

use super::{ALERTS, RECORDING};

/// What each selector is restricted to.
const CHOSEN: &str = "{job=~\"$job\", instance=~\"$instance\"";

/// Units that Grafana knows, those that we need.
const UNITS: [&str; 7] = ["Bps", "bytes", "ops", "percentunit", "reqps", "s", "short"];

/// Variables that Grafana itself sets.
const BUILT_IN: [&str; 4] = ["__all", "__range", "__rate_interval", "__url_time_range"];

/// Labels that Prometheus adds.
const ADDED: [&str; 5] = ["job", "instance", "le", "alertname", "alertstate"];

/// Whether a target answers, as Prometheus itself says.
const UP: &str = "up";

/// One file of `monitoring/dashboards`.
pub(super) struct Dashboard {
    pub(super) uid: String,
    text: &'static str,
    pub(super) json: Value,
}

/// One panel that asks something.
pub(super) struct Panel<'a> {
    /// Dashboard and title, for messages.
    pub(super) name: String,
    pub(super) json: &'a Value,
}

pub(super) fn dashboards() -> Vec<Dashboard> {
    [
        include_str!("../../../monitoring/dashboards/build.json"),
        include_str!("../../../monitoring/dashboards/overview.json"),
        include_str!("../../../monitoring/dashboards/scheduler.json"),
        include_str!("../../../monitoring/dashboards/storage.json"),
        include_str!("../../../monitoring/dashboards/workers.json"),
    ]
    .into_iter()
    .map(|text| {
        let json: Value = serde_json::from_str(text).unwrap();
        Dashboard { uid: word(&json["uid"]), text, json }
    })
    .collect()
}

impl Dashboard {
    fn all_panels(&self) -> &Vec<Value> {
        self.json["panels"].as_array().unwrap()
    }

    pub(super) fn panels(&self) -> impl Iterator<Item = Panel<'_>> {
        let asks = |panel: &&Value| panel["type"] != "row" && panel["type"] != "text";
        self.all_panels().iter().filter(asks).map(|json| {
            let name = format!("{}: {}", self.uid, word(&json["title"]));
            Panel { name, json }
        })
    }

    fn variables(&self) -> &Vec<Value> {
        self.json["templating"]["list"].as_array().unwrap()
    }

    /// The queries that fill the lists of variables.
    pub(super) fn lists(&self) -> impl Iterator<Item = String> {
        self.variables().iter().filter(|variable| variable["type"] == "query").map(|variable| {
            assert_eq!(variable["datasource"]["uid"], "${datasource}", "{}", self.uid);
            word(&variable["query"]["query"])
        })
    }
}

impl Panel<'_> {
    pub(super) fn expressions(&self) -> impl Iterator<Item = String> {
        let targets = self.json["targets"].as_array();
        targets.unwrap_or_else(|| panic!("{} asks nothing", self.name)).iter().map(|it| word(&it["expr"]))
    }

    fn description(&self) -> &str {
        self.json["description"].as_str().unwrap_or_default()
    }

    /// The values at which its colour changes.
    fn thresholds(&self) -> Vec<f64> {
        let steps = self.json["fieldConfig"]["defaults"]["thresholds"]["steps"].as_array();
        steps.into_iter().flatten().filter_map(|step| step["value"].as_f64()).collect()
    }
}

fn word(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("{value} is no text")).to_owned()
}

/// The words of an expression: names of metrics, functions, labels.
fn words(expression: &str) -> impl Iterator<Item = &str> {
    let is_of_a_name = |character: char| character.is_ascii_alphanumeric() || "_:".contains(character);
    expression.split(move |character| !is_of_a_name(character)).filter(|word| !word.is_empty())
}

fn is_metric(word: &str) -> bool {
    word == UP || ["croft_", "nativelink_", "process_", "ALERTS"].iter().any(|part| word.contains(part))
}

/// What a name in an expression stands for: the labels of that metric, or of those that a recorded name is made of.
fn labels(name: &str, known: &BTreeMap<String, Described>) -> BTreeSet<String> {
    let base = ["_bucket", "_sum", "_count"].iter().find_map(|end| known.get(name.strip_suffix(end)?));
    if let Some(metric) = known.get(name).or(base) {
        return metric.labels.iter().cloned().collect();
    }
    if name.starts_with("process_") || name == "ALERTS" || name == UP {
        return BTreeSet::new();
    }
    let rule = RECORDING.split("- record: ").find(|rule| rule.lines().next() == Some(name));
    let rule = rule.unwrap_or_else(|| panic!("there is no metric `{name}`"));
    words(rule.split_once("expr: ").unwrap().1)
        .filter(|word| is_metric(word))
        .flat_map(|word| labels(word, known))
        .collect()
}

/// The labels that an expression selects and sums by.
fn used_labels(expression: &str) -> BTreeSet<&str> {
    let sums = expression.split("by (").skip(1).flat_map(|rest| words(rest.split(')').next().unwrap()));
    let selects = expression.split('{').skip(1).flat_map(|rest| {
        let pairs = rest.split('}').next().unwrap().split(", ");
        pairs.map(|pair| words(pair).next().unwrap())
    });
    sums.chain(selects).collect()
}

/// The names after each `$`, braces and formats left away.
fn variables(text: &str) -> BTreeSet<&str> {
    text.split('$')
        .skip(1)
        .filter_map(|rest| words(rest.trim_start_matches('{')).next())
        .map(first_part)
        .collect()
}

/// `job` of `job:queryparam`.
fn first_part(word: &str) -> &str {
    word.split(':').next().unwrap()
}

/// The alerts with the number that each compares with; none for those that fire at the first event.
fn bounds() -> BTreeMap<&'static str, Option<f64>> {
    let name = |rule: &'static str| rule.lines().next().unwrap();
    let bound = |rule: &str| {
        let expression = rule.split_once("expr: ").unwrap().1.lines().next().unwrap();
        let comparisons = [" > ", " < ", " == "];
        let (_, right) = comparisons.iter().find_map(|sign| expression.rsplit_once(sign)).unwrap();
        let factors = right.split_whitespace().filter(|word| *word != "*");
        let bound: f64 = factors.map_while(|factor| factor.parse::<f64>().ok()).product();
        (bound > 0.0).then_some(bound)
    };
    ALERTS.split("- alert: ").skip(1).map(|rule| (name(rule), bound(rule))).collect()
}

#[test]
fn dashboards_have_names_of_their_own_and_panels_that_do_not_overlap() {
    let dashboards = dashboards();
    let uids: BTreeSet<&str> = dashboards.iter().map(|dashboard| dashboard.uid.as_str()).collect();
    assert_eq!(uids.len(), dashboards.len());
    for dashboard in &dashboards {
        let (mut places, mut ids) = (BTreeSet::new(), BTreeSet::new());
        for panel in dashboard.all_panels() {
            let [x, y, w, h] = ["x", "y", "w", "h"].map(|key| panel["gridPos"][key].as_u64().unwrap());
            assert!(x + w <= 24 && w > 0 && h > 0, "{} in {}", panel["title"], dashboard.uid);
            for place in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
                assert!(places.insert(place), "{} in {} covers another", panel["title"], dashboard.uid);
            }
            assert!(ids.insert(panel["id"].as_u64().unwrap()), "{}", panel["title"]);
        }
    }
}

#[test]
fn every_panel_says_what_it_shows_in_which_unit_and_asks_the_chosen_source() {
    for dashboard in &dashboards() {
        assert_eq!(dashboard.json["schemaVersion"], 39, "{}", dashboard.uid);
        for panel in dashboard.panels() {
            let name = &panel.name;
            assert!(!panel.description().is_empty(), "{name} does not say what it shows");
            let unit = panel.json["fieldConfig"]["defaults"]["unit"].as_str();
            assert!(unit.is_some_and(|unit| UNITS.contains(&unit)), "{name} has the unit {unit:?}");
            assert_eq!(panel.json["datasource"]["uid"], "${datasource}", "{name}");
            for expression in panel.expressions() {
                let asked = words(&expression).filter(|word| is_metric(word)).count();
                assert!(asked > 0, "{name} asks for nothing of ours");
                assert_eq!(expression.matches(CHOSEN).count(), asked, "{name} asks beside what is chosen");
            }
        }
    }
}

#[test]
fn panels_ask_only_for_metrics_and_labels_that_there_are() {
    let known: BTreeMap<String, Described> =
        croft::metrics::described().into_iter().map(|metric| (metric.name.clone(), metric)).collect();
    for dashboard in &dashboards() {
        for panel in dashboard.panels() {
            for expression in panel.expressions() {
                let metrics = words(&expression).filter(|word| is_metric(word));
                let there: BTreeSet<String> = metrics.flat_map(|name| labels(name, &known)).collect();
                for label in used_labels(&expression) {
                    let is_there = there.contains(label) || ADDED.contains(&label);
                    assert!(is_there, "{}: nothing there has the label `{label}`", panel.name);
                }
            }
        }
    }
}

#[test]
fn variables_and_links_lead_somewhere() {
    let dashboards = dashboards();
    for dashboard in &dashboards {
        let declared: BTreeSet<&str> =
            dashboard.variables().iter().map(|variable| variable["name"].as_str().unwrap()).collect();
        for variable in variables(dashboard.text) {
            let is_set = declared.contains(variable) || BUILT_IN.contains(&variable);
            assert!(is_set, "{}: nobody sets `{variable}`", dashboard.uid);
        }
        for rest in dashboard.text.split("/d/").skip(1) {
            let uid = rest.split(['?', ')', '"']).next().unwrap();
            assert!(dashboards.iter().any(|other| other.uid == uid), "{} leads to {uid}", dashboard.uid);
        }
    }
}

#[test]
fn every_alert_has_a_panel_with_its_threshold() {
    let dashboards = dashboards();
    let panels: Vec<Panel<'_>> = dashboards.iter().flat_map(Dashboard::panels).collect();
    let bounds = bounds();
    assert_eq!(bounds["CroftStoreNearlyFull"], Some(0.9));
    assert_eq!(bounds["CroftCertificateEnds"], Some(604_800.0));
    assert_eq!(bounds["CroftLeaseBroken"], None);
    for (alert, bound) in &bounds {
        let about: Vec<&Panel<'_>> = panels.iter().filter(|panel| named(panel).contains(alert)).collect();
        assert!(!about.is_empty(), "no panel is about {alert}");
        for (panel, bound) in about.iter().flat_map(|panel| bound.map(|bound| (panel, bound))) {
            assert!(panel.thresholds().contains(&bound), "{} is about {alert} without {bound}", panel.name);
        }
    }
    for panel in &panels {
        for alert in named(panel) {
            assert!(bounds.contains_key(alert), "{} is about {alert}, which is no alert", panel.name);
        }
    }
}

/// The alerts that a panel says it is about.
fn named<'a>(panel: &'a Panel<'_>) -> BTreeSet<&'a str> {
    let text = panel.description();
    words(text).filter(|word| word.starts_with("Croft") && word.len() > "Croft".len()).collect()
}
