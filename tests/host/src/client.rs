//! One command's life seen from the developer's side: its streams, the signals meant for it, its exit status.

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, IsTerminal, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{SigSet, Signal};
use tatami_testhost::wire::{self, FromHost, Run, Stream, ToHost};

use crate::connection::{Connection, open_stream};
use crate::host::Host;
use crate::invocation::Invocation;
use crate::{qemu, terminal};

/// After a signal that should end the command, how long it may take to tidy up before it is killed.
const GRACE: Duration = Duration::from_secs(10);

/// Passed on by name; TATAMI_* too.
const PASSED: [&str; 4] = ["TERM", "RUST_BACKTRACE", "RUST_LOG", "COLUMNS"];

/// Bytes moved at once.
const CHUNK: usize = 256 << 10;

/// Runs the command in the host and returns its exit status.
///
/// # Errors
/// The host ended or broke; with its last words.
pub(crate) fn run(host: &Host, invocation: &Invocation, command: &[OsString]) -> Result<i32> {
    let state = &host.state;
    let tty = invocation.terminal.unwrap_or_else(|| io::stdin().is_terminal() && io::stdout().is_terminal());
    let session = session_number()?;
    let signals = forwarded();
    signals.thread_block()?;

    // One after the other: QEMU's listening socket queues a single connection, and a second one's first packet would be
    // lost and sent again a second later.
    let mut control = Connection::open(state.port, state.token)?.into_stream();
    let open = |stream| open_stream(state.port, state.token, session, stream);
    let (stdin, stdout) = (open(Stream::Stdin)?, open(Stream::Stdout)?);
    let stderr = if tty { None } else { Some(open(Stream::Stderr)?) };
    let run = Run {
        session,
        argv: command.iter().map(|a| a.clone().into_vec()).collect(),
        env: environment(invocation, tty),
        cwd: working_folder(invocation)?.into_os_string().into_vec(),
        terminal: tty.then(terminal::size),
    };
    wire::send(&mut control, &ToHost::Run(run))?;

    let raw = if tty { terminal::Raw::enter() } else { None };
    let first_signal = Arc::new(AtomicI32::new(0));
    let sender = Arc::new(Mutex::new(control.try_clone()?));
    let noted = Arc::clone(&first_signal);
    let (out, err) = (Arc::clone(&sender), Arc::clone(&sender));
    thread::spawn(move || pass_signals(&signals, &sender, &noted));
    thread::spawn(move || feed(stdin));
    let shown = thread::spawn(move || show(stdout, io::stdout(), Stream::Stdout, &out));
    let shown_errors = stderr.map(|s| thread::spawn(move || show(s, io::stderr(), Stream::Stderr, &err)));

    let answer = wire::receive(&mut control);
    let _ = shown.join();
    if let Some(errors) = shown_errors {
        let _ = errors.join();
    }
    drop(raw);
    match answer {
        Ok(Some(FromHost::Exited { status })) => Ok(match first_signal.load(Ordering::Relaxed) {
            // Killed for not ending in time: what ended it is the signal that came first.
            first if first != 0 && status == 128 + Signal::SIGKILL as i32 => 128 + first,
            _ => status,
        }),
        Ok(Some(FromHost::Failed { status, message })) => {
            eprintln!("testhost: {message}");
            Ok(status)
        }
        Ok(Some(FromHost::Done)) => bail!("the test host answers out of turn"),
        Ok(None) | Err(_) => Err(gone(host)),
    }
}

/// Why the connection ended without an answer.
fn gone(host: &Host) -> anyhow::Error {
    // The keeper notices within a moment, and QEMU's last output arrives.
    thread::sleep(Duration::from_millis(500));
    anyhow::anyhow!("the test host ended while the command ran\n{}", qemu::last_words(&host.state.plan.folder))
}

fn session_number() -> Result<u64> {
    let mut bytes = [0; 8];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

/// Where the command starts: here, where the host has that folder; else in the checkout.
fn working_folder(invocation: &Invocation) -> Result<PathBuf> {
    let here = std::env::current_dir().context("the current folder")?.canonicalize()?;
    Ok(if here.starts_with(&invocation.checkout) { here } else { invocation.checkout.clone() })
}

fn environment(invocation: &Invocation, tty: bool) -> Vec<(Vec<u8>, Vec<u8>)> {
    let passed = std::env::vars_os().filter(|(name, _)| {
        name.as_encoded_bytes().starts_with(b"TATAMI_") || PASSED.iter().any(|p| name == p) && (tty || name != "TERM")
    });
    passed.chain(invocation.env.iter().cloned()).map(|(k, v)| (k.into_vec(), v.into_vec())).collect()
}

fn forwarded() -> SigSet {
    SigSet::from_iter([
        Signal::SIGINT,
        Signal::SIGTERM,
        Signal::SIGHUP,
        Signal::SIGQUIT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
        Signal::SIGWINCH,
    ])
}

fn send(to: &Mutex<TcpStream>, message: &ToHost) {
    // A host that is gone is noticed by who waits for its answer.
    let _ = wire::send(&mut *to.lock().unwrap_or_else(PoisonError::into_inner), message);
}

/// Sends each signal on. One that asks the command to end is followed, after [`GRACE`] or when it comes again, by an end.
fn pass_signals(signals: &SigSet, control: &Arc<Mutex<TcpStream>>, first: &AtomicI32) {
    let mut last = None::<Instant>;
    while let Ok(signal) = signals.wait() {
        match signal {
            Signal::SIGWINCH => send(control, &ToHost::Resize(terminal::size())),
            Signal::SIGUSR1 | Signal::SIGUSR2 => send(control, &ToHost::Signal(signal as i32)),
            // `timeout -k` and impatient fingers; but one Ctrl-C can arrive twice, from the terminal and from a parent.
            _ if last.is_some_and(|l| l.elapsed() > Duration::from_millis(200)) => send(control, &ToHost::Kill),
            _ => {
                let _ = first.compare_exchange(0, signal as i32, Ordering::Relaxed, Ordering::Relaxed);
                send(control, &ToHost::Signal(signal as i32));
                last.get_or_insert_with(Instant::now);
                let control = Arc::clone(control);
                thread::spawn(move || {
                    thread::sleep(GRACE);
                    send(&control, &ToHost::Kill);
                });
            }
        }
    }
}

/// Our stdin to the command's, until either ends.
fn feed(mut to: TcpStream) {
    // Not std's: it buffers, and what it holds back would reach the command late.
    let Ok(mut from) = io::stdin().as_fd().try_clone_to_owned().map(File::from) else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Ok(0) | Err(_) => break,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => return,
            Ok(_) => {}
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

/// One of the command's outputs to ours. Where nobody reads ours any more, the command learns it.
fn show(mut from: TcpStream, to: impl AsFd, stream: Stream, control: &Mutex<TcpStream>) {
    let Ok(mut to) = to.as_fd().try_clone_to_owned().map(File::from) else { return };
    let mut buffer = vec![0; CHUNK];
    loop {
        match from.read(&mut buffer) {
            Ok(0) | Err(_) => return,
            Ok(n) if to.write_all(&buffer[..n]).is_err() => {
                send(control, &ToHost::Deaf(stream));
                return;
            }
            Ok(_) => {}
        }
    }
}
