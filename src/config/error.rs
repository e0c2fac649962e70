//! What can be wrong with the configuration.

use std::{net::SocketAddr, path::PathBuf};

use crate::files::FileUnreadable;

/// What is wrong with the configuration.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A file that cannot be read.
    #[error(transparent)]
    File(#[from] FileUnreadable),
    /// A file that is not what it should be.
    #[error("{path}: {source}", path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// The key, the line and what is wrong.
        source: Box<toml::de::Error>,
    },
    /// An empty token would let everybody in.
    #[error("the admin token in {place} is empty")]
    EmptyToken {
        /// Where it stands.
        place: String,
    },
    /// A token that no request can bring.
    #[error(
        "the admin token in {place} has characters that no header can: only visible ASCII characters and spaces are taken"
    )]
    UnsendableToken {
        /// Where it stands.
        place: String,
    },
    /// Something that says nothing by itself.
    #[error("`--{given}` needs `--{needed}` beside it")]
    Alone {
        /// The flag that was given.
        given: &'static str,
        /// The one that belongs to it.
        needed: &'static str,
    },
    /// A limit of one body that the limit of all would never let through.
    #[error(
        "`--{of_one}` is {bytes}, and all bodies together may take {max_bodies_bytes}: raise `--max-bodies-bytes` to that or \
         lower `--{of_one}`"
    )]
    OneOverAll {
        /// The flag of one.
        of_one: &'static str,
        /// What it says.
        bytes: usize,
        /// What all may take.
        max_bodies_bytes: usize,
    },
    /// A limit that lets nothing through.
    #[error("`--rate-limit-images-per-second` must be a number above 0, and is {value}")]
    RateLimit {
        /// What was given.
        value: f64,
    },
    /// The admin API in the open.
    #[error(
        "the admin API would be open to other machines on {address} without TLS, and its token to whoever sees the traffic: \
         give `--tls-cert` and `--tls-key`, or keep it to this machine with `--admin-listen 127.0.0.1:8001`, or accept that \
         with `--allow-insecure-admin`"
    )]
    InsecureAdmin {
        /// Where it would listen.
        address: SocketAddr,
    },
    /// No model was named, and none ships beside the executable.
    #[error("no model directory was given, and there is no models/icons30 here or beside the executable")]
    NoModel,
    /// Nowhere to keep the state.
    #[error("no --state-dir was given, and neither XDG_STATE_HOME nor HOME says where one would be")]
    NoStateDir,
}

impl ConfigError {
    /// Whether the options are at fault, and no file.
    pub fn is_wrong_usage(&self) -> bool {
        match self {
            Self::Alone { .. } | Self::OneOverAll { .. } | Self::RateLimit { .. } | Self::InsecureAdmin { .. } => true,
            Self::File(_)
            | Self::Toml { .. }
            | Self::EmptyToken { .. }
            | Self::UnsendableToken { .. }
            | Self::NoModel
            | Self::NoStateDir => false,
        }
    }
}
