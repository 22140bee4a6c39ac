//! As much of HTTP/1.1 as it takes to hand out one page to whoever asks for it with GET (RFC 9112).
//!
//! Whoever connects may be anybody: what is read is bounded, in bytes and in time, and so is the number of those who are served
//! at once; others wait. Every answer is the connection's last. Knows nothing of what the page says.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;

/// Where the page is.
const PATH: &str = "/metrics";
/// The longest request, in bytes.
const REQUEST: usize = 8 << 10;
/// What a client may send beyond its request before it is hung up on.
const EXCESS: u64 = 64 << 10;
/// How many are served at once.
const CLIENTS: usize = 16;
/// How long a client may take to ask, and how long all of it may take.
const ASKING: Duration = Duration::from_millis(if cfg!(test) { 300 } else { 5000 });
const VISIT: Duration = Duration::from_secs(30);
/// How long to wait where there are no descriptors for another client.
const PAUSE: Duration = Duration::from_millis(100);

/// Where clients come in.
pub(super) trait Entrance {
    /// One that came.
    type Client: AsyncRead + AsyncWrite + Unpin + Send + 'static;

    /// The next one.
    async fn next(&self) -> io::Result<Self::Client>;
}

impl Entrance for TcpListener {
    type Client = tokio::net::TcpStream;

    async fn next(&self) -> io::Result<Self::Client> {
        self.accept().await.map(|(client, _)| client)
    }
}

impl Entrance for UnixListener {
    type Client = tokio::net::UnixStream;

    async fn next(&self) -> io::Result<Self::Client> {
        self.accept().await.map(|(client, _)| client)
    }
}

