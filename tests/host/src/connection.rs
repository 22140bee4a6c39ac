//! Connections to the command server of a running host.

use std::io::Read;
use std::net::{Ipv4Addr, TcpStream};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tatami_testhost::wire::{self, FromHost, GREETING, Hello, Stream, ToHost, Token};

/// How long the host may take to answer what it can do at once; it is slow, and slower while it compiles or boots guests.
const PATIENCE: Duration = Duration::from_secs(60);

/// A control connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
}

impl Connection {
    /// Connects to the host behind the loopback `port`.
    ///
    /// # Errors
    /// Nobody listens there, or the host does not answer.
    pub(crate) fn open(port: u16, token: Token) -> Result<Self> {
        Ok(Self { stream: introduce(port, &Hello::Control { token })? })
    }

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

    /// Tells the host the time of day.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub(crate) fn tell_time(&mut self) -> Result<()> {
        self.ask(&ToHost::Clock(time_of_day()?))
    }

    /// Has the host compare the time of day with its own.
    ///
    /// # Errors
    /// As [`Connection::ask`]; the host's refusal says how far off it is.
    pub(crate) fn compare_time(&mut self) -> Result<()> {
        self.ask(&ToHost::Compare(time_of_day()?))
    }

    /// Interrupts the host.
    ///
    /// # Errors
    /// As [`Connection::ask`].
    pub(crate) fn poke(&mut self) -> Result<()> {
        self.ask(&ToHost::Poke)
    }

    /// The connection itself, for a session.
    #[must_use]
    pub(crate) fn into_stream(self) -> TcpStream {
        self.stream
    }
}

/// In nanoseconds since 1970.
fn time_of_day() -> Result<u64> {
    let time = SystemTime::now().duration_since(UNIX_EPOCH).context("the clock is before 1970")?;
    Ok(time.as_nanos() as u64)
}

/// Connects one stream of a session.
///
/// # Errors
/// As [`Connection::open`].
pub(crate) fn open_stream(port: u16, token: Token, session: u64, stream: Stream) -> Result<TcpStream> {
    introduce(port, &Hello::Stream { token, session, stream })
}

fn introduce(port: u16, hello: &Hello) -> Result<TcpStream> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).context("connecting to the test host")?;
    stream.set_nodelay(true)?;
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
