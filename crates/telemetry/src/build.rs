//! Which build of the daemon this is, as resources and metrics state it.

/// Version, commit and tools.
#[derive(Debug, Clone, Copy)]
pub struct Build {
    /// Its version.
    pub version: &'static str,
    /// The commit it was built from; empty if unknown.
    pub commit: &'static str,
    /// The local engine built in: `mlx` or `none`.
    pub engine: &'static str,
    /// What the compiler says of itself, `rustc 1.95.0 (59807616e 2026-04-14)`.
    pub compiler: &'static str,
    /// Its version, `1.95.0`.
    pub compiler_version: &'static str,
}

/// The build that tests speak of.
#[cfg(test)]
pub(crate) const TEST_BUILD: Build = Build {
    version: "1.2.3",
    commit: "abcdef012345",
    engine: "mlx",
    compiler: "rustc 1.95.0 (59807616e 2026-04-14)",
    compiler_version: "1.95.0",
};
