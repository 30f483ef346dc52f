//! Certificates of every kind, signed by the CA of the mesh or by somebody else.

use anyhow::{Context, Result};
use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use time::{Duration, OffsetDateTime};
use x509_parser::pem::parse_x509_pem;

use crate::peer::Identity;

/// A CA whose key is at hand.
#[derive(Clone)]
pub(crate) struct Forge {
    pem: String,
    key_pem: String,
    trust_domain: String,
    datacenter: String,
}

/// What a certificate shall be. The default is what Consul issues.
pub(crate) struct Wish {
    pub(crate) uris: Vec<String>,
    /// From now; negative for the past.
    pub(crate) begins: Duration,
    pub(crate) ends: Duration,
    pub(crate) usages: Vec<ExtendedKeyUsagePurpose>,
    pub(crate) ca: bool,
    pub(crate) serial: Option<Vec<u8>>,
    pub(crate) empty_subject: bool,
    pub(crate) rsa: bool,
    pub(crate) key_usages: Vec<KeyUsagePurpose>,
    /// The subject key identifier; without it there is none.
    pub(crate) key_id: Option<Vec<u8>>,
}

impl Forge {
    /// A new self-signed root for a trust domain, as Consul would make it.
    pub(crate) fn new_root(trust_domain: &str) -> Result<Self> {
        Self::root_with(trust_domain, KeyPair::generate()?, Duration::days(365))
    }

    /// The same with a key of choice, ending after `life`.
    pub(crate) fn root_with(trust_domain: &str, key: KeyPair, life: Duration) -> Result<Self> {
        // Each root has a name of its own, so that nobody's leaf names another's root as its issuer.
        let mut params = ca_params(&format!("Tests Root CA {:08x}", rand::random::<u32>()))?;
        params.not_after = OffsetDateTime::now_utc() + life;
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{trust_domain}").try_into()?)];
        let certificate = params.self_signed(&key)?;
        Self::of(&certificate.pem(), &key.serialize_pem())
    }

    /// From a root certificate and its key.
    pub(crate) fn of(pem: &str, key_pem: &str) -> Result<Self> {
        let (_, parsed) = parse_x509_pem(pem.as_bytes()).context("the root is not PEM")?;
        let certificate = parsed.parse_x509().context("the root is no certificate")?;
        let uri = crate::peer::uris(&certificate).into_iter().next().unwrap_or_default();
        let trust_domain = uri.strip_prefix("spiffe://").unwrap_or_default().to_owned();
        Ok(Self { pem: pem.to_owned(), key_pem: key_pem.to_owned(), trust_domain, datacenter: "dc1".to_owned() })
    }

    /// The public point of a certificate's key.
    pub(crate) fn public_point(pem: &str) -> Result<Vec<u8>> {
        let (_, parsed) = parse_x509_pem(pem.as_bytes()).context("not PEM")?;
        let certificate = parsed.parse_x509().context("no certificate")?;
        Ok(certificate.public_key().subject_public_key.data.to_vec())
    }

    /// The subject key identifier of the CA.
    pub(crate) fn key_id(&self) -> Result<Vec<u8>> {
        let (_, parsed) = parse_x509_pem(self.pem.as_bytes()).context("not PEM")?;
        let certificate = parsed.parse_x509().context("no certificate")?;
        let id = certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            x509_parser::extensions::ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
            _ => None,
        });
        id.context("the CA has no key identifier")
    }

    pub(crate) fn pem(&self) -> &str {
        &self.pem
    }

    pub(crate) fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// The URI that Consul gives a service.
    pub(crate) fn uri(&self, service: &str) -> String {
        format!("spiffe://{}/ns/default/dc/{}/svc/{service}", self.trust_domain, self.datacenter)
    }

    /// The same in another datacenter.
    pub(crate) fn uri_in(&self, datacenter: &str, service: &str) -> String {
        format!("spiffe://{}/ns/default/dc/{datacenter}/svc/{service}", self.trust_domain)
    }

    pub(crate) fn trust_domain(&self) -> &str {
        &self.trust_domain
    }

    /// What Consul would issue for a service.
    pub(crate) fn wish(&self, service: &str) -> Wish {
        Wish::for_uri(self.uri(service))
    }

    /// Signs what was wished for, under the root itself.
    pub(crate) fn sign(&self, wish: &Wish) -> Result<Identity> {
        let issuer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key_pem)?)?;
        let (chain, key) = sign(wish, &issuer)?;
        Identity::from_pem(&chain, &key)
    }

    /// A good leaf.
    pub(crate) fn good(&self, service: &str) -> Result<Identity> {
        self.sign(&self.wish(service))
    }

    /// A subordinate CA: the forge that signs with it, and its certificate.
    pub(crate) fn subordinate(&self, empty_subject: bool) -> Result<(Self, String)> {
        let mut params = ca_params("Tests Subordinate CA")?;
        if empty_subject {
            params.distinguished_name = DistinguishedName::new();
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{}", self.trust_domain).try_into()?)];
        let issuer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key_pem)?)?;
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &issuer)?.pem();
        let forge = Self {
            pem: pem.clone(),
            key_pem: key.serialize_pem(),
            trust_domain: self.trust_domain.clone(),
            datacenter: self.datacenter.clone(),
        };
        Ok((forge, pem))
    }

    /// A new root, and its certificate signed by this one.
    pub(crate) fn cross_signed_successor(&self) -> Result<(Self, String)> {
        let key = KeyPair::generate()?;
        let mut params = ca_params(&format!("Tests Root CA {:08x}", rand::random::<u32>()))?;
        params.subject_alt_names = vec![SanType::URI(format!("spiffe://{}", self.trust_domain).try_into()?)];
        let own = params.self_signed(&key)?.pem();
        let issuer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key_pem)?)?;
        let cross = params.signed_by(&key, &issuer)?.pem();
        Ok((Self::of(&own, &key.serialize_pem())?, cross))
    }

    /// Signs a certificate for HTTPS, for this DNS name and for 127.0.0.1 where it serves.
    pub(crate) fn sign_https(&self, name: &str, server: bool) -> Result<(String, String)> {
        let mut params = CertificateParams::new(vec![name.to_owned()])?;
        params.extended_key_usages =
            vec![if server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth }];
        let issuer = Issuer::from_ca_cert_pem(&self.pem, KeyPair::from_pem(&self.key_pem)?)?;
        let key = KeyPair::generate()?;
        Ok((params.signed_by(&key, &issuer)?.pem(), key.serialize_pem()))
    }
}

