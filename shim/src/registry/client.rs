//! One repository of one registry: its manifests and blobs, and what it has to be told before it gives them.

use std::io::Read;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use oci_spec::distribution::Reference;
use serde::Deserialize;
use ureq::http::{HeaderMap, Response};
use ureq::tls::{RootCerts, TlsConfig};
use ureq::{Agent, Body, BodyReader, Timeout};

use super::challenge::Challenge;
use super::credentials::{Credentials, Files};
use super::error::RegistryError;
use super::{lookup, trust};
use crate::image::{Digest, MAX_DOCUMENT};

/// Bytes that a token, or what is said of an error, may have.
const MAX_ANSWER: u64 = 1 << 20;
/// What is asked for where an image is: one manifest, or one for each kind of machine.
const MANIFESTS: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

/// How long a registry may take.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Until there is a connection.
    pub connection: Duration,
    /// Without a byte, once there is one.
    pub silence: Duration,
    /// For a manifest or a token.
    pub document: Duration,
}

impl Default for Limits {
    fn default() -> Limits {
        let seconds = Duration::from_secs;
        Limits { connection: seconds(30), silence: seconds(30), document: seconds(60) }
    }
}

/// How a registry is talked to.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Without TLS. This machine's own needs no saying so.
    pub plain_http: bool,
    /// Where certificates of its authorities are, if the system does not know them. It is spoken to with TLS then.
    pub certificates: Option<PathBuf>,
    /// Where credentials are.
    pub files: Files,
    /// How long it may take.
    pub limits: Limits,
}

/// A manifest or an index, as it was sent.
#[derive(Debug)]
pub struct Manifest {
    /// What it says that it is.
    pub media_type: String,
    /// Of its bytes.
    pub digest: Digest,
    /// Its text.
    pub bytes: Vec<u8>,
}

/// A repository.
pub struct Client {
    agent: Agent,
    /// Scheme and host.
    base: String,
    host: String,
    /// As people name it.
    registry: String,
    repository: String,
    credentials: Option<Credentials>,
    /// What it was told last.
    authorization: Mutex<Option<String>>,
    limits: Limits,
}

/// What a registry sends a token in.
#[derive(Deserialize)]
struct Token {
    token: Option<String>,
    access_token: Option<String>,
}

impl Client {
    /// The repository that `reference` is in; nobody is asked anything yet.
    ///
    /// # Errors
    /// [`RegistryError::Credentials`], [`RegistryError::NoAuthorities`].
    pub fn new(reference: &Reference, options: &Options) -> Result<Client, RegistryError> {
        lookup::stay_within();
        let registry = reference.registry().to_owned();
        let host = if registry == "docker.io" { "registry-1.docker.io".to_owned() } else { registry.clone() };
        let is_here = is_loopback(&host);
        let certificates = options.certificates.as_deref();
        let plain = options.plain_http || is_here && certificates.is_none() && !trust::has_own(&host);
        let limits = options.limits;
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .https_only(!plain)
            .max_redirects(5)
            .user_agent(concat!("tatami/", env!("CARGO_PKG_VERSION")))
            .timeout_resolve(Some(limits.connection))
            .timeout_connect(Some(limits.connection))
            .timeout_per_read(Some(limits.silence))
            .timeout_per_write(Some(limits.silence));
        if is_here {
            config = config.proxy(None);
        }
        let authorities = trust::authorities(&host, certificates);
        if authorities.is_empty() && !plain {
            return Err(RegistryError::NoAuthorities);
        }
        // Also one without TLS may send elsewhere for tokens and blobs.
        let tls = TlsConfig::builder()
            .root_certs(RootCerts::Specific(authorities.into()))
            .unversioned_rustls_crypto_provider(rustls::crypto::ring::default_provider().into());
        config = config.tls_config(tls.build());
        Ok(Client {
            agent: config.build().into(),
            base: format!("{}://{host}", if plain { "http" } else { "https" }),
            credentials: options.files.find(&registry, reference.repository())?,
            host,
            registry,
            repository: reference.repository().to_owned(),
            authorization: Mutex::default(),
            limits,
        })
    }

