//! Work off the threads that answer: there are few of them, and everybody waits for what one of them does.

use std::sync::LazyLock;

use tokio::sync::Semaphore;

use super::error::ApiError;
use crate::config::cores;

/// What computes aside, at once.
static PLACES: LazyLock<Semaphore> = LazyLock::new(|| Semaphore::new(cores()));

/// Runs what writes to the disk or builds sessions off the async threads. It runs to its end even if the caller hangs up.
pub(super) async fn blocking<T: Send + 'static, E: Into<ApiError> + Send + 'static>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ApiError> {
    // What is logged there is this request's, and says who asked.
    let span = tracing::Span::current();
    match tokio::task::spawn_blocking(move || span.in_scope(work)).await {
        Ok(done) => done.map_err(Into::into),
        Err(error) => Err(ApiError::Internal(error.to_string())),
    }
}

/// Computes: here if it is done in a moment, else as [`blocking`] does, at most as much at once as there are cores.
pub(super) async fn computed<T: Send + 'static>(
    is_long: bool,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !is_long {
        return work();
    }
    let place = PLACES.acquire().await.map_err(|error| ApiError::Internal(error.to_string()))?;
    blocking(move || {
        let _place = place;
        work()
    })
    .await
}
