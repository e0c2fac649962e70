//! Who changed what when: read from the generations, and from what lies beside them.
//!
//! ```text
//! STORE/models/NAME/generations/N.json              a change of heads, settings or default, and what it made of them
//! STORE/models/NAME/events/MILLISECONDS-ID.json     a change of feature sets or fits; ID is of its content's SHA-256
//! STORE/models/NAME/history/FIRST-LAST-SHA256.jsonl the changes of generations whose manifests were removed
//! ```
//!
//! Nothing of it is ever written again, and nothing is removed but manifests, whose changes are kept.

use std::{cmp::Reverse, collections::BTreeMap};

use chrono::{DateTime, Utc};

use super::{AuditEntry, Author, Change, Model, RegistryError, StateError, edit::now, store::ModelStore};
use crate::heads::Digest;

/// Hexadecimal digits of a digest that tell events of one millisecond apart.
const ID_DIGITS: usize = 16;
/// Digits of the milliseconds since 1970 in names and cursors: they sort as text.
const TIME_DIGITS: usize = 15;

/// Where an entry stands among all: entries sort by it, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct AuditCursor(String);

impl AuditCursor {
    fn of(model: &str, time: Option<DateTime<Utc>>, tie: &str) -> Self {
        let time = time.map_or(0, |time| time.timestamp_millis().max(0));
        Self(format!("{time:0TIME_DIGITS$}-{model}-{tie}"))
    }

    fn of_generation(entry: &AuditEntry) -> Self {
        // A letter after every digit of an id: at equal times a generation comes after what made it.
        Self::of(&entry.model, entry.time, &format!("g{:020}", entry.generation.unwrap_or(0)))
    }

    /// Reads what [`Display`](std::fmt::Display) wrote.
    pub fn parse(text: &str) -> Option<Self> {
        let (time, rest) = text.split_once('-')?;
        let is_one = time.len() == TIME_DIGITS && time.bytes().all(|byte| byte.is_ascii_digit()) && rest.contains('-');
        is_one.then(|| Self(text.to_owned()))
    }
}

impl std::fmt::Display for AuditCursor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Some entries of the audit, the newest first.
#[derive(Debug)]
pub struct AuditPage {
    /// The entries.
    pub entries: Vec<AuditEntry>,
    /// What the next page begins before; `None` if there is none.
    pub next: Option<AuditCursor>,
}

/// The newest changes of some models that come before a place, at most `limit`.
///
/// # Errors
/// [`RegistryError::State`] if they cannot be read.
pub fn audit(
    models: &[std::sync::Arc<Model>],
    before: Option<&AuditCursor>,
    limit: usize,
) -> Result<AuditPage, RegistryError> {
    let mut found = Vec::new();
    for model in models {
        if let Some(store) = &model.store {
            // One more than is wanted: there is a next page, or not.
            let entries = store.audit(before, limit.saturating_add(1));
            found.extend(entries.map_err(|error| store.of_a_read(error))?);
        }
    }
    found.sort_by(|(a, _), (b, _)| b.cmp(a));
    let has_more = found.len() > limit;
    found.truncate(limit);
    let next = found.last().filter(|_| has_more).map(|(cursor, _)| cursor.clone());
    Ok(AuditPage { entries: found.into_iter().map(|(_, entry)| entry).collect(), next })
}

impl Model {
    /// Writes down a change that makes no generation. It has been made: if this fails the log says so.
    pub fn record(&self, author: &Author, change: Change) {
        tracing::info!(model = self.name(), author = author.name(), ?change, "{change}");
        let Some(store) = &self.store else { return };
        let entry = AuditEntry {
            model: self.name().to_owned(),
            generation: None,
            parent: None,
            author: Some(author.clone()),
            time: Some(now()),
            change: Some(change),
        };
        if let Err(error) = store.write_event(&entry) {
            tracing::error!(model = self.name(), %error, ?entry, "a change is missing in the audit: {error}");
        }
    }
}

impl ModelStore {
    fn write_event(&self, entry: &AuditEntry) -> Result<(), StateError> {
        let json = |error| StateError::Io { path: "an event".into(), source: std::io::Error::other(error) };
        let bytes = serde_json::to_vec(entry).map_err(json)?;
        let id = Digest::of(&bytes).to_hex();
        let time = entry.time.map_or(0, |time| time.timestamp_millis().max(0));
        let path = format!("{}/events/{time:0TIME_DIGITS$}-{}.json", self.folder, &id[..ID_DIGITS]);
        // Equal bytes of one millisecond are one event.
        self.objects.create(&path, bytes.into()).map(|_| ())
    }

    /// The newest entries before a place, in no order.
    fn audit(&self, before: Option<&AuditCursor>, limit: usize) -> Result<Vec<(AuditCursor, AuditEntry)>, StateError> {
        let mut found = self.audit_of_events(before, limit)?;
        let mut generations: BTreeMap<Reverse<AuditCursor>, AuditEntry> = BTreeMap::new();
        let mut kept = self.generations()?;
        let is_before = |cursor: &AuditCursor| before.is_none_or(|before| cursor < before);
        if before.is_some() {
            kept.truncate(self.first_not_before(&kept, &is_before)?);
        }
        for &generation in kept.iter().rev() {
            if generations.len() == limit {
                break;
            }
            // One that cannot be read is none.
            if let Some(entry) = self.entry_of(generation)? {
                generations.insert(Reverse(AuditCursor::of_generation(&entry)), entry);
            }
        }
        self.add_removed(&mut generations, limit, &is_before)?;
        found.extend(generations.into_iter().map(|(Reverse(cursor), entry)| (cursor, entry)));
        Ok(found)
    }

