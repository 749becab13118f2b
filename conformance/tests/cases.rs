//! The cases against the specification: every requirement has one, every vector is used, and no id changes.
//!
//! `conformance/cases.txt` has every id that was ever used: `WEAVE_BLESS=1 cargo test -p weave-conformance
//! --test cases` adds new ones. A case that is given up stays there, with `retired` in front of its title.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use weave_conformance::case::{Case, Level, Run};
use weave_conformance::cases::all_cases;
use weave_conformance::cases::server::SECTIONS;
use weave_conformance::spec::{Keyword, REQUIREMENTS, VECTORS, vectors};
use weave_conformance::wire::Receiver;

fn line(case: &Case) -> String {
    let modes: Vec<&str> = case.modes().iter().map(|mode| mode.name()).collect();
    format!("{:<13} {:<13} {:<13} {}", case.id, case.level.name(), modes.join("+"), case.title)
}

#[test]
fn ids_are_unique_and_those_of_requirements() {
    let mut seen = BTreeSet::new();
    for case in all_cases() {
        assert!(seen.insert(case.id), "{} is there twice", case.id);
        assert!(
            REQUIREMENTS.iter().any(|known| known.id == case.requirement()),
            "{} is of no requirement",
            case.id
        );
        assert!(case.id.len() > case.requirement().len(), "{} has no letter", case.id);
    }
}

/// What `--list --verbose` and reports say beside each case.
#[test]
fn every_case_has_the_sentence_of_its_requirement() {
    for case in all_cases() {
        assert!(!case.sentence().is_empty(), "{} has no sentence in the specification", case.id);
    }
}

#[test]
fn each_case_of_a_server_is_in_the_file_of_its_section() {
    for (section, cases) in SECTIONS {
        assert!(!cases.is_empty(), "{section} has no case");
        for case in *cases {
            let requirement = REQUIREMENTS.iter().find(|known| known.id == case.requirement());
            assert_eq!(requirement.map(|known| known.section.as_str()), Some(*section), "{}", case.id);
        }
    }
}

#[test]
fn every_must_has_a_case_and_nine_shoulds_of_ten() {
    let tried: BTreeSet<&str> = all_cases().iter().map(Case::requirement).collect();
    let missing = |keyword: Keyword| -> Vec<&str> {
        let of_keyword = REQUIREMENTS.iter().filter(|known| known.keyword == keyword);
        of_keyword.map(|known| known.id.as_str()).filter(|id| !tried.contains(id)).collect()
    };
    assert_eq!(missing(Keyword::Must), [""; 0], "a MUST has no case");
    let shoulds = REQUIREMENTS.iter().filter(|known| known.keyword == Keyword::Should).count();
    let without = missing(Keyword::Should);
    assert!(without.len() * 10 <= shoulds, "of {shoulds} SHOULDs these have no case: {without:?}");
}

/// A MUST can't be tried by something that doesn't count.
#[test]
fn the_level_follows_from_the_requirement() {
    for case in all_cases() {
        let keyword =
            REQUIREMENTS.iter().find(|known| known.id == case.requirement()).map(|known| known.keyword);
        if case.level == Level::Required {
            assert_ne!(keyword, Some(Keyword::Should), "{} is only recommended", case.id);
        }
    }
    for requirement in REQUIREMENTS.iter().filter(|known| known.keyword == Keyword::Must) {
        let counts = all_cases().iter().any(|case| {
            case.requirement() == requirement.id && matches!(case.level, Level::Required | Level::Robustness)
        });
        assert!(counts, "{} has no case that counts", requirement.id);
    }
}

#[test]
fn every_vector_is_used_and_every_pattern_means_one() {
    let mut used = BTreeMap::new();
    for case in all_cases() {
        let (receiver, names) = match case.run {
            Run::Vectors(receiver, names) => (receiver, names),
            Run::Streams(names) => (Receiver::Client, names),
            _ => continue,
        };
        for name in names {
            assert!(vectors(receiver, &[name]).next().is_some(), "{}: no vector is named {name}", case.id);
        }
        for vector in vectors(receiver, names) {
            used.insert(vector.name.as_str(), case.id);
        }
    }
    let unused: Vec<&str> =
        VECTORS.iter().map(|vector| vector.name.as_str()).filter(|name| !used.contains_key(name)).collect();
    assert_eq!(unused, [""; 0], "no case uses these vectors");
}

#[test]
fn no_id_is_lost_or_changed() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/cases.txt");
    let listed = std::fs::read_to_string(path).unwrap_or_default();
    let id_of = |line: &str| line.split_whitespace().next().unwrap_or_default().to_owned();
    let retired: Vec<&str> = listed.lines().filter(|line| line.contains(" retired")).collect();
    let mut lines: BTreeMap<String, String> =
        all_cases().iter().map(|case| (case.id.to_owned(), line(case))).collect();
    for old in listed.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        assert!(
            lines.contains_key(&id_of(old)) || retired.contains(&old),
            "{} is gone; leave its line, with \"retired\" before the title",
            id_of(old)
        );
    }
    for old in retired {
        assert!(!lines.contains_key(&id_of(old)), "{} is retired and used again", id_of(old));
        lines.insert(id_of(old), old.to_owned());
    }
    let mut text =
        String::from("# Every case that there ever was: id, level, modes, title. Made by tests/cases.rs.\n");
    for line in lines.values() {
        writeln!(text, "{line}").unwrap();
    }
    if std::env::var_os("WEAVE_BLESS").is_some() {
        std::fs::write(path, &text).unwrap();
    } else {
        assert!(
            listed == text,
            "cases.txt is not up to date: WEAVE_BLESS=1 cargo test -p weave-conformance --test cases"
        );
    }
}
