//! The query of a page's address, and pages of long lists.

use std::collections::BTreeMap;

use maud::{Markup, html};

use crate::error::{Error, Result, shown};

/// The key by which the one list of a page is paged.
const PAGE: &str = "page";

/// The last page that can be asked for: beyond what any list here has.
const PAGE_MAX: u64 = 1_000_000;

/// The keys and values of a query: each key once, and none that the page does not know.
#[derive(Debug, Default)]
pub(super) struct Query(BTreeMap<String, String>);

/// A page of a long list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Paging {
    /// The key of the query that says which page.
    key: &'static str,
    /// The first is 1.
    number: usize,
    length: usize,
}

impl Query {
    /// # Errors
    /// `Invalid` for a key that is not `known` or that is there twice.
    pub(super) fn parse(query: Option<&str>, known: &[&str]) -> Result<Self> {
        let mut values = BTreeMap::new();
        for (key, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
            if !known.contains(&&*key) {
                let known = known.join("`, `");
                return Err(Error::invalid(format!(
                    "`{}` is no key of this page; it knows `{known}`",
                    shown(&key)
                )));
            }
            if values.insert(key.to_string(), value.into_owned()).is_some() {
                return Err(Error::invalid(format!("`{}` is there twice", shown(&key))));
            }
        }
        Ok(Self(values))
    }

    /// The value; `None` when it is absent or empty, as a form sends what nobody has filled in.
    pub(super) fn text(&self, key: &str) -> Option<&str> {
        self.0.get(key).map(|value| value.trim()).filter(|value| !value.is_empty())
    }

    /// # Errors
    /// `Invalid` when it is no number up to `max`.
    pub(super) fn number(&self, key: &str, max: u64) -> Result<Option<u64>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        match text.parse() {
            Ok(number) if number <= max => Ok(Some(number)),
            Ok(_) | Err(_) => {
                Err(Error::invalid(format!("`{key}` is `{}`, not a number from 0 to {max}", shown(text))))
            }
        }
    }

    /// The page that is asked for, of a list with `length` items a page.
    ///
    /// # Errors
    /// `Invalid` when it is no number from 1 on.
    pub(super) fn paging(&self, length: usize) -> Result<Paging> {
        self.paging_by(PAGE, length)
    }

    /// The same by another key, for one of several lists on a page; the heading of the list has the key as its `id`.
    ///
    /// # Errors
    /// As for [`Query::paging`].
    pub(super) fn paging_by(&self, key: &'static str, length: usize) -> Result<Paging> {
        match self.number(key, PAGE_MAX)?.unwrap_or(1) {
            0 => Err(Error::invalid(format!("`{key}` is `0`, but the first one is 1"))),
            number => Ok(Paging { key, number: usize::try_from(number).unwrap_or(usize::MAX), length }),
        }
    }

    /// One of `all`, by its name; none where nothing is chosen.
    ///
    /// # Errors
    /// `Invalid` when it is none of them.
    pub(super) fn choice<T: Copy>(
        &self,
        key: &str,
        all: &[T],
        name: fn(T) -> &'static str,
    ) -> Result<Option<T>> {
        let Some(text) = self.text(key) else { return Ok(None) };
        let unknown = || {
            let known = all.iter().map(|one| name(*one)).collect::<Vec<_>>().join("`, `");
            Error::invalid(format!("`{key}` is `{}`, not one of `{known}`", shown(text)))
        };
        all.iter().copied().find(|one| name(*one) == text).map(Some).ok_or_else(unknown)
    }

    /// The same query with another value for one key, at the list that has the key for its name, if it is one of several.
    fn with(&self, key: &str, value: &str) -> String {
        let mut query = form_urlencoded::Serializer::new(String::new());
        let others = self.0.iter().filter(|(other, value)| *other != key && !value.is_empty());
        query.extend_pairs(others).append_pair(key, value);
        let place = if key == PAGE { String::new() } else { format!("#{key}") };
        format!("?{}{place}", query.finish())
    }
}

impl Paging {
    pub(super) fn skip(self) -> usize {
        (self.number - 1).saturating_mul(self.length)
    }

    pub(super) fn range(self) -> (usize, usize) {
        (self.skip(), self.length)
    }

    /// The links to the other pages of a list with `total` items; nothing when there are none.
    pub(super) fn links(self, query: &Query, total: usize) -> Markup {
        let last = total.div_ceil(self.length).max(1);
        let link = |number: usize, text: &str, rel: &str| {
            html! {
                a href=(query.with(self.key, &number.to_string())) rel=[(!rel.is_empty()).then_some(rel)] { (text) }
            }
        };
        html! {
            @if last > 1 || self.number > 1 {
                nav.pages aria-label="Pages of this list" {
                    @if self.number > 1 { (link(1, "first", "")) " " (link(self.number.min(last + 1) - 1, "previous", "prev")) " " }
                    span { "page " (self.number) " of " (last) }
                    @if self.number < last { " " (link(self.number + 1, "next", "next")) " " (link(last, "last", "")) }
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::Kind;

    #[test]
    fn what_a_page_does_not_know_is_refused() {
        let known = ["page", "q"];
        let query = Query::parse(Some("page=2&q=%3Cb%3E+x"), &known).unwrap();
        assert_eq!((query.text("q"), query.paging(10).unwrap().range()), (Some("<b> x"), (10, 10)));
        assert!(Query::parse(None, &known).unwrap().text("q").is_none());
        assert!(Query::parse(Some("q=+"), &known).unwrap().text("q").is_none());
        for wrong in ["other=1", "q=1&q=2", "%ff"] {
            assert_eq!(Query::parse(Some(wrong), &known).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
        for wrong in ["page=x", "page=0", "page=-1", "page=99999999999999999999", "page=1000001"] {
            let query = Query::parse(Some(wrong), &known).unwrap();
            assert_eq!(query.paging(10).unwrap_err().kind(), Kind::Invalid, "{wrong}");
        }
    }

    #[test]
    fn other_pages_are_linked_with_the_rest_of_the_query() {
        let query = Query::parse(Some("q=%3Cb%3E&page=2"), &["page", "q"]).unwrap();
        let links = query.paging(10).unwrap().links(&query, 35).into_string();
        for link in ["?q=%3Cb%3E&amp;page=1", "?q=%3Cb%3E&amp;page=3", "?q=%3Cb%3E&amp;page=4", "page 2 of 4"]
        {
            assert!(links.contains(link), "{links}");
        }
        let one_of_several = Paging { key: "tests", number: 1, length: 10 }.links(&query, 35).into_string();
        assert!(
            one_of_several.contains("tests=2#tests") && one_of_several.contains("?page=2&amp;"),
            "{one_of_several}"
        );
        let paging = Paging { key: "page", number: 1, length: 10 };
        assert_eq!(paging.links(&query, 10).into_string(), "");
        let beyond = Paging { key: "page", number: 9, length: 10 }.links(&query, 0).into_string();
        assert!(beyond.contains("page=1") && !beyond.contains("page=8"), "{beyond}");
    }
}
