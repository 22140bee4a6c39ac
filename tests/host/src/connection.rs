//! Connections to the command server of a running host.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use tatami_testhost::wire::{self, FromHost, GREETING, Hello, Stream, ToHost, Token};

/// How long the host may take to answer what it can do at once; it is slow, and slower while it compiles or boots guests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A connection that the host has not greeted yet: several are dialled at once, and greeted in one round trip.
#[derive(Debug)]
pub(crate) struct Dialled(TcpStream);

impl Dialled {
    /// Connects to the host behind the loopback `port`.
    ///
    /// # Errors
    /// Nobody listens there.
    pub(crate) fn new(port: u16) -> Result<Self> {
        let stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting to the test host")?;
        stream.set_nodelay(true)?;
        Ok(Self(stream))
    }

    /// Makes it a control connection.
    ///
    /// # Errors
    /// The host does not answer.
    pub(crate) fn control(self, token: Token) -> Result<Connection> {
        Ok(Connection { stream: self.introduce(&Hello::Control { token })? })
    }

    /// Makes it one stream of a session.
    ///
    /// # Errors
    /// The host does not answer.
    pub(crate) fn stream(self, token: Token, session: u64, stream: Stream) -> Result<TcpStream> {
        self.introduce(&Hello::Stream { token, session, stream })
    }

    fn introduce(self, hello: &Hello) -> Result<TcpStream> {
        let Self(mut stream) = self;
        let mut greeting = [0];
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.read_exact(&mut greeting).context("no answer from the test host")?;
        if greeting != [GREETING] {
            bail!("what answers on the test host's port is not the test host");
        }
        stream.set_read_timeout(None)?;
        wire::send(&mut stream, hello)?;
        Ok(stream)
    }
}

/// A control connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Asks for something that is answered by `Done`.
    ///
    /// # Errors
    /// The host's refusal, or no answer in time.
    pub(crate) fn ask(&mut self, message: &ToHost) -> Result<()> {
        self.stream.set_read_timeout(Some(PATIENCE))?;
        wire::send(&mut self.stream, message)?;
        match wire::receive(&mut self.stream).context("no answer from the test host")? {
            Some(FromHost::Done) => Ok(()),
            Some(FromHost::Failed { message, .. }) => bail!("the test host: {message}"),
            Some(FromHost::Exited { .. }) => bail!("the test host answers out of turn"),
            None => bail!("the test host closed the connection"),
        }
    }

    /// The connection itself, for a session.
    #[must_use]
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}
