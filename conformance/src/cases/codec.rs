//! What a library is asked to write, in the order of the specification. What it has to read are the vectors,
//! in the cases for servers and for clients.
//!
//! A new case goes to the end of its requirement's, with the next letter. `cases.txt` has all ids that were
//! ever used.

use serde_json::{Value, json};

use crate::case::{Case, recommended, required};
use crate::codec::{Adapter, compact, short, shown_wrongly, unsupported};
use crate::draft::Draft;
use crate::verdict::{Failure, Remark, Told, fail};
use crate::wire::{CODES, Shown, hex};

/// All of them.
pub(super) const CASES: &[Case] = &[
    // 2. Transport
    required("W1-TRN-005d", "a request is written like the specification's example")
        .codec(|adapter| expect(&adapter.write(&question(same(EXAMPLE), &[]))?, &example().bytes())),
    required("W1-TRN-005f", "every byte of a number is written").codec(|adapter| {
        let of_ids = IDS.into_iter().flat_map(|id| {
            let text = || Value::from(id.to_string());
            [
                (question(same(EXAMPLE), &[("request_id", text())]), example().set("request_id", id)),
                (question(same(EXAMPLE), &[("seed", text())]), example().set("seed", id)),
                (with(head(64, 64, 3), "request_id", text()), head_of(64, 64, 3).set("request_id", id)),
                (with(error(6, b"no"), "request_id", text()), Draft::error(id, 6, b"no")),
            ]
        });
        let sides =
            ["width", "height"].into_iter().flat_map(|name| [64, 320, 1984, 2048].map(|side| (name, side)));
        let numbers = sides.chain([1, 99, 100].map(|steps| ("steps", steps)));
        let of_numbers = numbers.map(|(name, value)| {
            (question(same(EXAMPLE), &[(name, value.into())]), example().set(name, value))
        });
        let of_scales = [0, 1, 0x007F_FFFF, 0x3F8C_CCCD, 0x419F_FFFF, 0x41A0_0000].into_iter().map(|bits| {
            let text = Value::from(format!("{bits:08X}"));
            (question(same(EXAMPLE), &[("cfg_scale", text)]), example().set("cfg_scale", bits))
        });
        all(adapter, of_ids.chain(of_numbers).chain(of_scales))
    }),
    // 3. Frames
    required("W1-HDR-001c", "written frames begin with the magic").codec(|adapter| written(adapter, "magic")),
    required("W1-HDR-002c", "written frames have version 1").codec(|adapter| written(adapter, "version")),
    required("W1-HDR-003d", "payload_len of written frames is their payload's length")
        .codec(|adapter| written(adapter, "payload_len")),
    required("W1-HDR-004c", "reserved of written frames is 0").codec(|adapter| written(adapter, "reserved")),
    required("W1-FRM-001b", "the longest request is written, a longer one refused").codec(|adapter| {
        let longest = "x".repeat(2048);
        let told = expect(&adapter.write(&question(same(&longest), &[]))?, &example_of(&longest).bytes())?;
        let longer = "x".repeat(2049);
        let refused =
            adapter.write(&question([longest.as_bytes(), longest.as_bytes(), longer.as_bytes()], &[]))?;
        expect_refusal(&refused, "a prompt of 2,049 bytes")?;
        let of_two = "é".repeat(1024);
        let written = adapter.write(&question(same(&of_two), &[]))?;
        expect(&written, &example_of(&of_two).bytes())?;
        Ok(told)
    }),
    // 4. The request
    recommended("W1-REQ-001g", "a request with a value out of range is not written").codec(|adapter| {
        let wrong = [
            ("width", json!(0)),
            ("width", json!(65)),
            ("width", json!(2112)),
            ("height", json!(32)),
            ("height", json!(4096)),
            ("width", json!(65_600)),
            ("width", json!(2_147_483_712u32)),
            ("height", json!(65_600)),
            ("height", json!(16_777_280)),
            ("steps", json!(0)),
            ("steps", json!(101)),
            ("steps", json!(257)),
            ("steps", json!(65_537)),
            ("cfg_scale", json!("41A00001")),
            ("cfg_scale", json!("BF800000")),
            ("clip_l", json!("")),
            ("t5", json!("")),
        ];
        let mut told = Remark::Pass;
        for (name, value) in wrong {
            let bytes = adapter.write(&question(same(EXAMPLE), &[(name, value.clone())]))?;
            told = expect_refusal(&bytes, &format!("{name} {value}"))?;
        }
        // A length is that of the bytes, not of the characters.
        let longer = compact("é".repeat(1025).as_bytes());
        for name in ["clip_l", "clip_g", "t5"] {
            let bytes = adapter.write(&question(same(EXAMPLE), &[(name, json!(longer))]))?;
            told = expect_refusal(&bytes, &format!("{name} of 1,025 characters of two bytes each"))?;
        }
        Ok(told)
    }),
    recommended("W1-REQ-003e", "a prompt with the byte 0 is not written").codec(|adapter| {
        let bytes = adapter.write(&question([b"abc", b"a\0c", b"abc"], &[]))?;
        expect_refusal(&bytes, "a prompt with the byte 0")
    }),
    recommended("W1-REQ-004b", "three prompts are written one after the other").codec(|adapter| {
        let texts: [&[u8]; 3] = [b"one", "zwei €".as_bytes(), b"3"];
        let expected = example()
            .bytes()
            .into_iter()
            .take(16 + 36)
            .chain(offsets(texts).into_iter().flat_map(u32::to_be_bytes))
            .chain(texts.concat())
            .collect::<Vec<u8>>();
        let mut expected = expected;
        let payload_len = u32::try_from(expected.len() - 16).unwrap_or(u32::MAX);
        expected[8..12].copy_from_slice(&payload_len.to_be_bytes());
        expect(&adapter.write(&question(texts, &[]))?, &expected)
    }),
    recommended("W1-REQ-007c", "cfg_scale: NaN and infinities are not written").codec(|adapter| {
        let mut told = Remark::Pass;
        for bits in ["7FC00000", "7F800000", "FF800000", "FFFFFFFF"] {
            let bytes = adapter.write(&question(same(EXAMPLE), &[("cfg_scale", json!(bits))]))?;
            told = expect_refusal(&bytes, &format!("cfg_scale {bits}"))?;
        }
        Ok(told)
    }),
    // 5. The response
    required("W1-RSP-003c", "all 32 bits of generation_time_ms are written").codec(|adapter| {
        let times = [0, 255, 65_536, 0x1122_3344, 0x8000_0000, 0xFFFF_FFFFu64];
        let name = "generation_time_ms";
        all(
            adapter,
            times.map(|time| (with(head(64, 64, 3), name, time.into()), head_of(64, 64, 3).set(name, time))),
        )
    }),
    required("W1-RSP-004b", "a response's fields are written, for all sizes and channels").codec(|adapter| {
        let mut told = Remark::Pass;
        for (width, height, channels) in
            [(64, 64, 3), (64, 2048, 4), (512, 768, 3), (2048, 2048, 3), (2048, 2048, 4)]
        {
            let expected = head_of(width, height, channels);
            told = expect(&adapter.write(&head(width, height, channels))?, &expected.bytes())?;
        }
        Ok(told)
    }),
    recommended("W1-RSP-004c", "a response with sides or channels that no client takes is not written")
        .codec(|adapter| {
            let mut told = Remark::Pass;
            for (width, height, channels) in [
                (0, 64, 3),
                (65, 64, 3),
                (2112, 64, 3),
                (65_600, 64, 3),
                (64, 2112, 3),
                (64, 16_777_280, 3),
                (64, 64, 0),
                (64, 64, 5),
                (64, 64, 259),
            ] {
                let bytes = adapter.write(&head(width, height, channels))?;
                told = expect_refusal(&bytes, &format!("{width}×{height} pixels of {channels} channels"))?;
            }
            Ok(told)
        }),
    // 6. The error
    required("W1-ERR-002b", "an error is written with the status of its error_code").codec(|adapter| {
        let mut told = Remark::Pass;
        for (code, name, _) in CODES {
            let message = name.as_bytes();
            told = expect(&adapter.write(&error(*code, message))?, &Draft::error(1, *code, message).bytes())?;
        }
        Ok(told)
    }),
    required("W1-ERR-003b", "error_msg over 255 bytes: cut between characters, or refused").codec(
        |adapter| {
            let mut told = Remark::Pass;
            for (text, kept) in [
                ("m".repeat(255), 255),
                ("m".repeat(300), 255),
                ("é".repeat(200), 254),
                ("€".repeat(99), 255),
            ] {
                let bytes = adapter.write(&error(99, text.as_bytes()))?;
                // A sender may also leave the cutting to its caller.
                let is_refused =
                    text.len() > 255 && bytes.as_ref().is_err_and(|answer| answer["refused"].is_string());
                if !is_refused {
                    told = expect(&bytes, &Draft::error(1, 99, &text.as_bytes()[..kept]).bytes())?;
                }
            }
            Ok(told)
        },
    ),
    recommended("W1-ERR-010c", "error_msg is shown whole, and what is unfit of it replaced").codec(
        |adapter| {
            for message in SHOWN {
                match adapter.shown(message)? {
                    Ok(shown) => {
                        if let Some(problem) = shown_wrongly(message, &shown) {
                            let sent = String::from_utf8_lossy(message);
                            return fail(
                                "",
                                format!("of {sent:?} is shown {shown:?}: {problem}"),
                                "all of it",
                            );
                        }
                    }
                    Err(skip) => return Ok(skip),
                }
            }
            Ok(Remark::Pass)
        },
    ),
    recommended("W1-ERR-011c", "error_msg that is not UTF-8 is refused, or mended").codec(|adapter| {
        let mut told = Remark::Pass;
        for message in [b"caf\xe9".as_slice(), b"\xff", b"cut \xe7\x8c", b"\xed\xa0\x80"] {
            match adapter.write(&error(99, message))? {
                Ok(bytes) if bytes.get(34..).is_some_and(|sent| std::str::from_utf8(sent).is_ok()) => {}
                Ok(bytes) => {
                    return fail("", format!("what was written is\n{}", Shown(&bytes)), "error_msg in UTF-8");
                }
                refused => told = expect_refusal(&refused, "error_msg that is not UTF-8")?,
            }
        }
        Ok(told)
    }),
    recommended("W1-ERR-013b", "an error_code that is not in the table is not written").codec(|adapter| {
        let mut told = Remark::Pass;
        for code in [0, 11, 25, 98, 100, 256 + 4, 65_536 + 4, 0xFFFF_FFFF] {
            let bytes = adapter.write(&error(code, b"no"))?;
            told = expect_refusal(&bytes, &format!("error_code {code}"))?;
        }
        Ok(told)
    }),
];

