//! The story of a guest: from the kernel's call of `/init` to serving, and the restart at its end.

use anyhow::Context;
use rustix::process::{Resource, Rlimit, setrlimit};
use rustix::system::{RebootCommand, reboot, sethostname};
use tatami_protocol::{CONTROL_PORT, READY_PORT, STREAM_PORT};

use crate::sandbox::Sandbox;
use crate::server::Server;
use crate::transport::{Listener, announce};
use crate::zygote::Zygote;
use crate::{clock, depot, hold, idle, kmsg, loopback, memory, mounts};

/// The guest's own name; containers have names of their own.
const HOST_NAME: &[u8] = b"tatami";
/// Open files of one process: the kernel's limit of limits (fs.nr_open).
const MAX_FILES: u64 = 1 << 20;

/// Sets the guest up and serves until the machine restarts. Returns only after a failure, which it has told the console.
pub fn boot() {
    let started_ms = clock::since_boot_ms();
    let zygote = || Zygote::start().context("fork the zygote");
    let result = set_up().and_then(|()| zygote()).and_then(|zygote| serve(zygote, started_ms));
    let reason = result.map_or_else(|error| format!("{error:#}"), |()| "the server ended".to_owned());
    kmsg::last_words(&format!("the guest cannot go on: {reason}"));
}

fn set_up() -> anyhow::Result<()> {
    mounts::set_up()?;
    kmsg::start();
    hold::offer().context("have containers find this program")?;
    sethostname(HOST_NAME).context("set the host name")?;
    loopback::up().context("bring the loopback interface up")?;
    depot::fill().context("put the network interfaces aside")?;
    raise_limits().context("raise the resource limits")?;
    memory::remember();
    // A kernel of somebody's own may lack one of these; it is only woken more often.
    idle::let_sleep().unwrap_or_else(|cause| log::warn!("the guest will not be idle: {cause}"));
    Ok(())
}

/// Containers inherit these where their specification says nothing. The kernel's own are sized for a small machine's users,
/// while what bounds a container is its cgroup.
fn raise_limits() -> rustix::io::Result<()> {
    let files = Rlimit { current: Some(MAX_FILES), maximum: Some(MAX_FILES) };
    setrlimit(Resource::Nofile, files)?;
    setrlimit(Resource::Nproc, Rlimit { current: None, maximum: None })
}

fn serve(zygote: Zygote, started_ms: f64) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(async {
        let listen = |port| Listener::vsock(port).with_context(|| format!("listen on vsock port {port}"));
        let (control, streams) = (listen(CONTROL_PORT)?, listen(STREAM_PORT)?);
        let server = Server::start(Sandbox::new(zygote), control, streams, started_ms, Box::new(restart)).await?;
        if let Err(cause) = announce(READY_PORT).await {
            // A host that does not wait for it, such as another VMM in a test, may still connect.
            log::warn!("the host does not listen on vsock port {READY_PORT}: {cause}");
        }
        server.run().await.context("take stdio streams")
    })
}

fn restart() {
    if let Err(cause) = reboot(RebootCommand::Restart) {
        kmsg::last_words(&format!("restart: {cause}"));
    }
}
