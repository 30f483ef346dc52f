//! SPIFFE identities of the mesh, parsed once at the edge and compared as values.
//!
//! The grammar is that of the SPIFFE-ID standard (sections 2.1 to 2.4) with the path shapes that Consul gives to its
//! identities. Nothing is ever decoded: Consul itself decodes percent-escapes and then judges another name than the
//! one in the certificate, so what is compared and what is sent are the bytes of the certificate.

use std::fmt;

/// The longest URI that is looked at, in bytes (SPIFFE-ID, section 2.3).
pub const MAX_URI: usize = 2048;

/// The partition and namespace of Consul's Community Edition, and of URIs that name none.
pub const DEFAULT: &str = "default";

/// Which characters an identity may hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Grammar {
    /// The SPIFFE-ID standard: path segments of letters, digits, `.`, `_` and `-`.
    #[default]
    Spiffe,
    /// RFC 3986 `pchar`, for meshes whose service names lie outside the standard. `%2F`, `%25`, `%3F`, `%23` and
    /// escaped control bytes stay refused, since something behind us might decode them.
    PercentEncoding,
}

/// The trust domain of a mesh, such as `11111111-2222-3333-4444-555555555555.consul`.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// Parses a trust domain: lower-case letters, digits, `.`, `_` and `-`, at most 255 bytes (SPIFFE-ID, 2.1).
    ///
    /// # Errors
    /// [`IdentityError::TrustDomain`] for anything else, a port and user information included.
    pub fn parse(text: &str) -> Result<Self, IdentityError> {
        let legal = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(legal) {
            return Err(IdentityError::TrustDomain);
        }
        Ok(Self(text.to_owned()))
    }

    /// The trust domain as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name of a service as operators write it and as the agent is asked for it; case matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName(String);

impl ServiceName {
    /// Takes a name whose identity the verifier would accept under `grammar`.
    ///
    /// # Errors
    /// [`IdentityError::Segment`] for a name that peers would have to refuse, so that it is an error at start and not
    /// a riddle at the first connection.
    pub fn parse(name: &str, grammar: Grammar) -> Result<Self, IdentityError> {
        if name.len() > MAX_URI {
            return Err(IdentityError::TooLong);
        }
        check_segment(&escape(name), grammar)?;
        Ok(Self(name.to_owned()))
    }

    /// The name as written.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An identity of any kind that Consul issues.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum SpiffeId {
    /// A service: the only kind that may take part in a connection.
    Service(SpiffeService),
    /// The trust domain itself, which signs.
    Signing(TrustDomain),
    /// A Consul agent: `/agent/client/dc/…/id/…`.
    Agent,
    /// A Consul server: `/agent/server/dc/…`.
    Server,
    /// A mesh gateway: `/gateway/mesh/dc/…`.
    MeshGateway,
    /// A well-formed SPIFFE ID of a shape that Consul does not issue.
    Other,
}

impl SpiffeId {
    /// Parses the bytes of a URI.
    ///
    /// # Errors
    /// [`IdentityError`] naming the rule that the bytes break.
    pub fn parse(uri: &[u8], grammar: Grammar) -> Result<Self, IdentityError> {
        if uri.len() > MAX_URI {
            return Err(IdentityError::TooLong);
        }
        let uri = std::str::from_utf8(uri).ok().filter(|uri| uri.is_ascii()).ok_or(IdentityError::NotAscii)?;
        let rest = uri.strip_prefix("spiffe://").ok_or(IdentityError::Scheme)?;
        let (authority, path) = match rest.find('/') {
            Some(slash) => (&rest[..slash], Some(&rest[slash + 1..])),
            None => (rest, None),
        };
        let trust_domain = TrustDomain::parse(authority)?;
        let Some(path) = path else {
            return Ok(Self::Signing(trust_domain));
        };
        let segments: Vec<&str> = path.split('/').collect();
        for segment in &segments {
            check_segment(segment, grammar)?;
        }
        let (partition, shape) = match segments.as_slice() {
            ["ap", partition, shape @ ..] => (partition.to_ascii_lowercase(), shape),
            shape => (DEFAULT.to_owned(), shape),
        };
        Ok(match shape {
            ["ns", namespace, "dc", datacenter, "svc", service] => Self::Service(SpiffeService {
                trust_domain,
                partition,
                namespace: (*namespace).to_owned(),
                datacenter: (*datacenter).to_owned(),
                service: (*service).to_owned(),
            }),
            ["agent", "client", "dc", _, "id", _] => Self::Agent,
            ["agent", "server", "dc", _] => Self::Server,
            ["gateway", "mesh", "dc", _] => Self::MeshGateway,
            _ => Self::Other,
        })
    }
}

