//! The value of `-upstream`: `name[.service|.query]:[address:]port`.

use super::go;

/// One `-upstream` flag.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct UpstreamFlag {
    pub(crate) name: String,
    pub(crate) query: bool,
    /// The local address, `127.0.0.1` where none is written.
    pub(crate) address: Option<String>,
    pub(crate) port: u16,
}

/// Reads one value. An IPv6 address, which the original cannot take, is written in brackets.
pub(crate) fn parse(text: &str) -> Result<UpstreamFlag, String> {
    const SHAPE: &str = "write name:port, name:address:port or name.query:port";
    let (target, listen) = text.split_once(':').ok_or_else(|| format!("there is no port in it; {SHAPE}"))?;
    let (name, query) = match target.rsplit_once('.') {
        None => (target, false),
        Some((name, "service")) => (name, false),
        Some((name, "query")) => (name, true),
        Some((_, other)) => return Err(format!("\".{other}\" is neither \".service\" nor \".query\"; {SHAPE}")),
    };
    if name.is_empty() {
        return Err(format!("there is no name in it; {SHAPE}"));
    }
    let (address, port) = match listen.rsplit_once(':') {
        None => (None, listen),
        Some((address, port)) => (Some(address), port),
    };
    let address = match address {
        Some(address) if address.contains(':') && !(address.starts_with('[') && address.ends_with(']')) => {
            return Err(format!("\"{address}\" is no address; {SHAPE}"));
        }
        Some("") => None,
        Some(address) => Some(address.trim_matches(['[', ']']).to_owned()),
        None => None,
    };
    let port = go::parse_port(port).ok_or_else(|| format!("\"{port}\" is no port from 1 to 65535; {SHAPE}"))?;
    Ok(UpstreamFlag { name: name.to_owned(), query, address, port })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(name: &str, query: bool, address: Option<&str>, port: u16) -> UpstreamFlag {
        UpstreamFlag { name: name.to_owned(), query, address: address.map(str::to_owned), port }
    }

    #[test]
    fn every_documented_form_is_read() {
        for (text, expected) in [
            ("db:1234", upstream("db", false, None, 1234)),
            ("db.service:1234", upstream("db", false, None, 1234)),
            ("db.query:8181", upstream("db", true, None, 8181)),
            ("db:127.0.0.55:8282", upstream("db", false, Some("127.0.0.55"), 8282)),
            ("db:[::1]:0x10", upstream("db", false, Some("::1"), 16)),
        ] {
            assert_eq!(parse(text).as_ref(), Ok(&expected), "{text}");
        }
    }

    #[test]
    fn what_is_not_an_upstream_is_refused_in_words() {
        for (text, word) in [
            ("foo", "no port"),
            ("db:hello", "\"hello\" is no port"),
            ("db:a:1:b", "is no address"),
            ("db.bad:1", "\".bad\" is neither"),
            (":1", "no name"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(word), "{text}: {error}");
        }
    }
}
