//! What the command line and the environment say about providers.

use std::path::PathBuf;
use std::time::Duration;

use clap::builder::{EnumValueParser, NonEmptyStringValueParser};
use ureq::http::Uri;
use weave_cli_base::arguments::seconds;
use weave_cli_base::daemon::Target;
use weave_cli_base::exit::{Exit, Failure};
use weave_cli_base::image::ProviderName;

use super::answer::Memory;
use super::cloud::{Cloud, Dialect};
use super::list::{Provider, Providers};
use super::local::Local;
use crate::arguments::Part;
use crate::secret::Secret;

const HEADING: &str = "Providers";

/// Which providers, and how to get at them.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = HEADING)]
pub struct ProviderSettings {
    /// Providers to try, in this order; a cloud gets the prompt only if it is named here
    #[arg(
        long,
        value_name = "LIST",
        env = "WEAVE_PROVIDERS",
        hide_env_values = true,
        value_delimiter = ',',
        value_parser = Part(EnumValueParser::<ProviderName>::new()),
        default_value = "local"
    )]
    providers: Vec<ProviderName>,

    /// How long to ask a busy daemon again before the next provider is tried
    #[arg(long, value_name = "SECONDS", env = "WEAVE_PROVIDERS_BUSY_WAIT", hide_env_values = true, value_parser = seconds, default_value = "10")]
    busy_wait: Duration,

    /// Time limit for the daemon, before the next provider is tried [default: no limit]
    #[arg(long, value_name = "SECONDS", env = "WEAVE_PROVIDERS_LOCAL_TIMEOUT", hide_env_values = true, value_parser = seconds)]
    local_timeout: Option<Duration>,

    /// Time limit for a cloud
    #[arg(long, value_name = "SECONDS", env = "WEAVE_PROVIDERS_CLOUD_TIMEOUT", hide_env_values = true, value_parser = seconds, default_value = "300")]
    cloud_timeout: Duration,

    /// Base URL of OpenAI's API
    #[arg(
        long,
        value_name = "URL",
        env = "WEAVE_OPENAI_URL",
        hide_env_values = true,
        default_value = "https://api.openai.com/v1"
    )]
    openai_url: String,

    /// OpenAI's model
    #[arg(
        long,
        value_name = "NAME",
        env = "WEAVE_OPENAI_MODEL",
        hide_env_values = true,
        value_parser = NonEmptyStringValueParser::new(),
        default_value = "gpt-image-1"
    )]
    openai_model: String,

    /// File of mode 0600 with the key for OpenAI [default: the key itself in $OPENAI_API_KEY]
    #[arg(long, value_name = "FILE", env = "WEAVE_OPENAI_KEY_FILE", hide_env_values = true)]
    openai_key_file: Option<PathBuf>,

    #[arg(
        long,
        value_name = "URL",
        env = "WEAVE_AZURE_URL",
        hide_env_values = true,
        help = "Endpoint of the resource, as https://NAME.openai.azure.com"
    )]
    azure_url: Option<String>,

    /// Name of the deployment
    #[arg(long, value_name = "NAME", env = "WEAVE_AZURE_DEPLOYMENT", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    azure_deployment: Option<String>,

    /// Model of the deployment, if its name isn't the model's
    #[arg(long, value_name = "NAME", env = "WEAVE_AZURE_MODEL", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    azure_model: Option<String>,

    /// Use /openai/deployments/NAME/... with this api-version [default: /openai/v1/...]
    #[arg(long, value_name = "VERSION", env = "WEAVE_AZURE_API_VERSION", hide_env_values = true, value_parser = NonEmptyStringValueParser::new())]
    azure_api_version: Option<String>,

    /// File of mode 0600 with the key for Azure [default: the key itself in $AZURE_OPENAI_API_KEY]
    #[arg(long, value_name = "FILE", env = "WEAVE_AZURE_KEY_FILE", hide_env_values = true)]
    azure_key_file: Option<PathBuf>,
}

impl ProviderSettings {
    /// Whether the daemon is among them.
    #[must_use]
    pub fn has_local(&self) -> bool {
        self.providers.contains(&ProviderName::Local)
    }

    /// Whether nobody else is.
    #[must_use]
    pub fn is_local(&self) -> bool {
        self.providers == [ProviderName::Local]
    }

