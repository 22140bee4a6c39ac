//! One file of containerd's configuration, as text: what in it concerns an installation, and edits that keep every other byte.
//!
//! Reads no file and writes none. Rendering a parsed file anew would lose the operator's order, spacing and quotes; here text is put
//! between what is there, and found again by its marks.

use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{InstallError, Line};

/// The lines around a section that stands in somebody else's file.
const BEGIN: &str = "# Written by `tatami install`, to the line that says so; `tatami uninstall` takes it back.";
const END: &str = "# So far by `tatami install`.";
/// At the end of a line of its own in somebody else's file.
const IMPORT_MARK: &str = "# by `tatami install`; `tatami uninstall` takes it back";

/// A file of containerd's configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
}

/// What a file says that it imports.
#[derive(Debug)]
pub(super) struct Imports {
    /// As they are written: relative to the file, with wildcards.
    pub(super) entries: Vec<String>,
    /// Where the list begins, behind its bracket.
    inside: usize,
}

impl ConfigFile {
    pub(super) fn new(path: &Path, text: &str) -> ConfigFile {
        ConfigFile { path: path.to_owned(), text: text.to_owned() }
    }

    /// The version of its form; 1 where it says none, as containerd has it.
    pub(super) fn version(&self) -> Result<i64, InstallError> {
        let table = self.table()?;
        let Some(version) = table.get("version") else { return Ok(1) };
        match version.get_ref() {
            DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix()).ok(),
            _ => None,
        }
        .ok_or_else(|| self.wrong(version.span().start, "version is not a number: containerd's files have 2 or 3"))
    }

    /// What it imports, if it has such a list.
    pub(super) fn imports(&self) -> Result<Option<Imports>, InstallError> {
        let table = self.table()?;
        let Some(imports) = table.get("imports") else { return Ok(None) };
        let not_texts = || self.wrong(imports.span().start, "imports is not a list of paths");
        let DeValue::Array(values) = imports.get_ref() else { return Err(not_texts()) };
        let entries = values.iter().map(|value| match value.get_ref() {
            DeValue::String(text) => Ok(text.to_string()),
            _ => Err(not_texts()),
        });
        Ok(Some(Imports { entries: entries.collect::<Result<_, _>>()?, inside: imports.span().start + 1 }))
    }

    /// Where it says that one of these plug-ins is not to run.
    pub(super) fn disabling(&self, plugins: &[&str]) -> Result<Option<Line>, InstallError> {
        let table = self.table()?;
        let Some(DeValue::Array(values)) = table.get("disabled_plugins").map(Spanned::get_ref) else { return Ok(None) };
        let named = |value: &&Spanned<DeValue<'_>>| matches!(value.get_ref(), DeValue::String(text) if plugins.contains(&&**text));
        Ok(values.iter().find(named).map(|value| self.line(value.span().start)))
    }

    /// Where it says something of the plug-in, or of a runtime in it.
    pub(super) fn mentions(&self, plugin: &str, runtime: Option<&str>) -> Result<Option<Line>, InstallError> {
        let table = self.table()?;
        let mut names = vec!["plugins", plugin];
        if let Some(runtime) = runtime {
            names.extend(["containerd", "runtimes", runtime]);
        }
        let mut inner: &DeTable<'_> = &table;
        let mut at = None;
        for name in names {
            let Some((key, value)) = inner.get_key_value(name) else { return Ok(None) };
            at = Some(self.line(key.span().start));
            match value.get_ref() {
                DeValue::Table(table) => inner = table,
                _ => return Ok(None),
            }
        }
        Ok(at)
    }

    /// The same file with `content` as the section of ours, where that was or at the end; without one if there is none.
    pub(super) fn with_section(&self, content: Option<&str>) -> Result<ConfigFile, InstallError> {
        let there = self.section()?.unwrap_or(self.text.len()..self.text.len());
        // The line break before the mark is ours: the last line of a file may have none.
        let ours = match content {
            Some(content) => format!("\n{BEGIN}\n{content}{END}\n"),
            // Something was written behind it since.
            None if there.end < self.text.len() && !self.text[..there.start].ends_with('\n') => "\n".to_owned(),
            None => String::new(),
        };
        self.edited(there, &ours, content.unwrap_or_default())
    }

    /// The same file, importing `entry` as well.
    pub(super) fn with_import(&self, entry: &str) -> Result<ConfigFile, InstallError> {
        let instruction = format!("imports = [{}]", quoted(entry));
        if let Some(imports) = self.imports()? {
            // The list may be of any form, with comments in it: nothing disturbs what follows if it stands at the very beginning.
            return self.edited(imports.inside..imports.inside, &element(entry), &instruction);
        }
        // Before any table: right behind the version, of which is known that it is not in one.
        let table = self.table()?;
        let version = table.get("version").map_or(0, |version| version.span().end);
        let rest = &self.text[version..];
        let at = version + rest.find('\n').unwrap_or(rest.len());
        self.edited(at..at, &import_line(entry), &instruction)
    }

    /// The same file, without what [`Self::with_import`] has put in.
    pub(super) fn without_import(&self, entry: &str) -> Result<ConfigFile, InstallError> {
        let Some(imports) = self.imports()? else { return Ok(self.clone()) };
        for ours in [import_line(entry), element(entry)] {
            // The line begins a little before the list itself.
            let from = if ours.starts_with('\n') { 0 } else { imports.inside };
            let Some(at) = self.text.get(from..).and_then(|text| text.find(&ours)) else { continue };
            let at = from + at;
            return self.edited(at..at + ours.len(), "", &format!("no {} among its imports", quoted(entry)));
        }
        Ok(self.clone())
    }

    /// Where the section of ours is, with the line break before it.
    fn section(&self) -> Result<Option<Range<usize>>, InstallError> {
        let Some(begin) = self.text.find(BEGIN) else { return Ok(None) };
        let Some(end) = self.text[begin..].find(END) else {
            let reason = format!("what begins here has lost its end; write the line `{END}` behind it, or remove it");
            return Err(self.wrong(begin, &reason));
        };
        let end = begin + end + END.len();
        let end = if self.text[end..].starts_with('\n') { end + 1 } else { end };
        let begin = if self.text[..begin].ends_with('\n') { begin - 1 } else { begin };
        Ok(Some(begin..end))
    }

    /// Puts `text` in the place of what is at `there`, if the result is still TOML.
    fn edited(&self, there: Range<usize>, text: &str, instruction: &str) -> Result<ConfigFile, InstallError> {
        let text = [&self.text[..there.start], text, &self.text[there.end..]].concat();
        let edited = ConfigFile { path: self.path.clone(), text };
        match edited.table() {
            Ok(_) => Ok(edited),
            Err(error) => Err(InstallError::Edit {
                path: self.path.clone(),
                reason: error.to_string(),
                text: instruction.trim_end().to_owned(),
            }),
        }
    }

    fn table(&self) -> Result<DeTable<'_>, InstallError> {
        DeTable::parse(&self.text)
            .map(Spanned::into_inner)
            .map_err(|error| self.wrong(error.span().map_or(0, |span| span.start), error.message()))
    }

    fn wrong(&self, offset: usize, reason: &str) -> InstallError {
        InstallError::Form { place: self.line(offset), reason: reason.to_owned() }
    }

    fn line(&self, offset: usize) -> Line {
        Line::of(&self.path, &self.text, offset)
    }
}