    fn is_secure(&self) -> bool {
        self.base.starts_with("https://")
    }

    /// Who it is.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The manifest or index with this tag or digest.
    ///
    /// # Errors
    /// [`RegistryError`]; a digest that is not the one asked for among them.
    pub fn manifest(&self, tag_or_digest: &str) -> Result<Manifest, RegistryError> {
        let what = format!("the manifest {tag_or_digest} of {}", self.repository);
        let wanted = Digest::parse(tag_or_digest);
        let answer = self.get(&format!("manifests/{tag_or_digest}"), &what, Some(MANIFESTS), None)?;
        self.refuse_page(&answer, &what)?;
        let announced = header(answer.headers(), "docker-content-digest").and_then(Digest::parse);
        let content_type = header(answer.headers(), "content-type").unwrap_or_default().to_owned();
        let bytes = self.read_document(answer, &what, MAX_DOCUMENT)?;
        let wanted = wanted.or(announced);
        let digest = wanted.as_ref().map_or_else(|| Digest::of(&bytes), |digest| digest.same_algorithm(&bytes));
        if let Some(wanted) = wanted
            && wanted != digest
        {
            return Err(RegistryError::WrongDigest { host: self.host.clone(), what, wanted, got: digest });
        }
        let document: serde_json::Value =
            serde_json::from_slice(&bytes).map_err(|error| self.unusable(&what, &error))?;
        let inner = document["mediaType"].as_str().map(str::to_owned);
        let outer = content_type.split(';').next().unwrap_or_default().trim().to_owned();
        Ok(Manifest { media_type: inner.unwrap_or(outer), digest, bytes })
    }

    /// The bytes of a blob from `from` on, or, if the registry cannot do so, from its beginning, which the answer says.
    ///
    /// # Errors
    /// [`RegistryError`].
    pub fn blob(&self, digest: &Digest, from: u64) -> Result<(BlobReader<'_>, u64), RegistryError> {
        let what = format!("the blob {digest} of {}", self.repository);
        let range = (from > 0).then(|| format!("bytes={from}-"));
        let path = format!("blobs/{digest}");
        let mut answer = self.get(&path, &what, None, range.as_deref());
        if matches!(&answer, Err(RegistryError::Status { status: 416, .. })) {
            answer = self.get(&path, &what, None, None);
        }
        let answer = answer?;
        self.refuse_page(&answer, &what)?;
        let begins = header(answer.headers(), "content-range").is_some_and(|range| {
            range.strip_prefix("bytes ").is_some_and(|range| range.starts_with(&format!("{from}-")))
        });
        let from = if answer.status() == 206 && begins { from } else { 0 };
        Ok((BlobReader { body: answer.into_body().into_reader(), client: self }, from))
    }

    /// Asks, and if it wants to know who asks, tells it and asks again.
    fn get(
        &self,
        path: &str,
        what: &str,
        accept: Option<&str>,
        range: Option<&str>,
    ) -> Result<Response<Body>, RegistryError> {
        let url = format!("{}/v2/{}/{path}", self.base, self.repository);
        let ask = || {
            let mut request = self.agent.get(&url);
            for (name, value) in [("accept", accept), ("range", range)] {
                if let Some(value) = value {
                    request = request.header(name, value);
                }
            }
            if let Some(authorization) = self.told().as_deref() {
                request = request.header("authorization", authorization);
            }
            // What is read for longer than that is a blob, which only may not stand still.
            let limit = accept.is_some().then_some(self.limits.document);
            request.config().timeout_global(limit).build().call().map_err(|error| self.failed(error, what))
        };
        let mut answer = ask()?;
        if answer.status() == 401 {
            let challenges = answer.headers().get_all("www-authenticate");
            let texts: Vec<&str> = challenges.iter().filter_map(|value| value.to_str().ok()).collect();
            let challenge = Challenge::read(texts.iter().copied()).ok_or_else(|| {
                let challenge = texts.first().copied().unwrap_or_default().to_owned();
                RegistryError::Challenge { host: self.host.clone(), challenge }
            })?;
            let authorization = self.authorize(challenge)?;
            *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
            answer = ask()?;
        }
        self.judge(answer, what)
    }

