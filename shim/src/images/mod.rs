//! Images by their names: `tatami pull`, `images`, `rmi`, `load`, `image save` and `image inspect`, and what `tatami run` finds under a name.
//!
//! What there is lies in the content store ([`crate::content`]); what is not there comes from a registry ([`crate::registry`]) or a file
//! ([`crate::image`]). Knows nothing of containers.

mod inspect;
mod list;
mod load;
mod progress;
mod pull;
mod remove;
mod save;
#[cfg(test)]
mod tests;

use std::io;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand, ValueEnum};

pub use inspect::InspectArguments;
pub use list::ListArguments;
pub use load::LoadArguments;
pub use pull::PullArguments;
pub use remove::RemoveArguments;
pub use save::SaveArguments;

use crate::content::{Content, ContentError, InUse, Named};
use crate::image::{self, Image, ImageError};
use crate::logging::complain;
use crate::privilege::{self, NotRoot};
use crate::registry::{Files, Options, RegistryError};
use crate::sandbox::folder::Places;
use progress::Show;

/// Why a command about images fails, or why there is none to run.
#[derive(Debug, thiserror::Error)]
pub enum ImagesError {
    /// Not root.
    #[error(transparent)]
    NotRoot(#[from] NotRoot),
    /// The store.
    #[error(transparent)]
    Content(#[from] ContentError),
    /// An image that is not what it should be.
    #[error(transparent)]
    Image(#[from] ImageError),
    /// A registry.
    #[error("cannot pull {name}: {source}")]
    Registry {
        /// What was wanted.
        name: String,
        /// Why not.
        source: Box<RegistryError>,
    },
    /// What a registry sent is not what it should be, or cannot be kept.
    #[error("cannot pull {name} from {host}: {source}")]
    Pulled {
        /// What was wanted.
        name: String,
        /// From whom.
        host: String,
        /// What is wrong.
        source: Box<ContentError>,
    },
    /// The same, of the image as a whole.
    #[error("cannot pull {name} from {host}: {why}")]
    Unusable {
        /// What was wanted.
        name: String,
        /// From whom.
        host: String,
        /// What is wrong.
        why: String,
    },
    /// A file of images.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A file's image has no name.
    #[error("the image in {} has no name: give it one with --name", .0.display())]
    Nameless(PathBuf),
    /// Somebody uses it.
    #[error("{0} is in use by a container: stop that first, or use -f, which leaves what it was unpacked to")]
    InUse(String),
    /// An archive in a terminal.
    #[error("an image is not for a terminal: name a file with -o, or redirect the output")]
    Terminal,
    /// Nobody reads what is written.
    #[error("cannot write the output: {0}")]
    Output(#[source] io::Error),
}

/// When `tatami run` asks the registry for an image.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum PullPolicy {
    /// Where it is not there.
    #[default]
    Missing,
    /// Each time.
    Always,
    /// Not at all.
    Never,
}

/// The command line of `tatami image`.
#[derive(Args)]
pub struct ImageArguments {
    #[command(subcommand)]
    command: Command,
}

/// Commands about images; some have shorter names too.
#[derive(Subcommand)]
enum Command {
    /// Fetch an image from a registry (also: tatami pull)
    Pull(PullArguments),
    /// List images (also: tatami images)
    #[command(visible_alias = "list")]
    Ls(ListArguments),
    /// Remove images (also: tatami rmi)
    Rm(RemoveArguments),
    /// Take images in from files (also: tatami load)
    Load(LoadArguments),
    /// Write images to an archive
    Save(SaveArguments),
    /// Show all that is known of images, as JSON
    Inspect(InspectArguments),
}

/// Carries out `tatami image …`.
pub fn main(arguments: &ImageArguments) -> ExitCode {
    match &arguments.command {
        Command::Pull(arguments) => pull(arguments),
        Command::Ls(arguments) => list(arguments),
        Command::Rm(arguments) => remove(arguments),
        Command::Load(arguments) => load(arguments),
        Command::Save(arguments) => finish(|content, _| save::save(content, arguments)),
        Command::Inspect(arguments) => finish(|content, _| inspect::inspect(content, arguments)),
    }
}

/// Carries out `tatami pull`.
pub fn pull(arguments: &PullArguments) -> ExitCode {
    finish(|content, _| pull::main(content, arguments))
}

/// Carries out `tatami images`.
pub fn list(arguments: &ListArguments) -> ExitCode {
    finish(|content, _| list::list(content, arguments))
}

/// Carries out `tatami rmi`.
pub fn remove(arguments: &RemoveArguments) -> ExitCode {
    finish(|content, root| remove::remove(content, root, arguments))
}

/// Carries out `tatami load`.
pub fn load(arguments: &LoadArguments) -> ExitCode {
    finish(|content, _| load::load(content, arguments))
}

fn finish(command: impl FnOnce(&Content, &Path) -> Result<u8, ImagesError>) -> ExitCode {
    let root = Places::from_environment().root;
    let carry_out = || {
        privilege::root()?;
        command(&Content::open(&root)?, &root)
    };
    let status = carry_out().unwrap_or_else(|error| {
        let unread = matches!(&error, ImagesError::Output(error) if error.kind() == io::ErrorKind::BrokenPipe);
        if !unread {
            complain(&error);
        }
        1
    });
    ExitCode::from(status)
}

/// An image that was found under its name, which stays as long as this lives.
pub(crate) struct Stored {
    pub(crate) image: Image,
    _in_use: InUse,
}

/// Whether a word on the command line means a file or folder with an image, and not a name.
pub(crate) fn is_file(word: &str) -> bool {
    let path = Path::new(word);
    let written_so = ["/", "./", "../"].iter().any(|start| word.starts_with(start)) || matches!(word, "." | "..");
    let archive = [".tar", ".tar.gz", ".tgz", ".tar.zst"].iter().any(|end| word.ends_with(end));
    let layout = ["oci-layout", "manifest.json"].iter().any(|name| path.join(name).exists());
    written_so || archive || layout || (path.exists() && !path.is_dir())
}

/// The image `word`, from the store or, as `policy` says, from its registry.
pub(crate) fn find(root: &Path, word: &str, policy: PullPolicy) -> Result<Stored, ImagesError> {
    let content = Content::open(root)?;
    let found = match policy {
        PullPolicy::Always => Err(ContentError::NoSuch(word.to_owned())),
        _ => content.find(word),
    };
    let named = match found {
        Ok(named) => named,
        Err(ContentError::NoSuch(_)) if policy != PullPolicy::Never => {
            let options = Options { files: credentials(None), ..Options::default() };
            pull::pull(&content, word, &options, &mut Show::new(false))?
        }
        Err(error) => return Err(error.into()),
    };
    open(&content, &named)
}

/// Opens a named image's documents.
fn open(content: &Content, named: &Named) -> Result<Stored, ImagesError> {
    let in_use = content.in_use()?;
    let digest = image::digest(&named.manifest)?;
    let image = Image::stored(content.folder(), &digest, named.manifest_size)?;
    Ok(Stored { image, _in_use: in_use })
}

/// All that is known of the image `word`, if there is one.
pub(crate) fn described(root: &Path, word: &str) -> Option<serde_json::Value> {
    let content = Content::open(root).ok()?;
    inspect::describe(&content, word).ok()
}

/// Where credentials are looked for.
fn credentials(asked: Option<&Path>) -> Files {
    Files::new(asked, |name| std::env::var_os(name).map(PathBuf::from))
}
