//! From a head to one that is ready to serve.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError, Weak},
};

use super::{DerivedSpec, HeadId, HeadSource, PublishedHead, RegistryError};
use crate::{
    batcher::ScorerPool,
    heads::{Digest, Head, HeadFile, Settings},
    metrics::Metrics,
    onnx::{OnnxError, SessionOptions},
};

/// Makes heads ready to serve for one model.
#[derive(Debug)]
pub(super) struct HeadBuilder {
    pub(super) model: String,
    pub(super) num_classes: usize,
    pub(super) feature_dim: usize,
    pub(super) n_workers: usize,
    pub(super) session: SessionOptions,
    pub(super) metrics: Arc<Metrics>,
    /// Of weights that some head uses, so that equal ones are shared.
    pub(super) pools: Mutex<HashMap<Digest, Weak<ScorerPool>>>,
}

impl HeadBuilder {
    pub(super) fn of_file(
        &self,
        id: HeadId,
        file: HeadFile,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        self.build(id, HeadSource::File(file.digest.to_hex()), file.head, settings)
    }

    pub(super) fn derived(
        &self,
        id: HeadId,
        spec: DerivedSpec,
        base: &PublishedHead,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        let head = base.head.derive(spec.kind, spec.initial)?;
        self.build(id, HeadSource::Derived(spec), head, settings)
    }

    fn build(
        &self,
        id: HeadId,
        source: HeadSource,
        head: Head,
        settings: Settings,
    ) -> Result<PublishedHead, RegistryError> {
        let (classes, feature_dim) = (head.num_classes(), head.feature_dim());
        let (model_classes, model_dim) = (self.num_classes, self.feature_dim);
        if (classes, feature_dim) != (model_classes, model_dim) {
            return Err(RegistryError::Incompatible { classes, feature_dim, model_classes, model_dim });
        }
        let scorers = self.scorers(&head)?;
        let head = head.sharing(scorers.weights());
        let metrics = self.metrics.of_head(&self.model, &id.head);
        let scoring = Arc::new(head.scoring(&settings));
        Ok(PublishedHead { id, source, head: Arc::new(head), settings, scoring, scorers, metrics })
    }

    fn scorers(&self, head: &Head) -> Result<Arc<ScorerPool>, OnnxError> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.retain(|_, pool| pool.strong_count() > 0);
        let digest = head.weights().digest();
        if let Some(pool) = pools.get(&digest).and_then(Weak::upgrade) {
            return Ok(pool);
        }
        let pool = Arc::new(ScorerPool::build(Arc::clone(head.weights()), &self.session, self.n_workers)?);
        pools.insert(digest, Arc::downgrade(&pool));
        Ok(pool)
    }
}
