//! The plain messages of a handshake, read and written by hand: what a library says before any key is agreed.
//!
//! Suites, groups, schemes and versions are named as [`lictor_core::policy`] names them, which is as the IANA registry
//! does; numbers without a name of ours are written as `0x1a2b`.

use crate::records;

/// Types of handshake messages (RFC 8446, section 4; RFC 5246, section 7.4).
pub mod message {
    /// client_hello.
    pub const CLIENT_HELLO: u8 = 1;
    /// server_hello.
    pub const SERVER_HELLO: u8 = 2;
    /// certificate.
    pub const CERTIFICATE: u8 = 11;
    /// server_key_exchange.
    pub const SERVER_KEY_EXCHANGE: u8 = 12;
    /// certificate_request.
    pub const CERTIFICATE_REQUEST: u8 = 13;
    /// key_update.
    pub const KEY_UPDATE: u8 = 24;
}

/// Types of extensions in the IANA registry.
pub mod extension {
    /// server_name.
    pub const SERVER_NAME: u16 = 0;
    /// supported_groups.
    pub const GROUPS: u16 = 10;
    /// ec_point_formats.
    pub const POINT_FORMATS: u16 = 11;
    /// signature_algorithms.
    pub const SIGNATURES: u16 = 13;
    /// heartbeat.
    pub const HEARTBEAT: u16 = 15;
    /// application_layer_protocol_negotiation.
    pub const ALPN: u16 = 16;
    /// extended_master_secret.
    pub const EXTENDED_MASTER_SECRET: u16 = 23;
    /// compress_certificate.
    pub const COMPRESS_CERTIFICATE: u16 = 27;
    /// session_ticket.
    pub const SESSION_TICKET: u16 = 35;
    /// pre_shared_key.
    pub const PRE_SHARED_KEY: u16 = 41;
    /// early_data.
    pub const EARLY_DATA: u16 = 42;
    /// supported_versions.
    pub const VERSIONS: u16 = 43;
    /// certificate_authorities.
    pub const AUTHORITIES: u16 = 47;
    /// post_handshake_auth.
    pub const POST_HANDSHAKE_AUTH: u16 = 49;
    /// key_share.
    pub const KEY_SHARE: u16 = 51;
    /// next_protocol_negotiation, which was never registered.
    pub const NEXT_PROTOCOL: u16 = 13172;
    /// application_settings of BoringSSL, old and new.
    pub const APPLICATION_SETTINGS: [u16; 2] = [17513, 17613];
    /// encrypted_client_hello.
    pub const ENCRYPTED_HELLO: u16 = 0xfe0d;
    /// renegotiation_info.
    pub const RENEGOTIATION: u16 = 0xff01;
}

/// The number that stands for "I can renegotiate safely" among the suites (RFC 5746, section 3.3).
pub const RENEGOTIATION_SIGNAL: u16 = 0x00ff;

/// The numbers of what the policy names.
const NAMES: [(u16, &str); 24] = [
    (0x1301, "TLS_AES_128_GCM_SHA256"),
    (0x1302, "TLS_AES_256_GCM_SHA384"),
    (0x1303, "TLS_CHACHA20_POLY1305_SHA256"),
    (0xc02b, "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256"),
    (0xc02f, "TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"),
    (0xc02c, "TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384"),
    (0xc030, "TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384"),
    (0xcca9, "TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0xcca8, "TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256"),
    (0x11ec, "X25519MLKEM768"),
    (0x001d, "x25519"),
    (0x0017, "secp256r1"),
    (0x0018, "secp384r1"),
    (0x0403, "ecdsa_secp256r1_sha256"),
    (0x0503, "ecdsa_secp384r1_sha384"),
    (0x0603, "ecdsa_secp521r1_sha512"),
    (0x0804, "rsa_pss_rsae_sha256"),
    (0x0805, "rsa_pss_rsae_sha384"),
    (0x0806, "rsa_pss_rsae_sha512"),
    (0x0401, "rsa_pkcs1_sha256"),
    (0x0501, "rsa_pkcs1_sha384"),
    (0x0601, "rsa_pkcs1_sha512"),
    (0x0303, "TLSv1.2"),
    (0x0304, "TLSv1.3"),
];

/// The name of a number. Suites, groups, schemes and versions that the policy names share none.
#[must_use]
pub fn name(number: u16) -> String {
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| format!("{number:#06x}"), |(_, name)| (*name).to_owned())
}

