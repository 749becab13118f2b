//! The names under which clients know the one model that draws.

use std::time::SystemTime;

use serde_json::{Value, json};
use weave_cli_base::model::Model;

use crate::http_error::HttpError;

/// The name by which it is always known, whichever it is.
const ALIAS: &str = "sd3.5";
/// What a daemon that isn't there may draw with.
const KNOWN: [&str; 5] = ["sd3.5-medium", "sd3.5-large", "sd3.5-large-turbo", "demo-model", "test-pattern"];

/// What clients may call it.
pub(crate) struct Names {
    /// Those that were allowed, besides its own.
    more: Vec<String>,
    /// Whether they may call it as they like.
    any: bool,
    /// Seconds since 1970.
    since: u64,
}

impl Names {
    /// `*` among them: any.
    pub(crate) fn new(more: &[String]) -> Self {
        let (any, more) = more.iter().cloned().partition::<Vec<_>, _>(|name| name == "*");
        let since = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        Self { more, any: !any.is_empty(), since }
    }

    /// Refuses a name that is none of its names.
    pub(crate) fn check(&self, name: &str, model: Option<&Model>) -> Result<(), HttpError> {
        let is_own = match model {
            Some(model) => id(model) == name,
            None => KNOWN.contains(&name),
        };
        if is_own || self.any || name == ALIAS || self.more.iter().any(|more| more == name) {
            return Ok(());
        }
        let name = name.chars().take(60).collect::<String>();
        let (who, id) = match model {
            None => ("the one that draws here".to_owned(), ALIAS.to_owned()),
            Some(model) => {
                let toy =
                    if model.toy { ", which is no real model but one to try the programs with" } else { "" };
                (format!("{}{toy}", model.name), id(model))
            }
        };
        let message = format!(
            "there is no model {name:?} here; leave model out or say {id:?} for {who}, or start the gateway with --model-names to have it drawn by that"
        );
        Err(HttpError::new(404, "model_not_found", message).param("model"))
    }

    /// Its own name comes first.
    pub(crate) fn list(&self, model: Option<&Model>) -> Vec<Value> {
        let own = model.map(id);
        let mut names: Vec<&str> = own.iter().map(String::as_str).collect();
        for name in [ALIAS].into_iter().chain(self.more.iter().map(String::as_str)) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names.into_iter().map(|name| self.describe(name, model)).collect()
    }

    /// As OpenAI describes a model, and what is known of the one that draws.
    pub(crate) fn describe(&self, name: &str, model: Option<&Model>) -> Value {
        let mut described =
            json!({ "id": name, "object": "model", "created": self.since, "owned_by": "weave" });
        if let Some(model) = model {
            described["weave"] = json!({ "name": model.name, "toy": model.toy, "draws": model.draws });
        }
        described
    }
}

/// A model's name as programs write it: `sd3.5-medium`, `demo-model`.
fn id(model: &Model) -> String {
    let short = model.name.replace("Stable Diffusion ", "sd").to_ascii_lowercase();
    let is_plain = |c: char| c.is_ascii_alphanumeric() || c == '.';
    let parts = short.split(|c: char| !is_plain(c)).filter(|part| !part.is_empty());
    let id = parts.collect::<Vec<_>>().join("-");
    if id.is_empty() { ALIAS.to_owned() } else { id }
}

#[cfg(test)]
mod tests {
    use weave_cli_base::model::Defaults;

    use super::*;

    fn model(name: &str) -> Model {
        let defaults = Defaults { width: 64, height: 64, steps: 1, cfg_scale: 1.0 };
        Model { name: name.to_owned(), toy: true, draws: None, defaults }
    }

    #[test]
    fn a_model_has_a_name_for_programs() {
        for (name, is) in [
            ("Stable Diffusion 3.5 Medium", "sd3.5-medium"),
            ("Stable Diffusion 3.5 Large", "sd3.5-large"),
            ("Stable Diffusion 3.5 Large Turbo", "sd3.5-large-turbo"),
            ("demo model", "demo-model"),
            ("test pattern", "test-pattern"),
        ] {
            assert_eq!(id(&model(name)), is);
            assert!(KNOWN.contains(&is));
        }
        assert_eq!(id(&model("Ünï (x)")), "n-x");
        assert_eq!(id(&model("…")), ALIAS);
    }

    #[test]
    fn who_may_be_called_what() {
        let demo = model("demo model");
        let none = Names::new(&[]);
        for (name, model, is) in [
            ("demo-model", Some(&demo), true),
            ("sd3.5", Some(&demo), true),
            ("sd3.5-large", Some(&demo), false),
            ("dall-e-3", Some(&demo), false),
            ("sd3.5-large", None, true),
            ("dall-e-3", None, false),
            ("*", Some(&demo), false),
            ("", Some(&demo), false),
        ] {
            assert_eq!(none.check(name, model).is_ok(), is, "{name}");
        }
        let some = Names::new(&["dall-e-3".into()]);
        assert!(some.check("dall-e-3", None).is_ok() && some.check("dall-e-2", None).is_err());
        assert!(Names::new(&["*".into()]).check("dall-e-2", None).is_ok());
        let ids = |names: Names| {
            let of = |model: Value| model["id"].as_str().unwrap().to_owned();
            names.list(Some(&demo)).into_iter().map(of).collect::<Vec<_>>()
        };
        assert_eq!(ids(Names::new(&["dall-e-3".into(), "*".into()])), ["demo-model", "sd3.5", "dall-e-3"]);
        let words = none.check("dall-e-3", Some(&demo)).unwrap_err().message().to_owned();
        assert!(words.contains("demo-model") && words.contains("no real model"), "{words}");
    }
}
