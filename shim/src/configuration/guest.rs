//! Settings of what the guest's own root has.

use std::path::{Component, Path};

use tatami_vmm::Verity;

use super::keys::Section;
use super::{ConfigurationError, Settings, wrong};

impl Settings<'_> {
    /// The folder in the guest whose programs are hooks of every container.
    pub(super) fn guest_hooks(&self) -> Result<Option<String>, ConfigurationError> {
        const NAME: &str = "guest_hook_path";
        let Some(path) = self.text(Section::Hypervisor, NAME)?.filter(|path| !path.is_empty()) else {
            return Ok(None);
        };
        let mut parts = Path::new(path).components();
        if parts.next() != Some(Component::RootDir) || !parts.all(|part| matches!(part, Component::Normal(_))) {
            let setting = self.get(Section::Hypervisor, NAME).expect("it is set");
            return Err(wrong(setting, NAME, "a folder of the guest's root, by its path from / on"));
        }
        Ok(Some(path.to_owned()))
    }

    /// What the disk that it is on must be checked by; `image` says whether the one that is named is used.
    pub(super) fn verity(&mut self, image: bool) -> Result<Option<Verity>, ConfigurationError> {
        const NAME: &str = "kernel_verity_params";
        let Some(text) = self.text(Section::Hypervisor, NAME)?.filter(|text| !text.is_empty()) else { return Ok(None) };
        let wanted = "what tatami rootfs build --dm-verity prints: root_hash=HEX,salt=HEX,data_blocks=NUMBER,data_block_size=4096,\
                      hash_block_size=4096";
        let setting = self.get(Section::Hypervisor, NAME).expect("it is set");
        if !image && self.text(Section::Hypervisor, "image")?.is_some_and(|path| !path.is_empty()) {
            self.idle.push(format!("{}: {NAME} changes nothing: its image is not used", setting.place));
            return Ok(None);
        }
        text.parse().map(Some).map_err(|_| wrong(setting, NAME, wanted))
    }
}
