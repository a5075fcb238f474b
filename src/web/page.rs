//! The frame of every page for people.

use axum::http::header;
use axum::response::{IntoResponse, Response};
use maud::{DOCTYPE, Markup, html};

use super::assets;

/// The parts of the site, in the order of the navigation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Section {
    Overview,
    Workers,
    Queue,
    Operations,
    Invocations,
    ActionCache,
    Storage,
    Audits,
    Configuration,
}

impl Section {
    const ALL: [Self; 9] = [
        Self::Overview,
        Self::Workers,
        Self::Queue,
        Self::Operations,
        Self::Invocations,
        Self::ActionCache,
        Self::Storage,
        Self::Audits,
        Self::Configuration,
    ];

    pub(super) const fn path(self) -> &'static str {
        match self {
            Self::Overview => "/",
            Self::Workers => "/workers",
            Self::Queue => "/queue",
            Self::Operations => "/operations",
            Self::Invocations => "/invocations",
            Self::ActionCache => "/ac",
            Self::Storage => "/storage",
            Self::Audits => "/audit",
            Self::Configuration => "/configuration",
        }
    }

    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Overview => "Overview",
            Self::Workers => "Workers",
            Self::Queue => "Queue",
            Self::Operations => "Operations",
            Self::Invocations => "Invocations",
            Self::ActionCache => "Action cache",
            Self::Storage => "Storage",
            Self::Audits => "Audits",
            Self::Configuration => "Configuration",
        }
    }
}

/// A page of one part of the site. `title` is its heading, `body` what comes below.
pub(super) fn page(section: Section, title: &str, body: &Markup) -> Response {
    let page = html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta name="color-scheme" content="light dark";
                title { (title) " – Croft" }
                link rel="icon" href=(assets::ICON);
                link rel="stylesheet" href=(assets::STYLE.path);
                script src=(assets::SCRIPT.path) defer {}
            }
            body {
                a.skip href="#main" { "Skip to the content" }
                header { (navigation(section)) }
                main #main tabindex="-1" {
                    h1 { (title) }
                    (body)
                }
                footer { "Croft " (env!("CARGO_PKG_VERSION")) }
            }
        }
    };
    ([(header::CONTENT_TYPE, "text/html; charset=utf-8")], page.into_string()).into_response()
}

fn navigation(current: Section) -> Markup {
    html! {
        nav aria-label="Main" {
            ul {
                @for section in Section::ALL {
                    li {
                        a href=(section.path()) aria-current=[(section == current).then_some("page")] { (section.name()) }
                    }
                }
            }
        }
    }
}

/// A table that a narrow screen scrolls sideways, and which the keyboard reaches for that.
pub(super) fn table(label: &str, head: &[&str], rows: &Markup) -> Markup {
    html! {
        div.table tabindex="0" role="region" aria-label=(label) {
            table {
                thead { tr { @for cell in head { th scope="col" { (cell) } } } }
                tbody { (rows) }
            }
        }
    }
}

/// A text that people take elsewhere, with a button that copies it. `id` names it on the page.
pub(super) fn copied(id: &str, text: &str) -> Markup {
    html! { code id=(id) { (text) } " " button type="button" hidden data-copy=(id) { "Copy" } }
}

/// A field of a form that chooses one of `names`, or none; `key` is the field's own.
pub(super) fn choice((label, key): (&str, &str), names: &[&str], chosen: Option<&str>) -> Markup {
    html! {
        label { (label)
            select name=(key) {
                option value="" { "any" }
                @for name in names { option value=(name) selected[chosen == Some(*name)] { (name) } }
            }
        }
    }
}

/// Names and values, below each other.
pub(super) fn facts(facts: &[(&str, Markup)]) -> Markup {
    html! {
        dl.facts { @for (name, value) in facts { div { dt { (name) } dd { (value) } } } }
    }
}
