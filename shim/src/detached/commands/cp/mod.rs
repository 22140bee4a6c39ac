//! `tatami cp`: files and folders into a running container, and out of it.
//!
//! The other end is a process of the agent's own that joins the container (`agent/src/copy.rs`), reached like any other that `exec` starts.
//! So a copy sees what the container sees, which the host does not everywhere: volumes and tmpfs are mounted in the guest, a root may be a
//! disk that only the guest reads, and what the guest has in its cache need not be in the host's. And no program is needed in the
//! container. The stream between the two and the rules of where a copy goes are `tatami-files`', which believes neither end; with `-`,
//! [`archive`] makes tar of it.

mod archive;

use std::ffi::OsString;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, IsTerminal, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::pin::pin;

use clap::Args;
use oci_spec::runtime::{Capabilities, Capability, LinuxCapabilitiesBuilder, ProcessBuilder, UserBuilder};
use tatami_files::{CopyError, Destination, Form, Options, Order};
use tokio::task::{JoinHandle, spawn_blocking};

use self::archive::ArchiveError;
use super::super::Error;
use super::super::client::{Client, ClientError};
use super::super::registry::{self, Entry};
use super::control::{refused, running};
use super::fifos::{Fifos, open_fifo};
use super::session::catch_signals;
use crate::logging::complain;
use crate::run::signals::{Signals, ends_a_start};
use crate::sandbox::folder::{Places, new_id};
use crate::table::printable;

/// What is taken of what the other end says of itself, in bytes.
const WORDS: u64 = 64 * 1024;
/// What the other end may do, whatever the container's own processes may.
const CAPABILITIES: [Capability; 5] =
    [Capability::Chown, Capability::DacOverride, Capability::DacReadSearch, Capability::Fowner, Capability::Fsetid];

/// `tatami cp`.
#[derive(Args)]
#[command(
    override_usage = "tatami cp [OPTIONS] CONTAINER:PATH LOCAL\n       tatami cp [OPTIONS] LOCAL CONTAINER:PATH",
    after_help = "\
A folder is copied with all that is in it; `PATH/.` means what is in it and not the folder itself. If there is a folder at the
destination, the copy goes into it; otherwise it is what the destination is called. A file takes the place of one that is there; a folder
takes in what comes. `-` for LOCAL is a tar archive on standard output or input; one on standard input is unpacked in the folder PATH.

The container must run: what it has written outside of its volumes goes with its machine when it ends.

A path in the container begins at its root, and sees what its processes see: volumes and tmpfs as well. Permissions and times are kept,
owners with --archive; otherwise the copy is whoever's makes it: root's in the container. What comes out of a container runs as another
user (set-user-ID) only with --archive. Devices are not copied, nor extended attributes. A local file with a colon in its name is
written with a path: ./a:b.

Examples:
  tatami cp web:/etc/nginx/nginx.conf .
  tatami cp site/. web:/srv/www
  tatami cp web:/var/log - | tar t

Exit status: 0 if all was copied, 1 otherwise."
)]
pub struct CpArguments {
    /// Keep owners and groups, by number, and what runs as another user
    #[arg(short, long)]
    archive: bool,
    /// If the source is a symbolic link, copy what it leads to
    #[arg(short = 'L', long)]
    follow_link: bool,
    /// CONTAINER:PATH, a local path, or -
    #[arg(value_name = "FROM")]
    from: OsString,
    /// CONTAINER:PATH, a local path, or -
    #[arg(value_name = "TO")]
    to: OsString,
}

/// One end of a copy, as it was written.
#[derive(Debug, PartialEq, Eq)]
enum End {
    /// An archive on a standard stream.
    Archive,
    Local(PathBuf),
    /// A container, and an absolute path in it.
    Container(String, String),
}

