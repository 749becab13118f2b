//! Model files, as strangers and broken downloads make them.

#[path = "../../weave-daemon/tests/model/files.rs"]
mod files;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use files::{F8, F16, Front, Q4_0, Tensor, clip_l, mmdit, t5, taesd, vae};
use weave_core::text::is_shown;
use weave_daemon::model::header::Header;
use weave_daemon::model::part::{Kind, Part, Tensors};

/// Well-formed parts, as small as the checks let them be.
static PARTS: LazyLock<Vec<Vec<Tensor>>> = LazyLock::new(|| {
    vec![taesd(16), clip_l(), vae(16, false), t5(4096, 10_240, 64, false), mmdit(files::MEDIUM)]
});

const SETTINGS: [&str; 7] = ["taesd", "clip_l", "vae", "t5xxl", "diffusion_model", "model", "clip_g"];

/// What somebody is shown of a file is one line, and does nothing to a terminal.
fn assert_is_plain(shown: &str) {
    assert!(!shown.is_empty() && shown.chars().all(is_shown), "{shown:?}");
}

/// All that is done with the header of a file of `len` bytes that begins with `bytes`, and that this setting names.
fn judge(setting: &str, bytes: &[u8], len: u64) {
    let header = match Header::read(bytes, len) {
        Ok(header) => header,
        Err(error) => return assert_is_plain(&error.to_string()),
    };
    assert_is_plain(&Kind::of(header.tensors()).to_string());
    let mut parts = BTreeMap::<Part, Tensors<'_>>::new();
    for (name, tensor) in header.tensors() {
        if let Some((part, its_name)) = Part::of(setting, name) {
            parts.entry(part).or_default().insert(its_name, (name, tensor));
        }
    }
    for (part, tensors) in parts {
        match part.check(&tensors) {
            Ok(content) => {
                // fp8 becomes f16, and tables of quantised rows f32.
                let there: u64 =
                    tensors.values().map(|(_, tensor)| tensor.bytes.max(4 * tensor.numbers())).sum();
                assert!(content.bytes <= there, "{} bytes of {there}", content.bytes);
                assert_is_plain(&content.to_string());
            }
            Err(fault) => assert_is_plain(&fault.to_string()),
        }
    }
}

/// The first byte chooses the setting, the second what follows: the file's own bytes follow, after how much longer it says it is; or a well-formed part
/// does, from which tensors are taken, or whose tensors get other names and shapes, three bytes for each.
///
/// No panic, no more memory than a header may take, and every refusal is one line that a terminal can show.
pub fn model(data: &[u8]) {
    let Some(([setting, choice], rest)) = data.split_first_chunk() else { return };
    let setting = SETTINGS[usize::from(*setting) % SETTINGS.len()];
    if *choice < 128 {
        let more = 1_u64.checked_shl(u32::from(*choice)).unwrap_or(0);
        return judge(setting, rest, (rest.len() as u64).saturating_add(more));
    }
    let mut tensors = PARTS[usize::from(*choice) % PARTS.len()].clone();
    let mut edits = rest.chunks_exact(3);
    for edit in &mut edits {
        let at = usize::from(u16::from_le_bytes([edit[0], edit[1]]));
        if tensors.is_empty() {
            break;
        }
        let at = at % tensors.len();
        let (name, shape) = &mut tensors[at];
        match edit[2] {
            0..64 => drop(tensors.remove(at)),
            what @ 64..128 => {
                let place = usize::from(what) % (shape.len() + 1);
                shape.insert(place, 1 << (what - 64));
            }
            128..160 => drop(shape.pop()),
            160..192 => shape.iter_mut().for_each(|n| *n = n.saturating_mul(2)),
            what => name.push(char::from(what & 0x7F)),
        }
    }
    let format = [F16, F8, Q4_0][usize::from(*choice) / 8 % 3];
    let fits = |(_, shape): &Tensor| {
        let numbers = shape.iter().try_fold(4_u64, |product, n| product.checked_mul(*n));
        shape.len() < 9 && numbers.is_some_and(|numbers| numbers < 1 << 40)
    };
    tensors.retain(fits);
    let Front { mut bytes, len } = format.front(&tensors);
    // What is left over changes a byte of the header.
    if let [place, value] = *edits.remainder() {
        let at = usize::from(place) * bytes.len() / 256;
        bytes[at] = value;
    }
    judge(setting, &bytes, len);
}
