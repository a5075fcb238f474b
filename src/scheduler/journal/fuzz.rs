//! What must hold for records that a journal has on its disk.

use super::codec::{Reader, key, write_value};

/// A record that is accepted is the same when it is written and read again. The first byte is the length of the key.
pub fn journal_record(bytes: &[u8]) {
    let Some((length, rest)) = bytes.split_first() else { return };
    let Some((name, value)) = rest.split_at_checked(usize::from(*length)) else { return };
    let Ok(record) = Reader::default().record(name, value) else { return };
    let mut written = Vec::new();
    write_value(&record, &mut written);
    let again = Reader::default().record(&key(&record.key()), &written).expect("it was accepted");
    assert_eq!(again, record);
}
