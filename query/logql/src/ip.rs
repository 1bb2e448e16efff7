//! Addresses in lines and labels: `ip("10.0.0.0/8")`, one address, a block, or a range.

use std::net::IpAddr;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IpRange {
    first: IpAddr,
    last: IpAddr,
}

impl IpRange {
    pub fn parse(text: &str) -> Result<Self, String> {
        let bad = || format!("{text:?} is no address, block of addresses or range of addresses");
        let address = |t: &str| t.trim().parse::<IpAddr>().map_err(|_| bad());
        if let Some((base, bits)) = text.split_once('/') {
            let bits: u32 = bits.trim().parse().map_err(|_| bad())?;
            return block(address(base)?, bits).ok_or_else(bad);
        }
        let (first, last) = match text.split_once('-') {
            Some((first, last)) => (address(first)?, address(last)?),
            None => (address(text)?, address(text)?),
        };
        if first.is_ipv4() != last.is_ipv4() || last < first {
            return Err(bad());
        }
        Ok(Self { first, last })
    }

    pub fn holds(&self, address: IpAddr) -> bool {
        address.is_ipv4() == self.first.is_ipv4() && self.first <= address && address <= self.last
    }

    /// Whether an address of the range stands somewhere in the text.
    pub fn is_in(&self, text: &[u8]) -> bool {
        addresses(text).any(|a| self.holds(a))
    }
}

fn block(base: IpAddr, bits: u32) -> Option<IpRange> {
    Some(match base {
        IpAddr::V4(base) => {
            let mask = u32::MAX
                .checked_shr(bits)
                .filter(|_| bits <= 32)
                .or((bits == 32).then_some(0))?;
            let first = base.to_bits() & !mask;
            IpRange {
                first: IpAddr::V4(first.into()),
                last: IpAddr::V4((first | mask).into()),
            }
        }
        IpAddr::V6(base) => {
            let mask = u128::MAX
                .checked_shr(bits)
                .filter(|_| bits <= 128)
                .or((bits == 128).then_some(0))?;
            let first = base.to_bits() & !mask;
            IpRange {
                first: IpAddr::V6(first.into()),
                last: IpAddr::V6((first | mask).into()),
            }
        }
    })
}

/// What looks like an address, from left to right.
fn addresses(text: &[u8]) -> impl Iterator<Item = IpAddr> + '_ {
    let is_part = |b: &u8| b.is_ascii_hexdigit() || matches!(b, b'.' | b':');
    text.split(move |b| !is_part(b)).filter_map(|run| {
        let run = std::str::from_utf8(run).ok()?;
        let digits = run.trim_matches('.');
        // With the port behind it, or a colon in front: `1.2.3.4:80`, `from:1.2.3.4`.
        let v4 = || digits.split(':').find_map(|part| part.trim_matches('.').parse().ok());
        digits
            .parse()
            .ok()
            .or_else(|| digits.contains('.').then(v4).flatten())
            .or_else(|| digits.trim_end_matches(':').parse().ok())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_and_ranges_hold_what_lies_in_them() {
        let holds = |range: &str, line: &str| IpRange::parse(range).unwrap().is_in(line.as_bytes());
        assert!(holds("10.0.0.0/8", "from 10.1.2.3:80 to x"));
        assert!(!holds("10.0.0.0/8", "from 11.1.2.3:80"));
        assert!(holds("10.0.0.1-10.0.0.3", "[10.0.0.3]"));
        assert!(holds("10.0.0.7", "addr=10.0.0.7, ok."));
        assert!(holds("2001:db8::/32", "peer 2001:db8::1 left"));
        assert!(holds("0.0.0.0/0", "1.2.3.4") && holds("1.2.3.4/32", "1.2.3.4") && !holds("1.2.3.4/32", "1.2.3.5"));
        assert!(holds("::/0", "::1"));
        for bad in ["", "x", "1.2.3.4/33", "1.2.3.9-1.2.3.4", "1.2.3.4-::1", "::/129"] {
            assert!(IpRange::parse(bad).is_err(), "{bad}");
        }
    }
}
