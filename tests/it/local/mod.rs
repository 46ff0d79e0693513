//! What only a daemon with local models can show.

mod admin;
mod demo;
mod logs;
mod prompt_cache;
mod pull;
mod serve;
mod shutdown;
