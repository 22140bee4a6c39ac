//! What this host's sandboxes use, as one page: found by their folders, whoever their clients are.
//!
//! They come and go while they are looked at: one that is gone by the end is left out. One that does not answer in time is down, and
//! what needs no answer is told of it nevertheless.

use std::collections::HashMap;
use std::time::Duration;

use tatami_protocol::agent::Figures;

use super::exposition::{Exposition, Family};
use super::{guest, process};
use crate::sandbox::figures;
use crate::sandbox::folder::{self, FolderError, Found, Places};

/// What a sandbox's processes are called.
const SERVER: &str = "server";
const VMM: &str = "vmm";
/// How long a sandbox may take to say what goes on in its guest; all are asked at the same time.
const DEADLINE: Duration = Duration::from_secs(1);

static BUILD: Family = Family::gauge("tatami_build_info", "The version of Tatami that tells this.");
static SANDBOXES: Family = Family::gauge("tatami_sandboxes", "Sandboxes on this host.");
static UP: Family = Family::gauge("tatami_sandbox_up", "Whether the sandbox's agent answers, by way of its server.");
static INFO: Family = Family::gauge(
    "tatami_sandbox_info",
    "A sandbox: its folder's name, and its client's namespace or the name that it was given.",
);
static CPU: Family = Family::counter(
    "tatami_process_cpu_seconds_total",
    "CPU time of a sandbox's processes on the host: its server, and its VMM with the vCPUs.",
);
static RESIDENT: Family = Family::gauge(
    "tatami_process_resident_memory_bytes",
    "Memory of a sandbox's processes on the host: anonymous is a process's own, file may be others' as well, shared is a guest's that comes from no template.",
);
static THREADS: Family = Family::gauge("tatami_process_threads", "Threads of a sandbox's processes on the host.");
static FDS: Family =
    Family::gauge("tatami_process_open_fds", "Files that a sandbox's processes on the host have open.");
static GUEST: Family = Family::counter(
    "tatami_vmm_guest_cpu_seconds_total",
    "CPU time of a VMM that its vCPUs spent in the guest; part of its user time.",
);
static VMM_THREADS: Family = Family::counter(
    "tatami_vmm_thread_cpu_seconds_total",
    "CPU time of a VMM's threads: its vCPUs, and one or more for each kind of device.",
);

/// A sandbox as those call it who look.
#[derive(Debug)]
pub(super) struct Sandbox {
    found: Found,
    /// Its client's id, or its folder's; no other's.
    pub(super) label: String,
}

impl Sandbox {
    /// The name of its folder, which is its own for ever.
    pub(super) fn id(&self) -> String {
        self.found.id().to_owned()
    }

    /// Its processes on this host: what each is, and its number.
    pub(super) fn processes(&self) -> impl Iterator<Item = (&'static str, i32)> {
        let server = self.found.server();
        // The number could be another process's by now, but not one that the server has started.
        let is_vmm = |pid: &i32| process::usage(*pid).is_some_and(|used| used.parent == server);
        let vmm = self.found.vmm().filter(is_vmm);
        [(SERVER, Some(server)), (VMM, vmm)].into_iter().filter_map(|(name, pid)| Some((name, pid?)))
    }
}

/// The page, as things are now.
///
/// # Errors
/// When the folder of sandboxes cannot be listed.
pub(super) async fn page(places: &Places) -> Result<String, FolderError> {
    let sandboxes = ask_all(places).await?;
    let mut page = Exposition::default();
    page.add(&BUILD, &[("version", env!("CARGO_PKG_VERSION"))], 1);
    page.add(&SANDBOXES, &[], sandboxes.len());
    for (sandbox, figures) in &sandboxes {
        describe(sandbox, figures.is_some(), &mut page);
        measure(sandbox, &mut page);
        if let Some(figures) = figures {
            guest::add(&sandbox.label, figures, &mut page);
        }
    }
    Ok(page.finish())
}

/// All that live, with what those say of their guests that answer.
///
/// # Errors
/// When the folder of sandboxes cannot be listed.
pub(super) async fn ask_all(places: &Places) -> Result<Vec<(Sandbox, Option<Figures>)>, FolderError> {
    // Servers are asked at the same time: one that does not answer holds up nobody but itself.
    let asked: Vec<_> = living(places)?.into_iter().map(|sandbox| tokio::spawn(ask(sandbox))).collect();
    let mut sandboxes = Vec::new();
    for asked in asked {
        // An error is a panic, which was told.
        sandboxes.extend(asked.await.ok().flatten());
    }
    Ok(sandboxes)
}

