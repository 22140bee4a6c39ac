//! Writes what is made from the definitions that the binary itself reads its input by: manual pages, completions for shells, and the
//! documentation's reference of commands and settings. `make docs` and `make install` call it.
//!
//! usage: manual FOLDER        makes man1/, completions/ and reference/ in it

use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use tatami_shim::command_line::CommandLine;
use tatami_shim::configuration;

fn main() -> io::Result<()> {
    let mut arguments = std::env::args_os().skip(1);
    let (Some(folder), None) = (arguments.next(), arguments.next()) else {
        return Err(io::Error::other("usage: manual FOLDER"));
    };
    let folder = PathBuf::from(folder);
    let place = |name: &str| -> io::Result<PathBuf> {
        let place = folder.join(name);
        fs::create_dir_all(&place)?;
        Ok(place)
    };
    // Lines as long as they are: pages wrap by themselves.
    let command = CommandLine::command().term_width(0);

    clap_mangen::generate_to(command.clone(), place("man1")?)?;
    let completions = place("completions")?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        clap_complete::generate_to(shell, &mut command.clone(), "tatami", &completions)?;
    }
    let reference = place("reference")?;
    write_commands(command, &reference.join("commands.md"))?;
    fs::write(
        reference.join("configuration.md"),
        format!(
            "# configuration.toml\n\nWhat Tatami does with the settings of Kata's `configuration.toml`. Where it looks for the file, \
             and what a pod may change of it, stands in [Kubernetes](../start/kubernetes.md).\n\n{}",
            configuration::reference()
        ),
    )
}

/// Every command's help, as a terminal of so many columns as the pages have shows it, under a heading of its own.
fn write_commands(command: Command, path: &Path) -> io::Result<()> {
    let mut command = command.term_width(96);
    command.build();
    let mut text = "# Commands\n\nWhat `--help` says, of each. There are manual pages of the same.\n".to_owned();
    write_below(&mut command, "tatami", "##", &mut text);
    fs::write(path, text)
}

/// What is below a command, each with a heading, and what is below that.
fn write_below(command: &mut Command, name: &str, heading: &str, text: &mut String) {
    for found in command.get_subcommands_mut().filter(|known| known.get_name() != "help") {
        let name = format!("{name} {}", found.get_name());
        let help = found.render_long_help();
        let _ = write!(text, "\n{heading} {name}\n\n```text\n{}\n```\n", help.to_string().trim_end());
        write_below(found, &name, &format!("{heading}#"), text);
    }
}
