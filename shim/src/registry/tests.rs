//! A registry that is good, one that wants to know who asks, and bad ones.

use std::time::{Duration, Instant};

use base64::Engine;

use super::testing::{End, MANIFEST, Reply, Request, Server, Shelf, certificates};
use super::{Client, Files, Limits, Options, RegistryError};
use crate::content::parse;
use crate::image::Digest;

/// Options with credentials for `host`, that bear no stall of more than a minute.
fn options(host: &str, auth: Option<serde_json::Value>) -> (tempfile::TempDir, Options) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("auth.json");
    let auths = auth.map_or(serde_json::json!({}), |auth| serde_json::json!({ host: auth }));
    std::fs::write(&path, serde_json::json!({ "auths": auths }).to_string()).unwrap();
    let files = Files::new(Some(&path), |_| None);
    let minute = Duration::from_secs(60);
    let limits = Limits { connection: minute, silence: minute, document: minute };
    (folder, Options { files, limits, ..Options::default() })
}

fn password(text: &str) -> serde_json::Value {
    serde_json::json!({ "auth": base64::engine::general_purpose::STANDARD.encode(text) })
}

fn client(server: &Server, auth: Option<serde_json::Value>) -> Client {
    let (_folder, options) = options(&server.host(), auth);
    client_with(server, &options)
}

fn client_with(server: &Server, options: &Options) -> Client {
    Client::new(&parse(&format!("{}/team/app", server.host())).unwrap(), options).unwrap()
}

/// What a registry that answers so makes of a manifest.
fn refusal(answer: impl Fn(&Request) -> Reply + Send + Sync + 'static) -> RegistryError {
    client(&Server::start(answer), None).manifest("latest").unwrap_err()
}

fn shelf() -> Shelf {
    let mut shelf = Shelf::default();
    shelf.image("latest", "amd64", &[b"layer"]);
    shelf
}

#[test]
fn manifests_come_by_tag_and_by_digest_and_blobs_from_anywhere_in_them() {
    let server = Server::of(shelf());
    let client = client(&server, None);
    let manifest = client.manifest("latest").unwrap();
    assert_eq!((manifest.media_type.as_str(), &manifest.digest), (MANIFEST, &Digest::of(&manifest.bytes)));
    assert_eq!(client.manifest(&manifest.digest.to_string()).unwrap().bytes, manifest.bytes);
    for (from, rest) in [(0, "layer"), (2, "yer")] {
        let (mut reader, begins) = client.blob(&Digest::of(b"layer"), from).unwrap();
        let mut buffer = [0; 16];
        let count = reader.read(&mut buffer).unwrap();
        assert_eq!((begins, &buffer[..count]), (from, rest.as_bytes()));
    }
    assert_eq!(server.asked("/v2/team/app/").len(), 4);
}

#[test]
fn what_is_not_there_is_named() {
    let error = client(&Server::of(shelf()), None).manifest("nothing").unwrap_err().to_string();
    assert!(error.contains("has no manifest nothing of team/app"), "{error}");
}

