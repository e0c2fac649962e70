//! Who may: tokens with roles, and how many images each caller may send.
//!
//! ```text
//! mod    the roles, and the tokens that the server knows
//! file   the file of tokens: names, roles and digests
//! rate   a bucket of images for each caller
//! ```

mod file;
mod rate;

use std::{fmt, path::PathBuf, str::FromStr, sync::Arc};

use subtle::ConstantTimeEq;

pub use file::{NewToken, TokenFileError, append_token, new_token};
pub use rate::{RateLimiter, RateRefusal, Sender};

use crate::{
    heads::Digest,
    reload::{Look, Reloaded},
};

/// The name of the one token that every server has.
pub const ADMIN: &str = "admin";

/// What a token is good for. Each role includes the smaller ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    /// To ask for predictions.
    Predict,
    /// To see everything, change settings, activate heads, upload feature sets and fit.
    Operate,
    /// To publish and delete heads.
    Admin,
}

impl Role {
    /// All of them, the smallest first.
    pub const ALL: [Self; 3] = [Self::Predict, Self::Operate, Self::Admin];

    /// Its name.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Predict => "predict",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Text that names no role.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no role: predict, operate or admin")]
pub struct NoRole(String);

impl FromStr for Role {
    type Err = NoRole;
    fn from_str(text: &str) -> Result<Self, NoRole> {
        Self::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| NoRole(text.to_owned()))
    }
}

/// A token, as far as the server knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownToken {
    /// Its bearer's name.
    pub name: Arc<str>,
    /// What it is good for.
    pub role: Role,
    /// The SHA-256 of its bytes.
    pub digest: Digest,
}

/// The tokens that the server knows: `admin`, and those of the file. Digests alone; no token is kept.
#[derive(Debug)]
pub struct Access {
    admin: KnownToken,
    file: Option<Reloaded<Vec<KnownToken>, TokenFileError>>,
}

impl Access {
    /// The token called `admin`, and those of `file`.
    ///
    /// # Errors
    /// [`TokenFileError`] names the file, and what is wrong in it.
    pub fn new(admin_token: &str, file: Option<PathBuf>) -> Result<Self, TokenFileError> {
        let digest = Digest::of(admin_token.as_bytes());
        let admin = KnownToken { name: ADMIN.into(), role: Role::Admin, digest };
        let file = file.map(|path| Reloaded::open(vec![path], file::read_tokens)).transpose()?;
        Ok(Self { admin, file })
    }

    /// The name and role of the bearer of `token`, if it is one of these.
    ///
    /// Digests of equal length are compared, all of them and each to its end: the time tells nothing of the tokens.
    pub fn bearer(&self, token: &str) -> Option<(Arc<str>, Role)> {
        let digest = Digest::of(token.as_bytes());
        let of_file = self.file.as_ref().map(Reloaded::get);
        let of_file = of_file.iter().flat_map(|tokens| tokens.iter());
        let mut found = None;
        for known in of_file.chain(std::iter::once(&self.admin)) {
            if bool::from(known.digest.as_bytes().ct_eq(digest.as_bytes())) {
                found = Some(known);
            }
        }
        found.map(|known| (Arc::clone(&known.name), known.role))
    }

    /// Reads the file again; `None` if there is none. Blocks.
    pub fn look(&self) -> Option<Look<TokenFileError>> {
        self.file.as_ref().map(Reloaded::look)
    }

    /// How many tokens are known.
    pub fn n_tokens(&self) -> usize {
        1 + self.file.as_ref().map_or(0, |file| file.get().len())
    }

    /// Whether there is a file that may change.
    pub fn has_file(&self) -> bool {
        self.file.is_some()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_role_includes_the_smaller_ones() {
        assert!(Role::Predict < Role::Operate && Role::Operate < Role::Admin);
        for role in Role::ALL {
            assert_eq!(role.as_str().parse(), Ok(role));
        }
        assert!("Admin".parse::<Role>().is_err() && "".parse::<Role>().is_err());
    }
}
