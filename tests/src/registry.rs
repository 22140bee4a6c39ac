//! A registry of the test's own: Debian's docker-registry on loopback, and the few requests that put images into it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::PATIENCE;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// Name and password of the one user, and what docker-registry checks them by.
const USER: &str = "guest:$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a\n";
/// The same as a request says it: guest:secret.
pub const AUTHORIZATION: &str = "Z3Vlc3Q6c2VjcmV0";

/// Where the certificate of a registry with TLS is, and that of its authority.
pub fn certificates() -> PathBuf {
    crate::checkout().join("tests/registry")
}

/// A running docker-registry, killed when it is dropped.
pub struct Registry {
    child: Child,
    host: String,
    storage: PathBuf,
}

/// What a registry answers.
struct Answer {
    status: u16,
    head: String,
}

impl Registry {
    /// Starts one that keeps its things in `folder`; `with_password` asks everybody for [`AUTHORIZATION`].
    ///
    /// # Panics
    /// When there is none, or it does not answer.
    pub fn start(folder: &Path, with_password: bool) -> Self {
        Self::start_over(folder, folder.join("storage"), with_password, false)
    }

    /// Starts one with TLS, by the certificate in [`certificates`], that has what `other` has.
    ///
    /// # Panics
    /// As [`Registry::start`].
    pub fn start_secure(folder: &Path, other: &Registry) -> Self {
        Self::start_over(folder, other.storage.clone(), false, true)
    }

