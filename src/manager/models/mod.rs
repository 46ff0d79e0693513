//! Models on this machine: how they get here. What is here, and what requests call it, is the catalogue's to say.

pub mod download;
