//! What the gateway's settings are written like: lists, host names, origins, addresses to listen at.

use std::ffi::OsStr;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use clap::builder::PossibleValue;
use clap::builder::TypedValueParser;
use clap::{Arg, Command, Error};

use weave_client::weave_core::limits::{MAX_CFG_SCALE, MIN_CFG_SCALE};

use crate::fields;

/// A part of a list, without the blanks around it. What is empty is refused.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part<P>(pub(crate) P);

impl<P: TypedValueParser> TypedValueParser for Part<P> {
    type Value = P::Value;

    fn parse_ref(&self, cmd: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<P::Value, Error> {
        let Some(text) = value.to_str() else { return self.0.parse_ref(cmd, arg, value) };
        if text.trim().is_empty() {
            let empty = |_: &str| -> Result<(), &str> {
                Err(
                    "a part of the list is empty: there has to be something between commas, before the first and behind the last",
                )
            };
            empty.parse_ref(cmd, arg, value)?;
        }
        self.0.parse_ref(cmd, arg, OsStr::new(text.trim()))
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        self.0.possible_values()
    }
}

/// A host name that clients may use, in lower case. Of a URL it is the host.
pub(crate) fn host(text: &str) -> Result<String, String> {
    if text.contains('*') {
        return Err("there is no pattern for all; write each name, such as images.example".to_owned());
    }
    let (rest, is_url) = match text.split_once("://") {
        None => (text, false),
        Some((scheme, rest)) if is_http(scheme) => (rest, true),
        Some(_) => return Err(write_host("images.example")),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (name, port) = match authority.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) => (address, port.strip_prefix(':')),
        None if authority.parse::<IpAddr>().is_ok() => (authority, None),
        None => authority.split_once(':').map_or((authority, None), |(name, port)| (name, Some(port))),
    };
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    let is_name = |name: &str| {
        !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte))
    };
    let is_good = is_name(&name) || name.parse::<IpAddr>().is_ok();
    if is_good && port.is_none_or(is_port) && (is_url || path.is_empty()) {
        return Ok(name);
    }
    let instead = if is_good { name } else { "images.example".to_owned() };
    Err(write_host(&instead))
}

fn write_host(instead: &str) -> String {
    format!("must be a host name, such as {instead}; one with other letters as browsers send it, xn--…")
}

/// A page's origin, as browsers send it.
pub(crate) fn origin(text: &str) -> Result<String, String> {
    let wrong = || "must be the origin of a page, such as http://localhost:3000".to_owned();
    if text == "*" || text == "null" {
        return Err(format!(
            "{text} would be any page, which could then use your GPU; write each origin, such as http://localhost:3000"
        ));
    }
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if !is_http(scheme) || rest.contains('/') {
        return Err(wrong());
    }
    let name = host(rest)?;
    let scheme = scheme.to_ascii_lowercase();
    // Browsers leave out the usual port.
    let usual = if scheme == "http" { "80" } else { "443" };
    let port = rest.rsplit_once(':').map(|(_, port)| port).filter(|port| is_port(port) && *port != usual);
    let name = if name.contains(':') { format!("[{name}]") } else { name };
    Ok(port.map_or_else(|| format!("{scheme}://{name}"), |port| format!("{scheme}://{name}:{port}")))
}

/// Where clients reach the gateway: a URL without a slash at its end.
pub(crate) fn public_url(text: &str) -> Result<String, String> {
    let wrong = || "must be where clients reach the gateway, such as https://images.example".to_owned();
    let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
    let authority = rest.split('/').next().unwrap_or_default();
    let is_plain = |c: char| c.is_ascii_graphic() && !"?#\"\\<>@".contains(c);
    if !is_http(scheme) || host(authority).is_err() || !rest.chars().all(is_plain) {
        return Err(wrong());
    }
    let url = text.trim_end_matches('/');
    if url.ends_with("/v1") {
        return Err(format!("must be without /v1, as {}", url.trim_end_matches("/v1")));
    }
    Ok(url.to_owned())
}

/// A model's name, as clients may call it.
pub(crate) fn model_name(text: &str) -> Result<String, String> {
    match text.chars().all(|c| c.is_ascii_graphic()) && (text == "*" || !text.contains('*')) {
        true => Ok(text.to_owned()),
        false => Err("must be a model's name, such as dall-e-3, or * for any".to_owned()),
    }
}

