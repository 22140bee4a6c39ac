//! What `tatami save` leaves beside a machine's two files: the description that a sandbox goes on by.

use std::fs;
use std::path::Path;

use tatami_shim::sandbox::saving::{RestoreError, Saved};

use crate::scratch::Scratch;

/// How many folders of layers there are.
const LAYERS: usize = 2;

/// A saved sandbox's description, in a folder that has everything else. Reading it changes nothing, and what is taken for good can be.
pub fn header(data: &[u8]) {
    let scratch = Scratch::new();
    if let Ok(saved) = read(&scratch.inside, data) {
        let mut place = Path::new(&saved.place).components();
        let plain = matches!((place.next(), place.next()), (Some(std::path::Component::Normal(_)), None));
        assert!(plain, "the container's folders are called {:?}", saved.place);
        let _ = saved.vm.validate();
        let _ = saved.root_disk();
    }
    scratch.check();
}

/// The same as whoever restores it does.
pub fn read(folder: &Path, data: &[u8]) -> Result<Saved, RestoreError> {
    for name in ["memory", "state"] {
        fs::write(folder.join(name), "").expect("a folder of our own");
    }
    for layer in 0..LAYERS {
        fs::create_dir_all(folder.join("layers").join(layer.to_string())).expect("a folder of our own");
    }
    fs::write(folder.join("sandbox.json"), data).expect("a folder of our own");
    Saved::read(folder)
}
