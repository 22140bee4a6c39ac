//! The folders and files that are watched, and what a change to one of them means to containers.
//!
//! Pure: is told what is where, and does no I/O. Knows nothing of who watches, and of how.

use std::collections::HashMap;
use std::sync::Arc;

use tatami_protocol::agent::Change;

use super::record::{Entry, Event, Handle};

/// What happens to a file, in the order in which it does when several are told of at once. The numbers are inotify's, too.
const ON_FILE: [u64; 3] = [libc::FAN_MODIFY, libc::FAN_ATTRIB, libc::FAN_CLOSE_WRITE];
/// The longest path that is told of, in bytes: as long as one may be that a system call names.
const MAX_PATH: usize = 4095;

/// A watched file or folder, as one container sees it.
pub(super) type NodeId = u64;
/// A volume of a container.
pub(super) type VolumeId = u64;

/// One of a container's volumes.
#[derive(Clone, Debug)]
pub(super) struct Volume {
    /// The container's id.
    pub(super) container: String,
    /// Its place in the shared folder.
    pub(super) place: String,
    /// Counted from 0.
    pub(super) number: u32,
    /// Where it is in the shared folder.
    pub(super) name: String,
    /// How many folders of it have been watched so far.
    pub(super) folders: usize,
}

impl Volume {
    /// The one with this number of the container at `place`, shown as `name`.
    pub(super) fn new(container: &str, place: &str, number: u32, name: String) -> Self {
        Self { container: container.to_owned(), place: place.to_owned(), number, name, folders: 0 }
    }
}

struct Node {
    volume: VolumeId,
    /// The folder it is in, and its name there; none for the volume itself.
    within: Option<(NodeId, Box<[u8]>)>,
    handle: Arc<[u8]>,
}

/// All that is watched.
#[derive(Default)]
pub(super) struct Tree {
    last: u64,
    volumes: HashMap<VolumeId, Volume>,
    nodes: HashMap<NodeId, Node>,
    /// The same file may be in several volumes.
    known: HashMap<Arc<[u8]>, Vec<NodeId>>,
}

impl Tree {
    /// Adds a volume of which nothing is watched yet.
    pub(super) fn add_volume(&mut self, volume: Volume) -> VolumeId {
        self.last += 1;
        self.volumes.insert(self.last, volume);
        self.last
    }

    /// A volume, if it has not been forgotten.
    pub(super) fn volume(&mut self, id: VolumeId) -> Option<&mut Volume> {
        self.volumes.get_mut(&id)
    }

    /// The volume that a node is in.
    pub(super) fn volume_of(&self, node: NodeId) -> Option<VolumeId> {
        self.nodes.get(&node).map(|node| node.volume)
    }

    /// Whether there is nothing to watch.
    pub(super) fn is_empty(&self) -> bool {
        self.volumes.is_empty()
    }

    /// Forgets all volumes of the container at `place`.
    pub(super) fn forget(&mut self, place: &str) {
        self.volumes.retain(|_, volume| volume.place != place);
        let gone = self.nodes.iter().filter(|(_, node)| !self.volumes.contains_key(&node.volume));
        for id in gone.map(|(&id, _)| id).collect::<Vec<_>>() {
            self.remove(id);
        }
    }

    /// Adds a folder or file. None if the volume has it already; then it is where it is said to be from now on.
    pub(super) fn add(
        &mut self,
        volume: VolumeId,
        within: Option<(NodeId, &[u8])>,
        handle: Handle<'_>,
    ) -> Option<NodeId> {
        let within = within.map(|(folder, name)| (folder, Box::from(name)));
        if let Some(id) = self.nodes_of(handle).into_iter().find(|id| self.nodes[id].volume == volume) {
            // The volume itself stays where it is, whatever happens above it.
            if let Some(node) = self.nodes.get_mut(&id).filter(|node| node.within.is_some()) {
                node.within = within;
            }
            return None;
        }
        self.last += 1;
        let handle: Arc<[u8]> = handle.into();
        self.nodes.insert(self.last, Node { volume, within, handle: handle.clone() });
        self.known.entry(handle).or_default().push(self.last);
        Some(self.last)
    }

    /// Every node that stands for a file.
    pub(super) fn nodes_of(&self, handle: Handle<'_>) -> Vec<NodeId> {
        self.known.get(handle).cloned().unwrap_or_default()
    }

    /// Where a node is below its volume, if it is still there.
    pub(super) fn path(&self, node: NodeId) -> Option<Vec<u8>> {
        let mut names = Vec::new();
        let mut node = self.nodes.get(&node)?;
        let mut length = 0;
        while let Some((folder, name)) = &node.within {
            length += name.len() + 1;
            // Also where a rename that was missed has made a ring of them.
            if length > MAX_PATH {
                return None;
            }
            names.push(&**name);
            node = self.nodes.get(folder)?;
        }
        names.reverse();
        Some(names.join(&b'/'))
    }

