//! OpenAI's images API.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};
use weave_cli_base::arguments::random_seed;
use weave_cli_base::image::{How, Made, ProviderName};
use weave_cli_base::syntax;
use weave_client::weave_core::limits::{MAX_SIDE, MAX_STEPS, MIN_STEPS};
use weave_client::weave_core::request::Prompts;
use weave_client::{ErrorKind, Params, Stopper};

use crate::connections::{Answering, Connection};
use crate::format::Format;
use crate::http_error::HttpError;
use crate::log::log;
use crate::provider::{Ask, Failed, Named};
use crate::shares::{NoRoom, Share};
use crate::state::Shared;

/// The one model that a daemon has, by the protocol's name for it.
const MODEL: &str = "sd3.5";
/// Longest body of a request: a prompt of 2048 bytes, each written as an escape, and the rest.
const MAX_BODY: usize = 64 << 10;
/// Longest time for it to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Most images of one request, as OpenAI has it.
const MAX_IMAGES: u64 = 10;
/// Most pixels of all of them: the answer is held until the last one is there.
const MAX_PIXELS: u64 = 4 * MAX_SIDE as u64 * MAX_SIDE as u64;

/// `GET /v1/models`.
pub(crate) async fn models() -> Json<Value> {
    Json(json!({ "object": "list", "data": [described()] }))
}

/// `GET /v1/models/{id}`.
pub(crate) async fn model(Path(id): Path<String>) -> Result<Json<Value>, HttpError> {
    if id == MODEL { Ok(Json(described())) } else { Err(no_model(&id)) }
}

fn described() -> Value {
    json!({ "id": MODEL, "object": "model", "created": 0, "owned_by": "weave" })
}

fn no_model(id: &str) -> HttpError {
    HttpError::new(404, "model_not_found", format!("there is no model {id:?}; the one here is {MODEL:?}"))
        .param("model")
}

/// `POST /v1/images/generations`.
pub(crate) async fn generate(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Result<Response, HttpError> {
    let body = body(request).await?;
    let answering = connection.answering();
    let wanted = Wanted::parse(&body, &shared.defaults)?;
    drop(body);
    let share = match shared.shares.take(connection.origin(), wanted.memory()) {
        Ok(share) => share,
        Err(no_room) => return Err(no_room.error().retry_after(shared.statistics.retry_after().await)),
    };
    let began = Instant::now();
    let what = wanted.to_string();
    let abandoned = Abandoned { stopper: Stopper::default(), what: Some(what) };
    let (stopper, state) = (abandoned.stopper.clone(), Arc::clone(&shared));
    let work = tokio::task::spawn_blocking(move || wanted.make(&state, &stopper, share));
    // If the client goes, this is where it ends.
    let done = work.await.unwrap_or_else(|_| Err(Trouble::own("the work has ended early")));
    let what = abandoned.not();
    match done {
        Ok(answer) => {
            log(format_args!("{what}: by {} in {:.1} s", answer.by, began.elapsed().as_secs_f64()));
            Ok(answer.into_response(answering))
        }
        Err(trouble) => {
            let error = trouble.error(&shared).await;
            log(format_args!("{what}: {} {}", error.status(), error.message()));
            Err(error)
        }
    }
}

/// Ends the work when it is dropped before that was done: the client has gone.
struct Abandoned {
    stopper: Stopper,
    what: Option<String>,
}

impl Abandoned {
    fn not(mut self) -> String {
        self.what.take().unwrap_or_default()
    }
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        if let Some(what) = &self.what {
            self.stopper.stop();
            log(format_args!("{what}: given up, the client has gone"));
        }
    }
}

async fn body(request: Request) -> Result<Bytes, HttpError> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let kind = kind.split(';').next().unwrap_or("").trim();
    // Browsers send this to other sites only after they have asked, which nobody here answers.
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(HttpError::new(
            415,
            "unsupported_media_type",
            format!("Content-Type is {kind:?}, must be application/json"),
        ));
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let message = format!("the body must be complete and have at most {MAX_BODY} bytes");
            Err(HttpError::new(413, "request_too_large", message))
        }
        Err(_) => {
            let message = format!("the body did not arrive within {} s", BODY_TIME.as_secs());
            Err(HttpError::new(408, "timeout", message))
        }
    }
}