impl Wish {
    /// What Consul would issue, for any URI.
    pub(crate) fn for_uri(uri: String) -> Self {
        Self {
            uris: vec![uri],
            begins: Duration::minutes(-1),
            ends: Duration::hours(72),
            usages: vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth],
            ca: false,
            serial: None,
            empty_subject: false,
            rsa: false,
            key_id: None,
            key_usages: vec![
                KeyUsagePurpose::DigitalSignature,
                KeyUsagePurpose::KeyEncipherment,
                KeyUsagePurpose::DataEncipherment,
                KeyUsagePurpose::KeyAgreement,
            ],
        }
    }
}

fn ca_params(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    params.not_before = OffsetDateTime::now_utc() - Duration::minutes(1);
    params.not_after = OffsetDateTime::now_utc() + Duration::days(365);
    Ok(params)
}

fn sign(wish: &Wish, issuer: &Issuer<'_, KeyPair>) -> Result<(String, String)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name = DistinguishedName::new();
    if !wish.empty_subject {
        params.distinguished_name.push(DnType::CommonName, "tests");
    }
    let now = OffsetDateTime::now_utc();
    params.not_before = now + wish.begins;
    params.not_after = now + wish.ends;
    params.extended_key_usages.clone_from(&wish.usages);
    params.key_usages.clone_from(&wish.key_usages);
    params.is_ca = match (wish.ca, &wish.key_id) {
        (true, _) => IsCa::Ca(BasicConstraints::Unconstrained),
        (false, None) => IsCa::ExplicitNoCa,
        // rcgen would write an identifier of its own beside ours.
        (false, Some(_)) => IsCa::NoCa,
    };
    if let Some(id) = &wish.key_id {
        let mut content = vec![0x04];
        content.extend(length(id.len())?);
        content.extend(id);
        params.custom_extensions.push(CustomExtension::from_oid_content(&[2, 5, 29, 14], content));
    }
    params.use_authority_key_identifier_extension = true;
    params.serial_number = wish.serial.clone().map(SerialNumber::from);
    if wish.empty_subject {
        // rcgen marks the extension critical only where it writes it itself and the subject is empty, so it is
        // written by hand: a SEQUENCE of one uniformResourceIdentifier, context tag 6 (RFC 5280, section 4.2.1.6).
        params.custom_extensions.push(critical_uri(&wish.uris)?);
    } else {
        for uri in &wish.uris {
            params.subject_alt_names.push(SanType::URI(uri.clone().try_into()?));
        }
    }
    let key = if wish.rsa {
        KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048)?
    } else {
        KeyPair::generate()?
    };
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn critical_uri(uris: &[String]) -> Result<CustomExtension> {
    let mut names = Vec::new();
    for uri in uris {
        names.push(0x86);
        names.extend(length(uri.len())?);
        names.extend(uri.as_bytes());
    }
    let mut content = vec![0x30];
    content.extend(length(names.len())?);
    content.extend(names);
    let mut extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], content);
    extension.set_criticality(true);
    Ok(extension)
}

fn length(length: usize) -> Result<Vec<u8>> {
    Ok(match u8::try_from(length)? {
        short @ 0..=127 => vec![short],
        long => vec![0x81, long],
    })
}