    /// Keeps up with folders that were moved or removed; returns, of those that are new, where they are.
    pub(super) fn follow<'a>(&mut self, event: &Event<'a>) -> Vec<(NodeId, &'a [u8])> {
        if event.mask & libc::FAN_ONDIR == 0 {
            return Vec::new();
        }
        let Some(file) = event.itself() else { return Vec::new() };
        let mut new = Vec::new();
        let entered = event.new.or(event.at.filter(|_| event.mask & libc::FAN_CREATE != 0));
        let folders = entered.map(|entry| self.nodes_of(entry.folder)).unwrap_or_default();
        if event.mask & libc::FAN_RENAME != 0 {
            for id in self.nodes_of(file) {
                let stays = folders.iter().any(|folder| self.nodes[folder].volume == self.nodes[&id].volume);
                if !stays && self.nodes[&id].within.is_some() {
                    self.remove_with_content(id);
                }
            }
        }
        if event.mask & libc::FAN_DELETE_SELF != 0 {
            for id in self.nodes_of(file) {
                // The kernel has forgotten it as well; what was moved out of sight goes on to count.
                if let Some(volume) = self.volumes.get_mut(&self.nodes[&id].volume) {
                    volume.folders = volume.folders.saturating_sub(1);
                }
                self.remove(id);
            }
        }
        if let Some(entry) = entered {
            for folder in folders {
                let volume = self.nodes[&folder].volume;
                let there = self.nodes_of(file).into_iter().any(|id| self.nodes[&id].volume == volume);
                match there {
                    true => drop(self.add(volume, Some((folder, entry.name)), file)),
                    false => new.push((folder, entry.name)),
                }
            }
        }
        new
    }

    /// What `event` means to those who see the file. `is_there` says whether a path below a volume is there now.
    pub(super) fn tell(&self, event: &Event<'_>, is_there: impl Fn(&Volume, &[u8]) -> bool) -> Vec<Change> {
        let mut changes = Vec::new();
        let mut add = |volume: VolumeId, kind: u64, path: &[u8], moved_from: Option<&[u8]>| {
            if let Some(volume) = self.volumes.get(&volume).filter(|_| path.len() <= MAX_PATH) {
                changes.push(Change {
                    container_id: volume.container.clone(),
                    volume: volume.number,
                    event: (kind | event.mask & libc::FAN_ONDIR) as u32,
                    path: path.to_vec(),
                    moved_from: moved_from.unwrap_or_default().to_vec(),
                    ..Change::default()
                });
            }
        };
        if event.mask & libc::FAN_RENAME != 0 {
            let (old, new) = (self.places(event.old), self.places(event.new));
            for (volume, path) in &new {
                let before = old.iter().find(|(other, _)| other == volume).map(|(_, path)| &path[..]);
                add(*volume, libc::FAN_MOVED_TO, path, before);
            }
            for (volume, path) in old.iter().filter(|(volume, _)| !new.iter().any(|(other, _)| other == volume)) {
                add(*volume, libc::FAN_MOVED_FROM, path, None);
            }
        }
        for (volume, path) in self.places(event.at) {
            let Some(known) = self.volumes.get(&volume) else { continue };
            for kind in in_order(event.mask, || is_there(known, &path)) {
                add(volume, kind, &path, None);
            }
        }
        // Volumes that are files, of which there is no folder to say it, and what happens to a volume as a whole.
        for id in event.itself().map(|file| self.nodes_of(file)).unwrap_or_default() {
            let node = &self.nodes[&id];
            if node.within.is_none() {
                let as_file = event.mask & libc::FAN_ONDIR == 0;
                let kinds = ON_FILE.iter().filter(|_| as_file).chain(&[libc::FAN_MOVE_SELF]);
                kinds.filter(|&kind| event.mask & kind != 0).for_each(|&kind| add(node.volume, kind, b"", None));
            }
        }
        changes
    }

    /// Where `entry` is, in each volume that has its folder.
    fn places(&self, entry: Option<Entry<'_>>) -> Vec<(VolumeId, Vec<u8>)> {
        let Some(entry) = entry else { return Vec::new() };
        let place = |id: NodeId| {
            let mut path = self.path(id)?;
            if entry.name != b"." {
                if !path.is_empty() {
                    path.push(b'/');
                }
                path.extend(entry.name);
            }
            Some((self.nodes[&id].volume, path))
        };
        self.nodes_of(entry.folder).into_iter().filter_map(place).collect()
    }

    fn remove(&mut self, id: NodeId) {
        let Some(node) = self.nodes.remove(&id) else { return };
        if let Some(same) = self.known.get_mut(&node.handle) {
            same.retain(|other| *other != id);
            if same.is_empty() {
                self.known.remove(&node.handle);
            }
        }
    }

    fn remove_with_content(&mut self, id: NodeId) {
        self.remove(id);
        // Whose way up ends in what was removed.
        let lost = self.nodes.keys().filter(|&&node| self.path(node).is_none()).copied().collect::<Vec<_>>();
        lost.into_iter().for_each(|id| self.remove(id));
    }
}

/// The kinds in `mask`, which the kernel may have put together from several events, in an order in which they can have been.
fn in_order(mask: u64, is_there: impl FnOnce() -> bool) -> Vec<u64> {
    let (create, delete) = (libc::FAN_CREATE, libc::FAN_DELETE);
    let mut kinds: Vec<u64> = std::iter::once(create).chain(ON_FILE).collect();
    // A name that was given up and taken again, or taken and given up again.
    let deleted_first = mask & create != 0 && mask & delete != 0 && is_there();
    kinds.insert(if deleted_first { 0 } else { kinds.len() }, delete);
    kinds.retain(|kind| mask & kind != 0);
    kinds
}

#[cfg(test)]
mod tests;
