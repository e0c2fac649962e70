//! Room in memory for the bodies of requests.

use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, TryAcquireError};

use super::error::ApiError;

/// Of each body so much is not counted: connections are, and of most bodies this is all.
const FREE_BYTES: usize = 64 << 10;
/// What is counted.
const UNIT_BYTES: usize = 1 << 10;

/// What the bodies of all requests may take together: images and features, whose callers may not be known, and head files.
#[derive(Clone, Debug)]
pub(super) struct Bodies {
    units: Arc<Semaphore>,
    max_bytes: usize,
}

/// What one body takes of it, until this and all that [`Room::hold`] gave are dropped.
#[derive(Debug)]
pub(super) struct Room {
    bodies: Bodies,
    taken: Option<OwnedSemaphorePermit>,
}

impl Bodies {
    pub(super) fn new(max_bytes: usize) -> Self {
        let units = (max_bytes / UNIT_BYTES).min(Semaphore::MAX_PERMITS);
        Self { units: Arc::new(Semaphore::new(units)), max_bytes }
    }

    /// Room for a body of which nothing has come yet.
    pub(super) fn room(&self) -> Room {
        Room { bodies: self.clone(), taken: None }
    }
}

impl Room {
    /// Room for a body that has so many bytes by now.
    ///
    /// # Errors
    /// [`ApiError::BodiesTooLarge`] if the others leave none.
    pub(super) fn grow(&mut self, n_bytes: usize) -> Result<(), ApiError> {
        let wanted = n_bytes.saturating_sub(FREE_BYTES).div_ceil(UNIT_BYTES);
        let more = wanted.saturating_sub(self.taken.as_ref().map_or(0, OwnedSemaphorePermit::num_permits));
        if more == 0 {
            return Ok(());
        }
        let max_bytes = self.bodies.max_bytes;
        let full = |_: TryAcquireError| ApiError::BodiesTooLarge { max_bytes };
        let more = u32::try_from(more).map_err(|_| ApiError::BodiesTooLarge { max_bytes })?;
        let more = Arc::clone(&self.bodies.units).try_acquire_many_owned(more).map_err(full)?;
        match &mut self.taken {
            Some(taken) => taken.merge(more),
            None => self.taken = Some(more),
        }
        Ok(())
    }

    /// Bytes of the body, which keep its room: they may wait in the queue long after their request has ended.
    pub(super) fn hold(self: &Arc<Self>, bytes: Bytes) -> Bytes {
        match self.taken {
            None => bytes,
            Some(_) => Bytes::from_owner(InRoom { bytes, _room: Arc::clone(self) }),
        }
    }
}

struct InRoom {
    // It goes before the room does.
    bytes: Bytes,
    _room: Arc<Room>,
}

impl AsRef<[u8]> for InRoom {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_bodies_share_what_there_is_and_small_ones_are_free() {
        let bodies = Bodies::new(1 << 20);
        let (mut first, mut second) = (bodies.room(), bodies.room());
        first.grow(FREE_BYTES + (512 << 10)).unwrap();
        first.grow(FREE_BYTES + (768 << 10)).unwrap();
        second.grow(FREE_BYTES + (256 << 10)).unwrap();
        assert!(matches!(second.grow(FREE_BYTES + (256 << 10) + 1), Err(ApiError::BodiesTooLarge { .. })));
        bodies.room().grow(FREE_BYTES).unwrap();
        let held = Arc::new(first).hold(Bytes::from_static(b"an image of it"));
        let piece = held.slice(3..8);
        drop(held);
        assert!(second.grow(FREE_BYTES + (1 << 20)).is_err());
        assert_eq!(piece, "image");
        drop(piece);
        second.grow(FREE_BYTES + (1 << 20)).unwrap();
    }
}
