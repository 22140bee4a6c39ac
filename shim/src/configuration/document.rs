//! What stands in configuration files: settings by section and name, each with the place where it was read.
//!
//! Knows the form (TOML), the order in which files override each other, and no setting's meaning.

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use toml::de::{DeTable, DeValue};

/// A file that cannot be taken in.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It cannot be read.
    #[error("cannot read the configuration {}: {source}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// It is not TOML.
    #[error("{place}: {reason}")]
    Form {
        /// Where.
        place: Place,
        /// What is wrong.
        reason: String,
    },
}

/// Where something is said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    /// A line of a file.
    Line {
        /// The file.
        file: Arc<Path>,
        /// From 1 on.
        line: usize,
    },
    /// The annotation of this name.
    Annotation(String),
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Place::Line { file, line } => write!(f, "{}:{line}", file.display()),
            Place::Annotation(name) => write!(f, "the annotation {name}"),
        }
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    /// As an annotation has it: whatever its text can be read as.
    Loose(String),
    /// Something that no setting is: a date, a table in braces, a number beyond 64 bits. As it is called.
    Other(&'static str),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Bool(value) => write!(f, "{value}"),
            Value::Integer(number) => write!(f, "{number}"),
            Value::Float(number) => write!(f, "{number}"),
            Value::Text(text) | Value::Loose(text) => write!(f, "{text:?}"),
            Value::List(values) => {
                let all: Vec<String> = values.iter().map(ToString::to_string).collect();
                write!(f, "[{}]", all.join(", "))
            }
            Value::Other(what) => f.write_str(what),
        }
    }
}

/// A value and where it stands.
#[derive(Clone, Debug)]
pub(super) struct Setting {
    pub(super) value: Value,
    pub(super) place: Place,
}

/// Settings by section, `hypervisor.qemu` for one, and name.
#[derive(Debug, Default)]
pub(super) struct Document {
    pub(super) settings: BTreeMap<(String, String), Setting>,
}

impl Document {
    /// Takes in the file at `path`: what it says goes before what was there.
    ///
    /// # Errors
    /// [`DocumentError`].
    pub(super) fn read(&mut self, path: &Path) -> Result<(), DocumentError> {
        let text =
            std::fs::read_to_string(path).map_err(|source| DocumentError::Read { path: path.to_owned(), source })?;
        self.take(&text, &Source { file: path.into(), text: &text })
    }

    fn take(&mut self, text: &str, source: &Source<'_>) -> Result<(), DocumentError> {
        let table = DeTable::parse(text).map_err(|error| DocumentError::Form {
            place: source.place(error.span().map_or(0, |span| span.start)),
            reason: error.message().to_owned(),
        })?;
        self.enter("", table.get_ref(), source);
        Ok(())
    }

    /// Enters a table and the tables in it, which are sections as well.
    fn enter(&mut self, section: &str, table: &DeTable<'_>, source: &Source<'_>) {
        for (name, value) in table {
            let place = source.place(name.span().start);
            let name = name.get_ref().to_string();
            match value.get_ref() {
                DeValue::Table(inner) if section.is_empty() => self.enter(&name, inner, source),
                DeValue::Table(inner) => self.enter(&format!("{section}.{name}"), inner, source),
                value => {
                    self.settings.insert((section.to_owned(), name), Setting { value: value.into(), place });
                }
            }
        }
    }
}

/// A file's text.
struct Source<'a> {
    file: Arc<Path>,
    text: &'a str,
}

impl Source<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        Place::Line { file: Arc::clone(&self.file), line: 1 + before.matches('\n').count() }
    }
}

impl From<&DeValue<'_>> for Value {
    fn from(value: &DeValue<'_>) -> Value {
        match value {
            DeValue::Boolean(value) => Value::Bool(*value),
            DeValue::Integer(number) => match i64::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Other("a number beyond 64 bits"),
            },
            DeValue::Float(number) => number.as_str().parse().map_or(Value::Other("no number"), Value::Float),
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Array(values) => Value::List(values.iter().map(|value| value.get_ref().into()).collect()),
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Table(_) => Value::Other("a table"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(texts: &[&str]) -> Result<Document, DocumentError> {
        let mut document = Document::default();
        for (number, text) in texts.iter().enumerate() {
            document.take(text, &Source { file: Path::new(&format!("/file{number}")).into(), text })?;
        }
        Ok(document)
    }

    #[test]
    fn later_files_go_before_earlier_ones_setting_by_setting() {
        let document = document(&[
            "[runtime]\nname = 'a'\n[hypervisor.qemu]\nkernel = '/k'\ndefault_vcpus = 0x10\n",
            "\n\n[hypervisor.qemu]\n# none\ndefault_vcpus = 2\nlist = [1.5, true, 1979-05-27]\n",
        ])
        .unwrap();
        let get = |section: &str, name: &str| {
            let setting = &document.settings[&(section.to_owned(), name.to_owned())];
            (setting.value.clone(), setting.place.to_string())
        };
        assert_eq!(document.settings.len(), 4);
        assert_eq!(get("runtime", "name"), (Value::Text("a".to_owned()), "/file0:2".to_owned()));
        assert_eq!(get("hypervisor.qemu", "default_vcpus"), (Value::Integer(2), "/file1:5".to_owned()));
        let list = vec![Value::Float(1.5), Value::Bool(true), Value::Other("a date")];
        assert_eq!(get("hypervisor.qemu", "list").0, Value::List(list));
    }

    #[test]
    fn what_is_no_toml_is_named_with_its_line() {
        let told = |text: &str| document(&[text]).unwrap_err().to_string();
        assert!(told("[runtime]\nname = \n").starts_with("/file0:2: "), "{}", told("[runtime]\nname = \n"));
        let twice = told("[a]\nb = 1\n\nb = 2\n");
        assert!(twice.starts_with("/file0:4: ") && twice.contains("duplicate"), "{twice}");
        let missing = Document::default().read(Path::new("/no/such")).unwrap_err().to_string();
        assert!(missing.contains("/no/such"), "{missing}");
    }
}
