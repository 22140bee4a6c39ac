//! The same cases under two runtimes, and what a user sees of each, line by line.
//!
//! A case is a story that notes what its user sees. It is told once with the runtime that everybody knows and once with
//! ours; a line that differs is a failure, unless the case says beforehand that it will and why. It knows nothing of the
//! client that the stories are told with.

use std::any::Any;
use std::fmt::Display;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

/// The runtime to compare with.
pub const REFERENCE: &str = "io.containerd.runc.v2";
/// Ours, by the name under which users have it configured.
pub const OURS: &str = "io.containerd.kata.v2";

/// What a user saw, in order.
#[derive(Debug, Default)]
pub struct Notes {
    lines: Vec<(String, String)>,
    broken: Vec<String>,
    broken_off: bool,
    /// Whether what is wanted has to be seen.
    strict: bool,
}

/// A story, for a client `S`.
pub struct Case<S> {
    /// By which it is chosen and shown.
    pub name: &'static str,
    /// Told only when everything is asked for, because it takes minutes.
    pub full: bool,
    /// The story.
    pub run: fn(&mut S, &mut Notes),
    /// What is seen differently with our runtime, and why.
    pub differs: &'static [(&'static str, &'static str)],
    /// Why the reference has nothing to show, where it is so: then all that is wanted has to be seen with ours.
    pub no_reference: Option<&'static str>,
}

/// Where a story is told: a client of one runtime, cleared after every story.
pub trait Stage {
    /// Whether the runtime is ours: what a case kills may go by another name there.
    fn is_ours(&self) -> bool;
    /// What people call the reference.
    fn reference(&self) -> &'static str {
        "runc"
    }
    /// Removes what the story left; returns what that was, and what could not be removed.
    fn clear(&mut self) -> String;
}

/// Which cases to tell.
#[derive(Debug, Default)]
pub struct Selection {
    /// The long ones too.
    pub full: bool,
    /// With one of the two alone, to try a case or a runtime: what the reference must show, it must show.
    pub alone: Option<Alone>,
    /// Parts of names, a long one's whole name; all where there are none.
    pub names: Vec<String>,
}

/// The only runtime to tell a story with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Alone {
    /// `TATAMI_CLIENTS=reference`.
    Reference,
    /// `TATAMI_CLIENTS=ours`.
    Ours,
}

struct Told {
    notes: Notes,
    took: Duration,
}

impl<S> Case<S> {
    /// A case that is always told and shows no difference.
    pub const fn new(name: &'static str, run: fn(&mut S, &mut Notes)) -> Self {
        Self { name, full: false, run, differs: &[], no_reference: None }
    }

    /// The same, told only when everything is asked for.
    #[must_use]
    pub const fn long(mut self) -> Self {
        self.full = true;
        self
    }

    /// The same, told with our runtime alone, and why.
    #[must_use]
    pub const fn without_reference(mut self, why: &'static str) -> Self {
        self.no_reference = Some(why);
        self
    }

    /// The same, with lines that differ and the reasons.
    #[must_use]
    pub const fn differs(mut self, differs: &'static [(&'static str, &'static str)]) -> Self {
        self.differs = differs;
        self
    }
}

impl Notes {
    /// Notes what is seen.
    pub fn see(&mut self, what: impl Into<String>, seen: impl Display) {
        self.lines.push((what.into(), seen.to_string()));
    }

    /// Notes what is seen; the case itself is wrong if the reference shows anything but `wanted`.
    pub fn want(&mut self, what: impl Into<String>, seen: impl Display, wanted: impl Display) {
        let (what, seen, wanted) = (what.into(), seen.to_string(), wanted.to_string());
        if self.strict && seen != wanted {
            self.broken.push(format!("{what}: {seen:?}, not {wanted:?}"));
        }
        self.lines.push((what, seen));
    }

    /// In a word, for a story that is told with one runtime.
    fn verdict(&self) -> &'static str {
        if self.broken.is_empty() { "as wanted" } else { "FAILED" }
    }

    /// Prints what was not as wanted.
    fn show_broken(&self) {
        self.broken.iter().for_each(|words| println!("    {}", words.replace('\n', "\n    ")));
    }
}

impl Selection {
    /// From a test program's arguments (parts of names) and `TATAMI_CLIENTS` (`full`, `reference`, `ours`, or unset).
    ///
    /// # Panics
    /// When `TATAMI_CLIENTS` is something else.
    pub fn from_environment() -> Self {
        let (full, alone) = match std::env::var("TATAMI_CLIENTS").unwrap_or_default().as_str() {
            "" => (false, None),
            "full" => (true, None),
            "reference" => (false, Some(Alone::Reference)),
            "ours" => (false, Some(Alone::Ours)),
            other => panic!("TATAMI_CLIENTS={other}: it is 'full', 'reference', 'ours' or unset"),
        };
        // What cargo's own harness understands means nothing here.
        Self { full, alone, names: std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect() }
    }