/// Where to listen. A port alone is one of this machine, and so is that of localhost.
pub(crate) fn listen(text: &str) -> Result<SocketAddr, String> {
    let here = |port: &str| {
        is_port(port)
            .then(|| port.parse().ok())
            .flatten()
            .map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)))
    };
    let text = text.trim();
    let found = match text.rsplit_once(':') {
        _ if text.parse::<SocketAddr>().is_ok() => text.parse().ok(),
        None => here(text),
        Some(("", port)) => here(port),
        Some((name, port)) if name.eq_ignore_ascii_case("localhost") => here(port),
        Some(_) => None,
    };
    found.ok_or_else(|| {
        "must be ADDRESS:PORT, such as 127.0.0.1:8080, localhost:8080 or 8080 for this machine, 0.0.0.0:8080 for others as well"
            .to_owned()
    })
}

/// A whole number from `FROM` to `TO`.
pub(crate) fn whole<const FROM: u32, const TO: u32>(text: &str) -> Result<u32, String> {
    let number = text.parse().ok().filter(|number| (FROM..=TO).contains(number));
    number.ok_or_else(|| format!("must be a whole number from {FROM} to {TO}"))
}

/// How strictly images follow their prompts.
pub(crate) fn cfg_scale(text: &str) -> Result<f32, String> {
    let number = text.parse().ok().filter(|number| (MIN_CFG_SCALE..=MAX_CFG_SCALE).contains(number));
    number.ok_or_else(|| format!("must be a number from {MIN_CFG_SCALE} to {MAX_CFG_SCALE}"))
}

/// Width and height as OpenAI writes them.
pub(crate) fn size(text: &str) -> Result<(u32, u32), String> {
    let (width, height) =
        fields::size(text).ok_or_else(|| "must be WIDTHxHEIGHT, such as 512x768".to_owned())?;
    side(width).and(side(height)).map_err(|why| {
        format!("{why}: the nearest is {}x{}", fields::nearest(width), fields::nearest(height))
    })?;
    Ok((width, height))
}

/// Width or height.
pub(crate) fn one_side(text: &str) -> Result<u32, String> {
    let side_of = text.parse().map_err(|_| "must be a number of pixels, such as 512".to_owned())?;
    side(side_of).map_err(|why| format!("{why}: the nearest is {}", fields::nearest(side_of)))?;
    Ok(side_of)
}

fn side(side: u32) -> Result<(), &'static str> {
    match fields::nearest(side) == side {
        true => Ok(()),
        false => Err("width and height must be multiples of 64 from 64 to 2048"),
    }
}

fn is_http(scheme: &str) -> bool {
    scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https")
}