/// A request that was found sound.
#[derive(Debug)]
struct Wanted {
    /// For the first image: those after it have the seeds after it.
    ask: Ask,
    count: u64,
    format: Format,
}

/// Never the prompt.
impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Params { width, height, steps, .. } = self.ask.params;
        write!(f, "{} of {width}×{height}, {steps} steps, {}", self.count, self.format.name())
    }
}

impl Wanted {
    fn parse(body: &[u8], defaults: &Params) -> Result<Self, HttpError> {
        let fields: Map<String, Value> = serde_json::from_slice(body).map_err(|error| {
            HttpError::new(400, "invalid_json", format!("the body must be a JSON object: {error}"))
        })?;
        // OpenAI takes null for a field that isn't there.
        let mut fields = Fields(fields.into_iter().filter(|(_, value)| !value.is_null()).collect());

        if let Some(model) = fields.text("model")?
            && model != MODEL
        {
            return Err(no_model(&model));
        }
        let Some(prompt) = fields.text("prompt")? else {
            return Err(HttpError::field(
                "prompt",
                "missing_required_parameter",
                "prompt is missing; say what to draw",
            ));
        };
        let size = match fields.text("size")?.as_deref() {
            None | Some("auto") => None,
            Some(text) => Some(self::size(text).ok_or_else(|| {
                HttpError::field(
                    "size",
                    "invalid_value",
                    format!("size is {text:?}, must be WIDTHxHEIGHT or auto"),
                )
            })?),
        };
        let count = fields.number("n", 1, MAX_IMAGES)?.unwrap_or(1);
        let steps = fields.number("steps", MIN_STEPS.into(), MAX_STEPS.into())?;
        let cfg = fields.decimal("cfg")?;
        let seed = fields.number("seed", 0, u64::MAX)?.filter(|seed| *seed != 0);
        let named =
            Named { size: size.is_some(), steps: steps.is_some(), cfg: cfg.is_some(), seed: seed.is_some() };
        let (width, height) = size.unwrap_or((defaults.width, defaults.height));
        let params = Params {
            width,
            height,
            steps: steps.and_then(|steps| u32::try_from(steps).ok()).unwrap_or(defaults.steps),
            cfg_scale: cfg.unwrap_or(defaults.cfg_scale),
            seed: match seed {
                Some(seed) => seed,
                None => random_seed().map_err(|error| {
                    HttpError::new(
                        500,
                        "internal_error",
                        format!("the system gives no random numbers: {error}"),
                    )
                })?,
            },
        };
        params
            .check()
            .and_then(|()| Prompts::same(&prompt).check())
            .map_err(|error| HttpError::invalid(&error))?;
        if let Some(found) = syntax::find(&prompt).into_iter().find(|found| found.syntax.is_certain()) {
            return Err(HttpError::field(
                "prompt",
                "unsupported_syntax",
                found.words(syntax::Surface::Gateway),
            ));
        }
        let most = MAX_PIXELS / (u64::from(width) * u64::from(height));
        if count > most {
            let message = format!("n is {count}, must be at most {most} for images of {width}x{height}");
            return Err(HttpError::field("n", "invalid_value", message));
        }
        let format = fields.format()?;
        fields.nothing_else()?;
        Ok(Self { ask: Ask { prompt, params, named }, count, format })
    }

    /// The most bytes that it takes: the answer, and beside it the image that is being made, its file, and what is between
    /// them.
    fn memory(&self) -> u64 {
        self.memory_at(self.ask.params.width, self.ask.params.height)
    }

    /// The same if its images have this size.
    fn memory_at(&self, width: u32, height: u32) -> u64 {
        let image = 4 * u64::from(width) * u64::from(height);
        // In base64, with what is said of it.
        self.count * (image * 4 / 3 + (64 << 10)) + 3 * image
    }

