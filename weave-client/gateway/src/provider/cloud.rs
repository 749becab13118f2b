//! Clouds that speak OpenAI's images API.

use std::io::Read as _;
use std::sync::Arc;
use std::time::Duration;

use rustls::crypto::ring;
use serde_json::{Value, json};
use ureq::tls::{Certificate, RootCerts, TlsConfig};
use ureq::{Agent, Error};
use weave_cli_base::exit::{Exit, Failure};
use weave_cli_base::image::{How, Made, ProviderName};
use weave_client::ErrorKind;
use weave_client::weave_core::text::is_shown;

use super::answer::{self, Drawn, Memory};
use super::ask::{Ask, Cause};
use crate::secret::Secret;

/// Longest answer that says what is wrong.
const MAX_ERROR: u64 = 64 << 10;
/// As much as is told of what is wrong with a connection.
const MAX_WORDS: usize = 300;
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
    memory: Memory,
    agent: Agent,
}

impl Cloud {
    pub(super) fn new(
        dialect: Dialect,
        url: String,
        model: String,
        kind: String,
        key: Secret,
        memory: Memory,
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
        Ok(Self { dialect, url, model, kind, key, memory, agent: agent.build().new_agent() })
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
        let dropped: Vec<_> = [("steps", ask.named.steps), ("cfg_scale", ask.named.cfg)]
            .into_iter()
            .filter(|(_, is)| *is)
            .collect();
        let Drawn { width, height, channels, pixels } = self.ask(ask)?;
        let how = How::Cloud {
            model: self.kind.clone(),
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

    /// The image of an answer that isn't an error.
    fn ask(&self, ask: &Ask) -> Result<Drawn, Cause> {
        let request = self.agent.post(&self.url).header("content-type", "application/json");
        let request = match self.dialect {
            Dialect::OpenAi => request.header("authorization", format!("Bearer {}", self.key.reveal())),
            _ => request.header("api-key", self.key.reveal()),
        };
        let mut answer = request.send(self.body(ask).to_string()).map_err(|error| broken(&error))?;
        let status = answer.status().as_u16();
        // Whoever reads it has a limit.
        let body = answer.body_mut().with_config().limit(u64::MAX).reader();
        if status == 200 {
            return answer::read(body, ask, &self.memory, |error| broken(&error.into()));
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
        let mut bytes = Vec::new();
        // What is cut off is no JSON.
        let _ = body.take(MAX_ERROR).read_to_end(&mut bytes);
        let verb = if kind == ErrorKind::Refused { "refused the request" } else { "answered" };
        Err(Cause::Cloud(kind, format!("{verb} ({})", answer::describe(status, &bytes))))
    }
}

/// Why there is no answer. Whatever a cloud has worded isn't repeated.
fn broken(error: &Error) -> Cause {
    let (kind, what) = match error {
        Error::Timeout(_) => (ErrorKind::Timeout, "gave no answer in time".to_owned()),
        Error::HostNotFound | Error::ConnectionFailed => {
            (ErrorKind::Unreachable, format!("can't be reached: {error}"))
        }
        // The system's words, and those about certificates, which come before the key is sent.
        Error::Io(error) => {
            (ErrorKind::Unreachable, format!("can't be reached: {}", tame(&error.to_string())))
        }
        Error::Rustls(error) => (ErrorKind::Failed, format!("failed: {}", tame(&error.to_string()))),
        Error::ConnectProxyFailed(_) => {
            (ErrorKind::Unreachable, "can't be reached: the proxy doesn't connect".to_owned())
        }
        Error::Tls(what) => (ErrorKind::Failed, format!("failed: {what}")),
        _ => (ErrorKind::Failed, "its answer is no HTTP that can be read".to_owned()),
    };
    Cause::Cloud(kind, what)
}

/// Words that may have a name from somebody's certificate in them: without what a terminal obeys, and not without end.
fn tame(words: &str) -> String {
    let mut tame: String = words
        .chars()
        .take(MAX_WORDS)
        .flat_map(|c| match is_shown(c) {
            true => vec![c],
            false => c.escape_default().collect::<Vec<_>>(),
        })
        .collect();
    if words.chars().nth(MAX_WORDS).is_some() {
        tame.push('…');
    }
    tame
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