/// All whose servers live, by the ids that their users know: those of their clients, or else the folders'.
///
/// # Errors
/// When the folder of sandboxes cannot be listed.
pub(super) fn living(places: &Places) -> Result<Vec<Sandbox>, FolderError> {
    let mut all: Vec<Sandbox> = folder::all(places)?
        .into_iter()
        .filter(Found::is_held)
        .map(|found| Sandbox { label: found.client().map_or_else(|| found.id().to_owned(), |client| client.id), found })
        .collect();
    // Namespaces do not know of each other's ids, and no two sandboxes may have the same samples.
    let mut count = HashMap::<String, usize>::new();
    all.iter().for_each(|sandbox| *count.entry(sandbox.label.clone()).or_default() += 1);
    for sandbox in all.iter_mut().filter(|sandbox| count[&sandbox.label] > 1) {
        sandbox.label = format!("{}@{}", sandbox.label, sandbox.found.id());
    }
    all.sort_by(|one, other| one.label.cmp(&other.label));
    Ok(all)
}

/// The sandbox with what it says of its guest; none if it has ended meanwhile.
async fn ask(sandbox: Sandbox) -> Option<(Sandbox, Option<Figures>)> {
    let figures = tokio::time::timeout(DEADLINE, figures::ask(sandbox.found.state())).await;
    let figures = figures.ok().and_then(Result::ok);
    (figures.is_some() || sandbox.found.is_held()).then_some((sandbox, figures))
}

fn describe(sandbox: &Sandbox, up: bool, page: &mut Exposition) {
    page.add(&UP, &[("sandbox_id", &sandbox.label)], u8::from(up));
    let client = sandbox.found.client();
    let namespace = client.as_ref().map_or("", |client| &client.namespace);
    // A client's sandboxes have names on this host that mean something to nobody else.
    let name = sandbox.found.name().filter(|_| client.is_none()).unwrap_or_default();
    let labels =
        [("sandbox_id", &*sandbox.label), ("folder", sandbox.found.id()), ("namespace", namespace), ("name", name)];
    page.add(&INFO, &labels, 1);
}

