//! Who changes what, and what is written down of it.

use std::fmt;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};

use super::HeadId;
use crate::heads::{HeadKind, Settings};

/// Who asks for a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Author(String);

impl Author {
    /// The name of the server itself.
    pub const SERVER: &str = "server";

    /// Somebody of that name.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The server itself, whose name no token has.
    pub fn server() -> Self {
        Self::new(Self::SERVER)
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Author {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The generations at which a change may be made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum IfMatch {
    /// Whichever it is.
    #[default]
    Any,
    /// One of these.
    Generations(Vec<u64>),
}

impl IfMatch {
    /// Whether a change may be made at this generation.
    pub fn allows(&self, generation: u64) -> bool {
        match self {
            Self::Any => true,
            Self::Generations(wanted) => wanted.contains(&generation),
        }
    }
}

impl fmt::Display for IfMatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("any generation"),
            // Tags of somebody else's, or weak ones.
            Self::Generations(wanted) if wanted.is_empty() => f.write_str("a tag that no generation has"),
            Self::Generations(wanted) => {
                let wanted: Vec<String> = wanted.iter().map(u64::to_string).collect();
                write!(f, "generation {}", wanted.join(" or "))
            }
        }
    }
}

/// What stands around every change: who makes it, and at which generations it may be made.
#[derive(Clone, Debug)]
pub struct Edit {
    /// Who.
    pub author: Author,
    /// At which generations.
    pub if_match: IfMatch,
}

impl Edit {
    /// A change by that author, at any generation.
    pub fn by(author: Author) -> Self {
        Self { author, if_match: IfMatch::Any }
    }
}

/// What a change did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "action", rename_all = "snake_case", deny_unknown_fields)]
pub enum Change {
    /// The server found heads in the model directory that are new, or another default.
    Imported {
        /// The versions that came of it.
        published: Vec<HeadId>,
        /// The default before, if there was one.
        before: Option<HeadId>,
        /// The default after.
        after: HeadId,
    },
    /// Settings of a version.
    Patched {
        /// The head.
        head: String,
        /// Its version.
        version: u32,
        /// The settings before.
        before: Settings,
        /// The settings after.
        after: Settings,
    },
    /// A new version.
    Published {
        /// The head.
        head: String,
        /// Its version.
        version: u32,
        /// Its kind.
        head_kind: HeadKind,
        /// The SHA-256 of its file, in hexadecimal; of a derived head none.
        digest: Option<String>,
    },
    /// Another default.
    Activated {
        /// The default before.
        before: HeadId,
        /// The default after.
        after: HeadId,
    },
    /// Versions that are no longer served.
    Deleted {
        /// The head.
        head: String,
        /// Its versions.
        versions: Vec<u32>,
    },
    /// Back to an earlier default and its settings.
    RolledBack {
        /// The last generation at which it was the default; its settings of then are those of now.
        to_generation: u64,
        /// The default before.
        before: HeadId,
        /// The default after.
        after: HeadId,
        /// Its settings.
        settings: Settings,
    },
    /// A feature set was uploaded, or given another name.
    FeatureSetUploaded {
        /// Its id.
        id: String,
        /// Its name.
        name: String,
        /// The SHA-256 of its content, in hexadecimal.
        digest: String,
    },
    /// A feature set was deleted.
    FeatureSetDeleted {
        /// Its id.
        id: String,
    },
    /// A fit was asked for.
    FitCreated {
        /// Its id.
        id: String,
        /// The method.
        method: HeadKind,
        /// What is fitted.
        feature_set: String,
        /// The head that a publish makes of it.
        head: String,
    },
    /// A fit was cancelled.
    FitCancelled {
        /// Its id.
        id: String,
    },
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Imported { published, .. } => {
                write!(f, "took {} new heads from the model directory", published.len())
            }
            Self::Patched { head, .. } => write!(f, "changed the settings of head `{head}`"),
            Self::Published { head, version, .. } => write!(f, "published head `{head}` version {version}"),
            Self::Activated { after, .. } => write!(f, "activated head `{}` version {}", after.head, after.version),
            Self::Deleted { head, .. } => write!(f, "deleted head `{head}`"),
            Self::RolledBack { after, .. } => {
                write!(f, "rolled back to head `{}` version {}", after.head, after.version)
            }
            Self::FeatureSetUploaded { name, .. } => write!(f, "keeping feature set `{name}`"),
            Self::FeatureSetDeleted { id } => write!(f, "deleted feature set `{id}`"),
            Self::FitCreated { id, .. } => write!(f, "accepted fit `{id}`"),
            Self::FitCancelled { id } => write!(f, "asked fit `{id}` to end"),
        }
    }
}

/// A change and its circumstances, as the audit tells them.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct AuditEntry {
    /// The model.
    pub model: String,
    /// The generation that came of it; a change of feature sets or fits makes none.
    pub generation: Option<u64>,
    /// The generation before.
    pub parent: Option<u64>,
    /// Who made it. Not known of changes that were made before this was written down.
    pub author: Option<Author>,
    /// When. Of the generations of a model never earlier than the one before.
    #[serde(with = "rfc3339")]
    pub time: Option<DateTime<Utc>>,
    /// What it did.
    pub change: Option<Change>,
}

/// A time as RFC 3339 has it, always with milliseconds: it sorts as text.
pub(super) mod rfc3339 {
    use chrono::{DateTime, SecondsFormat, Utc};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(time: &Option<DateTime<Utc>>, to: S) -> Result<S::Ok, S::Error> {
        time.map(|time| time.to_rfc3339_opts(SecondsFormat::Millis, true)).serialize(to)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<DateTime<Utc>>, D::Error> {
        Option::deserialize(from)
    }
}

/// The present time, to the millisecond: what is written down is what was meant.
pub(super) fn now() -> DateTime<Utc> {
    let now = Utc::now();
    DateTime::from_timestamp_millis(now.timestamp_millis()).unwrap_or(now)
}
