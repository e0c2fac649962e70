//! Servers that end at each write of what they do, and at each moment of it. What they leave is the state before or the state
//! after, never another one, and the next server goes on from there.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use equipoise::{
    heads::{Digest, HeadKind, Settings, SettingsPatch},
    registry::{AuditEntry, Author, Change, Gc, GcOptions, HeadId, HeadSource, Model, PreviousDefault, RegistryError},
};
use object_store::path::Path as Key;

use super::{
    edit,
    mortal::{Moment, Mortal, Write},
    place::{Place, audit_in_pages, patch, publish, share},
};
use crate::{app::copy_of_icons30, http::head_file};

/// Its generations and head files.
fn objects(place: &Place) -> Vec<Key> {
    ["models/icons30/generations", "models/icons30/blobs"].map(|folder| place.keys(folder)).concat()
}

/// Files that were to become objects.
fn n_staged(place: &Place) -> usize {
    let Some(folder) = &place.folder else { return 0 };
    let model = folder.path().join("models/icons30");
    let folders = ["generations", "blobs", "events", "history"].map(|name| model.join(name));
    let entries = folders.iter().filter_map(|folder| std::fs::read_dir(folder).ok()).flatten();
    entries.filter(|entry| entry.as_ref().unwrap().file_name().to_string_lossy().contains('#')).count()
}

/// All that operators see of a model.
#[derive(Clone, Debug, PartialEq)]
struct Seen {
    generation: u64,
    default: HeadId,
    declared_default: String,
    previous_defaults: Vec<PreviousDefault>,
    /// What was declared of each head, and the version that it gets next.
    heads: BTreeMap<String, (Option<String>, u32)>,
    versions: Vec<(HeadId, HeadSource, Settings, Digest)>,
    /// The newest first.
    audit: Vec<AuditEntry>,
}

impl Seen {
    fn of(model: &Arc<Model>) -> Self {
        let state = model.state();
        let audit = audit_in_pages(model, 1000);
        assert!(audit.is_sorted_by(|a, b| a.time >= b.time), "{audit:#?}");
        Self {
            generation: state.generation,
            default: state.default.clone(),
            declared_default: state.declared_default.clone(),
            previous_defaults: state.previous_defaults.clone(),
            heads: state
                .heads
                .iter()
                .map(|(name, series)| (name.clone(), (series.declared.clone(), series.next_version)))
                .collect(),
            versions: state
                .versions()
                .map(|head| (head.id.clone(), head.source.clone(), head.settings, head.head.weights().digest()))
                .collect(),
            audit,
        }
    }

    /// The same made at another time.
    fn at_any_time(&self) -> Self {
        let audit = self.audit.iter().map(|entry| AuditEntry { time: None, ..entry.clone() }).collect();
        Self { audit, ..self.clone() }
    }
}

/// What may be interrupted. Says whether it was told as done.
type Act = Box<dyn FnOnce() -> bool>;

/// An end that came, and the place that it left.
struct Ended {
    what: String,
    place: Place,
    has_written_all: bool,
    moment: Moment,
}

/// Lets an act end at each of its writes, at each moment of it, on a copy of `base` each time; gives the place where it did
/// not end, and after that every end. `begin` gets ready, and its result is the act.
fn end_everywhere(what: &str, base: &Place, begin: impl Fn(Mortal) -> Act, mut examine: impl FnMut(&Place, Ended)) {
    let moments = if base.folder.is_some() { Moment::in_a_folder } else { Moment::in_a_bucket };
    let undisturbed = base.copy();
    let mortal = Mortal::around(&undisturbed.store);
    let act = begin(mortal.clone());
    mortal.begins();
    assert!(act(), "{what}");
    let writes: Vec<Write> = mortal.writes();
    let mut n_ends = 0;
    for (number, &write) in writes.iter().enumerate() {
        for &moment in moments(write) {
            let place = base.copy();
            let mortal = Mortal::around(&place.store);
            let act = begin(mortal.clone());
            mortal.ends_at(number, moment);
            // Nobody hears whether it was done.
            act();
            assert!(mortal.is_dead() && mortal.writes() == writes[..=number], "{what}: {:?}", mortal.writes());
            n_ends += 1;
            let has_written_all = number + 1 == writes.len() && moment.has_written();
            let what = format!("{what}, ended at write {number} ({write:?}), {moment:?}");
            examine(&undisturbed, Ended { what, place, has_written_all, moment });
        }
    }
    eprintln!("{what}: {n_ends} ends at {writes:?}");
    assert!(!writes.is_empty() && n_ends >= 2 * writes.len(), "{what}: {n_ends} ends, {writes:?}");
}

fn derive(model: &Model) -> Result<(), RegistryError> {
    let settings = SettingsPatch { tau: Some(0.3), ..SettingsPatch::default() };
    model.publish_derived(&edit(), "soft", HeadKind::TauNorm, ("joint", None), settings).map(drop)
}

fn upload(model: &Model) {
    let (id, name, digest) = ("fs_0123456789abcdef".to_owned(), "train".to_owned(), "0123456789abcdef".repeat(4));
    model.record(&Author::new("somebody"), Change::FeatureSetUploaded { id, name, digest });
}

/// A place where every kind of change can be made.
fn lived_in(place: Place) -> Place {
    let model = &place.serve().model;
    publish(model, 1).unwrap();
    publish(model, 2).unwrap();
    derive(model).unwrap();
    model.activate(&edit(), "tau", None).unwrap();
    patch(model, 0.25).unwrap();
    model.activate(&edit(), "crt", None).unwrap();
    upload(model);
    place
}

