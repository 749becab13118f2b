//! The header of a safetensors file: a length, and JSON of that length.

use std::borrow::Cow;
use std::fmt;
use std::io::Read;

use serde::Deserialize;
use serde::de::{self, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::header::{Bytes, Header, HeaderError, MAX_DIMENSIONS, MAX_NAME, Tensor, Type, beginning};

const fn weight(name: &'static str, size: u64) -> Type {
    Type { name, block: 1, size, is_weight: true }
}

const fn number(name: &'static str, size: u64) -> Type {
    Type { name, block: 1, size, is_weight: false }
}

/// The types that the engine reads. It passes over tensors of `U8`.
static TYPES: [(&str, Type); 9] = [
    ("F64", weight("f64", 8)),
    ("F32", weight("f32", 4)),
    ("F16", weight("f16", 2)),
    ("BF16", weight("bf16", 2)),
    ("F8_E4M3", weight("f8_e4m3", 1)),
    ("F8_E5M2", weight("f8_e5m2", 1)),
    ("I64", number("i64", 8)),
    ("I32", number("i32", 4)),
    ("U8", number("u8", 1)),
];

pub(super) fn read<R: Read>(bytes: &mut Bytes<R>) -> Result<Header, HeaderError> {
    let damaged = HeaderError::Damaged;
    let mut len = [0; 8];
    bytes.fill(&mut len)?;
    let len = u64::from_le_bytes(len);
    bytes.expect(len)?;
    let len = usize::try_from(len).map_err(|error| damaged(error.to_string()))?;
    let mut json = vec![0; len];
    bytes.fill(&mut json)?;
    let json = std::str::from_utf8(&json).map_err(|error| damaged(error.to_string()))?;
    let Entries { header, end } = serde_json::from_str(json).map_err(|error| damaged(error.to_string()))?;
    let header = header?;
    match bytes.position().checked_add(end) {
        Some(needs) if needs <= bytes.len() => Ok(header),
        needs => Err(HeaderError::CutOff { has: bytes.len(), needs: needs.unwrap_or(u64::MAX) }),
    }
}

/// What the JSON says: tensors, and where the last of them ends.
struct Entries {
    header: Result<Header, HeaderError>,
    end: u64,
}

#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    dtype: Cow<'a, str>,
    shape: Dimensions,
    data_offsets: (u64, u64),
}

/// A list of numbers that can't grow.
struct Dimensions([u64; MAX_DIMENSIONS], usize);

impl<'de> Deserialize<'de> for Dimensions {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Numbers;
        impl<'de> Visitor<'de> for Numbers {
            type Value = Dimensions;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "a shape of at most {MAX_DIMENSIONS} dimensions")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Dimensions, A::Error> {
                let mut shape = Dimensions([1; MAX_DIMENSIONS], 0);
                while let Some(n) = list.next_element()? {
                    let Some(place) = shape.0.get_mut(shape.1) else {
                        return Err(de::Error::invalid_length(shape.1 + 1, &self));
                    };
                    *place = n;
                    shape.1 += 1;
                }
                Ok(shape)
            }
        }
        deserializer.deserialize_seq(Numbers)
    }
}

impl<'de> Deserialize<'de> for Entries {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;
        impl<'de> Visitor<'de> for Object {
            type Value = Entries;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of tensors")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entries, A::Error> {
                let mut entries = Entries { header: Ok(Header::default()), end: 0 };
                while let Some(name) = map.next_key::<Cow<'de, str>>()? {
                    if name == "__metadata__" {
                        map.next_value::<IgnoredAny>()?;
                        continue;
                    }
                    let entry: Entry<'de> = map.next_value()?;
                    if name.len() > MAX_NAME {
                        let what = format_args!("a tensor's name has {} bytes", name.len());
                        return Err(de::Error::custom(what));
                    }
                    let Some((_, kind)) = TYPES.iter().find(|(known, _)| *known == entry.dtype) else {
                        let kind = beginning(&entry.dtype);
                        let what = format!("{name:?} is of the type {kind:?}, which the engine doesn't read");
                        entries.header = entries.header.and(Err(HeaderError::Unsupported(what)));
                        continue;
                    };
                    let tensor = entry.tensor(&name, kind).map_err(de::Error::custom)?;
                    entries.end = entries.end.max(entry.data_offsets.1);
                    if let (Ok(header), Some(tensor)) = (&mut entries.header, tensor)
                        && let Err(error) = header.push(name.into_owned(), tensor)
                    {
                        entries.header = Err(error);
                    }
                }
                Ok(entries)
            }
        }
        deserializer.deserialize_map(Object)
    }
}

impl Entry<'_> {
    /// The tensor, if it is one that the engine takes notice of.
    fn tensor(&self, name: &str, kind: &'static Type) -> Result<Option<Tensor>, String> {
        let shape = self.shape.0.get(..self.shape.1).unwrap_or_default();
        let tensor = Tensor::new(kind, shape).map_err(|what| format!("{name:?} has {what}"))?;
        let (begin, end) = self.data_offsets;
        if end.checked_sub(begin) != Some(tensor.bytes) {
            return Err(format!("{name:?} lies at {begin} to {end} and takes {} bytes", tensor.bytes));
        }
        Ok((self.dtype != "U8").then_some(tensor))
    }
}
