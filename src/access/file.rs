//! The file of tokens: `[[token]]` with a name, a role and the digest of the token.

use std::{
    io::{self, Read, Seek, Write},
    path::{Path, PathBuf},
    sync::Arc,
};

use serde::Deserialize;

use super::{ADMIN, KnownToken, Role};
use crate::{
    files::FileUnreadable,
    heads::Digest,
    registry::{Author, is_valid_name},
};

/// What is wrong with a file of tokens.
#[derive(Debug, thiserror::Error)]
pub enum TokenFileError {
    /// It cannot be read or written.
    #[error(transparent)]
    File(#[from] FileUnreadable),
    /// It is not UTF-8.
    #[error("{path}: it is not UTF-8 text", path = path.display())]
    NotText {
        /// The file.
        path: PathBuf,
    },
    /// It is no TOML, or has other keys or values. What stands there is not repeated: it may be a token.
    #[error("{path}: line {line}: a file of tokens is TOML, of `[[token]]` with `name`, `role` and `sha256` in quotes", path = path.display())]
    Toml {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: usize,
    },
    /// A token with a wrong value.
    #[error("{path}: token {number} (`{name}`): {problem}", path = path.display())]
    Token {
        /// The file.
        path: PathBuf,
        /// Which of them, from 1.
        number: usize,
        /// Its name.
        name: String,
        /// What is wrong.
        problem: &'static str,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenFile {
    #[serde(default)]
    token: Vec<TokenEntry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TokenEntry {
    name: String,
    role: String,
    sha256: String,
}

/// The tokens of a file.
pub(super) fn read_tokens(paths: &[PathBuf], contents: &[Vec<u8>]) -> Result<Vec<KnownToken>, TokenFileError> {
    let mut tokens = Vec::new();
    for (path, content) in paths.iter().zip(contents) {
        tokens.extend(parse(path, content)?);
    }
    Ok(tokens)
}

fn parse(path: &Path, content: &[u8]) -> Result<Vec<KnownToken>, TokenFileError> {
    let text = std::str::from_utf8(content).map_err(|_| TokenFileError::NotText { path: path.to_owned() })?;
    let file: TokenFile = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start)).unwrap_or_default();
        TokenFileError::Toml { path: path.to_owned(), line: before.matches('\n').count() + 1 }
    })?;
    let mut tokens: Vec<KnownToken> = Vec::with_capacity(file.token.len());
    for (index, TokenEntry { name, role, sha256 }) in file.token.into_iter().enumerate() {
        let digest = Digest::from_hex(&sha256);
        let problem = match (&digest, role.parse::<Role>()) {
            _ if !is_valid_name(&name) => "a name has 1 to 64 of letters, digits, `.`, `_` and `-`",
            _ if name == ADMIN => "`admin` is the name of the token that every server has",
            _ if name == Author::SERVER => "`server` is what the audit calls the server itself",
            _ if tokens.iter().any(|token| *token.name == *name) => "two tokens have this name",
            (_, Err(_)) => "`role` is one of predict, operate and admin",
            (None, _) => "`sha256` is the token's SHA-256 in 64 hexadecimal digits",
            (Some(digest), _) if tokens.iter().any(|token| token.digest == *digest) => "two names have this token",
            (Some(digest), Ok(role)) => {
                tokens.push(KnownToken { name: Arc::from(name), role, digest: *digest });
                continue;
            }
        };
        return Err(TokenFileError::Token { path: path.to_owned(), number: index + 1, name, problem });
    }
    Ok(tokens)
}

/// A token that was made now.
pub struct NewToken {
    /// The token, for its bearer. It is kept nowhere.
    pub token: String,
    /// What the file of tokens needs of it.
    pub block: String,
}

/// Makes a token of 256 random bits for `name`.
///
/// # Errors
/// If the system has no randomness.
pub fn new_token(name: &str, role: Role) -> io::Result<NewToken> {
    let mut random = [0; 32];
    getrandom::fill(&mut random).map_err(|error| io::Error::other(error.to_string()))?;
    let token = format!("eq_{}", Digest::of(&random).to_hex());
    let digest = Digest::of(token.as_bytes()).to_hex();
    let block = format!("[[token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{digest}\"\n");
    Ok(NewToken { token, block })
}

