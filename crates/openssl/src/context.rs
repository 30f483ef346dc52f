//! Contexts: what is decided once per rotation, never per connection.

use std::{cell::Cell, net::IpAddr, ptr, slice};

use libc::{c_int, c_void};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Leaf, MeshContext, MeshSession, SessionError, SignatureAlgorithms, TlsPolicy,
    engine::{self, Stop},
    judgement,
    tls::{AgentVerification, BuildError},
    verify::MAX_CHAIN_CERTIFICATES,
};
use openssl::{
    ec::EcKey,
    error::ErrorStack,
    hash::MessageDigest,
    nid::Nid,
    pkey::{Id, PKey, Private},
    rsa::Rsa,
    sign::{Signer, Verifier},
    ssl::{SslContext, SslContextBuilder, SslVerifyMode},
    x509::{
        X509, X509Ref, X509StoreContextRef, X509VerifyResult,
        verify::{X509CheckFlags, X509VerifyFlags},
    },
};
use openssl_sys as ffi;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{
    error::{no_errors_left, refusal, refused},
    policy,
    session::Session,
    signature::{self, RSA_BITS},
};

/// How we meet other services of the mesh, in both roles.
pub(crate) struct Mesh {
    both: SslContext,
}

impl Mesh {
    /// Builds both roles over one chain and key.
    pub(crate) fn build(
        leaf: &Leaf,
        policy: &TlsPolicy,
        algorithms: &'static SignatureAlgorithms,
    ) -> Result<Self, BuildError> {
        let mut builder = policy::for_the_mesh(policy)?;
        certified_key(leaf.chain(), leaf.key())?.serve(&mut builder)?;
        ask_core(&mut builder, algorithms);
        Ok(Self { both: builder.build() })
    }
}

impl MeshContext for Mesh {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(engine::mesh(Session::accept(&self.both)?)))
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        // Only DNS names are legal as SNI (RFC 6066, section 3).
        let name = server_name.and_then(|name| ServerName::try_from(name).ok());
        let session = Session::connect(&self.both, |ssl| match &name {
            Some(ServerName::DnsName(name)) => ssl.set_hostname(without_dot(name.as_ref())),
            _ => Ok(()),
        })?;
        Ok(Box::new(engine::mesh(session)))
    }
}

/// How we talk to the agent.
pub(crate) struct Agent {
    client: SslContext,
}

impl Agent {
    /// Builds a client that knows the agent by its name and the given authorities.
    pub(crate) fn build(settings: &AgentTls) -> Result<Self, BuildError> {
        let mut builder = policy::for_the_agent()?;
        if let Some((chain, key)) = &settings.client {
            CertifiedKey::load(chain, key)?.serve(&mut builder)?;
        }
        match settings.verification {
            AgentVerification::Full => trust(&mut builder, &settings.roots)?,
            // The handshake must still be signed by the certificate's key.
            AgentVerification::Off => builder.set_verify(SslVerifyMode::NONE),
        }
        Ok(Self { client: builder.build() })
    }
}

impl AgentContext for Agent {
    fn connect(&self, server_name: &str) -> Result<Box<dyn AgentSession>, SessionError> {
        let name = ServerName::try_from(server_name)
            .map_err(|_| SessionError::Internal(format!("{server_name:?} is neither a DNS name nor an IP address")))?;
        let session = Session::connect(&self.client, |ssl| match name {
            ServerName::IpAddress(address) => ssl.param_mut().set_ip(IpAddr::from(address)),
            name => {
                let name = name.to_str();
                let parameters = ssl.param_mut();
                // The subject's common name is no host name (RFC 9525, section 2).
                parameters.set_hostflags(X509CheckFlags::NO_PARTIAL_WILDCARDS | X509CheckFlags::NEVER_CHECK_SUBJECT);
                parameters.set_host(without_dot(&name))?;
                ssl.set_hostname(without_dot(&name))
            }
        })?;
        Ok(Box::new(engine::agent(session)))
    }
}

