//! JSON, read by `serde_json`.
//!
//! The crate tells a line only for syntax errors, so values are taken as slices of the text (`RawValue`): where a
//! slice begins is where its value stands.

use std::fmt;

use serde::de::{Deserializer as _, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;

use super::{
    problem::Problem,
    tree::{Lines, MAX_DEPTH, Node, Value, add},
};

/// Reads `text` into a tree.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let whole: &RawValue = serde_json::from_str(text).map_err(|error| syntax(&error, 0))?;
    Reader { text, lines: Lines::of(text) }.node(whole, 0)
}

struct Reader<'a> {
    text: &'a str,
    lines: Lines,
}

impl<'a> Reader<'a> {
    fn line(&self, raw: &'a RawValue) -> usize {
        // Both point into the same text, and a raw value never begins before it.
        self.lines.at((raw.get().as_ptr() as usize).saturating_sub(self.text.as_ptr() as usize))
    }

    fn node(&self, raw: &'a RawValue, depth: usize) -> Result<Node, Problem> {
        let line = self.line(raw);
        if depth > MAX_DEPTH {
            return Err(Problem::new("values are nested too deeply").at(line));
        }
        let mut input = serde_json::Deserializer::from_str(raw.get());
        let value = match raw.get().as_bytes().first() {
            Some(b'{') => {
                let members = input.deserialize_map(Members).map_err(|error| syntax(&error, line))?;
                let mut entries = Vec::with_capacity(members.len());
                for (key, member) in members {
                    let at = self.line(member);
                    let node = self.node(member, depth + 1).map_err(|problem| problem.key(key.clone()))?;
                    add(&mut entries, key, at, node)?;
                }
                Value::Map(entries)
            }
            Some(b'[') => {
                let items = input.deserialize_seq(Items).map_err(|error| syntax(&error, line))?;
                Value::List(items.into_iter().map(|item| self.node(item, depth + 1)).collect::<Result<_, _>>()?)
            }
            _ => match serde_json::from_str(raw.get()).map_err(|error| syntax(&error, line))? {
                serde_json::Value::Bool(value) => Value::Bool(value),
                serde_json::Value::Number(number) => {
                    number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer)
                }
                serde_json::Value::String(text) => Value::Text(text),
                _ => Value::Null,
            },
        };
        Ok(Node { line, value })
    }
}

fn syntax(error: &serde_json::Error, line: usize) -> Problem {
    Problem::new(format!("not JSON: {error}")).at(if line > 0 { line } else { error.line() })
}

/// The members of an object in order, duplicates included.
struct Members;

impl<'de> Visitor<'de> for Members {
    type Value = Vec<(String, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut members = Vec::new();
        while let Some(member) = map.next_entry()? {
            members.push(member);
        }
        Ok(members)
    }
}

/// The items of an array.
struct Items;

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Self::Value, A::Error> {
        let mut all = Vec::new();
        while let Some(item) = items.next_element()? {
            all.push(item);
        }
        Ok(all)
    }
}
