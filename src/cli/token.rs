//! `equipoise token`.

use std::{io::Write, path::PathBuf};

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::{
    access::{NewToken, Role, append_token, new_token},
    registry::{Author, is_valid_name},
};

/// Below the flags in the help.
const NOTES: &str = "\
    The token is printed once and kept nowhere; the block for the server's file of tokens (`serve --tokens-file`) has its \
    digest. With --file the block is appended to that file, which a running server notices, and the token alone goes to \
    standard output.";

#[derive(Debug, Subcommand)]
pub(super) enum TokenCommand {
    /// Make a token with a name and a role
    #[command(after_help = NOTES)]
    New(NewOptions),
}

/// What `equipoise token new` takes.
#[derive(Args, Debug)]
pub(super) struct NewOptions {
    /// Name of its bearer, at most 64 of letters, digits, `.`, `_` and `-`: it stands in the log, and limits of rate are its own
    #[arg(long, env = "EQUIPOISE_NAME", value_name = "NAME", value_parser = name)]
    name: String,

    /// What it is good for: predict (classify, features, models, metrics), operate (also see all, change settings, activate,
    /// upload, fit) or admin (also publish and delete heads)
    #[arg(long, env = "EQUIPOISE_ROLE", value_name = "ROLE")]
    role: Role,

    /// File of tokens to append the block to; it is made, readable by you alone, if it is not there
    #[arg(long, env = "EQUIPOISE_FILE", value_name = "FILE")]
    file: Option<PathBuf>,
}

fn name(text: &str) -> Result<String, String> {
    match text {
        crate::access::ADMIN => Err("`admin` is the name of the token that every server has".to_owned()),
        Author::SERVER => Err("`server` is what the audit calls the server itself".to_owned()),
        name if is_valid_name(name) => Ok(name.to_owned()),
        _ => {
            Err("a name has 1 to 64 of letters, digits, `.`, `_` and `-`, and begins with a letter or digit".to_owned())
        }
    }
}

pub(super) fn run(TokenCommand::New(options): &TokenCommand) -> anyhow::Result<()> {
    let NewToken { token, block } = new_token(&options.name, options.role).context("no randomness for a token")?;
    let mut out = std::io::stdout().lock();
    match &options.file {
        Some(path) => {
            append_token(path, &block)?;
            writeln!(out, "{token}")?;
        }
        None => write!(out, "{token}\n\n{block}")?,
    }
    Ok(())
}
