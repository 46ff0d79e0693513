//! Who runs and who waits.