    /// Has the images made, one after the other.
    fn make(mut self, shared: &Shared, stopper: &Stopper, mut share: Share) -> Result<Answer, Trouble> {
        let mut by: Vec<ProviderName> = Vec::new();
        let mut size = String::new();
        let mut pixels = 0;
        let created = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        // Written as it comes: the images are large.
        let mut body = format!("{{\"created\":{created},\"data\":[").into_bytes();
        for at in 0..self.count {
            let ask = &self.ask;
            let made = shared.providers.make(
                ask,
                stopper,
                |_| (),
                |attempt| {
                    log(format_args!("{attempt}; asking the next provider"));
                },
            );
            let made = made.map_err(Trouble::Failed)?;
            // A cloud has sizes of its own where none was named.
            pixels += u64::from(made.width) * u64::from(made.height);
            if pixels > MAX_PIXELS {
                let message = format!(
                    "image {} is {}×{}, and all together have more than {MAX_PIXELS} pixels; name a size, or ask for fewer",
                    at + 1,
                    made.width,
                    made.height
                );
                return Err(Trouble::Own(HttpError::new(500, "generation_failed", message).for_good()));
            }
            share.grow(self.memory_at(made.width, made.height)).map_err(Trouble::NoRoom)?;
            let file = self.format.encode(&made, &ask.prompt).map_err(Trouble::own)?;
            size = format!("{}x{}", made.width, made.height);
            if !by.contains(&made.by) {
                by.push(made.by);
            }
            body.reserve(file.len() / 3 * 4 + 4096);
            if at > 0 {
                body.push(b',');
            }
            Described::new(&made, &file).write(&mut body).map_err(Trouble::own)?;
            self.ask.params.seed = self.ask.params.seed.checked_add(1).unwrap_or(1);
        }
        body.extend(
            format!("],\"size\":\"{size}\",\"output_format\":\"{}\"}}", self.format.name()).as_bytes(),
        );
        body.shrink_to_fit();
        share.shrink(body.len() as u64);
        let by = by.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
        Ok(Answer { by, body, share })
    }
}

/// An image as OpenAI has it, and beside that how it was made.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(serialize_with = "in_base64")]
    b64_json: &'a [u8],
    weave: Value,
}

fn in_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes, &BASE64_STANDARD))
}

impl<'a> Described<'a> {
    fn new(made: &'a Made, file: &'a [u8]) -> Self {
        let mut weave = json!({ "provider": made.by.as_str(), "width": made.width, "height": made.height });
        match &made.how {
            How::Local { params, generation_time_ms } => {
                weave["seed"] = params.seed.into();
                weave["steps"] = params.steps.into();
                weave["cfg"] = params.cfg_scale.into();
                weave["generation_time_ms"] = (*generation_time_ms).into();
            }
            How::Cloud { model, dropped } => {
                weave["model"] = model.as_str().into();
                weave["dropped"] = dropped.as_slice().into();
            }
        }
        Self { b64_json: file, weave }
    }

    fn write(&self, body: &mut Vec<u8>) -> Result<(), String> {
        serde_json::to_writer(body, self).map_err(|error| error.to_string())
    }
}

/// All images of a request.
struct Answer {
    by: String,
    body: Vec<u8>,
    share: Share,
}

/// The bytes of an answer, and what they hold until the last of them is written or the client has gone.
struct Unread {
    body: Vec<u8>,
    _share: Share,
    _answering: Answering,
}

impl AsRef<[u8]> for Unread {
    fn as_ref(&self) -> &[u8] {
        &self.body
    }
}

impl Answer {
    fn into_response(self, answering: Answering) -> Response {
        let Self { by, body, share } = self;
        let unread = Bytes::from_owner(Unread { body, _share: share, _answering: answering });
        let mut response = ([(header::CONTENT_TYPE, "application/json")], Body::from(unread)).into_response();
        if let Ok(by) = HeaderValue::try_from(by) {
            response.headers_mut().insert("x-weave-provider", by);
        }
        response
    }
}

/// Why there are none.
enum Trouble {
    Failed(Failed),
    NoRoom(NoRoom),
    /// Something on this side.
    Own(HttpError),
}

impl Trouble {
    fn own(what: impl Into<String>) -> Self {
        Self::Own(HttpError::new(500, "internal_error", what))
    }

    async fn error(self, shared: &Shared) -> HttpError {
        let failed = match self {
            Self::Own(error) => return error,
            Self::NoRoom(no_room) => {
                return no_room.error().retry_after(shared.statistics.retry_after().await);
            }
            Self::Failed(failed) => failed,
        };
        let error = HttpError::of(&failed);
        match failed.kind() {
            Some(ErrorKind::Busy) => error.retry_after(shared.statistics.retry_after().await),
            _ => error,
        }
    }
}

