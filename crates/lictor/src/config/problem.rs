//! What is wrong with a configuration, in one message.

use std::fmt;

/// One thing that is wrong: where, what, and what to write instead.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Problem {
    /// The file, or the flag or variable that said it.
    origin: String,
    line: usize,
    /// The outermost key last, since errors travel outward.
    keys: Vec<String>,
    what: String,
    instead: String,
    unknown_key: bool,
}

impl Problem {
    pub(crate) fn new(what: impl Into<String>) -> Self {
        Self { what: what.into(), ..Self::default() }
    }

    /// What to write instead.
    pub(crate) fn instead(mut self, instead: impl Into<String>) -> Self {
        self.instead = instead.into();
        self
    }

    /// Puts `key` in front of the path.
    pub(crate) fn key(mut self, key: impl Into<String>) -> Self {
        self.keys.push(key.into());
        self
    }

    /// Names the line, unless a more exact one is there already.
    pub(crate) fn at(mut self, line: usize) -> Self {
        if self.line == 0 {
            self.line = line;
        }
        self
    }

    /// The keys of the value that is meant, the outermost first.
    pub(crate) fn path(&self) -> impl Iterator<Item = &str> {
        self.keys.iter().rev().map(String::as_str)
    }

    /// For values that are not written in a file, so that nothing is said about quotes.
    pub(crate) fn without_quotes(mut self) -> Self {
        self.what = self.what.replace(", without quotes", "").replace(" without quotes", "").replace(" in quotes", "");
        self
    }

    /// Whether there is just no such key.
    pub(crate) fn is_unknown_key(&self) -> bool {
        self.unknown_key
    }

    /// Names the file, flag or variable, unless there is one already.
    pub(crate) fn said_by(mut self, origin: &str) -> Self {
        if self.origin.is_empty() {
            origin.clone_into(&mut self.origin);
        }
        self
    }
}

impl fmt::Display for Problem {
    /// `file:line: key: what is wrong; what to write instead`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.origin.is_empty() {
            write!(f, "{}:", self.origin)?;
            if self.line > 0 {
                write!(f, "{}:", self.line)?;
            }
            f.write_str(" ")?;
        }
        if !self.keys.is_empty() {
            write!(f, "{}: ", self.path().collect::<Vec<_>>().join("."))?;
        }
        f.write_str(&self.what)?;
        if !self.instead.is_empty() {
            write!(f, "; {}", self.instead)?;
        }
        Ok(())
    }
}

impl std::error::Error for Problem {}

impl serde::de::Error for Problem {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self::new(message.to_string())
    }

    fn invalid_type(found: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::new(format!("expected {expected}, found {}", in_words(found)))
    }

    fn invalid_value(found: serde::de::Unexpected<'_>, expected: &dyn serde::de::Expected) -> Self {
        Self::invalid_type(found, expected)
    }

    fn unknown_field(field: &str, expected: &'static [&'static str]) -> Self {
        let mut problem = unknown("there is no such key", field, expected).key(field);
        problem.unknown_key = true;
        problem
    }

    fn unknown_variant(variant: &str, expected: &'static [&'static str]) -> Self {
        // There are few choices, and the nearest of "1.2" and "1.3" says nothing.
        Self::new(format!("\"{variant}\" is not one of the choices"))
            .instead(format!("known here: {}", expected.join(", ")))
    }
}

/// A problem with a word that is not among the known ones, with the nearest of them.
pub(crate) fn unknown(what: &str, word: &str, known: &[&str]) -> Problem {
    let nearest = nearest(word, known);
    let instead = match nearest {
        Some(nearest) => format!("did you mean \"{nearest}\"?"),
        None => format!("known here: {}", known.join(", ")),
    };
    Problem::new(what).instead(instead)
}

/// The known word that looks most like `word`, if one does.
pub(crate) fn nearest<'a>(word: &str, known: &[&'a str]) -> Option<&'a str> {
    known
        .iter()
        .map(|candidate| (strsim::jaro_winkler(&word.to_lowercase(), candidate), *candidate))
        .filter(|(likeness, _)| *likeness > 0.8)
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .map(|(_, candidate)| candidate)
}

fn in_words(found: serde::de::Unexpected<'_>) -> String {
    use serde::de::Unexpected;
    match found {
        Unexpected::Str(text) => format!("the text \"{text}\""),
        Unexpected::Signed(number) => format!("the number {number}"),
        Unexpected::Unsigned(number) => format!("the number {number}"),
        Unexpected::Float(number) => format!("the number {number}"),
        Unexpected::Bool(value) => format!("{value}"),
        Unexpected::Unit | Unexpected::Option => "nothing".to_owned(),
        Unexpected::Seq => "a list".to_owned(),
        Unexpected::Map => "a block".to_owned(),
        other => other.to_string(),
    }
}
