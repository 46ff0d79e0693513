//! `mlx-manager check [--show]`: says what is wrong with the configuration, or what is in effect.
//!
//! It starts nothing and changes nothing. Results go to `results`, talk to `talk`, so that a test can read both.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use mlx_manager_config::{Loaded, Problems};

/// How the command was called.
#[derive(Debug, Clone, Copy)]
pub struct CheckOptions {
    /// `--show`: print every effective value with its source.
    pub show: bool,
    /// Whether the talk may be coloured.
    pub color: bool,
}

/// Reports on a configuration: 0 when it is sound, warnings or not, and 2 with the full list when it isn't.
///
/// # Errors
///
/// When one of the outputs can't be written.
pub fn run(
    loaded: &Result<Loaded, Problems>,
    options: CheckOptions,
    results: &mut impl Write,
    talk: &mut impl Write,
) -> io::Result<ExitCode> {
    let loaded = match loaded {
        Ok(loaded) => loaded,
        Err(problems) => {
            talk.write_all(problems.render(options.color).as_bytes())?;
            return Ok(ExitCode::from(2));
        }
    };
    let file = loaded.file_name();
    if options.show {
        for shown in &loaded.shown {
            writeln!(results, "{} = {}  # {}", shown.key, shown.value, shown.source(&file))?;
        }
    } else {
        writeln!(results, "{file} is sound")?;
    }
    results.flush()?;
    talk.write_all(loaded.render_warnings(options.color).as_bytes())?;
    match loaded.warnings.len() {
        0 => {}
        1 => writeln!(talk, "1 warning in {file}")?,
        count => writeln!(talk, "{count} warnings in {file}")?,
    }
    Ok(ExitCode::SUCCESS)
}
