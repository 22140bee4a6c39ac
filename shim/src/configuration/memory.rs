//! Settings of what guest memory is made of, of which one at most can be.

use std::path::PathBuf;

use tatami_vmm::MemoryKind;

use super::keys::Section;
use super::{ConfigurationError, Settings};

const HUGE_PAGES: &str = "enable_hugepages";
const FILE: &str = "file_mem_backend";
const MERGEABLE: &str = "mergeable_memory";

impl Settings<'_> {
    /// What it is made of, and the folder for a file that it is to be in; none: what it usually is.
    pub(super) fn memory(&mut self) -> Result<Option<(MemoryKind, Option<PathBuf>)>, ConfigurationError> {
        let folder = self.text(Section::Hypervisor, FILE)?.filter(|folder| !folder.is_empty()).map(PathBuf::from);
        let wanted = [
            self.flag(Section::Hypervisor, HUGE_PAGES)?.then_some((HUGE_PAGES, MemoryKind::HugePages)),
            self.flag(Section::Hypervisor, MERGEABLE)?.then_some((MERGEABLE, MemoryKind::Mergeable)),
            folder.is_some().then_some((FILE, MemoryKind::File)),
        ];
        let mut wanted = wanted.into_iter().flatten();
        let Some((name, kind)) = wanted.next() else { return Ok(None) };
        if let Some((other, _)) = wanted.next() {
            let place = self.get(Section::Hypervisor, name).expect("it is set").place.clone();
            return Err(ConfigurationError::Both { place, name, other });
        }
        Ok(Some((kind, folder)))
    }
}
