//! What a model directory adds to what was served before.

use std::collections::{BTreeMap, HashMap};

use super::{
    Change, DerivedSpec, HeadId, HeadOrigin, HeadSource, LoadError, ModelDirectory, RegistryError,
    load::DeclaredFile,
    manifest::{Manifest, ManifestSeries, ManifestVersion},
};
use crate::heads::Settings;

/// What is to be served: what was served before, and as a new version each head whose declaration is new. Also says what of
/// it is new, if anything is.
pub(super) fn declare(
    directory: &ModelDirectory,
    files: &BTreeMap<String, DeclaredFile>,
    previous: Option<&Manifest>,
) -> Result<(Manifest, Option<Change>), LoadError> {
    let mut manifest = previous.cloned().unwrap_or_else(|| Manifest {
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
    });
    let mut published = Vec::new();
    let mut declarations: HashMap<&str, String> = HashMap::new();
    // A base comes before what derives from it; whatever is left after a round without progress derives from itself.
    let mut waiting: Vec<&String> = directory.heads.keys().collect();
    while !waiting.is_empty() {
        let n_before = waiting.len();
        let mut failed = None;
        waiting.retain(|name| match declare_one(directory, name, files, &mut declarations, &mut manifest) {
            Ok(Declared::Waits) => true,
            Ok(Declared::Known) => false,
            Ok(Declared::New(id)) => {
                published.push(id);
                false
            }
            Err(error) => {
                failed.get_or_insert(error);
                true
            }
        });
        if let Some(error) = failed {
            return Err(error);
        }
        if let (true, Some(head)) = (waiting.len() == n_before, waiting.first()) {
            return Err(LoadError::Circle { head: (*head).clone() });
        }
    }
    if manifest.declared_default != directory.default_head {
        manifest.declared_default.clone_from(&directory.default_head);
        manifest.default = latest(&manifest, &directory.default_head);
    }
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

/// What became of a declaration.
enum Declared {
    /// Its base has not been declared yet.
    Waits,
    /// It is the same as the last time.
    Known,
    /// It is a new version.
    New(HeadId),
}

/// Declares one head in `manifest`.
fn declare_one<'a>(
    directory: &'a ModelDirectory,
    name: &'a str,
    files: &BTreeMap<String, DeclaredFile>,
    declarations: &mut HashMap<&'a str, String>,
    manifest: &mut Manifest,
) -> Result<Declared, LoadError> {
    let Some(declaration) = directory.heads.get(name) else { return Ok(Declared::Known) };
    let wanted = &declaration.settings;
    let head_error = |source: RegistryError| LoadError::Head { head: name.to_owned(), version: 1, source };
    let (source, declared, settings) = match &declaration.origin {
        HeadOrigin::Derived { kind, base } => {
            let Some(of_base) = declarations.get(base.as_str()) else { return Ok(Declared::Waits) };
            let declared = format!("{kind} of {base} ({of_base}) {wanted:?}");
            let initial = Settings::default_of(*kind).with(*wanted, *kind).map_err(|error| head_error(error.into()))?;
            let spec = DerivedSpec { kind: *kind, base: latest(manifest, base), initial };
            (HeadSource::Derived(spec), declared, initial)
        }
        HeadOrigin::File(_) | HeadOrigin::Classifier => {
            let Some(file) = files.get(name) else { return Ok(Declared::Known) };
            let digest = file.parsed.digest.to_hex();
            let head = &file.parsed.head;
            let settings =
                head.initial_settings().with(*wanted, head.kind()).map_err(|error| head_error(error.into()))?;
            (HeadSource::File(digest.clone()), format!("file {digest} {wanted:?}"), settings)
        }
    };
    declarations.insert(name, declared.clone());
    let was_latest = manifest.default == latest(manifest, name);
    let series = manifest.heads.entry(name.to_owned()).or_insert_with(|| ManifestSeries {
        declared: None,
        next_version: 1,
        versions: Vec::new(),
    });
    if series.declared.as_ref() == Some(&declared) {
        return Ok(Declared::Known);
    }
    series.declared = Some(declared);
    let version = series.next_version;
    series.versions.push(ManifestVersion { version, source, settings });
    series.next_version += 1;
    // Whoever changes the file of the default head wants the new one to answer.
    if was_latest {
        manifest.default = latest(manifest, name);
    }
    Ok(Declared::New(HeadId { head: name.to_owned(), version }))
}

fn latest(manifest: &Manifest, name: &str) -> HeadId {
    let version = manifest.heads.get(name).and_then(|series| series.versions.last()).map_or(0, |last| last.version);
    HeadId { head: name.to_owned(), version }
}
