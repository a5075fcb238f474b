//! Names of operations: `{instance}/operations/{32 hexadecimal digits}`.

use crate::error::{Error, Kind, Result, shown};
use crate::scheduler::OperationId;

/// The segment between the instance and the id.
const COLLECTION: &str = "operations";

pub(super) fn operation(instance: &str, id: OperationId) -> String {
    let collection = collection(instance);
    format!("{collection}/{id}")
}

pub(super) fn collection(instance: &str) -> String {
    if instance.is_empty() { COLLECTION.to_owned() } else { format!("{instance}/{COLLECTION}") }
}

/// The instance and the id in an operation's name.
///
/// # Errors
/// `NotFound`: a name that we never gave names nothing, and clients answer that by executing again.
pub(super) fn parse(name: &str) -> Result<(String, OperationId)> {
    let (collection, id) = name.rsplit_once('/').ok_or_else(|| unknown(name))?;
    let id = OperationId::parse(id).ok_or_else(|| unknown(name))?;
    Ok((parse_collection(collection).ok_or_else(|| unknown(name))?, id))
}

/// The instance in the name of a collection of operations.
pub(super) fn parse_collection(name: &str) -> Option<String> {
    match name.rsplit_once('/') {
        Some((instance, COLLECTION)) => Some(instance.to_owned()),
        None if name == COLLECTION => Some(String::new()),
        _ => None,
    }
}

pub(super) fn unknown(name: &str) -> Error {
    let shown = shown(name);
    Error::new(
        Kind::NotFound,
        format!("operation `{shown}` is unknown: it ended long ago or the farm restarted"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        for instance in ["", "main", "a/b/c"] {
            let name = operation(instance, OperationId::new(0xfeed));
            assert_eq!(parse(&name).unwrap(), (instance.to_owned(), OperationId::new(0xfeed)));
        }
    }

    #[test]
    fn names_of_others_are_unknown() {
        let id = "0".repeat(32);
        for name in [
            "",
            "operations",
            "operations/1",
            &id,
            &format!("x/{id}"),
            &format!("operations/{}", "g".repeat(32)),
        ] {
            assert_eq!(parse(name).unwrap_err().kind(), Kind::NotFound, "{name}");
        }
    }
}
