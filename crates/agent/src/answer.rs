//! An answer before it is put on the wire.

use bytes::Bytes;
use serde_json::Value;

use crate::dialect::Dialect;

/// Status, headers and body of one answer.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: Vec<(&'static str, String)>,
    pub(crate) body: Bytes,
    /// Leaves out what the agent adds to each answer of a known endpoint.
    pub(crate) bare: bool,
}

impl Answer {
    /// 200 with JSON. The old dialect ends it with a newline.
    pub(crate) fn json(dialect: Dialect, value: &Value) -> Self {
        Self::json_text(dialect, 200, value)
    }

    pub(crate) fn json_text(dialect: Dialect, status: u16, value: &Value) -> Self {
        let mut text = escape(&value.to_string());
        if !dialect.is_today() {
            text.push('\n');
        }
        Self {
            status,
            headers: vec![("Content-Type", "application/json".to_owned())],
            body: Bytes::from(text),
            bare: false,
        }
    }

    /// Plain text, which is how Consul sends every error.
    pub(crate) fn text(status: u16, text: impl Into<String>) -> Self {
        Self {
            status,
            headers: vec![("Content-Type", "text/plain; charset=utf-8".to_owned())],
            body: Bytes::from(text.into()),
            bare: false,
        }
    }

    /// 200 without a body, the answer to most writes. Only the dialect of today gives it a type.
    pub(crate) fn done(dialect: Dialect) -> Self {
        let headers =
            if dialect.is_today() { vec![("Content-Type", "application/json".to_owned())] } else { Vec::new() };
        Self { status: 200, headers, body: Bytes::new(), bare: false }
    }

    pub(crate) fn forbidden(text: impl Into<String>) -> Self {
        Self::text(403, text)
    }

    #[must_use]
    pub(crate) fn with(mut self, name: &'static str, value: impl ToString) -> Self {
        self.headers.retain(|(n, _)| *n != name);
        self.headers.push((name, value.to_string()));
        self
    }

    #[must_use]
    pub(crate) fn bare(mut self) -> Self {
        self.bare = true;
        self
    }
}

/// Go's encoder writes these three as escapes, so that JSON can stand in HTML.
fn escape(json: &str) -> String {
    let mut out = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '<' => out.push_str("\\u003c"),
            '>' => out.push_str("\\u003e"),
            '&' => out.push_str("\\u0026"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_arrow_is_escaped_as_go_does_it() {
        let answer = Answer::json(Dialect::Today, &serde_json::json!({"Reason": "a => b"}));
        assert_eq!(&answer.body[..], br#"{"Reason":"a =\u003e b"}"#);
    }
}
