//! `save` and `restore`: a running container in a folder, and others that go on from there.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use tatami_vmm::probe;

use super::super::launch::{Order, Work, launch};
use super::super::{Error, registry};
use super::control::{refused, running};
use crate::log_files::Limits;
use crate::network::passt::Published;
use crate::run::network::{self, Net, Network};
use crate::sandbox::folder::Places;
use crate::sandbox::kept::Record;
use crate::sandbox::saving::Saved;
use crate::sandbox::{Beginning, Settings};

/// `tatami save`.
#[derive(Args)]
#[command(after_help = "\
Writes the machine's memory, and what the container has written to its files, and has the container go on. It stands still
meanwhile. The folder holds all that was in memory, secrets too: only its owner may read it. It needs the unpacked image, and
volumes are not in it: what goes on from it sees the host's folders as they are then.

A container whose root is not an image, and one with block devices, cannot be saved. Connections over a network do not go on in what is
restored. A file that was removed while it was open cannot
be read any more in what goes on.

Examples:
  tatami save web /var/lib/web-1
  tatami restore --name second /var/lib/web-1")]
pub struct SaveArguments {
    /// Name, id, or beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// The folder to make
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

/// `tatami restore`.
#[derive(Args)]
#[command(after_help = "\
Starts a container in the background that goes on from where it was saved, with a log of its own, and prints its id. The folder
stays as it is, and must stay there as long as something goes on from it: any number may, also at once. Each gets other random
numbers and the right time; programs in it that keep a secret or an id in memory all have the same. Each has a network of its own
of the kind that was saved: another passt, and a tap that nobody else has. A published port, and a tap, has one holder: say others
with -p and --net. Without ip=, gw=, mac= or mtu= the guest has the interface that it had.

Examples:
  tatami restore --name second /var/lib/web-1
  for n in 1 2 3; do tatami restore --name web$n -p 808$n:80 /var/lib/web-1; done
  tatami restore --net tap:tap1 /var/lib/web-1")]
pub struct RestoreArguments {
    /// A name for it
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// The network, in place of the saved one: of the same kind
    #[arg(
        long,
        value_name = "passt|tap:NAME[,ip=ADDRESS/PREFIX][,gw=ADDRESS][,mac=ADDRESS][,mtu=BYTES][,vhost=auto|on|off]"
    )]
    net: Option<Net>,
    /// Lead a port of the host to one of the container, in place of the saved ones
    #[arg(short, long, value_name = "[ADDRESS:]HOST:GUEST[/udp]", value_parser = network::published)]
    publish: Vec<Published>,
    /// What `tatami save` made
    #[arg(value_name = "FOLDER")]
    folder: PathBuf,
}

pub(super) async fn save(places: &Places, arguments: &SaveArguments) -> Result<u8, Error> {
    let folder = absolute(&arguments.folder)?;
    if folder.to_str().is_none() {
        return Err(Error::Usage(format!("{}: the folder's name must be UTF-8", folder.display())));
    }
    let entry = registry::find(places, &arguments.container)?;
    let client = running(&entry, "save").await?;
    client.save(&folder).await.map_err(|error| refused(&entry, error))?;
    Ok(0)
}

/// Call it while the process has one thread.
pub(super) fn restore(arguments: RestoreArguments) -> Result<u8, Error> {
    let folder = absolute(&arguments.folder)?;
    let saved = Saved::read(&folder).map_err(failed)?;
    probe::open().and_then(probe::check).map_err(failed)?;
    let network = Network::find_again(&saved.network, &saved.vm, arguments.net, arguments.publish).map_err(failed)?;
    let settings = Settings {
        vm: saved.vm.clone(),
        beginning: Beginning::Saved { folder: folder.clone(), root_disk: saved.root_disk() },
        memory_folder: None,
        served: Vec::new(),
        live_console: false,
        debug_console: false,
        boot_limit: saved.boot_limit,
    };
    let record = Record {
        id: String::new(),
        container: Some(saved.record.container().to_owned()),
        name: arguments.name,
        started: None,
        ended: None,
        ..saved.record.clone()
    };
    let work = Work::GoOn(Box::new((saved, network)), folder);
    let launched = launch(Order { work, settings, record, limits: Limits::default() });
    let id = launched.map_err(|error| Error::Command(error.to_string(), error.status))?;
    // It runs, whether or not somebody reads its id.
    let _ = writeln!(std::io::stdout(), "{id}");
    Ok(0)
}

fn absolute(folder: &Path) -> Result<PathBuf, Error> {
    std::path::absolute(folder).map_err(|source| Error::System { action: "find the folder", source })
}

/// What keeps Tatami itself from doing it, as `tatami run` says it.
fn failed(error: impl std::fmt::Display) -> Error {
    Error::Command(error.to_string(), crate::run::TATAMI_FAILED)
}
