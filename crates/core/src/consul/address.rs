//! Where the agent listens, as operators write it.

use std::{
    fmt,
    path::{Path, PathBuf},
};

/// The address of the agent: `CONSUL_HTTP_ADDR` or `-http-addr`.
///
/// The forms are those that Consul's own tools take: `host:port`, `http://…`, `https://…` and `unix:///path`, the
/// first three with an optional path prefix for agents behind a reverse proxy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AgentAddress {
    endpoint: Endpoint,
    prefix: String,
}

/// How the agent is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// Plain HTTP over TCP.
    Http(Authority),
    /// HTTPS; the transport comes from outside, since it needs a TLS library.
    Https(Authority),
    /// Plain HTTP over a unix socket.
    Unix(PathBuf),
}

/// Host and port of the agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Authority {
    /// A host name or IP address; an IPv6 address without its brackets.
    pub host: String,
    /// The TCP port.
    pub port: u16,
}

/// The port on which agents serve plain HTTP.
const HTTP_PORT: u16 = 8500;

/// The port on which agents by custom serve HTTPS.
const HTTPS_PORT: u16 = 8501;

impl AgentAddress {
    /// Parses an address. With `https` set (`CONSUL_HTTP_SSL=true`) TCP addresses mean HTTPS even if they say
    /// `http://`, as Consul has it since 1.8.
    ///
    /// # Errors
    /// [`AddressError`], which says what to write instead.
    pub fn parse(text: &str, https: bool) -> Result<Self, AddressError> {
        let text = text.trim();
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.bytes().any(|byte| byte.is_ascii_control() || byte == b' ') {
            return Err(AddressError::Characters);
        }
        let (https, rest) = match text.split_once("://") {
            Some(("unix", path)) => return Self::unix(path),
            Some(("http" | "tcp", rest)) => (https, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => return Err(AddressError::Scheme(scheme.to_owned())),
            None => (https, text),
        };
        let (authority, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        if rest.contains(['?', '#']) || path.contains('%') || path.split('/').any(|part| matches!(part, "." | "..")) {
            return Err(AddressError::Path);
        }
        let authority = Authority::parse(authority, if https { HTTPS_PORT } else { HTTP_PORT })?;
        let endpoint = if https { Endpoint::Https(authority) } else { Endpoint::Http(authority) };
        Ok(Self { endpoint, prefix: path.trim_end_matches('/').to_owned() })
    }

    fn unix(path: &str) -> Result<Self, AddressError> {
        if !Path::new(path).is_absolute() {
            return Err(AddressError::UnixPath);
        }
        Ok(Self { endpoint: Endpoint::Unix(PathBuf::from(path)), prefix: String::new() })
    }

    /// How the agent is reached.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// What stands before `/v1/…` in every request: empty, or a path that begins with a slash and does not end in
    /// one.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }
}

impl Default for AgentAddress {
    /// `127.0.0.1:8500`, where an agent listens when nothing is configured.
    fn default() -> Self {
        let authority = Authority { host: "127.0.0.1".to_owned(), port: HTTP_PORT };
        Self { endpoint: Endpoint::Http(authority), prefix: String::new() }
    }
}

impl fmt::Display for AgentAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.endpoint {
            Endpoint::Http(authority) => write!(f, "http://{authority}{}", self.prefix),
            Endpoint::Https(authority) => write!(f, "https://{authority}{}", self.prefix),
            Endpoint::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

impl Authority {
    fn parse(text: &str, default_port: u16) -> Result<Self, AddressError> {
        if text.contains('@') {
            return Err(AddressError::UserInfo);
        }
        let (host, port) = if let Some(rest) = text.strip_prefix('[') {
            let (host, after) = rest.split_once(']').ok_or(AddressError::Ipv6)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| AddressError::Ipv6)?;
            let port = match after {
                "" => None,
                after => Some(after.strip_prefix(':').ok_or(AddressError::Ipv6)?),
            };
            (host, port)
        } else {
            match text.split_once(':') {
                Some((_, port)) if port.contains(':') => return Err(AddressError::Ipv6),
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_' | b':');
        if host.is_empty() || host.len() > 255 || !host.bytes().all(legal) {
            return Err(AddressError::Host);
        }
        let port = match port {
            None => default_port,
            Some(port) => match port.parse() {
                Ok(port) if port != 0 => port,
                _ => return Err(AddressError::Port(port.to_owned())),
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// Why an address of the agent cannot be used, and what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Nothing there.
    #[error("the agent's address is empty; write host:port, http://host:port, https://host:port or unix:///path")]
    Empty,
    /// Spaces or control characters.
    #[error("the agent's address holds spaces or control characters")]
    Characters,
    /// A scheme that is not known.
    #[error("unknown scheme {0:?} in the agent's address; write http://, https:// or unix:// before it, or no scheme")]
    Scheme(String),
    /// A relative path of a unix socket.
    #[error("the path of the agent's unix socket must be absolute; write unix:///path/to/socket with three slashes")]
    UnixPath,
    /// A path prefix with what does not belong there.
    #[error(
        "the path behind the agent's address must be plain, without ?, #, %, . and ..; write http://host:port/path"
    )]
    Path,
    /// A user name in the address.
    #[error("the agent's address holds a user name; set CONSUL_HTTP_AUTH=user:password instead")]
    UserInfo,
    /// An IPv6 address that is none or stands without brackets.
    #[error("an IPv6 address of the agent stands in brackets; write [::1]:8500")]
    Ipv6,
    /// No host, or one with characters that no host has.
    #[error("the host in the agent's address is missing or has illegal characters; write host:port")]
    Host,
    /// A port that is none.
    #[error("{0:?} is no port; the agent's address ends in a number from 1 to 65535, as in 127.0.0.1:8500")]
    Port(String),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_form_that_consul_takes_is_read() {
        for (text, shown) in [
            ("127.0.0.1:8500", "http://127.0.0.1:8500"),
            ("agent", "http://agent:8500"),
            ("http://agent:80", "http://agent:80"),
            ("tcp://agent:80", "http://agent:80"),
            ("https://agent", "https://agent:8501"),
            ("https://agent:8501/consul/", "https://agent:8501/consul"),
            ("http://[::1]:8500/a/b", "http://[::1]:8500/a/b"),
            ("[fe80::1]", "http://[fe80::1]:8500"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(AgentAddress::parse(text, false).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn the_ssl_variable_turns_plain_addresses_into_https_but_not_sockets() {
        for (text, shown) in [
            ("agent:8500", "https://agent:8500"),
            ("http://agent:8500", "https://agent:8500"),
            ("unix:///run/consul.sock", "unix:///run/consul.sock"),
        ] {
            assert_eq!(AgentAddress::parse(text, true).unwrap().to_string(), shown, "{text}");
        }
    }

    #[test]
    fn what_is_wrong_with_an_address_is_told_with_a_remedy() {
        for (text, remedy) in [
            ("", "host:port"),
            ("ftp://agent", "http://"),
            ("unix://run/consul.sock", "unix:///"),
            ("http://agent:8500/?token=x", "http://host:port/path"),
            ("http://agent:8500/a/../b", "http://host:port/path"),
            ("user:pass@agent:8500", "CONSUL_HTTP_AUTH"),
            ("::1:8500", "[::1]:8500"),
            ("[agent]:8500", "[::1]:8500"),
            ("agent:0", "1 to 65535"),
            ("agent:http", "1 to 65535"),
            (":8500", "host:port"),
            ("a b:8500", "spaces"),
        ] {
            let error = AgentAddress::parse(text, false).unwrap_err().to_string();
            assert!(error.contains(remedy), "{text}: {error}");
        }
    }
}
