//! `mlx-manager models`: what is on disk, and how more gets there.

mod pull;
mod show;

use std::io::Write;

use clap::Subcommand;
use mlx_manager_catalogue::Catalogue;
use mlx_manager_config::{Config, Environment};
use mlx_manager_telemetry::log::Terminal;

use super::Failure;
use crate::manager::models::download::Source;

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List the local models that requests may name
    List,
    /// Download a model in MLX format from the Hugging Face hub into local.models_dir
    ///
    /// An interrupted download goes on where it stopped. HF_ENDPOINT, HF_TOKEN and HF_HUB_DOWNLOAD_TIMEOUT are read as
    /// Hugging Face's own client does.
    Pull {
        /// Such as mlx-community/Qwen3-0.6B-4bit; the revision is a branch, a tag or a commit
        #[arg(value_name = "ORG/NAME[@REVISION]")]
        model: Source,
    },
    /// Show what is known of a model
    Show {
        /// As `models list` names it
        name: String,
    },
    /// Remove a model from local.models_dir
    ///
    /// Models in the Hugging Face cache and those with a path in the configuration are left alone.
    Remove {
        /// As `models list` names it
        name: String,
    },
}

pub(super) fn run(
    config: &Config,
    environment: &Environment,
    terminal: Terminal,
    command: &Command,
) -> Result<(), Failure> {
    match command {
        Command::List => {
            let mut stdout = std::io::stdout().lock();
            for model in Catalogue::new(&config.local).models() {
                writeln!(stdout, "{}\t{}", model.name, model.place)?;
            }
            Ok(())
        }
        Command::Pull { model } => pull::run(config, environment, terminal, model),
        Command::Show { name } => Ok(show::show(&config.local, name, &mut std::io::stdout().lock())?),
        Command::Remove { name } => Ok(show::remove_model(&config.local, name)?),
    }
}
