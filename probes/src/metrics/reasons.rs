//! The kernel's names for why it dropped a packet, read from its description of its own types (BTF), because the numbers
//! change from kernel to kernel.

use meshdiff_model::DropReason;
use rustc_hash::FxHashMap;

/// The names of `enum skb_drop_reason`.
#[derive(Clone, Debug, Default)]
pub struct DropReasons(FxHashMap<u32, DropReason>);

const ENUM: &str = "skb_drop_reason";
const PREFIX: &str = "SKB_DROP_REASON_";
/// More than this is no kernel's BTF.
const MOST_BYTES: u64 = 64 << 20;

impl DropReasons {
    /// Those of the running kernel; none where it does not tell, and numbers take their place.
    #[must_use]
    pub fn of_this_kernel() -> Self {
        let path = "/sys/kernel/btf/vmlinux";
        let known = std::fs::metadata(path).is_ok_and(|m| m.len() <= MOST_BYTES);
        let btf = if known { std::fs::read(path).unwrap_or_default() } else { Vec::new() };
        Self::from_btf(&btf).unwrap_or_default()
    }

    /// The reason with a number.
    #[must_use]
    pub fn name(&self, number: u32) -> DropReason {
        self.0.get(&number).cloned().unwrap_or_else(|| DropReason(number.to_string().into()))
    }

    /// True if no name is known.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Finds the enumeration in the type section (Documentation/bpf/btf.rst); `None` if there is none, or this is no BTF.
    fn from_btf(btf: &[u8]) -> Option<Self> {
        let word = |at: usize| btf.get(at..at + 4)?.try_into().ok().map(u32::from_ne_bytes);
        let size = |at: usize| word(at).and_then(|n| usize::try_from(n).ok());
        if btf.get(..2)? != 0xeb9f_u16.to_ne_bytes() {
            return None;
        }
        let header = size(4)?;
        let (types, types_len) = (header.checked_add(size(8)?)?, size(12)?);
        let (strings, strings_len) = (header.checked_add(size(16)?)?, size(20)?);
        let strings = btf.get(strings..strings.checked_add(strings_len)?)?;
        let text = |offset: usize| {
            let rest = strings.get(offset..)?;
            std::str::from_utf8(&rest[..rest.iter().position(|b| *b == 0)?]).ok()
        };
        let (mut at, end) = (types, types.checked_add(types_len)?);
        while at < end {
            let info = word(at + 4)?;
            let (kind, members) = (info >> 24 & 0x1f, usize::try_from(info & 0xffff).ok()?);
            let body = at + 12;
            if kind == 6 && text(size(at)?) == Some(ENUM) {
                let mut names = FxHashMap::default();
                for member in 0..members {
                    let name = text(size(body + member * 8)?)?;
                    let name = name.strip_prefix(PREFIX).unwrap_or(name);
                    names.insert(word(body + member * 8 + 4)?, DropReason(name.into()));
                }
                return Some(Self(names));
            }
            at = body + body_len(kind, members)?;
        }
        None
    }
}

/// Length of what follows a type's head.
fn body_len(kind: u32, members: usize) -> Option<usize> {
    Some(match kind {
        // Integer, variable, declaration tag.
        1 | 14 | 17 => 4,
        // Array.
        3 => 12,
        // Structure, union, data section, enumeration of 64 bits.
        4 | 5 | 15 | 19 => members * 12,
        // Enumeration, prototype.
        6 | 13 => members * 8,
        // Pointer, forward, typedef, volatile, const, restrict, function, float, type tag.
        2 | 7..=12 | 16 | 18 => 0,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn btf() -> Vec<u8> {
        let strings = b"\0int\0skb_drop_reason\0SKB_CONSUMED\0SKB_DROP_REASON_TCP_CSUM\0";
        let mut types = Vec::new();
        for n in [1u32, 1 << 24, 4, 32, 5, 6 << 24 | 2, 4, 21, 1, 34, 15] {
            types.extend(n.to_ne_bytes());
        }
        let mut out = 0xeb9f_u16.to_ne_bytes().to_vec();
        out.extend([1, 0]);
        for n in [24, 0, types.len(), types.len(), strings.len()] {
            out.extend(u32::try_from(n).expect("small").to_ne_bytes());
        }
        [out, types, strings.to_vec()].concat()
    }

    #[test]
    fn names_are_found_and_numbers_stand_in() {
        let reasons = DropReasons::from_btf(&btf()).expect("BTF");
        assert_eq!(reasons.name(15).to_string(), "TCP_CSUM");
        assert_eq!(reasons.name(1).to_string(), "SKB_CONSUMED");
        assert_eq!(reasons.name(16).to_string(), "16");
        assert_eq!(DropReasons::default().name(2).to_string(), "2");
    }

    #[test]
    fn this_kernels_names_are_known_if_it_has_them() {
        let Ok(btf) = std::fs::read("/sys/kernel/btf/vmlinux") else {
            println!("this kernel has no BTF");
            return;
        };
        let has_them = btf.windows(ENUM.len() + 1).any(|w| w == b"skb_drop_reason\0");
        let reasons = DropReasons::of_this_kernel();
        assert_eq!(!reasons.is_empty(), has_them);
        assert!(!has_them || reasons.0.values().any(|r| &*r.0 == "NO_SOCKET"), "{reasons:?}");
    }

    proptest! {
        #[test]
        fn damage_never_panics(at in any::<prop::sample::Index>(), value in any::<u8>(), cut in any::<prop::sample::Index>()) {
            let mut bytes = btf();
            let i = at.index(bytes.len());
            bytes[i] = value;
            let _ = DropReasons::from_btf(&bytes);
            let _ = DropReasons::from_btf(&bytes[..cut.index(bytes.len())]);
        }
    }
}
