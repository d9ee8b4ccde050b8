//! A position in a list as opaque text. The first character is the version, so that its content may change.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use fettle_app::ports::ledger::TaskCursor;
use fettle_domain::id::TaskId;
use jiff::Timestamp;
use uuid::Uuid;

use crate::problem::Problem;

const VERSION: char = '1';

/// `1` and 24 bytes in URL-safe base64: the time in microseconds, big-endian, and the id.
pub(crate) fn write(cursor: &TaskCursor) -> String {
    let mut bytes = [0; 24];
    bytes[..8].copy_from_slice(&cursor.created_at.as_microsecond().to_be_bytes());
    bytes[8..].copy_from_slice(cursor.id.as_uuid().as_bytes());
    format!("{VERSION}{}", URL_SAFE_NO_PAD.encode(bytes))
}

/// `None` for anything that `write` did not make.
pub(crate) fn read(text: &str) -> Option<TaskCursor> {
    let bytes: [u8; 24] = URL_SAFE_NO_PAD.decode(text.strip_prefix(VERSION)?).ok()?.try_into().ok()?;
    let (micros, id) = bytes.split_at(8);
    let created_at = Timestamp::from_microsecond(i64::from_be_bytes(micros.try_into().ok()?)).ok()?;
    Some(TaskCursor { created_at, id: TaskId::from_uuid(Uuid::from_slice(id).ok()?) })
}

/// Of a list that goes on after something with this id: `1` and 16 bytes in URL-safe base64.
pub(crate) fn write_id(id: Uuid) -> String {
    format!("{VERSION}{}", URL_SAFE_NO_PAD.encode(id.as_bytes()))
}

/// `None` for anything that `write_id` did not make.
pub(crate) fn read_id(text: &str) -> Option<Uuid> {
    let bytes: [u8; 16] = URL_SAFE_NO_PAD.decode(text.strip_prefix(VERSION)?).ok()?.try_into().ok()?;
    Some(Uuid::from_bytes(bytes))
}

/// `after` of a page, read by `read`; absent for the first page.
pub(crate) fn after<T>(given: Option<&String>, read: impl FnOnce(&str) -> Option<T>) -> Result<Option<T>, Problem> {
    let refused = || Problem::refused("?after", "This is not the `next` of a page.");
    given.map(|text| read(text).ok_or_else(refused)).transpose()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_reads_back_and_anything_else_is_refused() {
        let created_at = Timestamp::from_microsecond(1_763_600_000_123_456).expect("in range");
        let cursor = TaskCursor { created_at, id: TaskId::from_uuid(Uuid::from_u128(7)) };
        let text = write(&cursor);
        assert_eq!(read(&text), Some(cursor));
        for odd in ["", "1", "2", &text[1..], &format!("2{}", &text[1..]), &text[..text.len() - 2], "1////"] {
            assert_eq!(read(odd), None, "{odd}");
        }
    }
}
