//! OpenAI's images API.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use axum::body::{Body, Bytes, to_bytes};
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderValue, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use base64::display::Base64Display;
use base64::prelude::BASE64_STANDARD;
use serde::{Serialize, Serializer};
use serde_json::{Value, json};
use weave_cli_base::format::Format;
use weave_cli_base::image::{How, Made, ProviderName};
use weave_cli_base::model::Model;
use weave_cli_base::requests::Requests;
use weave_cli_base::syntax;
use weave_client::weave_core::limits::{MAX_PROMPT_LEN, MAX_SIDE, MAX_STEPS, MIN_STEPS};
use weave_client::weave_core::request::Prompts;
use weave_client::{ErrorKind, Params, Stopper, random_seed};

use crate::connections::{Answering, Connection, Origin};
use crate::fields::{Delivery, Fields, MAX_EXACT};
use crate::guard;
use crate::http_error::HttpError;
use crate::links::{self, Unkept};
use crate::log::log;
use crate::provider::{Ask, Failed, Named};
use crate::shares::{NoRoom, Share};
use crate::state::Shared;
use crate::under_way::{self, Entry};

/// Longest body of a request: a prompt of 2048 bytes, each written as an escape, and the rest.
const MAX_BODY: usize = 64 << 10;
/// Longest time for it to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);
/// Most images of one request, as OpenAI has it.
const MAX_IMAGES: u64 = 10;
/// Most pixels of all of them: the answer is held until the last one is there.
const MAX_PIXELS: u64 = 4 * MAX_SIDE as u64 * MAX_SIDE as u64;

/// `GET /v1/models`.
pub(crate) async fn models(State(shared): State<Arc<Shared>>) -> Json<Value> {
    let model = shared.model().await;
    Json(json!({ "object": "list", "data": shared.names.list(model.as_ref()) }))
}

/// `GET /v1/models/{name}`.
pub(crate) async fn model(
    State(shared): State<Arc<Shared>>,
    name: Result<Path<String>, PathRejection>,
) -> Result<Json<Value>, HttpError> {
    let Ok(Path(name)) = name else {
        return Err(HttpError::new(404, "model_not_found", "a model's name is UTF-8").param("model"));
    };
    let model = shared.model().await;
    shared.names.check(&name, model.as_ref())?;
    Ok(Json(shared.names.describe(&name, model.as_ref())))
}

/// `GET /v1/images/files/…`.
pub(crate) async fn file(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    uri: Uri,
) -> Result<Response, HttpError> {
    let kept = shared.links.find(uri.path()).ok_or_else(links::gone)?;
    Ok(links::show(kept, connection.answering()))
}

/// `POST /v1/images/generations`.
pub(crate) async fn generate(
    State(shared): State<Arc<Shared>>,
    Extension(connection): Extension<Arc<Connection>>,
    request: Request,
) -> Result<Response, HttpError> {
    let name = under_way::name(request.headers())?;
    let base = shared.links.base(guard::host(&request).unwrap_or("localhost"));
    let body = body(request).await?;
    let answering = connection.answering();
    let model = shared.model().await;
    let wanted = Wanted::parse(&body, &shared, model.as_ref())?;
    drop(body);
    let share = match shared.shares.take(connection.origin(), wanted.memory()) {
        Ok(share) => share,
        Err(no_room) => return Err(no_room.error().retry_after(shared.statistics.retry_after().await)),
    };
    let began = Instant::now();
    let what = wanted.to_string();
    let abandoned = Abandoned {
        stopper: Stopper::default(),
        what: Some(what),
        origin: connection.origin(),
        shared: Arc::clone(&shared),
    };
    let (stopper, state) = (abandoned.stopper.clone(), Arc::clone(&shared));
    let entry = shared.under_way.enter(name, wanted.count);
    let of = Of { base, origin: connection.origin(), model: model.map(|model| model.name) };
    let work = tokio::task::spawn_blocking(move || wanted.make(&state, &stopper, share, &entry, &of));
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
            let line = format_args!("{what}: {} {}", error.status(), error.message());
            shared.refusals.log(connection.origin(), line);
            Err(error.logged())
        }
    }
}

/// Ends the work when it is dropped before that was done: the client has gone.
struct Abandoned {
    stopper: Stopper,
    what: Option<String>,
    origin: Origin,
    shared: Arc<Shared>,
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
            self.shared.refusals.log(self.origin, format_args!("{what}: given up, the client has gone"));
        }
    }
}