/// Adds `block` at the end of the file at `path`, which is made, readable by its owner alone, if it is not there. A file
/// that would not be taken as a whole is left as it is.
///
/// # Errors
/// [`TokenFileError`]: the file cannot be read or written, or is wrong, or has this name already.
pub fn append_token(path: &Path, block: &str) -> Result<(), TokenFileError> {
    let io_error = |source: io::Error| FileUnreadable { path: path.to_owned(), source };
    // What no server takes makes no file.
    parse(path, block.as_bytes())?;
    let mut options = std::fs::File::options();
    options.read(true).append(true).create(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(io_error)?;
    // Two that append at once come one after the other.
    file.lock().map_err(io_error)?;
    let mut before = Vec::new();
    file.rewind().and_then(|()| file.read_to_end(&mut before)).map_err(io_error)?;
    let between = match before.as_slice() {
        [] => "",
        [.., b'\n'] => "\n",
        _ => "\n\n",
    };
    let addition = format!("{between}{block}");
    parse(path, &[&before, addition.as_bytes()].concat())?;
    // In one write, so that a server that looks now sees all of it or nothing.
    file.write_all(addition.as_bytes()).and_then(|()| file.sync_all()).map_err(io_error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(text: &str, expected: Result<&[(&str, Role)], &str>) {
        let parsed = parse(Path::new("t.toml"), text.as_bytes());
        match (parsed, expected) {
            (Ok(tokens), Ok(expected)) => {
                let found: Vec<(&str, Role)> = tokens.iter().map(|token| (&*token.name, token.role)).collect();
                assert_eq!(found, expected, "{text}");
            }
            (Err(error), Err(expected)) => {
                let error = error.to_string();
                assert!(error.contains("t.toml") && error.contains(expected), "{error}");
            }
            (parsed, _) => panic!("{text}: {parsed:?}"),
        }
    }

    fn block(name: &str, role: &str, sha256: &str) -> String {
        format!("[[token]]\nname = \"{name}\"\nrole = \"{role}\"\nsha256 = \"{sha256}\"\n")
    }

    #[test]
    fn a_file_is_taken_as_a_whole_or_not_at_all() {
        let (a, b) = ("a".repeat(64), "B".repeat(64));
        check("", Ok(&[]));
        check(
            &(block("x", "predict", &a) + &block("y", "operate", &b)),
            Ok(&[("x", Role::Predict), ("y", Role::Operate)]),
        );
        check(
            &(block("x", "predict", &a) + &block("x", "operate", &b)),
            Err("token 2 (`x`): two tokens have this name"),
        );
        check(&(block("x", "predict", &a) + &block("y", "operate", &a)), Err("two names have this token"));
        check(&block("admin", "predict", &a), Err("every server has"));
        check(&block("", "predict", &a), Err("letters"));
        check(&block("x", "root", &a), Err("predict, operate and admin"));
        check(&block("x", "predict", &a[1..]), Err("64"));
        check(&block("x", "predict", &format!("g{}", &a[1..])), Err("64"));
        check(&(block("x", "predict", &a) + "token = \"secret\"\n"), Err("line 5"));
        check("[[tokens]]\n", Err("line 1"));
        check("\nname = ", Err("line 2"));
    }

    #[test]
    fn what_may_be_a_token_is_not_repeated() {
        for text in ["token = \"secret\"", "[[token]]\nname = \"secret", "[[token]]\nsecret = 1", "secret"] {
            let error = parse(Path::new("t.toml"), text.as_bytes()).unwrap_err();
            assert!(!format!("{error} {error:?}").contains("secret"), "{error:?}");
        }
    }

    #[test]
    fn tokens_are_appended_to_a_file_of_the_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("tokens.toml");
        let first = new_token("one", Role::Predict).unwrap();
        append_token(&path, &first.block).unwrap();
        append_token(&path, &new_token("two", Role::Admin).unwrap().block).unwrap();
        let before = std::fs::read(&path).unwrap();
        assert!(append_token(&path, &new_token("one", Role::Admin).unwrap().block).is_err());
        assert_eq!(std::fs::read(&path).unwrap(), before);
        assert!(!String::from_utf8(before.clone()).unwrap().contains(&first.token));
        let tokens = parse(&path, &before).unwrap();
        assert_eq!(tokens.len(), 2);
        assert_eq!(tokens[0].digest, Digest::of(first.token.as_bytes()));
        let fresh = folder.path().join("fresh.toml");
        assert!(append_token(&fresh, &new_token(Author::SERVER, Role::Predict).unwrap().block).is_err());
        assert!(!fresh.exists());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        }
    }
}
