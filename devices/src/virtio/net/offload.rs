//! Who computes checksums and cuts large pieces into frames: what features mean for a tap, and which headers of a driver's are true.
//!
//! Pure: bytes and bits in, bytes and bits out.

use super::spec::{
    FEATURE_CSUM, FEATURE_GUEST_CSUM, FEATURE_GUEST_ECN, FEATURE_GUEST_TSO4, FEATURE_GUEST_TSO6, FEATURE_GUEST_USO4,
    FEATURE_GUEST_USO6, FEATURE_HOST_ECN, FEATURE_HOST_TSO4, FEATURE_HOST_TSO6, FEATURE_HOST_USO, FLAG_NEEDS_CSUM,
    FRAME_MAX, GSO_ECN, GSO_NONE, GSO_TCPV4, GSO_TCPV6, GSO_UDP_L4, GUEST_OFFLOADS, HEADER_BYTES, TUN_CSUM, TUN_ECN,
    TUN_TSO4, TUN_TSO6, TUN_USO4, TUN_USO6,
};

/// The least that can be a frame: an Ethernet header.
const FRAME_MIN: usize = 14;

/// What a tap may hand to a driver that takes `offloads`, as TUNSETOFFLOAD has it.
pub(super) fn tun_flags(offloads: u64) -> u32 {
    // Nothing else makes sense to a tap without the first, nor UDP over one version of IP only.
    if offloads & FEATURE_GUEST_CSUM == 0 {
        return 0;
    }
    let udp = FEATURE_GUEST_USO4 | FEATURE_GUEST_USO6;
    let offloads = if offloads & udp == udp { offloads } else { offloads & !udp };
    let table = [
        (FEATURE_GUEST_CSUM, TUN_CSUM),
        (FEATURE_GUEST_TSO4, TUN_TSO4),
        (FEATURE_GUEST_TSO6, TUN_TSO6),
        (FEATURE_GUEST_ECN, TUN_ECN),
        (FEATURE_GUEST_USO4, TUN_USO4),
        (FEATURE_GUEST_USO6, TUN_USO6),
    ];
    table.iter().filter(|(feature, _)| offloads & feature != 0).map(|(_, flag)| flag).sum()
}

/// Whether a driver that negotiated `features` may take `offloads` from now on (5.1.6.5.6.2).
pub(super) fn may_take(features: u64, offloads: u64) -> bool {
    offloads & !(features & GUEST_OFFLOADS) == 0
}