    fn told(&self) -> Option<String> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What to tell it.
    fn authorize(&self, challenge: Challenge) -> Result<String, RegistryError> {
        match (challenge, &self.credentials) {
            (Challenge::Basic, Some(Credentials::Password(user, password))) => Ok(basic(user, password)),
            (Challenge::Basic, _) => Err(self.denied()),
            (Challenge::Bearer { realm, service, scope }, _) => self.fetch_token(&realm, service, scope),
        }
    }

    fn fetch_token(
        &self,
        realm: &str,
        service: Option<String>,
        scope: Option<String>,
    ) -> Result<String, RegistryError> {
        let what = format!("a token for {}", self.repository);
        let is_as_safe = realm.starts_with("https://") || !self.is_secure() && realm.starts_with("http://");
        if !is_as_safe {
            return Err(RegistryError::Realm { host: self.host.clone(), realm: realm.to_owned() });
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:pull", self.repository));
        let service = service.unwrap_or_default();
        let limit = Some(self.limits.document);
        let answer = match &self.credentials {
            Some(Credentials::Identity(token)) => {
                let form = [
                    ("grant_type", "refresh_token"),
                    ("client_id", "tatami"),
                    ("service", service.as_str()),
                    ("scope", scope.as_str()),
                    ("refresh_token", token.as_str()),
                ];
                self.agent.post(realm).config().timeout_global(limit).build().send_form(form)
            }
            credentials => {
                let mut request = self.agent.get(realm).query("scope", &scope);
                if !service.is_empty() {
                    request = request.query("service", &service);
                }
                if let Some(Credentials::Password(user, password)) = credentials {
                    request = request.header("authorization", basic(user, password));
                }
                request.config().timeout_global(limit).build().call()
            }
        };
        let answer = answer.map_err(|error| self.failed(error, &what))?;
        if matches!(answer.status().as_u16(), 400 | 401 | 403) {
            return Err(self.denied());
        }
        let answer = self.judge(answer, &what)?;
        self.refuse_page(&answer, &what)?;
        let bytes = self.read_document(answer, &what, MAX_ANSWER)?;
        let token: Token = serde_json::from_slice(&bytes).map_err(|error| self.unusable(&what, &error))?;
        let token = token.token.or(token.access_token).ok_or_else(|| self.unusable(&what, &"there is none in it"))?;
        Ok(format!("Bearer {token}"))
    }

    /// Lets a good answer through.
    fn judge(&self, answer: Response<Body>, what: &str) -> Result<Response<Body>, RegistryError> {
        let host = self.host.clone();
        let status = answer.status().as_u16();
        match status {
            200 | 206 => Ok(answer),
            401 | 403 => Err(self.denied()),
            404 => Err(RegistryError::Missing { host, what: what.trim_start_matches("the ").to_owned() }),
            429 => {
                let after = header(answer.headers(), "retry-after").map(str::to_owned);
                Err(RegistryError::TooMany { host, after })
            }
            _ => {
                let said = self.read_document(answer, what, MAX_ANSWER).map(|bytes| said(&bytes)).unwrap_or_default();
                Err(RegistryError::Status { host, what: what.to_owned(), status, said })
            }
        }
    }

    fn refuse_page(&self, answer: &Response<Body>, what: &str) -> Result<(), RegistryError> {
        match header(answer.headers(), "content-type") {
            Some(content_type) if content_type.to_ascii_lowercase().starts_with("text/html") => {
                let (host, content_type) = (self.host.clone(), content_type.to_owned());
                Err(RegistryError::Page { host, what: what.to_owned(), content_type })
            }
            _ => Ok(()),
        }
    }

    fn read_document(&self, answer: Response<Body>, what: &str, limit: u64) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        let mut body = answer.into_body().into_reader().take(limit + 1);
        body.read_to_end(&mut bytes).map_err(|error| self.failed(error.into(), what))?;
        if bytes.len() as u64 > limit {
            return Err(self.unusable(what, &format!("it has more than the {limit} bytes that it may have")));
        }
        Ok(bytes)
    }

