//! A container's specification as containerd wrote it, for the guest: paths, namespaces and hooks that mean something on
//! the host get the meaning they have in a sandbox, or are refused with a reason.
//!
//! Pure, but for a look at what bind mounts name. Knows nothing of who carries the result out.

use std::path::{Path, PathBuf};

use oci_spec::runtime::{Hook, Hooks, Linux, LinuxNamespace, LinuxNamespaceType, Mount, Process, Spec};

use super::error::TaskError;
use super::{block_devices, bundle, direct_volumes, empty_dirs};
use crate::sandbox::disks::DeviceImage;
use crate::sandbox::mounts::{HostVolume, Layout};
use crate::sandbox::volumes::GuestVolume;

/// File systems that are the guest's own.
const GUEST_FILE_SYSTEMS: [&str; 14] = [
    "proc",
    "sysfs",
    "tmpfs",
    "ramfs",
    "devpts",
    "devtmpfs",
    "mqueue",
    "cgroup",
    "cgroup2",
    "hugetlbfs",
    "securityfs",
    "debugfs",
    "tracefs",
    "bpf",
];
/// Folders that a guest has itself: a bind mount from there shows the guest's.
const GUEST_FOLDERS: [&str; 3] = ["/proc", "/sys", "/dev"];

/// What namespaces of other containers of the sandbox are called, each with the process in the guest whose namespaces those are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// The processes on the host that stand for containers.
    pub(super) pids: Vec<(u32, u32)>,
    /// The files by which an engine keeps a pod's namespaces.
    pub(super) files: Vec<(PathBuf, u32)>,
}

/// Hooks that run on the host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct HostHooks {
    /// Before the container's process is started, in this order.
    pub(super) create: Vec<Hook>,
    pub(super) poststart: Vec<Hook>,
    pub(super) poststop: Vec<Hook>,
}

/// A specification with what the host must provide for it.
#[derive(Debug)]
pub(super) struct Plan {
    spec: Spec,
    /// What to lay out, in this order.
    pub(super) volumes: Vec<HostVolume>,
    /// What the guest is to mount itself.
    pub(super) guest_volumes: Vec<GuestVolume>,
    /// Block devices of the host that it names.
    pub(super) devices: Vec<DeviceImage>,
    /// The mount that each volume is for.
    places: Vec<usize>,
    /// The files that keep namespaces on the host in whose place the container has new ones.
    pub(super) kept: Vec<PathBuf>,
    /// What runs here.
    pub(super) hooks: HostHooks,
}

impl Plan {
    /// Reads what `spec` wants.
    ///
    /// # Errors
    /// [`TaskError::InvalidArgument`] names what a sandbox cannot do.
    pub(super) fn new(mut spec: Spec, known: &Known) -> Result<Plan, TaskError> {
        let (is_pod, has_kept) = (bundle::is_pod(&spec), bundle::is_first_by_crio(&spec));
        let process = spec.process_mut().as_mut().ok_or_else(|| refused("the specification has no process"))?;
        translate_process(process);
        let linux = spec.linux_mut().get_or_insert_with(Linux::default);
        let kept = translate_linux(linux, known, has_kept)?;
        let mut devices = block_devices::named(linux)?;
        let hooks = take_hooks(&mut spec)?;
        let guest_volumes = if is_pod { block_devices::share(&mut devices) } else { Vec::new() };
        let volumes = Vec::new();
        let mut plan = Plan { spec, volumes, guest_volumes, devices, places: Vec::new(), kept, hooks };
        let mut mounts = plan.spec.mounts().clone().unwrap_or_default();
        for (number, mount) in mounts.iter_mut().enumerate() {
            match translate_mount(mount)? {
                Needs::Nothing => {}
                Needs::Host(volume) => {
                    plan.volumes.push(volume);
                    plan.places.push(number);
                }
                Needs::Guest(volume) => plan.guest_volumes.push(volume),
            }
        }
        plan.spec.set_mounts(Some(mounts));
        Ok(plan)
    }

