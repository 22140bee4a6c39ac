//! As much of QEMU's machine protocol as a snapshot needs: one command, one answer, over a unix socket.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to one QEMU.
#[derive(Debug)]
pub(crate) struct Qmp {
    stream: BufReader<UnixStream>,
}

impl Qmp {
    /// Connects and negotiates.
    ///
    /// # Errors
    /// Nobody listens, or it is not QEMU.
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let stream = UnixStream::connect(path).context("QEMU's control socket")?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut qmp = Self { stream: BufReader::new(stream) };
        qmp.line().context("QEMU's greeting")?;
        qmp.run("qmp_capabilities", json!({}))?;
        Ok(qmp)
    }

    /// Runs one command and returns what it returned.
    ///
    /// # Errors
    /// QEMU refuses it, or is gone.
    pub(crate) fn run(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": command, "arguments": arguments }).to_string();
        request.push('\n');
        self.stream.get_mut().write_all(request.as_bytes()).context("QEMU's control socket")?;
        loop {
            let mut answer = self.line()?;
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"].as_str().unwrap_or("no reason given"));
            }
            // Anything else is an event.
        }
    }

    /// The loopback port that leads to `guest_port` (QEMU chose it; only the human monitor tells).
    ///
    /// # Errors
    /// QEMU has no such forwarding.
    pub(crate) fn forwarded_port(&mut self, guest_port: u16) -> Result<u16> {
        let text = self.run("human-monitor-command", json!({ "command-line": "info usernet" }))?;
        forwarded_port(text.as_str().unwrap_or_default(), guest_port).with_context(|| format!("no port in: {text}"))
    }

    fn line(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line).context("QEMU's control socket")? == 0 {
            bail!("QEMU closed its control socket");
        }
        serde_json::from_str(&line).with_context(|| format!("not JSON from QEMU: {line}"))
    }
}

fn forwarded_port(usernet: &str, guest_port: u16) -> Option<u16> {
    // "TCP[HOST_FORWARD]  13   127.0.0.1 40631   10.0.2.15     7     0     0"
    let line = usernet.lines().find(|l| l.contains("HOST_FORWARD"))?;
    let fields: Vec<&str> = line.split_whitespace().collect();
    (fields.get(5)?.parse() == Ok(guest_port)).then(|| fields.get(3)?.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::forwarded_port;

    #[test]
    fn finds_the_forwarded_port() {
        let text = "Hub -1 (n0):\r\n  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\r\n  \
                    TCP[HOST_FORWARD]  13       127.0.0.1 40631       10.0.2.15     7     0     0\r\n";
        assert_eq!(forwarded_port(text, 7), Some(40631));
        assert_eq!(forwarded_port(text, 8), None);
        assert_eq!(forwarded_port("", 7), None);
    }
}
