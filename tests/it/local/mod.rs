//! What only a daemon with local models can show.

mod demo;
mod logs;
mod prompt_cache;
mod pull;
mod queue;
mod serve;
