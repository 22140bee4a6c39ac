//! Interrupts as messages, for machines that have none: on aarch64 their translation service (ITS) is not among what there is, and
//! on ppc64le functions have a pin each.

use std::sync::Arc;

use tatami_devices::virtio::MessageRoutes;

use super::VmFd;

/// What nobody has.
pub(crate) enum Messages {}

impl Messages {
    pub(super) fn new(_: &Arc<VmFd>) -> Option<Messages> {
        None
    }

    pub(crate) fn reserve(&mut self, _: usize) -> (u32, Box<dyn MessageRoutes>) {
        match *self {}
    }
}
