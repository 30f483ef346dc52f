//! A request as the routes see it: path, parameters, token, body.

use std::time::Duration;

use bytes::Bytes;
use http::HeaderMap;
use percent_encoding::percent_decode_str;
use serde_json::{Map, Value};

use crate::answer::Answer;
use crate::dialect::Dialect;

/// One request, read whole.
#[derive(Debug)]
pub(crate) struct Request {
    pub(crate) method: http::Method,
    /// Decoded path, without the query.
    pub(crate) path: String,
    pub(crate) query: Vec<(String, String)>,
    pub(crate) token: Option<String>,
    pub(crate) namespace_header: bool,
    pub(crate) partition_header: bool,
    pub(crate) body: Bytes,
}

impl Request {
    pub(crate) fn new(method: http::Method, uri: &http::Uri, headers: &HeaderMap, body: Bytes) -> Self {
        let query = parse_query(uri.query().unwrap_or_default());
        let text =
            |name: &str| headers.get(name).and_then(|v| v.to_str().ok()).map(str::trim).filter(|v| !v.is_empty());
        let bearer = text("authorization").and_then(|v| {
            let (scheme, token) = v.split_once(' ')?;
            scheme.eq_ignore_ascii_case("bearer").then_some(token.trim())
        });
        let token = query
            .iter()
            .find(|(k, v)| k == "token" && !v.is_empty())
            .map(|(_, v)| v.as_str())
            .or_else(|| text("x-consul-token"))
            .or(bearer)
            .map(str::to_owned);
        Self {
            method,
            path: percent_decode_str(uri.path()).decode_utf8_lossy().into_owned(),
            query,
            token,
            namespace_header: text("x-consul-namespace").is_some(),
            partition_header: text("x-consul-partition").is_some(),
            body,
        }
    }

    pub(crate) fn param(&self, name: &str) -> Option<&str> {
        self.query.iter().find(|(k, _)| k == name).map(|(_, v)| v.as_str())
    }

    /// A parameter that is there and not `false`: `?passing`, `?passing=1`.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.param(name).is_some_and(|v| !matches!(v, "0" | "false" | "f" | "F" | "FALSE" | "False"))
    }

    /// Refuses what only Consul Enterprise has.
    pub(crate) fn check_enterprise(&self, dialect: Dialect) -> Result<(), Answer> {
        if self.param("ns").is_some_and(|v| !v.is_empty()) {
            return Err(Answer::text(
                400,
                dialect.bad_request("Invalid query parameter: \"ns\" - Namespaces are a Consul Enterprise feature"),
            ));
        }
        if self.namespace_header {
            return Err(Answer::text(
                400,
                dialect
                    .bad_request("Invalid header: \"X-Consul-Namespace\" - Namespaces are a Consul Enterprise feature"),
            ));
        }
        if dialect.is_today() {
            if self.param("partition").is_some_and(|v| !v.is_empty()) {
                return Err(Answer::text(
                    400,
                    "Invalid query parameter: \"partition\" - Partitions are a Consul Enterprise feature",
                ));
            }
            if self.partition_header {
                return Err(Answer::text(
                    400,
                    "Invalid header: \"X-Consul-Partition\" - Partitions are a Consul Enterprise feature",
                ));
            }
        }
        Ok(())
    }

    /// Blocking and consistency parameters.
    pub(crate) fn blocking(&self) -> Result<Blocking, Answer> {
        let stale = self.flag("stale");
        let consistent = self.flag("consistent");
        if stale && consistent {
            return Err(Answer::text(400, "Cannot specify ?stale with ?consistent, conflicting semantics."));
        }
        let wait = match self.param("wait").filter(|v| !v.is_empty()) {
            None => None,
            // Go takes a negative duration; it means none.
            Some(text) if text.starts_with('-') && go_duration(&text[1..]).is_some() => None,
            Some(text) => Some(go_duration(text).ok_or_else(|| Answer::text(400, "Invalid wait time"))?),
        };
        let index = match self.param("index").filter(|v| !v.is_empty()) {
            None => 0,
            Some(text) => text.parse().map_err(|_| Answer::text(400, "Invalid index"))?,
        };
        let hash = self.param("hash").filter(|v| !v.is_empty()).map(str::to_owned);
        Ok(Blocking { index, hash, wait, stale, consistent, cached: self.flag("cached") })
    }

    /// The body as a JSON object, with Go's texts for what is wrong with it.
    pub(crate) fn json_object(&self) -> Result<Map<String, Value>, String> {
        if self.body.iter().all(u8::is_ascii_whitespace) {
            return Err("EOF".to_owned());
        }
        // Go's decoder reads one value and does not look at what stands behind it.
        let mut values = serde_json::Deserializer::from_slice(&self.body).into_iter::<Value>();
        match values.next().unwrap_or(Ok(Value::Null)) {
            Ok(Value::Object(map)) => Ok(map),
            Ok(_) => Err("json: cannot unmarshal value into Go value".to_owned()),
            Err(e) if e.is_eof() => Err("unexpected EOF".to_owned()),
            Err(e) => Err(format!("invalid JSON: {e}")),
        }
    }
}