    /// The same way of telling, for the cases of these names alone.
    #[must_use]
    pub fn narrowed_to(&self, names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self { full: false, alone: self.alone, names }
    }

    /// Whether a case is to be told.
    pub fn takes<S>(&self, case: &Case<S>) -> bool {
        let part = |part: &String| case.name == part || (self.full || !case.full) && case.name.contains(part.as_str());
        if self.names.is_empty() { self.full || !case.full } else { self.names.iter().any(part) }
    }
}

/// Prints what is left when all is told, and returns how many failures that is.
pub fn show_remains(left: &[String]) -> usize {
    if left.is_empty() {
        return 0;
    }
    println!("left behind in the end:\n  {}", left.join("\n  "));
    1
}

/// Tells every selected case with `reference` and with `ours`, prints the table, and returns the number of cases that fail.
pub fn compare<S: Stage>(
    title: &str,
    cases: &[&Case<S>],
    selection: &Selection,
    reference: &mut S,
    ours: &mut S,
) -> usize {
    // A story that breaks off is told in the table; where in its code is of interest to no one else.
    std::panic::set_hook(Box::new(|_| ()));
    println!("\n{title}\n{:<44} {:>8} {:>8}  ", "", ours.reference(), "tatami");
    let mut failures = 0;
    for case in cases.iter().filter(|case| selection.takes(case)) {
        if selection.alone == Some(Alone::Reference) && case.no_reference.is_some() {
            continue;
        }
        if let Some(alone) = selection.alone {
            let stage = if alone == Alone::Ours { &mut *ours } else { &mut *reference };
            failures += usize::from(!show(case, &tell(case, stage, true)));
            continue;
        }
        if let Some(why) = case.no_reference {
            let told = tell(case, ours, true);
            let verdict = told.notes.verdict();
            println!("{:<44} {:>8} {:>6.1} s  {verdict}: {why}", case.name, "-", told.took.as_secs_f32());
            told.notes.show_broken();
            failures += usize::from(!told.notes.broken.is_empty());
            continue;
        }
        let first = tell_reference(case, reference);
        let second = tell(case, ours, false);
        let (failed, remarks) = judge(case, &first.notes, &second.notes, ours.reference());
        let seconds = |told: &Told| format!("{:.1} s", told.took.as_secs_f32());
        let verdict = match (failed, remarks.len()) {
            (true, _) => "FAILED",
            (false, 0) => "same",
            (false, _) => "differs as written down",
        };
        println!("{:<44} {:>8} {:>8}  {verdict}", case.name, seconds(&first), seconds(&second));
        remarks.iter().for_each(|remark| println!("    {}", remark.replace('\n', "\n    ")));
        if std::env::var_os("TATAMI_CLIENTS_SHOW").is_some() {
            second.notes.lines.iter().for_each(|(what, seen)| println!("    | {what}: {seen}"));
        }
        failures += usize::from(failed);
    }
    let left_out = cases.iter().filter(|case| !selection.takes(case)).count();
    if left_out > 0 {
        println!("({left_out} cases not asked for; TATAMI_CLIENTS=full, and no name, tells all)");
    }
    failures
}

/// How often a case is told with the reference at most.
const CHANCES: usize = 6;

/// Tells the case with the reference; again, aloud, if it does not show what everybody knows that it shows. On a busy host its
/// shim ends, now and then, before its last event is told, or tells one twice; that is not what the case is about. Ours has no
/// second chance.
fn tell_reference<S: Stage>(case: &Case<S>, reference: &mut S) -> Told {
    let mut told = tell(case, reference, true);
    for _ in 1..CHANCES {
        if told.notes.broken.is_empty() {
            break;
        }
        println!("{:<44} told again with {}, which showed:", case.name, reference.reference());
        told.notes.show_broken();
        told = tell(case, reference, true);
    }
    told
}

fn tell<S: Stage>(case: &Case<S>, stage: &mut S, strict: bool) -> Told {
    let start = Instant::now();
    let mut notes = Notes { strict, ..Notes::default() };
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (case.run)(stage, &mut notes))) {
        notes.broken_off = true;
        notes.broken.push(format!("it broke off: {}", words(panic.as_ref())));
    }
    let took = start.elapsed();
    let left = stage.clear();
    if !left.is_empty() {
        notes.broken.push(format!("left behind:\n{left}"));
    }
    Told { notes, took }
}

/// Prints what one runtime showed; returns whether it was what was wanted.
fn show<S>(case: &Case<S>, told: &Told) -> bool {
    let verdict = told.notes.verdict();
    println!("{:<44} {:>6.1} s  {verdict}", case.name, told.took.as_secs_f32());
    told.notes.show_broken();
    told.notes.lines.iter().for_each(|(what, seen)| println!("    | {what}: {}", brief(seen).trim_end()));
    told.notes.broken.is_empty()
}

