//! The engine's own tokenizers, which get every prompt of a stranger.
//!
//! It is the library that `weaved` links, built without a sanitizer: its times count, and a fuzzer sees nothing of its
//! ways. What it sees instead are the tokens.

use std::ffi::CString;
use std::sync::LazyLock;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};
use weave_core::limits::MAX_PROMPT_LEN;

/// The longest time that a prompt may take, on the processor.
const LIMIT: Duration = Duration::from_millis(100);

const CLIP_VOCABULARY: i32 = 49_408;
const T5_VOCABULARY: i32 = 32_128;
const CHUNK: usize = 77;

/// libFuzzer takes these for counters of the program's own: pairs of tokens, and how long it took.
#[cfg_attr(target_os = "linux", unsafe(link_section = "__libfuzzer_extra_counters"))]
static COUNTERS: [AtomicU8; 1 << 12] = [const { AtomicU8::new(0) }; 1 << 12];

fn tokens(prompt: &CString) -> Result<Vec<i32>, String> {
    let mut tokens = vec![0; 4 * MAX_PROMPT_LEN as usize];
    let mut message = [0u8; 256];
    let mut count = 0;
    // SAFETY: the prompt ends with a NUL; both buffers are as long as is said; all live through the call.
    let status = unsafe {
        sdcpp_sys::sdcpp_tokenize(
            prompt.as_ptr(),
            tokens.as_mut_ptr(),
            tokens.len(),
            &raw mut count,
            message.as_mut_ptr().cast(),
            message.len(),
        )
    };
    if status == sdcpp_sys::sdcpp_status::SDCPP_OK {
        tokens.truncate(count);
        assert_eq!(tokens.len(), count, "more tokens than bytes");
        Ok(tokens)
    } else {
        Err(String::from_utf8_lossy(&message).trim_end_matches('\0').to_owned())
    }
}

/// The time that the processor has spent on this thread. None under valgrind, where everything takes fifty times as long
/// and where `rustix` doesn't find its way to the clock.
fn spent() -> Duration {
    static IS_TIMED: LazyLock<bool> = LazyLock::new(|| std::env::var_os("FUZZ_UNTIMED").is_none());
    if !*IS_TIMED {
        return Duration::ZERO;
    }
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
}

/// Any prompt that the protocol lets through becomes whole chunks of tokens that the vocabularies have, soon.
pub fn prompt(data: &[u8]) {
    static VOCABULARIES: LazyLock<()> = LazyLock::new(|| {
        tokens(&CString::default()).expect("the vocabularies");
    });
    LazyLock::force(&VOCABULARIES);
    let text = String::from_utf8_lossy(data).replace('\0', "");
    let longest = text.len().min(MAX_PROMPT_LEN as usize);
    let beginning = (0..=longest).rev().find_map(|end| text.get(..end)).unwrap_or_default();
    let prompt = CString::new(beginning).expect("text without NUL");
    // Another program may make one try slow, but hardly three.
    let mut least = Duration::MAX;
    for _ in 0..3 {
        let start = spent();
        let found =
            tokens(&prompt).unwrap_or_else(|message| panic!("the engine throws at {prompt:?}: {message}"));
        least = least.min(spent().saturating_sub(start));
        assert!(found.len() >= 2 * CHUNK && found.len().is_multiple_of(CHUNK), "{} tokens", found.len());
        let known = |token: &i32| (0..CLIP_VOCABULARY.max(T5_VOCABULARY)).contains(token);
        assert!(found.iter().all(known), "there is no token {:?}", found.iter().find(|token| !known(token)));
        for pair in found.windows(2) {
            let at = usize::try_from(pair[0].wrapping_mul(31).wrapping_add(pair[1])).unwrap_or(0)
                % (COUNTERS.len() - 64);
            COUNTERS[at].store(1, Ordering::Relaxed);
        }
        if least <= LIMIT {
            break;
        }
    }
    // Half a millisecond more is something new.
    let step = usize::try_from(least.as_micros() / 500).unwrap_or(usize::MAX).min(63);
    COUNTERS[COUNTERS.len() - 64 + step].store(1, Ordering::Relaxed);
    assert!(least <= LIMIT, "{prompt:?} takes {least:?}");
}