/// A name as it is sent: the dot that ends an absolute one is not part of it (RFC 6066, section 3).
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// A chain with its key.
pub(crate) struct CertifiedKey {
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// A chain with its key for the mesh, once it is sure that they belong together.
pub(crate) fn certified_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, BuildError> {
    let own = CertifiedKey::load(chain, key)?;
    if is_of_the_mesh(&own.key) {
        return Ok(own);
    }
    let why = format!("it is neither on P-256, P-384 or P-521 nor RSA of {RSA_BITS:?} bits");
    Err(BuildError::Refused { what: "key", why })
}

impl CertifiedKey {
    fn load(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<Self, BuildError> {
        let chain: Vec<X509> = chain
            .iter()
            .map(|certificate| X509::from_der(certificate))
            .collect::<Result<_, _>>()
            .map_err(refused("certificate"))?;
        let key = private_key(key).map_err(refused("key"))?;
        match chain.first() {
            Some(leaf) if is_the_key_of(&key, leaf) => Ok(Self { chain, key }),
            Some(_) => Err(BuildError::KeyMismatch),
            None => Err(BuildError::Refused { what: "certificate", why: "there is none".to_owned() }),
        }
    }

    /// Puts both into a context.
    fn serve(&self, builder: &mut SslContextBuilder) -> Result<(), BuildError> {
        if let Some((leaf, others)) = self.chain.split_first() {
            builder.set_certificate(leaf).map_err(refused("certificate"))?;
            for other in others {
                builder.add_extra_chain_cert(other.clone()).map_err(refused("certificate"))?;
            }
        }
        builder.set_private_key(&self.key).map_err(refused("key"))
    }
}

fn private_key(key: &PrivateKeyDer<'_>) -> Result<PKey<Private>, ErrorStack> {
    match key {
        PrivateKeyDer::Pkcs1(key) => PKey::from_rsa(Rsa::private_key_from_der(key.secret_pkcs1_der())?),
        PrivateKeyDer::Sec1(key) => PKey::from_ec_key(EcKey::private_key_from_der(key.secret_sec1_der())?),
        key => PKey::private_key_from_pkcs8(key.secret_der()),
    }
}

/// Whether the policy has a signature scheme for it.
fn is_of_the_mesh(key: &PKey<Private>) -> bool {
    match key.id() {
        Id::RSA => RSA_BITS.contains(&i32::try_from(key.bits()).unwrap_or(i32::MAX)),
        Id::EC => key.ec_key().is_ok_and(|key| {
            matches!(key.group().curve_name(), Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1 | Nid::SECP521R1))
        }),
        _ => false,
    }
}

/// Whether what `key` signs verifies under the certificate: the public half that a key's file holds proves nothing.
fn is_the_key_of(key: &PKey<Private>, leaf: &X509Ref) -> bool {
    let message = b"whose key is this?";
    let proven = || -> Result<bool, ErrorStack> {
        let public = leaf.public_key()?;
        let (mut signer, mut verifier) = if key.id() == Id::ED25519 {
            (Signer::new_without_digest(key)?, Verifier::new_without_digest(&public)?)
        } else {
            let hash = MessageDigest::sha256();
            (Signer::new(hash, key)?, Verifier::new(hash, &public)?)
        };
        verifier.verify_oneshot(&signer.sign_oneshot_to_vec(message)?, message)
    };
    proven().unwrap_or(false)
}

/// The ordinary verification: chain, validity and, by each connection, the name.
fn trust(builder: &mut SslContextBuilder, certificates: &[CertificateDer<'static>]) -> Result<(), BuildError> {
    let mut anchors = 0;
    for certificate in certificates {
        // The system's bundle may hold entries that cannot be anchors; one of them must not take the others along.
        if X509::from_der(certificate).and_then(|root| builder.cert_store_mut().add_cert(root)).is_ok() {
            anchors += 1;
        }
    }
    if anchors == 0 {
        return Err(BuildError::Refused { what: "roots", why: "none of them is a certificate".to_owned() });
    }
    // Whoever is on the list is an anchor, also one that another signed.
    builder.verify_param_mut().set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(refused("roots"))?;
    builder.set_verify_callback(SslVerifyMode::PEER, |good, context| good || only_an_anchor_is_out_of_date(context));
    Ok(())
}

/// Forgives that an anchor has expired, as the other libraries do: its dates are no part of what makes it one
/// (RFC 5280, section 6.1.1).
fn only_an_anchor_is_out_of_date(context: &mut X509StoreContextRef) -> bool {
    let out_of_date =
        matches!(context.error().as_raw(), ffi::X509_V_ERR_CERT_HAS_EXPIRED | ffi::X509_V_ERR_CERT_NOT_YET_VALID);
    let last = context.chain().map_or(0, |chain| chain.len().saturating_sub(1));
    let forgiven = out_of_date && last > 0 && usize::try_from(context.error_depth()) == Ok(last);
    if forgiven {
        context.set_error(X509VerifyResult::OK);
    }
    forgiven
}

/// Has core judge the peer's whole chain in place of OpenSSL, and requires one of clients.
///
/// No names of authorities go along with that: a Go client whose root is not among them would send no certificate.
#[expect(unsafe_code, reason = "the crate's callback sees one certificate at a time, and after OpenSSL has judged it")]
fn ask_core(builder: &mut SslContextBuilder, algorithms: &'static SignatureAlgorithms) {
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    let argument = ptr::from_ref(algorithms).cast_mut().cast();
    // SAFETY: the context lives. Both functions, and what `argument` points to, live as long as the program; it is
    // only read.
    unsafe {
        SSL_CTX_set_msg_callback(builder.as_ptr(), Some(keep_certificates));
        SSL_CTX_set_cert_verify_callback(builder.as_ptr(), Some(judge), argument);
    }
}

/// What OpenSSL calls for a verdict about a peer: 1 lets it in. Who is expected lies in the judgement slot.
///
/// # Safety
/// `context` must point to one that lives, and `algorithms` be what [`ask_core`] gave.
#[expect(unsafe_code, reason = "it is called from C")]
unsafe extern "C" fn judge(context: *mut ffi::X509_STORE_CTX, algorithms: *mut c_void) -> c_int {
    // SAFETY: the caller's promise.
    let algorithms = unsafe { &*algorithms.cast_const().cast::<SignatureAlgorithms>() };
    let verdict = no_errors_left(|| judgement::decide(&kept_certificates().unwrap_or_default(), algorithms));
    // SAFETY: the caller's promise.
    unsafe { ffi::X509_STORE_CTX_set_error(context, verdict.map_or_else(refusal, |()| ffi::X509_V_OK)) };
    c_int::from(verdict.is_ok())
}

thread_local! {
    /// The Certificate message of the handshake that this thread is in, with its version. OpenSSL itself keeps only what
    /// it has parsed, which forgives encodings that are not DER and gives them back as if they were.
    static KEPT: Cell<Option<(c_int, Vec<u8>)>> = const { Cell::new(None) };
}

/// Runs a call of a handshake, and keeps nothing of its certificates for any other.
pub(crate) fn handshaking<R>(call: impl FnOnce() -> Result<R, Stop>) -> Result<R, Stop> {
    KEPT.set(None);
    let result = call();
    match (result, kept_certificates()) {
        // OpenSSL could not read them, so it has not asked. What core says of them is the reason on all libraries.
        (Err(Stop::Failed(error)), Some(chain)) => {
            let verdict = judgement::decide(&chain, signature::algorithms());
            Err(Stop::Failed(verdict.map_or_else(SessionError::Rejected, |()| error)))
        }
        (result, _) => result,
    }
}

/// What OpenSSL shows each message to, whole and opened, before it looks at it.
///
/// # Safety
/// `message` must point to `length` bytes that live.
#[expect(unsafe_code, reason = "it is called from C")]
unsafe extern "C" fn keep_certificates(
    is_ours: c_int,
    version: c_int,
    content_type: c_int,
    message: *const c_void,
    length: usize,
    _: *mut ffi::SSL,
    _: *mut c_void,
) {
    const HANDSHAKE: c_int = 22;
    const CERTIFICATE: u8 = 11;
    if is_ours != 0 || content_type != HANDSHAKE || message.is_null() {
        return;
    }
    // SAFETY: the caller's promise.
    let message = unsafe { slice::from_raw_parts(message.cast::<u8>(), length) };
    if message.first() == Some(&CERTIFICATE) {
        // OpenSSL has held it to the policy's bound.
        KEPT.set(Some((version, message.to_vec())));
    }
}

/// The certificates of the peer, exactly as they were sent, as far as the verifier looks.
fn kept_certificates() -> Option<Vec<CertificateDer<'static>>> {
    KEPT.take().map(|(version, message)| certificates(version, &message).unwrap_or_default())
}

/// The list of a Certificate message (RFC 5246, section 7.4.2; RFC 8446, section 4.4.2).
fn certificates(version: c_int, message: &[u8]) -> Option<Vec<CertificateDer<'static>>> {
    const TYPE_AND_LENGTH: usize = 4;
    let has_extensions = version == ffi::TLS1_3_VERSION;
    let mut rest = message.get(TYPE_AND_LENGTH..)?;
    if has_extensions {
        vector(&mut rest, 1)?;
    }
    let mut list = vector(&mut rest, 3)?;
    let mut certificates = Vec::new();
    // One more than is allowed is enough to be refused, so a list of thousands is not copied.
    while !list.is_empty() && certificates.len() <= MAX_CHAIN_CERTIFICATES {
        certificates.push(vector(&mut list, 3)?.to_vec().into());
        if has_extensions {
            vector(&mut list, 2)?;
        }
    }
    Some(certificates)
}