    fn start_over(folder: &Path, storage: PathBuf, with_password: bool, with_tls: bool) -> Self {
        fs::create_dir_all(folder).expect("a folder");
        // Somebody else could take the port before the registry does; it then says so, and the test fails.
        let host =
            TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("a free port").to_string();
        let mut settings = json!({
            "version": "0.1",
            "log": { "level": "error", "accesslog": { "disabled": true } },
            "storage": { "filesystem": { "rootdirectory": storage } },
            "http": { "addr": host },
        });
        if with_password {
            let path = folder.join("htpasswd");
            fs::write(&path, USER).expect("a file");
            settings["auth"] = json!({ "htpasswd": { "realm": "test", "path": path } });
        }
        if with_tls {
            let file = |name: &str| certificates().join(name);
            settings["http"]["tls"] = json!({ "certificate": file("server.crt"), "key": file("server.key") });
        }
        // JSON is YAML.
        let path = folder.join("config.yml");
        fs::write(&path, settings.to_string()).expect("a file");
        let child = Command::new("docker-registry").arg("serve").arg(&path).stdin(Stdio::null()).spawn();
        let child = child.expect("docker-registry is installed");
        let registry = Self { child, host, storage };
        let deadline = Instant::now() + PATIENCE;
        while TcpStream::connect(&registry.host).is_err() {
            assert!(Instant::now() < deadline, "docker-registry does not answer");
            thread::sleep(Duration::from_millis(50));
        }
        registry
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Puts a blob into `repository`; its descriptor.
    pub fn push_blob(&self, repository: &str, media_type: &str, bytes: &[u8]) -> Value {
        let digest = digest(bytes);
        let begun = self.request("POST", &format!("/v2/{repository}/blobs/uploads/"), "", b"");
        assert_eq!(begun.status, 202, "{}", begun.head);
        let place = begun.head.lines().find_map(|line| line.strip_prefix("Location: ")).expect("a place").trim();
        let path = place.strip_prefix(&format!("http://{}", self.host)).unwrap_or(place);
        let put = self.request("PUT", &format!("{path}&digest={digest}"), "application/octet-stream", bytes);
        assert_eq!(put.status, 201, "{}", put.head);
        json!({ "mediaType": media_type, "digest": digest, "size": bytes.len() })
    }

    /// Puts an image for `architecture` that has these layers, of plain tar archives, under a tag; its descriptor for an index.
    pub fn push_image(&self, place: (&str, &str), architecture: &str, config: &Value, layers: &[Vec<u8>]) -> Value {
        let (repository, _) = place;
        let diff_ids: Vec<String> = layers.iter().map(|layer| digest(layer)).collect();
        let config = json!({
            "architecture": architecture, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = config.to_string();
        let config = self.push_blob(repository, "application/vnd.oci.image.config.v1+json", config.as_bytes());
        let layers: Vec<Value> = layers
            .iter()
            .map(|layer| self.push_blob(repository, "application/vnd.oci.image.layer.v1.tar", layer))
            .collect();
        let manifest = json!({ "schemaVersion": 2, "mediaType": MANIFEST, "config": config, "layers": layers });
        let mut descriptor = self.push_manifest(place, MANIFEST, &manifest);
        descriptor["platform"] = json!({ "os": "linux", "architecture": architecture });
        descriptor
    }

    /// Puts an index of images under a tag; its digest.
    pub fn push_index(&self, place: (&str, &str), images: &[Value]) -> String {
        let index = json!({ "schemaVersion": 2, "mediaType": INDEX, "manifests": images });
        self.push_manifest(place, INDEX, &index)["digest"].as_str().expect("a digest").to_owned()
    }

    fn push_manifest(&self, (repository, tag): (&str, &str), media_type: &str, document: &Value) -> Value {
        let bytes = document.to_string().into_bytes();
        let put = self.request("PUT", &format!("/v2/{repository}/manifests/{tag}"), media_type, &bytes);
        assert_eq!(put.status, 201, "{}", put.head);
        json!({ "mediaType": media_type, "digest": digest(&bytes), "size": bytes.len() })
    }

    /// Where it keeps the content of a blob.
    pub fn blob_file(&self, digest: &str) -> PathBuf {
        let hex = digest.strip_prefix("sha256:").expect("a sha256 digest");
        self.storage.join(format!("docker/registry/v2/blobs/sha256/{}/{hex}/data", &hex[..2]))
    }

    fn request(&self, method: &str, path: &str, content_type: &str, body: &[u8]) -> Answer {
        let mut stream = TcpStream::connect(&self.host).expect("the registry runs");
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: {}\r\nAuthorization: Basic {AUTHORIZATION}\r\nConnection: close\r\n\
             Content-Type: {content_type}\r\nContent-Length: {}\r\n\r\n",
            self.host,
            body.len()
        );
        stream.write_all(head.as_bytes()).and_then(|()| stream.write_all(body)).expect("the registry reads");
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).expect("the registry answers");
        let head = String::from_utf8_lossy(&answer).into_owned();
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
        Answer { status, head }
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        // It holds nothing but the test's own folder.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Leads connections to a registry, and lets no connection have more than so many bytes until it is opened.
pub struct Gate {
    host: String,
    open: Arc<AtomicBool>,
}

impl Gate {
    /// A gate before `host`.
    ///
    /// # Panics
    /// Without a free port.
    pub fn before(host: &str, bytes: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let own = listener.local_addr().expect("an address").to_string();
        let open = Arc::new(AtomicBool::new(false));
        let (is_open, host) = (Arc::clone(&open), host.to_owned());
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let registry = TcpStream::connect(&host).expect("the registry runs");
                let (mut asks, mut to) =
                    (client.try_clone().expect("a socket"), registry.try_clone().expect("a socket"));
                thread::spawn(move || std::io::copy(&mut asks, &mut to));
                let is_open = Arc::clone(&is_open);
                thread::spawn(move || pass(registry, client, bytes, &is_open));
            }
        });
        Self { host: own, open }
    }

    /// Host and port.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// Lets everything through from now on.
    pub fn open(&self) {
        self.open.store(true, Ordering::Relaxed);
    }
}

fn pass(mut from: TcpStream, mut to: TcpStream, bytes: usize, is_open: &AtomicBool) {
    let (mut buffer, mut passed) = (vec![0; 64 * 1024], 0);
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        while passed + count > bytes && !is_open.load(Ordering::Relaxed) {
            thread::sleep(Duration::from_millis(20));
        }
        passed += count;
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

/// `sha256:…` of bytes.
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    format!("sha256:{}", hash.iter().map(|byte| format!("{byte:02x}")).collect::<String>())
}
