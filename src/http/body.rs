//! Bodies: read within a bound of bytes and time, and taken apart strictly.

use std::{
    pin::Pin,
    sync::{Arc, Mutex, PoisonError},
    task::{Context, Poll},
    time::{Duration, Instant},
};

use axum::{
    body::{Body, HttpBody},
    http::{HeaderMap, header},
};
use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, StreamExt};
use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny},
};

use super::{aside::computed, error::ApiError, json_inputs::json_inputs, object::Object, room::Room};
use crate::{
    batcher::{BatchError, Inputs},
    json,
    registry::Model,
};

/// How long an answer waits for the rest of a body that nobody wants, and for each piece of it.
const MAX_DRAIN_TIME: Duration = Duration::from_secs(10);
const MAX_DRAIN_PAUSE: Duration = Duration::from_secs(1);
/// Bytes of a body that has begun to come for which memory is asked at once.
const MAX_AHEAD: usize = 1 << 20;
/// Bytes of JSON, and of multipart, that are taken apart in a tenth of a millisecond or so.
pub(super) const QUICKLY_PARSED: usize = 16 << 10;
const QUICKLY_SCANNED: usize = 256 << 10;

/// Reads a whole body of at most `limit` bytes before `deadline`.
pub(super) async fn read(headers: &HeaderMap, body: Body, limit: usize, deadline: Instant) -> Result<Bytes, ApiError> {
    read_in(None, headers, body, limit, deadline).await
}

/// The same, of which `room` has what there is by then.
pub(super) async fn read_in(
    mut room: Option<&mut Room>,
    headers: &HeaderMap,
    body: Body,
    limit: usize,
    deadline: Instant,
) -> Result<Bytes, ApiError> {
    check_encoding(headers)?;
    let declared = declared_length(headers);
    if declared.is_some_and(|length| length > limit as u64) {
        return Err(ApiError::BodyTooLarge { limit });
    }
    let read = async {
        let mut stream = body.into_data_stream();
        let mut first: Option<Bytes> = None;
        let mut rest = BytesMut::new();
        let mut length = 0;
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| ApiError::BodyIncomplete(error.to_string()))?;
            length += chunk.len();
            if length > limit {
                return Err(ApiError::BodyTooLarge { limit });
            }
            if let Some(room) = &mut room {
                room.grow(length)?;
            }
            // A small body is one chunk, which needs no copy.
            match (&first, rest.is_empty()) {
                (None, true) => first = Some(chunk),
                _ => {
                    if let Some(first) = first.take() {
                        // Anybody can announce much.
                        let announced = declared.map_or(length, |declared| declared as usize).min(MAX_AHEAD);
                        rest.reserve(announced.max(length));
                        rest.extend_from_slice(&first);
                    }
                    rest.extend_from_slice(&chunk);
                }
            }
        }
        Ok(first.unwrap_or_else(|| rest.freeze()))
    };
    tokio::time::timeout_at(deadline.into(), read).await.unwrap_or(Err(ApiError::BodyTooSlow))
}

/// Refuses a body that is packed: nothing here unpacks one, and its bytes would be taken for what they are not.
pub(super) fn check_encoding(headers: &HeaderMap) -> Result<(), ApiError> {
    let Some(value) = headers.get(header::CONTENT_ENCODING) else { return Ok(()) };
    let encoding = value.to_str().unwrap_or("?").trim();
    if encoding.is_empty() || encoding.eq_ignore_ascii_case("identity") {
        return Ok(());
    }
    Err(ApiError::ContentEncoding(encoding.to_owned()))
}

/// How many bytes of body a request announces, if it says.
pub(super) fn declared_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// What a content type says, without its parameters.
pub(super) fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().unwrap_or("?");
    Some(value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase())
}

/// The forms of a body that brings images or features.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum InputsForm {
    /// The body is one image.
    Image,
    /// Each part is an image.
    Multipart,
    /// `{"images": [...]}` or `{"features": [...]}`.
    Json,
}

impl InputsForm {
    /// The form that a content type announces. None at all, and what curl sends by itself, is an image.
    pub(super) fn of(headers: &HeaderMap) -> Result<Self, ApiError> {
        let Some(media_type) = media_type(headers) else { return Ok(Self::Image) };
        match media_type.as_str() {
            "application/octet-stream" | "application/x-www-form-urlencoded" => Ok(Self::Image),
            "multipart/form-data" => Ok(Self::Multipart),
            "application/json" => Ok(Self::Json),
            image if image.starts_with("image/") => Ok(Self::Image),
            _ => Err(ApiError::UnsupportedMediaType {
                found: media_type,
                expected: "image/*, application/octet-stream, multipart/form-data or application/json",
            }),
        }
    }

