//! Contexts: what is decided once per rotation, never per connection.

use std::{ffi::CString, iter, net::IpAddr, ptr};

use foreign_types::ForeignTypeRef as _;
use libc::{c_int, c_long, c_void};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Leaf, MeshContext, MeshSession, SessionError, TlsPolicy, engine, judgement,
    policy::{MAX_CERTIFICATE_LIST, SIGNATURE_SCHEMES, SUITES},
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
    ssl::{
        SslCipher, SslContext, SslContextBuilder, SslMethod, SslMode, SslOptions, SslSessionCacheMode, SslVerifyMode,
        SslVersion, cipher_name,
    },
    stack::{Stack, StackRef},
    x509::{
        X509, X509Ref,
        verify::{X509CheckFlags, X509VerifyFlags},
    },
};
use openssl_sys as ffi;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{
    error::{no_errors_left, refusal, refused},
    session::Session,
    signature::{self, RSA_BITS},
};

/// What counts in the mesh: the lists of the policy, which name all that is allowed, and the verifier, which judges
/// each certificate. A level of OpenSSL's own would refuse what the other libraries accept.
const NO_LEVEL_OF_ITS_OWN: u32 = 0;

/// For the agent, where OpenSSL judges: 112 bits, which is RSA from 2048 bits and nothing signed over SHA-1.
const LEVEL_OF_TODAY: u32 = 2;

/// `SSL_OP_NO_TX_CERTIFICATE_COMPRESSION` and `SSL_OP_NO_RX_CERTIFICATE_COMPRESSION`, which OpenSSL 3.0 does not know.
const NO_COMPRESSED_CERTIFICATES: SslOptions = SslOptions::from_bits_retain(1 << 32 | 1 << 33);

/// How we meet other services of the mesh, in both roles.
pub(crate) struct Mesh {
    both: SslContext,
}

impl Mesh {
    /// Builds both roles over one chain and key.
    pub(crate) fn build(leaf: &Leaf, policy: &TlsPolicy) -> Result<Self, BuildError> {
        let mut builder = settings(policy)?;
        builder.set_security_level(NO_LEVEL_OF_ITS_OWN);
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
        let mut builder = self::settings(&TlsPolicy::default())?;
        builder.set_security_level(LEVEL_OF_TODAY);
        // The agent's certificate is whatever the operator made for it.
        set_signature_schemes(&mut builder, SIGNATURE_SCHEMES.into_iter().chain(["ed25519"]))?;
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
        Ok(Box::new(engine::Agent::new(session)))
    }
}

/// A name as it is sent: the dot that ends an absolute one is not part of it (RFC 6066, section 3).
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// A context with all of the policy and no certificate.
///
/// What OpenSSL reads from the machine's configuration, or has as its own default, is overwritten throughout.
pub(crate) fn settings(policy: &TlsPolicy) -> Result<SslContextBuilder, BuildError> {
    let mut builder = SslContext::builder(SslMethod::tls()).map_err(refused("policy"))?;
    let groups = offered_groups(&mut builder, policy);
    // In TLS 1.2 the list of groups is that of the curves of certificates, too.
    set_groups(&mut builder, &groups).map_err(refused("policy"))?;
    set_signature_schemes(&mut builder, SIGNATURE_SCHEMES)?;
    (|| {
        builder.set_min_proto_version(Some(if policy.tls12 { SslVersion::TLS1_2 } else { SslVersion::TLS1_3 }))?;
        builder.set_max_proto_version(Some(SslVersion::TLS1_3))?;
        let (tls12, tls13): (Vec<_>, Vec<_>) = SUITES.into_iter().partition(|suite| suite.starts_with("TLS_ECDHE_"));
        builder.set_ciphersuites(&tls13.join(":"))?;
        builder.set_cipher_list(&tls12.into_iter().map(cipher_name).collect::<Vec<_>>().join(":"))?;
        builder.set_num_tickets(0)
    })()
    .map_err(refused("policy"))?;
    builder.clear_options(SslOptions::from_bits_retain(u64::MAX));
    builder.set_options(
        // Our order of suites, not the client's.
        SslOptions::CIPHER_SERVER_PREFERENCE
            | SslOptions::ENABLE_MIDDLEBOX_COMPAT
            | SslOptions::NO_COMPRESSION
            | SslOptions::NO_RENEGOTIATION
            | SslOptions::NO_TICKET
            | NO_COMPRESSED_CERTIFICATES
            // Nothing is negotiated anew, so a server need not say how it would do that.
            | SslOptions::from_bits_retain(ffi::SSL_OP_LEGACY_SERVER_CONNECT),
    );
    builder.set_session_cache_mode(SslSessionCacheMode::OFF);
    builder.set_mode(SslMode::ACCEPT_MOVING_WRITE_BUFFER | SslMode::NO_AUTO_CHAIN | SslMode::RELEASE_BUFFERS);
    // A Go client whose root is not among the names would send no certificate at all.
    builder.set_client_ca_list(Stack::new().map_err(refused("policy"))?);
    set_the_rest(&mut builder);
    Ok(builder)
}