/// The identity of a service. Equality is equality of every part: the partition in lower case, the rest byte for
/// byte.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct SpiffeService {
    trust_domain: TrustDomain,
    partition: String,
    namespace: String,
    datacenter: String,
    /// As it stands in the URI, so percent-encoded where Consul encodes.
    service: String,
}

impl SpiffeService {
    /// The identity that Consul gives to a service of these names.
    ///
    /// # Errors
    /// [`IdentityError`] when a part cannot stand in an identity under `grammar`.
    pub fn expect(
        trust_domain: TrustDomain,
        partition: &str,
        namespace: &str,
        datacenter: &str,
        service: &str,
        grammar: Grammar,
    ) -> Result<Self, IdentityError> {
        let part = |text: &str| {
            let escaped = escape(text);
            check_segment(&escaped, grammar).map(|()| escaped)
        };
        let expected = Self {
            trust_domain,
            partition: part(&partition.to_ascii_lowercase())?,
            namespace: part(namespace)?,
            datacenter: part(datacenter)?,
            service: part(service)?,
        };
        if expected.to_string().len() > MAX_URI {
            return Err(IdentityError::TooLong);
        }
        Ok(expected)
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The admin partition in lower case; `default` where the URI names none.
    #[must_use]
    pub fn partition(&self) -> &str {
        &self.partition
    }

    /// The namespace.
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// The datacenter.
    #[must_use]
    pub fn datacenter(&self) -> &str {
        &self.datacenter
    }

    /// The name of the service as it stands in the URI.
    #[must_use]
    pub fn service(&self) -> &str {
        &self.service
    }

    /// Whether this identity is that of the service called `name` by operators.
    #[must_use]
    pub fn is_named(&self, name: &ServiceName) -> bool {
        self.service == escape(name.as_str())
    }

    /// The SNI by which Envoy and mesh gateways know the service: `<svc>.<ns>.<dc>.internal.<td>`, with a partition
    /// `<svc>.<ns>.<ap>.<dc>.internal-v1.<td>`. `None` where that is no legal host name.
    #[must_use]
    pub fn server_name(&self) -> Option<String> {
        let Self { trust_domain, partition, namespace, datacenter, service } = self;
        let name = if partition == DEFAULT {
            format!("{service}.{namespace}.{datacenter}.internal.{trust_domain}")
        } else {
            format!("{service}.{namespace}.{partition}.{datacenter}.internal-v1.{trust_domain}")
        };
        rustls_pki_types::DnsName::try_from(name.as_str()).is_ok().then_some(name)
    }
}

impl fmt::Display for SpiffeService {
    /// The URI.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { trust_domain, partition, namespace, datacenter, service } = self;
        write!(f, "spiffe://{trust_domain}")?;
        if partition != DEFAULT {
            write!(f, "/ap/{partition}")?;
        }
        write!(f, "/ns/{namespace}/dc/{datacenter}/svc/{service}")
    }
}

/// The rule that an identity breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityError {
    /// More than [`MAX_URI`] bytes.
    #[error("longer than {MAX_URI} bytes")]
    TooLong,
    /// Bytes outside ASCII.
    #[error("holds bytes that are not ASCII")]
    NotAscii,
    /// The scheme is not literally `spiffe://`.
    #[error("does not begin with spiffe://")]
    Scheme,
    /// The trust domain holds something other than lower-case letters, digits, `.`, `_` and `-`, or nothing.
    #[error("has a trust domain with characters outside a-z 0-9 . _ -, or none")]
    TrustDomain,
    /// A path segment is empty, `.`, `..`, or holds a character that the grammar does not allow.
    #[error("has a path segment that is empty or holds characters outside A-Z a-z 0-9 . _ -")]
    Segment,
}