fn is_port(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_digit()) && text.parse::<u16>().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Of each: what is taken, and as what; what is refused, and what has to be in the words.
    fn table(parse: impl Fn(&str) -> Result<String, String>, good: &[(&str, &str)], bad: &[(&str, &str)]) {
        for (text, is) in good {
            assert_eq!(parse(text).as_deref(), Ok(*is), "{text:?}");
        }
        for (text, words) in bad {
            let why = parse(text).expect_err(text);
            assert!(why.contains(words), "{text:?}: {why}");
        }
    }

    #[test]
    fn hosts() {
        table(
            host,
            &[
                ("Images.Example", "images.example"),
                ("images.example:8443", "images.example"),
                ("https://images.example/", "images.example"),
                ("https://images.example:8443/v1", "images.example"),
                ("images.example.", "images.example"),
                ("host.docker.internal", "host.docker.internal"),
                ("my_service", "my_service"),
                ("[::1]:80", "::1"),
                ("::1", "::1"),
                ("192.0.2.1:80", "192.0.2.1"),
            ],
            &[
                ("*", "each name"),
                ("*.example", "each name"),
                ("images.example/v1", "such as images.example"),
                ("images.example:http", "such as images.example"),
                ("ftp://images.example", "host name"),
                ("me@images.example", "host name"),
                ("a b", "host name"),
                ("bücher.example", "xn--"),
                ("https://", "host name"),
            ],
        );
    }

    #[test]
    fn origins() {
        table(
            origin,
            &[
                ("http://localhost:3000", "http://localhost:3000"),
                ("HTTP://LocalHost:3000/", "http://localhost:3000"),
                ("https://chat.example:443", "https://chat.example"),
                ("http://[::1]:3000", "http://[::1]:3000"),
                ("http://127.0.0.1:80", "http://127.0.0.1"),
            ],
            &[
                ("*", "any page"),
                ("null", "any page"),
                ("localhost:3000", "http://localhost:3000"),
                ("http://localhost:3000/app", "origin"),
                ("ftp://a.example", "origin"),
                ("https://*.example", "each name"),
                ("file://", "origin"),
            ],
        );
    }

    #[test]
    fn addresses_to_listen_at() {
        table(
            |text| listen(text).map(|address| address.to_string()),
            &[
                ("127.0.0.1:8080", "127.0.0.1:8080"),
                ("0.0.0.0:0", "0.0.0.0:0"),
                ("[::1]:8080", "[::1]:8080"),
                ("localhost:8080", "127.0.0.1:8080"),
                (":8080", "127.0.0.1:8080"),
                ("8080", "127.0.0.1:8080"),
                (" 8080 ", "127.0.0.1:8080"),
            ],
            &[
                ("", "such as"),
                ("localhost", "such as"),
                ("127.0.0.1", "such as"),
                ("8080/", "such as"),
                ("70000", "such as"),
                ("*:8080", "0.0.0.0:8080"),
                ("gpu.example:8080", "such as"),
                ("http://127.0.0.1:8080", "such as"),
                ("::1:8080x", "such as"),
                ("+80", "such as"),
            ],
        );
    }

    #[test]
    fn urls_names_and_sizes() {
        table(
            public_url,
            &[
                ("https://images.example/", "https://images.example"),
                ("https://images.example:8443/weave", "https://images.example:8443/weave"),
            ],
            &[
                ("images.example", "https://images.example"),
                ("https://images.example/v1", "must be without /v1, as https://images.example"),
                ("https://a.example/?x", "such as"),
                ("https://me@a.example", "such as"),
                ("https:///v1", "such as"),
            ],
        );
        table(
            model_name,
            &[("dall-e-3", "dall-e-3"), ("*", "*")],
            &[("dall-*", "* for any"), ("dall e", "such as")],
        );
        table(
            |text| size(text).map(|(width, height)| format!("{width} {height}")),
            &[("512x768", "512 768")],
            &[
                ("500x500", "the nearest is 512x512"),
                ("512", "WIDTHxHEIGHT"),
                ("512X512", "WIDTHxHEIGHT"),
                ("", "such as"),
            ],
        );
        table(
            |text| whole::<1, 100>(text).map(|number| number.to_string()),
            &[("1", "1"), ("100", "100")],
            &[
                ("0", "from 1 to 100"),
                ("101", "from 1 to 100"),
                ("abc", "whole number"),
                ("", "whole number"),
            ],
        );
        table(
            |text| cfg_scale(text).map(|number| number.to_string()),
            &[("0", "0"), ("7.5", "7.5"), ("20", "20")],
            &[
                ("-1", "from 0 to 20"),
                ("nan", "from 0 to 20"),
                ("7,5", "from 0 to 20"),
                ("inf", "from 0 to 20"),
            ],
        );
        table(
            |text| one_side(text).map(|side| side.to_string()),
            &[("512", "512")],
            &[("500", "the nearest is 512"), ("abc", "such as 512"), ("-1", "such as 512")],
        );
    }

    #[test]
    fn a_part_of_a_list() {
        let parse = |values: &[&str]| {
            let part = Arg::new("x").long("x").value_delimiter(',').value_parser(Part(host));
            let command = Command::new("x").arg(part);
            let found = command.try_get_matches_from(["x", "--x"].iter().chain(values));
            found.map(|found| found.get_many::<String>("x").unwrap().cloned().collect::<Vec<_>>())
        };
        assert_eq!(
            parse(&["a.example, b.example ,c.example"]).unwrap(),
            ["a.example", "b.example", "c.example"]
        );
        for bad in ["", " ", "a.example,", ",a.example", "a.example,,b.example", "a.example, ,b.example"] {
            let words = parse(&[bad]).unwrap_err().to_string();
            assert!(words.contains("a part of the list is empty") && words.contains("--x"), "{words}");
        }
        assert!(parse(&["a.example,*"]).unwrap_err().to_string().contains("each name"));
    }
}
