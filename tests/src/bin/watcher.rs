//! Watches files and folders, and prints a line for each event: `MASK PATH NAME`, where the mask's letters are those of busybox's
//! inotifyd, which the distribution's busybox leaves out. Run in containers by the tests.

use std::collections::HashMap;
use std::io::Write;

use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

/// What changes something.
const LETTERS: [(AddWatchFlags, char); 10] = [
    (AddWatchFlags::IN_MODIFY, 'c'),
    (AddWatchFlags::IN_CLOSE_WRITE, 'w'),
    (AddWatchFlags::IN_ATTRIB, 'e'),
    (AddWatchFlags::IN_CREATE, 'n'),
    (AddWatchFlags::IN_DELETE, 'd'),
    (AddWatchFlags::IN_MOVED_FROM, 'm'),
    (AddWatchFlags::IN_MOVED_TO, 'y'),
    (AddWatchFlags::IN_DELETE_SELF, 'D'),
    (AddWatchFlags::IN_MOVE_SELF, 'M'),
    (AddWatchFlags::IN_IGNORED, 'x'),
];

fn main() -> anyhow::Result<()> {
    let inotify = Inotify::init(InitFlags::IN_CLOEXEC)?;
    let all = LETTERS.iter().fold(AddWatchFlags::empty(), |all, (flag, _)| all | *flag);
    let mut watched = HashMap::new();
    for path in std::env::args().skip(1) {
        watched.insert(inotify.add_watch(path.as_str(), all - AddWatchFlags::IN_IGNORED)?, path);
    }
    let mut out = std::io::stdout().lock();
    loop {
        for event in inotify.read_events()? {
            let letters: String =
                LETTERS.iter().filter(|(flag, _)| event.mask.contains(*flag)).map(|(_, letter)| letter).collect();
            let name = event.name.map(|name| format!(" {}", name.display())).unwrap_or_default();
            writeln!(out, "{letters} {}{name}", watched.get(&event.wd).map_or("?", String::as_str))?;
            out.flush()?;
        }
    }
}
