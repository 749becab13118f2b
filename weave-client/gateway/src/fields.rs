//! The fields of a request for images: those that say something, those that ask for what happens anyway, hints without an
//! effect, and all others.

use std::cell::RefCell;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};
use weave_client::weave_core::limits::{MAX_SIDE, MIN_SIDE, SIDE_STEP};

use crate::http_error::HttpError;
use weave_cli_base::format::Format;

/// Above this not every whole number is one of JavaScript's.
pub(crate) const MAX_EXACT: u64 = 1 << 53;

/// The names of those that say something or are judged by [`judge`].
const NAMES: [&str; 21] = [
    "prompt",
    "model",
    "n",
    "size",
    "steps",
    "cfg_scale",
    "cfg",
    "seed",
    "response_format",
    "output_format",
    "output_compression",
    "quality",
    "style",
    "background",
    "moderation",
    "stream",
    "partial_images",
    "input_fidelity",
    "user",
    "safety_identifier",
    "metadata",
];

/// How the images are to come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// In the answer.
    Inline,
    /// By a link that lives for a while.
    Link,
}

/// What the body holds and nobody has looked at yet.
pub(crate) struct Fields(Map<String, Value>);

impl Fields {
    pub(crate) fn read(body: &[u8]) -> Result<Self, HttpError> {
        let wrong = |what: String| HttpError::new(400, "invalid_json", what);
        if body.is_empty() {
            return Err(wrong(
                "the body is empty; send a JSON object such as {\"prompt\": \"a cat\"}".into(),
            ));
        }
        if body.starts_with(b"\xef\xbb\xbf") {
            return Err(wrong("the body begins with a byte order mark; send the JSON without one".into()));
        }
        if body.starts_with(b"\xff\xfe") || body.starts_with(b"\xfe\xff") {
            return Err(wrong("the body is UTF-16; send it as UTF-8".into()));
        }
        let text = str::from_utf8(body).map_err(|error| {
            let at = error.valid_up_to();
            let byte = body.get(at).copied().unwrap_or_default();
            wrong(format!(
                "the body isn't UTF-8, from byte {at} (0x{byte:02x}) on; is it Latin-1? Send it as UTF-8 (PowerShell: \
                 -ContentType \"application/json; charset=utf-8\")"
            ))
        })?;
        let twice = RefCell::new(None);
        let mut json = serde_json::Deserializer::from_str(text);
        let value = Once(&twice).deserialize(&mut json).and_then(|value| json.end().map(|()| value));
        let value = value.map_err(|error| {
            let words = error.to_string();
            let half = match words.contains("surrogate") || words.contains("hex escape") {
                true => "; a character outside of the usual ones, such as an emoji, is two \\u escapes, and one is missing",
                false => "",
            };
            wrong(format!("the body must be a JSON object: {words}{half}"))
        })?;
        let Value::Object(fields) = value else {
            return Err(wrong(format!("the body is {}, must be a JSON object", shown(&value))));
        };
        if let Some(name) = twice.into_inner() {
            let message =
                format!("{} is there twice; leave one of them out", shown(&Value::String(name.clone())));
            return Err(HttpError::field(name, "duplicate_parameter", message));
        }
        // OpenAI takes null for a field that isn't there.
        Ok(Self(fields.into_iter().filter(|(_, value)| !value.is_null()).collect()))
    }

