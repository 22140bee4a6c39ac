//! `tatami top`: what the host's sandboxes use now, the busiest first, over and over.
//!
//! Two looks tell how busy a sandbox was between them. What its guest says of itself is believed as little as on the metrics' page.

use std::collections::HashMap;
use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use serde::Serialize;
use tatami_protocol::agent::Figures;

use super::node::{self, Sandbox};
use super::{MetricsError, guest, process};
use crate::sandbox::folder::Places;
use crate::table::{Format, printable, size, table};

/// Clears a terminal from its first line on.
const CLEAR: &str = "\x1b[H\x1b[J";

/// The command line of `tatami top`.
#[derive(Args, Debug)]
#[command(after_help = "\
CPU % is of one processor. HOST MEMORY is what the sandbox's server and VMM have for themselves, with what their guest has touched;
GUEST MEMORY what the guest uses of what it has. What crossed its network and disks is counted from its start. `-` stands for what a
guest does not say: one that boots, for instance.

Examples:
  tatami top                              # until Ctrl-C
  tatami top --once --format json | jq -r 'select(.CpuPercent > 50) | .Id'")]
pub struct TopArguments {
    /// One look, and no more
    #[arg(long)]
    once: bool,
    /// Seconds between two looks
    #[arg(short, long, value_name = "SECONDS", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=3600))]
    interval: u64,
    /// A table, or a JSON object a line with numbers of bytes
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// A sandbox between two looks; bytes, but for the first numbers.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Row {
    id: String,
    cpu_percent: f64,
    host_memory: u64,
    #[serde(flatten)]
    guest: Option<GuestRow>,
}

/// What its guest says.
#[derive(Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
struct GuestRow {
    containers: usize,
    guest_memory_used: u64,
    guest_memory: u64,
    network_received: u64,
    network_sent: u64,
    disk_read: u64,
    disk_written: u64,
}

/// CPU time of sandboxes when they were looked at, in seconds, by the names of their folders.
struct Look {
    at: Instant,
    seconds: HashMap<String, f64>,
}

/// Shows it until it is told to end.
pub fn main(arguments: &TopArguments) -> ExitCode {
    super::end(super::as_root(|places| show(places, arguments)))
}

async fn show(places: Places, arguments: &TopArguments) -> Result<(), MetricsError> {
    let (mut terminate, mut interrupt) = super::ends()?;
    let mut last = Look::at(node::living(&places)?.iter());
    loop {
        tokio::select! {
            _ = terminate.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(Duration::from_secs(arguments.interval)) => {}
        }
        let asked = node::ask_all(&places).await?;
        let this = Look::at(asked.iter().map(|(sandbox, _)| sandbox));
        let mut rows: Vec<Row> =
            asked.iter().map(|(sandbox, figures)| row(sandbox, figures.as_ref(), &last, &this)).collect();
        rows.sort_by(|one, other| other.cpu_percent.total_cmp(&one.cpu_percent).then_with(|| one.id.cmp(&other.id)));
        let mut out = io::stdout();
        let clear = if out.is_terminal() && !arguments.once { CLEAR } else { "" };
        let text = match arguments.format {
            Format::Table => format!("{clear}{}", table(&lines(&rows))),
            Format::Json => rows.iter().map(json).collect(),
        };
        out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(MetricsError::Output)?;
        if arguments.once {
            return Ok(());
        }
        last = this;
    }
}

impl Look {
    fn at<'a>(sandboxes: impl Iterator<Item = &'a Sandbox>) -> Look {
        Look { at: Instant::now(), seconds: sandboxes.map(|of| (of.id(), seconds(of))).collect() }
    }
}

/// The CPU time of its processes.
fn seconds(sandbox: &Sandbox) -> f64 {
    let used = sandbox.processes().filter_map(|(_, pid)| process::usage(pid));
    used.map(|used| used.user + used.system).sum()
}

fn row(sandbox: &Sandbox, figures: Option<&Figures>, last: &Look, this: &Look) -> Row {
    let resident = sandbox.processes().filter_map(|(_, pid)| process::resident(pid));
    let host_memory = resident.map(|of| of.anonymous + of.shared).sum();
    Row {
        id: sandbox.label.clone(),
        cpu_percent: percent(&sandbox.id(), last, this),
        host_memory,
        guest: figures.map(GuestRow::of),
    }
}

