//! A whole ledger as one file, in which it moves from one kind of store to the other: every row and every blob.
//!
//! Lines of JSON: a head, a line for each row, and an end that says how many there were and what their digest is. A file that
//! was cut off or changed is refused before anything of it counts.

use std::collections::BTreeMap;
use std::io::{BufRead, Read as _, Write};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use crate::ports::ledger::MAX_BLOB_BYTES;

/// Of the file's form. Another one is refused.
const FORMAT: u16 = 1;
const KIND: &str = "fettle-ledger";
/// A blob of the largest size, as base64, and its names.
const MAX_LINE: usize = MAX_BLOB_BYTES / 3 * 4 + 64 * 1024;

/// What a column holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Number,
    Text,
    Id,
    /// Microseconds since 1970, in UTC.
    Instant,
    Bytes,
    Flag,
}

/// A table of every store. What a store keeps beyond these columns it can compute.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    pub name: &'static str,
    pub columns: &'static [(&'static str, Kind)],
}

use Kind::{Bytes, Flag, Id, Instant, Number, Text};

/// In an order in which whatever a row refers to is there before it.
pub const TABLES: &[Table] = &[
    Table { name: "blob", columns: &[("id", Bytes), ("content", Bytes)] },
    Table {
        name: "delivery",
        columns: &[
            ("seq", Number),
            ("id", Id),
            ("key", Text),
            ("event", Text),
            ("correlation_id", Id),
            ("received_at", Instant),
            ("closed_at", Instant),
            ("verdict", Text),
            ("not_before", Instant),
            ("body", Bytes),
        ],
    },
    Table {
        name: "task",
        columns: &[
            ("id", Id),
            ("correlation_id", Id),
            ("mode", Text),
            ("repo_forge_id", Number),
            ("issue_number", Number),
            ("installation", Number),
            ("generation", Number),
            ("actor", Text),
            ("trigger_kind", Text),
            ("state", Text),
            ("note", Text),
            ("cancelled_by", Text),
            ("event_seq", Number),
            ("created_at", Instant),
            ("updated_at", Instant),
            ("ended_at", Instant),
            ("subject", Text),
            ("leading_run", Number),
        ],
    },
    Table { name: "intent", columns: &[("key", Text), ("task_id", Id)] },
    Table {
        name: "pool",
        columns: &[("id", Number), ("kind", Text), ("order_version", Number), ("model", Text), ("needs", Text)],
    },
    Table { name: "lane", columns: &[("id", Number), ("pool_id", Number), ("slots_of", Text), ("served_at", Instant)] },
    Table {
        name: "job",
        columns: &[
            ("seq", Number),
            ("id", Id),
            ("kind", Text),
            ("task_id", Id),
            ("order_version", Number),
            ("state", Text),
            ("fence", Number),
            ("ended_by", Number),
            ("attempts", Number),
            ("crashes", Number),
            ("crashes_since_step", Number),
            ("runnable_at", Instant),
            ("delayed_until", Instant),
            ("leased_until", Instant),
            ("worker_id", Id),
            ("holder", Text),
            ("request_id", Id),
            ("reason", Text),
            ("last_failure", Text),
            ("progress", Number),
            ("created_at", Instant),
            ("priority", Number),
            ("lane_id", Number),
            ("turn_at", Instant),
        ],
    },
    Table {
        name: "run",
        columns: &[
            ("id", Id),
            ("task_id", Id),
            ("job_id", Id),
            ("ordinal", Number),
            ("model", Text),
            ("instruction", Text),
            ("steps", Number),
            ("calls", Number),
            ("generated_tokens", Number),
            ("prompt_tokens", Number),
            ("wall_s", Number),
            ("result", Text),
        ],
    },
    Table {
        name: "step",
        columns: &[
            ("run_id", Id),
            ("seq", Number),
            ("fence", Number),
            ("kind", Text),
            ("recorded_at", Instant),
            ("record", Text),
        ],
    },
    Table {
        name: "effect",
        columns: &[
            ("id", Id),
            ("task_id", Id),
            ("kind", Text),
            ("state", Text),
            ("fence", Number),
            ("intent", Text),
            ("receipt", Text),
        ],
    },
    Table {
        name: "message",
        columns: &[
            ("seq", Number),
            ("task_id", Id),
            ("author", Text),
            ("posted_at", Instant),
            ("handed_fence", Number),
            ("content", Text),
        ],
    },
    Table {
        name: "event",
        columns: &[
            ("seq", Number),
            ("task_id", Id),
            ("task_seq", Number),
            ("at", Instant),
            ("correlation_id", Id),
            ("body", Text),
        ],
    },
    Table { name: "poll", columns: &[("repo_forge_id", Number), ("mark_at", Instant)] },
    Table { name: "ledger", columns: &[("announced_seq", Number)] },
    // Not sessions, nor what signs and counts for them: people sign in again where the ledger is now.
    Table {
        name: "account",
        columns: &[
            ("id", Id),
            ("username", Text),
            ("email", Text),
            ("password_hash", Text),
            ("role", Text),
            ("active", Flag),
            ("created_at", Instant),
            ("last_login_at", Instant),
        ],
    },
    Table { name: "identity", columns: &[("issuer", Text), ("subject", Text), ("account_id", Id)] },
    Table {
        name: "api_key",
        columns: &[
            ("id", Id),
            ("account_id", Id),
            ("name", Text),
            ("prefix", Text),
            ("digest", Bytes),
            ("scopes", Text),
            ("created_at", Instant),
            ("expires_at", Instant),
            ("last_used_at", Instant),
        ],
    },
    // Secrets as they are sealed: they open where the same keys are.
    Table {
        name: "addition",
        columns: &[
            ("sort", Text),
            ("name", Text),
            ("value", Text),
            ("secret_key", Text),
            ("secret", Bytes),
            ("changed_at", Instant),
        ],
    },
    Table {
        name: "audit_log",
        columns: &[
            ("sequence", Number),
            ("at", Instant),
            ("actor", Text),
            ("action", Text),
            ("object", Text),
            ("address", Text),
            ("result", Text),
            ("detail", Text),
            ("digest", Bytes),
        ],
    },
];

