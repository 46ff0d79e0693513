//! The HTTP room: listeners, and the tower stack around the routes of gateway and manager.
//!
//! Enter by [`stack::stack`], which shows every layer in order, and [`listener::serve`], which runs it until it is told to
//! stop. Nothing here knows what a request asks for.

mod layer;
pub mod listener;
pub mod stack;
