//! The incremental deframer gives the same frames at every cut, within its memory.

use weave_core::frame::{Arrived, Deframer, FrameError};
use weave_core::limits::{HEADER_LEN, MAX_REQUEST_FRAME, MAX_SKIPPED_PAYLOAD, REQUEST_FIXED_LEN};

type Server = Deframer<MAX_REQUEST_FRAME>;

fn frame(id: u8, payload_len: usize) -> Vec<u8> {
    let mut bytes = b"WEVE\x00\x01\x00\x01".to_vec();
    bytes.extend(u32::try_from(payload_len).unwrap().to_be_bytes());
    bytes.extend([0xEE; 4]);
    bytes.extend((0..payload_len).map(|i| id.wrapping_add(i.to_le_bytes()[0])));
    bytes
}

/// What came out: announced length and kept payload of each frame, then how the stream failed, if it did.
type Outcome = (Vec<(u32, Vec<u8>)>, Option<FrameError>);

/// The payload, or what was kept of it.
fn kept<'a>(arrived: &Arrived<'a>) -> &'a [u8] {
    match arrived {
        Arrived::Whole(frame) => {
            assert_eq!(frame.payload().len(), frame.header().payload_len() as usize, "not whole");
            frame.payload()
        }
        Arrived::Skipped(skipped) => {
            assert!(skipped.front().len() < skipped.header().payload_len() as usize, "it is whole");
            skipped.front()
        }
    }
}

fn feed<const N: usize>(deframer: &mut Deframer<N>, bytes: &[u8], mut cut: impl FnMut() -> usize) -> Outcome {
    let mut frames = Vec::new();
    let mut rest = bytes;
    loop {
        loop {
            match deframer.next_frame() {
                Ok(Some(arrived)) => frames.push((arrived.header().payload_len(), kept(&arrived).to_vec())),
                Ok(None) => break,
                Err(error) => return (frames, Some(error)),
            }
        }
        if rest.is_empty() {
            return (frames, None);
        }
        let spare = deframer.spare();
        assert!(!spare.is_empty(), "no frame and no room");
        let n = cut().min(spare.len()).min(rest.len());
        spare[..n].copy_from_slice(&rest[..n]);
        deframer.filled(n);
        rest = &rest[n..];
    }
}

fn mixed_stream() -> Vec<u8> {
    let lens = [0, 1, 7, 8, 60, 102, 6204, 0, 6205, 3, 20_000, 6204, 6204, 59];
    lens.iter().enumerate().flat_map(|(i, len)| frame(u8::try_from(i).unwrap(), *len)).collect()
}

#[test]
fn the_same_frames_at_every_cut() {
    let stream = mixed_stream();
    let whole = feed(&mut Server::new(MAX_SKIPPED_PAYLOAD), &stream, || usize::MAX);
    assert_eq!(whole.0.len(), 14);
    assert_eq!(whole.1, None);
    assert_eq!(whole.0[6].1.len(), 6204, "the longest request is kept whole");
    assert_eq!(whole.0[8].1.len(), REQUEST_FIXED_LEN, "a longer one only so far that it can be answered");
    assert_eq!(whole.0[10], (20_000, frame(10, 20_000)[HEADER_LEN..][..REQUEST_FIXED_LEN].to_vec()));
    for size in [1, 2, 3, 15, 16, 17, 59, 61, 1500, 6219, 6220, 6221] {
        assert_eq!(feed(&mut Server::new(MAX_SKIPPED_PAYLOAD), &stream, || size), whole, "cut every {size}");
    }
    // Cuts of all sizes, from a small fixed generator.
    for seed in 1..200u64 {
        let mut state = seed;
        let cut = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            1 + usize::try_from((state % 97) * (state >> 32) % 700).unwrap()
        };
        assert_eq!(feed(&mut Server::new(MAX_SKIPPED_PAYLOAD), &stream, cut), whole, "seed {seed}");
    }
}

#[test]
fn ten_mebibytes_are_skipped_and_the_next_frame_is_served() {
    let mut stream = frame(1, 10 << 20);
    stream.extend(frame(2, 102));
    let (frames, error) = feed(&mut Server::new(MAX_SKIPPED_PAYLOAD), &stream, || usize::MAX);
    assert_eq!((frames.len(), error), (2, None));
    assert_eq!(frames[0], (10 << 20, stream[16..76].to_vec()));
    assert_eq!(frames[1].1, frame(2, 102)[16..]);
}

#[test]
fn a_lost_stream_stays_lost() {
    for (bad, frames_before) in [(b"WEVO".to_vec(), 1), (frame(0, (10 << 20) + 1)[..16].to_vec(), 1)] {
        let mut stream = frame(1, 20);
        stream.extend(&bad);
        stream.resize(stream.len() + 16, 0);
        stream.extend(frame(2, 20));
        let mut deframer = Server::new(MAX_SKIPPED_PAYLOAD);
        let (frames, error) = feed(&mut deframer, &stream, || 5);
        assert_eq!(frames.len(), frames_before);
        let error = error.expect("the stream must be given up");
        deframer.spare();
        assert_eq!(deframer.next_frame().unwrap_err(), error);
        deframer.reset();
        assert_eq!(feed(&mut deframer, &frame(3, 9), || 4).0.len(), 1, "reset makes it new");
    }
}

#[test]
fn the_end_of_a_stream_is_told_from_a_cut_frame() {
    let stream = frame(1, 100);
    for end in 0..=stream.len() {
        let mut deframer = Server::new(MAX_SKIPPED_PAYLOAD);
        let (frames, _) = feed(&mut deframer, &stream[..end], || 9);
        assert_eq!(frames.len(), usize::from(end == stream.len()));
        assert_eq!(deframer.is_between_frames(), end == 0 || end == stream.len(), "after {end} bytes");
    }
}