/// Holds what the next server finds against what must be, and lets it go on from there.
fn go_on(Ended { what, place, moment, .. }: Ended, before: Option<&Seen>, expected: &Seen, left: &[Key]) {
    let leaves_a_file = place.folder.is_some() && matches!(moment, Moment::Half | Moment::Whole | Moment::Linked);
    assert_eq!(n_staged(&place), usize::from(leaves_a_file), "{what}");
    // What starts may still share it; what had made changes is followed by a server that has the folder to itself.
    let is_alone = before.is_some();
    let model = if is_alone { place.serve_alone() } else { place.serve() }.model;
    let found = Seen::of(&model);
    assert_eq!(found.at_any_time(), expected.at_any_time(), "{what}");
    assert!(before.is_none_or(|before| found.audit.ends_with(&before.audit)), "{what}");
    if is_alone {
        assert_eq!(n_staged(&place), 0, "{what}");
    }
    // A head file that nobody came to name goes, and nothing else.
    place.clean_up(usize::MAX);
    assert_eq!(objects(&place), left, "{what}");
    // What was interrupted can be done again.
    publish(&model, 9).unwrap();
    patch(&model, 0.9).unwrap();
    let next = Seen::of(&model);
    assert_eq!((next.generation, &next.audit[2..]), (found.generation + 2, &found.audit[..]), "{what}");
}

type Make = fn(&Model) -> Result<(), RegistryError>;

const CHANGES: [(&str, Make); 8] = [
    ("publish a head file", |model| publish(model, 9)),
    ("publish a known head file", |model| publish(model, 1)),
    ("publish a derived head", derive),
    ("patch tau", |model| patch(model, 0.5)),
    ("activate", |model| model.activate(&edit(), "mine", None).map(drop)),
    ("roll back", |model| model.roll_back(&edit()).map(drop)),
    ("delete a version", |model| model.delete(&edit(), "mine", Some(1)).map(drop)),
    ("upload a feature set", |model| {
        upload(model);
        Ok(())
    }),
];

fn check_changes(base: &Place) {
    let before = Seen::of(&base.serve().model);
    let left = objects(base);
    for (what, change) in CHANGES {
        let begin = |mortal: Mortal| -> Act {
            let server = share(Arc::new(mortal), &base.directory).unwrap();
            Box::new(move || change(&server.model).is_ok())
        };
        let mut after = None;
        end_everywhere(what, base, begin, |undisturbed, ended| {
            let after = after.get_or_insert_with(|| Seen::of(&undisturbed.serve().model));
            assert_ne!(*after, before);
            // What makes a change is its last write.
            match ended.has_written_all {
                true => go_on(ended, Some(&before), after, &objects(undisturbed)),
                false => go_on(ended, Some(&before), &before, &left),
            }
        });
    }
}

#[test]
fn a_change_that_ends_in_a_folder_was_made_or_was_not() {
    check_changes(&lived_in(Place::folder()));
}

#[test]
fn a_change_that_ends_in_a_bucket_was_made_or_was_not() {
    check_changes(&lived_in(Place::bucket()));
}

/// A start writes head files and a generation; the next one makes of it what one that did not end has made.
fn check_start(what: &str, base: &Place) {
    let directory = base.directory.clone();
    let begin = |mortal: Mortal| -> Act {
        let directory = directory.clone();
        Box::new(move || share(Arc::new(mortal), &directory).is_ok())
    };
    let mut after = None;
    end_everywhere(what, base, begin, |undisturbed, ended| {
        let after = after.get_or_insert_with(|| Seen::of(&undisturbed.serve().model));
        go_on(ended, None, after, &objects(undisturbed));
    });
}

#[test]
fn a_first_start_that_ends_is_begun_again() {
    check_start("the first start", &Place::folder());
}

#[test]
fn a_start_that_ends_while_it_adds_a_head_is_begun_again() {
    let copy = copy_of_icons30();
    let mut base = lived_in(Place::folder());
    std::fs::write(copy.path().join("heads/joint.safetensors"), head_file(3, None)).unwrap();
    base.directory = copy.path().to_owned();
    check_start("a start with a new head", &base);
}

#[test]
fn a_clean_up_that_ends_has_taken_nothing_that_is_needed() {
    let base = lived_in(Place::folder());
    let model = base.serve().model;
    model.delete(&edit(), "mine", Some(1)).unwrap();
    patch(&model, 0.75).unwrap();
    base.put(&Key::from(format!("models/icons30/blobs/{}", "0".repeat(64))), "of no state");
    let before = Seen::of(&model);
    let begin = |mortal: Mortal| -> Act {
        let gc = Gc::of_store(Arc::new(mortal), "store:", Duration::ZERO).unwrap();
        Box::new(move || gc.run(GcOptions { keep_generations: 2, is_dry_run: false }).is_ok())
    };
    end_everywhere("clean up", &base, begin, |undisturbed, Ended { what, place, .. }| {
        let model = place.serve().model;
        assert_eq!(Seen::of(&model), before, "{what}");
        // Meanwhile a change is made; then the clean-up is run again.
        patch(&model, 0.9).unwrap();
        let next = Seen::of(&model);
        for keep_generations in [3, 1] {
            // What was written down twice is told once, and ends no page early.
            assert_eq!(audit_in_pages(&model, 1), next.audit, "{what}");
            place.clean_up(keep_generations);
            assert_eq!(place.keys("models/icons30/blobs"), undisturbed.keys("models/icons30/blobs"), "{what}");
            assert_eq!(place.keys("models/icons30/generations").len(), keep_generations, "{what}");
        }
        assert_eq!(audit_in_pages(&model, 1), next.audit, "{what}");
        assert_eq!(Seen::of(&place.serve().model), next, "{what}");
    });
}
