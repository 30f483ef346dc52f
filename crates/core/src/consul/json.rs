//! Reading the agent's JSON as tolerantly as its own tools do.
//!
//! Lists and maps may be `null`, absent or empty for the same meaning, numbers may come as numeric strings, and one
//! value of a wrong type must not take the rest with it.

use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value};

/// Reads `null` as the default.
pub(super) fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// An object whose fields are read one by one. A field of a wrong type is listed as a problem and counts as absent;
/// a field that is not asked for is ignored.
pub(super) struct Fields<'a> {
    object: Option<&'a Map<String, Value>>,
    path: String,
}

/// What was wrong with the fields that were read.
pub(super) type Problems = Vec<String>;

impl<'a> Fields<'a> {
    /// The fields of `value`, called `path` in problems; `null` has none.
    pub(super) fn of(value: &'a Value, path: impl Into<String>, problems: &mut Problems) -> Self {
        let path = path.into();
        if !value.is_object() && !value.is_null() {
            problems.push(wrong(&path, "an object", value));
        }
        Self { object: value.as_object(), path }
    }

    fn get(&self, key: &str) -> Option<&'a Value> {
        self.object?.get(key).filter(|value| !value.is_null())
    }

    /// The name of a field in problems.
    pub(super) fn name(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    /// Whether the field is there at all.
    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// A text; an empty one counts as absent.
    pub(super) fn text(&self, key: &str, problems: &mut Problems) -> Option<String> {
        match self.get(key)? {
            Value::String(text) if text.is_empty() => None,
            Value::String(text) => Some(text.clone()),
            other => {
                problems.push(wrong(&self.name(key), "a string", other));
                None
            }
        }
    }

    /// A whole number, also as a numeric string; zero counts as absent. One beyond `most` is cut to it, and listed.
    pub(super) fn number(&self, key: &str, most: u64, problems: &mut Problems) -> Option<u64> {
        let value = self.get(key)?;
        let number = match value {
            Value::Number(number) => number.as_u64().or_else(|| whole(number.as_f64()?)),
            Value::String(text) if text.trim().is_empty() => return None,
            Value::String(text) => text.trim().parse().ok(),
            _ => None,
        };
        match number {
            None => {
                problems.push(wrong(&self.name(key), "a whole number", value));
                None
            }
            Some(0) => None,
            Some(number) if number > most => {
                problems.push(format!("{}: {number} is more than {most}, which is used instead", self.name(key)));
                Some(most)
            }
            Some(number) => Some(number),
        }
    }

    /// A port; zero counts as absent.
    pub(super) fn port(&self, key: &str, problems: &mut Problems) -> Option<u16> {
        let mut own = Problems::new();
        let number = self.number(key, u64::MAX, &mut own)?;
        problems.append(&mut own);
        let port = u16::try_from(number).ok();
        if port.is_none() {
            problems.push(format!("{}: {number} is no port", self.name(key)));
        }
        port
    }

    /// A truth value; absent counts as false.
    pub(super) fn flag(&self, key: &str, problems: &mut Problems) -> bool {
        match self.get(key) {
            None => false,
            Some(Value::Bool(flag)) => *flag,
            Some(other) => {
                problems.push(wrong(&self.name(key), "true or false", other));
                false
            }
        }
    }

    /// The fields of an object within; none where it is absent.
    pub(super) fn fields(&self, key: &str, problems: &mut Problems) -> Self {
        Self::of(self.get(key).unwrap_or(&Value::Null), self.name(key), problems)
    }

    /// The entries of a list; none where it is absent.
    pub(super) fn list(&self, key: &str, problems: &mut Problems) -> &'a [Value] {
        match self.get(key) {
            None => &[],
            Some(Value::Array(list)) => list,
            Some(other) => {
                problems.push(wrong(&self.name(key), "a list", other));
                &[]
            }
        }
    }

    /// The texts of a list.
    pub(super) fn texts(&self, key: &str, problems: &mut Problems) -> Vec<String> {
        self.list(key, problems).iter().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    }

    /// The pairs of a map of texts.
    pub(super) fn pairs(&self, key: &str, problems: &mut Problems) -> Vec<(String, String)> {
        let fields = self.fields(key, problems);
        let pairs = fields.object.into_iter().flatten();
        pairs.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
    }
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "whole, not negative and below 2^53")]
fn whole(number: f64) -> Option<u64> {
    const EXACT: f64 = 9_007_199_254_740_992.0;
    (number.fract() == 0.0 && (0.0..EXACT).contains(&number)).then_some(number as u64)
}

fn wrong(name: &str, expected: &str, found: &Value) -> String {
    let found = match found {
        Value::Null => "nothing",
        Value::Bool(_) => "a truth value",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    };
    format!("{name}: expected {expected}, found {found}; it is ignored")
}
