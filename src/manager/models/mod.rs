//! Models on this machine: how they get here and how they go. What is here, and what requests call it, is the catalogue's
//! to say.

pub mod download;
pub mod folder;
pub mod remove;
