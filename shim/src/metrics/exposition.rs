//! Figures as text, in the form that Prometheus reads: its text exposition format, version 0.0.4.
//!
//! All samples of a family stand together behind what it is, whatever the order they come in. Knows nothing of what they say.

use std::fmt::{self, Display, Write};

/// What the format is called over HTTP.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// How the values of a family go.
#[derive(Clone, Copy, Debug)]
pub(super) enum Kind {
    /// Up and down.
    Gauge,
    /// Up only, from zero.
    Counter,
}

/// Figures of one name, which their labels tell apart.
#[derive(Debug)]
pub(super) struct Family {
    pub(super) kind: Kind,
    pub(super) name: &'static str,
    /// One line.
    pub(super) help: &'static str,
}

impl Family {
    pub(super) const fn gauge(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Gauge, name, help }
    }

    pub(super) const fn counter(name: &'static str, help: &'static str) -> Family {
        Family { kind: Kind::Counter, name, help }
    }
}

/// A page that is being written. Families stand in the order of their first samples.
#[derive(Debug, Default)]
pub(super) struct Exposition {
    families: Vec<(&'static Family, String)>,
}

impl Exposition {
    /// Adds a sample; no other of its family has the same labels. Their values may be any text.
    pub(super) fn add(&mut self, family: &'static Family, labels: &[(&str, &str)], value: impl Display) {
        let known = self.families.iter().position(|(known, _)| known.name == family.name);
        let at = known.unwrap_or_else(|| {
            self.families.push((family, String::new()));
            self.families.len() - 1
        });
        // Writing to a text does not fail.
        let _ = writeln!(self.families[at].1, "{}{} {value}", family.name, Labels(labels));
    }

    /// The page.
    pub(super) fn finish(self) -> String {
        self.families.into_iter().fold(String::new(), |mut page, (Family { kind, name, help }, samples)| {
            let kind = match kind {
                Kind::Gauge => "gauge",
                Kind::Counter => "counter",
            };
            let _ = write!(page, "# HELP {name} {help}\n# TYPE {name} {kind}\n{samples}");
            page
        })
    }
}

/// `{name="value",…}`, or nothing.
struct Labels<'a>(&'a [(&'a str, &'a str)]);

impl Display for Labels<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, (name, value)) in self.0.iter().enumerate() {
            write!(f, "{}{name}=\"", if at == 0 { '{' } else { ',' })?;
            for character in value.chars() {
                match character {
                    '\\' => f.write_str("\\\\")?,
                    '"' => f.write_str("\\\"")?,
                    '\n' => f.write_str("\\n")?,
                    other => f.write_char(other)?,
                }
            }
            f.write_char('"')?;
        }
        if self.0.is_empty() { Ok(()) } else { f.write_char('}') }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    static HEIGHT: Family = Family::gauge("height_metres", "How high.");
    static STEPS: Family = Family::counter("steps_total", "How many steps.");

    #[test]
    fn a_family_stands_together_behind_what_it_is() {
        let mut page = Exposition::default();
        page.add(&HEIGHT, &[("who", "a"), ("on", "b")], 1.5);
        page.add(&STEPS, &[], u64::MAX);
        page.add(&HEIGHT, &[("who", "c")], 2.0);
        let expected = "\
# HELP height_metres How high.
# TYPE height_metres gauge
height_metres{who=\"a\",on=\"b\"} 1.5
height_metres{who=\"c\"} 2
# HELP steps_total How many steps.
# TYPE steps_total counter
steps_total 18446744073709551615
";
        assert_eq!(page.finish(), expected);
        assert_eq!(Exposition::default().finish(), "");
    }

    #[test]
    fn labels_can_say_anything_on_one_line() {
        let mut page = Exposition::default();
        page.add(&STEPS, &[("who", "a\"} 9\nsteps_total{x=\"\\ü\0")], 1);
        let page = page.finish();
        assert_eq!(page.lines().nth(2), Some("steps_total{who=\"a\\\"} 9\\nsteps_total{x=\\\"\\\\ü\0\"} 1"));
    }
}