#[test]
fn a_token_is_fetched_where_one_is_wanted_and_kept() {
    let shelf = shelf();
    let server = Server::start(move |request| {
        if request.path.starts_with("/token") {
            let known = request.header("authorization") == "Basic dTpw" && request.path.contains("repository%3A");
            return match known || request.body.contains("refresh_token=r") {
                true => Reply::new(200, "application/json", br#"{"token":"t"}"#),
                false => Reply::new(401, "application/json", b"{}"),
            };
        }
        if request.header("authorization") == "Bearer t" {
            return shelf.answer(request);
        }
        let realm = format!("http://{}/token", request.header("host"));
        let challenge = format!(r#"Bearer realm="{realm}",service="s",scope="repository:team/app:pull""#);
        Reply::new(401, "application/json", b"{}").with("WWW-Authenticate", challenge)
    });
    for auth in [password("u:p"), serde_json::json!({ "identitytoken": "r" })] {
        let client = client(&server, Some(auth));
        assert!(client.manifest("latest").is_ok() && client.manifest("latest").is_ok());
    }
    assert_eq!(server.asked("/token").len(), 2);
    let error = client(&server, Some(password("u:wrong"))).manifest("latest").unwrap_err().to_string();
    assert!(error.contains("refuses team/app to the user \"u\"") && error.contains("podman login"), "{error}");
}

#[test]
fn a_password_is_sent_where_it_is_wanted() {
    let shelf = shelf();
    let server = Server::start(move |request| match request.header("authorization") {
        "Basic dTpw" => shelf.answer(request),
        _ => Reply::new(401, "text/plain", b"").with("WWW-Authenticate", "Basic realm=\"here\""),
    });
    assert!(client(&server, Some(password("u:p"))).manifest("latest").is_ok());
    for auth in [None, Some(password("u:q"))] {
        let error = client(&server, auth).manifest("latest").unwrap_err();
        assert!(matches!(error, RegistryError::Denied { .. }), "{error}");
    }
}

#[test]
fn credentials_follow_a_redirect_to_the_same_host_only() {
    let elsewhere = Server::start(|_| Reply::new(200, "application/octet-stream", b"layer"));
    let place = format!("http://{}/blob", elsewhere.host());
    let server = Server::start(move |request| match request.header("authorization") {
        "Basic dTpw" => Reply::new(307, "text/plain", b"").with("Location", place.as_str()),
        _ => Reply::new(401, "text/plain", b"").with("WWW-Authenticate", "Basic"),
    });
    let client = client(&server, Some(password("u:p")));
    assert!(client.blob(&Digest::of(b"layer"), 0).is_ok());
    assert_eq!(elsewhere.asked("/blob")[0].header("authorization"), "");
}

#[test]
fn a_certificate_is_believed_if_its_authority_is() {
    let shelf = shelf();
    let server = Server::start_secure(move |request| shelf.answer(request));
    let (_folder, mut options) = options(&server.host(), None);
    options.certificates = Some(certificates());
    assert!(client_with(&server, &options).manifest("latest").is_ok());
    // One that does not hold the authority's.
    options.certificates = Some(certificates().join("elsewhere"));
    let name = parse(&format!("{}/team/app", server.host())).unwrap();
    match Client::new(&name, &options).and_then(|client| client.manifest("latest")) {
        // As on a machine that has no authorities of its own.
        Err(RegistryError::NoAuthorities) => {}
        other => {
            let error = other.unwrap_err().to_string();
            assert!(error.contains("cannot be trusted") && error.contains("--cert-dir"), "{error}");
        }
    }
}

#[test]
fn whoever_does_not_speak_tls_is_not_trusted_to() {
    let silent = Server::start(|_| Reply::new(200, "text/plain", b""));
    let place = format!("https://{}/blob", silent.host());
    let server = Server::start(move |_| Reply::new(307, "text/plain", b"").with("Location", place.as_str()));
    let error = client(&server, None).blob(&Digest::of(b"layer"), 0).err().unwrap();
    let expected = matches!(
        error,
        RegistryError::Untrusted { .. } | RegistryError::Broken { .. } | RegistryError::Unreachable { .. }
    );
    assert!(expected, "{error}");
}

#[test]
fn a_page_is_no_manifest() {
    let error = refusal(|_| Reply::new(200, "text/html; charset=utf-8", b"<html>log in</html>")).to_string();
    assert!(error.contains("a page (text/html; charset=utf-8)") && error.contains("proxy"), "{error}");
    let error = refusal(|_| Reply::new(200, MANIFEST, b"<html>")).to_string();
    assert!(error.contains("that cannot be used"), "{error}");
}

#[test]
fn other_bytes_than_announced_are_refused() {
    let wrong = Digest::of(b"other").to_string();
    let error = refusal(move |_| Reply::new(200, MANIFEST, b"{}").with("Docker-Content-Digest", wrong.as_str()));
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
    let server = Server::start(|_| Reply::new(200, MANIFEST, b"{}"));
    let error = client(&server, None).manifest(&Digest::of(b"other").to_string()).unwrap_err();
    assert!(matches!(error, RegistryError::WrongDigest { .. }), "{error}");
}

#[test]
fn a_document_without_end_is_not_read_to_it() {
    let error = refusal(|_| Reply::new(200, MANIFEST, &vec![b' '; 5 << 20])).to_string();
    assert!(error.contains("more than the 4194304 bytes"), "{error}");
}

#[test]
fn one_that_stands_still_is_not_waited_for() {
    for end in [0, 1] {
        let server = Server::start(move |_| Reply { end: End::Stall(end), ..Reply::new(200, MANIFEST, b"{}") });
        let (_folder, mut options) = options(&server.host(), None);
        options.limits.silence = Duration::from_secs(2);
        let started = Instant::now();
        let error = client_with(&server, &options).manifest("latest").unwrap_err();
        assert!(matches!(error, RegistryError::Stalled { .. }), "{error}");
        assert!(started.elapsed() < Duration::from_secs(50));
    }
}

#[test]
fn one_that_breaks_off_or_is_not_there_says_so() {
    let error = refusal(|_| Reply { end: End::Cut(1), ..Reply::new(200, MANIFEST, b"{}") });
    assert!(matches!(error, RegistryError::Broken { .. }), "{error}");
    let (_folder, options) = options("x", None);
    let nobody = Client::new(&parse("127.0.0.1:1/app").unwrap(), &options).unwrap();
    let error = nobody.manifest("latest").unwrap_err().to_string();
    assert!(error.contains("cannot reach 127.0.0.1:1"), "{error}");
}

#[test]
fn its_words_are_passed_on() {
    let body = br#"{"errors":[{"code":"UNAVAILABLE","message":"down\nfor today"}]}"#;
    let error = refusal(|_| Reply::new(503, "application/json", body)).to_string();
    assert!(error.contains("with status 503: down for today"), "{error}");
    let error = refusal(|_| Reply::new(429, "text/plain", b"").with("Retry-After", "7")).to_string();
    assert!(error.contains("in 7 s"), "{error}");
    let unknown = |_: &Request| Reply::new(401, "text/plain", b"").with("WWW-Authenticate", "Negotiate");
    assert!(refusal(unknown).to_string().contains("Negotiate"));
}