    fn denied(&self) -> RegistryError {
        let who = match &self.credentials {
            None => "somebody who is not logged in".to_owned(),
            Some(Credentials::Password(user, _)) => format!("the user {user:?}"),
            Some(Credentials::Identity(_)) => "the token that is stored for it".to_owned(),
        };
        let (host, registry, repository) = (self.host.clone(), self.registry.clone(), self.repository.clone());
        RegistryError::Denied { host, registry, repository, who }
    }

    fn unusable(&self, what: &str, why: &dyn std::fmt::Display) -> RegistryError {
        RegistryError::Document { host: self.host.clone(), what: what.to_owned(), why: why.to_string() }
    }

    /// What an error of the client crate means.
    fn failed(&self, error: ureq::Error, what: &str) -> RegistryError {
        let (host, limits) = (self.host.clone(), self.limits);
        match error {
            ureq::Error::Timeout(Timeout::Resolve | Timeout::Connect) => {
                RegistryError::Unreachable { host, why: format!("no answer within {} s", limits.connection.as_secs()) }
            }
            ureq::Error::Timeout(Timeout::Global) => {
                RegistryError::Slow { host, what: what.to_owned(), limit: limits.document }
            }
            ureq::Error::Timeout(_) => RegistryError::Stalled { host, silence: limits.silence },
            ureq::Error::Rustls(error) => untrusted(host, &error),
            ureq::Error::HostNotFound => RegistryError::Unreachable { host, why: "there is no such host".to_owned() },
            ureq::Error::Io(error) => {
                let inner = error.get_ref();
                if let Some(error) = inner.and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
                    return untrusted(host, error);
                }
                let why = error.to_string();
                match error.kind() {
                    std::io::ErrorKind::UnexpectedEof
                    | std::io::ErrorKind::ConnectionReset
                    | std::io::ErrorKind::ConnectionAborted
                    | std::io::ErrorKind::BrokenPipe => RegistryError::Broken { host, why },
                    _ => RegistryError::Unreachable { host, why },
                }
            }
            error => RegistryError::Document { host, what: what.to_owned(), why: error.to_string() },
        }
    }
}

/// The bytes of a blob.
pub struct BlobReader<'a> {
    body: BodyReader<'static>,
    client: &'a Client,
}

impl BlobReader<'_> {
    /// Reads some; 0 at the end.
    ///
    /// # Errors
    /// [`RegistryError::Stalled`], [`RegistryError::Broken`].
    pub fn read(&mut self, buffer: &mut [u8]) -> Result<usize, RegistryError> {
        loop {
            match self.body.read(buffer) {
                Ok(count) => return Ok(count),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(self.client.failed(error.into(), "a blob")),
            }
        }
    }
}

fn untrusted(host: String, error: &rustls::Error) -> RegistryError {
    let why = match error {
        rustls::Error::InvalidMessage(_) => "it does not speak TLS".to_owned(),
        error => error.to_string(),
    };
    RegistryError::Untrusted { host, why }
}

fn header<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    headers.get(name)?.to_str().ok()
}

fn basic(user: &str, password: &str) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(format!("{user}:{password}"));
    format!("Basic {text}")
}

/// This machine, which nobody listens in on.
fn is_loopback(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
}

/// What an error document says (distribution specification, "Error Codes"): one line, and not too much of it.
fn said(bytes: &[u8]) -> String {
    let document: serde_json::Value = serde_json::from_slice(bytes).unwrap_or_default();
    let error = &document["errors"][0];
    let text = error["message"].as_str().or(error["code"].as_str()).unwrap_or_default();
    text.chars().map(|char| if char.is_control() { ' ' } else { char }).take(200).collect()
}
