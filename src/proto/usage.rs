//! What a command has used, as it travels in REv2's execution metadata.

use prost::Message;

use super::Any;
use super::rev2::ExecutedActionMetadata;
use super::worker::ResourceUsage;

const TYPE_URL: &str = "type.googleapis.com/croft.worker.v1.ResourceUsage";

impl ResourceUsage {
    /// Puts this among the auxiliary metadata.
    pub fn attach(&self, metadata: &mut ExecutedActionMetadata) {
        metadata.auxiliary_metadata.push(Any { type_url: TYPE_URL.to_owned(), value: self.encode_to_vec() });
    }

    /// The usage among the auxiliary metadata; `None` if there is none that can be read.
    pub fn of(metadata: &ExecutedActionMetadata) -> Option<Self> {
        let any = metadata.auxiliary_metadata.iter().find(|any| any.type_url == TYPE_URL)?;
        Self::decode(any.value.as_ref()).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usage_is_found_among_other_metadata() {
        let usage = ResourceUsage { peak_memory_bytes: 7, ..ResourceUsage::default() };
        let mut metadata = ExecutedActionMetadata::default();
        metadata.auxiliary_metadata.push(Any { type_url: "type.googleapis.com/x".into(), ..Any::default() });
        assert_eq!(ResourceUsage::of(&metadata), None);
        usage.attach(&mut metadata);
        assert_eq!(ResourceUsage::of(&metadata), Some(usage));
    }

    #[test]
    fn bytes_that_are_no_usage_are_as_good_as_none() {
        let mut metadata = ExecutedActionMetadata::default();
        metadata.auxiliary_metadata.push(Any { type_url: TYPE_URL.to_owned(), value: vec![0xff] });
        assert_eq!(ResourceUsage::of(&metadata), None);
    }
}