/// What a column of a row holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cell {
    Null,
    Number(i64),
    Text(String),
    Id(Uuid),
    Instant(i64),
    Bytes(Vec<u8>),
    Flag(bool),
}

impl Cell {
    fn to_json(&self) -> Value {
        match self {
            Self::Null => Value::Null,
            Self::Number(number) | Self::Instant(number) => (*number).into(),
            Self::Text(text) => text.as_str().into(),
            Self::Id(id) => id.to_string().into(),
            Self::Bytes(bytes) => STANDARD.encode(bytes).into(),
            Self::Flag(flag) => (*flag).into(),
        }
    }

    fn from_json(kind: Kind, value: Value) -> Option<Self> {
        Some(match (kind, value) {
            (_, Value::Null) => Self::Null,
            (Kind::Number, Value::Number(number)) => Self::Number(number.as_i64()?),
            (Kind::Instant, Value::Number(number)) => Self::Instant(number.as_i64()?),
            (Kind::Text, Value::String(text)) => Self::Text(text),
            (Kind::Id, Value::String(text)) => Self::Id(text.parse().ok()?),
            (Kind::Bytes, Value::String(text)) => Self::Bytes(STANDARD.decode(text).ok()?),
            (Kind::Flag, Value::Bool(flag)) => Self::Flag(flag),
            _ => return None,
        })
    }
}

#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error("it is not a file that `fettle admin export` wrote")]
    NoArchive,
    #[error("it was written in form {0}, and this Fettle reads {FORMAT}: use the one that wrote it, or export again")]
    OtherForm(u16),
    #[error("it ends in the middle: it was not written to its end, or cut off since")]
    CutOff,
    #[error("line {line} is not as it was written: {what}")]
    Damaged { line: u64, what: String },
    #[error("could not read or write it")]
    Io(#[from] std::io::Error),
}

/// How many rows of which table.
pub type Counts = BTreeMap<String, u64>;

#[derive(Serialize, Deserialize)]
struct Head {
    kind: String,
    format: u16,
}

#[derive(Serialize, Deserialize)]
struct Line {
    table: String,
    row: Vec<Value>,
}

#[derive(Serialize, Deserialize)]
struct End {
    rows: Counts,
    sha256: String,
}

/// Writes the lines.
pub struct ArchiveWriter<W> {
    out: W,
    digest: Sha256,
    counts: Counts,
}

impl<W: Write> ArchiveWriter<W> {
    pub fn begin(out: W) -> Result<Self, ArchiveError> {
        let mut writer = Self { out, digest: Sha256::new(), counts: Counts::new() };
        writer.line(&Head { kind: KIND.to_owned(), format: FORMAT })?;
        Ok(writer)
    }

    /// One cell for each column of the table.
    pub fn row(&mut self, table: &Table, row: &[Cell]) -> Result<(), ArchiveError> {
        debug_assert_eq!(row.len(), table.columns.len());
        *self.counts.entry(table.name.to_owned()).or_default() += 1;
        self.line(&Line { table: table.name.to_owned(), row: row.iter().map(Cell::to_json).collect() })
    }

    /// What was written, to its end.
    pub fn end(mut self) -> Result<(W, Counts), ArchiveError> {
        let sha256 = hex::encode(self.digest.clone().finalize());
        self.line(&End { rows: self.counts.clone(), sha256 })?;
        self.out.flush()?;
        Ok((self.out, self.counts))
    }

    fn line(&mut self, line: &impl Serialize) -> Result<(), ArchiveError> {
        let mut text = serde_json::to_vec(line).map_err(std::io::Error::from)?;
        text.push(b'\n');
        self.digest.update(&text);
        Ok(self.out.write_all(&text)?)
    }
}

/// Reads them. Whoever uses its rows has to wait for `None`, which says that all were as they were written.
pub struct ArchiveReader<R> {
    lines: R,
    digest: Sha256,
    counts: Counts,
    at: u64,
    ended: bool,
}