    /// The size that the process's terminal has at first: rows, columns.
    pub(super) fn console_size(&self) -> (u32, u32) {
        let size = self.spec.process().as_ref().and_then(|process| process.console_size());
        size.map_or((0, 0), |size| (size.height() as u32, size.width() as u32))
    }

    /// The version of the specification that it follows, as hooks are told.
    pub(super) fn version(&self) -> &str {
        self.spec.version()
    }

    /// The specification with the guest's paths.
    ///
    /// # Errors
    /// [`TaskError::Failed`] when it cannot be written down.
    pub(super) fn finish(mut self, layout: &Layout) -> Result<Vec<u8>, TaskError> {
        let mut root = self.spec.root().clone().unwrap_or_default();
        root.set_path(layout.guest_root.clone());
        self.spec.set_root(Some(root));
        let mut mounts = self.spec.mounts().clone().unwrap_or_default();
        for (&number, path) in self.places.iter().zip(&layout.guest_volumes) {
            mounts[number].set_source(Some(path.clone()));
        }
        self.spec.set_mounts(Some(mounts));
        serde_json::to_vec(&self.spec).map_err(TaskError::failed("the specification"))
    }
}

/// A process as it is in the guest: security modules that the guest's kernel does not have are left to the machine's
/// boundary, and said so.
pub(super) fn translate_process(process: &mut Process) {
    if let Some(profile) = process.apparmor_profile().as_ref().filter(|profile| !profile.is_empty()) {
        log::info!("the AppArmor profile {profile} is not applied: the guest's kernel has no AppArmor");
    }
    process.set_apparmor_profile(None);
    if let Some(label) = process.selinux_label().as_ref().filter(|label| !label.is_empty()) {
        log::info!("the SELinux label {label} is not applied: the guest's kernel has no SELinux");
    }
    process.set_selinux_label(None);
}

/// With the files of namespaces in whose place there are to be new ones, if the container may have such.
fn translate_linux(linux: &mut Linux, known: &Known, may_have_kept: bool) -> Result<Vec<PathBuf>, TaskError> {
    // The guest has a hierarchy of its own.
    linux.set_cgroups_path(None);
    linux.set_mount_label(None);
    if let Some(resources) = linux.resources_mut()
        && let Some(memory) = resources.memory_mut()
        && let Some(swappiness) = memory.swappiness()
    {
        log::info!(
            "memory.swappiness {swappiness} is not applied: cgroups of version 2, which the guest has, know none"
        );
        memory.set_swappiness(None);
    }
    if linux.intel_rdt().is_some() {
        return Err(refused("linux.intelRdt: a guest has no share of the host's cache to allot"));
    }
    let (mut namespaces, mut kept) = (Vec::new(), Vec::new());
    for mut namespace in linux.namespaces().clone().unwrap_or_default() {
        // The guest's network is the sandbox's, which the server has joined.
        if namespace.typ() == LinuxNamespaceType::Network {
            continue;
        }
        if let Some(path) = namespace.path().clone() {
            let inside = guest_namespace(&namespace, &path, known);
            if inside.is_none() {
                if !(may_have_kept && can_be_kept(&namespace, &path)) {
                    return Err(refused(&format!(
                        "the {} namespace {} is not one of this sandbox: a guest cannot join it",
                        namespace.typ(),
                        path.display()
                    )));
                }
                kept.push(path);
            }
            namespace.set_path(inside);
        }
        namespaces.push(namespace);
    }
    linux.set_namespaces(Some(namespaces));
    Ok(kept)
}