/// The number of a name.
#[must_use]
pub fn number(name: &str) -> Option<u16> {
    NAMES.iter().find(|(_, known)| *known == name).map(|(number, _)| *number)
}

/// The names of numbers, in their order.
#[must_use]
pub fn names(numbers: &[u16]) -> Vec<String> {
    numbers.iter().map(|number| name(*number)).collect()
}

/// A ClientHello, as it was sent.
#[derive(Clone, Debug)]
pub struct ClientHello {
    /// legacy_version.
    pub version: u16,
    /// The random bytes.
    pub random: Vec<u8>,
    /// The (legacy) session identifier.
    pub session_id: Vec<u8>,
    /// The cipher suites, without the signal of RFC 5746.
    pub suites: Vec<u16>,
    /// The compression methods.
    pub compression: Vec<u8>,
    /// The extensions in their order.
    pub extensions: Vec<(u16, Vec<u8>)>,
}

impl ClientHello {
    /// Reads the first message of a client's stream, which may be cut into records.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn read(stream: &[u8]) -> Result<Self, String> {
        let messages = messages(stream)?;
        let Some((message::CLIENT_HELLO, body)) = messages.first().map(|(kind, body)| (*kind, &body[..])) else {
            return Err(format!("no ClientHello but {:?}", messages.first().map(|(kind, _)| kind)));
        };
        let mut body = Reader(body);
        let hello = Self {
            version: body.number()?,
            random: body.take(32)?.to_vec(),
            session_id: body.short()?.to_vec(),
            suites: numbers(body.long()?)?,
            compression: body.short()?.to_vec(),
            extensions: if body.0.is_empty() { Vec::new() } else { extensions(body.long()?)? },
        };
        let kinds: std::collections::BTreeSet<u16> = hello.extensions.iter().map(|(kind, _)| *kind).collect();
        if !body.0.is_empty() || kinds.len() != hello.extensions.len() {
            return Err("bytes behind the hello, or an extension twice".to_owned());
        }
        let suites = hello.suites.iter().copied().filter(|suite| *suite != RENEGOTIATION_SIGNAL).collect();
        Ok(Self { suites, ..hello })
    }

    /// The content of an extension.
    #[must_use]
    pub fn extension(&self, kind: u16) -> Option<&[u8]> {
        self.extensions.iter().find(|(known, _)| *known == kind).map(|(_, content)| &content[..])
    }

    /// The versions that are offered, the preferred one first.
    ///
    /// # Errors
    /// What is wrong with the extension.
    pub fn versions(&self) -> Result<Vec<u16>, String> {
        match self.extension(extension::VERSIONS) {
            Some(content) => numbers(Reader(content).short()?),
            None => Ok(vec![self.version]),
        }
    }

    /// The groups that are offered, the preferred one first.
    ///
    /// # Errors
    /// What is wrong with the extension.
    pub fn groups(&self) -> Result<Vec<u16>, String> {
        self.list(extension::GROUPS)
    }

    /// The signature schemes that are taken, the preferred one first.
    ///
    /// # Errors
    /// What is wrong with the extension.
    pub fn signatures(&self) -> Result<Vec<u16>, String> {
        self.list(extension::SIGNATURES)
    }

    /// The groups of which a share is sent along, with the share.
    ///
    /// # Errors
    /// What is wrong with the extension.
    pub fn key_shares(&self) -> Result<Vec<(u16, Vec<u8>)>, String> {
        let Some(content) = self.extension(extension::KEY_SHARE) else { return Ok(Vec::new()) };
        let mut shares = Reader(Reader(content).long()?);
        let mut found = Vec::new();
        while !shares.0.is_empty() {
            found.push((shares.number()?, shares.long()?.to_vec()));
        }
        Ok(found)
    }

    fn list(&self, kind: u16) -> Result<Vec<u16>, String> {
        self.extension(kind).map_or(Ok(Vec::new()), |content| numbers(Reader(content).long()?))
    }

    /// Writes it as the body of a message.
    #[must_use]
    pub fn body(&self) -> Vec<u8> {
        let suites: Vec<u8> = self.suites.iter().flat_map(|suite| suite.to_be_bytes()).collect();
        let extensions: Vec<u8> = self
            .extensions
            .iter()
            .flat_map(|(kind, content)| [&kind.to_be_bytes()[..], &long(content)].concat())
            .collect();
        [
            &self.version.to_be_bytes()[..],
            &self.random,
            &short(&self.session_id),
            &long(&suites),
            &short(&self.compression),
            &long(&extensions),
        ]
        .concat()
    }

    /// Writes it as one record.
    #[must_use]
    pub fn record(&self) -> Vec<u8> {
        records::plain(records::HANDSHAKE, &records::message(message::CLIENT_HELLO, &self.body()))
    }
}