/// Serves what `page` makes, of the type `content`, for ever; where it cannot be made, says so.
pub(super) async fn serve<F>(entrance: impl Entrance, content: &'static str, page: impl Fn() -> F)
where
    F: Future<Output = Option<String>> + Send + 'static,
{
    let seats = Arc::new(Semaphore::new(CLIENTS));
    loop {
        let seat = seats.clone().acquire_owned().await.expect("nobody closes it");
        match entrance.next().await {
            Ok(client) => {
                let page = page();
                tokio::spawn(async move {
                    // Who is too slow, or goes away, has had its chance.
                    let _ = tokio::time::timeout(VISIT, answer(client, content, page)).await;
                    drop(seat);
                });
            }
            Err(error) => {
                log::warn!("a client cannot be let in: {error}");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Takes one request and answers it.
async fn answer(
    mut client: impl AsyncRead + AsyncWrite + Unpin,
    content: &str,
    page: impl Future<Output = Option<String>>,
) -> io::Result<()> {
    let asked = tokio::time::timeout(ASKING, read(&mut client)).await.unwrap_or(Ok(Asked::Slowly))?;
    let refusal = |status, why: &str| (status, "text/plain", why.to_owned());
    let (status, content, body) = match &asked {
        Asked::Nothing => return Ok(()),
        Asked::Well { there: true, .. } => match page.await {
            Some(page) => ("200 OK", content, page),
            None => refusal("500 Internal Server Error", "There are no metrics; the server's log says why.\n"),
        },
        Asked::Well { there: false, .. } => refusal("404 Not Found", "The metrics are at /metrics.\n"),
        Asked::Otherwise => refusal("405 Method Not Allowed", "Only GET and HEAD are understood.\n"),
        Asked::Nonsense => refusal("400 Bad Request", "This is not a request of HTTP/1.\n"),
        Asked::Slowly => refusal("408 Request Timeout", "The request did not come to its end.\n"),
        Asked::Much => refusal("431 Request Header Fields Too Large", "The request is too long.\n"),
    };
    let allowed = if asked == Asked::Otherwise { "Allow: GET, HEAD\r\n" } else { "" };
    let mut reply = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content}\r\nContent-Length: {}\r\n{allowed}Connection: close\r\n\r\n",
        body.len()
    );
    if !matches!(asked, Asked::Well { head: true, .. }) {
        reply.push_str(&body);
    }
    client.write_all(reply.as_bytes()).await?;
    client.shutdown().await?;
    // Something left unread when the connection is closed could cost the client the answer.
    let (mut excess, mut nowhere) = (client.take(EXCESS), tokio::io::sink());
    tokio::time::timeout(ASKING, tokio::io::copy(&mut excess, &mut nowhere)).await.unwrap_or(Ok(0)).map(drop)
}

/// What a client wants.
#[derive(Debug, PartialEq, Eq)]
enum Asked {
    /// The page, if it is where that is; or only what would stand above it.
    Well {
        there: bool,
        head: bool,
    },
    /// With a method that is not understood.
    Otherwise,
    Nonsense,
    /// It is too long.
    Much,
    /// It did not come to its end.
    Slowly,
    /// The client went away.
    Nothing,
}

/// Reads up to the empty line that ends a request's head.
async fn read(client: &mut (impl AsyncRead + Unpin)) -> io::Result<Asked> {
    let mut request = Vec::new();
    let mut part = [0; 1024];
    while request.len() <= REQUEST {
        match client.read(&mut part).await? {
            0 if request.is_empty() => return Ok(Asked::Nothing),
            0 => return Ok(Asked::Nonsense),
            length => request.extend_from_slice(&part[..length]),
        }
        // An end of which there is something in this part begins at most three bytes before it.
        let unseen = &request[request.len().saturating_sub(part.len() + 3)..];
        if unseen.windows(4).any(|end| end == b"\r\n\r\n") || unseen.windows(2).any(|end| end == b"\n\n") {
            return Ok(understand(&request));
        }
    }
    Ok(Asked::Much)
}

/// What the first line says. The others change nothing about the answer.
fn understand(request: &[u8]) -> Asked {
    let line = request.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let line = String::from_utf8_lossy(line);
    let words: Vec<&str> = line.trim_end_matches('\r').split(' ').collect();
    let [method, target, version] = words[..] else { return Asked::Nonsense };
    if !version.starts_with("HTTP/1.") {
        return Asked::Nonsense;
    }
    // Who asks as one asks a proxy names the host as well.
    let path = match target.strip_prefix("http://") {
        Some(rest) => rest.find('/').map_or("/", |start| &rest[start..]),
        None => target,
    };
    let there = path.split('?').next() == Some(PATH);
    match method {
        "GET" | "HEAD" => Asked::Well { there, head: method == "HEAD" },
        _ => Asked::Otherwise,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::SocketAddr;
    use std::time::Instant;
    use tokio::net::TcpStream;

    /// Serves on loopback while `visit` lasts.
    fn with_server<T, F: Future<Output = T>>(visit: impl FnOnce(SocketAddr) -> F) -> T {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let address = listener.local_addr().unwrap();
            tokio::select! {
                () = serve(listener, "text/x", || async { Some("figures\n".repeat(100_000)) }) => unreachable!(),
                result = visit(address) => result,
            }
        })
    }

    /// All that is answered to `request`.
    async fn ask(address: SocketAddr, request: &[u8]) -> String {
        let mut client = TcpStream::connect(address).await.unwrap();
        // It may hang up before it has heard all.
        let _ = client.write_all(request).await;
        let mut reply = String::new();
        let _ = client.read_to_string(&mut reply).await;
        reply
    }

    #[test]
    fn the_page_is_where_it_should_be_and_nothing_else_is_anywhere() {
        with_server(async |address| {
            let reply = ask(address, b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n").await;
            let (head, body) = reply.split_once("\r\n\r\n").unwrap();
            assert_eq!(body, "figures\n".repeat(100_000));
            assert!(head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: text/x\r\n"), "{head}");
            assert!(head.contains("\r\nContent-Length: 800000\r\n") && head.ends_with("Connection: close"), "{head}");
            let reply = ask(address, b"HEAD /metrics?x=1 HTTP/1.0\r\n\r\n").await;
            assert!(reply.contains("200 OK") && reply.contains(": 800000\r\n") && reply.ends_with("\r\n\r\n"));
            for (request, status) in [
                (&b"GET http://x/metrics HTTP/1.1\r\n\r\n"[..], "200"),
                (b"GET /metrics HTTP/1.1\n\n", "200"),
                (b"GET / HTTP/1.1\r\n\r\n", "404"),
                (b"GET http://x HTTP/1.1\r\n\r\n", "404"),
                (b"GET /metrics/ HTTP/1.1\r\n\r\n", "404"),
                (b"GET /../metrics HTTP/1.1\r\n\r\n", "404"),
                (b"POST /metrics HTTP/1.1\r\nContent-Length: 3\r\n\r\nabc", "405"),
                (b"get /metrics HTTP/1.1\r\n\r\n", "405"),
            ] {
                let reply = ask(address, request).await;
                assert!(reply.starts_with(&format!("HTTP/1.1 {status} ")), "{}", String::from_utf8_lossy(request));
                assert_eq!(reply.contains("Allow: GET"), status == "405");
            }
        });
    }

    #[test]
    fn nonsense_is_refused_and_bounded() {
        with_server(async |address| {
            for nonsense in [
                &b"\r\n\r\n"[..],
                b"GET\r\n\r\n",
                b"GET /metrics\r\n\r\n",
                b"GET /metrics HTTP/2\r\n\r\n",
                b"GET /metrics HTTP/1.1 x\r\n\r\n",
                b"\x16\x03\x01\x00\xff\n\n",
            ] {
                assert!(ask(address, nonsense).await.starts_with("HTTP/1.1 400 "), "{nonsense:?}");
            }
            let long = [&b"GET /metrics HTTP/1.1\r\nX: "[..], &[b'x'; 9000]].concat();
            assert!(ask(address, &long).await.starts_with("HTTP/1.1 431 "));
            let endless = vec![b'x'; 1 << 20];
            let _ = ask(address, &endless).await;
            assert!(ask(address, b"GET /metrics HTTP/1.1\r\n\r\n").await.contains("200 OK"));
        });
    }

    #[test]
    fn the_slow_are_told_and_the_silent_keep_nobody_out() {
        with_server(async |address| {
            let mut silent = Vec::new();
            for _ in 0..3 * CLIENTS {
                silent.push(TcpStream::connect(address).await.unwrap());
            }
            let start = Instant::now();
            let mut slow = TcpStream::connect(address).await.unwrap();
            slow.write_all(b"GET /metr").await.unwrap();
            let mut reply = String::new();
            slow.read_to_string(&mut reply).await.unwrap();
            assert!(reply.starts_with("HTTP/1.1 408 "), "{reply}");
            // Each of them is let in once, asked, and waited for a little when it has been told.
            assert!(start.elapsed() < 30 * ASKING, "{:?}", start.elapsed());
        });
    }

    #[test]
    fn a_request_is_understood_however_it_is_cut() {
        with_server(async |address| {
            let mut client = TcpStream::connect(address).await.unwrap();
            client.set_nodelay(true).unwrap();
            for byte in b"GET /metrics HTTP/1.1\r\n\r\n" {
                client.write_all(&[*byte]).await.unwrap();
                tokio::task::yield_now().await;
            }
            let mut reply = String::new();
            client.read_to_string(&mut reply).await.unwrap();
            assert!(reply.contains("200 OK"));
        });
    }
}
