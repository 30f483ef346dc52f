//! A writer of DER (X.690), as small as certificates need, that also writes what no library would.

use time::OffsetDateTime;

/// `content` behind a tag and its length.
#[must_use]
pub fn tlv(tag: u8, content: &[u8]) -> Vec<u8> {
    let mut out = vec![tag];
    match content.len() {
        short @ 0..=0x7f => out.push(u8::try_from(short).unwrap_or_default()),
        long => {
            let bytes = long.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            out.push(0x80 | u8::try_from(bytes.len()).unwrap_or_default());
            out.extend_from_slice(bytes);
        }
    }
    out.extend_from_slice(content);
    out
}

/// A SEQUENCE of `parts`.
#[must_use]
pub fn seq(parts: &[&[u8]]) -> Vec<u8> {
    tlv(0x30, &parts.concat())
}

/// An INTEGER with exactly these content bytes.
#[must_use]
pub fn integer(content: &[u8]) -> Vec<u8> {
    tlv(0x02, content)
}

/// A non-negative INTEGER from a big-endian magnitude.
#[must_use]
pub fn unsigned(magnitude: &[u8]) -> Vec<u8> {
    let magnitude = &magnitude[magnitude.iter().take_while(|byte| **byte == 0).count()..];
    match magnitude.first() {
        None => integer(&[0]),
        Some(first) if first & 0x80 != 0 => integer(&[&[0], magnitude].concat()),
        Some(_) => integer(magnitude),
    }
}

/// An OBJECT IDENTIFIER from its dotted form.
///
/// # Panics
/// When `dotted` is none.
#[must_use]
pub fn oid(dotted: &str) -> Vec<u8> {
    let arcs: Vec<u64> = dotted.split('.').map(|arc| arc.parse().expect("an arc is a number")).collect();
    let mut content = Vec::new();
    for arc in [arcs[0] * 40 + arcs[1]].iter().chain(&arcs[2..]) {
        let groups = (64 - arc.leading_zeros()).div_ceil(7).max(1);
        for group in (0..groups).rev() {
            let bits = u8::try_from((arc >> (7 * group)) & 0x7f).unwrap_or_default();
            content.push(if group == 0 { bits } else { bits | 0x80 });
        }
    }
    tlv(0x06, &content)
}

/// A BIT STRING without unused bits.
#[must_use]
pub fn bits(content: &[u8]) -> Vec<u8> {
    tlv(0x03, &[&[0], content].concat())
}

/// An OCTET STRING.
#[must_use]
pub fn octets(content: &[u8]) -> Vec<u8> {
    tlv(0x04, content)
}

/// TRUE; DER leaves out a FALSE that is the default.
pub const TRUE: &[u8] = &[0x01, 0x01, 0xff];

/// NULL.
pub const NULL: &[u8] = &[0x05, 0x00];

/// A Time: UTCTime up to 2049, GeneralizedTime from 2050 (RFC 5280, section 4.1.2.5).
///
/// # Panics
/// When the moment lies outside the calendar.
#[must_use]
pub fn time(unix: i64) -> Vec<u8> {
    let at = OffsetDateTime::from_unix_timestamp(unix).expect("a moment of the calendar");
    let rest =
        format!("{:02}{:02}{:02}{:02}{:02}Z", u8::from(at.month()), at.day(), at.hour(), at.minute(), at.second());
    if (1950..2050).contains(&at.year()) {
        tlv(0x17, format!("{:02}{rest}", at.year() % 100).as_bytes())
    } else {
        tlv(0x18, format!("{:04}{rest}", at.year()).as_bytes())
    }
}

/// A Name of one common name, or the empty Name.
#[must_use]
pub fn name(common: &str) -> Vec<u8> {
    if common.is_empty() {
        return seq(&[]);
    }
    seq(&[&tlv(0x31, &seq(&[&oid("2.5.4.3"), &tlv(0x0c, common.as_bytes())]))])
}

/// The content of the first element of `input` and what stands behind it.
///
/// # Panics
/// When `input` is not DER; it reads what this crate or its key library wrote.
#[must_use]
pub fn read(input: &[u8]) -> (&[u8], &[u8]) {
    let (length, header) = match input[1] {
        short @ 0..=0x7f => (usize::from(short), 2),
        long => {
            let count = usize::from(long & 0x7f);
            (input[2..2 + count].iter().fold(0, |sum, byte| sum << 8 | usize::from(*byte)), 2 + count)
        }
    };
    (&input[header..header + length], &input[header + length..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_and_object_identifiers_are_written_as_der_wants_them() {
        assert_eq!(oid("1.2.840.113549.1.1.11"), [6, 9, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 1, 1, 11]);
        assert_eq!(tlv(4, &[7; 200])[..3], [4, 0x81, 200]);
        assert_eq!(tlv(4, &[7; 300])[..4], [4, 0x82, 1, 44]);
        assert_eq!(unsigned(&[0, 0x80]), [2, 2, 0, 0x80]);
        assert_eq!(time(0), tlv(0x17, b"700101000000Z"));
        assert_eq!(time(253_402_300_799), tlv(0x18, b"99991231235959Z"));
        assert_eq!(read(&seq(&[NULL])), (NULL, &[][..]));
    }
}
