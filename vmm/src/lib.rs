//! The micro-VMM on KVM.