    pub(crate) fn text(&mut self, name: &str) -> Result<Option<String>, HttpError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, &other, "a string")),
        }
    }

    /// A whole number, with a point or without: to JSON they are the same.
    pub(crate) fn number(&mut self, name: &str, from: u64, to: u64) -> Result<Option<u64>, HttpError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match whole(&value).and_then(|number| u64::try_from(number).ok()) {
            Some(number) if (from..=to).contains(&number) => Ok(Some(number)),
            _ => Err(wrong_type(name, &value, &format!("an integer from {from} to {to}"))),
        }
    }

    fn decimal(&mut self, name: &str) -> Result<Option<f32>, HttpError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match value.as_f64() {
            #[expect(clippy::cast_possible_truncation, reason = "a float has fewer digits, that is all")]
            Some(number) => Ok(Some(number as f32)),
            None => Err(wrong_type(name, &value, "a number")),
        }
    }

    /// Under its name, or the short one.
    pub(crate) fn cfg_scale(&mut self) -> Result<Option<f32>, HttpError> {
        match (self.decimal("cfg_scale")?, self.decimal("cfg")?) {
            (Some(one), Some(other)) if one.to_bits() != other.to_bits() => Err(HttpError::field(
                "cfg_scale",
                "invalid_value",
                format!("cfg_scale is {one}, and cfg, which is the same, is {other}; leave one of them out"),
            )),
            (one, other) => Ok(one.or(other)),
        }
    }

    /// `None`: it is to be drawn. As text it is exact in every language.
    pub(crate) fn seed(&mut self) -> Result<Option<u64>, HttpError> {
        let Some(value) = self.0.remove("seed") else { return Ok(None) };
        let number = match &value {
            Value::String(text) => text.parse::<i128>().ok(),
            other => whole(other),
        };
        match number {
            Some(-1 | 0) => Ok(None),
            Some(number) if u64::try_from(number).is_ok() => Ok(u64::try_from(number).ok()),
            _ => Err(wrong_type(
                "seed",
                &value,
                &format!(
                    "a whole number from 0 to {}, without point or exponent above {MAX_EXACT}; 0, -1 or no seed: one is drawn at random",
                    u64::MAX
                ),
            )),
        }
    }

    /// Width and height. `None`: they are left open.
    pub(crate) fn size(&mut self) -> Result<Option<(u32, u32)>, HttpError> {
        let text = match self.text("size")? {
            None => return Ok(None),
            Some(text) if text == "auto" => return Ok(None),
            Some(text) => text,
        };
        let wrong = |message: String| HttpError::field("size", "invalid_value", message);
        let Some((width, height)) = size(&text) else {
            let given = shown(&Value::String(text));
            return Err(wrong(format!("size is {given}, must be WIDTHxHEIGHT, such as 512x768, or auto")));
        };
        let near = (nearest(width), nearest(height));
        if near == (width, height) {
            return Ok(Some(near));
        }
        let given = shown(&Value::String(text));
        Err(wrong(format!(
            "size is {given}; width and height must be multiples of {SIDE_STEP} from {MIN_SIDE} to {MAX_SIDE}: the nearest is {}x{}",
            near.0, near.1
        )))
    }

    /// How the images are to come; `otherwise` if nobody says.
    pub(crate) fn delivery(&mut self, otherwise: Delivery) -> Result<Delivery, HttpError> {
        match self.text("response_format")?.as_deref() {
            None => Ok(otherwise),
            Some("b64_json") => Ok(Delivery::Inline),
            Some("url") => Ok(Delivery::Link),
            Some(other) => Err(wrong_type("response_format", &other.into(), "\"b64_json\" or \"url\"")),
        }
    }

    /// In which format.
    pub(crate) fn format(&mut self) -> Result<Format, HttpError> {
        let name = self.text("output_format")?;
        let quality = self.number("output_compression", 0, 100)?;
        let quality_of = |quality: u64| u8::try_from(quality).unwrap_or(100);
        match (name.as_deref(), quality) {
            // What 100 promises is what there is.
            (None | Some("png"), None | Some(100)) => Ok(Format::Png),
            (Some("webp"), None | Some(100)) => Ok(Format::Webp),
            (Some("jpeg"), quality) => Ok(Format::Jpeg(quality_of(quality.unwrap_or(100)))),
            (name @ (None | Some("png" | "webp")), Some(quality)) => {
                let name = name.unwrap_or("png");
                Err(HttpError::field(
                    "output_compression",
                    "unsupported_parameter",
                    format!(
                        "output_compression is {quality}; {name} is made without loss here, which is 100: leave it out, or say \"output_format\": \"jpeg\""
                    ),
                ))
            }
            (Some(other), _) => {
                Err(wrong_type("output_format", &other.into(), "\"png\", \"jpeg\" or \"webp\""))
            }
        }
    }

    /// Looks at what is left. Gives the names of hints that have no effect; what would change the images is refused.
    pub(crate) fn rest(self, is_strict: bool) -> Result<Vec<&'static str>, HttpError> {
        let mut ignored = Vec::new();
        for (name, value) in &self.0 {
            let (code, why) = match judge(name, value) {
                Verdict::Taken => continue,
                Verdict::Hint(name) if !is_strict => {
                    ignored.push(name);
                    continue;
                }
                Verdict::Hint(_) => ("unsupported_parameter", "has no effect here; leave it out".to_owned()),
                Verdict::Refused(code, why) => (code, why),
            };
            let name_shown = name.chars().take(60).collect::<String>();
            let message = format!("{name_shown} is {}: {why}", shown(value));
            return Err(HttpError::field(name.clone(), code, message));
        }
        Ok(ignored)
    }
}