/// Takes bytes that follow their own number, which itself has `width` bytes.
fn vector<'a>(bytes: &mut &'a [u8], width: usize) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(width)?;
    let length = length.iter().fold(0, |length, byte| length << 8 | usize::from(*byte));
    let (content, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(content)
}

type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;
type MessageCallback = unsafe extern "C" fn(c_int, c_int, c_int, *const c_void, usize, *mut ffi::SSL, *mut c_void);

#[expect(unsafe_code, reason = "functions of OpenSSL that neither crate declares")]
unsafe extern "C" {
    fn SSL_CTX_set_cert_verify_callback(ctx: *mut ffi::SSL_CTX, callback: Option<VerifyCallback>, arg: *mut c_void);
    fn SSL_CTX_set_msg_callback(ctx: *mut ffi::SSL_CTX, callback: Option<MessageCallback>);
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use lictor_conformance::{
        certs,
        pair::{Ours, Peer, PeerSettings, our_context, our_leaf, talk, ways},
        rows::Case,
        verifier,
    };
    use lictor_core::RejectReason;
    use proptest::prelude::*;
    use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm, alg_id};

    use super::*;
    use crate::OpensslBackend;

    #[derive(Debug)]
    struct Panics;

    impl SignatureVerificationAlgorithm for Panics {
        fn verify_signature(&self, _: &[u8], _: &[u8], _: &[u8]) -> Result<(), InvalidSignature> {
            panic!("in the middle of a callback");
        }

        fn public_key_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_P256
        }

        fn signature_alg_id(&self) -> AlgorithmIdentifier {
            alg_id::ECDSA_SHA256
        }
    }

    #[test]
    fn a_panic_under_the_callback_is_a_refusal_and_goes_no_further() {
        static PANICS: LazyLock<SignatureAlgorithms> = LazyLock::new(|| SignatureAlgorithms::new(vec![&Panics]));
        let mesh = certs::Mesh::new(1);
        let context = Mesh::build(&our_leaf(&mesh), &TlsPolicy::default(), &PANICS).unwrap();
        let good = our_context(&OpensslBackend::new().unwrap(), &mesh, &TlsPolicy::default());
        let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
        for (side, version, way) in ways() {
            let meet = |context: &dyn MeshContext| {
                let settings = PeerSettings::new(case.chain.clone(), case.key.clone(), version);
                let mut ours = Ours::new(context, verifier::judge(&mesh, &case, side), side);
                let mut peer = Peer::new(&settings, side);
                talk(&mut ours, &mut peer, usize::MAX);
                (ours, peer)
            };
            let (ours, peer) = meet(&context);
            assert_eq!(ours.failed, Some(SessionError::Rejected(RejectReason::Unjudged)), "{way}");
            assert_eq!(peer.alert, Some(46), "{way}");
            let (ours, _) = meet(good.as_ref());
            assert!(ours.established.is_some(), "the next one on this thread: {way}: {:?}", ours.failed);
        }
    }

    /// A Certificate message of these certificates, with as many bytes of extensions for each in TLS 1.3.
    fn message(version: c_int, list: &[(Vec<u8>, u8)]) -> Vec<u8> {
        let number = |n: usize| u32::try_from(n).unwrap().to_be_bytes()[1..].to_vec();
        let mut entries = Vec::new();
        for (certificate, extensions) in list {
            entries.extend(number(certificate.len()));
            entries.extend(certificate);
            if version == ffi::TLS1_3_VERSION {
                entries.extend([0, *extensions]);
                entries.resize(entries.len() + usize::from(*extensions), 0xee);
            }
        }
        let context = if version == ffi::TLS1_3_VERSION { vec![2, 7, 7] } else { Vec::new() };
        let body = [context, number(entries.len()), entries].concat();
        [vec![11], number(body.len()), body].concat()
    }

    proptest! {
        #[test]
        fn a_certificate_message_is_read_as_far_as_the_verifier_looks_and_cut_short_not_at_all(
            list in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..40), any::<u8>()), 0..14),
            is_tls13: bool,
            cut: prop::sample::Index,
        ) {
            let version = if is_tls13 { ffi::TLS1_3_VERSION } else { ffi::TLS1_2_VERSION };
            let whole = message(version, &list);
            let read = certificates(version, &whole).unwrap();
            prop_assert_eq!(read.len(), list.len().min(MAX_CHAIN_CERTIFICATES + 1));
            for (read, (sent, _)) in read.iter().zip(&list) {
                prop_assert_eq!(read.as_ref(), &sent[..]);
            }
            prop_assert_eq!(certificates(version, &whole[..cut.index(whole.len())]), None);
        }
    }

    #[test]
    fn certificates_are_kept_for_one_call_alone() {
        let keep = || KEPT.set(Some((ffi::TLS1_2_VERSION, message(ffi::TLS1_2_VERSION, &[(vec![1], 0)]))));
        let kept = || kept_certificates().map(|chain| chain.len());
        keep();
        assert_eq!(handshaking(|| Ok(kept())).unwrap(), None, "of a call before");
        handshaking(|| {
            keep();
            Ok(())
        })
        .unwrap();
        assert_eq!(kept(), None, "of the call that is over");
        keep();
        assert_eq!((kept(), kept()), (Some(1), None), "once");
    }
}
