//! The manager's routes. They know the rest of the daemon only through what `app` hands them.

pub mod health;