pub(super) async fn cp(places: &Places, arguments: CpArguments) -> Result<u8, Error> {
    let ends = (end(&arguments.from)?, end(&arguments.to)?);
    match ends {
        (End::Container(word, path), to @ (End::Local(_) | End::Archive)) => {
            fetch(places, &word, path, to, &arguments).await
        }
        (from @ (End::Local(_) | End::Archive), End::Container(word, path)) => {
            put(places, from, &word, path, &arguments).await
        }
        (End::Container(..), End::Container(..)) => {
            Err(Error::Usage("both are in containers: copy to a local folder, and from there".to_owned()))
        }
        _ => Err(Error::Usage("neither is in a container: write CONTAINER:PATH for one of them".to_owned())),
    }
}

fn end(word: &OsString) -> Result<End, Error> {
    let bytes = word.as_bytes();
    if bytes == b"-" {
        return Ok(End::Archive);
    }
    let colon = bytes.iter().position(|byte| *byte == b':').filter(|_| !matches!(bytes[0], b'/' | b'.'));
    let Some(colon) = colon.filter(|colon| *colon > 0) else { return Ok(End::Local(word.into())) };
    let text = word.to_str().ok_or_else(|| Error::Usage("a path in a container must be UTF-8".to_owned()))?;
    let (name, path) = (&text[..colon], &text[colon + 1..]);
    if path.is_empty() || path.contains('\0') {
        return Err(Error::Usage(format!("{text}: which path in the container? {name}:/ is its root")));
    }
    let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
    Ok(End::Container(name.to_owned(), path))
}

/// Whether what is in a folder is meant, or a file or folder.
fn form(path: &Path) -> Form {
    let bytes = path.as_os_str().as_bytes();
    if bytes.ends_with(b"/.") || bytes == b"." { Form::Contents } else { Form::Whole }
}

/// What is at `path` is called, if it has a name.
fn name(path: &Path) -> OsString {
    path.file_name().map(Into::into).unwrap_or_default()
}

async fn fetch(places: &Places, word: &str, path: String, to: End, arguments: &CpArguments) -> Result<u8, Error> {
    if to == End::Archive && io::stdout().is_terminal() {
        return Err(Error::Usage("an archive is nothing for a terminal: send standard output somewhere".to_owned()));
    }
    let source = Path::new(&path).to_owned();
    let order = Order::Pack { path, follow: arguments.follow_link };
    let joined = Joined::start(places, word, "copy from", &order).await?;
    let stream = joined.stdout.try_clone().map_err(streams)?;
    let kept = Options { owners: arguments.archive, set_id: arguments.archive };
    let work = spawn_blocking(move || {
        let mut stream = BufReader::new(stream);
        match to {
            End::Local(path) => {
                let destination = Destination { path, name: name(&source), form: form(&source) };
                Ok(tatami_files::unpack(&mut stream, &destination, kept, &mut note)?)
            }
            _ => archive::write(&mut stream, &name(&source), io::stdout().lock()),
        }
    });
    joined.follow(work, false).await
}

async fn put(places: &Places, from: End, word: &str, path: String, arguments: &CpArguments) -> Result<u8, Error> {
    let (name, form) = match &from {
        End::Local(path) => (local_name(path)?, form(path)),
        _ if io::stdin().is_terminal() => {
            return Err(Error::Usage("standard input is a terminal, where an archive is to come from".to_owned()));
        }
        _ => (String::new(), Form::Archive),
    };
    let order = Order::Unpack { path, name, form, owners: arguments.archive };
    let joined = Joined::start(places, word, "copy to", &order).await?;
    // The server has both ends open; if it does not any more, the process has ended.
    let fifo = File::options().read(true).write(true).open(&joined.fifos.streams.stdin).map_err(streams)?;
    let follow = arguments.follow_link;
    let work = spawn_blocking(move || {
        let mut stream = BufWriter::with_capacity(64 * 1024, fifo);
        match from {
            End::Local(path) => Ok(tatami_files::pack(&path, follow, &mut stream, &mut note)?),
            _ => archive::read(io::stdin().lock(), &mut stream),
        }
    });
    joined.follow(work, true).await
}

