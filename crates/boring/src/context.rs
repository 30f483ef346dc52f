//! Contexts: what is decided once per rotation, never per connection.

use std::{net::IpAddr, ptr, slice};

use boring::{
    ec::EcKey,
    error::ErrorStack,
    fips,
    nid::Nid,
    pkey::{Id, PKey, Private},
    rsa::Rsa,
    ssl::{
        SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslRef, SslSessionCacheMode, SslVerifyMode,
        SslVersion,
    },
    x509::{
        X509,
        store::X509StoreBuilder,
        verify::{X509CheckFlags, X509VerifyFlags},
    },
};
use boring_sys as ffi;
use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Leaf, MeshContext, MeshSession, SessionError, TlsPolicy, engine, judgement,
    policy::{HYBRID_GROUP, MAX_CERTIFICATE_LIST, SIGNATURE_SCHEMES},
    tls::{AgentVerification, BuildError},
    verify::MAX_CHAIN_CERTIFICATES,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{
    error::{done, no_errors_left, refusal, refused},
    session::Session,
    signature::{self, RSA_BITS},
};

/// The groups by their names in the registry, and what BoringSSL calls them.
pub(crate) const GROUPS: [(&str, &str); 4] =
    [(HYBRID_GROUP, "X25519MLKEM768"), ("x25519", "X25519"), ("secp256r1", "P-256"), ("secp384r1", "P-384")];

/// The suites of TLS 1.3 by their names and numbers in the registry.
const TLS13_SUITES: [(&str, u16); 3] =
    [("TLS_AES_128_GCM_SHA256", 0x1301), ("TLS_AES_256_GCM_SHA384", 0x1302), ("TLS_CHACHA20_POLY1305_SHA256", 0x1303)];

/// How we meet other services of the mesh, in both roles.
pub(crate) struct Mesh {
    both: SslContext,
}

impl Mesh {
    /// Builds both roles over one chain and key.
    pub(crate) fn build(leaf: &Leaf, policy: &TlsPolicy) -> Result<Self, BuildError> {
        let mut builder = settings(certificates_as_bytes(), policy)?;
        certified_key(leaf.chain(), leaf.key())?.serve(&mut builder)?;
        ask_core(&mut builder);
        Ok(Self { both: builder.build() })
    }
}

impl MeshContext for Mesh {
    fn accept(&self) -> Result<Box<dyn MeshSession>, SessionError> {
        Ok(Box::new(engine::Mesh::new(Session::accept(&self.both)?)))
    }

    fn connect(&self, server_name: Option<&str>) -> Result<Box<dyn MeshSession>, SessionError> {
        // Only DNS names are legal as SNI (RFC 6066, section 3).
        let name = server_name.and_then(|name| ServerName::try_from(name).ok());
        let session = Session::connect(&self.both, |ssl| match &name {
            Some(ServerName::DnsName(name)) => ssl.set_hostname(without_dot(name.as_ref())),
            _ => Ok(()),
        })?;
        Ok(Box::new(engine::Mesh::new(session)))
    }
}

/// How we talk to the agent.
pub(crate) struct Agent {
    client: SslContext,
}

impl Agent {
    /// Builds a client that knows the agent by its name and the given authorities.
    pub(crate) fn build(settings: &AgentTls) -> Result<Self, BuildError> {
        let mut builder = self::settings(SslMethod::tls(), &TlsPolicy::default())?;
        if !fips::enabled() {
            // The agent's certificate is whatever the operator made for it.
            set_signature_schemes(&mut builder, SIGNATURE_SCHEMES.into_iter().chain(["ed25519"]))?;
        }
        if let Some((chain, key)) = &settings.client {
            certified_key(chain, key)?.serve(&mut builder)?;
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
            ServerName::IpAddress(address) => ssl.verify_param_mut().set_ip(IpAddr::from(address)),
            name => {
                let name = name.to_str();
                let parameters = ssl.verify_param_mut();
                // The subject's common name is no host name (RFC 9525, section 2).
                parameters.set_hostflags(X509CheckFlags::NEVER_CHECK_SUBJECT);
                parameters.set_host(without_dot(&name))?;
                ssl.set_hostname(without_dot(&name))
            }
        })?;
        Ok(Box::new(engine::Agent::new(session)))
    }
}