    /// The providers that were named. `daemon` says where the daemon is, if it is one of them; `timeout`
    /// is the longest time for an image from whichever.
    ///
    /// # Errors
    /// One of them can't be asked like this: something is missing, or can't be used.
    pub fn providers(
        &self,
        daemon: impl FnOnce() -> Result<Target, Failure>,
        timeout: Option<Duration>,
    ) -> Result<Providers, Failure> {
        let mut daemon = Some(daemon);
        let shorter = |time: Option<Duration>| time.into_iter().chain(timeout).min();
        let cloud_timeout = shorter(Some(self.cloud_timeout)).unwrap_or(self.cloud_timeout);
        let memory = Memory::new();
        let mut list = Vec::new();
        for (at, name) in self.providers.iter().enumerate() {
            list.push(match name {
                _ if self.providers[..at].contains(name) => {
                    return Err(usage(format_args!("--providers names {} twice", name.as_str())));
                }
                ProviderName::Local => {
                    let Some(daemon) = daemon.take() else { continue };
                    let (daemon, timeout) = (daemon()?, shorter(self.local_timeout));
                    Provider::Local(Local { daemon, timeout, busy_wait: self.busy_wait })
                }
                ProviderName::Openai => {
                    let url = base(&self.openai_url, "--openai-url")?;
                    let key = Secret::find(self.openai_key_file.as_deref(), "OPENAI_API_KEY")?
                        .ok_or_else(|| no_key("openai", "--openai-key-file FILE or OPENAI_API_KEY"))?;
                    Provider::Cloud(Box::new(Cloud::new(
                        Dialect::OpenAi,
                        format!("{url}/images/generations"),
                        self.openai_model.clone(),
                        self.openai_model.clone(),
                        key,
                        memory.clone(),
                        cloud_timeout,
                    )?))
                }
                ProviderName::Azure => self.azure(memory.clone(), cloud_timeout)?,
            });
        }
        Ok(Providers { list })
    }

    fn azure(&self, memory: Memory, timeout: Duration) -> Result<Provider, Failure> {
        let missing = |flag: &str| usage(format_args!("the provider azure takes {flag} as well"));
        let url = self.azure_url.as_deref().ok_or_else(|| missing("--azure-url URL"))?;
        let url = base(url, "--azure-url")?;
        let deployment = self.azure_deployment.clone().ok_or_else(|| missing("--azure-deployment NAME"))?;
        for (flag, text) in [
            ("--azure-deployment", Some(&deployment)),
            ("--azure-api-version", self.azure_api_version.as_ref()),
        ] {
            let is_plain = |c: char| c.is_ascii_alphanumeric() || "-._".contains(c);
            if let Some(text) = text
                && (text.is_empty() || !text.chars().all(is_plain))
            {
                return Err(usage(format_args!("{flag} is {text:?}; it takes letters, digits, -, . and _")));
            }
        }
        let key = Secret::find(self.azure_key_file.as_deref(), "AZURE_OPENAI_API_KEY")?
            .ok_or_else(|| no_key("azure", "--azure-key-file FILE or AZURE_OPENAI_API_KEY"))?;
        let (dialect, url) = match &self.azure_api_version {
            Some(version) => (
                Dialect::AzureDeployment,
                format!("{url}/openai/deployments/{deployment}/images/generations?api-version={version}"),
            ),
            None => (Dialect::AzureV1, format!("{url}/openai/v1/images/generations")),
        };
        let model = self.azure_model.clone().unwrap_or_else(|| deployment.clone());
        Ok(Provider::Cloud(Box::new(Cloud::new(dialect, url, deployment, model, key, memory, timeout)?)))
    }
}

/// The address that paths are appended to, without a slash at its end. A key is not sent in the clear to
/// other machines.
fn base<'a>(url: &'a str, flag: &str) -> Result<&'a str, Failure> {
    let wrong = |why: &str| usage(format_args!("{flag} is {url}, {why}"));
    let uri: Uri = url.parse().map_err(|_| wrong("must be a URL, such as https://api.openai.com/v1"))?;
    let (Some(scheme), Some(authority)) = (uri.scheme_str(), uri.authority()) else {
        return Err(wrong("must be a URL, such as https://api.openai.com/v1"));
    };
    if authority.as_str().contains('@') {
        return Err(usage(format_args!("{flag} has a name or password in it; give the key in a file")));
    }
    if uri.query().is_some() {
        return Err(wrong("must end before the question mark"));
    }
    let host = authority.host().trim_start_matches('[').trim_end_matches(']');
    let is_here = host == "localhost" || host.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback());
    match scheme {
        "https" => {}
        "http" if is_here => {}
        _ => return Err(wrong("must begin with https://, or with http:// on this machine")),
    }
    Ok(url.trim_end_matches('/'))
}

fn no_key(name: &str, where_from: &str) -> Failure {
    usage(format_args!("the provider {name} takes a key, from {where_from}"))
}

fn usage(what: std::fmt::Arguments<'_>) -> Failure {
    Failure::new(Exit::Usage, what)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_goes_over_tls_or_nowhere() {
        for good in
            ["https://a.example/v1/", "http://127.0.0.1:8080", "http://[::1]/v1", "http://localhost:1"]
        {
            assert_eq!(base(good, "--x").unwrap(), good.trim_end_matches('/'));
        }
        for bad in [
            "http://a.example",
            "ftp://a.example",
            "a.example/v1",
            "/v1",
            "https://a.example?x=1",
            "http://127.0.0.1.example",
        ] {
            assert!(base(bad, "--x").is_err(), "{bad}");
        }
        let failure = base("https://me:secret@a.example", "--x").unwrap_err();
        assert!(!failure.what().contains("secret"));
    }
}