/// What a local file is to be called in the container.
fn local_name(path: &Path) -> Result<String, Error> {
    let name = match path.file_name() {
        Some(name) => name.to_owned(),
        // `.` and `..` have one, and the root has none.
        None => {
            let whole = path.canonicalize();
            let whole = whole.map_err(|error| Error::State(format!("cannot find {}: {error}", path.display())))?;
            self::name(&whole)
        }
    };
    let told = || Error::Usage(format!("{}: copy it under a name that is UTF-8", path.display()));
    name.into_string().map_err(|_| told())
}

fn streams(source: io::Error) -> Error {
    Error::System { action: "connect the copy's streams", source }
}

fn note(line: String) {
    complain(&printable(&line));
}

/// The other end.
struct Joined {
    entry: Entry,
    client: Client,
    exec: String,
    fifos: Fifos,
    signals: Signals,
    stdout: File,
    stderr: File,
}

impl Joined {
    async fn start(places: &Places, word: &str, what: &str, order: &Order) -> Result<Joined, Error> {
        let entry = registry::find(places, word)?;
        if entry.ended().is_some() {
            let name = entry.name();
            return Err(Error::State(format!(
                "cannot {what} {name}: it has ended, and its own files have gone with its machine: `tatami logs {name}` shows \
                 its output, and what is written to a volume (`run -v`) stays"
            )));
        }
        let client = running(&entry, what).await?;
        if client.is_paused().await.unwrap_or(false) {
            return Err(Error::State(format!("{0} is paused: `tatami resume {0}` has it go on", entry.name())));
        }
        let process = process(order).map_err(|error| Error::State(error.to_string()))?;
        let exec = new_id().map_err(|error| Error::State(error.to_string()))?;
        let input = matches!(order, Order::Unpack { .. });
        let fifos = Fifos::make(entry.found.state(), &exec, input, false).map_err(streams)?;
        let signals = catch_signals()?;
        let stdout = open_fifo(&fifos.streams.stdout).map_err(streams)?;
        let stderr = open_fifo(&fifos.streams.stderr).map_err(streams)?;
        client.exec(&exec, process, &fifos.streams).await.map_err(|error| refused(&entry, error))?;
        Ok(Joined { entry, client, exec, fifos, signals, stdout, stderr })
    }

    /// Waits for both ends of the copy: `work` is this one. If this end writes, it is not waited for once the other one has failed.
    async fn follow(self, mut work: JoinHandle<Result<(), ArchiveError>>, writes: bool) -> Result<u8, Error> {
        let Joined { entry, client, exec, fifos, mut signals, stdout, stderr } = self;
        let words = spawn_blocking(move || words(stderr));
        let mut waiting = pin!(client.wait(&exec));
        let (mut ours, mut theirs) = (None, None);
        while theirs.is_none() || (ours.is_none() && !(writes && failed(&theirs))) {
            tokio::select! {
                done = &mut work, if ours.is_none() => {
                    let done = done.map_err(|error| streams(error.into()))?;
                    if done.is_err() {
                        // It would wait for what does not come, or for somebody to read.
                        drop(client.kill(&exec, libc::SIGKILL as u32, false).await);
                    }
                    ours = Some(done);
                }
                status = &mut waiting, if theirs.is_none() => theirs = Some(status),
                signal = signals.next() => if ends_a_start(signal) {
                    drop(client.kill(&exec, libc::SIGKILL as u32, false).await);
                    return Err(Error::Interrupted(signal));
                }
            }
        }
        drop(stdout);
        client.delete(&exec).await;
        let words = words.await.unwrap_or_default();
        drop(fifos);
        let name = entry.name();
        match (ours, theirs) {
            (Some(Err(ArchiveError::Output(error))), _) if error.kind() == io::ErrorKind::BrokenPipe => {
                Err(Error::Output(error))
            }
            (Some(Err(error)), _) if !is_others_doing(&error) => Err(Error::State(printable(&error.to_string()))),
            (_, Some(Err(_))) => Err(Error::State(format!("{name} ended before all was copied"))),
            (None | Some(Ok(())), Some(Ok(0))) => {
                words.lines().for_each(|line| note(format!("{name}: {line}")));
                Ok(0)
            }
            (ours, _) => {
                let ours = ours.and_then(Result::err).map(|error| error.to_string());
                let said = words.lines().last().map(str::to_owned).or(ours);
                let said = said.unwrap_or_else(|| "the copy was ended half-way".to_owned());
                Err(Error::State(format!("{name}: {}", printable(&said))))
            }
        }
    }
}

