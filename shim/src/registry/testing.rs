//! A registry in a test: HTTP on loopback, with whatever faults a test wants.

use std::collections::HashMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::image::Digest;

/// Where the certificates of such a registry are.
pub(crate) fn certificates() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/registry")
}

/// A connection, whatever it is wrapped in.
trait Stream: Read + Write + Send {}

impl<T: Read + Write + Send> Stream for T {}

/// What was asked.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) path: String,
    /// With names in small letters.
    pub(crate) headers: HashMap<String, String>,
    pub(crate) body: String,
}

impl Request {
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }
}

/// How an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    Whole,
    /// The connection breaks after so many bytes of the body.
    Cut(usize),
    /// Nothing comes after so many bytes of the body, and the connection stays.
    Stall(usize),
}

/// An answer.
#[derive(Debug, Clone)]
pub(crate) struct Reply {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Vec<u8>,
    pub(crate) end: End,
}

impl Reply {
    pub(crate) fn new(status: u16, content_type: &str, body: &[u8]) -> Reply {
        let headers = vec![("Content-Type", content_type.to_owned())];
        Reply { status, headers, body: body.to_vec(), end: End::Whole }
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Reply {
        self.headers.push((name, value.into()));
        self
    }
}

/// Serves until the test's process ends.
pub(crate) struct Server {
    address: SocketAddr,
    asked: Arc<Mutex<Vec<Request>>>,
}

impl Server {
    pub(crate) fn start(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        Server::listen(answer, |stream| Box::new(stream))
    }

    fn listen(
        answer: impl Fn(&Request) -> Reply + Send + Sync + 'static,
        wrap: impl Fn(TcpStream) -> Box<dyn Stream> + Send + 'static,
    ) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, answer) = (Arc::clone(&asked), Arc::new(answer));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (stream, log, answer) = (wrap(stream), Arc::clone(&log), Arc::clone(&answer));
                std::thread::spawn(move || serve(stream, &log, &*answer));
            }
        });
        Server { address, asked }
    }

    /// The same with TLS, by the certificate of `tests/registry`.
    pub(crate) fn start_secure(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> Server {
        let own = rustls::ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into());
        let own = own.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
        let chain = CertificateDer::pem_file_iter(certificates().join("server.crt")).unwrap().map(Result::unwrap);
        let key = PrivateKeyDer::from_pem_file(certificates().join("server.key")).unwrap();
        let own = Arc::new(own.with_single_cert(chain.collect(), key).unwrap());
        Server::listen(answer, move |stream| {
            let connection = rustls::ServerConnection::new(Arc::clone(&own)).unwrap();
            Box::new(rustls::StreamOwned::new(connection, stream))
        })
    }

    /// A registry that has what is on the shelf.
    pub(crate) fn of(shelf: Shelf) -> Server {
        Server::start(move |request| shelf.answer(request))
    }

    /// Host and port.
    pub(crate) fn host(&self) -> String {
        self.address.to_string()
    }

    /// The paths that were asked for and hold `part`.
    pub(crate) fn asked(&self, part: &str) -> Vec<Request> {
        self.asked.lock().unwrap().iter().filter(|request| request.path.contains(part)).cloned().collect()
    }
}

/// Answers one request; whoever asked closes, or is closed.
fn serve(stream: Box<dyn Stream>, log: &Mutex<Vec<Request>>, answer: &dyn Fn(&Request) -> Reply) {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    if reader.read_line(&mut line).unwrap_or(0) == 0 {
        return;
    }
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    let mut headers = HashMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let length = headers.get("content-length").and_then(|length| length.parse().ok()).unwrap_or(0);
    let mut body = vec![0; length];
    reader.read_exact(&mut body).unwrap();
    let request = Request { path, headers, body: String::from_utf8_lossy(&body).into_owned() };
    log.lock().unwrap().push(request.clone());
    let reply = answer(&request);
    let mut head =
        format!("HTTP/1.1 {} Said\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len());
    for (name, value) in &reply.headers {
        head += &format!("{name}: {value}\r\n");
    }
    let sent = match reply.end {
        End::Whole => reply.body.len(),
        End::Cut(at) | End::Stall(at) => at.min(reply.body.len()),
    };
    let mut stream = reader.into_inner();
    // Fails where the other side has seen enough.
    let _ = stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(b"\r\n"));
    let _ = stream.write_all(&reply.body[..sent]).and_then(|()| stream.flush());
    if let End::Stall(_) = reply.end {
        std::thread::sleep(Duration::from_secs(60));
    }
}

/// What a registry has.
#[derive(Default, Clone)]
pub(crate) struct Shelf {
    blobs: HashMap<String, Vec<u8>>,
    manifests: HashMap<String, (String, Vec<u8>)>,
}

pub(crate) const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub(crate) const INDEX: &str = "application/vnd.oci.image.index.v1+json";

impl Shelf {
    /// Adds a blob; its descriptor.
    pub(crate) fn blob(&mut self, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::of(bytes).to_string();
        self.blobs.insert(digest.clone(), bytes.to_vec());
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Adds an image of layers that are plain tar archives, under a tag; its descriptor.
    pub(crate) fn image(&mut self, tag: &str, architecture: &str, layers: &[&[u8]]) -> serde_json::Value {
        let diff_ids: Vec<String> = layers.iter().map(|layer| Digest::of(layer).to_string()).collect();
        let config = serde_json::json!({
            "architecture": architecture, "os": "linux", "config": { "Cmd": ["/hello"] },
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob("application/vnd.oci.image.config.v1+json", config.to_string().as_bytes());
        let layers: Vec<_> =
            layers.iter().map(|layer| self.blob("application/vnd.oci.image.layer.v1.tar", layer)).collect();
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers,
        });
        let mut descriptor = self.manifest(tag, MANIFEST, manifest.to_string().as_bytes());
        descriptor["platform"] = serde_json::json!({ "architecture": architecture, "os": "linux" });
        descriptor
    }

    /// Adds a document under a tag and its digest; its descriptor.
    pub(crate) fn manifest(&mut self, tag: &str, media_type: &str, bytes: &[u8]) -> serde_json::Value {
        let digest = Digest::of(bytes).to_string();
        for name in [tag, &digest] {
            self.manifests.insert(name.to_owned(), (media_type.to_owned(), bytes.to_vec()));
        }
        serde_json::json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// What it says to a request, with no faults.
    pub(crate) fn answer(&self, request: &Request) -> Reply {
        let last = request.path.rsplit('/').next().unwrap_or_default();
        if request.path.contains("/manifests/")
            && let Some((media_type, bytes)) = self.manifests.get(last)
        {
            return Reply::new(200, media_type, bytes).with("Docker-Content-Digest", Digest::of(bytes).to_string());
        }
        if let Some(bytes) = self.blobs.get(last) {
            let from = request.header("range").strip_prefix("bytes=").and_then(|range| range.strip_suffix('-'));
            let from = from.and_then(|from| from.parse::<usize>().ok()).filter(|from| *from < bytes.len());
            let octets = "application/octet-stream";
            return match from {
                Some(from) => Reply::new(206, octets, &bytes[from..])
                    .with("Content-Range", format!("bytes {from}-{}/{}", bytes.len() - 1, bytes.len())),
                None => Reply::new(200, octets, bytes),
            };
        }
        Reply::new(404, "application/json", br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"unknown"}]}"#)
    }
}
