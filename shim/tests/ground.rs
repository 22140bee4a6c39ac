//! The ground that a sandbox stands on: what is mounted where, who sees it, and that nothing of it stays.
//!
//! Needs no VM, but root and a kernel that lets it mount; each test has a mount namespace of its own, since `Ground` leaves
//! the one it is called in.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use tatami_shim::sandbox::Ground;
use tatami_shim::sandbox::folder::Places;
use tatami_shim::sandbox::mounts::{HostVolume, Root};

/// Runs `body` with a ground and a scratch folder, then clears the ground.
fn on_ground(body: impl FnOnce(&Ground, &Path) + Send) {
    let dir = tempfile::tempdir().unwrap();
    let places = Places { root: dir.path().join("root"), state: dir.path().join("state") };
    // Namespaces belong to threads.
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let ground = Ground::prepare(&places, None, None).unwrap();
            body(&ground, dir.path());
            ground.clear().unwrap();
        });
        thread.join().unwrap();
    });
    assert_eq!(fs::read_dir(places.root.join("sandboxes")).unwrap().count(), 0);
    assert_eq!(fs::read_dir(&places.state).unwrap().count(), 0);
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(dir.path().to_str().unwrap()), "{mounts}");
}

fn mount_options(path: &Path) -> String {
    let table = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    let path = path.to_str().unwrap();
    let line = table.lines().find(|line| line.split(' ').nth(4) == Some(path));
    line.unwrap_or_else(|| panic!("nothing is mounted on {path}:\n{table}")).split(' ').nth(5).unwrap().to_owned()
}

#[test]
#[ignore = "needs root and mounts: run through tests/host"]
fn an_images_container_writes_beside_the_image() {
    on_ground(|ground, dir| {
        // As images are unpacked: links to layers, of which 0 is the uppermost.
        let (image, store) = (dir.join("image"), dir.join("layers, with: odd\\names"));
        fs::create_dir_all(image.join("layers")).unwrap();
        for (number, file) in ["upper", "lower"].into_iter().enumerate() {
            fs::create_dir_all(store.join(file).join("etc")).unwrap();
            fs::write(store.join(file).join("etc/passwd"), file).unwrap();
            fs::write(store.join(file).join("etc").join(file), "").unwrap();
            symlink(store.join(file), image.join("layers").join(number.to_string())).unwrap();
        }
        let layout = ground.shared().lay_out("c1", &Root::Image(image.clone()), &[]).unwrap();
        assert_eq!(fs::read_to_string(layout.host_root.join("etc/passwd")).unwrap(), "upper");
        assert!(["upper", "lower"].iter().all(|file| layout.host_root.join("etc").join(file).exists()));
        assert_eq!(layout.guest_root, Path::new("/run/tatami/shared/c1/rootfs"));
        fs::write(layout.host_root.join("etc/passwd"), "changed").unwrap();
        fs::write(layout.host_root.join("new"), "").unwrap();
        for file in ["upper", "lower"] {
            assert_eq!(fs::read_to_string(store.join(file).join("etc/passwd")).unwrap(), file);
            assert!(!store.join(file).join("new").exists());
        }
        let options = mount_options(&layout.host_root);
        for option in ["nodev", "nosuid", "noexec"] {
            assert!(options.contains(option), "{options}");
        }
        // The folder around it cannot be written to, neither by this path nor by what the VMM inherits of it.
        assert!(fs::create_dir(ground.shared().path().join("c2")).is_err());
        assert!(fs::rename(ground.shared().path().join("c1"), ground.shared().path().join("c3")).is_err());
    });
}

#[test]
#[ignore = "needs root and mounts: run through tests/host"]
fn volumes_are_files_or_folders_and_read_only_goes_all_the_way_down() {
    on_ground(|ground, dir| {
        let (tree, data, file) = (dir.join("tree"), dir.join("data"), dir.join("file"));
        fs::create_dir(&tree).unwrap();
        fs::create_dir_all(data.join("below")).unwrap();
        fs::write(&file, "content").unwrap();
        symlink(&data, dir.join("link")).unwrap();
        rustix::mount::mount("tmpfs", data.join("below"), "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        fs::write(data.join("below/inner"), "mounted").unwrap();
        let volume = |path: &Path, read_only| HostVolume { source: path.to_owned(), read_only, recursive: true };
        let volumes = [volume(&data, false), volume(&dir.join("link"), true), volume(&file, true)];
        let layout = ground.shared().lay_out("c1", &Root::Plain(tree.clone()), &volumes).unwrap();
        assert_eq!(layout.guest_volumes[2], Path::new("/run/tatami/shared/c1/volumes/2"));

        fs::write(layout.host_root.join("written"), "").unwrap();
        assert!(tree.join("written").exists());
        let at = |number: usize| {
            let place =
                layout.guest_volumes[number].strip_prefix("/run/tatami/shared").expect("it is in the shared folder");
            ground.shared().path().join(place)
        };
        assert_eq!(fs::read_to_string(at(0).join("below/inner")).unwrap(), "mounted");
        fs::write(at(0).join("x"), "").unwrap();
        assert!(data.join("x").exists());
        for place in [at(1).join("y"), at(1).join("below/y"), at(2)] {
            let error = fs::write(&place, "").unwrap_err();
            assert_eq!(error.kind(), std::io::ErrorKind::ReadOnlyFilesystem, "{}", place.display());
        }
        assert_eq!(fs::read_to_string(at(2)).unwrap(), "content");

        // What two may write to is one file system to both, until the last of them is gone.
        let volumes = [volume(&dir.join("link"), false), volume(&data, true)];
        let other = ground.shared().lay_out("c2", &Root::Plain(tree.clone()), &volumes).unwrap();
        assert_eq!(other.guest_volumes[0], layout.guest_volumes[0]);
        assert_eq!(other.guest_volumes[1], Path::new("/run/tatami/shared/c2/volumes/1"));
        ground.shared().clear("c1").unwrap();
        assert!(at(0).join("below/inner").exists() && !at(2).exists());
        ground.shared().clear("c2").unwrap();
        assert!(!at(0).exists());
        rustix::mount::unmount(data.join("below"), rustix::mount::UnmountFlags::DETACH).unwrap();
    });
}

#[test]
#[ignore = "needs root and mounts: run through tests/host"]
fn what_is_mounted_later_arrives_in_a_slave_namespace() {
    on_ground(|ground, dir| {
        let tree = dir.join("tree");
        fs::create_dir(&tree).unwrap();
        fs::write(tree.join("seen"), "").unwrap();
        let shared = ground.shared().path().to_owned();
        let (ready, wait_ready) = std::sync::mpsc::channel();
        let (mounted, wait_mounted) = std::sync::mpsc::channel::<()>();
        let slave = std::thread::spawn(move || {
            tatami_shim::sandbox::mounts::enter_namespace().unwrap();
            ready.send(()).unwrap();
            wait_mounted.recv().unwrap();
            shared.join("c1/rootfs/seen").exists()
        });
        // A thread is spawned with its creator's namespace, so the slave's is a copy of the ground's.
        wait_ready.recv().unwrap();
        ground.shared().lay_out("c1", &Root::Plain(tree), &[]).unwrap();
        mounted.send(()).unwrap();
        assert!(slave.join().unwrap());
    });
}
