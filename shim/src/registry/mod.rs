//! A client of image registries: what a reference means there, and its blobs (OCI distribution specification, "Pull").
//!
//! Synchronous, over `ureq` and rustls: a pull is a process of its own, or what `tatami run` does before anything else. Knows nothing
//! of where images are kept; what a registry sends is judged by whoever asked for it, by its digest.

mod challenge;
mod client;
mod credentials;
mod error;
#[cfg(feature = "fuzzing")]
pub mod fuzzing;
mod lookup;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;
mod trust;

pub use client::{BlobReader, Client, Limits, Manifest, Options};
pub use credentials::{Credentials, CredentialsError, Files};
pub use error::RegistryError;
