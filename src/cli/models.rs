//! `mlx-manager models`: what is on disk.

use std::io::Write;

use clap::Subcommand;

use super::Failure;
use crate::{config::Config, server::engine::catalogue::Catalogue};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the local models that requests may name
    List,
}

pub(super) fn run(config: &Config, command: &Command) -> Result<(), Failure> {
    match command {
        Command::List => {
            let mut stdout = std::io::stdout().lock();
            for model in Catalogue::new(&config.local).models() {
                writeln!(stdout, "{}\t{}", model.name, model.place)?;
            }
        }
    }
    Ok(())
}
