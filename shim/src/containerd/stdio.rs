//! Where a process's standard streams lead on the host: what a client names, opened.
//!
//! A client names fifos, files, or a logger program, plainly or as URIs. Fifos are held open on both ends, so that a
//! client or a containerd that goes away, and comes back, finds them as they were. Moving bytes is [`super::pump`]'s.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tatami_protocol::agent::Stdio;
use tokio::net::unix::pipe;

use super::error::TaskError;
use super::logger::{Logger, LoggerCommand};

/// What a client names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct StdioPaths {
    pub(crate) stdin: String,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
    pub(crate) terminal: bool,
}

/// Where output goes.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Target {
    /// A fifo, or a file that is there.
    Path(PathBuf),
    /// A file, made if it is missing.
    File(PathBuf),
    Logger(LoggerCommand),
}

/// Where output goes, opened.
pub(crate) enum Sink {
    Pipe(pipe::Sender),
    File(File),
}

/// Where input comes from, opened. Its end comes when every writer has closed it, of which `keep` is one.
pub(crate) struct Source {
    pub(super) pipe: pipe::Receiver,
    pub(super) keep: OwnedFd,
}

/// A process's streams on the host, opened.
#[derive(Default)]
pub(crate) struct Opened {
    pub(crate) stdin: Option<Source>,
    pub(crate) stdout: Option<Sink>,
    pub(crate) stderr: Option<Sink>,
    pub(super) logger: Option<Logger>,
}

impl StdioPaths {
    /// The streams that the process gets in the guest; those that lead nowhere are not among them.
    pub(super) fn wanted(&self, size: (u32, u32)) -> Stdio {
        Stdio {
            stdin: !self.stdin.is_empty(),
            stdout: !self.stdout.is_empty(),
            stderr: !self.stderr.is_empty() && !self.terminal,
            terminal: self.terminal,
            rows: size.0,
            columns: size.1,
            ..Default::default()
        }
    }

    /// Opens them for the process of the container `id`.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] for what is not understood, [`TaskError::NotFound`] for a fifo that is not there,
    /// [`TaskError::Failed`].
    pub(crate) async fn open(&self, id: &str, namespace: &str) -> Result<Opened, TaskError> {
        let mut opened = Opened::default();
        if !self.stdin.is_empty() {
            let Target::Path(path) = parse(&self.stdin, id, namespace)? else {
                return Err(TaskError::InvalidArgument(format!("standard input {:?} must be a fifo", self.stdin)));
            };
            opened.stdin = Some(open_source(&path).map_err(refused("standard input", &path))?);
        }
        let stdout = if self.stdout.is_empty() { None } else { Some(parse(&self.stdout, id, namespace)?) };
        let stderr = match self.stderr.is_empty() || self.terminal {
            true => None,
            false => Some(parse(&self.stderr, id, namespace)?),
        };
        if let Some(Target::Logger(command)) = stdout.as_ref().or(stderr.as_ref()) {
            let name = command.program.display();
            let (logger, pipes) = command.start().await.map_err(TaskError::failed(format!("the logger {name}")))?;
            opened.stdout = stdout.is_some().then_some(Sink::Pipe(pipes.stdout));
            opened.stderr = stderr.is_some().then_some(Sink::Pipe(pipes.stderr));
            opened.logger = Some(logger);
            return Ok(opened);
        }
        opened.stdout = stdout.map(open_sink).transpose()?;
        opened.stderr = stderr.map(open_sink).transpose()?;
        Ok(opened)
    }
}

/// Reads a path, or a URI of a kind that containerd knows.
fn parse(text: &str, id: &str, namespace: &str) -> Result<Target, TaskError> {
    let Some((scheme, rest)) = text.split_once("://") else { return Ok(Target::Path(PathBuf::from(text))) };
    let (path, query) = rest.split_once('?').unwrap_or((rest, ""));
    let path = PathBuf::from(decode(path));
    if !path.is_absolute() {
        return Err(TaskError::InvalidArgument(format!("{text:?}: the path of a standard stream must be absolute")));
    }
    match scheme {
        "fifo" => Ok(Target::Path(path)),
        "file" => Ok(Target::File(path)),
        "binary" => {
            let words = query.split('&').filter(|pair| !pair.is_empty()).flat_map(|pair| {
                let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
                [decode(name), decode(value)].into_iter().filter(|word| !word.is_empty())
            });
            Ok(Target::Logger(LoggerCommand {
                program: path,
                arguments: words.collect(),
                id: id.to_owned(),
                namespace: namespace.to_owned(),
            }))
        }
        _ => Err(TaskError::InvalidArgument(format!(
            "{text:?}: standard streams are fifo, file or binary URIs, not {scheme}"
        ))),
    }
}

