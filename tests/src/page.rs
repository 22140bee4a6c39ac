//! A page that somebody serves, as whoever runs on the host sees it.

use std::io::{self, Read, Write};
use std::net::{TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use crate::engine::SOON;

/// How long one try may.
const A_TRY: Duration = Duration::from_secs(5);

/// The page `x` at an address, whose port is 80 where it names none, as soon as there is one; or else why there is none.
#[must_use]
pub fn page(address: &str) -> String {
    let deadline = Instant::now() + SOON;
    loop {
        match get(address) {
            Ok(page) => return page,
            Err(error) if Instant::now() > deadline => return error.to_string(),
            Err(_) => thread::sleep(Duration::from_millis(300)),
        }
    }
}

fn get(address: &str) -> io::Result<String> {
    let names_a_port = address.rsplit(']').next().is_some_and(|rest| rest.contains(':'));
    let whole = if names_a_port { address.to_owned() } else { format!("{address}:80") };
    let first = whole.to_socket_addrs()?.next().ok_or_else(|| io::Error::other("no such address"))?;
    let mut connection = TcpStream::connect_timeout(&first, A_TRY)?;
    connection.set_read_timeout(Some(A_TRY))?;
    write!(connection, "GET /x HTTP/1.0\r\nHost: {address}\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    match answer.split_once("\r\n\r\n") {
        Some((head, page)) if head.split(' ').nth(1) == Some("200") && !page.is_empty() => Ok(page.trim().to_owned()),
        _ => Err(io::Error::other(format!("no page: {answer:?}"))),
    }
}
