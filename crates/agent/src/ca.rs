//! The certificate authority: roots, rotation with cross-signing, leaf certificates.

use std::sync::Arc;
use std::time::Duration;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, DnValue, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyIdMethod, KeyUsagePurpose, PublicKeyData as _, SanType, SerialNumber,
};
use sha1::{Digest as _, Sha1};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::dialect::Dialect;
use crate::keys::{CaKey, KeyError, KeyMaker, Signer, pem};

/// What Go's URL encoder leaves as it is in a path segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'-')
    .remove(b'_')
    .remove(b'.')
    .remove(b'~')
    .remove(b'$')
    .remove(b'&')
    .remove(b'+')
    .remove(b',')
    .remove(b':')
    .remove(b';')
    .remove(b'=')
    .remove(b'@');

/// Ten years, as Consul has it. No leaf may live longer.
pub(crate) const ROOT_TTL: Duration = Duration::from_secs(87600 * 3600);
/// A cross certificate lives for seven days and is dated one minute back.
const CROSS_TTL: Duration = Duration::from_secs(7 * 24 * 3600);
const BACKDATE: Duration = Duration::from_secs(60);

/// One root, active or not.
#[derive(Clone)]
pub(crate) struct Root {
    /// SHA-1 of the certificate, lower-case hex with colons.
    pub(crate) id: String,
    pub(crate) serial: u64,
    pub(crate) signing_key_id: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) pem: String,
    /// The same name and key, signed by the root before.
    pub(crate) cross_pem: Option<String>,
    pub(crate) active: bool,
    pub(crate) create_index: u64,
    pub(crate) modify_index: u64,
    key: Signer,
    params: CertificateParams,
}

/// A signed leaf certificate with its chain.
pub(crate) struct SignedLeaf {
    pub(crate) serial: String,
    pub(crate) chain_pem: String,
    pub(crate) uri: String,
    pub(crate) not_before: OffsetDateTime,
    pub(crate) not_after: OffsetDateTime,
    pub(crate) root_id: String,
}

/// Why no certificate was made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CaError {
    #[error("{0}")]
    Key(#[from] KeyError),
    #[error("error signing certificate: {0}")]
    Sign(#[from] rcgen::Error),
    #[error("CA has not finished initializing")]
    NoRoot,
}

/// When the validity of a new certificate lies.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Validity {
    /// From one minute ago.
    Fresh(Duration),
    /// Ended an hour ago.
    Over,
}

pub(crate) struct Ca {
    pub(crate) uuid: String,
    /// Sorted by ID text, as Consul lists them.
    pub(crate) roots: Vec<Root>,
    /// New leaf chains carry the cross certificate. An unrelated write of the configuration ends that.
    pub(crate) attach_cross: bool,
    serial: u64,
}

impl Ca {
    pub(crate) fn new(uuid: String) -> Self {
        Self { uuid, roots: Vec::new(), attach_cross: true, serial: 6 }
    }

    pub(crate) fn trust_domain(&self) -> String {
        format!("{}.consul", self.uuid)
    }

    pub(crate) fn active(&self) -> Option<&Root> {
        self.roots.iter().find(|r| r.active)
    }

    /// `spiffe://<td>/ns/default/dc/<dc>/svc/<service>`
    pub(crate) fn service_uri(&self, datacenter: &str, service: &str) -> String {
        format!(
            "spiffe://{}/ns/default/dc/{}/svc/{}",
            self.trust_domain(),
            utf8_percent_encode(datacenter, SEGMENT),
            utf8_percent_encode(service, SEGMENT),
        )
    }

    /// Makes a new root and makes it the active one. With `cross_sign` the root before it, if there is one,
    /// signs its name and key as well.
    pub(crate) fn rotate(&mut self, keys: &dyn KeyMaker, index: u64, cross_sign: bool) -> Result<(), CaError> {
        let mut root = self.make_root(keys, now(), ROOT_TTL, index)?;
        if let Some(old) = self.active().filter(|_| cross_sign) {
            let mut params = root.params.clone();
            params.not_before = now() - BACKDATE;
            params.not_after = params.not_before + CROSS_TTL;
            params.serial_number = Some(serial_number(self.serial + 1));
            let issuer = Issuer::from_params(&old.params, &old.key);
            let cross = params.signed_by(&root.key, &issuer)?;
            root.cross_pem = Some(pem("CERTIFICATE", cross.der()));
            self.serial += 1;
        }
        for old in &mut self.roots {
            if old.active {
                old.active = false;
                old.modify_index = index;
            }
        }
        self.attach_cross = true;
        self.roots.push(root);
        self.roots.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(())
    }

    /// Drops the inactive roots; says whether there were any.
    pub(crate) fn prune(&mut self) -> bool {
        let before = self.roots.len();
        self.roots.retain(|r| r.active);
        self.roots.len() != before
    }

    /// A root that is over, to stand beside the good ones.
    pub(crate) fn expired_root(&mut self, keys: &dyn KeyMaker, index: u64) -> Result<Root, CaError> {
        let born = now() - Duration::from_secs(48 * 3600);
        let mut root = self.make_root(keys, born, Duration::from_secs(24 * 3600), index)?;
        root.active = false;
        Ok(root)
    }