/// `text` as TOML has it, which for a text is as JSON has it.
pub(super) fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

fn import_line(entry: &str) -> String {
    format!("\nimports = [{}] {IMPORT_MARK}", quoted(entry))
}

/// Of a list; the comma may be its last.
fn element(entry: &str) -> String {
    format!("{}, ", quoted(entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CRI: &str = "io.containerd.grpc.v1.cri";
    const ENTRY: &str = "/etc/containerd/conf.d/tatami*.toml";

    fn file(text: &str) -> ConfigFile {
        ConfigFile::new(Path::new("/etc/containerd/config.toml"), text)
    }

    #[test]
    fn what_concerns_an_installation_is_found() {
        let found = file(
            "version = 2\ndisabled_plugins = ['x', 'io.containerd.grpc.v1.cri']\nimports = [ # some\n 'a.toml', \"/b/*.toml\" ]\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.kata]\nruntime_type = 'x'\n",
        );
        assert_eq!(found.version().unwrap(), 2);
        assert_eq!(found.imports().unwrap().unwrap().entries, ["a.toml", "/b/*.toml"]);
        let line = |line: Option<Line>| line.map(|line| line.to_string());
        let expected = Some("/etc/containerd/config.toml:2".to_owned());
        assert_eq!(line(found.disabling(&["cri", CRI]).unwrap()), expected);
        assert_eq!(line(found.disabling(&["cri"]).unwrap()), None);
        assert!(line(found.mentions(CRI, Some("kata")).unwrap()).is_some_and(|place| place.ends_with(":5")));
        assert!(found.mentions(CRI, None).unwrap().is_some() && found.mentions(CRI, Some("runc")).unwrap().is_none());
        assert_eq!((file("").version().unwrap(), file("").imports().unwrap().is_none()), (1, true));
    }

    #[test]
    fn what_is_wrong_is_named_with_its_line() {
        let told = |error: InstallError| error.to_string();
        assert!(
            told(file("root = '/'\nversion = \n").version().unwrap_err())
                .starts_with("/etc/containerd/config.toml:2: ")
        );
        assert!(
            told(file("version = 'two'").version().unwrap_err()).contains("config.toml:1: version is not a number")
        );
        assert!(told(file("imports = 'a'").imports().unwrap_err()).contains("imports is not a list"));
        assert!(told(file("imports = [1]").imports().unwrap_err()).contains("imports is not a list"));
    }

    #[test]
    fn a_section_comes_changes_and_goes_without_another_byte() {
        for text in ["", "version = 2\n", "version = 2", "# crlf\r\nversion = 2\r\n\r\n"] {
            let with = file(text).with_section(Some("[plugins.a]\nb = 1\n")).unwrap();
            assert!(with.text.starts_with(text) && with.text.contains("\n[plugins.a]\nb = 1\n"), "{}", with.text);
            let more = file(&format!("{}[other]\n", with.text));
            let other = more.with_section(Some("[plugins.a]\nb = 2\n")).unwrap();
            assert!(other.text.contains("b = 2") && !other.text.contains("b = 1"), "{}", other.text);
            let end = if text.ends_with('\n') { "" } else { "\n" };
            assert_eq!(other.with_section(None).unwrap().text, format!("{text}{end}[other]\n"));
            assert_eq!(with.with_section(None).unwrap().text, text);
        }
    }

    #[test]
    fn a_section_that_cannot_be_is_not_written() {
        let inline = file("version = 2\nplugins = { a = 1 }\n");
        let told = inline.with_section(Some("[plugins.b]\nc = 1\n")).unwrap_err().to_string();
        assert!(told.contains("config.toml:5") && told.contains("yourself: [plugins.b]\nc = 1"), "{told}");
        let cut = file(&format!("version = 2\n{BEGIN}\n[plugins.a]\n"));
        assert!(cut.with_section(None).unwrap_err().to_string().contains("config.toml:2: what begins here"));
    }

    #[test]
    fn an_import_comes_and_goes_without_another_byte() {
        let texts = [
            "version = 3",
            "version = 3 # of 2.x\n",
            "# first\r\nversion = 3\r\n[grpc]\r\n",
            "root = '/r'\nversion = 3\n[plugins]\n",
            "version = 3\nimports = []\n",
            "version = 3\nimports = ['/a/*.toml']\n[grpc]\n",
            "imports = [\n  # the first\n  \"a.toml\", # and\n  'b.toml',\n]\nversion = 3\n",
        ];
        for text in texts {
            let with = file(text).with_import(ENTRY).unwrap();
            let before = file(text).imports().unwrap().map(|imports| imports.entries).unwrap_or_default();
            let after = with.imports().unwrap().unwrap().entries;
            assert_eq!(after, [vec![ENTRY.to_owned()], before].concat(), "{}", with.text);
            assert_eq!(with.version().unwrap(), 3);
            assert_eq!(with.without_import(ENTRY).unwrap().text, text);
            assert_eq!(file(text).without_import(ENTRY).unwrap().text, text);
        }
    }
}
