//! The wire between server and agent, both ways, and what containerd says to a shim.

use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::{AddressFamily, SendFlags, SocketFlags, SocketType};
use tatami_protocol::agent::{CreateContainerRequest, StreamHeader};
use tatami_protocol::stream;
use tatami_shim::containerd::fuzzing;
use tatami_shim::sandbox::agent::Agent;
use tatami_shim::sandbox::door::Door;
use tatami_shim::sandbox::fs_mount::FsMount;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::input::Input;
use crate::scratch::Scratch;

/// What the agent reads: stream headers, specifications, and the reports of processes that containers could have taken over.
pub fn agent(data: &[u8]) {
    if let Some((prefix, rest)) = data.split_first_chunk::<4>()
        && let Ok(length) = stream::body_length(*prefix)
        && let Ok(header) = stream::decode(&rest[..length.min(rest.len())])
    {
        // What was understood can be said again.
        let header = StreamHeader { special_fields: Default::default(), ..header };
        if let Ok(bytes) = stream::encode(&header) {
            assert_eq!(stream::decode(&bytes[4..]).expect("our own words"), header);
        }
    }
    let request = <CreateContainerRequest as protobuf::Message>::parse_from_bytes(data).unwrap_or_default();
    tatami_agent::fuzzing::specification(&request.spec_json);
    tatami_agent::fuzzing::specification(data);
    let message = || {
        let flags = SocketFlags::CLOEXEC;
        let (here, there): (OwnedFd, OwnedFd) =
            rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None).expect("sockets");
        let _ = rustix::net::send(&there, data, SendFlags::DONTWAIT | SendFlags::NOSIGNAL);
        here
    };
    tatami_agent::fuzzing::report(message(), message());
}

/// What the server reads from a guest whose agent is somebody else's: a greeting, and answers. It hears the input, however it is cut,
/// and must come to an end with an error or an answer.
pub fn answers(data: &[u8]) {
    let scratch = Scratch::new();
    let (door, listener) = Door::create(&scratch.inside).expect("a socket");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async {
        let listener = tokio::net::UnixListener::from_std(listener).expect("a socket");
        let server = async {
            let agent = Agent::connect(door.clone(), None).await?;
            let first = agent.hello(false, true).await.map(drop);
            let second = agent.create_exec("c", "e", Vec::new(), Default::default()).await;
            first.and(second)
        };
        let talk = async {
            let mut input = Input::new(data);
            let Ok((mut stream, _)) = listener.accept().await else { return };
            let _ = stream.read(&mut [0; 64]).await;
            let greeting = if input.byte() < 0xf0 { b"OK 1\n" } else { input.bytes(64) };
            let _ = stream.write_all(greeting).await;
            // To half a greeting nobody says anything.
            let _ = tokio::time::timeout(Duration::from_millis(50), stream.read(&mut [0; 4096])).await;
            while !input.is_empty() {
                // ttrpc: length, stream, kind, flags, message.
                let frame = match input.byte() {
                    0..0xf0 => {
                        let body = input.bytes(400);
                        let head = [(body.len() as u32).to_be_bytes(), u32::from(input.byte() % 5).to_be_bytes()];
                        [head.as_flattened(), &[input.byte() % 4, input.byte()], body].concat()
                    }
                    _ => input.bytes(64).to_vec(),
                };
                if stream.write_all(&frame).await.is_err() {
                    return;
                }
            }
        };
        let both = async { tokio::join!(server, talk).0 };
        let ended = tokio::time::timeout(Duration::from_secs(5), both).await;
        assert!(ended.is_ok(), "the server waits for what will never come");
    });
    runtime.shutdown_timeout(Duration::from_secs(1));
    scratch.check();
}

/// How a shim is called: words, standard input, a bundle's configuration or what it is told of a volume, a root file system's mounts.
pub fn options(data: &[u8]) {
    let mut input = Input::new(data);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match input.byte() % 3 {
        0 => {
            let words: Vec<String> = input.bytes(200).split(|byte| *byte == b' ').map(text).collect();
            fuzzing::call(&words, input.rest());
        }
        1 => {
            let json = input.rest();
            fuzzing::config(json);
            fuzzing::direct_volume(json);
        }
        _ => {
            let mounts = input.rest().split(|byte| *byte == b'\n').map(|line| {
                let mut words = line.split(|byte| *byte == b' ').map(text);
                let mut word = || words.next().unwrap_or_default();
                let (kind, source) = (word(), PathBuf::from(word()));
                FsMount { kind, source, options: words.collect() }
            });
            fuzzing::root(&mounts.collect::<Vec<_>>());
        }
    }
}
