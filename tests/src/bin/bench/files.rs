//! Files of the host: the same guest, the same folder, the same reads and writes, by Tatami's own file server and by QEMU's
//! microvm with virtiofsd.

use anyhow::Result;

use crate::boot::{microvm, tatami};
use crate::requests::{Contestant, exits, table};

/// Where Debian has it.
const VIRTIOFSD: &str = "/usr/libexec/virtiofsd";

pub(crate) fn tables(rounds: usize, clock: &str) -> Result<()> {
    let folder = tempfile::tempdir_in("/var/tmp")?;
    let shared = folder.path().join("shared");
    std::fs::create_dir(&shared)?;
    let (shared, socket) = (shared.display().to_string(), folder.path().join("socket").display().to_string());
    let ours = || tatami(&format!("--cmdline BENCH=files --shared {shared}"));
    let theirs = microvm(
        " BENCH=files",
        &format!(
            "-global virtio-mmio.force-legacy=false -object memory-backend-memfd,id=memory,size=128M,share=on \
             -machine memory-backend=memory -chardev socket,id=files,path={socket} \
             -device vhost-user-fs-device,chardev=files,tag=shared"
        ),
    )?;
    let server = [VIRTIOFSD, "--shared-dir", &shared, "--cache", "auto", "--xattr", &format!("--socket-path={socket}")];
    let server = server.map(str::to_owned).to_vec();
    let contestants =
        vec![Contestant::new("Tatami", ours()?), Contestant::new("QEMU virtiofsd", theirs).with_helper(server)];
    table(&format!("files of the host, {clock}"), contestants, rounds)?;
    exits(ours()?, tatami(&format!("--shared {shared}"))?)
}
