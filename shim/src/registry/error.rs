//! What can go wrong with a registry, in one line each: who, what, and what to do about it. Which image it was about, the caller says.

use std::time::Duration;

use super::credentials::CredentialsError;
use crate::image::Digest;

/// Why a registry did not give what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum RegistryError {
    /// Nobody there.
    #[error(
        "cannot reach {host}: {why} (is the registry's name right, and is there a network, or a proxy to be named in HTTPS_PROXY?)"
    )]
    Unreachable {
        /// Whom.
        host: String,
        /// What was met with.
        why: String,
    },
    /// No secure connection.
    #[error(
        "{host} cannot be trusted: {why} (if its authority is one of your own, put its certificate into /etc/containers/certs.d/{host}/ca.crt, or name its folder with --cert-dir; a registry without TLS needs --plain-http)"
    )]
    Untrusted {
        /// Whom.
        host: String,
        /// What is wrong with it.
        why: String,
    },
    /// No authorities to trust.
    #[error(
        "no certificates of authorities on this machine: install ca-certificates, or name a file with them in SSL_CERT_FILE"
    )]
    NoAuthorities,
    /// It began to answer, and stopped.
    #[error("{host} has sent nothing for {} s: try again later; what has come stays, and the next pull goes on from there", silence.as_secs())]
    Stalled {
        /// Who.
        host: String,
        /// For how long.
        silence: Duration,
    },
    /// It answers a byte at a time.
    #[error("{host} did not send {what} within {} s: try again later", limit.as_secs())]
    Slow {
        /// Who.
        host: String,
        /// What was asked for.
        what: String,
        /// How long that may take.
        limit: Duration,
    },
    /// The connection ended in the middle.
    #[error("the connection to {host} broke: {why}; what has come stays, and the next pull goes on from there")]
    Broken {
        /// Whose.
        host: String,
        /// How.
        why: String,
    },
    /// A page for people.
    #[error(
        "{host} answered with a page ({content_type}) where {what} was expected: is it a registry, or does a proxy or a login page stand before it?"
    )]
    Page {
        /// Who.
        host: String,
        /// What was asked for.
        what: String,
        /// What it says that it sent.
        content_type: String,
    },
    /// Not for this user.
    #[error(
        "{host} refuses {repository} to {who}: log in (podman login {registry}, docker login {registry}) as somebody who may have it, and check the name"
    )]
    Denied {
        /// Who.
        host: String,
        /// As people name it.
        registry: String,
        /// What.
        repository: String,
        /// To whom.
        who: String,
    },
    /// It wants to be told what nobody knows here.
    #[error("{host} asks for credentials in a way that is not known: {challenge:?} (Basic and Bearer are)")]
    Challenge {
        /// Who.
        host: String,
        /// Its words.
        challenge: String,
    },
    /// A place for tokens that cannot be trusted with credentials.
    #[error("{host} sends to {realm:?} for a token, which is not an https address: nothing was sent there")]
    Realm {
        /// Who.
        host: String,
        /// Where.
        realm: String,
    },
    /// No such image or blob.
    #[error("{host} has no {what}: check name and tag")]
    Missing {
        /// Who.
        host: String,
        /// What.
        what: String,
    },
    /// Asked too often.
    #[error("{host} has had too many requests from here: try again {}, or log in, which may allow for more", after.as_ref().map_or("later".to_owned(), |seconds| format!("in {seconds} s")))]
    TooMany {
        /// Who.
        host: String,
        /// Seconds, as it says.
        after: Option<String>,
    },
    /// Another status.
    #[error("{host} answered {what} with status {status}{}", if said.is_empty() { String::new() } else { format!(": {said}") })]
    Status {
        /// Who.
        host: String,
        /// What was asked for.
        what: String,
        /// The status.
        status: u16,
        /// Its words, if it has some.
        said: String,
    },
    /// Something that is not what it should be.
    #[error("{host} sent {what} that cannot be used: {why}")]
    Document {
        /// Who.
        host: String,
        /// What.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Other bytes than announced.
    #[error(
        "{host} sent {what} with the digest {got} where {wanted} was asked for: what it has is corrupt, or somebody stands between"
    )]
    WrongDigest {
        /// Who.
        host: String,
        /// What.
        what: String,
        /// What was asked for.
        wanted: Digest,
        /// What came.
        got: Digest,
    },
    /// Whose credentials cannot be found out.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
}

impl RegistryError {
    /// Whether another attempt may go on where this one stopped.
    pub fn is_interruption(&self) -> bool {
        matches!(self, RegistryError::Broken { .. } | RegistryError::Unreachable { .. })
    }
}
