//! Contexts: what is decided once per rotation, never per connection.

use std::{net::IpAddr, ptr, slice};

use boring::{
    ec::EcKey,
    error::ErrorStack,
    fips,
    nid::Nid,
    pkey::{HasPublic, Id, PKey, PKeyRef, Private},
    rsa::Rsa,
    ssl::{SslContext, SslContextBuilder, SslRef, SslVerifyMode},
    x509::{
        X509, X509StoreContextRef, X509VerifyError,
        store::X509StoreBuilder,
        verify::{X509CheckFlags, X509VerifyFlags},
    },
};
use boring_sys as ffi;
use foreign_types::{ForeignType as _, ForeignTypeRef as _};
use lictor_core::{
    AgentContext, AgentSession, AgentTls, Leaf, MeshContext, MeshSession, SessionError, SignatureAlgorithms, TlsPolicy,
    engine, judgement,
    tls::{AgentVerification, BuildError},
    verify::MAX_CHAIN_CERTIFICATES,
};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use crate::{
    error::{done, no_errors_left, refusal, refused},
    policy,
    session::Session,
    signature::RSA_BITS,
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
        Ok(Box::new(engine::agent(session)))
    }
}

/// A name as it is sent: the dot that ends an absolute one is not part of it (RFC 6066, section 3).
fn without_dot(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

/// A chain with its key.
pub(crate) struct CertifiedKey {
    chain: Vec<Bytes>,
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
    let curves = if fips::enabled() { "P-256 or P-384" } else { "P-256, P-384 or P-521" };
    let why = format!("it is neither on {curves} nor RSA of {RSA_BITS:?} bits");
    Err(BuildError::Refused { what: "key", why })
}

impl CertifiedKey {
    fn load(chain: &[CertificateDer<'static>], key: &PrivateKeyDer<'static>) -> Result<Self, BuildError> {
        let chain: Vec<Bytes> = chain
            .iter()
            .map(|certificate| Bytes::copied(certificate))
            .collect::<Result<_, _>>()
            .map_err(refused("certificate"))?;
        let own = Self { chain, key: private_key(key).map_err(refused("key"))? };
        // BoringSSL compares the public halves, and has held that of the key to the private one when it read it.
        let mut nowhere = SslContext::builder(policy::certificates_as_bytes()).map_err(refused("certificate"))?;
        own.serve(&mut nowhere)?;
        Ok(own)
    }

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

/// Whether the policy has a signature scheme for it.
fn is_of_the_mesh(key: &PKey<Private>) -> bool {
    match key.id() {
        Id::RSA => has_a_size_of_today(key),
        Id::EC => key.ec_key().is_ok_and(|key| match key.group().curve_name() {
            Some(Nid::X9_62_PRIME256V1 | Nid::SECP384R1) => true,
            Some(Nid::SECP521R1) => !fips::enabled(),
            _ => false,
        }),
        _ => false,
    }
}

fn has_a_size_of_today<T: HasPublic>(rsa: &PKeyRef<T>) -> bool {
    RSA_BITS.contains(&i32::try_from(rsa.bits()).unwrap_or(i32::MAX))
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
    builder.set_verify_callback(SslVerifyMode::PEER, |good, context| {
        if good { is_of_today(context) } else { only_an_anchor_is_out_of_date(context) }
    });
    Ok(())
}

/// Refuses what BoringSSL still takes and the other libraries do not: RSA below 2048 bits, and what is signed over SHA-1.
/// Asked about each certificate of the path.
fn is_of_today(context: &mut X509StoreContextRef) -> bool {
    /// Of the schemes without one, which are Ed25519 and PSS, BoringSSL takes none over SHA-1.
    const HASHES: [Nid; 4] = [Nid::SHA256, Nid::SHA384, Nid::SHA512, Nid::UNDEF];
    let is_anchor = is_of_the_anchor(context);
    let good = context.current_cert().is_some_and(|certificate| {
        let signature = certificate.signature_algorithm().object().nid().signature_algorithms();
        let key = certificate.public_key();
        (is_anchor || signature.is_some_and(|signature| HASHES.contains(&signature.digest)))
            && key.is_ok_and(|key| key.id() != Id::RSA || has_a_size_of_today(&key))
    });
    if !good {
        context.set_error(Err(X509VerifyError::CERT_REJECTED));
    }
    good
}

/// Forgives that an anchor has expired, as the other libraries do: its dates are no part of what makes it one
/// (RFC 5280, section 6.1.1).
fn only_an_anchor_is_out_of_date(context: &mut X509StoreContextRef) -> bool {
    let of_date =
        matches!(context.verify_result(), Err(X509VerifyError::CERT_HAS_EXPIRED | X509VerifyError::CERT_NOT_YET_VALID));
    // A leaf that is an anchor itself is asked for its dates like any other.
    let forgiven = of_date && context.error_depth() > 0 && is_of_the_anchor(context);
    if forgiven {
        context.set_error(Ok(()));
    }
    forgiven
}

/// Whether the question is about the last certificate of the path, which is one of those that the operator named.
fn is_of_the_anchor(context: &X509StoreContextRef) -> bool {
    usize::try_from(context.error_depth()).ok() == context.chain().and_then(|chain| chain.len().checked_sub(1))
}

/// Has core judge the peer's whole chain in place of BoringSSL, and requires one of clients. No names of authorities
/// are set, so none are sent: a Go client whose root is not among the names would send no certificate at all.
fn ask_core(builder: &mut SslContextBuilder, algorithms: &'static SignatureAlgorithms) {
    builder.set_custom_verify_callback(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT, |ssl| {
        // Who is expected lies in the judgement slot.
        no_errors_left(|| judgement::decide(&chain_as_sent(ssl), algorithms)).map_err(refusal)
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