    pub(crate) fn sign_leaf(
        &mut self,
        key: &Arc<dyn CaKey>,
        dialect: Dialect,
        datacenter: &str,
        service: &str,
        validity: Validity,
    ) -> Result<SignedLeaf, CaError> {
        let uri = self.service_uri(datacenter, service);
        let uuid8 = self.uuid.get(..8).unwrap_or(&self.uuid).to_owned();
        let serial = self.serial + 1;
        let attach_cross = self.attach_cross;
        let root = self.active().ok_or(CaError::NoRoot)?;
        let (not_before, not_after) = match validity {
            Validity::Fresh(ttl) => {
                let ttl = ttl.min(ROOT_TTL);
                let not_before = now() - BACKDATE;
                if ttl < Duration::from_secs(3600) { (not_before, now() + ttl) } else { (not_before, not_before + ttl) }
            }
            Validity::Over => {
                let end = now() - Duration::from_secs(3600);
                (end - Duration::from_secs(72 * 3600), end)
            }
        };
        let signer = Signer(Arc::clone(key));
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.not_after = not_after;
        params.serial_number = Some(serial_number(serial));
        params.subject_alt_names = vec![SanType::URI(uri.clone().try_into()?)];
        params.distinguished_name = DistinguishedName::new();
        if !dialect.is_today() {
            let name = format!("{service}.svc.default.{uuid8}.consul");
            let value = printable(&name).unwrap_or(DnValue::Utf8String(name));
            params.distinguished_name.push(DnType::CommonName, value);
        }
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
            KeyUsagePurpose::DataEncipherment,
            KeyUsagePurpose::KeyAgreement,
        ];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id(&signer));
        let issuer = Issuer::from_params(&root.params, &root.key);
        let leaf = params.signed_by(&signer, &issuer)?;
        let mut chain_pem = pem("CERTIFICATE", leaf.der());
        if let Some(cross) = root.cross_pem.as_deref().filter(|_| attach_cross) {
            chain_pem.push_str(cross);
        }
        let signed = SignedLeaf {
            serial: colon_hex(&serial_bytes(serial)),
            chain_pem,
            uri,
            not_before,
            not_after,
            root_id: root.id.clone(),
        };
        self.serial = serial;
        Ok(signed)
    }

    fn make_root(
        &mut self,
        keys: &dyn KeyMaker,
        not_before: OffsetDateTime,
        ttl: Duration,
        index: u64,
    ) -> Result<Root, CaError> {
        let key = Signer(keys.p256()?);
        let serial = self.serial + 1;
        let uuid8 = self.uuid.get(..8).unwrap_or(&self.uuid).to_owned();
        let key_id = key_id(&key);
        let mut params = CertificateParams::default();
        params.not_before = not_before;
        params.not_after = not_before + ttl;
        params.serial_number = Some(serial_number(serial));
        params.distinguished_name = DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, printable(&format!("pri-{}.consul.ca.{uuid8}.consul", random_label()))?);
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{}", self.trust_domain()).try_into()?)];
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages =
            vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.use_authority_key_identifier_extension = true;
        params.key_identifier_method = KeyIdMethod::PreSpecified(key_id.clone());
        let cert = params.self_signed(&key)?;
        self.serial = serial;
        Ok(Root {
            id: colon_hex(&Sha1::digest(cert.der())),
            serial,
            signing_key_id: colon_hex(&key_id),
            not_before: params.not_before,
            not_after: params.not_after,
            pem: pem("CERTIFICATE", cert.der()),
            cross_pem: None,
            active: true,
            create_index: index,
            modify_index: index,
            key,
            params,
        })
    }
}

/// Now, in whole seconds, as certificates have it.
pub(crate) fn now() -> OffsetDateTime {
    let now = OffsetDateTime::now_utc();
    now.replace_nanosecond(0).unwrap_or(now)
}

/// `2026-11-23T15:21:51Z`
pub(crate) fn rfc3339(at: OffsetDateTime) -> String {
    at.format(&Rfc3339).unwrap_or_default()
}

/// SHA-1 of the key's SubjectPublicKeyInfo: RFC 5280 §4.2.1.2 in spirit. Consul takes SHA-256 here, which this
/// crate has no code for; nobody may rely on how an identifier was made.
fn key_id(key: &Signer) -> Vec<u8> {
    Sha1::digest(key.subject_public_key_info()).to_vec()
}

fn serial_number(serial: u64) -> SerialNumber {
    SerialNumber::from_slice(&serial_bytes(serial))
}

/// Big-endian, without leading zero bytes.
fn serial_bytes(serial: u64) -> Vec<u8> {
    let bytes = serial.to_be_bytes();
    let zeros = bytes.iter().take_while(|b| **b == 0).count().min(7);
    bytes.get(zeros..).unwrap_or_default().to_vec()
}

fn colon_hex(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// Go writes what it can as a PrintableString, and names are compared by their bytes.
fn printable(name: &str) -> Result<DnValue, rcgen::Error> {
    Ok(DnValue::PrintableString(name.try_into()?))
}

fn random_label() -> String {
    const LETTERS: &[u8] = b"abcdefghijklmnopqrstuvwxyz0123456789";
    let mut rng = rand::rng();
    (0..8).map(|_| char::from(LETTERS[rng.random_range(0..LETTERS.len())])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn serials_have_no_leading_zero_byte() {
        assert_eq!(colon_hex(&serial_bytes(8)), "08");
        assert_eq!(colon_hex(&serial_bytes(0x80ff)), "80:ff");
    }

    #[test]
    fn names_are_escaped_as_consul_escapes_them() {
        let ca = Ca::new("1".to_owned());
        assert!(ca.service_uri("dc1", "a b").ends_with("/svc/a%20b"));
        assert!(ca.service_uri("dc1", "a+~:@$=,&;").ends_with("/svc/a+~:@$=,&;"));
        assert!(ca.service_uri("dc1", "web?x!").ends_with("/svc/web%3Fx%21"));
    }
}
