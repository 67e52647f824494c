//! Netlink attributes (`struct nlattr`: u16 length, u16 type, payload, padded to four bytes).

/// `NLA_F_NESTED` of include/uapi/linux/netlink.h.
pub const NESTED: u16 = 0x8000;
/// `NLA_F_NET_BYTEORDER`.
pub const NET_BYTEORDER: u16 = 0x4000;
const TYPE_MASK: u16 = !(NESTED | NET_BYTEORDER);

/// Rounds up to the four-byte grid of netlink.
pub const fn align(length: usize) -> usize {
    (length + 3) & !3
}

/// Pads `bytes` so that what starts at `start` ends on the grid.
pub fn pad(bytes: &mut Vec<u8>, start: usize) {
    let length = bytes.len() - start;
    bytes.resize(start + align(length), 0);
}

/// Writes one attribute.
pub fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = bytes.len();
    bytes.extend_from_slice(&((4 + value.len()) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value);
    pad(bytes, start);
}

pub fn put_u8(bytes: &mut Vec<u8>, kind: u16, value: u8) {
    put(bytes, kind, &[value]);
}

/// Host byte order.
pub fn put_u16(bytes: &mut Vec<u8>, kind: u16, value: u16) {
    put(bytes, kind, &value.to_ne_bytes());
}

/// Network byte order.
pub fn put_be16(bytes: &mut Vec<u8>, kind: u16, value: u16) {
    put(bytes, kind, &value.to_be_bytes());
}

/// Host byte order.
pub fn put_u32(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    put(bytes, kind, &value.to_ne_bytes());
}

/// Network byte order.
pub fn put_be32(bytes: &mut Vec<u8>, kind: u16, value: u32) {
    put(bytes, kind, &value.to_be_bytes());
}

/// Network byte order.
pub fn put_be64(bytes: &mut Vec<u8>, kind: u16, value: u64) {
    put(bytes, kind, &value.to_be_bytes());
}

/// A zero-terminated string.
pub fn put_str(bytes: &mut Vec<u8>, kind: u16, value: &str) {
    let start = bytes.len();
    bytes.extend_from_slice(&((4 + value.len() + 1) as u16).to_ne_bytes());
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.extend_from_slice(value.as_bytes());
    bytes.push(0);
    pad(bytes, start);
}

/// An attribute that holds attributes; `body` writes them, at most 65,531 bytes. The nested flag is set.
pub fn nest(bytes: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = bytes.len();
    bytes.extend_from_slice(&[0, 0]);
    bytes.extend_from_slice(&(kind | NESTED).to_ne_bytes());
    body(bytes);
    debug_assert!(bytes.len() - start <= usize::from(u16::MAX), "the length field has 16 bits");
    let length = (bytes.len() - start) as u16;
    bytes[start..start + 2].copy_from_slice(&length.to_ne_bytes());
    pad(bytes, start);
}

/// The attributes in `bytes`, as (type without flag bits, payload). Stops at the first malformed one.
pub fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let header = bytes.get(..4)?;
        let length = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & TYPE_MASK;
        let value = bytes.get(4..length)?;
        bytes = bytes.get(align(length)..).unwrap_or(&[]);
        Some((kind, value))
    })
}

/// A string attribute without its terminating zero; text that is not UTF-8 reads as empty.
pub fn text(value: &[u8]) -> &str {
    let end = value.iter().position(|byte| *byte == 0).unwrap_or(value.len());
    std::str::from_utf8(&value[..end]).unwrap_or("")
}

/// Host byte order.
pub fn u16(value: &[u8]) -> Option<u16> {
    Some(u16::from_ne_bytes(value.get(..2)?.try_into().ok()?))
}

/// Host byte order.
pub fn u32(value: &[u8]) -> Option<u32> {
    Some(u32::from_ne_bytes(value.get(..4)?.try_into().ok()?))
}

/// Host byte order.
pub fn u64(value: &[u8]) -> Option<u64> {
    Some(u64::from_ne_bytes(value.get(..8)?.try_into().ok()?))
}

/// Network byte order.
pub fn be16(value: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(value.get(..2)?.try_into().ok()?))
}

/// Network byte order.
pub fn be32(value: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(value.get(..4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let mut bytes = Vec::new();
        put_str(&mut bytes, 1, "rr");
        nest(&mut bytes, 2, |inner| put_be16(inner, 3, 80));
        let all: Vec<_> = attributes(&bytes).collect();
        assert_eq!(all.len(), 2);
        assert_eq!((all[0].0, text(all[0].1)), (1, "rr"));
        let inner: Vec<_> = attributes(all[1].1).collect();
        assert_eq!((inner[0].0, be16(inner[0].1)), (3, Some(80)));
    }

    #[test]
    fn truncated_attributes_end_the_walk() {
        assert_eq!(attributes(&[8, 0, 1, 0, 9]).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
    }
}
