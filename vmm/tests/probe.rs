//! The probe, against whatever KVM this machine has.

use tatami_vmm::probe::{self, ProbeError};

/// Where KVM is not what it should be, the probe must say which of the known things is wrong.
#[test]
fn says_what_is_wrong_or_nothing() {
    match probe::probe() {
        Ok(info) => assert!(info.max_vcpus >= 1),
        Err(error) => {
            let message = error.to_string();
            assert!(!message.contains('\n'), "{message}");
            if std::path::Path::new("/sys/module/kvm_pvm").exists() {
                assert!(matches!(error, ProbeError::Pvm(_) | ProbeError::Permission), "{message}");
            }
        }
    }
}

#[test]
#[ignore = "needs KVM: run through tests/host"]
fn a_real_kvm_passes() {
    let info = probe::probe().expect("this test needs a KVM that runs stock kernels");
    assert!(info.max_vcpus >= 2, "{info:?}");
}