/// What its processes use. One that ends meanwhile is left out.
fn measure(sandbox: &Sandbox, page: &mut Exposition) {
    let id = ("sandbox_id", &*sandbox.label);
    let mut vmm = None;
    for (name, pid) in sandbox.processes() {
        vmm = vmm.or((name == VMM).then_some(pid));
        let name = ("process", name);
        if let Some(used) = process::usage(pid) {
            page.add(&CPU, &[id, name, ("mode", "user")], used.user);
            page.add(&CPU, &[id, name, ("mode", "system")], used.system);
            page.add(&THREADS, &[id, name], used.threads);
        }
        if let Some(resident) = process::resident(pid) {
            page.add(&RESIDENT, &[id, name, ("kind", "anonymous")], resident.anonymous);
            page.add(&RESIDENT, &[id, name, ("kind", "file")], resident.file);
            page.add(&RESIDENT, &[id, name, ("kind", "shared")], resident.shared);
        }
        if let Some(count) = process::descriptors(pid) {
            page.add(&FDS, &[id, name], count);
        }
    }
    if let Some(vmm) = vmm {
        if let Some(used) = process::usage(vmm) {
            page.add(&GUEST, &[id], used.guest);
        }
        for (thread, seconds) in process::threads(vmm) {
            page.add(&VMM_THREADS, &[id, ("thread", &thread)], seconds);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sandbox::figures::tests::sandbox;
    use crate::sandbox::folder::{Client, Folder, Lot};
    use std::time::Instant;

    fn places() -> (tempfile::TempDir, Places) {
        let dir = tempfile::tempdir().unwrap();
        let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
        (dir, places)
    }

    fn create(places: &Places, name: Option<&str>, client: Option<(&str, &str)>) -> Folder {
        let folder = Folder::create(places, Lot::choose(places).unwrap(), name).unwrap();
        if let Some((namespace, id)) = client {
            folder.note_client(&Client { namespace: namespace.to_owned(), id: id.to_owned() }).unwrap();
        }
        folder
    }

    fn page_of(places: &Places) -> String {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(page(places)).unwrap()
    }

    #[test]
    fn a_host_without_sandboxes_says_so() {
        let (_dir, places) = places();
        assert!(page_of(&places).ends_with("\ntatami_sandboxes 0\n"));
        drop(create(&places, None, None));
        assert!(page_of(&places).ends_with("\ntatami_sandboxes 0\n"));
    }

    #[test]
    fn sandboxes_are_called_as_their_users_call_them() {
        let (_dir, places) = places();
        let own = create(&places, Some("web"), None);
        let pod = create(&places, Some("0a1b"), Some(("k8s.io", "pod")));
        let twins = [create(&places, None, Some(("one", "twin"))), create(&places, None, Some(("two", "twin")))];
        let page = page_of(&places);
        assert!(page.contains("\ntatami_sandboxes 4\n"), "{page}");
        for line in [
            format!("tatami_sandbox_info{{sandbox_id=\"{0}\",folder=\"{0}\",namespace=\"\",name=\"web\"}} 1", own.id()),
            format!(
                "tatami_sandbox_info{{sandbox_id=\"pod\",folder=\"{}\",namespace=\"k8s.io\",name=\"\"}} 1",
                pod.id()
            ),
            format!(
                "tatami_sandbox_info{{sandbox_id=\"twin@{0}\",folder=\"{0}\",namespace=\"two\",name=\"\"}} 1",
                twins[1].id()
            ),
        ] {
            assert!(page.lines().any(|there| there == line), "{line}\n{page}");
        }
        let mut samples: Vec<&str> = page.lines().filter_map(|line| Some(line.rsplit_once(' ')?.0)).collect();
        let all = samples.len();
        samples.sort_unstable();
        samples.dedup();
        assert_eq!(samples.len(), all, "{page}");
    }

    #[test]
    fn processes_are_measured_and_a_number_that_is_somebody_elses_is_not_a_vmm() {
        let (_dir, places) = places();
        let folder = create(&places, None, None);
        // Its server is this process, whose parent is not its own.
        folder.note_vmm(std::process::id()).unwrap();
        let page = page_of(&places);
        let of =
            |process: &str| format!("tatami_process_threads{{sandbox_id=\"{}\",process=\"{process}\"}} ", folder.id());
        assert!(page.contains(&of("server")) && !page.contains("vmm"), "{page}");
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        folder.note_vmm(child.id()).unwrap();
        let page = page_of(&places);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(page.contains(&format!("{}1\n", of("vmm"))), "{page}");
        assert!(page.contains(&format!(
            "tatami_vmm_thread_cpu_seconds_total{{sandbox_id=\"{}\",thread=\"sleep\"}} ",
            folder.id()
        )));
    }

    #[test]
    fn one_that_does_not_answer_is_down_and_those_that_do_are_up() {
        let (_dir, places) = places();
        let [fine, silent, booting] = [(); 3].map(|()| create(&places, None, None));
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let start = Instant::now();
        let page = runtime.block_on(async {
            let figures = Figures { mem_total: 4096, ..Default::default() };
            let _tellers = (sandbox(fine.state(), Some(figures)), sandbox(silent.state(), None));
            // Connections are taken, and that is all.
            let _deaf = std::os::unix::net::UnixListener::bind(booting.state().join("figures.sock")).unwrap();
            page(&places).await.unwrap()
        });
        assert!(start.elapsed() >= DEADLINE && start.elapsed() < 5 * DEADLINE, "{:?}", start.elapsed());
        for (folder, up) in [(&fine, 1), (&silent, 0), (&booting, 0)] {
            assert!(page.contains(&format!("tatami_sandbox_up{{sandbox_id=\"{}\"}} {up}\n", folder.id())), "{page}");
        }
        assert!(page.contains(&format!("tatami_guest_memory_total_bytes{{sandbox_id=\"{}\"}} 4096\n", fine.id())));
        assert_eq!(page.matches("tatami_guest_memory_total_bytes{").count(), 1);
    }

    #[test]
    fn one_that_ends_while_it_is_asked_is_left_out() {
        let (_dir, places) = places();
        let folder = create(&places, None, None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let page = runtime.block_on(async {
            let _silent = sandbox(folder.state(), None);
            let (page, ()) = tokio::join!(page(&places), async {
                tokio::time::sleep(DEADLINE / 4).await;
                drop(folder);
            });
            page.unwrap()
        });
        assert!(page.ends_with("\ntatami_sandboxes 0\n"), "{page}");
    }
}