/// A name as it is sent: the dot that ends an absolute one is not part of it (RFC 6066, section 3).
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// The suites of `policy` that are served.
pub(crate) fn suites(policy: &TlsPolicy) -> Vec<&'static str> {
    policy.suites().into_iter().filter(|suite| !fips::enabled() || suite.contains("_GCM_")).collect()
}

/// The groups of `policy` that are served.
pub(crate) fn groups(policy: &TlsPolicy) -> Vec<&'static str> {
    policy.groups().into_iter().filter(|group| !fips::enabled() || *group != "x25519").collect()
}

/// The signature schemes that are served.
pub(crate) fn signature_schemes() -> Vec<&'static str> {
    SIGNATURE_SCHEMES.into_iter().filter(|scheme| !fips::enabled() || !scheme.contains("secp521r1")).collect()
}

/// Certificates as the bytes that came, in place of X.509 objects.
///
/// Of what a peer sends BoringSSL then reads no more than the public key and the key usage of the leaf, so no parser of
/// its own refuses a chain before our verifier is asked, and none of it is kept twice.
#[expect(unsafe_code, reason = "the crate leaves it to us that nobody asks for an object")]
fn certificates_as_bytes() -> SslMethod {
    // SAFETY: nothing that deals in X.509 objects may be called on a context of this method, or on its connections.
    // Nothing is: `CertifiedKey::serve` and `ask_core` deal in bytes, `error::stop` looks before it asks, and
    // `Session` does not show its connection to anybody.
    unsafe { SslMethod::tls_with_buffer() }
}

/// A context with all of the policy and no certificate.
///
/// What is not set is off in BoringSSL unless it is asked for: renegotiation, early data, compressed certificates and
/// application protocols. So are GREASE and shuffled extensions, which keep the peers of browsers honest; here they
/// would only make each hello another one.
pub(crate) fn settings(method: SslMethod, policy: &TlsPolicy) -> Result<SslContextBuilder, BuildError> {
    let mut builder = SslContext::builder(method).map_err(refused("policy"))?;
    if fips::enabled() {
        comply(&mut builder).map_err(refused("policy"))?;
    }
    (|| {
        builder.set_min_proto_version(Some(if policy.tls12 { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 }))?;
        builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        set_suites(&mut builder, &suites(policy))?;
        // In TLS 1.2 the list of groups is that of the curves of certificates, too.
        let groups = groups(policy);
        let called = GROUPS.into_iter().filter(|(name, _)| groups.contains(name)).map(|(_, called)| called);
        builder.set_curves_list(&called.collect::<Vec<_>>().join(":"))
    })()
    .map_err(refused("policy"))?;
    set_signature_schemes(&mut builder, signature_schemes())?;
    // Our order of suites and groups, not the client's.
    builder.set_options(SslOptions::CIPHER_SERVER_PREFERENCE | SslOptions::NO_TICKET);
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::NO_AUTO_CHAIN);
    set_the_rest(&mut builder);
    Ok(builder)
}

/// Sets BoringSSL's FIPS policy of 2026-09. What is set after it takes away from it and adds nothing.
#[expect(unsafe_code, reason = "the crate has no name for the policy that admits X25519MLKEM768")]
fn comply(builder: &mut SslContextBuilder) -> Result<(), ErrorStack> {
    let policy = ffi::ssl_compliance_policy_t::ssl_compliance_policy_fips_202609;
    // SAFETY: the context lives.
    done(unsafe { ffi::SSL_CTX_set_compliance_policy(builder.as_ptr(), policy) })
}

