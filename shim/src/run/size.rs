//! Sizes as docker writes them: `512m`, `2g`, `65536k`.

/// The least memory a guest is given, MiB: below, the kernel does not come up.
pub(crate) const LEAST_MEMORY: u64 = 48;

/// A size as docker writes them, in MiB, rounded up.
pub(super) fn parse_memory(text: &str) -> Result<u32, String> {
    match parse_size(text)?.div_ceil(1 << 20) {
        mib if mib < LEAST_MEMORY => Err(format!("a guest needs at least {LEAST_MEMORY}m")),
        mib => u32::try_from(mib).map_err(|_| "that is more than any machine has".to_owned()),
    }
}

/// A size as docker writes them, in bytes.
pub(crate) fn parse_size(text: &str) -> Result<u64, String> {
    let (digits, factor) = match text.to_ascii_lowercase().trim_end_matches('b') {
        "" => return Err("expected a size such as 512m or 2g".to_owned()),
        lower => {
            let factor = match lower.as_bytes()[lower.len() - 1] {
                b'k' => 1 << 10,
                b'm' => 1 << 20,
                b'g' => 1 << 30,
                _ => 1u64,
            };
            (lower.trim_end_matches(['k', 'm', 'g']).to_owned(), factor)
        }
    };
    let number: u64 = digits.parse().map_err(|_| "expected a size such as 512m or 2g".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is more than any machine has".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_written_as_for_docker() {
        assert_eq!(parse_memory("512m"), Ok(512));
        assert_eq!(parse_memory("2G"), Ok(2048));
        assert_eq!(parse_memory("1gb"), Ok(1024));
        assert_eq!(parse_memory("134217729"), Ok(129));
        assert_eq!(parse_memory("65536k"), Ok(64));
        for bad in
            ["", "m", "x", "-1", "1.5g", "1mm", "1m1", "10m", "0", "99999999999999999999", "18446744073709551615g"]
        {
            assert!(parse_memory(bad).is_err(), "{bad}");
        }
    }
}