/// Numbers of 64 bits: none, some with no two bytes the same, and those that JSON or a signed number can't hold.
const IDS: [u64; 6] = [0, 1, 0x0102_0304_0506_0708, 0xF0DE_BC9A_7856_3412, 1 << 63, u64::MAX];

/// Texts of errors, with and without what a terminal would obey.
const SHOWN: &[&[u8]] = &[
    b"steps is 0, must be 1 to 100",
    "größer als 2048 Bytes: 猫 🐈 é, שלום".as_bytes(),
    b"100 % of %s and %n, C:\\dir, \"quoted\", <b>&amp;</b>",
    b"a\tb",
    b"a\x08b",
    b"a\nb\r\nc",
    b"a\x1b[2Jb\x1b]0;title\x07c",
    b"a\x7fb",
    "a\u{85}b\u{9b}31mc".as_bytes(),
    b"before\0after",
    b"\x07",
    b"caf\xe9 and more",
    b"before\xff\xfeafter",
    b"\xff\xfe\xfd",
    b"cut \xe7\x8c",
    "one \u{fffd} that was sent".as_bytes(),
    "a\u{202e}b".as_bytes(),
    // Longer than a server of version 1 sends.
    &[b'm'; 300],
];

const EXAMPLE: &str = "a cat in space";