impl<R: BufRead> ArchiveReader<R> {
    pub fn begin(lines: R) -> Result<Self, ArchiveError> {
        let mut reader = Self { lines, digest: Sha256::new(), counts: Counts::new(), at: 0, ended: false };
        let text = reader.line().map_err(|_| ArchiveError::NoArchive)?;
        let head: Head = serde_json::from_slice(&text).map_err(|_| ArchiveError::NoArchive)?;
        if head.kind != KIND {
            return Err(ArchiveError::NoArchive);
        }
        if head.format != FORMAT {
            return Err(ArchiveError::OtherForm(head.format));
        }
        reader.digest.update(&text);
        Ok(reader)
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// The next row with its table. `None`: that was all, and it is whole.
    #[expect(clippy::should_implement_trait, reason = "an iterator's reader forgets errors too easily")]
    pub fn next(&mut self) -> Result<Option<(&'static Table, Vec<Cell>)>, ArchiveError> {
        if self.ended {
            return Ok(None);
        }
        let text = self.line()?;
        if let Ok(end) = serde_json::from_slice::<End>(&text) {
            return self.check(&end).map(|()| None);
        }
        self.digest.update(&text);
        let line: Line = serde_json::from_slice(&text).map_err(|error| self.damaged(error.to_string()))?;
        let table = TABLES.iter().find(|table| table.name == line.table);
        let table = table.ok_or_else(|| self.damaged(format!("there is no table `{}`", line.table)))?;
        if line.row.len() != table.columns.len() {
            return Err(self.damaged(format!("a row of `{}` has {} columns", table.name, table.columns.len())));
        }
        let cells = table.columns.iter().zip(line.row).map(|((column, kind), value)| {
            Cell::from_json(*kind, value)
                .ok_or_else(|| self.damaged(format!("`{}.{column}` is something else", table.name)))
        });
        let cells = cells.collect::<Result<_, _>>()?;
        *self.counts.entry(line.table).or_default() += 1;
        Ok(Some((table, cells)))
    }

    fn check(&mut self, end: &End) -> Result<(), ArchiveError> {
        if end.sha256 != hex::encode(self.digest.clone().finalize()) || end.rows != self.counts {
            return Err(self.damaged("what came before is not what was written".to_owned()));
        }
        if !self.lines.fill_buf()?.is_empty() {
            return Err(self.damaged("something follows its end".to_owned()));
        }
        self.ended = true;
        Ok(())
    }

    fn damaged(&self, what: String) -> ArchiveError {
        ArchiveError::Damaged { line: self.at, what }
    }

    fn line(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut text = Vec::new();
        self.at += 1;
        (&mut self.lines).take(MAX_LINE as u64).read_until(b'\n', &mut text)?;
        match text.last() {
            Some(b'\n') => Ok(text),
            _ if text.len() >= MAX_LINE => Err(self.damaged("it is longer than any row".to_owned())),
            _ => Err(ArchiveError::CutOff),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table(name: &str) -> &'static Table {
        TABLES.iter().find(|table| table.name == name).unwrap()
    }

    fn written() -> Vec<u8> {
        let mut writer = ArchiveWriter::begin(Vec::new()).unwrap();
        writer.row(table("blob"), &[Cell::Bytes(vec![7; 32]), Cell::Bytes(b"\0\xff line\n".to_vec())]).unwrap();
        let intent = [Cell::Text("ü\n\u{0}".into()), Cell::Id(Uuid::from_u128(9))];
        writer.row(table("intent"), &intent).unwrap();
        writer.row(table("lane"), &[Cell::Number(1), Cell::Number(2), Cell::Null, Cell::Instant(-3)]).unwrap();
        let mut account = vec![Cell::Null; table("account").columns.len()];
        account[5] = Cell::Flag(true);
        writer.row(table("account"), &account).unwrap();
        writer.end().unwrap().0
    }

    fn read(bytes: &[u8]) -> Result<Vec<Vec<Cell>>, ArchiveError> {
        let mut reader = ArchiveReader::begin(bytes)?;
        let mut rows = Vec::new();
        while let Some((_, row)) = reader.next()? {
            rows.push(row);
        }
        Ok(rows)
    }

    #[test]
    fn every_kind_of_cell_comes_back_as_it_was() {
        let rows = read(&written()).unwrap();
        assert_eq!(rows[0], [Cell::Bytes(vec![7; 32]), Cell::Bytes(b"\0\xff line\n".to_vec())]);
        assert_eq!(rows[1], [Cell::Text("ü\n\u{0}".into()), Cell::Id(Uuid::from_u128(9))]);
        assert_eq!(rows[2], [Cell::Number(1), Cell::Number(2), Cell::Null, Cell::Instant(-3)]);
        assert_eq!(rows[3][5], Cell::Flag(true));
    }

    #[test]
    fn a_file_that_lost_or_changed_a_byte_is_refused() {
        let whole = written();
        for cut in 0..whole.len() {
            assert!(read(&whole[..cut]).is_err(), "cut after {cut}");
        }
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            assert!(read(&changed).is_err(), "changed at {at}: {:?}", read(&changed));
        }
        assert!(read(&[whole.as_slice(), b"more\n"].concat()).is_err());
    }
}
