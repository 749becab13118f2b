//! Files that become a thousand times as large when they are read, read with little memory.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::command::{Run, folder, run, weave};
use crate::fake::Fake;

/// The command, with so many megabytes of address space and no more.
fn weave_within(megabytes: u32, folder: &Path, args: &[&str]) -> Command {
    let whole = weave(folder);
    let mut command = Command::new("sh");
    command.args(["-c", &format!("ulimit -v {} && exec \"$@\"", megabytes * 1024), "sh"]);
    command.arg(whole.get_program()).args(args).current_dir(folder).stdin(Stdio::null());
    for (name, _) in whole.get_envs() {
        command.env_remove(name);
    }
    command
}

/// A stream of zlib that becomes so many bytes of the same value, a hundred and fifty times as many as it has.
fn bomb(value: u8, len: usize) -> Vec<u8> {
    assert!(value < 144 && len % 258 == 1, "one literal, then repetitions of 258 bytes");
    let (mut out, mut bits, mut count) = (vec![0x78, 0x9C], 0u64, 0);
    let mut put = |value: u64, n: u32| {
        bits |= value << count;
        count += n;
        while count >= 8 {
            out.push((bits & 0xFF) as u8);
            bits >>= 8;
            count -= 8;
        }
    };
    let code = |code: u8| u64::from(code.reverse_bits());
    // The last block, with the fixed codes.
    put(0b011, 3);
    put(code(0x30 + value), 8);
    for _ in 0..len / 258 {
        // Length 258, distance 1.
        put(code(0xC5), 8);
        put(0, 5);
    }
    // Its end, and up to the end of a byte.
    put(0, 7 + 7);
    let (n, value) = (len as u64, u64::from(value));
    let a = (1 + n * value) % 65_521;
    let b = (n + value * (n % 131_042) * ((n + 1) % 131_042) / 2) % 65_521;
    out.extend(((b << 16 | a) as u32).to_be_bytes());
    out
}

fn chunk(file: &mut Vec<u8>, kind: &[u8; 4], data: &[u8]) {
    file.extend((data.len() as u32).to_be_bytes());
    let crc = kind.iter().chain(data).fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| crc >> 1 ^ (0xEDB8_8320 & (crc & 1).wrapping_neg()))
    });
    file.extend(kind);
    file.extend(data);
    file.extend((!crc).to_be_bytes());
}

/// A PNG file of one grey colour, with these chunks before its pixels.
fn png(side: u32, chunks: &[(&[u8; 4], Vec<u8>)]) -> Vec<u8> {
    let mut file = b"\x89PNG\r\n\x1a\n".to_vec();
    let sides = [side.to_be_bytes(), side.to_be_bytes()].concat();
    chunk(&mut file, b"IHDR", &[&sides[..], &[8, 0, 0, 0, 0]].concat());
    for (kind, data) in chunks {
        chunk(&mut file, kind, data);
    }
    // A filter and the pixels in each row; what is too much for 258 is not looked at.
    let pixels = (side as usize + 1) * side as usize;
    chunk(&mut file, b"IDAT", &bomb(0, pixels.next_multiple_of(258) + 1));
    chunk(&mut file, b"IEND", b"");
    file
}

/// 258 MB.
const LARGE: usize = 258 * 1_000_000 + 1;

#[test]
fn what_is_compressed_into_a_png_file_is_not_believed() {
    let folder = folder();
    let profile = [&b"bomb\0\0"[..], &bomb(0, LARGE)].concat();
    let utf8 = |keyword: &str| [keyword.as_bytes(), b"\0\x01\0\0\0", &bomb(b'{', LARGE)].concat();
    let latin1 = |keyword: &str| [keyword.as_bytes(), b"\0\0", &bomb(b'{', LARGE)].concat();
    let none = "doesn't say how to make it";
    let cases: [(&str, Vec<u8>, &str); 8] = [
        ("profile.png", png(64, &[(b"iCCP", profile)]), none),
        ("other.png", png(64, &[(b"iTXt", utf8("Other")), (b"zTXt", latin1("Other"))]), none),
        ("latin1.png", png(64, &[(b"zTXt", latin1("Weave"))]), none),
        ("utf8.png", png(64, &[(b"iTXt", utf8("Weave"))]), "has a text \"Weave\" of more than 65536 bytes"),
        (
            "long.png",
            png(64, &[(b"tEXt", [&b"Weave\0"[..], &[b'{'; 100_000]].concat())]),
            "has a text \"Weave\" of more than 65536 bytes",
        ),
        (
            "deep.png",
            png(64, &[(b"tEXt", [&b"Weave\0"[..], &[b'['; 60_000]].concat())]),
            "has parameters that can't be used: ",
        ),
        ("many.png", png(64, &vec![(b"tEXt", b"Weavy\0x".to_vec()); 65_535]), none),
        ("side.png", png(16_000, &[]), "has 16000×16000 pixels, and an image of Weave has at most 2048×2048"),
    ];
    for (name, file, says) in cases {
        fs::write(folder.path().join(name), &file).unwrap();
        let Run { status, stderr, .. } =
            run(weave_within(160, folder.path(), &["verify", "--socket=nobody", name]));
        assert_eq!(status, Some(66), "{name} of {} bytes: {stderr}", file.len());
        assert!(stderr.contains(says) && stderr.len() < 400, "{name}: {stderr}");
    }
}

#[test]
fn what_has_no_end_is_not_read_to_its_end() {
    let folder = folder();
    for (command, most) in [("verify", 33_554_432), ("inspect", 67_108_864)] {
        let Run { status, stderr, .. } = run(weave_within(300, folder.path(), &[command, "/dev/zero"]));
        assert_eq!(status, Some(66), "{command}: {stderr}");
        assert!(stderr.contains(&format!("/dev/zero has more than {most} bytes")), "{command}: {stderr}");
    }
}

/// An answer that goes on, and one whose values take more room than its text.
#[test]
fn figures_are_some_kilobytes() {
    let folder = folder();
    let endless = format!("{{\"a\": \"{}", "x".repeat(1 << 30 >> 4));
    let wide = format!("{{\"a\": [{}1]}}", "{},".repeat(340_000));
    for (body, status, says) in
        [(endless, 76, "doesn't answer as a daemon's administrative socket does"), (wide, 0, "")]
    {
        let fake = Fake::listening(move |listener: UnixListener| {
            let (mut stream, _) = listener.accept().unwrap();
            let _ = stream.read(&mut [0; 4096]);
            let _ = stream.write_all(format!("HTTP/1.1 200 X\r\n\r\n{body}").as_bytes());
        });
        let path = fake.path();
        let args = ["stats", "--admin-socket", path.to_str().unwrap()];
        let Run { status: ended, stderr, .. } = run(weave_within(160, folder.path(), &args));
        assert_eq!(ended, Some(status), "{stderr}");
        assert!(stderr.contains(says), "{stderr}");
    }
}

/// Each of these sixteen bytes fills a kilobyte of the terminal.
#[test]
fn frames_are_shown_as_they_are_read() {
    let folder = folder();
    let mut file = File::create(folder.path().join("headers")).unwrap();
    file.write_all(&b"WEVE\0\x01\0\xff\0\0\0\0\0\0\0\0".repeat(150_000)).unwrap();
    let mut command = weave_within(100, folder.path(), &["inspect", "headers"]);
    command.stdout(File::create(folder.path().join("shown")).unwrap());
    let Run { status, stderr, .. } = run(command);
    assert_eq!((status, stderr.as_str()), (Some(1), ""));
    let shown = folder.path().join("shown").metadata().unwrap().len();
    assert!(shown > 100_000_000, "{shown}");
}