/// What a server says in plain: in TLS 1.3 its hello alone, in TLS 1.2 all of its first flight.
#[derive(Clone, Debug, Default)]
pub struct ServerFlight {
    /// The version that was chosen.
    pub version: u16,
    /// The session identifier.
    pub session_id: Vec<u8>,
    /// The suite that was chosen.
    pub suite: u16,
    /// The group that was chosen.
    pub group: u16,
    /// Whether it is a HelloRetryRequest.
    pub retry: bool,
    /// The extensions of the hello.
    pub extensions: Vec<(u16, Vec<u8>)>,
    /// TLS 1.2: the schemes of the request for a certificate, and the length of its list of authorities.
    pub request: Option<(Vec<u16>, usize)>,
}

/// The random bytes of a HelloRetryRequest (RFC 8446, section 4.1.3).
const RETRY: [u8; 32] = [
    0xcf, 0x21, 0xad, 0x74, 0xe5, 0x9a, 0x61, 0x11, 0xbe, 0x1d, 0x8c, 0x02, 0x1e, 0x65, 0xb8, 0x91, 0xc2, 0xa2, 0x11,
    0x16, 0x7a, 0xbb, 0x8c, 0x5e, 0x07, 0x9e, 0x09, 0xe2, 0xc8, 0xa8, 0x33, 0x9c,
];

impl ServerFlight {
    /// Reads the plain messages at the front of a server's stream.
    ///
    /// # Errors
    /// The alert that came instead, or what is wrong.
    pub fn read(stream: &[u8]) -> Result<Self, String> {
        let mut flight = Self::default();
        for (kind, body) in messages(stream)? {
            let mut body = Reader(&body);
            match kind {
                message::SERVER_HELLO => {
                    flight.version = body.number()?;
                    flight.retry = body.take(32)? == RETRY;
                    flight.session_id = body.short()?.to_vec();
                    flight.suite = body.number()?;
                    let _compression = body.take(1)?;
                    flight.extensions = if body.0.is_empty() { Vec::new() } else { extensions(body.long()?)? };
                    for (kind, content) in &flight.extensions {
                        match *kind {
                            extension::VERSIONS => flight.version = Reader(content).number()?,
                            extension::KEY_SHARE => flight.group = Reader(content).number()?,
                            _ => {}
                        }
                    }
                }
                // curve_type named_curve, then the curve (RFC 8422, section 5.4).
                message::SERVER_KEY_EXCHANGE if body.take(1)? == [3] => flight.group = body.number()?,
                message::CERTIFICATE_REQUEST => {
                    let _types = body.short()?;
                    flight.request = Some((numbers(body.long()?)?, body.long()?.len()));
                }
                _ => {}
            }
        }
        Ok(flight)
    }
}