/// The suites of `policy` that this library serves, in the order in which it does.
pub(crate) fn suites(policy: &TlsPolicy) -> Vec<&'static str> {
    let Ok(builder) = settings(policy) else { return Vec::new() };
    let (served, wanted) = (served_suites(&builder), policy.suites());
    served.into_iter().filter_map(|name| wanted.iter().copied().find(|wanted| *wanted == name)).collect()
}

/// The groups of `policy` that this library serves.
pub(crate) fn groups(policy: &TlsPolicy) -> Vec<&'static str> {
    match SslContext::builder(SslMethod::tls()) {
        Ok(mut builder) => offered_groups(&mut builder, policy),
        Err(_) => Vec::new(),
    }
}

/// Tried, since neither a version nor a name says what a build and its configuration leave.
fn offered_groups(builder: &mut SslContextBuilder, policy: &TlsPolicy) -> Vec<&'static str> {
    policy.groups().into_iter().filter(|group| builder.set_groups_list(group).is_ok()).collect()
}

/// Sets the groups and, with the hybrid one among them, has a client send the share of a classical one besides, as the
/// other libraries do: a server without the hybrid group need not ask again then.
fn set_groups(builder: &mut SslContextBuilder, groups: &[&str]) -> Result<(), ErrorStack> {
    let with_two_shares: Vec<String> = groups
        .iter()
        .enumerate()
        .map(|(index, group)| if index < 2 { format!("*{group}") } else { (*group).to_owned() })
        .collect();
    if groups.first() == Some(&lictor_core::policy::HYBRID_GROUP)
        && builder.set_groups_list(&with_two_shares.join(":")).is_ok()
    {
        return Ok(());
    }
    builder.set_groups_list(&groups.join(":"))
}

/// Sets what may be signed with: by us, by peers, and by clients of ours, which OpenSSL keeps apart.
fn set_signature_schemes(
    builder: &mut SslContextBuilder,
    schemes: impl IntoIterator<Item = &'static str>,
) -> Result<(), BuildError> {
    let list = schemes.into_iter().collect::<Vec<_>>().join(":");
    builder.set_sigalgs_list(&list).map_err(refused("policy"))?;
    let list = CString::new(list).map_err(|_| refused("policy")(ErrorStack::get()))?;
    // SAFETY: the context lives, and OpenSSL copies the list, a string that ends with zero, within the call.
    #[expect(unsafe_code, reason = "the crate has no call for it")]
    let done = unsafe {
        ffi::SSL_CTX_ctrl(builder.as_ptr(), SET_CLIENT_SIGALGS_LIST, 0, list.as_ptr().cast_mut().cast::<c_void>())
    };
    if done == 1 { Ok(()) } else { Err(refused("policy")(ErrorStack::get())) }
}

/// The suites that `builder` serves, in their order.
#[expect(unsafe_code, reason = "the crate has no call for it")]
fn served_suites(builder: &SslContextBuilder) -> Vec<&'static str> {
    // SAFETY: the context lives. The list belongs to it and is not kept beyond this function; null is left out.
    let ciphers = unsafe {
        let list = SSL_CTX_get_ciphers(builder.as_ptr());
        if list.is_null() {
            return Vec::new();
        }
        StackRef::<SslCipher>::from_ptr(list)
    };
    ciphers.iter().filter_map(|cipher| cipher.standard_name()).collect()
}

/// What the crate has no calls for: the bound of a peer's Certificate message, and no padding of records.
#[expect(unsafe_code, reason = "the crate has no calls for it")]
fn set_the_rest(builder: &mut SslContextBuilder) {
    const BOUND: c_long = MAX_CERTIFICATE_LIST as c_long;
    // SAFETY: the context lives, and neither call is given anything else that must.
    unsafe {
        ffi::SSL_CTX_ctrl(builder.as_ptr(), SET_MAX_CERT_LIST, BOUND, ptr::null_mut());
        SSL_CTX_set_block_padding(builder.as_ptr(), 0);
    }
}

/// A chain with its key.
pub(crate) struct CertifiedKey {
    chain: Vec<X509>,
    key: PKey<Private>,
}

