//! What events mean, on a tree that nobody has to make.

use super::super::record::tests::handle;
use super::*;

/// A volume `/` with a folder `a` in it, as two containers see it; a third one sees `a` alone.
struct Stage {
    tree: Tree,
    root: Vec<u8>,
    a: Vec<u8>,
}

impl Stage {
    fn set() -> Stage {
        let mut tree = Tree::default();
        let (root, a) = (handle(1), handle(2));
        for container in ["first", "second"] {
            let volume = tree.add_volume(Volume::new(container, container, 0, String::new()));
            let top = tree.add(volume, None, &root).unwrap();
            tree.add(volume, Some((top, b"a")), &a).unwrap();
        }
        let volume = tree.add_volume(Volume::new("third", "third", 5, String::new()));
        tree.add(volume, None, &a).unwrap();
        Stage { tree, root, a }
    }

    /// What the tree makes of an event, as text.
    fn told(&self, event: Event<'_>) -> Vec<String> {
        self.told_where(event, false)
    }

    fn told_where(&self, event: Event<'_>, is_there: bool) -> Vec<String> {
        let show = |change: Change| {
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            let (path, from) = (text(&change.path), text(&change.moved_from));
            format!("{}/{} {:x} {path:?} {from:?}", change.container_id, change.volume, change.event)
        };
        let mut told: Vec<String> = self.tree.tell(&event, |_, _| is_there).into_iter().map(show).collect();
        told.sort_by_key(|line| line.split(' ').next().map(str::to_owned));
        told
    }
}

fn at<'a>(folder: &'a [u8], name: &'a str, mask: u64) -> Event<'a> {
    Event { mask, at: Some(Entry { folder, name: name.as_bytes() }), ..Event::default() }
}

fn renamed<'a>(old: Option<(&'a [u8], &'a str)>, new: Option<(&'a [u8], &'a str)>, file: &'a [u8]) -> Event<'a> {
    let entry = |(folder, name): (&'a [u8], &'a str)| Entry { folder, name: name.as_bytes() };
    let mask = libc::FAN_RENAME | libc::FAN_ONDIR;
    Event { mask, old: old.map(entry), new: new.map(entry), file: Some(file), ..Event::default() }
}

#[test]
fn every_container_hears_by_its_own_path() {
    let stage = Stage::set();
    let told = stage.told(at(&stage.a, "f", libc::FAN_CREATE));
    assert_eq!(told, [r#"first/0 100 "a/f" """#, r#"second/0 100 "a/f" """#, r#"third/5 100 "f" """#]);
    let told = stage.told(at(&stage.a, ".", libc::FAN_ATTRIB | libc::FAN_ONDIR));
    assert_eq!(told, [r#"first/0 40000004 "a" """#, r#"second/0 40000004 "a" """#, r#"third/5 40000004 "" """#]);
    assert!(stage.told(at(&handle(9), "f", libc::FAN_CREATE)).is_empty());
}

#[test]
fn events_that_the_kernel_put_together_come_in_an_order_that_can_be() {
    let mut stage = Stage::set();
    stage.tree.forget("first");
    stage.tree.forget("second");
    let all = libc::FAN_CREATE | libc::FAN_DELETE | libc::FAN_MODIFY | libc::FAN_CLOSE_WRITE;
    let kinds = |is_there| -> Vec<String> {
        let told = stage.told_where(at(&stage.a, "f", all), is_there);
        told.iter().filter_map(|line| Some(line.split(' ').nth(1)?.to_owned())).collect()
    };
    assert_eq!(kinds(false), ["100", "2", "8", "200"]);
    assert_eq!(kinds(true), ["200", "100", "2", "8"]);
}

#[test]
fn a_rename_is_told_whole_to_who_sees_both_ends() {
    let stage = Stage::set();
    let event = renamed(Some((&stage.root, "x")), Some((&stage.a, "y")), &[]);
    let told = stage.told(Event { mask: libc::FAN_RENAME, ..event });
    assert_eq!(told, [r#"first/0 80 "a/y" "x""#, r#"second/0 80 "a/y" "x""#, r#"third/5 80 "y" """#]);
    let event = renamed(Some((&stage.a, "y")), Some((&stage.root, "x")), &[]);
    assert_eq!(stage.told(Event { mask: libc::FAN_RENAME, ..event })[2], r#"third/5 40 "y" """#);
}

#[test]
fn folders_are_followed_where_they_go() {
    let mut stage = Stage::set();
    let (root, a, b) = (stage.root.clone(), stage.a.clone(), handle(3));
    // New ones are to be looked at, once in each volume that has them.
    let create = Event { file: Some(&b), ..at(&a, "b", libc::FAN_CREATE | libc::FAN_ONDIR) };
    let new = stage.tree.follow(&create);
    assert_eq!(new.len(), 3);
    for (folder, name) in new {
        let volume = stage.tree.volume_of(folder).unwrap();
        stage.tree.add(volume, Some((folder, name)), &b).unwrap();
    }
    assert!(stage.tree.follow(&create).is_empty());
    assert_eq!(stage.told(at(&b, "f", libc::FAN_CREATE))[0], r#"first/0 100 "a/b/f" """#);
    // It moves up, and out of sight of the third.
    assert!(stage.tree.follow(&renamed(Some((&a, "b")), Some((&root, "c")), &b)).is_empty());
    let told = stage.told(at(&b, "f", libc::FAN_CREATE));
    assert_eq!(told, [r#"first/0 100 "c/f" """#, r#"second/0 100 "c/f" """#]);
    // Into the other, and out of sight with it.
    stage.tree.follow(&renamed(Some((&root, "c")), Some((&a, "c")), &b));
    stage.tree.follow(&renamed(Some((&root, "a")), None, &a));
    assert!(stage.told(at(&b, "f", libc::FAN_CREATE)).is_empty());
    // A volume is where it is, whatever becomes of the folder on the host.
    assert_eq!(stage.told(at(&a, "f", libc::FAN_CREATE)), [r#"third/5 100 "f" """#]);
    stage.tree.follow(&at(&a, ".", libc::FAN_DELETE_SELF | libc::FAN_ONDIR));
    assert!(stage.told(at(&a, "f", libc::FAN_CREATE)).is_empty());
}

#[test]
fn a_file_that_is_a_volume_is_told_of_by_itself() {
    let mut stage = Stage::set();
    let file = handle(4);
    let volume = stage.tree.add_volume(Volume::new("fourth", "fourth", 1, String::new()));
    stage.tree.add(volume, None, &file).unwrap();
    let event = Event { file: Some(&file), ..at(&stage.a, "f", libc::FAN_MODIFY) };
    let told = stage.told(event);
    assert_eq!(told.len(), 4);
    assert_eq!(told[1], r#"fourth/1 2 "" """#);
    let alone = Event { mask: libc::FAN_ATTRIB | libc::FAN_MOVE_SELF, file: Some(&file), ..Event::default() };
    assert_eq!(stage.told(alone), [r#"fourth/1 4 "" """#, r#"fourth/1 800 "" """#]);
}

#[test]
fn a_ring_of_folders_has_no_path() {
    let mut tree = Tree::default();
    let volume = tree.add_volume(Volume::new("c", "c", 0, String::new()));
    let (a, b) = (handle(2), handle(3));
    let top = tree.add(volume, None, &handle(1)).unwrap();
    let first = tree.add(volume, Some((top, b"a")), &a).unwrap();
    let second = tree.add(volume, Some((first, b"b")), &b).unwrap();
    tree.add(volume, Some((second, b"a")), &a);
    assert_eq!(tree.path(second), None);
}