/// The question for a request; the fields that `but` has are changed.
fn question(prompts: [&[u8]; 3], but: &[(&str, Value)]) -> Value {
    let [clip_l, clip_g, t5] = prompts.map(compact);
    let mut question = json!({
        "write": "request", "request_id": "1", "width": 512, "height": 512, "steps": 28, "cfg_scale": "40E00000",
        "seed": "0", "clip_l": clip_l, "clip_g": clip_g, "t5": t5,
    });
    for (name, value) in but {
        question[*name] = value.clone();
    }
    question
}

fn same(prompt: &str) -> [&[u8]; 3] {
    [prompt.as_bytes(); 3]
}

/// The request of the example, as the suite writes it.
fn example() -> Draft {
    example_of(EXAMPLE)
}

/// That request with another prompt.
fn example_of(prompt: &str) -> Draft {
    Draft::request(1, prompt)
        .set("width", 512)
        .set("height", 512)
        .set("steps", 28)
        .set("cfg_scale", 0x40E0_0000)
        .set("seed", 0)
}

fn head(width: u64, height: u64, channels: u64) -> Value {
    json!({
        "write": "response-head", "request_id": "1", "generation_time_ms": 12, "image_width": width,
        "image_height": height, "channels": channels,
    })
}

/// The frame of [`head`], without its pixels.
fn head_of(width: u64, height: u64, channels: u64) -> Draft {
    let len = width * height * channels;
    Draft::response(1, width, height, &[])
        .set("channels", channels)
        .set("image_data_len", len)
        .set("payload_len", 32 + len)
}