/// Sets the suites of both versions, in their order.
#[expect(unsafe_code, reason = "the crate has no call for those of TLS 1.3")]
fn set_suites(builder: &mut SslContextBuilder, suites: &[&str]) -> Result<(), ErrorStack> {
    let number = |suite: &&str| TLS13_SUITES.into_iter().find_map(|(name, number)| (name == *suite).then_some(number));
    let tls13: Vec<u16> = suites.iter().filter_map(number).collect();
    // SAFETY: the context lives, and BoringSSL copies the numbers, as many as it is told, within the call. Without
    // flags none of them is equal to another.
    done(unsafe { ffi::SSL_CTX_set1_tls13_ciphers(builder.as_ptr(), tls13.as_ptr(), ptr::null(), tls13.len()) })?;
    let tls12: Vec<&str> = suites.iter().copied().filter(|suite| number(suite).is_none()).collect();
    // BoringSSL takes no empty list; without TLS 1.2 none of it is ever looked at.
    if tls12.is_empty() { Ok(()) } else { builder.set_strict_cipher_list(&tls12.join(":")) }
}

/// Sets what may be signed with, by us and by peers.
fn set_signature_schemes(
    builder: &mut SslContextBuilder,
    schemes: impl IntoIterator<Item = &'static str>,
) -> Result<(), BuildError> {
    builder.set_sigalgs_list(&schemes.into_iter().collect::<Vec<_>>().join(":")).map_err(refused("policy"))
}

/// What the crate has no call for: the bound of a peer's Certificate message.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn set_the_rest(builder: &mut SslContextBuilder) {
    // SAFETY: the context lives, and the call is given nothing else that must.
    unsafe { ffi::SSL_CTX_set_max_cert_list(builder.as_ptr(), MAX_CERTIFICATE_LIST) }
}

/// A chain with its key.
pub(crate) struct CertifiedKey {
    chain: Vec<Bytes>,
    key: PKey<Private>,
}

/// A chain with its key, once it is sure that they belong together.
pub(crate) fn certified_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, BuildError> {
    let chain: Vec<Bytes> = chain
        .iter()
        .map(|certificate| Bytes::copied(certificate))
        .collect::<Result<_, _>>()
        .map_err(refused("certificate"))?;
    let key = private_key(key).map_err(refused("key"))?;
    if !is_of_a_known_kind(&key) {
        let why = format!("it is neither on a curve that is signed with here nor RSA of {RSA_BITS:?} bits");
        return Err(BuildError::Refused { what: "key", why });
    }
    let certified = CertifiedKey { chain, key };
    // BoringSSL compares the public halves, and has checked that of the key when it read it.
    let mut builder = SslContext::builder(certificates_as_bytes()).map_err(refused("certificate"))?;
    certified.serve(&mut builder)?;
    Ok(certified)
}

impl CertifiedKey {
    /// Puts both into a context.
    #[expect(unsafe_code, reason = "the crate has no call for a chain of bytes")]
    fn serve(&self, builder: &mut SslContextBuilder) -> Result<(), BuildError> {
        let chain: Vec<*mut ffi::CRYPTO_BUFFER> = self.chain.iter().map(|bytes| bytes.0).collect();
        // SAFETY: the context and the key live, and so do the buffers, as many as are told of. BoringSSL shares the key
        // and the buffers by references of its own. Null stands for a key that is not elsewhere.
        done(unsafe {
            ffi::SSL_CTX_set_chain_and_key(
                builder.as_ptr(),
                chain.as_ptr(),
                chain.len(),
                self.key.as_ptr(),
                ptr::null(),
            )
        })
        .map_err(refused("certificate"))
    }
}

/// A certificate in a buffer of BoringSSL.
struct Bytes(*mut ffi::CRYPTO_BUFFER);

impl Bytes {
    #[expect(unsafe_code, reason = "the crate does not know these buffers")]
    fn copied(bytes: &[u8]) -> Result<Self, ErrorStack> {
        // SAFETY: BoringSSL copies the bytes, as many as it is told, within the call. Null stands for no pool.
        let buffer = unsafe { ffi::CRYPTO_BUFFER_new(bytes.as_ptr(), bytes.len(), ptr::null_mut()) };
        if buffer.is_null() { Err(ErrorStack::get()) } else { Ok(Self(buffer)) }
    }
}