/// The handshake messages at the front of a stream, up to the first record that is of another kind.
fn messages(stream: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, String> {
    let mut plain = Vec::new();
    for record in records::split(stream) {
        match record {
            [records::HANDSHAKE, _, _, _, _, content @ ..] => plain.extend_from_slice(content),
            [records::ALERT, _, _, _, _, _, alert] if plain.is_empty() => return Err(format!("alert {alert}")),
            _ => break,
        }
    }
    let mut reader = Reader(&plain);
    let mut messages = Vec::new();
    while !reader.0.is_empty() {
        let kind = reader.take(1)?[0];
        let length = reader.take(3)?.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
        messages.push((kind, reader.take(length)?.to_vec()));
    }
    Ok(messages)
}

fn numbers(bytes: &[u8]) -> Result<Vec<u16>, String> {
    let (pairs, []) = bytes.as_chunks() else { return Err("half a number".to_owned()) };
    Ok(pairs.iter().map(|pair| u16::from_be_bytes(*pair)).collect())
}

fn extensions(bytes: &[u8]) -> Result<Vec<(u16, Vec<u8>)>, String> {
    let mut reader = Reader(bytes);
    let mut found = Vec::new();
    while !reader.0.is_empty() {
        found.push((reader.number()?, reader.long()?.to_vec()));
    }
    Ok(found)
}

/// `content` behind a length of one byte.
///
/// # Panics
/// When it is longer than that can say.
#[must_use]
pub fn short(content: &[u8]) -> Vec<u8> {
    [&[u8::try_from(content.len()).expect("a short vector")], content].concat()
}

/// `content` behind a length of two bytes.
///
/// # Panics
/// When it is longer than that can say.
#[must_use]
pub fn long(content: &[u8]) -> Vec<u8> {
    [&u16::try_from(content.len()).expect("a vector").to_be_bytes()[..], content].concat()
}

/// Numbers behind the length of their bytes.
#[must_use]
pub fn long_list(numbers: &[u16]) -> Vec<u8> {
    long(&numbers.iter().flat_map(|number| number.to_be_bytes()).collect::<Vec<_>>())
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(n).ok_or("a message is cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn number(&mut self) -> Result<u16, String> {
        self.take(2).map(|bytes| u16::from_be_bytes([bytes[0], bytes[1]]))
    }

    fn short(&mut self) -> Result<&'a [u8], String> {
        let length = self.take(1)?[0];
        self.take(usize::from(length))
    }

    fn long(&mut self) -> Result<&'a [u8], String> {
        let length = self.number()?;
        self.take(usize::from(length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hello_that_is_written_reads_as_the_same() {
        let hello = ClientHello {
            version: 0x0303,
            random: vec![7; 32],
            session_id: vec![9; 32],
            suites: vec![0x1301, 0xc02b],
            compression: vec![0],
            extensions: vec![
                (extension::VERSIONS, short(&[3, 4, 3, 3])),
                (extension::GROUPS, long_list(&[0x11ec, 0x001d])),
                (extension::KEY_SHARE, long(&[&[0, 0x1d][..], &long(&[1, 2, 3])].concat())),
            ],
        };
        let read = ClientHello::read(&hello.record()).expect("a good hello");
        assert_eq!(read.body(), hello.body());
        assert_eq!(names(&read.versions().expect("versions")), ["TLSv1.3", "TLSv1.2"]);
        assert_eq!(names(&read.groups().expect("groups")), ["X25519MLKEM768", "x25519"]);
        assert_eq!(read.key_shares().expect("shares"), [(0x001d, vec![1, 2, 3])]);
        assert!(read.signatures().expect("none").is_empty());
        for cut in 0..hello.record().len() {
            assert!(ClientHello::read(&hello.record()[..cut]).is_err(), "cut to {cut}");
        }
    }

    #[test]
    fn every_name_of_the_policy_has_a_number() {
        use lictor_core::policy::{GROUPS, HYBRID_GROUP, SIGNATURE_SCHEMES, SUITES};
        for name in SUITES.into_iter().chain(GROUPS).chain([HYBRID_GROUP]).chain(SIGNATURE_SCHEMES) {
            assert!(number(name).is_some(), "{name}");
        }
        assert_eq!(name(0x0a0a), "0x0a0a");
    }
}