async fn body(request: Request) -> Result<Bytes, HttpError> {
    let unsupported = |what: String| HttpError::new(415, "unsupported_media_type", what);
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or("");
    let (kind, more) = kind.split_once(';').unwrap_or((kind, ""));
    let kind = kind.trim();
    // Browsers send this to other sites only after they have asked, and hear yes only for those that are allowed.
    if !kind.eq_ignore_ascii_case("application/json") {
        return Err(unsupported(format!("Content-Type is {kind:?}, must be application/json")).about(kind));
    }
    let charset = more.split(';').find_map(|part| {
        let (name, value) = part.split_once('=')?;
        name.trim().eq_ignore_ascii_case("charset").then(|| value.trim().trim_matches('"'))
    });
    if let Some(charset) = charset
        && !["utf-8", "utf8", "us-ascii"].iter().any(|good| charset.eq_ignore_ascii_case(good))
    {
        return Err(unsupported(format!("the body's charset is {charset:?}, must be UTF-8")).about(charset));
    }
    for (name, title, plain) in [
        (header::CONTENT_ENCODING, "Content-Encoding", "identity"),
        (header::TRANSFER_ENCODING, "Transfer-Encoding", "chunked"),
    ] {
        for coding in request.headers().get_all(name) {
            let coding = coding.to_str().unwrap_or("?").trim();
            if !coding.is_empty() && !coding.eq_ignore_ascii_case(plain) {
                let message = format!("{title} is {coding:?}; send the body as it is, without compression");
                return Err(unsupported(message).about(coding));
            }
        }
    }
    match tokio::time::timeout(BODY_TIME, to_bytes(request.into_body(), MAX_BODY)).await {
        Ok(Ok(body)) => Ok(body),
        Ok(Err(_)) => {
            let message = format!(
                "the body must be complete and have at most {MAX_BODY} bytes; a prompt has at most {MAX_PROMPT_LEN}"
            );
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
    delivery: Delivery,
    /// Hints that it has and that have no effect.
    ignored: Vec<&'static str>,
}

/// What else it takes to answer.
struct Of {
    /// What the paths of links follow.
    base: String,
    origin: Origin,
    /// What the daemon draws with, if it says.
    model: Option<String>,
}

/// Never the prompt.
impl std::fmt::Display for Wanted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Params { width, height, steps, .. } = self.ask.params;
        write!(f, "{} of {width}×{height}, {steps} steps, {}", self.count, self.format.name())
    }
}

