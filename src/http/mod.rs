//! The edge: the URL space on one page, and nothing of it anywhere else.

mod access;
mod admin;
mod aside;
mod audit;
mod body;
mod classify;
mod error;
mod evaluate;
mod feature_sets;
mod features;
mod fits;
mod generation;
mod json_inputs;
mod layers;
mod models;
mod object;
mod ops;
pub(crate) mod predictions;
mod query;
mod room;

use std::{
    sync::{
        Arc,
        atomic::{AtomicU8, Ordering},
    },
    time::Duration,
};

use axum::{
    Router,
    routing::{get, post, put},
};

pub(crate) use access::Caller;
pub(crate) use access::Peer;
pub use access::{NEEDS, Need};

use crate::{
    access::{Access, RateLimiter},
    config::{Config, RateLimit},
    jobs::FitJobs,
    metrics::Metrics,
    registry::Registry,
};
use room::Bodies;

/// How far the server is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// The models are being loaded and warmed.
    Loading,
    /// Requests are answered.
    Ready,
    /// Requests are still answered, and no more should be sent.
    Draining,
}

/// What the handlers share.
#[derive(Debug)]
pub struct App {
    /// The models.
    pub registry: Registry,
    /// The fits of heads.
    pub jobs: FitJobs,
    /// The metrics.
    pub metrics: Arc<Metrics>,
    /// The tokens that are known.
    pub access: Access,
    /// Whether inference needs one.
    pub requires_auth: bool,
    /// What each caller may send.
    pub rate_limiter: Option<RateLimiter>,
    /// Proxies whose word on the client's address is taken.
    pub trusted_proxies: usize,
    /// Bytes of a request's body.
    pub max_body_bytes: usize,
    /// Bytes of a head file.
    pub max_head_bytes: usize,
    bodies: Bodies,
    /// From a request's head to its answer.
    pub max_request_time: Duration,
    phase: AtomicU8,
}

impl App {
    /// An app that is loading.
    pub fn new(config: &Config, metrics: Arc<Metrics>, jobs: FitJobs, access: Access) -> Self {
        metrics.announce_failures(ROUTES.map(|(route, _)| route), &error::REJECTIONS);
        let limiter = |limit: RateLimit| RateLimiter::new(limit.images_per_second, limit.burst);
        Self {
            registry: Registry::default(),
            jobs,
            metrics,
            access,
            requires_auth: config.require_auth,
            rate_limiter: config.rate_limit.map(limiter),
            trusted_proxies: config.trust_forwarded_for,
            max_body_bytes: config.max_body_bytes,
            max_head_bytes: config.max_head_bytes,
            bodies: Bodies::new(config.max_bodies_bytes),
            max_request_time: config.max_request_time,
            phase: AtomicU8::new(0),
        }
    }

    /// How far the server is.
    pub fn phase(&self) -> Phase {
        match self.phase.load(Ordering::Acquire) {
            0 => Phase::Loading,
            1 => Phase::Ready,
            _ => Phase::Draining,
        }
    }

    /// Goes on to a later phase; never back.
    pub fn enter(&self, phase: Phase) {
        let number = match phase {
            Phase::Loading => 0,
            Phase::Ready => 1,
            Phase::Draining => 2,
        };
        self.phase.fetch_max(number, Ordering::AcqRel);
        self.metrics.ready.set(i64::from(self.is_ready()));
    }

    /// Whether requests should be sent: the models are loaded, and each of them has a session that works.
    pub fn is_ready(&self) -> bool {
        self.phase() == Phase::Ready && self.registry.models().all(|model| model.batcher().is_working())
    }
}

type AppState = axum::extract::State<Arc<App>>;

/// Every path that the server answers, and its methods.
pub const ROUTES: [(&str, &[&str]); 23] = [
    ("/v1/classify", &["POST"]),
    ("/v1/models", &["GET"]),
    ("/v1/models/{model}", &["GET"]),
    ("/v1/models/{model}/classify", &["POST"]),
    ("/v1/models/{model}/features", &["POST"]),
    ("/livez", &["GET"]),
    ("/readyz", &["GET"]),
    ("/metrics", &["GET"]),
    ("/openapi.json", &["GET"]),
    ("/docs", &["GET"]),
    ("/", &["GET"]),
    ("/admin/v1/models/{model}/heads", &["GET"]),
    ("/admin/v1/models/{model}/heads/{head}", &["GET", "PATCH", "PUT", "DELETE"]),
    ("/admin/v1/models/{model}/heads/{head}/evaluate", &["POST"]),
    ("/admin/v1/models/{model}/default-head", &["PUT"]),
    ("/admin/v1/models/{model}/rollback", &["POST"]),
    ("/admin/v1/models/{model}/feature-sets", &["GET", "POST"]),
    ("/admin/v1/models/{model}/feature-sets/{id}", &["GET", "DELETE"]),
    ("/admin/v1/models/{model}/fits", &["GET", "POST"]),
    ("/admin/v1/models/{model}/fits/{id}", &["GET", "DELETE"]),
    ("/admin/v1/models/{model}/fits/{id}/events", &["GET"]),
    ("/admin/v1/models/{model}/fits/{id}/publish", &["POST"]),
    ("/admin/v1/audit", &["GET"]),
];

/// The router of [`ROUTES`]; without `with_admin` of those that are not below `/admin`.
pub fn router(app: Arc<App>, with_admin: bool) -> Router {
    let of_one_model = axum::middleware::from_fn_with_state(Arc::clone(&app), generation::of_one_model);
    let admin = Router::new()
        .route("/v1/models/{model}/heads", get(admin::list_heads))
        .route(
            "/v1/models/{model}/heads/{head}",
            get(admin::get_head).patch(admin::patch_head).put(admin::put_head).delete(admin::delete_head),
        )
        .route("/v1/models/{model}/heads/{head}/evaluate", post(evaluate::evaluate))
        .route("/v1/models/{model}/default-head", put(admin::put_default_head))
        .route("/v1/models/{model}/rollback", post(admin::roll_back))
        .route("/v1/models/{model}/feature-sets", get(feature_sets::list).post(feature_sets::upload))
        .route("/v1/models/{model}/feature-sets/{id}", get(feature_sets::show).delete(feature_sets::delete))
        .route("/v1/models/{model}/fits", get(fits::list).post(fits::submit))
        .route("/v1/models/{model}/fits/{id}", get(fits::show).delete(fits::cancel))
        .route("/v1/models/{model}/fits/{id}/events", get(fits::events))
        .route("/v1/models/{model}/fits/{id}/publish", post(fits::publish))
        .route_layer(of_one_model.clone())
        .route("/v1/audit", get(audit::show));
    let router = Router::new()
        .route("/v1/classify", post(classify::classify_default))
        .route("/v1/models/{model}", get(models::show))
        .route("/v1/models/{model}/classify", post(classify::classify))
        .route("/v1/models/{model}/features", post(features::features))
        .route_layer(of_one_model)
        .route("/v1/models", get(models::list))
        .route("/livez", get(ops::livez))
        .route("/readyz", get(ops::readyz))
        .route("/metrics", get(ops::metrics))
        .route("/openapi.json", get(ops::openapi))
        .route("/docs", get(ops::docs))
        .route("/", get(ops::root));
    let door = access::Door { app: Arc::clone(&app), has_admin: with_admin };
    let router = if with_admin { router.nest("/admin", admin) } else { router };
    router
        .fallback(ops::not_found)
        .method_not_allowed_fallback(ops::method_not_allowed)
        .layer(axum::middleware::from_fn_with_state(door, layers::observe))
        .with_state(app)
}
