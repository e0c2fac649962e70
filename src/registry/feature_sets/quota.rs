//! The room that feature sets may take on the disk, uploads under way included.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
};

/// The bounds of all models' feature sets together.
#[derive(Debug)]
pub struct FeatureSetQuota {
    /// Bytes of an upload, and of what it unpacks to.
    pub(super) max_set_bytes: u64,
    max_total_bytes: u64,
    used: Mutex<u64>,
}

impl FeatureSetQuota {
    /// `max_set_bytes` for one upload, `max_total_bytes` for everything that is kept or being uploaded.
    pub fn new(max_set_bytes: u64, max_total_bytes: u64) -> Self {
        Self { max_set_bytes, max_total_bytes, used: Mutex::new(0) }
    }

    fn with<T>(&self, change: impl FnOnce(&mut u64) -> T) -> T {
        change(&mut self.used.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// An error of kind `StorageFull` unless there is room for `bytes` more.
    pub(super) fn check(&self, bytes: u64) -> io::Result<()> {
        self.with(|used| self.fits(*used, bytes))
    }

    fn fits(&self, used: u64, bytes: u64) -> io::Result<()> {
        let max = self.max_total_bytes;
        if used.saturating_add(bytes) <= max {
            return Ok(());
        }
        let message = format!(
            "{bytes} more bytes are needed; feature sets take {used} of {max} bytes, uploads under way included"
        );
        Err(io::Error::new(io::ErrorKind::StorageFull, message))
    }
}

/// Room that has been taken; it is given back in the end.
#[derive(Debug)]
pub(super) struct Reservation {
    quota: Arc<FeatureSetQuota>,
    bytes: u64,
}

impl Reservation {
    pub(super) fn new(quota: Arc<FeatureSetQuota>) -> Self {
        Self { quota, bytes: 0 }
    }

    /// Takes `bytes` more; an error of kind `StorageFull` if there is no room for them.
    pub(super) fn grow(&mut self, bytes: u64) -> io::Result<()> {
        self.quota.with(|used| {
            self.quota.fits(*used, bytes)?;
            *used += bytes;
            Ok::<(), io::Error>(())
        })?;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes `bytes` more, also where there is no room: they are on the disk already.
    pub(super) fn grow_beyond(&mut self, bytes: u64) {
        self.quota.with(|used| *used = used.saturating_add(bytes));
        self.bytes += bytes;
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.quota.with(|used| *used = used.saturating_sub(self.bytes));
    }
}
