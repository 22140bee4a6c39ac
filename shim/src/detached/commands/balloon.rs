//! `tatami balloon`: a running container's machine does without a part of its memory, or has it back.

use clap::Args;

use super::super::{Error, registry};
use super::control::{refused, running};
use crate::run::size::{LEAST_MEMORY, parse_size};
use crate::sandbox::folder::Places;

/// `tatami balloon`.
#[derive(Args)]
#[command(after_help = "\
What the machine does without is the host's meanwhile. Its kernel gives what is free, and then what its caches hold; it does so over
time, and takes it back when its programs would be killed for want of memory. What it does not use goes back to the host in any case.

Examples:
  tatami balloon web 128m        # of `run -m 512m`: at most 384 MiB are used from now on
  tatami balloon web 0           # all of it again")]
pub struct BalloonArguments {
    /// Name, id, or beginning of an id
    #[arg(value_name = "CONTAINER")]
    container: String,
    /// How much memory it does without, in all
    #[arg(value_name = "SIZE[b|k|m|g]", value_parser = parse_size)]
    size: u64,
}

pub(super) async fn balloon(places: &Places, arguments: &BalloonArguments) -> Result<u8, Error> {
    let entry = registry::find(places, &arguments.container)?;
    let client = running(&entry, "take memory from").await?;
    let mib = without(arguments.size, entry.record.memory_mib).map_err(|why| {
        Error::Usage(format!("{} has {} MiB of memory, and {why}", entry.name(), entry.record.memory_mib))
    })?;
    client.balloon(mib).await.map_err(|error| refused(&entry, error))?;
    Ok(0)
}

/// So many bytes in MiB, if a machine of `memory_mib` can do without them.
fn without(bytes: u64, memory_mib: u32) -> Result<u32, String> {
    let most = u64::from(memory_mib).saturating_sub(LEAST_MEMORY);
    match bytes.div_ceil(1 << 20) {
        mib if mib <= most => u32::try_from(mib).map_err(|_| "cannot do without that".to_owned()),
        mib => Err(format!("can do without {most} MiB at most, not {mib}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_kernel_needs_stays() {
        assert_eq!(without(0, 512), Ok(0));
        assert_eq!(without(1, 512), Ok(1));
        assert_eq!(without(464 << 20, 512), Ok(464));
        assert!(without((464 << 20) + 1, 512).unwrap_err().contains("464 MiB at most, not 465"));
        assert!(without(u64::MAX, 512).is_err());
        assert_eq!(without(0, 32), Ok(0));
    }
}
