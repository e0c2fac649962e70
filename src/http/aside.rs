//! Work off the threads that answer: there are few of them, and everybody waits for what one of them does.

use std::{sync::LazyLock, time::Instant};

use tokio::sync::Semaphore;

use super::error::ApiError;
use crate::{batcher::BatchError, config::cores};

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

/// Computes: here if it is done in a moment, else as [`blocking`] does, at most as much at once as there are cores. It is not
/// begun after `deadline`.
pub(super) async fn computed<T: Send + 'static>(
    is_long: bool,
    deadline: Instant,
    work: impl FnOnce() -> Result<T, ApiError> + Send + 'static,
) -> Result<T, ApiError> {
    if !is_long {
        return work();
    }
    let place = match tokio::time::timeout_at(deadline.into(), PLACES.acquire()).await {
        Ok(place) => place.map_err(|error| ApiError::Internal(error.to_string()))?,
        Err(_) => return Err(BatchError::DeadlineExceeded.into()),
    };
    blocking(move || {
        let _place = place;
        work()
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::{
        sync::atomic::{AtomicUsize, Ordering},
        thread,
        time::Duration,
    };

    use super::*;

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[tokio::test]
    async fn what_takes_long_holds_no_async_thread_and_there_is_never_more_of_it_than_there_are_cores() {
        static RUNNING: AtomicUsize = AtomicUsize::new(0);
        static MOST: AtomicUsize = AtomicUsize::new(0);
        let here = thread::current().id();
        assert_eq!(computed(false, soon(), || Ok(thread::current().id())).await.unwrap(), here);
        let long = || {
            MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            thread::sleep(Duration::from_millis(5));
            RUNNING.fetch_sub(1, Ordering::SeqCst);
            Ok(thread::current().id())
        };
        let all = futures_util::future::join_all((0..4 * cores()).map(|_| computed(true, soon(), long))).await;
        assert!(all.into_iter().all(|thread| thread.unwrap() != here));
        assert!(MOST.load(Ordering::SeqCst) <= cores());
    }

    #[tokio::test]
    async fn a_panic_aside_is_an_error_and_gives_its_place_back() {
        for _ in 0..2 * cores() {
            let answer = computed(true, soon(), || -> Result<(), ApiError> { panic!("on purpose") }).await;
            assert!(matches!(answer, Err(ApiError::Internal(_))), "{answer:?}");
        }
    }
}