/// A chain with its key, once it is sure that they belong together.
pub(crate) fn certified_key(
    chain: &[CertificateDer<'static>],
    key: &PrivateKeyDer<'static>,
) -> Result<CertifiedKey, BuildError> {
    let chain: Vec<X509> = chain
        .iter()
        .map(|certificate| X509::from_der(certificate))
        .collect::<Result<_, _>>()
        .map_err(refused("certificate"))?;
    let key = private_key(key).map_err(refused("key"))?;
    if !is_of_a_known_kind(&key) {
        let why = format!("it is neither on P-256, P-384 or P-521 nor RSA of {RSA_BITS:?} bits");
        return Err(BuildError::Refused { what: "key", why });
    }
    let Some(leaf) = chain.first() else {
        return Err(BuildError::Refused { what: "certificate", why: "there is none".to_owned() });
    };
    if is_the_key_of(&key, leaf) { Ok(CertifiedKey { chain, key }) } else { Err(BuildError::KeyMismatch) }
}

impl CertifiedKey {
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

/// Whether peers have a signature scheme for it, and our own verifier would take it.
fn is_of_a_known_kind(key: &PKey<Private>) -> bool {
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
    let (hash, message) = (MessageDigest::sha256(), b"whose key is this?");
    let proven = || -> Result<bool, ErrorStack> {
        let signature = Signer::new(hash, key)?.sign_oneshot_to_vec(message)?;
        let public = leaf.public_key()?;
        Verifier::new(hash, &public)?.verify_oneshot(&signature, message)
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
    builder.set_verify(SslVerifyMode::PEER);
    Ok(())
}

/// Has core judge the peer's whole chain in place of OpenSSL, and requires one of clients.
#[expect(unsafe_code, reason = "the crate's callback sees one certificate at a time, and only after OpenSSL judged it")]
fn ask_core(builder: &mut SslContextBuilder) {
    builder.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    // SAFETY: the context lives; the function lives as long as the program and does not look at its argument.
    unsafe { SSL_CTX_set_cert_verify_callback(builder.as_ptr(), Some(judge), ptr::null_mut()) }
}

/// What OpenSSL calls with the certificates of a peer: 1 lets it in. Who is expected lies in the judgement slot.
#[expect(unsafe_code, reason = "it is called from C")]
unsafe extern "C" fn judge(context: *mut ffi::X509_STORE_CTX, _: *mut c_void) -> c_int {
    // SAFETY: OpenSSL calls with a context that lives, and what it holds lives as long.
    let chain = unsafe { chain_as_sent(context) };
    let verdict = no_errors_left(|| judgement::decide(&chain, signature::algorithms()));
    let error = verdict.map_or_else(refusal, |()| ffi::X509_V_OK);
    // SAFETY: as above.
    unsafe { ffi::X509_STORE_CTX_set_error(context, error) };
    c_int::from(verdict.is_ok())
}

/// The certificates of a peer, its own first, as far as the verifier looks.
///
/// # Safety
/// `context` must point to a context that lives.
#[expect(unsafe_code, reason = "the crate has no calls for it")]
unsafe fn chain_as_sent(context: *mut ffi::X509_STORE_CTX) -> Vec<CertificateDer<'static>> {
    // SAFETY: the caller's promise. Both belong to the context and are not kept beyond this function; null is left out.
    let (leaf, sent) = unsafe {
        let (leaf, sent) = (X509_STORE_CTX_get0_cert(context), X509_STORE_CTX_get0_untrusted(context));
        if leaf.is_null() || sent.is_null() {
            return Vec::new();
        }
        (X509Ref::from_ptr(leaf), StackRef::<X509>::from_ptr(sent))
    };
    // OpenSSL puts the leaf into the list, too, as its first.
    let others = sent.iter().skip_while(|certificate| certificate.as_ptr() == leaf.as_ptr());
    iter::once(leaf)
        .chain(others)
        // One more than is allowed is enough to be refused, so a list of thousands is not copied.
        .take(MAX_CHAIN_CERTIFICATES + 1)
        .map(|certificate| certificate.to_der().unwrap_or_default().into())
        .collect()
}

/// `SSL_CTRL_SET_MAX_CERT_LIST`.
const SET_MAX_CERT_LIST: c_int = 51;

/// `SSL_CTRL_SET_CLIENT_SIGALGS_LIST`.
const SET_CLIENT_SIGALGS_LIST: c_int = 102;

type VerifyCallback = unsafe extern "C" fn(*mut ffi::X509_STORE_CTX, *mut c_void) -> c_int;

#[expect(unsafe_code, reason = "functions of OpenSSL that neither crate declares")]
unsafe extern "C" {
    fn SSL_CTX_set_cert_verify_callback(ctx: *mut ffi::SSL_CTX, callback: Option<VerifyCallback>, arg: *mut c_void);
    fn SSL_CTX_set_block_padding(ctx: *mut ffi::SSL_CTX, block_size: usize) -> c_int;
    fn SSL_CTX_get_ciphers(ctx: *const ffi::SSL_CTX) -> *mut ffi::stack_st_SSL_CIPHER;
    fn X509_STORE_CTX_get0_cert(ctx: *const ffi::X509_STORE_CTX) -> *mut ffi::X509;
    fn X509_STORE_CTX_get0_untrusted(ctx: *const ffi::X509_STORE_CTX) -> *mut ffi::stack_st_X509;
}
