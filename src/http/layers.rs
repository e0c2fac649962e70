//! What is done for every request: an id, counting, timing, logging.

use std::{
    panic::AssertUnwindSafe,
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use axum::{
    extract::{MatchedPath, Request, State},
    http::{HeaderName, HeaderValue, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use futures_util::FutureExt;
use tracing::Instrument;

use super::{
    App,
    access::{Door, authorize},
    body::SharedBody,
    error::{ApiError, REJECTIONS},
};
use crate::telemetry::panic_message;

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// A longer one is replaced: it goes into every line of the log.
const MAX_REQUEST_ID_LENGTH: usize = 128;

/// The instant at which a request's head had been read.
#[derive(Clone, Copy, Debug)]
pub(super) struct Arrived(pub(super) Instant);

/// The id of a request: the caller's if it is one, else one of ours.
fn request_id(request: &Request) -> HeaderValue {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    static PROCESS: LazyLock<u64> = LazyLock::new(|| {
        let mut random = [0; 8];
        // Without randomness the counter alone tells requests apart.
        let _ = getrandom::fill(&mut random);
        u64::from_le_bytes(random)
    });
    let fits = |value: &&HeaderValue| {
        (1..=MAX_REQUEST_ID_LENGTH).contains(&value.len()) && value.as_bytes().iter().all(u8::is_ascii_graphic)
    };
    request.headers().get(REQUEST_ID).filter(fits).cloned().unwrap_or_else(|| {
        let n = COUNTER.fetch_add(1, Ordering::Relaxed);
        let id = format!("{:016x}{n:08x}", *PROCESS);
        HeaderValue::from_str(&id).unwrap_or_else(|_| HeaderValue::from_static("-"))
    })
}

/// Gives the request an id, counts and times it, logs what went wrong, and sees to it that its answer arrives.
pub(super) async fn observe(State(door): State<Door>, mut request: Request, next: Next) -> Response {
    let start = Instant::now();
    let app = Arc::clone(&door.app);
    let in_flight = InFlight::enter(&app);
    let id = request_id(&request);
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("unmatched", MatchedPath::as_str).to_owned();
    let method = request.method().clone();
    // Such a caller sends its body when it is asked to, and not at all once it has an answer.
    let waits = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    let is_v2 = request.uri().path().starts_with("/v2");
    let span = tracing::info_span!(
        "request", id = id.to_str().unwrap_or_default(), %method, route = %route,
        caller = tracing::field::Empty, role = tracing::field::Empty
    );
    request.extensions_mut().insert(Arrived(start));
    let (parts, body) = request.into_parts();
    let body = SharedBody::new(body);
    let request = Request::from_parts(parts, body.to_body());

    let mut response = catch_panics(authorize(door, request, next)).instrument(span.clone()).await;
    if let Some(error) = response.extensions_mut().remove::<ApiError>() {
        if let Some(reason) = error.rejection() {
            debug_assert!(REJECTIONS.contains(&reason), "{reason}");
            app.metrics.rejected.with_label_values(&[reason]).inc();
        }
        if response.status().is_server_error() && error.rejection().is_none() {
            span.in_scope(|| tracing::error!(status = response.status().as_u16(), "{error}: {error:?}"));
        } else {
            span.in_scope(|| tracing::debug!(status = response.status().as_u16(), "{error}"));
        }
        if is_v2 {
            response = error.into_v2_response();
        }
        if !body.is_read() && (body.is_asked_for() || !waits) {
            body.drain().await;
        }
    }
    response.headers_mut().insert(REQUEST_ID, id);
    let elapsed = start.elapsed();
    app.metrics.requests.with_label_values(&[route.as_str(), response.status().as_str()]).inc();
    app.metrics.request_duration.with_label_values(&[route.as_str()]).observe(elapsed.as_secs_f64());
    drop(in_flight);
    span.in_scope(|| {
        tracing::debug!(status = response.status().as_u16(), elapsed_ms = elapsed.as_secs_f64() * 1e3, "answered");
    });
    response
}

/// Counts a request while it is worked on, also if its caller hangs up.
struct InFlight(Arc<App>);

impl InFlight {
    fn enter(app: &Arc<App>) -> Self {
        app.metrics.requests_in_flight.inc();
        Self(Arc::clone(app))
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.metrics.requests_in_flight.dec();
    }
}

/// Answers 500 if a handler panics.
async fn catch_panics(answer: impl Future<Output = Response>) -> Response {
    let answer = AssertUnwindSafe(answer).catch_unwind().await;
    answer.unwrap_or_else(|panic| ApiError::Internal(panic_message(&*panic)).into_response())
}