/// What becomes of a field that says nothing about the images here.
enum Verdict {
    /// It asks for what happens, or says who asks.
    Taken,
    /// It has no effect, and no image is another one for it.
    Hint(&'static str),
    /// An image would have to be another one, or come in another way.
    Refused(&'static str, String),
}

fn judge(name: &str, value: &Value) -> Verdict {
    let unsupported = |why: &str| Verdict::Refused("unsupported_parameter", why.to_owned());
    let invalid = |why: &str| Verdict::Refused("invalid_value", format!("must be {why}"));
    match (name, value, value.as_str()) {
        ("quality" | "style" | "background" | "moderation", _, Some("auto"))
        | ("background", _, Some("opaque"))
        | ("moderation", _, Some("low"))
        | ("stream", Value::Bool(false), _)
        | ("user" | "safety_identifier", Value::String(_), _)
        | ("metadata", Value::Object(_), _) => Verdict::Taken,
        ("partial_images", ..) => match whole(value) {
            Some(0) => Verdict::Taken,
            Some(1..=3) => unsupported("no image comes before it is done; leave it out, or say 0"),
            _ => invalid("0: no image comes before it is done"),
        },
        ("quality", _, Some("low" | "medium" | "high" | "standard" | "hd")) => Verdict::Hint("quality"),
        ("style", _, Some("vivid" | "natural")) => Verdict::Hint("style"),
        ("input_fidelity", _, Some("low" | "high")) => Verdict::Hint("input_fidelity"),
        ("quality", ..) => invalid(
            "\"auto\", \"low\", \"medium\", \"high\", \"standard\" or \"hd\"; none has an effect, steps has one",
        ),
        ("style", ..) => {
            invalid("\"auto\", \"vivid\" or \"natural\"; none has an effect, say it in the prompt")
        }
        ("input_fidelity", ..) => invalid("\"low\" or \"high\"; none has an effect here"),
        ("background", _, Some("transparent")) => {
            unsupported("images have no transparent background here; leave it out, or say \"opaque\"")
        }
        ("background", ..) => invalid("\"opaque\" or \"auto\""),
        ("moderation", ..) => invalid("\"auto\" or \"low\"; nothing is moderated here"),
        ("stream", Value::Bool(true), _) => {
            unsupported("the answer comes when all images are done; leave it out, or say false")
        }
        ("stream", ..) => invalid("false: the answer comes when all images are done"),
        ("user" | "safety_identifier", ..) => invalid("a string"),
        ("metadata", ..) => invalid("an object"),
        _ => Verdict::Refused("unknown_parameter", unknown(name)),
    }
}

/// What to do about a field that isn't known: often it is known to another program.
fn unknown(name: &str) -> String {
    let plain = |name: &str| name.to_ascii_lowercase().replace(['_', '-', ' '], "");
    if let Some(known) = NAMES.iter().find(|known| plain(known) == plain(name)) {
        return format!("its name here is {known}");
    }
    let why = match plain(name).as_str() {
        "width" | "height" | "imagesize" | "aspectratio" | "resolution" | "ratio" => {
            "it is size here, as \"512x768\""
        }
        "negativeprompt" | "negative" => "there is none here; say in prompt what is to be there",
        "guidance" | "guidancescale" | "scale" => "it is cfg_scale here",
        "numinferencesteps" | "inferencesteps" | "numsteps" | "samplesteps" | "samplingsteps" => {
            "it is steps here"
        }
        "numimages" | "numoutputs" | "numsamples" | "batchsize" | "batchcount" | "count" | "samples" => {
            "it is n here"
        }
        "randomseed" | "noiseseed" | "manualseed" => "it is seed here",
        "format" | "imageformat" | "filetype" | "outputtype" => "it is output_format here, png, jpeg or webp",
        "sampler" | "samplername" | "samplingmethod" | "samplemethod" | "scheduler" | "schedule" => {
            "requests can't choose it here; leave it out"
        }
        "image" | "images" | "mask" | "initimage" | "imageurl" | "inputimage" | "strength"
        | "denoisingstrength" => "images are made from a prompt alone here; leave it out",
        "lora" | "loras" | "controlnet" | "vae" | "upscaler" | "enablehr" => {
            "there is none here; leave it out"
        }
        _ => "it is unknown here; leave it out",
    };
    why.to_owned()
}

/// `WIDTHxHEIGHT`, whatever their numbers are.
pub(crate) fn size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|digit| digit.is_ascii_digit());
        // What is too large for a number is too large for an image.
        is_number.then(|| text.parse().unwrap_or(u32::MAX))
    };
    Some((side(width)?, side(height)?))
}

