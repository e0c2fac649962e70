//! One fit: its record, and who may change it.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use tokio::sync::watch;

use super::{FitProgress, FitRecord, FitState, JobError, request::Inputs};
use crate::{
    fit::Progress,
    registry::{Changed, Edit, FitFiles, HeadId, Model, StateError},
};

/// Whether a fit may still be cancelled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Fate {
    /// It may.
    #[default]
    Open,
    /// It is.
    Cancelled,
    /// Its head is there, and what follows is not undone.
    Sealed,
}

/// A fit that waits, runs or has ended.
#[derive(Debug)]
pub struct FitJob {
    pub(super) model: Arc<Model>,
    files: FitFiles,
    record: watch::Sender<Arc<FitRecord>>,
    progress: watch::Sender<Option<FitProgress>>,
    inputs: Mutex<Option<Inputs>>,
    fate: Mutex<Fate>,
    /// Held by the one who makes the next record. Whether it has been removed from the disk, and stays away.
    is_removed: Mutex<bool>,
}

/// Seconds since 1970.
pub(super) fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |time| (time.as_secs_f64() * 1e3).round() / 1e3)
}

impl FitJob {
    /// A job whose record is on the disk already.
    pub(super) fn restored(model: Arc<Model>, files: FitFiles, record: FitRecord) -> Self {
        Self {
            model,
            files,
            progress: watch::Sender::new(record.progress),
            record: watch::Sender::new(Arc::new(record)),
            inputs: Mutex::default(),
            fate: Mutex::default(),
            is_removed: Mutex::default(),
        }
    }

    /// A job that waits.
    ///
    /// # Errors
    /// Those of writing its record down.
    pub(super) fn queued(
        model: Arc<Model>,
        files: FitFiles,
        record: FitRecord,
        inputs: Inputs,
    ) -> Result<Self, StateError> {
        let job = Self { inputs: Mutex::new(Some(inputs)), ..Self::restored(model, files, record) };
        if let Err(error) = job.write(&job.record()) {
            // Whoever asks for it is told that there is none. There may be one, in a folder that cannot be synced.
            job.remove();
            return Err(error);
        }
        Ok(job)
    }

    /// What is known of it now.
    pub fn record(&self) -> Arc<FitRecord> {
        Arc::clone(&self.record.borrow())
    }

    /// How far it is, once it runs.
    pub fn progress(&self) -> Option<FitProgress> {
        *self.progress.borrow()
    }

    /// Its record and its progress, for somebody who waits for the next of them.
    pub fn subscribe(&self) -> (watch::Receiver<Arc<FitRecord>>, watch::Receiver<Option<FitProgress>>) {
        (self.record.subscribe(), self.progress.subscribe())
    }

    fn write(&self, record: &FitRecord) -> Result<(), StateError> {
        let bytes = serde_json::to_vec(record)
            .map_err(|error| StateError::Io { path: record.id.clone().into(), source: std::io::Error::other(error) })?;
        self.files.write_record(&record.id, &bytes)
    }

    /// Makes the next record. If it cannot be written down the log says so: what has happened has happened.
    pub(super) fn change(&self, edit: impl FnOnce(&mut FitRecord)) {
        let is_removed = self.is_removed.lock().unwrap_or_else(PoisonError::into_inner);
        let mut next = FitRecord::clone(&self.record());
        edit(&mut next);
        if !*is_removed && let Err(error) = self.write(&next) {
            tracing::error!(fit = next.id, %error, "the record of fit `{}` cannot be written down: {error}", next.id);
        }
        self.record.send_replace(Arc::new(next));
    }

    /// Takes what it reads, unless somebody has before.
    pub(super) fn take_inputs(&self) -> Option<Inputs> {
        self.inputs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub(super) fn tell(&self, progress: Progress, elapsed: Duration) -> FitProgress {
        let seconds = elapsed.as_secs_f64().max(1e-6);
        let Progress { done, epoch, epochs, loss, samples_seen } = progress;
        let told = FitProgress {
            done,
            epoch,
            epochs,
            loss: loss.filter(|loss| loss.is_finite()),
            samples_per_second: samples_seen as f64 / seconds,
            seconds_left: (done > 0.0).then(|| seconds * (1.0 - done) / done),
        };
        self.progress.send_replace(Some(told));
        told
    }

    /// Goes from open to another fate, unless it has gone there or elsewhere before; says whether that is its fate now.
    fn meet(&self, wanted: Fate) -> bool {
        let mut fate = self.fate.lock().unwrap_or_else(PoisonError::into_inner);
        if *fate == Fate::Open {
            *fate = wanted;
        }
        *fate == wanted
    }

    /// Asks the running fit to end; `false` if it is too late for that.
    pub(super) fn ask_to_end(&self) -> bool {
        self.meet(Fate::Cancelled)
    }

    /// Lets nobody cancel it any more; `false` if somebody has.
    pub(super) fn seal(&self) -> bool {
        self.meet(Fate::Sealed)
    }

    pub(super) fn is_asked_to_end(&self) -> bool {
        *self.fate.lock().unwrap_or_else(PoisonError::into_inner) == Fate::Cancelled
    }

    /// Keeps the head file; gives its name by content.
    pub(super) fn keep_head(&self, file: &[u8]) -> Result<String, StateError> {
        self.files.write_head(&self.record().id, file)?;
        Ok(crate::heads::Digest::of(file).to_hex())
    }

    /// Removes the head file again.
    pub(super) fn drop_head(&self) {
        self.files.remove_head(&self.record().id);
    }

    /// Removes it from the disk.
    pub(super) fn remove(&self) {
        let mut is_removed = self.is_removed.lock().unwrap_or_else(PoisonError::into_inner);
        *is_removed = true;
        self.files.remove(&self.record().id);
    }

    /// Publishes the head as the next version of the name that was asked for. It is not activated. Each call publishes: the
    /// same head again is a version of its own.
    ///
    /// # Errors
    /// [`JobError::NotSucceeded`]; those of the registry. Then nothing has changed.
    pub fn publish(&self, edit: &Edit) -> Result<Changed<HeadId>, JobError> {
        let record = self.record();
        let (FitState::Succeeded, Some(digest)) = (record.state, &record.digest) else {
            return Err(JobError::NotSucceeded { id: record.id.clone(), state: record.state });
        };
        let file = self.files.head(&record.id, digest)?;
        let Changed { made, state } = self.model.publish_file(edit, &record.publish_as, &file)?;
        let id = made.id.clone();
        tracing::info!(
            fit = record.id,
            head = id.head,
            version = id.version,
            "published the head of fit `{}`",
            record.id
        );
        // It is published whether or not this can be written down.
        self.change(|record| record.head = Some(id.clone()));
        Ok(Changed { made: id, state })
    }
}
