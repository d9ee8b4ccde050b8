//! The header of a GGUF file: metadata and the table of tensors, without their data. Every count in it is foreign input, so
//! nothing is allocated by one, and each step of a loop takes bytes that are there.
//!
//! Source of the format: `docs/gguf.md` of ggml; of the sizes of types: `ggml-common.h`.

use std::collections::BTreeMap;

use super::ModelFacts;
use super::arch::ArchError;
use super::bytes::{Cursor, Short};
use super::gguf_arch;
use super::weights::Weights;
use crate::quantity::Bytes;

const MAGIC: &[u8] = b"GGUF";
/// Below, lengths have 32 bits; nobody has made such files since 2023.
const VERSIONS: std::ops::RangeInclusive<u32> = 2..=3;
/// The largest known header, of a vocabulary of a million tokens with its merges, has some 50 MiB.
pub const MAX_HEADER: u64 = 256 << 20;
/// Real files have fewer than a hundred.
const MAX_KEYS: u64 = 4096;
/// Models whose experts are stored one by one have some twenty thousand.
const MAX_TENSORS: u64 = 1 << 18;
const MAX_NAME: u64 = 1024;
const MAX_DIMENSIONS: u32 = 4;
/// What data begins at a multiple of, and how much that is where the key is absent.
const ALIGNMENT: &str = "general.alignment";
const USUAL_ALIGNMENT: u64 = 32;
/// Longer lists, such as vocabularies, are skipped and only their length is kept.
const MAX_LIST: u64 = super::arch::MAX_LAYERS;

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum GgufError {
    #[error("no GGUF file")]
    NotGguf,
    #[error("GGUF version {0} is not known")]
    Version(u32),
    /// Read at least `wanted` bytes of the file and parse again.
    #[error("the header goes on beyond what was read, to byte {wanted} at least")]
    Short { wanted: u64 },
    #[error("{what} are {count}, more than the limit of {limit}")]
    TooMany { what: &'static str, count: u64, limit: u64 },
    #[error("{0} at byte {1}")]
    Malformed(&'static str, u64),
    #[error("tensor `{name}` has type {kind}, of which the size is not known")]
    UnknownType { name: String, kind: u32 },
    #[error(transparent)]
    Arch(#[from] ArchError),
}

/// What a header says. Of a model in several files the first has the metadata, and every one has weights.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub(super) keys: BTreeMap<String, Value>,
    pub weights: Weights,
    /// How long the file is at least, with all its tensors.
    pub file: Bytes,
}

/// Values that anything is decided by; the others are passed over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Value {
    Number(u64),
    Text(String),
    List(Vec<u64>),
    /// Passed over; how many elements it had.
    Long(u64),
}

impl Header {
    /// The model, from the first of its files and the weights of the others.
    pub fn model<'h>(&self, others: impl IntoIterator<Item = &'h Self>) -> Result<ModelFacts, GgufError> {
        let mut weights = self.weights.clone();
        others.into_iter().for_each(|other| weights.merge(&other.weights));
        Ok(ModelFacts { arch: gguf_arch::facts(&self.keys)?, weights })
    }
}

/// Parses the beginning of a file. `bytes` may end anywhere; then the error says how many are wanted.
pub fn header(bytes: &[u8]) -> Result<Header, GgufError> {
    let mut reader = Reader { cursor: Cursor::new(bytes), file: bytes.len() as u64 };
    if reader.cursor.take(4).map_err(|short| reader.short(short))? != MAGIC {
        return Err(GgufError::NotGguf);
    }
    let version = reader.u32()?;
    if !VERSIONS.contains(&version) {
        return Err(GgufError::Version(version));
    }
    let tensors = limited("tensors", reader.u64()?, MAX_TENSORS)?;
    let count = limited("keys", reader.u64()?, MAX_KEYS)?;
    let mut keys = BTreeMap::new();
    for _ in 0..count {
        let key = reader.name()?;
        let kind = reader.u32()?;
        if let Some(value) = reader.value(kind)? {
            keys.insert(key, value);
        }
    }
    let mut weights = Weights::default();
    let mut data = 0;
    for _ in 0..tensors {
        data = reader.tensor(&mut weights)?.max(data);
    }
    let alignment = match keys.get(ALIGNMENT) {
        Some(Value::Number(bytes)) => (*bytes).max(1),
        _ => USUAL_ALIGNMENT,
    };
    let before = reader.cursor.at();
    let begins = if tensors == 0 { before } else { before.checked_next_multiple_of(alignment).unwrap_or(u64::MAX) };
    Ok(Header { keys, weights, file: Bytes::new(begins.saturating_add(data)) })
}

fn limited(what: &'static str, count: u64, limit: u64) -> Result<u64, GgufError> {
    if count > limit { Err(GgufError::TooMany { what, count, limit }) } else { Ok(count) }
}

struct Reader<'b> {
    cursor: Cursor<'b>,
    file: u64,
}