impl Drop for Bytes {
    #[expect(unsafe_code, reason = "the crate does not know these buffers")]
    fn drop(&mut self) {
        // SAFETY: this is the reference that `CRYPTO_BUFFER_new` gave, and nobody else gives it back.
        unsafe { ffi::CRYPTO_BUFFER_free(self.0) }
    }
}

fn private_key(key: &PrivateKeyDer<'_>) -> Result<PKey<Private>, ErrorStack> {
    match key {
        PrivateKeyDer::Pkcs1(key) => PKey::from_rsa(Rsa::private_key_from_der(key.secret_pkcs1_der())?),
        PrivateKeyDer::Sec1(key) => PKey::from_ec_key(EcKey::private_key_from_der(key.secret_sec1_der())?),
        key => PKey::private_key_from_pkcs8(key.secret_der()),
    }
}

/// Whether there is a signature scheme for it.
fn is_of_a_known_kind(key: &PKey<Private>) -> bool {
    match key.id() {
        Id::RSA => RSA_BITS.contains(&i32::try_from(key.bits()).unwrap_or(i32::MAX)),
        Id::EC => key.ec_key().is_ok_and(|key| match key.group().curve_name() {
            Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1) => true,
            Some(Nid::SECP521R1) => !fips::enabled(),
            _ => false,
        }),
        _ => false,
    }
}

/// The ordinary verification: chain, validity and, by each connection, the name.
fn trust(builder: &mut SslContextBuilder, certificates: &[CertificateDer<'static>]) -> Result<(), BuildError> {
    let mut store = X509StoreBuilder::new().map_err(refused("roots"))?;
    let mut anchors = 0;
    for certificate in certificates {
        // The system's bundle may hold entries that cannot be anchors; one of them must not take the others along.
        if X509::from_der(certificate).and_then(|root| store.add_cert(root)).is_ok() {
            anchors += 1;
        }
    }
    if anchors == 0 {
        return Err(BuildError::Refused { what: "roots", why: "none of them is a certificate".to_owned() });
    }
    // Whoever is on the list is an anchor, also one that another signed.
    store.try_set_flags(X509VerifyFlags::PARTIAL_CHAIN).map_err(refused("roots"))?;
    builder.set_cert_store(store.build());
    builder.set_verify(SslVerifyMode::PEER);
    Ok(())
}

/// Has core judge the peer's whole chain in place of BoringSSL, and requires one of clients. No names of authorities
/// are set, so none are sent.
fn ask_core(builder: &mut SslContextBuilder) {
    let mode = SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT;
    builder.set_custom_verify_callback(mode, |ssl| {
        // Who is expected lies in the judgement slot.
        no_errors_left(|| judgement::decide(&chain_as_sent(ssl), signature::algorithms())).map_err(refusal)
    });
}

/// The certificates of a peer, its own first, as far as the verifier looks.
#[expect(unsafe_code, reason = "the crate shows X.509 objects, and on a server not the leaf")]
fn chain_as_sent(ssl: &SslRef) -> Vec<CertificateDer<'_>> {
    // SAFETY: the connection lives. Before a certificate has come this is null, which is a stack without entries.
    let (sent, length) = unsafe {
        let sent = ffi::SSL_get0_peer_certificates(ssl.as_ptr()).cast::<ffi::OPENSSL_STACK>();
        (sent, ffi::OPENSSL_sk_num(sent))
    };
    // One more than is allowed is enough to be refused, so a list of thousands is not looked at.
    let looked_at = 0..length.min(MAX_CHAIN_CERTIFICATES + 1);
    looked_at
        .map(|index| {
            // SAFETY: the stack has an entry of this index, and all of its entries are buffers. The connection keeps
            // them unchanged as long as it is lent to us, which is as long as the slice is kept.
            let bytes = unsafe {
                let buffer = ffi::OPENSSL_sk_value(sent, index).cast::<ffi::CRYPTO_BUFFER>();
                slice::from_raw_parts(ffi::CRYPTO_BUFFER_data(buffer), ffi::CRYPTO_BUFFER_len(buffer))
            };
            CertificateDer::from(bytes)
        })
        .collect()
}
