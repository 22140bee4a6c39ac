//! What the host has for a guest's network interfaces to be joined to: network namespaces, taps, user-mode networks.
//!
//! Opens, starts and joins. What a person asks for is read by the front end that they use.

pub mod catcher;
pub mod interfaces;
pub mod names;
pub mod namespace;
pub mod passt;
pub mod redirect;
pub mod resolv_conf;
pub mod tap;
pub mod vhost;
