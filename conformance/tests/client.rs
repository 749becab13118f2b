//! Clients that are odd and conformant pass, clients with a defect fail in the case that is for it.

use std::process::{Command, Output};

const CLIENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/client.py");

fn conform(odd: &str, filters: &[&str], more: &[&str]) -> Output {
    let exec = format!("python3 -S -B '{CLIENT}' {{address}} {odd}");
    let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
    Command::new(env!("CARGO_BIN_EXE_weave-conform"))
        .args(["client", "--exec", &exec, "--exec-several", &format!("{exec} {{count}}"), "--strict"])
        .args(filters)
        .args(more)
        .output()
        .unwrap()
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn odd_clients_that_keep_the_rules_pass() {
    // One of each kind: an image and an error in pieces, what has to be refused, shown texts, several requests.
    let cases = ["W1-HDR-003e", "W1-FRM-006c", "W1-RSP-011", "W1-ERR-010d", "W1-CON-003", "W1-CON-008"];
    for odd in ["none", "half-closes", "byte-by-byte", "probe", "ignores", "coloured", "retries", "json"] {
        let output = conform(odd, &cases, &[]);
        assert!(output.status.success(), "{odd}: {}", text(&output));
    }
    for (odd, more) in [
        ("late", &["--timeout", "0.5"][..]),
        ("half-closes-and-waits", &[]),
        ("half-closes", &["--tcp"]),
        ("half-closes-and-waits", &["--tcp"]),
    ] {
        let output = conform(odd, &["W1-HDR-003e", "W1-CON-008b"], more);
        assert!(output.status.success(), "{odd} {more:?}: {}", text(&output));
    }
}

#[test]
fn each_defect_is_seen_in_its_case() {
    for (odd, case, words) in [
        ("always-0", "W1-FRM-006b", "exit status 0"),
        ("bytes-after", "W1-HDR-003e", "no whole frame"),
        ("twice", "W1-CON-004d", "asked 2 times"),
        ("asks-again", "W1-CON-004d", "asked 2 times"),
        ("same-id", "W1-CON-004c", "[1, 1, 1, 1, 1]"),
        ("retries-for-ever", "W1-HDR-003e", "has asked 13 times"),
        ("reserved", "W1-HDR-004b", "reserved is 00 00 00 07"),
        ("little-endian", "W1-TRN-005e", "0000E040"),
        ("unchecked-magic", "W1-FRM-006c", "the magic 58455645"),
        ("unchecked-version", "W1-FRM-010b", "version 257"),
        ("unchecked-size", "W1-RSP-010a", "64×128"),
        ("unchecked-id", "W1-RSP-011b", "two images"),
        ("obeys", "W1-ERR-010b", "control character"),
        ("mojibake", "W1-ERR-010d", "Größe"),
        ("question-marks", "W1-ERR-010d", "Größe"),
        ("only-utf-8", "W1-ERR-010e", "the byte FF"),
        ("cut-at-0", "W1-ERR-010f", "the byte 00"),
        ("tab", "W1-ERR-010f", "the byte 09"),
    ] {
        let output = conform(odd, &[case], &[]);
        let said = text(&output);
        // What is only informational is said and does not count.
        let status = i32::from(odd != "little-endian");
        assert_eq!(output.status.code(), Some(status), "{odd}: {said}");
        assert!(said.contains(case) && said.contains(words), "{odd}: no {words:?} in {said}");
    }
}

#[test]
fn a_client_that_stays_hangs_and_one_that_asks_for_half_is_told_so() {
    let stays = text(&conform("stays", &["W1-HDR-003e"], &["--timeout", "0.5"]));
    assert!(stays.contains("HANG W1-HDR-003e") && stays.contains("did not close the connection"), "{stays}");
    let half = text(&conform("never-whole", &["W1-HDR-003e"], &["--timeout", "0.5"]));
    assert!(half.contains("no whole request came"), "{half}");
}

/// A report shows both sides' bytes, the client's as well.
#[test]
fn a_failure_shows_what_the_client_has_sent() {
    let said = text(&conform("always-0", &["W1-FRM-006b"], &[]));
    let received = said.split("received:").nth(1).expect("what was received");
    assert!(received.contains("msg_type request") || received.contains("request_id 1"), "{said}");
}
