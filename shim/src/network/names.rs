//! Docker's resolver, which listens at 127.0.0.11 in a container's network namespace: asked here in the guest's place.
//!
//! What asks is a guest, so that what it can have asked at once is bounded. Carries messages; does not read them.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use tatami_protocol::names::{self, PREFIX, Way};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket, UnixStream};
use tokio::sync::{Semaphore, mpsc};

/// Where it listens.
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// How long it may take: it asks others in turn.
const PATIENCE: Duration = Duration::from_secs(10);
/// Questions that are being answered at once.
const MAX_ASKED: usize = 128;
/// Answers that wait to be sent.
const MAX_ANSWERS: usize = 32;

/// Asks what comes over `stream`, and answers, as long as there is one. Call it on the thread that is in the network namespace.
///
/// # Errors
/// When the stream is lost, or brings what is no question.
pub async fn serve(stream: UnixStream) -> io::Result<()> {
    let (mut questions, mut sender) = stream.into_split();
    let (answers, mut answered) = mpsc::channel::<Vec<u8>>(MAX_ANSWERS);
    let room = Arc::new(Semaphore::new(MAX_ASKED));
    let send = async {
        while let Some(frame) = answered.recv().await {
            sender.write_all(&frame).await?;
        }
        Ok(())
    };
    let take = async {
        loop {
            let mut prefix = [0; PREFIX];
            questions.read_exact(&mut prefix).await?;
            let prefix = names::prefix(prefix).ok_or(io::ErrorKind::InvalidData)?;
            let mut question = vec![0; prefix.length.into()];
            questions.read_exact(&mut question).await?;
            // Who has asked too much waits: nothing more is read.
            let Ok(place) = room.clone().acquire_owned().await else { return Ok(()) };
            let answers = answers.clone();
            tokio::spawn(async move {
                let answer = tokio::time::timeout(PATIENCE, ask(prefix.way, &question)).await;
                // Without an answer whoever asks asks again, or gives up, as with any resolver.
                if let Ok(Ok(answer)) = answer {
                    let _ = answers.send(names::frame(prefix.way, prefix.number, &answer)).await;
                }
                drop(place);
            });
        }
    };
    tokio::select! {
        result = take => result,
        result = send => result,
    }
}

async fn ask(way: Way, question: &[u8]) -> io::Result<Vec<u8>> {
    let resolver = SocketAddrV4::new(RESOLVER, 53);
    match way {
        Way::Udp => {
            let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
            socket.connect(resolver).await?;
            socket.send(question).await?;
            let mut answer = vec![0; u16::MAX.into()];
            let length = socket.recv(&mut answer).await?;
            answer.truncate(length);
            Ok(answer)
        }
        Way::Tcp => {
            let mut connection = TcpStream::connect(resolver).await?;
            connection.write_u16(question.len() as u16).await?;
            connection.write_all(question).await?;
            let mut answer = vec![0; connection.read_u16().await?.into()];
            connection.read_exact(&mut answer).await?;
            Ok(answer)
        }
    }
}