/// Where the guest has the namespace that is at `path` on the host: only the sandbox's own can be joined.
fn guest_namespace(namespace: &LinuxNamespace, path: &Path, known: &Known) -> Option<PathBuf> {
    let of = |guest: &u32| Path::new("/proc").join(guest.to_string()).join("ns");
    let by_process = known.pids.iter().find_map(|(host, guest)| {
        let name = path.strip_prefix(format!("/proc/{host}/ns")).ok()?;
        Some(of(guest).join(name))
    });
    let by_file = || known.files.iter().find(|(file, _)| file == path);
    by_process.or_else(|| by_file().map(|(_, guest)| of(guest).join(namespace.typ().to_string())))
}

/// Whether `path` may be a pod's own namespace, for which a new one of the guest can stand: nothing in it but what the specification says.
fn can_be_kept(namespace: &LinuxNamespace, path: &Path) -> bool {
    matches!(namespace.typ(), LinuxNamespaceType::Ipc | LinuxNamespaceType::Uts) && !path.starts_with("/proc")
}

/// Takes the hooks that run on the host out of `spec`; those of the container's own files stay.
fn take_hooks(spec: &mut Spec) -> Result<HostHooks, TaskError> {
    let Some(hooks) = spec.hooks().clone() else { return Ok(HostHooks::default()) };
    let list = |hooks: &Option<Vec<Hook>>| hooks.clone().unwrap_or_default();
    if let Some(hook) = list(hooks.create_container()).first() {
        return Err(refused(&format!(
            "the createContainer hook {} would have to run a program of the host in the guest",
            hook.path().display()
        )));
    }
    #[allow(deprecated, reason = "Docker 26 uses it")]
    let mut create = list(hooks.prestart());
    create.extend(list(hooks.create_runtime()));
    let host = HostHooks { create, poststart: list(hooks.poststart()), poststop: list(hooks.poststop()) };
    let mut guest = Hooks::default();
    guest.set_start_container(hooks.start_container().clone());
    spec.set_hooks(Some(guest));
    Ok(host)
}

/// What a mount needs before the guest can make it.
enum Needs {
    Nothing,
    /// This laid out by the host.
    Host(HostVolume),
    /// This mounted by the guest; the mount's source is there.
    Guest(GuestVolume),
}

/// Gives `mount` the meaning that it has in a guest, and says what it needs.
fn translate_mount(mount: &mut Mount) -> Result<Needs, TaskError> {
    let options = mount.options().clone().unwrap_or_default();
    let has = |word: &str| options.iter().any(|option| option == word);
    let kind = mount.typ().clone().unwrap_or_default();
    if kind != "bind" && !has("bind") && !has("rbind") {
        if mount.source().as_ref().is_none_or(|source| source.as_os_str().is_empty()) {
            // The specification allows it; mount(2) wants a word.
            mount.set_source(Some(PathBuf::from(&kind)));
        }
        return match GUEST_FILE_SYSTEMS.contains(&kind.as_str()) {
            true => Ok(Needs::Nothing),
            false => Err(refused(&format!(
                "the mount {} has the type {kind:?}, which a guest cannot mount",
                mount.destination().display()
            ))),
        };
    }
    let source = mount.source().clone().unwrap_or_default();
    if !source.is_absolute() {
        return Err(refused(&format!(
            "the bind mount {} needs an absolute source, not {:?}",
            mount.destination().display(),
            source.display()
        )));
    }
    if mount.destination() == Path::new("/dev/shm")
        && let Some(size) = tmpfs_size(&source)
    {
        share_memory(mount, size);
        return Ok(Needs::Nothing);
    }
    if let Some(direct) = direct_volumes::find(&source)? {
        mount.set_options(Some([options, direct.options].concat()));
        mount.set_source(Some(direct.volume.guest_path()));
        return Ok(Needs::Guest(direct.volume));
    }
    if let Some(volume) = empty_dirs::in_memory(&source) {
        mount.set_source(Some(volume.guest_path()));
        return Ok(Needs::Guest(volume));
    }
    let below = |folder: &&str| source.starts_with(folder) && !source.starts_with("/dev/shm");
    if GUEST_FOLDERS.iter().any(below) {
        return Ok(Needs::Nothing);
    }
    Ok(Needs::Host(HostVolume { source, read_only: has("ro"), recursive: !has("bind") }))
}

