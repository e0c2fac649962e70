//! What a model directory adds to what was served before.

use std::collections::{BTreeMap, HashMap};

use super::{
    Change, DerivedSpec, HeadDeclaration, HeadId, HeadOrigin, HeadSource, LoadError, ModelDirectory,
    load::DeclaredFile,
    manifest::{Manifest, ManifestSeries, ManifestVersion},
};
use crate::heads::{Settings, SettingsError};

/// What is to be served: what was served before, and as a new version each head whose declaration is new. Also says what of
/// it is new, if anything is.
pub(super) fn declare(
    directory: &ModelDirectory,
    files: &BTreeMap<String, DeclaredFile>,
    previous: Option<&Manifest>,
) -> Result<(Manifest, Option<Change>), LoadError> {
    let manifest = previous.cloned().unwrap_or_else(|| Manifest {
        model: directory.name.clone(),
        generation: 0,
        parent: None,
        id: None,
        author: None,
        time: None,
        change: None,
        default: HeadId { head: directory.default_head.clone(), version: 0 },
        declared_default: String::new(),
        previous_defaults: Vec::new(),
        heads: BTreeMap::new(),
        made_for: None,
    });
    let mut declaring = Declaring { directory, files, manifest, texts: HashMap::new(), published: Vec::new() };
    declaring.heads()?;
    declaring.default_head()?;
    let Declaring { mut manifest, published, .. } = declaring;
    let before = previous.map(|previous| previous.default.clone());
    if published.is_empty()
        && previous.is_some_and(|previous| {
            (&previous.default, &previous.declared_default) == (&manifest.default, &manifest.declared_default)
        })
    {
        return Ok((manifest, None));
    }
    if let Some(previous) = previous.filter(|previous| previous.default != manifest.default) {
        manifest.previous_defaults.extend(previous.as_previous_default());
    }
    let after = manifest.default.clone();
    Ok((manifest, Some(Change::Imported { published, before, after })))
}

/// A manifest to which a model directory is added.
struct Declaring<'a> {
    directory: &'a ModelDirectory,
    files: &'a BTreeMap<String, DeclaredFile>,
    manifest: Manifest,
    /// What is declared of each head that has been looked at.
    texts: HashMap<&'a str, String>,
    /// The new versions.
    published: Vec<HeadId>,
}

impl<'a> Declaring<'a> {
    /// A base comes before what derives from it; whatever is left after a round without progress derives from itself.
    fn heads(&mut self) -> Result<(), LoadError> {
        let mut waiting: Vec<&'a str> = self.directory.heads.keys().map(String::as_str).collect();
        while let Some(&first) = waiting.first() {
            let mut still_waiting = Vec::new();
            for &name in &waiting {
                if !self.head(name)? {
                    still_waiting.push(name);
                }
            }
            if still_waiting.len() == waiting.len() {
                return Err(LoadError::Circle { head: first.to_owned() });
            }
            waiting = still_waiting;
        }
        Ok(())
    }

    /// Declares one head; `false` while its base is not declared.
    fn head(&mut self, name: &'a str) -> Result<bool, LoadError> {
        let Some(text) = self.text(name) else { return Ok(false) };
        let declared = self.manifest.declared(name);
        let series = self.manifest.heads.get_mut(name).filter(|series| series.declared.as_ref() == Some(&text));
        self.texts.insert(name, text);
        if let Some(series) = series {
            // Of a state in which it does not stand yet.
            series.declared_version = series.declared_version.or(declared.map(|id| id.version));
            return Ok(true);
        }
        let published = self.publish(name)?;
        // Whoever changes the file of the default head wants the new one to answer.
        if declared.as_ref() == Some(&self.manifest.default) {
            self.manifest.default = published;
        }
        Ok(true)
    }

    /// A changed default is activated.
    fn default_head(&mut self) -> Result<(), LoadError> {
        let name = &self.directory.default_head;
        if self.manifest.declared_default != *name {
            self.manifest.declared_default.clone_from(name);
            self.manifest.default = self.declared(name)?;
        }
        Ok(())
    }

    /// The version that the declaration of a head has made: the latest may be somebody else's. One that was deleted, and is
    /// needed now, is published again.
    fn declared(&mut self, name: &str) -> Result<HeadId, LoadError> {
        self.manifest.declared(name).map_or_else(|| self.publish(name), Ok)
    }

    /// Makes the next version of what is declared.
    fn publish(&mut self, name: &str) -> Result<HeadId, LoadError> {
        let (source, settings) = self.source(name)?;
        let series = self
            .manifest
            .heads
            .entry(name.to_owned())
            .or_insert_with(|| ManifestSeries { next_version: 1, ..ManifestSeries::default() });
        let version = series.next_version;
        series.versions.push(ManifestVersion { version, source, settings });
        series.next_version += 1;
        series.declared = self.texts.get(name).cloned();
        series.declared_version = Some(version);
        let id = HeadId { head: name.to_owned(), version };
        self.published.push(id.clone());
        Ok(id)
    }

    /// What is declared of a head, to be compared with the last time; `None` while its base is not declared.
    fn text(&self, name: &str) -> Option<String> {
        let HeadDeclaration { origin, settings } = self.directory.heads.get(name)?;
        match origin {
            HeadOrigin::Derived { kind, base } => {
                let of_base = self.texts.get(base.as_str())?;
                Some(format!("{kind} of {base} ({of_base}) {settings:?}"))
            }
            HeadOrigin::File(_) | HeadOrigin::Classifier => {
                Some(format!("file {} {settings:?}", self.files.get(name)?.parsed.digest.to_hex()))
            }
        }
    }

    /// Where a version of a declared head comes from, and the settings that it starts with.
    fn source(&mut self, name: &str) -> Result<(HeadSource, Settings), LoadError> {
        let version = self.manifest.heads.get(name).map_or(1, |series| series.next_version);
        let head_error =
            |error: SettingsError| LoadError::Head { head: name.to_owned(), version, source: error.into() };
        let circle = || LoadError::Circle { head: name.to_owned() };
        let HeadDeclaration { origin, settings } = self.directory.heads.get(name).ok_or_else(circle)?;
        match origin {
            HeadOrigin::Derived { kind, base } => {
                let initial = Settings::default_of(*kind).with(*settings, *kind).map_err(head_error)?;
                let spec = DerivedSpec { kind: *kind, base: self.declared(base)?, initial };
                Ok((HeadSource::Derived(spec), initial))
            }
            HeadOrigin::File(_) | HeadOrigin::Classifier => {
                let file = &self.files.get(name).ok_or_else(circle)?.parsed;
                let settings = file.head.initial_settings().with(*settings, file.head.kind()).map_err(head_error)?;
                Ok((HeadSource::File(file.digest.to_hex()), settings))
            }
        }
    }
}
