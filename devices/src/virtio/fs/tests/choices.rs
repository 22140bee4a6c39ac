//! What can be chosen about a shared folder: how long a guest believes what it has read, and how many queues there are.

use super::*;

/// `struct fuse_entry_out`: the seconds for which a name, and for which its attributes, may be believed.
fn believed(cache: FsCache) -> (u64, u64) {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "").unwrap();
    let mut client = Client::on(FsConfig { cache, ..config(&folder) }, folder);
    let entry = client.ask(LOOKUP, ROOT, b"file\0", 128).unwrap();
    (double(&entry, 16), double(&entry, 24))
}

#[test]
fn a_guest_believes_as_long_as_it_may() {
    assert_eq!(believed(FsCache::Never), (0, 0));
    assert_eq!(believed(FsCache::Auto), (1, 1));
    assert_eq!(believed(FsCache::Metadata), (86_400, 86_400));
    assert_eq!(believed(FsCache::Always), (86_400, 86_400));
}

#[test]
fn every_queue_has_requests_answered_and_all_are_one_session() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("file"), "some text").unwrap();
    let mut client = Client::on(FsConfig { queues: 3, ..config(&folder) }, folder);
    let mut space = [0; 4];
    client.driver.transport.read(0x100 + TAG_BYTES as u64, &mut space);
    assert_eq!(u32::from_le_bytes(space), 3);

    let entry = client.ask_on(1, 0, LOOKUP, ROOT, b"file\0", 128).unwrap();
    let file = double(&entry, 0);
    let opened = client.ask_on(2, 0, OPEN, file, &[0; 8], 16).unwrap();
    let transfer = Client::transfer(double(&opened, 0), 5, 4096);
    assert_eq!(client.ask_on(3, 0, READ, file, &transfer, 4096).unwrap(), b"text");

    // Standing still and going on, in their places.
    client.driver.transport.transport_mut().pause();
    client.driver.transport.transport_mut().resume();
    for queue in 1..=3 {
        assert_eq!(client.ask_on(queue, 0, READ, file, &transfer, 4096).unwrap(), b"text", "queue {queue}");
    }
}

#[test]
fn a_number_of_queues_that_cannot_be_is_refused() {
    for queues in [0, FS_QUEUES_MAX + 1, u8::MAX] {
        let folder = tempfile::tempdir().unwrap();
        let refused = Fs::new(FsConfig { queues, ..config(&folder) }, threads());
        assert!(matches!(refused, Err(FsError::Queues(number)) if number == queues));
    }
}
