//! The header of a GGUF file, versions 2 and 3: metadata, which is passed over, and a list of tensors.

use std::io::Read;

use super::header::{Bytes, Header, HeaderError, MAX_DIMENSIONS, MAX_NAME, MAX_TENSORS, Tensor, Type};

const fn weight(name: &'static str, block: u64, size: u64) -> Option<Type> {
    Some(Type { name, block, size, is_weight: true })
}

const fn number(name: &'static str, size: u64) -> Option<Type> {
    Some(Type { name, block: 1, size, is_weight: false })
}

/// ggml's types by their numbers. Those between were withdrawn.
static TYPES: [Option<Type>; 42] = {
    let mut types = [const { None }; 42];
    types[0] = weight("f32", 1, 4);
    types[1] = weight("f16", 1, 2);
    types[2] = weight("q4_0", 32, 18);
    types[3] = weight("q4_1", 32, 20);
    types[6] = weight("q5_0", 32, 22);
    types[7] = weight("q5_1", 32, 24);
    types[8] = weight("q8_0", 32, 34);
    types[10] = weight("q2_K", 256, 84);
    types[11] = weight("q3_K", 256, 110);
    types[12] = weight("q4_K", 256, 144);
    types[13] = weight("q5_K", 256, 176);
    types[14] = weight("q6_K", 256, 210);
    types[16] = weight("iq2_xxs", 256, 66);
    types[17] = weight("iq2_xs", 256, 74);
    types[18] = weight("iq3_xxs", 256, 98);
    types[19] = weight("iq1_s", 256, 50);
    types[20] = weight("iq4_nl", 32, 18);
    types[21] = weight("iq3_s", 256, 110);
    types[22] = weight("iq2_s", 256, 82);
    types[23] = weight("iq4_xs", 256, 136);
    types[24] = number("i8", 1);
    types[25] = number("i16", 2);
    types[26] = number("i32", 4);
    types[27] = number("i64", 8);
    types[28] = number("f64", 8);
    types[29] = weight("iq1_m", 256, 56);
    types[30] = weight("bf16", 1, 2);
    types[34] = weight("tq1_0", 256, 54);
    types[35] = weight("tq2_0", 256, 66);
    types[39] = weight("mxfp4", 32, 17);
    types[40] = weight("nvfp4", 64, 36);
    types[41] = weight("q1_0", 128, 18);
    types
};

/// The longest name of an entry of metadata, by the format.
const MAX_KEY: u64 = 65_535;

/// Where tensors begin, unless the metadata says otherwise.
const ALIGNMENT: u64 = 32;