/// Undoes the percent encoding of URIs.
fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut plain = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let code = bytes.get(at + 1..at + 3).and_then(|digits| std::str::from_utf8(digits).ok());
        match (bytes[at], code.and_then(|digits| u8::from_str_radix(digits, 16).ok())) {
            (b'%', Some(byte)) => {
                plain.push(byte);
                at += 3;
            }
            (b'+', _) => {
                plain.push(b' ');
                at += 1;
            }
            (byte, _) => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&plain).into_owned()
}

fn open_source(path: &Path) -> io::Result<Source> {
    let pipe = pipe::OpenOptions::new().open_receiver(path)?;
    // There is a reader now, so this does not wait.
    let keep = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    Ok(Source { pipe, keep: keep.into() })
}

fn open_sink(target: Target) -> Result<Sink, TaskError> {
    match target {
        Target::Path(path) => open_path(&path).map_err(refused("output", &path)),
        Target::File(path) => open_file(&path).map(Sink::File).map_err(refused("output", &path)),
        Target::Logger(_) => {
            Err(TaskError::InvalidArgument("a logger takes both standard output and standard error".to_owned()))
        }
    }
}

fn open_path(path: &Path) -> io::Result<Sink> {
    if std::fs::metadata(path)?.file_type().is_fifo() {
        // Reading, too: then it stays open when its reader goes.
        return pipe::OpenOptions::new().read_write(true).open_sender(path).map(Sink::Pipe);
    }
    OpenOptions::new().append(true).open(path).map(Sink::File)
}

fn open_file(path: &Path) -> io::Result<File> {
    if let Some(folder) = path.parent() {
        DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
    }
    OpenOptions::new().append(true).create(true).mode(0o644).open(path)
}

fn refused<'p>(what: &'static str, path: &'p Path) -> impl FnOnce(io::Error) -> TaskError + 'p {
    move |error| {
        let text = format!("{what} {}: {error}", path.display());
        match error.kind() {
            io::ErrorKind::NotFound => TaskError::NotFound(text),
            io::ErrorKind::InvalidInput => TaskError::InvalidArgument(format!("{what} {}: not a fifo", path.display())),
            _ => TaskError::Failed(text),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Target, TaskError> {
        parse(text, "c1", "default")
    }

    #[test]
    fn paths_and_uris_are_told_apart() {
        assert_eq!(read("/run/a/b"), Ok(Target::Path("/run/a/b".into())));
        assert_eq!(read("fifo:///run/a"), Ok(Target::Path("/run/a".into())));
        assert_eq!(read("file:///var/log/a%20b"), Ok(Target::File("/var/log/a b".into())));
        let Ok(Target::Logger(logger)) = read("binary:///usr/bin/log?--tag=x%26y&-v=") else { panic!("a logger") };
        assert_eq!(logger.program, Path::new("/usr/bin/log"));
        assert_eq!(logger.arguments, ["--tag", "x&y", "-v"]);
        assert_eq!((logger.id.as_str(), logger.namespace.as_str()), ("c1", "default"));
        for bad in ["npipe:///x", "http://a/b", "file://relative"] {
            assert!(matches!(read(bad), Err(TaskError::InvalidArgument(_))), "{bad}");
        }
    }

    #[test]
    fn a_percent_sign_that_encodes_nothing_stays() {
        assert_eq!(decode("100%"), "100%");
        assert_eq!(decode("%zz%41"), "%zzA");
    }

    fn block_on<T>(future: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
    }

    #[test]
    fn what_is_not_there_or_no_fifo_is_said() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        block_on(async {
            let missing = StdioPaths { stdout: path(&dir.path().join("gone")), ..Default::default() };
            assert!(matches!(missing.open("c", "n").await, Err(TaskError::NotFound(_))));
            let input = StdioPaths { stdin: path(&file), ..Default::default() };
            assert!(matches!(input.open("c", "n").await, Err(TaskError::InvalidArgument(_))));
            let output = StdioPaths { stdout: path(&file), ..Default::default() };
            assert!(matches!(output.open("c", "n").await.unwrap().stdout, Some(Sink::File(_))));
            let none = StdioPaths::default().open("c", "n").await.unwrap();
            assert!(none.stdin.is_none() && none.stdout.is_none() && none.stderr.is_none());
        });
    }

    #[test]
    fn a_terminal_has_no_standard_error() {
        let paths = StdioPaths { stdin: "/a".into(), stdout: "/b".into(), stderr: "/c".into(), terminal: true };
        let stdio = paths.wanted((24, 80));
        assert!(stdio.stdin && stdio.stdout && stdio.terminal && !stdio.stderr);
        assert_eq!((stdio.rows, stdio.columns), (24, 80));
    }
}
