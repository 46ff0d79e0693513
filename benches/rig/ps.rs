//! What `ps` says of a process, where the system has no `/proc`.

use std::process::Command;

use anyhow::Result;

/// One column.
pub fn ps(process: u32, column: &str) -> Result<String> {
    let output = Command::new("ps").args(["-o", &format!("{column}="), "-p", &process.to_string()]).output()?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
