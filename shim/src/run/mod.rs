//! The front end of a sandbox for a person at a terminal: `tatami run`.

pub mod options;
pub mod pump;
pub mod signals;
pub mod terminal;
pub mod volume;
