//! Tests of the disk store.
