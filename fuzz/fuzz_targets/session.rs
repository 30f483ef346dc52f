//! No ciphertext makes a server session panic, and none opens anything before the handshake is done.
#![no_main]

use std::sync::{Arc, LazyLock};

use libfuzzer_sys::fuzz_target;
use lictor_core::{
    Buf, ExpectedPeer, HandshakeStep, Judge, Leaf, MeshContext, PeerPolicy, Roots, TlsBackend, TlsPolicy, identity::Grammar,
};
use lictor_rustls::RustlsBackend;
use rustls_pki_types::UnixTime;

struct Server {
    context: Arc<dyn MeshContext>,
    judge: Judge,
}

static SERVER: LazyLock<Server> = LazyLock::new(|| {
    let key = rcgen::KeyPair::generate().expect("a key is made");
    let mut root = rcgen::CertificateParams::default();
    root.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let root_pem = root.self_signed(&key).expect("a root is made").pem();
    let issuer = rcgen::Issuer::new(root, &key);
    let leaf_key = rcgen::KeyPair::generate().expect("a key is made");
    let mut leaf = rcgen::CertificateParams::default();
    let uri = "spiffe://td.consul/ns/default/dc/dc1/svc/web".try_into().expect("a URI");
    leaf.subject_alt_names = vec![rcgen::SanType::URI(uri)];
    let leaf_pem = leaf.signed_by(&leaf_key, &issuer).expect("a leaf is made").pem();
    let leaf = Leaf::from_pem(&leaf_pem, &leaf_key.serialize_pem(), Grammar::Spiffe).expect("a leaf");
    let backend = RustlsBackend::new().expect("the backend starts");
    let context = backend.mesh_context(&leaf, &TlsPolicy::default()).expect("a context");
    let roots = Arc::new(Roots::from_pem(1, "td.consul", [root_pem.as_str()]).expect("a list of roots"));
    let expected = ExpectedPeer::ClientOf(leaf.identity().clone());
    Server { context, judge: Judge { expected, roots, policy: Arc::new(PeerPolicy::default()), now: UnixTime::now() } }
});

fuzz_target!(|pieces: Vec<Vec<u8>>| {
    let mut session = SERVER.context.accept().expect("a session");
    let (mut wire, mut plain, mut out) = (Buf::default(), Buf::default(), Buf::default());
    for piece in pieces {
        wire.append(&piece);
        match session.handshake(&SERVER.judge, &mut wire, &mut out) {
            Ok(HandshakeStep::NeedInput) => {}
            Ok(HandshakeStep::Done(_)) => panic!("nobody here has a certificate of the mesh"),
            Err(_) => {
                assert!(session.open(&mut wire, &mut plain, &mut out).is_err());
                break;
            }
        }
    }
    assert!(plain.is_empty());
});
