//! The resolver that containers of a Docker network have at 127.0.0.11: it is on the host, in a network namespace that the guest knows
//! nothing of, so questions go there and answers come from there.
//!
//! Carries messages; what they say is between those who ask and the resolver.

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tatami_protocol::names::{self, PREFIX, Way};
use tatami_protocol::stream::{ACCEPTED, REFUSED};
use tokio::io::{AsyncReadExt, AsyncWriteExt, ReadHalf};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::{mpsc, oneshot};

use crate::transport::Stream;

/// Where containers are told that it is.
const RESOLVER: (Ipv4Addr, u16) = (Ipv4Addr::new(127, 0, 0, 11), 53);
/// The longest question by UDP (RFC 6891, 6.2.5).
const MAX_DATAGRAM: usize = 4096;
/// Questions that wait for answers at once. Those beyond are not carried: whoever asks by UDP asks again.
const MAX_WAITING: usize = 256;

/// Between attempts to take a connection where there is nothing to take it with.
const PAUSE: Duration = Duration::from_millis(100);

/// Where an answer goes.
enum Asker {
    Udp(SocketAddr),
    Tcp(oneshot::Sender<Vec<u8>>),
}

/// The questions that wait for answers, by number.
#[derive(Default)]
struct Waiting {
    last: u32,
    askers: HashMap<u32, Asker>,
}

/// What both kinds of asking share.
#[derive(Clone)]
struct Desk {
    waiting: Arc<Mutex<Waiting>>,
    questions: mpsc::Sender<Vec<u8>>,
}

/// Takes questions and carries them over `stream`, as long as there is one.
///
/// # Errors
/// When the address is taken, or the stream is lost.
pub(crate) async fn serve(mut stream: Stream) -> io::Result<()> {
    let bound = async { Ok::<_, io::Error>((UdpSocket::bind(RESOLVER).await?, TcpListener::bind(RESOLVER).await?)) };
    let (datagrams, connections) = match bound.await {
        Ok(bound) => bound,
        Err(error) => {
            stream.write_all(&[REFUSED]).await?;
            return Err(error);
        }
    };
    stream.write_all(&[ACCEPTED]).await?;
    let (answers, mut sender) = tokio::io::split(stream);
    let (questions, mut asked) = mpsc::channel::<Vec<u8>>(MAX_WAITING);
    let desk = Desk { waiting: Arc::default(), questions };
    let send = async {
        while let Some(frame) = asked.recv().await {
            sender.write_all(&frame).await?;
        }
        Ok(())
    };
    tokio::select! {
        result = send => result,
        result = desk.take_datagrams(&datagrams) => result,
        result = desk.take_connections(&connections) => result,
        result = desk.deliver(answers, &datagrams) => result,
    }
}

impl Desk {
    async fn take_datagrams(&self, socket: &UdpSocket) -> io::Result<()> {
        let mut buffer = [0; MAX_DATAGRAM];
        loop {
            // A port unreachable for an earlier answer is told here, and is its asker's business.
            let Ok((length, from)) = socket.recv_from(&mut buffer).await else { continue };
            self.ask(Way::Udp, Asker::Udp(from), &buffer[..length]).await;
        }
    }

    async fn take_connections(&self, listener: &TcpListener) -> io::Result<()> {
        loop {
            let Ok((connection, _)) = listener.accept().await else {
                // No descriptors: whoever asks waits.
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            let desk = self.clone();
            tokio::spawn(async move {
                // The asker sees the end of the connection.
                let _ = desk.converse(connection).await;
            });
        }
    }

    /// Messages on a connection have their length before them (RFC 1035, 4.2.2).
    async fn converse(&self, mut connection: TcpStream) -> io::Result<()> {
        loop {
            let mut question = vec![0; connection.read_u16().await?.into()];
            connection.read_exact(&mut question).await?;
            let (sender, answer) = oneshot::channel();
            self.ask(Way::Tcp, Asker::Tcp(sender), &question).await;
            let Ok(answer) = answer.await else { return Ok(()) };
            connection.write_u16(answer.len() as u16).await?;
            connection.write_all(&answer).await?;
        }
    }

    async fn ask(&self, way: Way, asker: Asker, question: &[u8]) {
        let number = {
            let mut waiting = self.waiting.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.last = waiting.last.wrapping_add(1);
            let number = waiting.last;
            // The oldest has waited longest, and is the least likely to be answered.
            if waiting.askers.len() >= MAX_WAITING
                && let Some(oldest) = waiting.askers.keys().copied().min_by_key(|other| other.wrapping_sub(number))
            {
                waiting.askers.remove(&oldest);
            }
            waiting.askers.insert(number, asker);
            number
        };
        let _ = self.questions.send(names::frame(way, number, question)).await;
    }

    async fn deliver(&self, mut answers: ReadHalf<Stream>, socket: &UdpSocket) -> io::Result<()> {
        loop {
            let mut prefix = [0; PREFIX];
            answers.read_exact(&mut prefix).await?;
            let prefix = names::prefix(prefix).ok_or(io::ErrorKind::InvalidData)?;
            let mut answer = vec![0; prefix.length.into()];
            answers.read_exact(&mut answer).await?;
            let asker = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).askers.remove(&prefix.number);
            match asker {
                // Lost, as datagrams may be.
                Some(Asker::Udp(to)) => drop(socket.send_to(&answer, to).await),
                Some(Asker::Tcp(to)) => drop(to.send(answer)),
                None => {}
            }
        }
    }
}
