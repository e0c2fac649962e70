//! Errors as answers: one table from every error to its status and its stable code.

use axum::{
    Json,
    http::{HeaderName, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    access::Role, batcher::BatchError, dataset::FeatureSetError, jobs::JobError, json::shortened,
    registry::RegistryError,
};

/// What [`ApiError::rejection`] can say.
pub(super) const REJECTIONS: [&str; 18] = [
    "overloaded",
    "too_many_images",
    "deadline_exceeded",
    "body_too_large",
    "feature_set_too_large",
    "insufficient_storage",
    "body_timeout",
    "unauthorized",
    "forbidden",
    "role_too_small",
    "rate_limited",
    "loading",
    "model_unavailable",
    "state_contended",
    "generation_not_reached",
    "fit_queue_full",
    "too_many_evaluations",
    "shutting_down",
];

/// Why a request is not answered as asked.
#[derive(Clone, Debug, thiserror::Error)]
pub(crate) enum ApiError {
    /// No such path.
    #[error("there is nothing at this path")]
    NotFound,
    /// The path is there, the method is not.
    #[error("this path does not take this method")]
    MethodNotAllowed,
    /// A name in the path that does not fit its pattern.
    #[error("`{0}` is no name")]
    NameInPath(String),
    /// A query that does not parse or is out of range.
    #[error("query: {0}")]
    Query(String),
    /// A header that does not parse or is out of range.
    #[error("header `{name}`: {problem}")]
    Header {
        /// The header's name.
        name: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A body of another type than the route takes.
    #[error("content type `{found}` is not taken here: send {expected}")]
    UnsupportedMediaType {
        /// The request's content type.
        found: String,
        /// What is taken.
        expected: &'static str,
    },
    /// A body that would have to be unpacked first.
    #[error("content encoding `{0}` is not taken here: send the body as it is")]
    ContentEncoding(String),
    /// Bodies that are too large together.
    #[error("the bodies of requests under way take {max_bytes} bytes already, which is all they may")]
    BodiesTooLarge {
        /// Of all together.
        max_bytes: usize,
    },
    /// A body over the limit.
    #[error("the body is larger than {limit} bytes")]
    BodyTooLarge {
        /// The limit.
        limit: usize,
    },
    /// A body that ended early, or took longer than the request may.
    #[error("the body did not arrive: {0}")]
    BodyIncomplete(String),
    /// A body that took longer than the request may.
    #[error("the body did not arrive in time")]
    BodyTooSlow,
    /// A body that is not JSON.
    #[error("the body is not JSON: {0}")]
    JsonSyntax(String),
    /// JSON that is not what the route takes.
    #[error("{0}")]
    Invalid(String),
    /// Multipart that is broken.
    #[error("the multipart body is broken: {0}")]
    Multipart(String),
    /// A generation that a request wants to see, and that there is not yet.
    #[error("generation {wanted} is not there yet: the model is at generation {generation}")]
    GenerationNotReached {
        /// What the request wants.
        wanted: u64,
        /// What there is.
        generation: u64,
    },
    /// No token.
    #[error("this needs `Authorization: Bearer TOKEN`")]
    Unauthorized,
    /// A wrong token.
    #[error("the token is wrong")]
    Forbidden,
    /// A token that is not good for this.
    #[error("this needs the role `{needed}`, and the token has a smaller one")]
    RoleTooSmall {
        /// What it needs.
        needed: Role,
    },
    /// More images in a while than the caller may send.
    #[error("more images than this caller may send: try again in {seconds} s")]
    RateLimited {
        /// Until there is room.
        seconds: u64,
    },
    /// More images at once than any caller may send.
    #[error("the request has {n} images, and a caller may send {burst} at once")]
    BeyondBurst {
        /// Images in the request.
        n: usize,
        /// Images at once.
        burst: u32,
    },
    /// A handler panicked.
    #[error("the server failed on this request")]
    Internal(String),
    /// From the batcher.
    #[error(transparent)]
    Batch(#[from] BatchError),
    /// From the fits and evaluations.
    #[error("{0}")]
    Job(std::sync::Arc<JobError>),
    /// From the registry.
    #[error("{0}")]
    Registry(std::sync::Arc<RegistryError>),
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        Self::Registry(std::sync::Arc::new(error))
    }
}

impl From<JobError> for ApiError {
    fn from(error: JobError) -> Self {
        match error {
            JobError::Registry(error) => error.into(),
            error => Self::Job(std::sync::Arc::new(error)),
        }
    }
}

impl ApiError {
    /// The table.
    pub(crate) fn status_and_code(&self) -> (StatusCode, &'static str) {
        use StatusCode as S;
        match self {
            Self::NotFound => (S::NOT_FOUND, "not_found"),
            Self::MethodNotAllowed => (S::METHOD_NOT_ALLOWED, "method_not_allowed"),
            Self::NameInPath(_) => (S::NOT_FOUND, "invalid_name"),
            Self::Query(_) => (S::UNPROCESSABLE_ENTITY, "invalid_query"),
            Self::Header { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_header"),
            Self::UnsupportedMediaType { .. } => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::ContentEncoding(_) => (S::UNSUPPORTED_MEDIA_TYPE, "unsupported_media_type"),
            Self::BodiesTooLarge { .. } => (S::SERVICE_UNAVAILABLE, "overloaded"),
            Self::BodyTooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "body_too_large"),
            Self::BodyIncomplete(_) => (S::BAD_REQUEST, "incomplete_body"),
            Self::BodyTooSlow => (S::REQUEST_TIMEOUT, "body_timeout"),
            Self::JsonSyntax(_) => (S::BAD_REQUEST, "invalid_json"),
            Self::Invalid(_) => (S::UNPROCESSABLE_ENTITY, "invalid_body"),
            Self::Multipart(_) => (S::BAD_REQUEST, "invalid_multipart"),
            Self::GenerationNotReached { .. } => (S::SERVICE_UNAVAILABLE, "generation_not_reached"),
            Self::Unauthorized => (S::UNAUTHORIZED, "unauthorized"),
            Self::Forbidden => (S::FORBIDDEN, "forbidden"),
            Self::RoleTooSmall { .. } => (S::FORBIDDEN, "role_too_small"),
            Self::RateLimited { .. } => (S::TOO_MANY_REQUESTS, "rate_limited"),
            Self::BeyondBurst { .. } => (S::PAYLOAD_TOO_LARGE, "too_many_images"),
            Self::Internal(_) => (S::INTERNAL_SERVER_ERROR, "internal"),
            Self::Batch(error) => match error {
                BatchError::QueueFull { .. } => (S::SERVICE_UNAVAILABLE, "overloaded"),
                BatchError::TooManyImages { .. } => (S::PAYLOAD_TOO_LARGE, "too_many_images"),
                BatchError::Image { .. } | BatchError::ImageSize { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_image"),
                BatchError::NotFinite { .. } => (S::UNPROCESSABLE_ENTITY, "not_finite"),
                BatchError::DeadlineExceeded => (S::GATEWAY_TIMEOUT, "deadline_exceeded"),
                BatchError::Model { .. } => (S::INTERNAL_SERVER_ERROR, "model_failed"),
                BatchError::Unavailable => (S::SERVICE_UNAVAILABLE, "model_unavailable"),
                BatchError::WorkerLost => (S::INTERNAL_SERVER_ERROR, "worker_lost"),
            },
            Self::Job(error) => match &**error {
                // One of the registry is unwrapped where it comes in.
                JobError::Registry(_) => (S::INTERNAL_SERVER_ERROR, "internal"),
                JobError::HeadName { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_body"),
                JobError::TauList { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_body"),
                JobError::Recipe(_) => (S::UNPROCESSABLE_ENTITY, "invalid_params"),
                JobError::Base { .. } => (S::UNPROCESSABLE_ENTITY, "invalid_base"),
                JobError::Fit(_) | JobError::NothingToCompareOn => (S::UNPROCESSABLE_ENTITY, "invalid_validation"),
                JobError::QueueFull { .. } => (S::SERVICE_UNAVAILABLE, "fit_queue_full"),
                JobError::TooManyEvaluations { .. } => (S::SERVICE_UNAVAILABLE, "too_many_evaluations"),
                JobError::Stopping => (S::SERVICE_UNAVAILABLE, "shutting_down"),
                JobError::NotFound { .. } => (S::NOT_FOUND, "fit_not_found"),
                JobError::Finished { .. } => (S::CONFLICT, "fit_finished"),
                JobError::NotSucceeded { .. } => (S::CONFLICT, "fit_not_succeeded"),
                JobError::NotFinite(_) => (S::UNPROCESSABLE_ENTITY, "not_finite"),
                JobError::Engine(_) => (S::INTERNAL_SERVER_ERROR, "model_failed"),
            },
            Self::Registry(error) => match &**error {
                RegistryError::NotLoaded => (S::SERVICE_UNAVAILABLE, "loading"),
                RegistryError::ModelNotFound { .. } => (S::NOT_FOUND, "model_not_found"),
                RegistryError::HeadNotFound { .. } => (S::NOT_FOUND, "head_not_found"),
                RegistryError::VersionNotFound { .. } => (S::NOT_FOUND, "version_not_found"),
                RegistryError::Settings(_) => (S::UNPROCESSABLE_ENTITY, "invalid_setting"),
                RegistryError::HeadFile(_) => (S::UNPROCESSABLE_ENTITY, "invalid_head"),
                RegistryError::Derive(_) => (S::UNPROCESSABLE_ENTITY, "invalid_base"),
                RegistryError::Incompatible { .. } => (S::UNPROCESSABLE_ENTITY, "incompatible_head"),
                RegistryError::PreconditionFailed { .. } => (S::PRECONDITION_FAILED, "precondition_failed"),
                RegistryError::Contended { .. } => (S::SERVICE_UNAVAILABLE, "state_contended"),
                RegistryError::NoPreviousDefault => (S::CONFLICT, "no_previous_default"),
                RegistryError::IsDefault { .. } => (S::CONFLICT, "head_is_default"),
                RegistryError::HasDependents { .. } => (S::CONFLICT, "head_has_dependents"),
                RegistryError::FeatureSetNotFound { .. } => (S::NOT_FOUND, "feature_set_not_found"),
                RegistryError::FeatureSetInUse { .. } => (S::CONFLICT, "feature_set_in_use"),
                RegistryError::FeatureSet(error) => match error {
                    FeatureSetError::TooLarge { .. } => (S::PAYLOAD_TOO_LARGE, "feature_set_too_large"),
                    FeatureSetError::FeatureDim { .. } => (S::UNPROCESSABLE_ENTITY, "incompatible_feature_set"),
                    _ => (S::UNPROCESSABLE_ENTITY, "invalid_feature_set"),
                },
                RegistryError::StorageFull { .. } => (S::INSUFFICIENT_STORAGE, "insufficient_storage"),
                RegistryError::Session(_) => (S::INTERNAL_SERVER_ERROR, "session_failed"),
                RegistryError::State(error) if error.is_unreachable() => (S::SERVICE_UNAVAILABLE, "state_unreachable"),
                RegistryError::State(_) => (S::INTERNAL_SERVER_ERROR, "state_not_written"),
            },
        }
    }

    /// The label of `equipoise_rejected_total`, for what is refused before any work is done on it.
    pub(super) fn rejection(&self) -> Option<&'static str> {
        match self {
            Self::Batch(BatchError::QueueFull { .. } | BatchError::TooManyImages { .. })
            | Self::Batch(BatchError::DeadlineExceeded | BatchError::Unavailable)
            | Self::BodiesTooLarge { .. }
            | Self::BodyTooLarge { .. }
            | Self::BodyTooSlow
            | Self::GenerationNotReached { .. }
            | Self::Unauthorized
            | Self::Forbidden
            | Self::RoleTooSmall { .. }
            | Self::RateLimited { .. }
            | Self::BeyondBurst { .. } => Some(self.status_and_code().1),
            Self::Job(error) => match **error {
                JobError::QueueFull { .. } | JobError::TooManyEvaluations { .. } | JobError::Stopping => {
                    Some(self.status_and_code().1)
                }
                _ => None,
            },
            Self::Registry(error) => match **error {
                RegistryError::NotLoaded => Some("loading"),
                RegistryError::Contended { .. } => Some(self.status_and_code().1),
                RegistryError::StorageFull { .. } | RegistryError::FeatureSet(FeatureSetError::TooLarge { .. }) => {
                    Some(self.status_and_code().1)
                }
                _ => None,
            },
            _ => None,
        }
    }

    /// What is wrong, for somebody who gave flags and not a query.
    pub(crate) fn of_query(&self) -> String {
        match self {
            Self::Query(problem) => problem.clone(),
            other => other.to_string(),
        }
    }

    /// What a caller reads: of a name or a value of theirs that is long, not the whole.
    fn detail(&self) -> String {
        shortened(&self.whole_detail())
    }

    /// The cause of a 5xx is for the log alone.
    fn whole_detail(&self) -> String {
        let (status, _) = self.status_and_code();
        match self {
            Self::Batch(BatchError::Model { .. }) => {
                "the model failed on this batch; the server's log says why".to_owned()
            }
            Self::Job(error) if matches!(**error, JobError::Engine(_)) => {
                "the evaluation failed; the server's log says why".to_owned()
            }
            Self::Registry(error)
                if matches!(**error, RegistryError::State(_)) && status == StatusCode::SERVICE_UNAVAILABLE =>
            {
                "the store of the state did not answer as it should: the server's log says why. What was to be changed \
                 may have been all the same: the audit says"
                    .to_owned()
            }
            Self::Registry(_) if matches!(status, StatusCode::INTERNAL_SERVER_ERROR) => {
                "the change could not be made and nothing has changed; the server's log says why".to_owned()
            }
            _ => self.to_string(),
        }
    }

    /// This error under `/v2`, in the form of that protocol.
    pub(super) fn into_v2_response(self) -> Response {
        let (status, _) = self.status_and_code();
        self.with_headers(status, (status, Json(json!({ "error": self.detail() }))).into_response())
    }

    /// Adds the headers that belong to a status.
    fn with_headers(&self, status: StatusCode, mut response: Response) -> Response {
        let mut set = |name: HeaderName, value: HeaderValue| {
            response.headers_mut().insert(name, value);
        };
        match (status, self) {
            (_, Self::RateLimited { seconds }) => set(header::RETRY_AFTER, HeaderValue::from(*seconds)),
            (StatusCode::SERVICE_UNAVAILABLE, _) => set(header::RETRY_AFTER, HeaderValue::from_static("1")),
            (StatusCode::UNAUTHORIZED, _) => set(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")),
            _ => {}
        }
        response
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let (status, code) = self.status_and_code();
        let problem = json!({
            "type": format!("/docs#{code}"),
            "title": status.canonical_reason().unwrap_or_default(),
            "status": status.as_u16(),
            "detail": self.detail(),
            "code": code,
        });
        let mut response = self.with_headers(status, (status, Json(problem)).into_response());
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
        // For the layer that counts and logs.
        response.extensions_mut().insert(self);
        response
    }
}