/// That each question is answered with its frame; those that the library can't are left out, unless all are.
fn all(adapter: &mut Adapter, pairs: impl IntoIterator<Item = (Value, Draft)>) -> Told {
    let mut told = Remark::Skip("there is nothing to write".to_owned());
    for (question, expected) in pairs {
        match expect(&adapter.write(&question)?, &expected.bytes())? {
            Remark::Pass => told = Remark::Pass,
            other if told != Remark::Pass => told = other,
            _ => {}
        }
    }
    Ok(told)
}

/// The question with another value.
fn with(mut question: Value, name: &str, value: Value) -> Value {
    question[name] = value;
    question
}

fn error(code: u64, message: &[u8]) -> Value {
    json!({ "write": "error", "request_id": "1", "error_code": code, "error_msg": compact(message) })
}

/// The offset table of texts that follow each other.
fn offsets(texts: [&[u8]; 3]) -> Vec<u32> {
    let mut at = 0;
    texts
        .into_iter()
        .flat_map(|text| {
            let len = u32::try_from(text.len()).unwrap_or(u32::MAX);
            at += len;
            [at - len, len]
        })
        .collect()
}

/// One field of the header of a request, a response's head and an error.
fn written(adapter: &mut Adapter, field: &str) -> Told {
    let expected = [
        (question(same(EXAMPLE), &[]), example().bytes()),
        (head(64, 64, 3), Draft::response(1, 64, 64, &[]).set("payload_len", 32 + 64 * 64 * 3).bytes()),
        (error(6, b"steps is 0"), Draft::error(1, 6, b"steps is 0").bytes()),
    ];
    let place = match field {
        "magic" => 0..4,
        "version" => 4..6,
        "payload_len" => 8..12,
        _ => 12..16,
    };
    let mut unable = Vec::new();
    for (question, expected) in expected {
        match adapter.write(&question)? {
            Ok(bytes) if bytes.get(place.clone()) == expected.get(place.clone()) => {}
            Ok(bytes) => {
                let problem = format!("{field} of {} is wrong:\n{}", question["write"], Shown(&bytes));
                return fail("", problem, hex(&expected[place]));
            }
            Err(answer) => match unsupported(&answer) {
                Some(reason) => unable.push(reason),
                None => return fail("", short(&answer), "bytes"),
            },
        }
    }
    // A library may well write only what its side sends; one that writes nothing was not judged.
    Ok(unable.pop().filter(|_| unable.len() == 2).unwrap_or(Remark::Pass))
}

fn expect(bytes: &Result<Vec<u8>, Value>, expected: &[u8]) -> Told {
    match bytes {
        Ok(bytes) if bytes == expected => Ok(Remark::Pass),
        Ok(bytes) => {
            let mut failure = Failure::new("", "other bytes were written", Shown(expected).to_string());
            failure.problem = format!("what was written is\n{}", Shown(bytes));
            Err(Box::new(failure))
        }
        Err(answer) => match unsupported(answer) {
            Some(skip) => Ok(skip),
            None => fail("", format!("the answer is {}", short(answer)), "bytes"),
        },
    }
}

fn expect_refusal(bytes: &Result<Vec<u8>, Value>, what: &str) -> Told {
    match bytes {
        Err(answer) if answer["refused"].is_string() => Ok(Remark::Pass),
        Err(answer) => match unsupported(answer) {
            Some(skip) => Ok(skip),
            None => fail("", format!("the answer is {}", short(answer)), "\"refused\""),
        },
        Ok(bytes) => fail("", format!("{what} was written:\n{}", Shown(bytes)), "that it is refused"),
    }
}