/// Whether the case failed, and what there is to say.
fn judge<S>(case: &Case<S>, first: &Notes, second: &Notes, reference: &str) -> (bool, Vec<String>) {
    let mut remarks = Vec::new();
    remarks.extend(first.broken.iter().map(|words| format!("with {reference}: {words}")));
    remarks.extend(second.broken.iter().map(|words| format!("with tatami: {words}")));
    let mut failed = !remarks.is_empty();
    let mut reasons_used = Vec::new();
    // What is missing because a story broke off says nothing.
    let told = if first.broken_off || second.broken_off {
        first.lines.len().min(second.lines.len())
    } else {
        first.lines.len().max(second.lines.len())
    };
    for line in 0..told {
        let (a, b) = (first.lines.get(line), second.lines.get(line));
        if a == b {
            continue;
        }
        let what = a.or(b).map_or("", |(what, _)| what.as_str());
        let shown = |side: Option<&(String, String)>| side.map_or("(nothing)".into(), |(_, seen)| brief(seen));
        let reason = case.differs.iter().find(|(named, _)| *named == what);
        match reason {
            Some((named, why)) => {
                reasons_used.push(*named);
                remarks.push(format!("{what}: {} / {}: {why}", shown(a), shown(b)));
            }
            None => {
                failed = true;
                remarks.push(format!("{what}:\n  {reference}:   {}\n  tatami: {}", shown(a), shown(b)));
            }
        }
    }
    for (named, _) in case.differs.iter().filter(|(named, _)| !reasons_used.contains(named)) {
        failed = true;
        remarks.push(format!("{named}: written down as a difference, but there is none"));
    }
    (failed, remarks)
}

fn words(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str).or_else(|| panic.downcast_ref::<&str>().copied());
    brief(text.unwrap_or("a panic without words"))
}

fn brief(text: &str) -> String {
    match text.char_indices().nth(600) {
        Some((end, _)) => format!("{}… ({} bytes)", &text[..end], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::{CHANCES, Case, Notes, Selection, Stage, judge, tell_reference};

    fn notes(lines: &[(&str, &str)]) -> Notes {
        let mut notes = Notes::default();
        lines.iter().for_each(|(what, seen)| notes.see(*what, seen));
        notes
    }

    #[test]
    fn a_difference_fails_unless_it_was_said_beforehand() {
        let same = [("status", "0"), ("output", "x")];
        let other = [("status", "0"), ("output", "y")];
        let plain = Case::<()>::new("plain", |(), _| ());
        assert!(!judge(&plain, &notes(&same), &notes(&same), "runc").0);
        assert!(judge(&plain, &notes(&same), &notes(&other), "runc").0);
        assert!(judge(&plain, &notes(&same), &notes(&same[..1]), "runc").0);
        let told = Case::<()>::new("told", |(), _| ()).differs(&[("output", "because")]);
        assert!(!judge(&told, &notes(&same), &notes(&other), "runc").0);
        // A reason that is no longer needed has to go.
        assert!(judge(&told, &notes(&same), &notes(&same), "runc").0);
    }

    #[test]
    fn a_case_that_the_reference_fails_is_wrong() {
        let plain = Case::<()>::new("plain", |(), _| ());
        let mut first = Notes { strict: true, ..Notes::default() };
        first.want("status", 1, 0);
        let mut second = Notes::default();
        second.want("status", 1, 0);
        assert!(judge(&plain, &first, &second, "runc").0);
    }

    /// A stage that counts the stories told on it, of which the `wanted`th goes well.
    struct Counting {
        told: usize,
        wanted: usize,
    }

    impl Stage for Counting {
        fn is_ours(&self) -> bool {
            false
        }

        fn clear(&mut self) -> String {
            String::new()
        }
    }

    #[test]
    fn the_reference_has_further_chances_but_not_for_ever() {
        // Whether what goes well only when it is told for the `wanted`th time counts as shown.
        let shown_at = |wanted: usize| {
            let story = |stage: &mut Counting, notes: &mut Notes| {
                stage.told += 1;
                notes.want("times", stage.told, stage.wanted);
            };
            tell_reference(&Case::new("counted", story), &mut Counting { told: 0, wanted }).notes.broken.is_empty()
        };
        assert!(shown_at(1));
        assert!(shown_at(2));
        assert!(shown_at(CHANCES));
        assert!(!shown_at(CHANCES + 1));
    }

    #[test]
    fn long_cases_are_told_when_asked_for() {
        let long = Case::<()>::new("long one", |(), _| ()).long();
        assert!(!Selection::default().takes(&long));
        assert!(Selection { full: true, ..Selection::default() }.takes(&long));
        assert!(Selection { names: vec!["long one".into()], ..Selection::default() }.takes(&long));
        assert!(!Selection { names: vec!["long".into()], ..Selection::default() }.takes(&long));
        assert!(!Selection { full: true, names: vec!["short".into()], ..Selection::default() }.takes(&long));
    }
}
