//! Settings of what the guest's own root has.

use std::path::{Component, Path};

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
}
