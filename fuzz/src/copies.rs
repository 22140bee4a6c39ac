//! What a container sends when files are copied out of it.

use std::fs;

use tatami_files::{Destination, Form, Options, unpack};

use crate::scratch::Scratch;

/// A stream of files over a small tree with links that lead astray. The first byte says where it goes, and what of it counts. Nothing
/// beside the tree changes.
pub fn copy(data: &[u8]) {
    let Some((choice, mut stream)) = data.split_first() else { return };
    let scratch = Scratch::new();
    fs::create_dir(scratch.inside.join("folder")).expect("a folder of our own");
    fs::write(scratch.inside.join("folder/old"), "old").expect("a folder of our own");
    for (name, target) in [("up", ".."), ("out", "../outside"), ("root", "/"), ("loop", "loop"), ("down", "folder")] {
        std::os::unix::fs::symlink(target, scratch.inside.join(name)).expect("a folder of our own");
    }
    let form = [Form::Contents, Form::Whole, Form::Archive][usize::from(choice % 3)];
    let destination = Destination { path: scratch.inside.clone(), name: "folder".into(), form };
    let options = Options { owners: choice & 0x40 != 0, set_id: choice & 0x80 != 0 };
    let _ = unpack(&mut stream, &destination, options, &mut |_| {});
    scratch.check();
}
