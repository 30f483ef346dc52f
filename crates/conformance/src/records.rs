//! Records written by hand, with the keys of a peer's finished handshake: for what no TLS library would send.

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use rustls::{Connection, ConnectionTrafficSecrets};

use crate::pair::Version;

/// A record of a handshake message.
pub const HANDSHAKE: u8 = 22;
/// A record of application data.
pub const APPLICATION_DATA: u8 = 23;
/// A record of an alert.
pub const ALERT: u8 = 21;

/// A close_notify alert in plaintext.
pub const PLAIN_CLOSE_NOTIFY: &[u8] = &[ALERT, 3, 3, 0, 2, 1, 0];

/// Seals records as the peer would.
pub struct Sealer {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    version: Version,
}

impl Sealer {
    /// Takes over from `connection`, whose handshake must be done with AES-128-GCM.
    ///
    /// # Panics
    /// When it is not.
    #[must_use]
    pub fn take_over(connection: Connection, version: Version) -> Self {
        let (sequence, secrets) = connection.dangerous_extract_secrets().expect("a finished handshake").tx;
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("the suite is AES-128-GCM") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).expect("a key of the right size"));
        Self { key, iv: iv.as_ref().try_into().expect("an IV of twelve bytes"), sequence, version }
    }

    /// One record of this type and content.
    ///
    /// # Panics
    /// When `content` is more than a record holds.
    #[must_use]
    pub fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(sequence) {
            *byte ^= number;
        }
        let mut body = content.to_vec();
        let (outer, explicit, aad) = match self.version {
            // RFC 8446, section 5.2: the type goes inside, the header is what is authenticated.
            Version::Tls13 => {
                body.push(kind);
                let length = u16::try_from(body.len() + 16).expect("a record's length").to_be_bytes();
                (APPLICATION_DATA, Vec::new(), [&[APPLICATION_DATA, 3, 3], &length[..]].concat())
            }
            // RFC 5288, section 3: half of the nonce goes with the record.
            Version::Tls12 => {
                let length = u16::try_from(body.len()).expect("a record's length").to_be_bytes();
                (kind, nonce[4..].to_vec(), [&sequence[..], &[kind, 3, 3], &length[..]].concat())
            }
        };
        let nonce = Nonce::assume_unique_for_key(nonce);
        self.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut body).expect("a record can be sealed");
        let length = u16::try_from(explicit.len() + body.len()).expect("a record's length").to_be_bytes();
        [&[outer, 3, 3], &length[..], &explicit, &body].concat()
    }
}

/// A handshake message of this type.
///
/// # Panics
/// When `body` is 16 MiB or more.
#[must_use]
pub fn message(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a message's length").to_be_bytes();
    [&[kind], &length[1..], body].concat()
}

/// A plaintext record.
///
/// # Panics
/// When `content` is 64 KiB or more.
#[must_use]
pub fn plain(kind: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a record's length").to_be_bytes();
    [&[kind, 3, 3], &length[..], content].concat()
}

/// Cuts a stream into whole records; what is left of the last one comes last.
#[must_use]
pub fn split(mut stream: &[u8]) -> Vec<&[u8]> {
    let mut records = Vec::new();
    while stream.len() >= 5 {
        let length = 5 + usize::from(u16::from_be_bytes([stream[3], stream[4]]));
        let (record, rest) = stream.split_at(length.min(stream.len()));
        records.push(record);
        stream = rest;
    }
    if !stream.is_empty() {
        records.push(stream);
    }
    records
}