    /// The entry of a generation; `None` if its manifest is damaged or gone, which was said when it was found.
    fn entry_of(&self, generation: u64) -> Result<Option<AuditEntry>, StateError> {
        match self.manifest(generation) {
            Ok(manifest) => Ok(manifest.map(|manifest| manifest.audit_entry())),
            Err(StateError::Damaged { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// How many of these generations come before a place. Their order is that of their times, so that few need to be read.
    fn first_not_before(&self, all: &[u64], is_before: &impl Fn(&AuditCursor) -> bool) -> Result<usize, StateError> {
        let mut generations = all.to_vec();
        let (mut low, mut high) = (0, generations.len());
        while low < high {
            let middle = low + (high - low) / 2;
            match self.entry_of(generations[middle])? {
                Some(entry) if is_before(&AuditCursor::of_generation(&entry)) => low = middle + 1,
                Some(_) => high = middle,
                // One that cannot be read tells nothing.
                None => {
                    generations.remove(middle);
                    high -= 1;
                }
            }
        }
        Ok(generations.get(low).map_or(all.len(), |&generation| all.partition_point(|&other| other < generation)))
    }

    fn audit_of_events(
        &self,
        before: Option<&AuditCursor>,
        limit: usize,
    ) -> Result<Vec<(AuditCursor, AuditEntry)>, StateError> {
        let model = self.folder.rsplit('/').next().unwrap_or_default();
        let cursor = |name: &str| {
            let (time, id) = name.strip_suffix(".json")?.split_once('-')?;
            (time.len() == TIME_DIGITS).then(|| AuditCursor(format!("{time}-{model}-{id}")))
        };
        let listed = self.objects.list(&format!("{}/events", self.folder))?;
        let mut named: Vec<(AuditCursor, String)> = listed
            .into_iter()
            .filter_map(|object| Some((cursor(&object.name)?, object.name)))
            .filter(|(cursor, _)| before.is_none_or(|before| cursor < before))
            .collect();
        named.sort();
        let mut found = Vec::new();
        for (cursor, name) in named.into_iter().rev() {
            if found.len() == limit {
                break;
            }
            let path = format!("{}/events/{name}", self.folder);
            let Some(bytes) = self.objects.get(&path)? else { continue };
            let is_whole = name.contains(&Digest::of(&bytes).to_hex()[..ID_DIGITS]);
            match serde_json::from_slice(&bytes) {
                Ok(entry) if is_whole => found.push((cursor, entry)),
                _ => tracing::error!("{} is damaged: it is not what was written", self.objects.name(&path)),
            }
        }
        Ok(found)
    }

    /// Adds the newest changes before a place of generations whose manifests were removed, as long as there are not `limit`.
    ///
    /// The same change may be there twice: a clean-up that was interrupted has written it down, and its manifest is still
    /// there; or the next clean-up has written it down again.
    fn add_removed(
        &self,
        found: &mut BTreeMap<Reverse<AuditCursor>, AuditEntry>,
        limit: usize,
        is_before: &impl Fn(&AuditCursor) -> bool,
    ) -> Result<(), StateError> {
        if found.len() >= limit {
            return Ok(());
        }
        let folder = format!("{}/history", self.folder);
        for object in self.objects.list(&folder)?.into_iter().rev() {
            let path = format!("{folder}/{}", object.name);
            let Some(bytes) = self.objects.get(&path)? else { continue };
            let Some(entries) = read_history(&object.name, &bytes) else {
                tracing::error!("{} is damaged: it is not what was written", self.objects.name(&path));
                continue;
            };
            for entry in entries.into_iter().rev() {
                let cursor = AuditCursor::of_generation(&entry);
                if is_before(&cursor) {
                    found.insert(Reverse(cursor), entry);
                }
                if found.len() == limit {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// The name and the bytes of the history of some generations, in ascending order.
pub(super) fn history_file(entries: &[AuditEntry]) -> serde_json::Result<(String, Vec<u8>)> {
    let mut bytes = Vec::new();
    for entry in entries {
        serde_json::to_writer(&mut bytes, entry)?;
        bytes.push(b'\n');
    }
    let generation = |entry: Option<&AuditEntry>| entry.and_then(|entry| entry.generation).unwrap_or(0);
    let (first, last) = (generation(entries.first()), generation(entries.last()));
    Ok((format!("{first:011}-{last:011}-{}.jsonl", Digest::of(&bytes).to_hex()), bytes))
}

/// The entries of such a file; `None` if it is not what its name says.
pub(super) fn read_history(name: &str, bytes: &[u8]) -> Option<Vec<AuditEntry>> {
    let digest = name.strip_suffix(".jsonl")?.rsplit('-').next()?;
    if Digest::of(bytes).to_hex() != digest {
        return None;
    }
    let lines = bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
    lines.map(|line| serde_json::from_slice(line).ok()).collect()
}