/// The size of the tmpfs at `path`, if one is there.
pub(super) fn tmpfs_size(path: &Path) -> Option<u64> {
    const TMPFS_MAGIC: u64 = 0x0102_1994;
    let status = rustix::fs::statfs(path).ok()?;
    (status.f_type as u64 == TMPFS_MAGIC).then(|| status.f_blocks * status.f_bsize as u64)
}

/// Shared memory must be memory of the guest's: through a shared folder it could not be mapped by many.
fn share_memory(mount: &mut Mount, size: u64) {
    mount.set_typ(Some("tmpfs".to_owned()));
    mount.set_source(Some(PathBuf::from("shm")));
    let options = ["nosuid", "noexec", "nodev", "mode=1777", &format!("size={size}")].map(str::to_owned);
    mount.set_options(Some(options.to_vec()));
}

fn refused(text: &str) -> TaskError {
    TaskError::InvalidArgument(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(rest: &str) -> Result<Plan, TaskError> {
        let spec = format!(
            r#"{{"ociVersion":"1.1.0","process":{{"cwd":"/","args":["a"],"user":{{"uid":0,"gid":0}}}}{rest}}}"#
        );
        let known = Known { pids: vec![(77, 9)], files: vec![("/run/ipcns/a".into(), 8)] };
        Plan::new(serde_json::from_str(&spec).unwrap(), &known)
    }

    fn layout() -> Layout {
        Layout {
            host_root: "/run/x/rootfs".into(),
            guest_root: "/shared/1/rootfs".into(),
            guest_volumes: vec!["/shared/1/volumes/0".into()],
        }
    }

    #[test]
    fn bind_mounts_become_volumes_and_the_guests_file_systems_stay() {
        let plan = plan(
            r#","root":{"path":"rootfs","readonly":true},"mounts":[
            {"destination":"/proc","type":"proc"},
            {"destination":"/etc/hosts","type":"bind","source":"/var/h","options":["rbind","ro"]},
            {"destination":"/cg","type":"bind","source":"/sys/fs/cgroup","options":["rbind"]}]"#,
        )
        .unwrap();
        let volume = HostVolume { source: "/var/h".into(), read_only: true, recursive: true };
        assert_eq!(format!("{:?}", plan.volumes), format!("{:?}", [volume]));
        let spec: Spec = serde_json::from_slice(&plan.finish(&layout()).unwrap()).unwrap();
        let root = spec.root().as_ref().unwrap();
        assert_eq!((root.path().as_path(), root.readonly()), (Path::new("/shared/1/rootfs"), Some(true)));
        let sources: Vec<_> = spec.mounts().iter().flatten().filter_map(|mount| mount.source().clone()).collect();
        assert_eq!(sources, [Path::new("proc"), Path::new("/shared/1/volumes/0"), Path::new("/sys/fs/cgroup")]);
    }

    #[test]
    fn namespaces_are_the_guests() {
        let namespaces = |list: &str| {
            let plan = plan(&format!(r#","linux":{{"cgroupsPath":"/a/b","namespaces":[{list}]}}"#))?;
            let spec: Spec = serde_json::from_slice(&plan.finish(&layout())?).unwrap();
            let linux = spec.linux().clone().unwrap();
            assert_eq!(linux.cgroups_path(), &None);
            Ok::<_, TaskError>(linux.namespaces().clone().unwrap())
        };
        let kept = namespaces(
            r#"{"type":"network","path":"/run/netns/x"},{"type":"pid"},{"type":"ipc","path":"/proc/77/ns/ipc"}"#,
        );
        let kept = kept.unwrap();
        assert_eq!(kept.len(), 2);
        assert_eq!(kept[0].path(), &None);
        assert_eq!(kept[1].path().as_deref(), Some(Path::new("/proc/9/ns/ipc")));
        let error = namespaces(r#"{"type":"uts","path":"/proc/1/ns/uts"}"#).unwrap_err();
        assert!(matches!(&error, TaskError::InvalidArgument(text) if text.contains("/proc/1/ns/uts")), "{error}");
    }

    #[test]
    fn namespaces_that_crio_keeps_by_files_are_new_for_a_pods_first_container_and_joined_by_the_others() {
        let of = |kind: &str, list: &str| {
            plan(&format!(
                r#","annotations":{{"io.kubernetes.cri-o.ContainerType":"{kind}"}},"linux":{{"namespaces":[{list}]}}"#
            ))
        };
        let paths = |plan: &Plan| -> Vec<Option<PathBuf>> {
            let namespaces = plan.spec.linux().as_ref().unwrap().namespaces().clone().unwrap();
            namespaces.iter().map(|namespace| namespace.path().clone()).collect()
        };
        let new = r#"{"type":"ipc","path":"/run/ipcns/b"},{"type":"uts","path":"/run/utsns/b"}"#;
        let first = of("sandbox", new).unwrap();
        assert_eq!(paths(&first), [None, None]);
        assert_eq!(first.kept, [Path::new("/run/ipcns/b"), Path::new("/run/utsns/b")]);
        let further = of("container", r#"{"type":"ipc","path":"/run/ipcns/a"}"#).unwrap();
        assert_eq!(paths(&further), [Some("/proc/8/ns/ipc".into())]);
        assert!(further.kept.is_empty());
        assert!(of("container", new).is_err());
        for other in [r#"{"type":"ipc","path":"/proc/1/ns/ipc"}"#, r#"{"type":"pid","path":"/run/pidns/b"}"#] {
            assert!(of("sandbox", other).is_err(), "{other}");
        }
    }

    #[test]
    fn hooks_run_where_their_programs_are() {
        let hooks = |kind: &str| plan(&format!(r#","hooks":{{"{kind}":[{{"path":"/bin/hook"}}]}}"#));
        assert_eq!(hooks("prestart").unwrap().hooks.create.len(), 1);
        assert_eq!(hooks("createRuntime").unwrap().hooks.create.len(), 1);
        assert_eq!(hooks("poststop").unwrap().hooks.poststop.len(), 1);
        assert!(matches!(hooks("createContainer"), Err(TaskError::InvalidArgument(_))));
        let inside = hooks("startContainer").unwrap();
        assert_eq!(inside.hooks, HostHooks::default());
        let spec: Spec = serde_json::from_slice(&inside.finish(&layout()).unwrap()).unwrap();
        assert_eq!(spec.hooks().as_ref().unwrap().start_container().as_ref().unwrap().len(), 1);
    }

    #[test]
    fn what_a_guest_cannot_do_is_refused() {
        for rest in [
            r#","mounts":[{"destination":"/a","type":"nfs","source":"h:/x"}]"#,
            r#","mounts":[{"destination":"/a","type":"bind","source":"x"}]"#,
            r#","linux":{"intelRdt":{"closID":"a"}}"#,
        ] {
            assert!(matches!(plan(rest), Err(TaskError::InvalidArgument(_))), "{rest}");
        }
        let none: Spec = serde_json::from_str(r#"{"ociVersion":"1.1.0"}"#).unwrap();
        assert!(matches!(Plan::new(none, &Known::default()), Err(TaskError::InvalidArgument(_))));
    }

    #[test]
    fn the_hosts_shared_memory_becomes_the_guests() {
        let mut mount = Mount::default();
        share_memory(&mut mount, 4096);
        assert_eq!(mount.typ().as_deref(), Some("tmpfs"));
        assert!(mount.options().as_ref().unwrap().contains(&"size=4096".to_owned()));
    }
}