impl NoRoom {
    fn error(self) -> HttpError {
        let what = match self {
            Self::Places => "this gateway serves as many requests as it may; try again later",
            Self::Memory => {
                "this gateway has no memory for images of this size beside those under way; try again later"
            }
            Self::Address => {
                "your address has its share of this gateway's requests and memory; try again when one of yours is done"
            }
        };
        HttpError::new(429, "busy", what)
    }
}

/// `WIDTHxHEIGHT`.
pub(crate) fn size(text: &str) -> Option<(u32, u32)> {
    let (width, height) = text.split_once('x')?;
    let side = |text: &str| text.bytes().all(|digit| digit.is_ascii_digit()).then(|| text.parse().ok())?;
    Some((side(width)?, side(height)?))
}

/// What the body holds and nobody has looked at yet.
struct Fields(Map<String, Value>);

impl Fields {
    fn text(&mut self, name: &str) -> Result<Option<String>, HttpError> {
        match self.0.remove(name) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong_type(name, &other, "a string")),
        }
    }

    fn number(&mut self, name: &str, from: u64, to: u64) -> Result<Option<u64>, HttpError> {
        let Some(value) = self.0.remove(name) else { return Ok(None) };
        match value.as_u64() {
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

    /// In which format, and that it is to come in the answer itself.
    fn format(&mut self) -> Result<Format, HttpError> {
        match self.text("response_format")?.as_deref() {
            None | Some("b64_json") => {}
            Some("url") => {
                return Err(HttpError::field(
                    "response_format",
                    "unsupported_value",
                    "response_format is \"url\", must be \"b64_json\": images are kept nowhere, so there is no link to one",
                ));
            }
            Some(other) => {
                let message = format!("response_format is {other:?}, must be \"b64_json\"");
                return Err(HttpError::field("response_format", "invalid_value", message));
            }
        }
        let name = self.text("output_format")?;
        let quality = self.number("output_compression", 0, 100)?;
        let quality_of = |quality: u64| u8::try_from(quality).unwrap_or(100);
        match (name.as_deref(), quality) {
            (None | Some("png"), None) => Ok(Format::Png),
            (Some("jpeg"), quality) => Ok(Format::Jpeg(quality_of(quality.unwrap_or(100)))),
            // What 100 promises is what there is.
            (Some("webp"), None | Some(100)) => Ok(Format::Webp),
            (None | Some("png" | "webp"), Some(quality)) => Err(HttpError::field(
                "output_compression",
                "unsupported_parameter",
                format!(
                    "output_compression is {quality}; png and webp are made without loss here, and only jpeg takes it"
                ),
            )),
            (Some(other), _) => {
                let message = format!("output_format is {other:?}, must be \"png\", \"jpeg\" or \"webp\"");
                Err(HttpError::field("output_format", "invalid_value", message))
            }
        }
    }

    /// Whatever is left would have no effect, and whoever sent it thinks otherwise.
    fn nothing_else(mut self) -> Result<(), HttpError> {
        // These say who asks, or that all is to be as it is here.
        let user = self.text("user")?;
        drop(user);
        for (name, harmless) in
            [("stream", json!(false)), ("quality", json!("auto")), ("background", json!("auto"))]
        {
            if self.0.get(name) == Some(&harmless) {
                self.0.remove(name);
            }
        }
        let Some((name, value)) = self.0.iter().next() else { return Ok(()) };
        let (code, why) = match name.as_str() {
            "quality" | "style" | "background" | "moderation" | "stream" | "partial_images"
            | "input_fidelity" => ("unsupported_parameter", "isn't supported here; leave it out"),
            _ => ("unknown_parameter", "is unknown; leave it out"),
        };
        Err(HttpError::field(name.clone(), code, format!("{name} (here {}) {why}", shown(value))))
    }
}

fn wrong_type(name: &str, value: &Value, wanted: &str) -> HttpError {
    HttpError::field(name, "invalid_value", format!("{name} is {}, must be {wanted}", shown(value)))
}

/// As much of a value as it takes to recognise it.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().nth(60).is_none() { text } else { text.chars().take(60).chain(['…']).collect() }
}
