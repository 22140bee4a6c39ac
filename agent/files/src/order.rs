//! What the end in the container shall do, as words: the arguments of a process whose command is the empty one, which no program has.

use crate::target::Form;

/// An order to the end in the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Order {
    /// Write the stream of what is at `path` to standard output.
    Pack {
        /// Absolute.
        path: String,
        /// If it is a symbolic link, what it leads to is meant.
        follow: bool,
    },
    /// Read the stream from standard input, and make of it what is to be at `path`.
    Unpack {
        /// Absolute.
        path: String,
        /// What it is called where `path` is a folder.
        name: String,
        /// What the stream is of.
        form: Form,
        /// Users and groups are as the stream says; otherwise they are whoever makes the files.
        owners: bool,
    },
}

impl Order {
    /// As a process's arguments.
    pub fn words(&self) -> Vec<String> {
        let words: [&str; 6] = match self {
            Order::Pack { path, follow } => ["", "pack", path, flag(*follow), "", ""],
            Order::Unpack { path, name, form, owners } => ["", "unpack", path, name, form.word(), flag(*owners)],
        };
        words.map(str::to_owned).to_vec()
    }

    /// Of a process's arguments; none if they are a command.
    pub fn of(words: &[String]) -> Option<Order> {
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        match *words.as_slice() {
            ["", "pack", path, follow, "", ""] => Some(Order::Pack { path: path.to_owned(), follow: switch(follow)? }),
            ["", "unpack", path, name, form, owners] => Some(Order::Unpack {
                path: path.to_owned(),
                name: name.to_owned(),
                form: Form::of(form)?,
                owners: switch(owners)?,
            }),
            _ => None,
        }
    }
}

fn flag(on: bool) -> &'static str {
    if on { "yes" } else { "no" }
}

fn switch(word: &str) -> Option<bool> {
    match word {
        "yes" => Some(true),
        "no" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn orders_survive_and_commands_are_none() {
        let pack = Order::Pack { path: "/a b".to_owned(), follow: true };
        assert_eq!(Order::of(&pack.words()), Some(pack));
        for form in [Form::Whole, Form::Contents, Form::Archive] {
            let order = Order::Unpack { path: "/".to_owned(), name: "x".to_owned(), form, owners: false };
            assert_eq!(Order::of(&order.words()), Some(order));
        }
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>();
        for command in [&["pack", "/a", "no", "", ""][..], &[""], &["", "pack", "/a", "maybe", "", ""], &[]] {
            assert_eq!(Order::of(&words(command)), None, "{command:?}");
        }
    }
}