impl Reader<'_> {
    /// A file that wants more than any header has is broken, and nobody needs to read on.
    fn short(&self, short: Short) -> GgufError {
        if short.wanted > MAX_HEADER {
            return GgufError::TooMany { what: "bytes of the header", count: short.wanted, limit: MAX_HEADER };
        }
        GgufError::Short { wanted: short.wanted }
    }

    fn u32(&mut self) -> Result<u32, GgufError> {
        self.cursor.u32().map_err(|short| self.short(short))
    }

    fn u64(&mut self) -> Result<u64, GgufError> {
        self.cursor.u64().map_err(|short| self.short(short))
    }

    fn take(&mut self, count: u64) -> Result<&[u8], GgufError> {
        let taken = self.cursor.take(count);
        taken.map_err(|short| {
            if short.wanted > MAX_HEADER {
                GgufError::TooMany { what: "bytes of the header", count: short.wanted, limit: MAX_HEADER }
            } else {
                GgufError::Short { wanted: short.wanted }
            }
        })
    }

    fn name(&mut self) -> Result<String, GgufError> {
        let length = limited("bytes of a name", self.u64()?, MAX_NAME)?;
        let file = self.file;
        let bytes = self.take(length)?;
        String::from_utf8(bytes.to_vec()).map_err(|_| GgufError::Malformed("a name is no UTF-8", file))
    }

    /// `None`: a value that nothing is decided by.
    fn value(&mut self, kind: u32) -> Result<Option<Value>, GgufError> {
        const STRING: u32 = 8;
        const ARRAY: u32 = 9;
        match kind {
            STRING => {
                let length = self.u64()?;
                let text = self.take(length)?;
                let text = (length <= MAX_NAME).then(|| String::from_utf8(text.to_vec()).ok()).flatten();
                Ok(text.map(Value::Text))
            }
            ARRAY => self.list().map(Some),
            _ => Ok(self.number(kind)?.map(Value::Number)),
        }
    }

    fn list(&mut self) -> Result<Value, GgufError> {
        const STRING: u32 = 8;
        let (kind, count) = (self.u32()?, self.u64()?);
        if kind == STRING {
            for _ in 0..count {
                let length = self.u64()?;
                self.take(length)?;
            }
            return Ok(Value::Long(count));
        }
        let size = scalar_size(kind).ok_or(GgufError::Malformed("a list of lists", self.file))?;
        if count > MAX_LIST {
            self.take(count.saturating_mul(size))?;
            return Ok(Value::Long(count));
        }
        let mut list = Vec::new();
        for _ in 0..count {
            list.push(self.number(kind)?.unwrap_or_default());
        }
        Ok(Value::List(list))
    }

    /// `None`: a negative or floating-point number.
    fn number(&mut self, kind: u32) -> Result<Option<u64>, GgufError> {
        const FLOATS: [u32; 2] = [6, 12];
        const SIGNED: [u32; 4] = [1, 3, 5, 11];
        let size = scalar_size(kind).ok_or(GgufError::Malformed("a value of unknown type", self.file))?;
        let cursor = &mut self.cursor;
        let value = match size {
            1 => cursor.u8().map(u64::from),
            2 => cursor.u16().map(u64::from),
            4 => cursor.u32().map(u64::from),
            _ => cursor.u64(),
        };
        let value = value.map_err(|short| self.short(short))?;
        let negative = SIGNED.contains(&kind) && value >> (8 * size - 1) == 1;
        Ok((!negative && !FLOATS.contains(&kind)).then_some(value))
    }

    /// Gives where its data ends, counted from where all data begins.
    fn tensor(&mut self, weights: &mut Weights) -> Result<u64, GgufError> {
        let name = self.name()?;
        let dimensions = self.u32()?;
        if dimensions > MAX_DIMENSIONS {
            let (count, limit) = (dimensions.into(), MAX_DIMENSIONS.into());
            return Err(GgufError::TooMany { what: "dimensions of a tensor", count, limit });
        }
        let mut row = 1u64;
        let mut rows = 1u64;
        let mut real = 0;
        for nth in 0..dimensions {
            let length = self.u64()?;
            real += usize::from(length > 1);
            let product = if nth == 0 { &mut row } else { &mut rows };
            *product = product.saturating_mul(length);
        }
        let (kind, offset) = (self.u32()?, self.u64()?);
        let (block, size) = block(kind).ok_or_else(|| GgufError::UnknownType { name: name.clone(), kind })?;
        let bytes = Bytes::new(size).times(row.div_ceil(block)).times(rows);
        weights.add(&name, real, bytes);
        Ok(offset.saturating_add(bytes.get()))
    }
}

/// Bytes of a number or truth value.
fn scalar_size(kind: u32) -> Option<u64> {
    match kind {
        0 | 1 | 7 => Some(1),
        2 | 3 => Some(2),
        4..=6 => Some(4),
        10..=12 => Some(8),
        _ => None,
    }
}

/// Elements of a block of a tensor's type, and its bytes.
fn block(kind: u32) -> Option<(u64, u64)> {
    Some(match kind {
        0 | 26 => (1, 4),      // F32, I32
        1 | 25 | 30 => (1, 2), // F16, I16, BF16
        2 => (32, 18),         // Q4_0
        3 => (32, 20),         // Q4_1
        6 => (32, 22),         // Q5_0
        7 => (32, 24),         // Q5_1
        8 => (32, 34),         // Q8_0
        9 => (32, 36),         // Q8_1
        10 => (256, 84),       // Q2_K
        11 | 21 => (256, 110), // Q3_K, IQ3_S
        12 => (256, 144),      // Q4_K
        13 => (256, 176),      // Q5_K
        14 => (256, 210),      // Q6_K
        15 => (256, 292),      // Q8_K
        16 | 35 => (256, 66),  // IQ2_XXS, TQ2_0
        17 => (256, 74),       // IQ2_XS
        18 => (256, 98),       // IQ3_XXS
        19 => (256, 50),       // IQ1_S
        20 => (32, 18),        // IQ4_NL
        22 => (256, 82),       // IQ2_S
        23 => (256, 136),      // IQ4_XS
        24 => (1, 1),          // I8
        27 | 28 => (1, 8),     // I64, F64
        29 => (256, 56),       // IQ1_M
        34 => (256, 54),       // TQ1_0
        39 => (32, 17),        // MXFP4
        _ => return None,
    })
}
