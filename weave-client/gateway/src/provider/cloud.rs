//! Clouds that speak OpenAI's images API.

use std::fmt::Write as _;
use std::io::Cursor;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use image::{DynamicImage, ImageReader, Limits};
use rustls::crypto::ring;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Error};
use weave_cli_base::exit::{Exit, Failure};
use weave_cli_base::image::{How, Made, ProviderName};
use weave_client::weave_core::text::is_shown;
use weave_client::{Channels, ErrorKind};

use super::ask::{Ask, Cause};
use crate::secret::Secret;

/// Longest answer: an image of [`MAX_SIDE`] that doesn't compress well, in base64.
const MAX_ANSWER: u64 = 64 << 20;
/// Longest answer that says what is wrong.
const MAX_ERROR: u64 = 64 << 10;
/// As much of a cloud's words as is passed on.
const MAX_WORDS: usize = 300;
/// Largest width and height.
const MAX_SIDE: u32 = 4096;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Where the key and the model's name stand.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Dialect {
    /// `Authorization: Bearer`, the model in the body.
    OpenAi,
    /// `api-key`, the deployment in the body as the model.
    AzureV1,
    /// `api-key`, the deployment in the path.
    AzureDeployment,
}

/// One of them.
#[derive(Debug)]
pub(super) struct Cloud {
    dialect: Dialect,
    url: String,
    /// What the body calls the model.
    model: String,
    /// What the model is.
    kind: String,
    key: Secret,
    agent: Agent,
}

impl Cloud {
    pub(super) fn new(
        dialect: Dialect,
        url: String,
        model: String,
        kind: String,
        key: Secret,
        timeout: Duration,
    ) -> Result<Self, Failure> {
        let mut agent = Agent::config_builder()
            // The key is for this host and no other, and what redirects a POST has gone wrong anyway.
            .max_redirects(0)
            .max_redirects_will_error(false)
            .http_status_as_error(false)
            .timeout_connect(Some(CONNECT_TIMEOUT.min(timeout)))
            .timeout_global(Some(timeout))
            .user_agent(concat!("weave/", env!("CARGO_PKG_VERSION")));
        agent = match url.starts_with("https:") {
            true => agent.https_only(true).tls_config(tls()?),
            // On this machine; a proxy would be elsewhere, and read the key.
            false => agent.proxy(None),
        };
        Ok(Self { dialect, url, model, kind, key, agent: agent.build().new_agent() })
    }

    pub(super) const fn name(&self) -> ProviderName {
        match self.dialect {
            Dialect::OpenAi => ProviderName::Openai,
            Dialect::AzureV1 | Dialect::AzureDeployment => ProviderName::Azure,
        }
    }

    pub(super) fn make(&self, ask: &Ask) -> Result<Made, Cause> {
        // Who names a seed wants one certain image, which only the daemon can make again. Steps and
        // scale are how the daemon's model gets to a good one, and mean nothing to others.
        if ask.named.seed {
            return Err(Cause::Passed("seed"));
        }
        let dropped: Vec<_> =
            [("steps", ask.named.steps), ("cfg", ask.named.cfg)].into_iter().filter(|(_, is)| *is).collect();
        let answer = self.ask(&self.body(ask))?;
        let garbage = |what: &str| Cause::Cloud(ErrorKind::Failed, format!("its answer {what}"));
        let answer: Value = serde_json::from_slice(&answer).map_err(|_| garbage("is no JSON"))?;
        let data = &answer["data"][0];
        let encoded = match &data["b64_json"] {
            Value::String(encoded) => encoded,
            _ if data["url"].is_string() => {
                return Err(garbage(
                    "has a link instead of an image; for DALL·E behind another name say which model it is",
                ));
            }
            _ => return Err(garbage("has no image")),
        };
        let bytes = BASE64_STANDARD.decode(encoded).map_err(|_| garbage("has broken base64"))?;
        let image =
            decode(bytes).map_err(|error| garbage(&format!("has no image that can be read: {error}")))?;
        let (width, height) = (image.width(), image.height());
        let asked = (ask.params.width, ask.params.height);
        if ask.named.size && (width, height) != asked {
            return Err(garbage(&format!("is {width}×{height}, not {}×{}", asked.0, asked.1)));
        }
        let (channels, pixels) = match image.color().has_alpha() {
            true => (Channels::Rgba, image.into_rgba8().into_raw()),
            false => (Channels::Rgb, image.into_rgb8().into_raw()),
        };
        let how = How::Cloud {
            model: self.kind.clone(),
            revised_prompt: data["revised_prompt"].as_str().map(str::to_owned),
            dropped: dropped.into_iter().map(|(name, _)| name).collect(),
        };
        Ok(Made { by: self.name(), width, height, channels, pixels, how })
    }