/// Whether the other end has ended, and not well.
fn failed(theirs: &Option<Result<u32, ClientError>>) -> bool {
    matches!(theirs, Some(Err(_) | Ok(1..)))
}

/// Whether this end failed because the other one did.
fn is_others_doing(error: &ArchiveError) -> bool {
    matches!(error, ArchiveError::Stream(CopyError::Early | CopyError::Stream(_)))
}

/// What the other end says of itself, from its start.
fn words(mut stderr: File) -> String {
    let mut words = Vec::new();
    let read = stderr.by_ref().take(WORDS).read_to_end(&mut words);
    // Whatever comes after that.
    let drained = read.and_then(|_| io::copy(&mut stderr, &mut io::sink()));
    if let Err(error) = drained {
        log::debug!("the copy's standard error: {error}");
    }
    String::from_utf8_lossy(&words).into_owned()
}

/// The process that joins: root, with what it takes to read and write any file, however little the container may.
fn process(order: &Order) -> Result<Vec<u8>, oci_spec::OciSpecError> {
    let all = Capabilities::from(CAPABILITIES);
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(all.clone())
        .effective(all.clone())
        .permitted(all)
        .inheritable(Capabilities::default())
        .ambient(Capabilities::default())
        .build()?;
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(UserBuilder::default().uid(0u32).gid(0u32).build()?)
        .args(order.words())
        .env(Vec::new())
        .cwd("/")
        .capabilities(capabilities)
        .no_new_privileges(false)
        .build()?;
    serde_json::to_vec(&process).map_err(oci_spec::OciSpecError::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(word: &str) -> Option<End> {
        end(&word.into()).ok()
    }

    #[test]
    fn a_name_before_a_colon_is_a_containers() {
        let container = |name: &str, path: &str| Some(End::Container(name.to_owned(), path.to_owned()));
        assert_eq!(of("web:/etc"), container("web", "/etc"));
        assert_eq!(of("web:etc/."), container("web", "/etc/."));
        assert_eq!(of("web:a:b"), container("web", "/a:b"));
        for local in ["etc", "./a:b", "/a:b", "../a:b", ":a", "."] {
            assert_eq!(of(local), Some(End::Local(local.into())), "{local}");
        }
        assert_eq!(of("-"), Some(End::Archive));
        assert_eq!(of("web:"), None);
    }

    #[test]
    fn a_dot_behind_a_folder_means_what_is_in_it() {
        for path in ["a/.", ".", "/."] {
            assert_eq!(form(Path::new(path)), Form::Contents, "{path}");
        }
        for path in ["a", "a/", "..", "a/..", "/", ".a"] {
            assert_eq!(form(Path::new(path)), Form::Whole, "{path}");
        }
        let named = |path: &str| local_name(Path::new(path)).unwrap();
        assert_eq!(["a/b/", "a/b/.", "/"].map(named), ["b", "b", ""]);
        assert!(!named("..").contains('/'));
        assert!(local_name(Path::new("/nonexistent/..")).is_err());
    }

    #[test]
    fn the_other_end_may_read_and_write_and_no_more() {
        let order = Order::Pack { path: "/etc".to_owned(), follow: false };
        let process: oci_spec::runtime::Process = serde_json::from_slice(&process(&order).unwrap()).unwrap();
        assert_eq!(Order::of(process.args().as_deref().unwrap()), Some(order));
        let held = process.capabilities().as_ref().unwrap().bounding().clone().unwrap();
        assert!(held.contains(&Capability::DacOverride) && !held.contains(&Capability::SysAdmin));
        assert_eq!(process.user().uid(), 0);
    }
}
