//! The header of a safetensors file: a length, and as many bytes of JSON with a type, a shape and a place for each tensor.
//!
//! Source of the format: the readme of huggingface/safetensors.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, Visitor};

use super::bytes::Cursor;
use super::weights::Weights;
use crate::quantity::Bytes;

/// As the format has it.
pub const MAX_HEADER: u64 = 100_000_000;
const MAX_TENSORS: usize = 1 << 18;
const MAX_DIMENSIONS: usize = 8;

#[derive(Debug, thiserror::Error)]
pub enum SafetensorsError {
    /// Read at least `wanted` bytes of the file and parse again.
    #[error("the header goes on beyond what was read, to byte {wanted} at least")]
    Short { wanted: u64 },
    #[error("the header has {length} bytes, more than the limit of {MAX_HEADER}")]
    TooLong { length: u64 },
    #[error("the header is not what it should be")]
    Malformed(#[source] serde_json::Error),
}

/// What the header of one file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    pub weights: Weights,
    /// How long the file is at least, with all its tensors.
    pub file: Bytes,
}

/// Parses the beginning of a file. `bytes` may end anywhere; then the error says how many are wanted.
pub fn header(bytes: &[u8]) -> Result<Header, SafetensorsError> {
    let mut cursor = Cursor::new(bytes);
    let short = |short: super::bytes::Short| SafetensorsError::Short { wanted: short.wanted };
    let length = cursor.u64().map_err(short)?;
    if length > MAX_HEADER {
        return Err(SafetensorsError::TooLong { length });
    }
    let json = cursor.take(length).map_err(short)?;
    let Table { weights, data } = serde_json::from_slice(json).map_err(SafetensorsError::Malformed)?;
    Ok(Header { weights, file: Bytes::new(cursor.at().saturating_add(data)) })
}

struct Table {
    weights: Weights,
    /// Where the last tensor ends, counted from where all data begins.
    data: u64,
}

#[derive(Deserialize)]
struct Tensor {
    shape: Dimensions,
    data_offsets: (u64, u64),
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Tensors;
        impl<'de> Visitor<'de> for Tensors {
            type Value = Table;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a table of tensors")
            }

            /// One tensor after the other; only sums are kept.
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut weights = Weights::default();
                let (mut count, mut data) = (0, 0);
                while let Some(name) = map.next_key::<String>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    count += 1;
                    if count > MAX_TENSORS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_TENSORS} tensors")));
                    }
                    let tensor: Tensor = map.next_value()?;
                    let (begin, end) = tensor.data_offsets;
                    let bytes = end.checked_sub(begin);
                    let bytes = bytes.ok_or_else(|| serde::de::Error::custom("a tensor ends before it begins"))?;
                    weights.add(&name, tensor.shape.0, Bytes::new(bytes));
                    data = end.max(data);
                }
                Ok(Table { weights, data })
            }
        }
        deserializer.deserialize_map(Tensors)
    }
}

/// How many dimensions a tensor has that are longer than 1.
struct Dimensions(usize);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Shape;
        impl<'de> Visitor<'de> for Shape {
            type Value = Dimensions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a shape")
            }

            fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut list: A) -> Result<Dimensions, A::Error> {
                let (mut count, mut real) = (0, 0);
                while let Some(length) = list.next_element::<u64>()? {
                    count += 1;
                    real += usize::from(length > 1);
                    if count > MAX_DIMENSIONS {
                        return Err(serde::de::Error::custom(format!("more than {MAX_DIMENSIONS} dimensions")));
                    }
                }
                Ok(Dimensions(real))
            }
        }
        deserializer.deserialize_seq(Shape)
    }
}
