//! Certificates, made anew for each test.

use std::{sync::Arc, time::SystemTime};

use lictor_core::{
    ExpectedPeer, Judge, Leaf, MeshContext, PeerPolicy, Roots, SpiffeId, SpiffeService, TlsBackend, TlsPolicy,
    identity::Grammar,
};
use lictor_rustls::RustlsBackend;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, UnixTime};

pub(crate) const TRUST_DOMAIN: &str = "11111111-2222-3333-4444-555555555555.consul";

pub(crate) fn uri(domain: &str, service: &str) -> String {
    format!("spiffe://{domain}/ns/default/dc/dc1/svc/{service}")
}

/// A certificate chain with its key.
pub(crate) struct Own {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) key: KeyPair,
    pub(crate) pem: String,
}

impl Own {
    pub(crate) fn key_der(&self) -> PrivateKeyDer<'static> {
        PrivatePkcs8KeyDer::from(self.key.serialize_der()).into()
    }

    pub(crate) fn leaf(&self) -> Leaf {
        Leaf::from_pem(&self.pem, &self.key.serialize_pem(), Grammar::default()).unwrap()
    }

    pub(crate) fn context(&self, policy: &TlsPolicy) -> Arc<dyn MeshContext> {
        RustlsBackend::new().unwrap().mesh_context(&self.leaf(), policy).unwrap()
    }
}

pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) der: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    pub(crate) fn new() -> Self {
        Self::named("Test CA")
    }

    /// A CA of another mesh.
    pub(crate) fn foreign() -> Self {
        Self::named("Foreign CA")
    }

    fn named(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key).unwrap();
        Self { der: certificate.der().clone(), pem: certificate.pem(), issuer: Issuer::new(params, key) }
    }

    /// A good leaf, changed by `change`.
    pub(crate) fn issue(&self, service: &str, change: impl FnOnce(&mut CertificateParams)) -> Own {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(uri(TRUST_DOMAIN, service).try_into().unwrap())];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        change(&mut params);
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        // The root goes along, so that there is a chain to send in its order.
        let pem = format!("{}{}", certificate.pem(), self.pem);
        Own { chain: vec![certificate.der().clone(), self.der.clone()], key, pem }
    }

    pub(crate) fn leaf(&self, service: &str) -> Own {
        self.issue(service, |_| {})
    }

    fn roots(&self) -> Arc<Roots> {
        Arc::new(Roots::from_pem(1, TRUST_DOMAIN, [self.pem.as_str()]).unwrap())
    }

    /// Judges any client of `web`.
    pub(crate) fn judge_clients(&self) -> Judge {
        self.judge(ExpectedPeer::ClientOf(service("web")))
    }

    /// Judges a server that must be `name`.
    pub(crate) fn judge_server(&self, name: &str) -> Judge {
        self.judge(ExpectedPeer::Server(service(name)))
    }

    fn judge(&self, expected: ExpectedPeer) -> Judge {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
        Judge {
            expected,
            roots: self.roots(),
            policy: Arc::new(PeerPolicy::default()),
            now: UnixTime::since_unix_epoch(now),
        }
    }
}

fn service(name: &str) -> Arc<SpiffeService> {
    match SpiffeId::parse(uri(TRUST_DOMAIN, name).as_bytes(), Grammar::default()).unwrap() {
        SpiffeId::Service(service) => Arc::new(service),
        other => panic!("{other:?} is no service"),
    }
}