/// Checks one path segment as it stands in a URI.
fn check_segment(segment: &str, grammar: Grammar) -> Result<(), IdentityError> {
    if matches!(segment, "" | "." | "..") {
        return Err(IdentityError::Segment);
    }
    let mut bytes = segment.bytes();
    while let Some(byte) = bytes.next() {
        let legal = match (byte, grammar) {
            (b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-', _) => true,
            (_, Grammar::Spiffe) => false,
            (b'%', Grammar::PercentEncoding) => {
                let hex = |digit: Option<u8>| digit.and_then(|d| char::from(d).to_digit(16));
                match (hex(bytes.next()), hex(bytes.next())) {
                    (Some(high), Some(low)) => {
                        let escaped = u8::try_from(high * 16 + low).unwrap_or_default();
                        !matches!(escaped, b'/' | b'%' | b'?' | b'#') && !escaped.is_ascii_control()
                    }
                    _ => false,
                }
            }
            (
                b'~' | b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' | b':' | b'@',
                Grammar::PercentEncoding,
            ) => true,
            _ => false,
        };
        if !legal {
            return Err(IdentityError::Segment);
        }
    }
    Ok(())
}

/// Writes a name as Consul writes it into a URI: unreserved characters and `$ & + , : ; = @` stand as they are, every
/// other byte is percent-encoded in upper-case hexadecimal.
fn escape(name: &str) -> String {
    const RAW: &percent_encoding::AsciiSet = &percent_encoding::NON_ALPHANUMERIC
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
    percent_encoding::utf8_percent_encode(name, RAW).to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TD: &str = "11111111-2222-3333-4444-555555555555.consul";

    fn parse(uri: &str) -> Result<SpiffeId, IdentityError> {
        SpiffeId::parse(uri.as_bytes(), Grammar::Spiffe)
    }

    fn service(uri: &str, grammar: Grammar) -> SpiffeService {
        match SpiffeId::parse(uri.as_bytes(), grammar) {
            Ok(SpiffeId::Service(service)) => service,
            other => panic!("{uri} is {other:?}"),
        }
    }

    #[test]
    fn a_service_is_taken_apart_into_its_names() {
        let id = service(&format!("spiffe://{TD}/ns/default/dc/dc1/svc/web"), Grammar::Spiffe);
        assert_eq!(id.trust_domain().as_str(), TD);
        assert_eq!(
            (id.partition(), id.namespace(), id.datacenter(), id.service()),
            ("default", "default", "dc1", "web")
        );
        assert_eq!(id.server_name().as_deref(), Some(&*format!("web.default.dc1.internal.{TD}")));
    }

    #[test]
    fn the_default_partition_is_the_same_written_or_not() {
        let written = service(&format!("spiffe://{TD}/ap/Default/ns/default/dc/dc1/svc/web"), Grammar::Spiffe);
        assert_eq!(written, service(&format!("spiffe://{TD}/ns/default/dc/dc1/svc/web"), Grammar::Spiffe));
        let other = service(&format!("spiffe://{TD}/ap/Team/ns/default/dc/dc1/svc/web"), Grammar::Spiffe);
        assert_eq!(other.partition(), "team");
        assert_eq!(other.server_name().as_deref(), Some(&*format!("web.default.team.dc1.internal-v1.{TD}")));
    }

    #[test]
    fn identities_of_other_kinds_are_told_apart_from_services() {
        for (path, kind) in [
            ("", SpiffeId::Signing(TrustDomain::parse(TD).unwrap())),
            ("/agent/client/dc/dc1/id/node", SpiffeId::Agent),
            ("/ap/x/agent/client/dc/dc1/id/node", SpiffeId::Agent),
            ("/agent/server/dc/dc1", SpiffeId::Server),
            ("/gateway/mesh/dc/dc1", SpiffeId::MeshGateway),
            ("/ns/default/dc/dc1/svc/web/more", SpiffeId::Other),
            ("/ns/default/svc/web", SpiffeId::Other),
        ] {
            assert_eq!(parse(&format!("spiffe://{TD}{path}")), Ok(kind), "{path}");
        }
    }

    #[test]
    fn what_the_standard_forbids_is_refused() {
        let long = format!("spiffe://{TD}/ns/default/dc/dc1/svc/{}", "w".repeat(MAX_URI));
        for (uri, error) in [
            ("SPIFFE://td.consul/ns/default/dc/dc1/svc/web", IdentityError::Scheme),
            ("https://td.consul/ns/default/dc/dc1/svc/web", IdentityError::Scheme),
            ("spiffe:///ns/default/dc/dc1/svc/web", IdentityError::TrustDomain),
            ("spiffe://TD.consul/ns/default/dc/dc1/svc/web", IdentityError::TrustDomain),
            ("spiffe://u@td.consul/ns/default/dc/dc1/svc/web", IdentityError::TrustDomain),
            ("spiffe://td.consul:443/ns/default/dc/dc1/svc/web", IdentityError::TrustDomain),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/web/", IdentityError::Segment),
            ("spiffe://td.consul/", IdentityError::Segment),
            ("spiffe://td.consul/ns//dc/dc1/svc/web", IdentityError::Segment),
            ("spiffe://td.consul/ns/../dc/dc1/svc/web", IdentityError::Segment),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/web?a=1", IdentityError::Segment),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/web#f", IdentityError::Segment),
            ("spiffe://td.consul?a", IdentityError::TrustDomain),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/%77eb", IdentityError::Segment),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/w\u{e9}b", IdentityError::NotAscii),
            ("spiffe://td.consul/ns/default/dc/dc1/svc/w\0b", IdentityError::Segment),
            (&long, IdentityError::TooLong),
        ] {
            assert_eq!(parse(uri), Err(error), "{uri}");
        }
    }

    #[test]
    fn the_escape_hatch_lets_names_through_but_nothing_that_decodes_to_syntax() {
        let base = "spiffe://td.consul/ns/default/dc/dc1/svc/";
        for name in ["a+b", "a~b", "a:b", "a@b", "a$b=c,d&e;f", "a%21b", "%77eb"] {
            service(&format!("{base}{name}"), Grammar::PercentEncoding);
        }
        for name in [
            "a%2Fb", "a%2fb", "a%25b", "a%3Fb", "a%3fb", "a%23b", "a%00b", "a%0ab", "a%7fb", "a%", "a%2", "a%zz", "a?b",
        ] {
            let parsed = SpiffeId::parse(format!("{base}{name}").as_bytes(), Grammar::PercentEncoding);
            assert_eq!(parsed, Err(IdentityError::Segment), "{name}");
        }
    }

    #[test]
    fn an_encoded_name_is_another_name_than_the_decoded_one() {
        let base = "spiffe://td.consul/ns/default/dc/dc1/svc/";
        assert_ne!(
            service(&format!("{base}%77eb"), Grammar::PercentEncoding),
            service(&format!("{base}web"), Grammar::PercentEncoding)
        );
    }

    #[test]
    fn names_are_expected_in_the_form_in_which_consul_writes_them() {
        let td = TrustDomain::parse("td.consul").unwrap();
        let expected =
            SpiffeService::expect(td, "Default", "default", "dc1", "a!(b)*+~", Grammar::PercentEncoding).unwrap();
        assert_eq!(expected.to_string(), "spiffe://td.consul/ns/default/dc/dc1/svc/a%21%28b%29%2A+~");
        assert!(expected.is_named(&ServiceName::parse("a!(b)*+~", Grammar::PercentEncoding).unwrap()));
    }

    #[test]
    fn a_name_that_peers_would_refuse_is_refused_at_once() {
        for name in ["", ".", "..", "a/b", "a b", "a%b", "w\u{e9}b"] {
            assert!(ServiceName::parse(name, Grammar::Spiffe).is_err(), "{name:?}");
        }
        assert!(ServiceName::parse("a b", Grammar::PercentEncoding).is_ok());
        assert!(ServiceName::parse("a/b", Grammar::PercentEncoding).is_err());
    }

    proptest! {
        #[test]
        fn parsing_what_was_written_gives_the_same_identity(
            partition in "(default|[a-z0-9_-]{1,8})", namespace in "[A-Za-z0-9._-]{1,8}a", datacenter in "[a-z0-9]{1,8}",
            name in "[A-Za-z0-9._~+:@!(*-]{1,20}a",
        ) {
            let td = TrustDomain::parse("td.consul").unwrap();
            let grammar = Grammar::PercentEncoding;
            let id = SpiffeService::expect(td, &partition, &namespace, &datacenter, &name, grammar).unwrap();
            prop_assert_eq!(SpiffeId::parse(id.to_string().as_bytes(), grammar), Ok(SpiffeId::Service(id)));
        }

        #[test]
        fn no_bytes_make_the_parser_panic(bytes in any::<Vec<u8>>(), tail in "[ -~]{0,80}") {
            let _ = SpiffeId::parse(&bytes, Grammar::PercentEncoding);
            let uri = format!("spiffe://td.consul/{tail}");
            if let Ok(SpiffeId::Service(id)) = SpiffeId::parse(uri.as_bytes(), Grammar::Spiffe) {
                let again = SpiffeId::parse(id.to_string().as_bytes(), Grammar::Spiffe);
                prop_assert_eq!(again, Ok(SpiffeId::Service(id)));
            }
        }
    }
}
