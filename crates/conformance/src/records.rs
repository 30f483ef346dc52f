//! Records written by hand, with the keys of a peer's finished handshake: for what no TLS library would send.

use aws_lc_rs::{
    aead::{AES_128_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf,
};
use rustls::{Connection, ConnectionTrafficSecrets};

use crate::pair::{Peer, Version};

/// A record of a handshake message.
pub const HANDSHAKE: u8 = 22;
/// A record of application data.
pub const APPLICATION_DATA: u8 = 23;
/// A record of an alert.
pub const ALERT: u8 = 21;

/// A close_notify alert in plaintext.
pub const PLAIN_CLOSE_NOTIFY: &[u8] = &[ALERT, 3, 3, 0, 2, 1, 0];

/// A peer with a good certificate that after its handshake seals whatever it likes, and opens what we seal.
pub struct Forger {
    write: Keys,
    read: Keys,
    version: Version,
}

struct Keys {
    key: LessSafeKey,
    iv: [u8; 12],
    sequence: u64,
    /// TLS 1.3: the secret that the keys are from, and the next ones will be.
    secret: Vec<u8>,
}

impl Keys {
    fn new((sequence, secrets): (u64, ConnectionTrafficSecrets), secret: Vec<u8>) -> Self {
        let ConnectionTrafficSecrets::Aes128Gcm { key, iv } = secrets else { panic!("the suite is AES-128-GCM") };
        let key = LessSafeKey::new(UnboundKey::new(&AES_128_GCM, key.as_ref()).expect("a key of the right size"));
        Self { key, iv: iv.as_ref().try_into().expect("an IV of twelve bytes"), sequence, secret }
    }

    /// The nonce of the next record, and its sequence number.
    fn next(&mut self) -> ([u8; 12], [u8; 8]) {
        let sequence = self.sequence.to_be_bytes();
        self.sequence += 1;
        let mut nonce = self.iv;
        for (byte, number) in nonce[4..].iter_mut().zip(sequence) {
            *byte ^= number;
        }
        (nonce, sequence)
    }

    /// The keys behind a KeyUpdate (RFC 8446, section 7.2).
    fn update(&mut self) {
        self.secret = expand(&self.secret, "traffic upd", 32);
        let key = UnboundKey::new(&AES_128_GCM, &expand(&self.secret, "key", 16)).expect("a key of the right size");
        let iv = expand(&self.secret, "iv", 12);
        (self.key, self.sequence) = (LessSafeKey::new(key), 0);
        self.iv = iv.try_into().expect("an IV of twelve bytes");
    }
}

/// HKDF-Expand-Label without a context (RFC 8446, section 7.1), over SHA-256.
fn expand(secret: &[u8], label: &str, length: u16) -> Vec<u8> {
    struct Length(usize);
    impl hkdf::KeyType for Length {
        fn len(&self) -> usize {
            self.0
        }
    }
    let label = [b"tls13 ", label.as_bytes()].concat();
    let size = [u8::try_from(label.len()).expect("a short label")];
    let info: [&[u8]; 4] = [&length.to_be_bytes(), &size, &label, &[0]];
    let secret = hkdf::Prk::new_less_safe(hkdf::HKDF_SHA256, secret);
    let mut out = vec![0; usize::from(length)];
    let expanded = secret.expand(&info, Length(out.len())).and_then(|key| key.fill(&mut out));
    expanded.expect("a key that is short enough");
    out
}

impl Forger {
    /// Takes over from `peer`, which must have finished its handshake with AES-128-GCM and have nothing to send.
    ///
    /// # Panics
    /// When it has not.
    #[must_use]
    pub fn take_over(peer: Peer, version: Version) -> Self {
        let [client, server] = peer.witness.seen().secrets;
        let is_client = matches!(peer.connection, Connection::Client(_));
        let (own, other) = if is_client { (client, server) } else { (server, client) };
        let keys = peer.connection.dangerous_extract_secrets().expect("a finished handshake");
        Self { write: Keys::new(keys.tx, own), read: Keys::new(keys.rx, other), version }
    }

    /// A KeyUpdate, behind which everything goes under the next keys.
    #[must_use]
    pub fn update_keys(&mut self, request: u8) -> Vec<u8> {
        let record = self.seal(HANDSHAKE, &message(24, &[request]));
        self.write.update();
        record
    }

    /// One record of this type and content.
    ///
    /// # Panics
    /// When `content` is more than a record holds.
    #[must_use]
    pub fn seal(&mut self, kind: u8, content: &[u8]) -> Vec<u8> {
        let (nonce, sequence) = self.write.next();
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
        self.write.key.seal_in_place_append_tag(nonce, Aad::from(aad), &mut body).expect("a record can be sealed");
        let length = u16::try_from(explicit.len() + body.len()).expect("a record's length").to_be_bytes();
        [&[outer, 3, 3], &length[..], &explicit, &body].concat()
    }

    /// Opens whole records of ours: type and content of each. Follows our KeyUpdates.
    ///
    /// # Errors
    /// Where the first one lies that does not open.
    pub fn open(&mut self, wire: &[u8]) -> Result<Vec<(u8, Vec<u8>)>, String> {
        let mut opened = Vec::new();
        for record in split(wire) {
            let at = format!("record {} of ours does not open", opened.len());
            let (Some(header), (nonce, sequence)) = (record.get(..5), self.read.next()) else { return Err(at) };
            let (nonce, aad, mut body) = match self.version {
                Version::Tls13 => (nonce, header.to_vec(), record[5..].to_vec()),
                Version::Tls12 => {
                    let (Some(explicit), Some(sealed)) = (record.get(5..13), record.get(13..)) else { return Err(at) };
                    let length = u16::try_from(sealed.len().saturating_sub(16)).map_err(|_| at.clone())?.to_be_bytes();
                    let aad = [&sequence[..], &header[..3], &length[..]].concat();
                    ([&self.read.iv[..4], explicit].concat().try_into().map_err(|_| at.clone())?, aad, sealed.to_vec())
                }
            };
            let nonce = Nonce::assume_unique_for_key(nonce);
            let plain = self.read.key.open_in_place(nonce, Aad::from(aad), &mut body).map_err(|_| at)?;
            let (kind, content) = match self.version {
                Version::Tls13 => {
                    // Zeros behind the type are padding (RFC 8446, section 5.4).
                    let end = plain.iter().rposition(|byte| *byte != 0).ok_or("a record without a type")?;
                    (plain[end], plain[..end].to_vec())
                }
                Version::Tls12 => (header[0], plain.to_vec()),
            };
            if kind == HANDSHAKE && content.first() == Some(&24) {
                self.read.update();
            }
            opened.push((kind, content));
        }
        Ok(opened)
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