/// The side of an image that is the nearest to this one.
pub(crate) fn nearest(side: u32) -> u32 {
    (side.saturating_add(SIDE_STEP / 2) / SIDE_STEP * SIDE_STEP).clamp(MIN_SIDE, MAX_SIDE)
}

/// A whole number, if it is one exactly.
fn whole(value: &Value) -> Option<i128> {
    let number = value.as_u64().map(i128::from).or_else(|| value.as_i64().map(i128::from));
    number.or_else(|| {
        #[expect(clippy::cast_precision_loss, reason = "it is a power of two")]
        let exact = |number: &f64| number.fract() == 0.0 && number.abs() <= MAX_EXACT as f64;
        #[expect(clippy::cast_possible_truncation, reason = "it is whole and no larger")]
        value.as_f64().filter(exact).map(|number| number as i128)
    })
}

fn wrong_type(name: &str, value: &Value, wanted: &str) -> HttpError {
    HttpError::field(name, "invalid_value", format!("{name} is {}, must be {wanted}", shown(value)))
}

/// As much of a value as it takes to recognise it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().nth(60).is_none() { text } else { text.chars().take(60).chain(['…']).collect() }
}

/// Any JSON, and the first name that an object has twice: of two values one would count, and somebody means the other.
#[derive(Clone, Copy)]
struct Once<'a>(&'a RefCell<Option<String>>);

impl<'de> DeserializeSeed<'de> for Once<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Once<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E: serde::de::Error>(self, value: f64) -> Result<Value, E> {
        Number::from_f64(value).map(Value::Number).ok_or_else(|| E::custom("a number is out of range"))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element_seed(self)? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = items.next_key::<String>()? {
            let value = items.next_value_seed(self)?;
            if object.contains_key(&name) {
                self.0.borrow_mut().get_or_insert_with(|| name.clone());
            }
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(body: &str) -> HttpError {
        let read = Fields::read(body.as_bytes()).and_then(|fields| fields.rest(false));
        read.expect_err(body)
    }

    #[test]
    fn a_name_that_is_there_twice_is_refused_wherever() {
        for (body, name) in [
            (r#"{"prompt":"a","prompt":"a"}"#, "prompt"),
            (r#"{"metadata":{"a":[{"b":1,"c":2,"b":1}]}}"#, "b"),
            (r#"{"seed":null,"seed":1}"#, "seed"),
        ] {
            let message = refused(body).message().to_owned();
            assert!(message.starts_with(&format!("\"{name}\" is there twice")), "{message}");
        }
        assert!(Fields::read(br#"{"a":{"b":1},"b":{"a":1}}"#).is_ok());
    }

    #[test]
    fn one_is_one_with_a_point_or_without() {
        for (json, is) in [
            ("1", Some(1)),
            ("1.0", Some(1)),
            ("1e2", Some(100)),
            ("-1.0", Some(-1)),
            ("9007199254740992.0", Some(1 << 53)),
            ("18446744073709551615", Some(u64::MAX.into())),
            ("1.5", None),
            ("1e16", None),
            ("\"1\"", None),
            ("true", None),
        ] {
            assert_eq!(whole(&serde_json::from_str(json).unwrap()), is, "{json}");
        }
    }

    #[test]
    fn the_nearest_size_is_a_size() {
        for (side, near) in
            [(0, 64), (95, 64), (96, 128), (500, 512), (1000, 1024), (2049, 2048), (u32::MAX, 2048)]
        {
            assert_eq!(nearest(side), near);
        }
        assert_eq!(size("64x99999999999"), Some((64, u32::MAX)));
        for bad in ["", "x", "64", "64x", "+64x64", "64x64x64", "64X64", " 64x64"] {
            assert_eq!(size(bad), None, "{bad}");
        }
    }

    #[test]
    fn every_name_is_known() {
        for name in NAMES {
            assert!(
                refused(&format!("{{\"{}\":[]}}", name.to_uppercase())).message().contains(name),
                "{name}"
            );
        }
    }
}
