//! Pumps over socket pairs and fifos, with readers that read, wait, and leave.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use super::super::stdio::StdioPaths;
use super::*;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

struct Fifos {
    _dir: tempfile::TempDir,
    stdin: PathBuf,
    stdout: PathBuf,
}

impl Fifos {
    fn new() -> Fifos {
        let dir = tempfile::tempdir().unwrap();
        let fifo = |name: &str| {
            let path = dir.path().join(name);
            nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
            path
        };
        Fifos { stdin: fifo("in"), stdout: fifo("out"), _dir: dir }
    }

    async fn open(&self) -> Opened {
        let text = |path: &PathBuf| path.to_str().unwrap().to_owned();
        let paths = StdioPaths { stdin: text(&self.stdin), stdout: text(&self.stdout), ..Default::default() };
        paths.open("c", "n").await.unwrap()
    }

    fn reader(&self) -> File {
        File::options().read(true).custom_flags(libc::O_NONBLOCK).open(&self.stdout).unwrap()
    }

    fn writer(&self) -> File {
        File::options().write(true).custom_flags(libc::O_NONBLOCK).open(&self.stdin).unwrap()
    }
}

/// The guest's ends of a process's streams, and the server's.
fn streams() -> (UnixStream, UnixStream, Streams) {
    let (stdin, their_stdin) = UnixStream::pair().unwrap();
    let (stdout, their_stdout) = UnixStream::pair().unwrap();
    (stdin, stdout, Streams { stdin: Some(their_stdin), stdout: Some(their_stdout), ..Streams::default() })
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(Duration::from_secs(20), future).await.expect("it hangs") })
}

/// Reads to the end; on a fifo that nobody has open for writing any more that is a plain end.
async fn read_slowly(mut reader: File) -> Vec<u8> {
    let mut all = Vec::new();
    loop {
        let mut chunk = vec![0; 16 * 1024];
        match reader.read(&mut chunk) {
            Ok(0) => return all,
            Ok(length) => all.extend_from_slice(&chunk[..length]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => panic!("{error}"),
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn all_output_arrives_before_the_end_is_told() {
    let fifos = Fifos::new();
    block_on(async {
        let reader = fifos.reader();
        let (_stdin, mut stdout, streams) = streams();
        let mut io = Io::connect(fifos.open().await, streams);
        let sent: Vec<u8> = (0..1_000_000u32).map(|number| (number % 251) as u8).collect();
        let reading = tokio::spawn(read_slowly(reader));
        stdout.write_all(&sent).await.unwrap();
        drop(stdout);
        io.end().written().await;
        assert_eq!(reading.await.unwrap(), sent);
    });
}

#[test]
fn a_reader_that_does_not_read_holds_up_the_end_until_the_process_is_killed() {
    let fifos = Fifos::new();
    block_on(async {
        let _reader = fifos.reader();
        let (_stdin, mut stdout, streams) = streams();
        let mut io = Io::connect(fifos.open().await, streams);
        let chunk = vec![7; 64 * 1024];
        // Until nothing more is taken.
        while tokio::time::timeout(Duration::from_millis(200), stdout.write_all(&chunk)).await.is_ok() {}
        io.relieve();
        // A pipe's worth, which a process that is gone has left behind.
        tokio::time::timeout(Duration::from_secs(5), stdout.write_all(&chunk)).await.expect("it is taken").unwrap();
        drop(stdout);
        io.end().written().await;
    });
}

#[test]
fn a_reader_that_left_and_one_that_comes_see_one_stream() {
    let fifos = Fifos::new();
    block_on(async {
        let (_stdin, mut stdout, streams) = streams();
        let mut io = Io::connect(fifos.open().await, streams);
        let mut first = fifos.reader();
        stdout.write_all(b"one").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let mut seen = [0; 3];
        first.read_exact(&mut seen).unwrap();
        drop(first);
        stdout.write_all(b"two").await.unwrap();
        tokio::time::sleep(Duration::from_millis(50)).await;
        let second = fifos.reader();
        drop(stdout);
        io.end().written().await;
        drop(io);
        assert_eq!(read_slowly(second).await, b"two");
    });
}

#[test]
fn input_ends_when_it_is_closed_here_and_by_every_client() {
    let fifos = Fifos::new();
    block_on(async {
        let (mut stdin, _stdout, streams) = streams();
        let mut io = Io::connect(fifos.open().await, streams);
        let client = fifos.writer();
        io::Write::write_all(&mut &client, b"one").unwrap();
        let mut seen = [0; 3];
        stdin.read_exact(&mut seen).await.unwrap();
        drop(client);
        let quiet = tokio::time::timeout(Duration::from_millis(100), stdin.read(&mut seen)).await;
        assert!(quiet.is_err(), "a client that leaves is no end of input");
        let client = fifos.writer();
        io.close_stdin();
        io::Write::write_all(&mut &client, b"two").unwrap();
        stdin.read_exact(&mut seen).await.unwrap();
        assert_eq!(&seen, b"two");
        drop(client);
        assert_eq!(stdin.read(&mut seen).await.unwrap(), 0);
    });
}

#[test]
fn output_that_leads_nowhere_is_read_and_forgotten() {
    block_on(async {
        let (mut stdout, theirs) = UnixStream::pair().unwrap();
        let mut io = Io::connect(Opened::default(), Streams { stdout: Some(theirs), ..Streams::default() });
        stdout.write_all(&vec![1; 2_000_000]).await.unwrap();
        drop(stdout);
        io.end().written().await;
    });
}

#[test]
fn a_logger_gets_both_streams_and_their_ends() {
    use std::os::unix::fs::PermissionsExt;
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("logger");
    let script = "#!/bin/sh\nexec 5>&-\ncat <&3 >$2/out; cat <&4 >$2/err; echo $CONTAINER_ID >>$2/out\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let uri = format!("binary://{}?to={}", program.display(), dir.path().display());
    let paths = StdioPaths { stdout: uri.clone(), stderr: uri, ..Default::default() };
    block_on(async {
        let (mut stdout, their_stdout) = UnixStream::pair().unwrap();
        let (mut stderr, their_stderr) = UnixStream::pair().unwrap();
        let streams = Streams { stdout: Some(their_stdout), stderr: Some(their_stderr), ..Streams::default() };
        let mut io = Io::connect(paths.open("c1", "n").await.unwrap(), streams);
        stdout.write_all(b"to out\n").await.unwrap();
        stderr.write_all(b"to err\n").await.unwrap();
        drop((stdout, stderr));
        io.end().written().await;
        let told = dir.path().join("out");
        while !std::fs::read_to_string(&told).is_ok_and(|text| text == "to out\nc1\n") {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert_eq!(std::fs::read_to_string(dir.path().join("err")).unwrap(), "to err\n");
    });
}