/// The header of a frame of `len` bytes, header included, as the host shall see it; none if it says what the driver may not say.
/// Bits that the specification leaves to later ones are cleared.
pub(super) fn judge(header: [u8; HEADER_BYTES], len: usize, features: u64) -> Option<[u8; HEADER_BYTES]> {
    if !(HEADER_BYTES + FRAME_MIN..=FRAME_MAX).contains(&len) {
        return None;
    }
    let field = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let mut out = [0; HEADER_BYTES];
    if header[0] & FLAG_NEEDS_CSUM != 0 {
        let (start, offset) = (field(6), field(8));
        if features & FEATURE_CSUM == 0 || start + offset + 2 > len - HEADER_BYTES {
            return None;
        }
        out[0] = FLAG_NEEDS_CSUM;
        out[6..10].copy_from_slice(&header[6..10]);
    }
    let needed = match header[1] & !GSO_ECN {
        GSO_NONE => return Some(out),
        GSO_TCPV4 => FEATURE_HOST_TSO4,
        GSO_TCPV6 => FEATURE_HOST_TSO6,
        GSO_UDP_L4 => FEATURE_HOST_USO,
        _ => return None,
    };
    let ecn = header[1] & GSO_ECN == 0 || features & FEATURE_HOST_ECN != 0;
    // A piece to be cut needs a size to cut it to, and a checksum for each part (5.1.6.2.1).
    if features & needed == 0 || !ecn || field(4) == 0 || out[0] & FLAG_NEEDS_CSUM == 0 {
        return None;
    }
    out[1..6].copy_from_slice(&header[1..6]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: u64 = u64::MAX;

    fn header(flags: u8, gso: u8, size: u16, start: u16, offset: u16) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        (header[0], header[1]) = (flags, gso);
        header[2..4].copy_from_slice(&54_u16.to_le_bytes());
        header[4..6].copy_from_slice(&size.to_le_bytes());
        header[6..8].copy_from_slice(&start.to_le_bytes());
        header[8..10].copy_from_slice(&offset.to_le_bytes());
        header[10..].copy_from_slice(&[0xff, 0xff]);
        header
    }

    #[test]
    fn a_true_header_passes_without_what_is_not_its() {
        let passed = judge(header(0xff, GSO_TCPV4 | GSO_ECN, 1448, 34, 16), 9000, ALL).unwrap();
        assert_eq!(passed[..10], header(FLAG_NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1448, 34, 16)[..10]);
        assert_eq!(passed[10..], [0, 0]);
        assert_eq!(judge(header(0, GSO_NONE, 7, 7, 7), 60, 0), Some([0; HEADER_BYTES]));
    }

    #[test]
    fn lies_are_dropped() {
        let lies = [
            // The checksum lies outside the frame.
            (header(FLAG_NEEDS_CSUM, GSO_NONE, 0, 40, 16), 12 + 57),
            (header(FLAG_NEEDS_CSUM, GSO_NONE, 0, u16::MAX, u16::MAX), 1000),
            // To be cut into nothing, or without checksums.
            (header(FLAG_NEEDS_CSUM, GSO_TCPV4, 0, 34, 16), 9000),
            (header(0, GSO_TCPV6, 1440, 34, 16), 9000),
            // No such thing: the old UDP, and nonsense.
            (header(FLAG_NEEDS_CSUM, 3, 1448, 34, 6), 9000),
            (header(FLAG_NEEDS_CSUM, 0x7f, 1448, 34, 6), 9000),
            // No frame.
            (header(0, GSO_NONE, 0, 0, 0), 12 + 13),
            (header(0, GSO_NONE, 0, 0, 0), FRAME_MAX + 1),
            (header(0, GSO_NONE, 0, 0, 0), 0),
        ];
        for (header, len) in lies {
            assert_eq!(judge(header, len, ALL), None, "{header:?}, {len} bytes");
        }
    }

    #[test]
    fn what_was_not_negotiated_is_dropped() {
        for (needed, gso) in
            [(FEATURE_HOST_TSO4, GSO_TCPV4), (FEATURE_HOST_TSO6, GSO_TCPV6), (FEATURE_HOST_USO, GSO_UDP_L4)]
        {
            let header = header(FLAG_NEEDS_CSUM, gso, 1440, 34, 16);
            assert!(judge(header, 9000, ALL).is_some());
            assert_eq!(judge(header, 9000, ALL & !needed), None);
            assert_eq!(judge(header, 9000, ALL & !FEATURE_CSUM), None);
        }
        let marked = header(FLAG_NEEDS_CSUM, GSO_TCPV4 | GSO_ECN, 1440, 34, 16);
        assert_eq!(judge(marked, 9000, ALL & !FEATURE_HOST_ECN), None);
    }

    #[test]
    fn a_tap_is_told_what_the_driver_takes() {
        assert_eq!(tun_flags(GUEST_OFFLOADS), 0x6f);
        assert_eq!(tun_flags(FEATURE_GUEST_CSUM), TUN_CSUM);
        assert_eq!(tun_flags(FEATURE_GUEST_TSO4), 0, "pieces without checksums cannot be");
        assert_eq!(tun_flags(FEATURE_GUEST_CSUM | FEATURE_GUEST_USO4), TUN_CSUM);
        assert!(may_take(FEATURE_GUEST_CSUM, 0) && may_take(FEATURE_GUEST_CSUM, FEATURE_GUEST_CSUM));
        assert!(!may_take(FEATURE_GUEST_CSUM, FEATURE_GUEST_TSO4) && !may_take(ALL, FEATURE_CSUM));
    }
}
