//! How full a volume is that a guest has mounted itself: the host, which has not, cannot tell.
//!
//! Says it as CSI's NodeGetVolumeStats has it, in JSON, for drivers that pass it on.

use std::io::{self, Write};
use std::path::Path;
use std::process::ExitCode;

use serde_json::{Value, json};
use tatami_protocol::agent::{Figures, VolumeFigures};

use super::{MetricsError, node};
use crate::sandbox::folder::Places;

/// What is counted: `VolumeUsage.Unit` of the Container Storage Interface.
const BYTES: u8 = 1;
const INODES: u8 = 2;

/// Prints what is said of the volume that pods know as `path`.
pub fn main(path: &Path) -> ExitCode {
    super::end(super::as_root(|places| show(places, path)))
}

async fn show(places: Places, path: &Path) -> Result<(), MetricsError> {
    let sandboxes = node::ask_all(&places).await?;
    let figures = sandboxes.iter().filter_map(|(_, figures)| figures.as_ref()).find_map(|figures| find(figures, path));
    let figures = figures.ok_or_else(|| MetricsError::NoVolume(path.to_owned()))?;
    writeln!(io::stdout(), "{}", statistics(figures)).map_err(MetricsError::Output)
}

fn find<'a>(figures: &'a Figures, path: &Path) -> Option<&'a VolumeFigures> {
    figures.volumes.iter().find(|volume| Path::new(&volume.source) == path)
}

fn statistics(volume: &VolumeFigures) -> Value {
    let usage =
        |unit, total, used, available| json!({ "available": available, "total": total, "used": used, "unit": unit });
    let mut all = vec![usage(BYTES, volume.total_bytes, volume.used_bytes, volume.available_bytes)];
    if volume.total_inodes > 0 {
        all.push(usage(INODES, volume.total_inodes, volume.used_inodes, volume.available_inodes));
    }
    json!({ "usage": all, "volume_condition": {} })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_is_told_as_csi_has_it() {
        let volume = VolumeFigures {
            source: "/data".to_owned(),
            total_bytes: 10,
            used_bytes: 4,
            available_bytes: 5,
            ..Default::default()
        };
        let figures = Figures { volumes: vec![volume], ..Default::default() };
        assert!(find(&figures, Path::new("/other")).is_none());
        let mut volume = find(&figures, Path::new("/data/")).unwrap().clone();
        let bytes = r#"{"available":5,"total":10,"unit":1,"used":4}"#;
        assert_eq!(statistics(&volume).to_string(), format!(r#"{{"usage":[{bytes}],"volume_condition":{{}}}}"#));
        volume.total_inodes = 3;
        assert_eq!(statistics(&volume)["usage"][1], json!({ "available": 0, "total": 3, "used": 0, "unit": 2 }));
    }
}
