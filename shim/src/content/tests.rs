//! The store by itself: whole or not there, wanted or gone.

use std::fs;
use std::sync::Barrier;
use std::time::SystemTime;

use super::{Begun, Content, ContentError, Ingest, Named, parse};
use crate::image::Digest;

fn store() -> (tempfile::TempDir, Content) {
    let folder = tempfile::tempdir().unwrap();
    let content = Content::open(folder.path()).unwrap();
    (folder, content)
}

fn begin(content: &Content, digest: &Digest, size: u64) -> Ingest {
    match content.begin(digest, size, &mut || {}).unwrap() {
        Begun::Ingest(ingest) => *ingest,
        Begun::There => panic!("it is there"),
    }
}

fn being_written(content: &Content) -> usize {
    fs::read_dir(content.folder().join("ingest")).unwrap().count()
}

fn named(name: &str, id: &[u8]) -> Named {
    Named {
        name: parse(name).unwrap().whole(),
        manifest: Digest::of(b"manifest").to_string(),
        media_type: String::new(),
        manifest_size: 8,
        source: Some(Digest::of(b"index").to_string()),
        id: Digest::of(id).to_string(),
        size: 1,
        stored: SystemTime::UNIX_EPOCH,
    }
}

#[test]
fn a_blob_has_its_name_when_it_is_whole() {
    let (_folder, content) = store();
    let digest = Digest::of(b"blob");
    let mut ingest = begin(&content, &digest, 4);
    ingest.write(b"bl").unwrap();
    assert!(!content.has(&digest));
    // As a killed process leaves it.
    drop(ingest);
    let mut ingest = begin(&content, &digest, 4);
    assert_eq!(ingest.written(), 2);
    ingest.write(b"ob").unwrap();
    ingest.finish().unwrap();
    assert_eq!((content.document(&digest).unwrap(), being_written(&content)), (b"blob".to_vec(), 0));
    assert!(matches!(content.begin(&digest, 4, &mut || {}).unwrap(), Begun::There));
}

#[test]
fn nothing_stays_of_what_is_wrong() {
    let (_folder, content) = store();
    let digest = Digest::of(b"blob");
    let mut ingest = begin(&content, &digest, 4);
    ingest.write(b"blub").unwrap();
    assert!(matches!(ingest.finish(), Err(ContentError::WrongDigest { .. })));
    let mut ingest = begin(&content, &digest, 4);
    let error = ingest.write(b"blobs").unwrap_err().to_string();
    assert!(error.contains("has 5 bytes where 4 were announced"), "{error}");
    drop(ingest);
    let mut ingest = begin(&content, &digest, 4);
    ingest.write(b"blo").unwrap();
    assert!(matches!(ingest.finish(), Err(ContentError::WrongSize { got: 3, .. })));
    let error = content.begin(&digest, u64::MAX / 2, &mut || {}).unwrap_err().to_string();
    assert!(error.contains("TATAMI_ROOT") && error.contains("free"), "{error}");
    assert_eq!((content.has(&digest), being_written(&content)), (false, 0));
}

#[test]
fn who_wants_the_same_waits_for_it() {
    let (_folder, content) = store();
    let digest = Digest::of(b"blob");
    let mut ingest = begin(&content, &digest, 4);
    let waiting = Barrier::new(2);
    std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let begun = content.begin(&digest, 4, &mut || {
                waiting.wait();
            });
            matches!(begun.unwrap(), Begun::There)
        });
        waiting.wait();
        ingest.write(b"blob").unwrap();
        ingest.finish().unwrap();
        assert!(other.join().unwrap());
    });
}

#[test]
fn what_has_no_name_goes_unless_somebody_uses_the_store() {
    let (_folder, content) = store();
    for bytes in [b"manifest".as_slice(), b"id", b"nothing's"] {
        content.add(&Digest::of(bytes), bytes).unwrap();
    }
    drop(begin(&content, &Digest::of(b"left"), 4));
    content.name(&named("a", b"id")).unwrap();
    let in_use = content.in_use().unwrap();
    content.sweep().unwrap();
    assert!(content.has(&Digest::of(b"nothing's")));
    drop(in_use);
    content.sweep().unwrap();
    let there = [b"manifest".as_slice(), b"id", b"nothing's"].map(|bytes| content.has(&Digest::of(bytes)));
    assert_eq!((there, being_written(&content)), ([true, true, false], 0));
}

#[test]
fn images_are_found_by_names_digests_and_beginnings_of_ids() {
    let (_folder, content) = store();
    let (a, b) = (named("a:1", b"one"), named("localhost:5000/b", b"two"));
    for one in [&a, &b] {
        content.name(one).unwrap();
    }
    let id = a.id.trim_start_matches("sha256:").to_owned();
    let by_digest = format!("a@{}", a.digest());
    for word in ["a:1", "docker.io/library/a:1", &a.id, &id, &id[..8], &by_digest] {
        assert_eq!(content.find(word).unwrap(), a, "{word}");
    }
    assert_eq!(content.find("localhost:5000/b:latest").unwrap(), b);
    for word in ["a", "a:2", "c", &id[..3], "Not A Name", "", "ffffffffffff"] {
        assert!(matches!(content.find(word), Err(ContentError::NoSuch(_))), "{word}");
    }
    assert_eq!((a.familiar(), a.parts()), ("a:1", ("a", Some("1"))));
    assert_eq!(b.parts(), ("localhost:5000/b", Some("latest")));
    content.unname(&a).unwrap();
    assert_eq!(content.names().unwrap(), [b]);
}

#[test]
fn what_is_no_name_is_said_in_one_line() {
    let short = format!("a@sha256:{}", "0".repeat(32));
    for text in ["UPPER", "a b", "", "a:", &short, "http://a/b"] {
        let error = parse(text).unwrap_err().to_string();
        assert!(error.contains(text) && !error.contains('\n'), "{error}");
    }
}