impl Wanted {
    fn parse(body: &[u8], shared: &Shared, model: Option<&Model>) -> Result<Self, HttpError> {
        let mut fields = Fields::read(body)?;
        let name = fields.text("model")?;
        if let Some(name) = &name {
            shared.names.check(name, model)?;
        }
        let Some(prompt) = fields.text("prompt")? else {
            return Err(HttpError::field(
                "prompt",
                "missing_required_parameter",
                "prompt is missing; say what to draw",
            ));
        };
        let size = fields.size()?;
        let count = fields.number("n", 1, MAX_IMAGES)?.unwrap_or(1);
        let steps = fields.number("steps", MIN_STEPS.into(), MAX_STEPS.into())?;
        let cfg_scale = fields.cfg_scale()?;
        let seed = fields.seed()?;
        let named = Named {
            size: size.is_some(),
            steps: steps.is_some(),
            cfg: cfg_scale.is_some(),
            seed: seed.is_some(),
        };
        let defaults = shared.defaults_of(model);
        let (width, height) = size.unwrap_or((defaults.width, defaults.height));
        let params = Params {
            width,
            height,
            steps: steps.and_then(|steps| u32::try_from(steps).ok()).unwrap_or(defaults.steps),
            cfg_scale: cfg_scale.unwrap_or(defaults.cfg_scale),
            seed: match seed {
                Some(seed) => seed,
                None => random_seed().map_err(no_random)?,
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
            let message = format!(
                "n is {count}, must be at most {most} for images of {width}x{height}; ask again for the others"
            );
            return Err(HttpError::field("n", "invalid_value", message));
        }
        let format = fields.format()?;
        // These answer with links where nobody says otherwise, and their clients read nothing else.
        let links = name.is_some_and(|name| name.starts_with("dall-e-"));
        let delivery = fields.delivery(if links { Delivery::Link } else { Delivery::Inline })?;
        let ignored = fields.rest(shared.is_strict)?;
        let ask = Ask { prompt, params, request_id: 1, named };
        Ok(Self { ask, count, format, delivery, ignored })
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
    fn make(
        mut self,
        shared: &Shared,
        stopper: &Stopper,
        mut share: Share,
        entry: &Entry,
        of: &Of,
    ) -> Result<Answer, Trouble> {
        let mut by: Vec<ProviderName> = Vec::new();
        let mut size = String::new();
        let mut pixels = 0;
        let created = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |time| time.as_secs());
        // Written as it comes: the images are large.
        let mut body = format!("{{\"created\":{created},\"data\":[").into_bytes();
        for at in 0..self.count {
            self.ask.request_id = Requests::random_id().map_err(|error| Trouble::Own(no_random(error)))?;
            entry.asks(at, self.ask.request_id);
            let ask = &self.ask;
            let made = shared.providers.make(
                ask,
                stopper,
                |_| (),
                |attempt| {
                    log(format_args!("{attempt}; asking the next provider"));
                },
            );
            let made = made.map_err(Trouble::Failed)?.drawn_by(of.model.as_deref());
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
            if self.delivery == Delivery::Inline {
                body.reserve(file.len() / 3 * 4 + 4096);
            }
            if at > 0 {
                body.push(b',');
            }
            let weave = self.describe(&made);
            match self.delivery {
                Delivery::Inline => write(&mut body, &Described { b64_json: &file, weave })?,
                Delivery::Link => {
                    let seed = match &made.how {
                        How::Local { params, .. } => Some(params.seed),
                        How::Cloud { .. } => None,
                    };
                    let path =
                        shared.links.keep(of.origin, file, self.format, seed).map_err(Trouble::from)?;
                    write(&mut body, &Linked { url: format!("{}{path}", of.base), weave })?;
                }
            }
            self.ask.params.seed = self.ask.params.seed.checked_add(1).unwrap_or(1);
        }
        body.extend(
            format!("],\"size\":\"{size}\",\"output_format\":\"{}\"}}", self.format.name()).as_bytes(),
        );
        body.shrink_to_fit();
        share.shrink(body.len() as u64);
        let by = by.iter().map(|name| name.as_str()).collect::<Vec<_>>().join(",");
        Ok(Answer { by, ignored: self.ignored.join(", "), body, share })
    }

    /// How an image was made.
    fn describe(&self, made: &Made) -> Value {
        let mut weave = json!({ "provider": made.by.as_str(), "width": made.width, "height": made.height });
        match &made.how {
            How::Local { params, generation_time_ms, model } => {
                weave["seed"] = params.seed.into();
                // As a number it isn't exact in every language.
                if params.seed > MAX_EXACT {
                    weave["seed_text"] = params.seed.to_string().into();
                }
                weave["steps"] = params.steps.into();
                weave["cfg_scale"] = params.cfg_scale.into();
                weave["generation_time_ms"] = (*generation_time_ms).into();
                if let Some(model) = model {
                    weave["model"] = model.as_str().into();
                }
            }
            How::Cloud { model, dropped } => {
                weave["model"] = model.as_str().into();
                weave["dropped"] = dropped.as_slice().into();
            }
        }
        if !self.ignored.is_empty() {
            weave["ignored"] = self.ignored.as_slice().into();
        }
        weave
    }
}

fn no_random(error: impl std::fmt::Display) -> HttpError {
    HttpError::new(500, "internal_error", format!("the system gives no random numbers: {error}"))
}

/// An image as OpenAI has it, and beside that how it was made.
#[derive(Serialize)]
struct Described<'a> {
    #[serde(serialize_with = "in_base64")]
    b64_json: &'a [u8],
    weave: Value,
}

/// The same with a link to the image.
#[derive(Serialize)]
struct Linked {
    url: String,
    weave: Value,
}

fn in_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_str(&Base64Display::new(bytes, &BASE64_STANDARD))
}

fn write(body: &mut Vec<u8>, item: &impl Serialize) -> Result<(), Trouble> {
    serde_json::to_writer(body, item).map_err(|error| Trouble::own(error.to_string()))
}

/// All images of a request.
struct Answer {
    by: String,
    /// Names of fields, with commas between them.
    ignored: String,
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
        let Self { by, ignored, body, share } = self;
        let unread = Bytes::from_owner(Unread { body, _share: share, _answering: answering });
        let mut response = ([(header::CONTENT_TYPE, "application/json")], Body::from(unread)).into_response();
        let headers = response.headers_mut();
        if let Ok(by) = HeaderValue::try_from(by) {
            headers.insert("x-weave-provider", by);
        }
        if let Ok(ignored) = HeaderValue::try_from(ignored)
            && !ignored.is_empty()
        {
            headers.insert("x-weave-ignored", ignored);
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

impl From<Unkept> for Trouble {
    fn from(unkept: Unkept) -> Self {
        match unkept {
            Unkept::NoRoom(no_room) => Self::NoRoom(no_room),
            Unkept::Random(error) => Self::Own(no_random(error)),
        }
    }
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