/// Parsed blocking parameters.
#[derive(Debug, Clone)]
pub(crate) struct Blocking {
    pub(crate) index: u64,
    pub(crate) hash: Option<String>,
    pub(crate) wait: Option<Duration>,
    pub(crate) stale: bool,
    pub(crate) consistent: bool,
    pub(crate) cached: bool,
}

/// Maps the keys of a request body onto the known ones without regard to case, as Go's decoder does; with
/// `underscores` also snake_case. An unknown key is an error, as Consul has it since 1.3.
pub(crate) fn known_keys(
    object: Map<String, Value>,
    known: &[&'static str],
    underscores: bool,
) -> Result<Map<String, Value>, String> {
    let mut out = Map::new();
    for (key, value) in object {
        let plain = if underscores { key.replace('_', "") } else { key.clone() };
        match known.iter().find(|k| k.eq_ignore_ascii_case(&plain)) {
            Some(name) => {
                out.insert((*name).to_owned(), value);
            }
            None => return Err(format!("json: unknown field \"{key}\"")),
        }
    }
    Ok(out)
}

/// A duration as Go writes it: `10s`, `1h30m`, `1500ms`, `1.5s`, `0`.
pub(crate) fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest.is_empty() {
        return None;
    }
    let mut seconds = 0.0_f64;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, tail) = rest.split_at(digits);
        let number: f64 = number.parse().ok()?;
        let unit_len = tail.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(tail.len());
        let (unit, tail) = tail.split_at(unit_len);
        seconds += number
            * match unit {
                "ns" => 1e-9,
                "us" | "µs" => 1e-6,
                "ms" => 1e-3,
                "s" => 1.0,
                "m" => 60.0,
                "h" => 3600.0,
                _ => return None,
            };
        rest = tail;
    }
    // Go counts nanoseconds in 63 bits.
    Duration::try_from_secs_f64(seconds).ok().filter(|d| d.as_nanos() <= i64::MAX as u128)
}

fn parse_query(query: &str) -> Vec<(String, String)> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        })
        .collect()
}

fn decode(text: &str) -> String {
    let text = text.replace('+', " ");
    percent_decode_str(&text).decode_utf8_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_writes_them() {
        assert_eq!(go_duration("1500ms"), Some(Duration::from_millis(1500)));
        assert_eq!(go_duration("1m30s"), Some(Duration::from_secs(90)));
        assert_eq!(go_duration("72h"), Some(Duration::from_secs(72 * 3600)));
        for bad in ["abc", "10", "s", "", "-5s", "1x"] {
            assert_eq!(go_duration(bad), None, "{bad}");
        }
    }

    #[test]
    fn keys_are_matched_without_regard_to_case_and_unknown_ones_are_named() {
        let object = |text: &str| match serde_json::from_str(text).unwrap() {
            Value::Object(map) => map,
            _ => Map::new(),
        };
        let got = known_keys(object(r#"{"target":1}"#), &["Target"], false).unwrap();
        assert!(got.contains_key("Target"));
        let got = known_keys(object(r#"{"local_bind_port":1}"#), &["LocalBindPort"], true).unwrap();
        assert!(got.contains_key("LocalBindPort"));
        let err = known_keys(object(r#"{"Foo":1}"#), &["Target"], false).unwrap_err();
        assert_eq!(err, "json: unknown field \"Foo\"");
    }
}
