//! No certificates make the verifier panic, and nothing passes that no root of the mesh has signed.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use lictor_core::{ExpectedPeer, Judge, PeerPolicy, Roots, SpiffeService, TlsBackend, TrustDomain, identity::Grammar, verify_peer};
use lictor_rustls::RustlsBackend;
use rustls_pki_types::{CertificateDer, UnixTime};

static BACKEND: LazyLock<RustlsBackend> = LazyLock::new(|| RustlsBackend::new().expect("the backend starts"));

/// A root whose key is thrown away, so whatever passes is a fault of the verifier.
static ROOTS: LazyLock<Arc<Roots>> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key is made");
    let mut parameters = rcgen::CertificateParams::default();
    parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root = parameters.self_signed(&key).expect("a root is made");
    Arc::new(Roots::from_pem(1, "td.consul", [root.pem().as_str()]).expect("a list of roots"))
});

fuzz_target!(|certificates: Vec<Vec<u8>>| {
    let chain: Vec<CertificateDer<'_>> = certificates.iter().map(|der| CertificateDer::from(der.as_slice())).collect();
    let domain = TrustDomain::parse("td.consul").expect("a trust domain");
    let own = SpiffeService::expect(domain, "default", "default", "dc1", "web", Grammar::Spiffe).expect("an identity");
    let own = Arc::new(own);
    for expected in [ExpectedPeer::ClientOf(own.clone()), ExpectedPeer::Server(own.clone())] {
        let judge = Judge { expected, roots: ROOTS.clone(), policy: Arc::new(PeerPolicy::default()), now: UnixTime::now() };
        assert!(verify_peer(&judge, &chain, BACKEND.signature_algorithms()).is_err());
    }
});
