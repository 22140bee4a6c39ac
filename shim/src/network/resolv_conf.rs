//! The resolver's configuration of a container: the servers asked for, or those of the host that a guest can reach.

use std::net::IpAddr;
use std::path::Path;

/// Where the host's is; where systemd-resolved's stub is there instead, the servers behind it are in the second.
const HOST: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// A resolv.conf that names these servers.
pub fn of(servers: &[IpAddr]) -> String {
    servers.iter().map(|server| format!("nameserver {server}\n")).collect()
}

/// The host's, without servers on the host itself: a guest's own loopback is another. Empty if none is left.
pub fn of_host() -> String {
    let read = |path: &str| std::fs::read_to_string(Path::new(path)).ok();
    HOST.into_iter().filter_map(read).map(|text| reachable(&text)).find(|text| !text.is_empty()).unwrap_or_default()
}

fn reachable(text: &str) -> String {
    let mut servers = 0;
    let mut out = String::new();
    for line in text.lines().map(str::trim) {
        let mut words = line.split_whitespace();
        match (words.next(), words.next().map(str::parse::<IpAddr>)) {
            (Some("nameserver"), Some(Ok(server))) if !server.is_loopback() => servers += 1,
            (Some("search" | "options" | "domain"), _) => {}
            _ => continue,
        }
        out.push_str(line);
        out.push('\n');
    }
    if servers == 0 { String::new() } else { out }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_on_the_host_itself_are_left_out() {
        let text = "# made by hand\nsearch example.org\nnameserver 127.0.0.53\nnameserver 192.0.2.1\n nameserver ::1\nnameserver fe80::1%eth0\noptions ndots:2\n";
        assert_eq!(reachable(text), "search example.org\nnameserver 192.0.2.1\noptions ndots:2\n");
        assert_eq!(reachable("search x\nnameserver 127.0.0.1\n"), "");
        assert_eq!(
            of(&["192.0.2.1".parse().unwrap(), "2001:db8::1".parse().unwrap()]),
            "nameserver 192.0.2.1\nnameserver 2001:db8::1\n"
        );
    }
}
