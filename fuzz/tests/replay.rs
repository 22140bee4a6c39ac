//! Every target on its seeds and on what `corpus/` keeps, as an ordinary test: no fuzzer, no nightly compiler.

use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};

use tatami_fuzz::{TARGETS, Target};

/// Panics so far, those of devices' threads among them.
static PANICS: AtomicU32 = AtomicU32::new(0);

fn count_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let report = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            PANICS.fetch_add(1, Ordering::SeqCst);
            report(panic);
        }));
    });
}

/// What is kept for a target; for many nothing is.
fn corpus(target: &Target) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(target.name);
    let mut files: Vec<_> =
        std::fs::read_dir(folder).into_iter().flatten().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    files.into_iter().map(|path| (path.display().to_string(), std::fs::read(path).unwrap())).collect()
}

#[test]
fn nothing_known_breaks_anything() {
    count_panics();
    let mut findings = Vec::new();
    for target in TARGETS {
        let seeds = (target.seeds)().into_iter().enumerate();
        let seeds = seeds.map(|(number, bytes)| (format!("seed {number} of {}", target.name), bytes));
        for (name, bytes) in seeds.chain(corpus(target)) {
            let before = PANICS.load(Ordering::SeqCst);
            let result = catch_unwind(|| (target.run)(&bytes));
            if result.is_err() || PANICS.load(Ordering::SeqCst) != before {
                findings.push(name);
            }
        }
    }
    assert!(findings.is_empty(), "{findings:#?}");
}

#[test]
fn each_target_has_its_file_and_each_corpus_its_target() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"));
    let names = |folder: &Path| {
        let entries = std::fs::read_dir(folder).into_iter().flatten();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().path().file_stem().unwrap().to_string_lossy().into_owned()).collect();
        names.sort();
        names
    };
    let mut targets: Vec<_> = TARGETS.iter().map(|target| target.name.to_owned()).collect();
    targets.sort();
    assert_eq!(names(&folder.join("targets")), targets);
    for corpus in names(&folder.join("corpus")) {
        assert!(targets.contains(&corpus), "corpus/{corpus} is no target's");
    }
}