    fn body(&self, ask: &Ask) -> Value {
        let mut body = json!({ "prompt": ask.prompt, "n": 1 });
        if self.dialect != Dialect::AzureDeployment {
            body["model"] = self.model.as_str().into();
        }
        if ask.named.size {
            body["size"] = format!("{}x{}", ask.params.width, ask.params.height).into();
        }
        // These answer with links otherwise, and the newer ones refuse the field.
        if self.kind.starts_with("dall-e") {
            body["response_format"] = "b64_json".into();
        }
        body
    }

    /// The bytes of an answer that isn't an error.
    fn ask(&self, body: &Value) -> Result<Vec<u8>, Cause> {
        let request = self.agent.post(&self.url).header("content-type", "application/json");
        let request = match self.dialect {
            Dialect::OpenAi => request.header("authorization", format!("Bearer {}", self.key.reveal())),
            _ => request.header("api-key", self.key.reveal()),
        };
        let mut answer = request.send(body.to_string()).map_err(|error| self.broken(&error))?;
        let status = answer.status().as_u16();
        let limit = if status == 200 { MAX_ANSWER } else { MAX_ERROR };
        let bytes = answer.body_mut().with_config().limit(limit).read_to_vec();
        if status == 200 {
            return bytes.map_err(|error| self.broken(&error));
        }
        let kind = match status {
            300..=399 => {
                return Err(Cause::Cloud(
                    ErrorKind::Failed,
                    format!("answered with a redirect ({status}), which isn't followed"),
                ));
            }
            // Whoever runs this has to look after the key, the model's name, the bill.
            401..=404 | 407 => ErrorKind::Failed,
            408 | 504 => ErrorKind::Timeout,
            429 => ErrorKind::Busy,
            503 => ErrorKind::Unreachable,
            400..=499 => ErrorKind::Refused,
            _ => ErrorKind::Failed,
        };
        let words = bytes.ok().and_then(|bytes| serde_json::from_slice::<Value>(&bytes).ok());
        let words = words.as_ref().and_then(|words| words["error"]["message"].as_str()).unwrap_or("");
        let verb = if kind == ErrorKind::Refused { "refused the request" } else { "answered" };
        let mut what = format!("{verb} ({status})");
        if !words.is_empty() {
            let _ = write!(what, ": {}", self.tame(words));
        }
        Err(Cause::Cloud(kind, what))
    }

    /// Why there is no answer.
    fn broken(&self, error: &Error) -> Cause {
        let (kind, what) = match error {
            Error::Timeout(_) => (ErrorKind::Timeout, "gave no answer in time".to_owned()),
            Error::HostNotFound | Error::ConnectionFailed => {
                (ErrorKind::Unreachable, format!("can't be reached: {error}"))
            }
            Error::BodyExceedsLimit(limit) => {
                (ErrorKind::Failed, format!("its answer is longer than {limit} bytes"))
            }
            Error::Io(error) => (ErrorKind::Unreachable, format!("can't be reached: {error}")),
            error => (ErrorKind::Failed, format!("failed: {error}")),
        };
        Cause::Cloud(kind, self.tame(&what))
    }

    /// Somebody else's words: without the key, which some repeat, without what a terminal obeys, and not
    /// without end.
    fn tame(&self, words: &str) -> String {
        let words = self.key.strike_from(words);
        let mut tame: String = words
            .chars()
            .take(MAX_WORDS)
            .flat_map(|c| match is_shown(c) {
                false => c.escape_default().collect::<Vec<_>>(),
                true => vec![c],
            })
            .collect();
        if words.chars().nth(MAX_WORDS).is_some() {
            tame.push('…');
        }
        tame
    }
}

/// What a cloud's certificate is checked against: what the system trusts.
fn tls() -> Result<TlsConfig, Failure> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let what = "the system has no certificates by which a cloud could be known";
        return Err(Failure::new(Exit::Local, what)
            .next("install them (Debian: ca-certificates), or name a file in SSL_CERT_FILE"));
    }
    let roots = found.certs.iter().map(|cert| Certificate::from_der(cert).to_owned());
    Ok(TlsConfig::builder()
        .root_certs(RootCerts::from(roots))
        .unversioned_rustls_crypto_provider(Arc::new(ring::default_provider()))
        .build())
}

/// PNG, JPEG or WebP.
fn decode(bytes: Vec<u8>) -> image::ImageResult<DynamicImage> {
    let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(MAX_SIDE);
    limits.max_image_height = Some(MAX_SIDE);
    reader.limits(limits);
    reader.decode()
}