    /// The images or features of a body of this form, for this model. The images keep the room of the body.
    pub(super) async fn parse(
        self,
        headers: &HeaderMap,
        (body, room): (Bytes, Room),
        model: &Model,
        deadline: Instant,
    ) -> Result<Inputs, ApiError> {
        let room = Arc::new(room);
        let body = room.hold(body);
        let inputs = match self {
            Self::Image => return Ok(Inputs::Images(vec![body])),
            Self::Multipart => {
                let content_type = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
                let boundary = multer::parse_boundary(content_type.unwrap_or_default()).map_err(broken_multipart)?;
                let capacity = model.batcher().limits().queue_capacity;
                let is_long = body.len() > QUICKLY_SCANNED;
                computed(is_long, deadline, move || multipart(boundary, body, capacity)).await?
            }
            Self::Json => {
                let feature_dim = model.feature_dim();
                computed(body.len() > QUICKLY_PARSED, deadline, move || json_inputs(&body, feature_dim)).await?
            }
        };
        Ok(match inputs {
            // They are copies of what is in the body.
            Inputs::Images(images) => Inputs::Images(images.into_iter().map(|image| room.hold(image)).collect()),
            features @ Inputs::Features { .. } => features,
        })
    }
}

fn broken_multipart(error: multer::Error) -> ApiError {
    ApiError::Multipart(json::shortened(&error.to_string()))
}

/// The parts of a whole body, if they are not more images than can ever wait.
fn multipart(boundary: String, body: Bytes, capacity: usize) -> Result<Inputs, ApiError> {
    let once = futures_util::stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(body)));
    let mut parts = multer::Multipart::new(once, boundary);
    let images = async {
        let mut images = Vec::new();
        while let Some(part) = parts.next_field().await.map_err(broken_multipart)? {
            if images.len() == capacity {
                return Err(BatchError::TooManyImages { capacity }.into());
            }
            images.push(part.bytes().await.map_err(broken_multipart)?);
        }
        Ok(images)
    };
    // All of it is there, and nothing waits.
    let incomplete = || Err(ApiError::Multipart("incomplete multipart stream".to_owned()));
    let images = images.now_or_never().unwrap_or_else(incomplete)?;
    if images.is_empty() {
        return Err(ApiError::Invalid("the multipart body has no parts".to_owned()));
    }
    Ok(Inputs::Images(images))
}

/// Parses a JSON body: 400 if it is not JSON, 422 if it is and says something else than `T`.
pub(super) fn json<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    let Object(map) = json_with(body, std::marker::PhantomData)?;
    json::fields(&map).map_err(ApiError::Invalid)
}

/// The same of a body that must be an object, through `seed`.
pub(super) fn json_with<'de, S: DeserializeSeed<'de>>(body: &'de [u8], seed: S) -> Result<S::Value, ApiError> {
    let mut deserializer = serde_json::Deserializer::from_slice(body);
    let parsed = seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value));
    parsed.map_err(|error| {
        // What the error says of its kind does not help: `null` for a name is called bad syntax, and what is wrong may stand
        // before something that is no JSON at all.
        let mut whole = serde_json::Deserializer::from_slice(body);
        match IgnoredAny::deserialize(&mut whole).and_then(|_| whole.end()) {
            Ok(()) if body.trim_ascii_start().first() != Some(&b'{') => {
                ApiError::Invalid("the body must be a JSON object".to_owned())
            }
            Ok(()) => ApiError::Invalid(json::plain(&error.to_string())),
            Err(syntax) => ApiError::JsonSyntax(syntax.to_string()),
        }
    })
}

/// A body that somebody else can go on reading once its first reader has dropped it.
///
/// Why? A request that is refused before its body was read leaves bytes on the connection. If the connection is then
/// closed, the caller's system may throw the answer away with it: the caller sees a broken pipe instead of the reason.
#[derive(Clone)]
pub(super) struct SharedBody(Arc<Mutex<Shared>>);

struct Shared {
    body: Body,
    /// Whether anybody has asked for its bytes, which is when a caller that waits for `100 Continue` gets it.
    is_asked_for: bool,
}

impl SharedBody {
    pub(super) fn new(body: Body) -> Self {
        Self(Arc::new(Mutex::new(Shared { body, is_asked_for: false })))
    }

    /// The body to hand on.
    pub(super) fn to_body(&self) -> Body {
        Body::new(self.clone())
    }

    /// Reads what is left and throws it away, until it ends, does not go on, or goes on for too long.
    pub(super) async fn drain(self) {
        let drain = async {
            let mut stream = Body::new(self).into_data_stream();
            while let Ok(Some(Ok(_))) = tokio::time::timeout(MAX_DRAIN_PAUSE, stream.next()).await {}
        };
        // Who sends for longer is cut off.
        let _ = tokio::time::timeout(MAX_DRAIN_TIME, drain).await;
    }

    fn with<T>(&self, look: impl FnOnce(&mut Shared) -> T) -> T {
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Whether anybody has asked for its bytes.
    pub(super) fn is_asked_for(&self) -> bool {
        self.with(|shared| shared.is_asked_for)
    }

    /// Whether everything has been read.
    pub(super) fn is_read(&self) -> bool {
        self.with(|shared| shared.body.is_end_stream())
    }
}

impl HttpBody for SharedBody {
    type Data = Bytes;
    type Error = axum::Error;
    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<http_body::Frame<Bytes>, axum::Error>>> {
        self.with(|shared| {
            shared.is_asked_for = true;
            Pin::new(&mut shared.body).poll_frame(context)
        })
    }
    fn is_end_stream(&self) -> bool {
        self.is_read()
    }
    fn size_hint(&self) -> http_body::SizeHint {
        self.with(|shared| shared.body.size_hint())
    }
}