/// Of one processor, with one decimal; one that was not there the last time has used what it has since.
fn percent(id: &str, last: &Look, this: &Look) -> f64 {
    let before = last.seconds.get(id).copied().unwrap_or_default();
    let used = (this.seconds.get(id).copied().unwrap_or_default() - before).max(0.0);
    let passed = (this.at - last.at).as_secs_f64().max(0.001);
    (used / passed * 1000.0).round() / 10.0
}

impl GuestRow {
    fn of(figures: &Figures) -> GuestRow {
        let sum = |parts: &mut dyn Iterator<Item = u64>| parts.fold(0, u64::saturating_add);
        GuestRow {
            containers: figures.containers.iter().filter(|of| !of.container_id.starts_with(guest::INNER)).count(),
            guest_memory_used: figures.mem_total.saturating_sub(figures.mem_available),
            guest_memory: figures.mem_total,
            network_received: sum(&mut figures.interfaces.iter().map(|of| of.received_bytes)),
            network_sent: sum(&mut figures.interfaces.iter().map(|of| of.sent_bytes)),
            disk_read: sum(&mut figures.disks.iter().map(|of| of.read_bytes)),
            disk_written: sum(&mut figures.disks.iter().map(|of| of.written_bytes)),
        }
    }
}

fn json(row: &Row) -> String {
    serde_json::to_string(row).expect("texts and numbers are JSON") + "\n"
}

fn lines(rows: &[Row]) -> Vec<[String; 7]> {
    let head = ["SANDBOX", "CPU %", "HOST MEMORY", "GUEST MEMORY", "CONTAINERS", "NET IN / OUT", "DISK READ / WRITTEN"];
    let line = |row: &Row| {
        let of_guest = |tell: &dyn Fn(&GuestRow) -> String| row.guest.as_ref().map_or_else(|| "-".to_owned(), tell);
        let two = |one: u64, other: u64| format!("{} / {}", size(one), size(other));
        [
            printable(&row.id),
            format!("{:.1}", row.cpu_percent),
            size(row.host_memory),
            of_guest(&|guest| two(guest.guest_memory_used, guest.guest_memory)),
            of_guest(&|guest| guest.containers.to_string()),
            of_guest(&|guest| two(guest.network_received, guest.network_sent)),
            of_guest(&|guest| two(guest.disk_read, guest.disk_written)),
        ]
    };
    std::iter::once(head.map(str::to_owned)).chain(rows.iter().map(line)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use tatami_protocol::agent::{ContainerFigures, InterfaceFigures};

    fn looks(before: &[(&str, f64)], after: &[(&str, f64)]) -> (Look, Look) {
        let seconds = |of: &[(&str, f64)]| of.iter().map(|(id, seconds)| ((*id).to_owned(), *seconds)).collect();
        let at = Instant::now();
        let then = at + Duration::from_secs(2);
        (Look { at, seconds: seconds(before) }, Look { at: then, seconds: seconds(after) })
    }

    #[test]
    fn busy_is_what_was_used_between_two_looks() {
        let (last, this) =
            looks(&[("a", 1.0), ("gone", 5.0), ("back", 9.0)], &[("a", 4.0), ("new", 0.5), ("back", 1.0)]);
        let told = ["a", "new", "back", "gone"].map(|id| percent(id, &last, &this));
        assert_eq!(told, [150.0, 25.0, 0.0, 0.0]);
    }

    #[test]
    fn a_guest_that_says_nothing_has_no_numbers() {
        let row = Row { id: "b\u{1b}x".to_owned(), cpu_percent: 12.34, host_memory: 3 << 20, guest: None };
        let text = table(&lines(std::slice::from_ref(&row)));
        assert_eq!(
            text.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            ["b", "x", "12.3", "3.0", "MiB", "-", "-", "-", "-"]
        );
        assert_eq!(json(&row), "{\"Id\":\"b\\u001bx\",\"CpuPercent\":12.34,\"HostMemory\":3145728}\n");
    }

    #[test]
    fn a_guests_numbers_are_summed_and_may_be_anything() {
        let interface = |received_bytes| InterfaceFigures { received_bytes, sent_bytes: 1, ..Default::default() };
        let container = |id: &str| ContainerFigures { container_id: id.to_owned(), ..Default::default() };
        let guest = GuestRow::of(&Figures {
            mem_total: 10,
            mem_available: 30,
            interfaces: vec![interface(u64::MAX), interface(7)],
            containers: vec![container("web"), container("_pod")],
            ..Default::default()
        });
        assert_eq!((guest.guest_memory_used, guest.network_received, guest.network_sent), (0, u64::MAX, 2));
        assert_eq!(guest.containers, 1);
    }
}
