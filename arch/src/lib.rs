//! What a machine looks like, as pure data: no KVM, no devices, every architecture on every host.