pub(super) fn read<R: Read>(bytes: &mut Bytes<R>) -> Result<Header, HeaderError> {
    let damaged = |what: String| Err(HeaderError::Damaged(what));
    let unsupported = |what: String| Err(HeaderError::Unsupported(what));
    let mut magic = [0; 4];
    bytes.fill(&mut magic)?;
    match u32(bytes)? {
        2 | 3 => {}
        1 => return unsupported("GGUF's version is 1, and the engine reads 2 and 3".to_owned()),
        version if version.swap_bytes() <= 3 => {
            return unsupported("it was made for a processor with another order of bytes".to_owned());
        }
        version => return unsupported(format!("GGUF's version is {version}, and the engine reads 2 and 3")),
    }
    let tensors = u64(bytes)?;
    if tensors > MAX_TENSORS as u64 {
        return damaged(format!("it announces {tensors} tensors"));
    }
    // A loop over what it claims ends with the bytes that there are.
    let entries = u64(bytes)?;
    let mut alignment = ALIGNMENT;
    for _ in 0..entries {
        if let Some(said) = entry(bytes)? {
            alignment = said;
        }
    }
    if !alignment.is_power_of_two() {
        return damaged(format!("tensors begin at multiples of {alignment}, which is no power of two"));
    }
    let mut header = Header::default();
    let mut end = 0;
    for _ in 0..tensors {
        let name = string(bytes, MAX_NAME as u64)?;
        let rank = u32(bytes)? as usize;
        let mut shape = [1; MAX_DIMENSIONS];
        let Some(shape) = shape.get_mut(..rank) else {
            return damaged(format!("{name:?} has {rank} dimensions, at most {MAX_DIMENSIONS} are possible"));
        };
        // The fastest one stands first.
        for n in shape.iter_mut().rev() {
            *n = u64(bytes)?;
        }
        let number = u32(bytes)?;
        let Some(kind) = TYPES.get(number as usize).and_then(Option::as_ref) else {
            return unsupported(format!(
                "{name:?} is of ggml's type {number}, which the engine doesn't read"
            ));
        };
        // Dimensions of 1 in front tell nothing.
        let ones = shape.iter().take_while(|n| **n == 1).count().min(rank.saturating_sub(1));
        let tensor = match Tensor::new(kind, shape.get(ones..).unwrap_or_default()) {
            Ok(tensor) => tensor,
            Err(what) => return damaged(format!("{name:?} has {what}")),
        };
        let offset = u64(bytes)?;
        match offset.checked_add(tensor.bytes) {
            Some(its_end) => end = its_end.max(end),
            None => return damaged(format!("{name:?} lies at {offset}")),
        }
        header.push(name, tensor)?;
    }
    match bytes.position().checked_next_multiple_of(alignment).and_then(|data| data.checked_add(end)) {
        Some(needs) if needs <= bytes.len() => Ok(header),
        // The last padding may be missing where there is nothing after it.
        _ if end == 0 => Ok(header),
        needs => Err(HeaderError::CutOff { has: bytes.len(), needs: needs.unwrap_or(u64::MAX) }),
    }
}

/// Passes over an entry of metadata, unless it is the alignment.
fn entry<R: Read>(bytes: &mut Bytes<R>) -> Result<Option<u64>, HeaderError> {
    const STRING: u32 = 8;
    const ARRAY: u32 = 9;
    let key = string(bytes, MAX_KEY)?;
    let kind = u32(bytes)?;
    match kind {
        4 if key == "general.alignment" => return Ok(Some(u64::from(u32(bytes)?))),
        STRING => skip_string(bytes)?,
        ARRAY => {
            let kind = u32(bytes)?;
            let count = u64(bytes)?;
            if kind == STRING {
                for _ in 0..count {
                    skip_string(bytes)?;
                }
            } else {
                let all = size(&key, kind)?.checked_mul(count);
                bytes.skip(all.unwrap_or(u64::MAX))?;
            }
        }
        _ => bytes.skip(size(&key, kind)?)?,
    }
    Ok(None)
}

/// The size of a number in the metadata.
fn size(key: &str, kind: u32) -> Result<u64, HeaderError> {
    match kind {
        0 | 1 | 7 => Ok(1),
        2 | 3 => Ok(2),
        4..=6 => Ok(4),
        10..=12 => Ok(8),
        _ => Err(HeaderError::Damaged(format!("{key:?} is of the unknown type {kind}"))),
    }
}

fn u32<R: Read>(bytes: &mut Bytes<R>) -> Result<u32, HeaderError> {
    let mut four = [0; 4];
    bytes.fill(&mut four)?;
    Ok(u32::from_le_bytes(four))
}

fn u64<R: Read>(bytes: &mut Bytes<R>) -> Result<u64, HeaderError> {
    let mut eight = [0; 8];
    bytes.fill(&mut eight)?;
    Ok(u64::from_le_bytes(eight))
}

fn skip_string<R: Read>(bytes: &mut Bytes<R>) -> Result<(), HeaderError> {
    let len = u64(bytes)?;
    bytes.skip(len)
}

fn string<R: Read>(bytes: &mut Bytes<R>, longest: u64) -> Result<String, HeaderError> {
    let len = u64(bytes)?;
    if len > longest {
        return Err(HeaderError::Damaged(format!("a name has {len} bytes")));
    }
    let mut text = vec![0; usize::try_from(len).unwrap_or(0)];
    bytes.fill(&mut text)?;
    String::from_utf8(text).map_err(|_| HeaderError::Damaged("a name is no UTF-8".to_owned()))
}
