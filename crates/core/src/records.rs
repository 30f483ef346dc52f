//! The outside of TLS records: what can be told from the plain bytes before any library sees them.
//!
//! The three libraries answer differently to what is no TLS at all, to hellos of the last century and to a peer that
//! says goodbye in mid-handshake. Told apart here, it is the same whichever library runs.

/// The header of a record (RFC 8446, section 5.1).
pub const HEADER: usize = 5;

/// The most that a record may carry (RFC 5246, section 6.2.3, which is more than TLS 1.3 allows).
pub const MAX_RECORD: usize = (1 << 14) + 2048;

/// The most plaintext in one record that we seal (RFC 8446, section 5.1).
pub const MAX_PLAINTEXT: usize = 1 << 14;

/// What a record costs at most beyond its plaintext: header, nonce and tag are 29 bytes in TLS 1.2, 22 in 1.3.
pub const RECORD_OVERHEAD: usize = 32;

/// A fatal protocol_version alert in a record of TLS 1.0 (RFC 8446, sections 5.1 and 6.2).
pub const PROTOCOL_VERSION_ALERT: [u8; 7] = [21, 3, 1, 0, 2, 2, 70];

const HANDSHAKE: u8 = 22;

/// The length of the record that `bytes` begin with, if it is whole.
///
/// Bytes that begin no record count as one, so that a library refuses them at once instead of waiting for a length
/// that means nothing.
#[must_use]
pub fn first_record(bytes: &[u8]) -> Option<usize> {
    let header: &[u8; HEADER] = bytes.first_chunk()?;
    if !is_header(header) {
        return Some(bytes.len());
    }
    let whole = HEADER + length(header);
    (bytes.len() >= whole).then_some(whole)
}

/// The length of all whole records at the front of `bytes`, by the rule of [`first_record`].
#[must_use]
pub fn whole_records(bytes: &[u8]) -> usize {
    let mut whole = 0;
    while let Some(record) = first_record(&bytes[whole..]) {
        whole += record;
    }
    whole
}

/// Whether the first bytes of a connection are something else than TLS, such as plaintext HTTP, SSH, or SSL 2.
#[must_use]
pub fn cannot_be_tls(bytes: &[u8]) -> bool {
    match bytes {
        [] => false,
        [kind] => !is_content_type(*kind),
        [kind, major, ..] if bytes.len() < HEADER => !is_content_type(*kind) || *major != 3,
        _ => bytes.first_chunk().is_some_and(|header| !is_header(header)),
    }
}

/// Whether the first record holds a ClientHello of an older version. TLS 1.3 says 1.2 there, too (RFC 8446, 4.1.2).
#[must_use]
pub fn asks_for_less_than_tls12(bytes: &[u8]) -> bool {
    const CLIENT_HELLO: u8 = 1;
    matches!(bytes, [HANDSHAKE, 3, _, _, _, CLIENT_HELLO, _, _, _, 3, 0..=2, ..])
}

/// Whether a close_notify comes next in plain, which it can only in a handshake.
#[must_use]
pub fn is_bare_close(bytes: &[u8]) -> bool {
    const ALERT: u8 = 21;
    matches!(bytes, [ALERT, 3, _, 0, 2, _level, 0, ..])
}

/// Whether a handshake message comes next, as far as the outside of the record tells; in TLS 1.3 it tells nothing.
#[must_use]
pub fn is_handshake(bytes: &[u8]) -> bool {
    bytes.first() == Some(&HANDSHAKE)
}

fn is_header(header: &[u8; HEADER]) -> bool {
    is_content_type(header[0]) && header[1] == 3 && length(header) <= MAX_RECORD
}

/// From change_cipher_spec to heartbeat.
fn is_content_type(byte: u8) -> bool {
    (20..=24).contains(&byte)
}

fn length(header: &[u8; HEADER]) -> usize {
    usize::from(u16::from_be_bytes([header[3], header[4]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_records_end_where_the_first_part_of_one_begins() {
        let two_and_a_bit = [22, 3, 3, 0, 1, 9, 23, 3, 3, 0, 2, 8, 8, 23, 3, 3, 0];
        assert_eq!(first_record(&two_and_a_bit), Some(6));
        assert_eq!(whole_records(&two_and_a_bit), 13);
        assert_eq!(whole_records(&two_and_a_bit[..5]), 0);
        assert_eq!(whole_records(&[]), 0);
    }

    #[test]
    fn what_begins_no_record_is_handed_over_whole() {
        let garbage_behind = [23, 3, 3, 0, 1, 9, b'G', b'E', b'T', b' ', b'/', b' '];
        assert_eq!(whole_records(&garbage_behind), garbage_behind.len());
    }

    #[test]
    fn a_record_is_whole_or_it_is_none() {
        assert_eq!(first_record(&[]), None);
        assert_eq!(first_record(&[23, 3, 3, 0]), None);
        assert_eq!(first_record(&[23, 3, 3, 0, 2, 9]), None);
        assert_eq!(first_record(&[23, 3, 3, 0, 2, 9, 9, 23]), Some(7));
    }

    #[test]
    fn bytes_that_begin_no_record_are_handed_over_whole() {
        assert_eq!(first_record(b"GET / HTTP/1.1"), Some(14));
        assert_eq!(first_record(&[23, 3, 3, 0x48, 1, 0]), Some(6), "longer than any record");
        assert_eq!(first_record(&[23, 2, 3, 0, 1, 0, 0]), Some(7), "of another major version");
    }

    #[test]
    fn other_protocols_are_known_by_their_first_byte_already() {
        for greeting in [&b"GET / HTTP/1.1\r\n"[..], b"SSH-2.0-x", b"\x80\x2e\x01", b"PRI * HTTP/2.0", b"\0"] {
            for length in 1..=greeting.len() {
                assert!(cannot_be_tls(&greeting[..length]), "{greeting:?} cut to {length}");
            }
        }
        assert!(cannot_be_tls(&[22, 2]));
        assert!(cannot_be_tls(&[22, 3, 1, 0xff, 0xff]));
        for length in 0..=6 {
            assert!(!cannot_be_tls(&[22, 3, 1, 2, 0, 1][..length]));
        }
    }
}
