//! A configuration as it was written, whatever the format: values with the lines they stand on.
//!
//! The four formats are read into this one shape by their own crates, so that everything after it, the typed reading
//! and its error messages, exists once.

use super::problem::Problem;

/// The deepest nesting that is read. The schema needs four levels.
pub(crate) const MAX_DEPTH: usize = 16;

/// A value and the line on which it begins, counted from 1; 0 where there are no lines.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Node {
    pub(crate) line: usize,
    pub(crate) value: Value,
}

/// What can stand in a configuration file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Integer(i64),
    Float(f64),
    Text(String),
    List(Vec<Node>),
    Map(Vec<Entry>),
}

/// One key of a map with the line of the key.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Entry {
    pub(crate) key: String,
    pub(crate) line: usize,
    pub(crate) node: Node,
}

impl Node {
    /// An empty map without a line.
    pub(crate) fn empty() -> Self {
        Self { line: 0, value: Value::Map(Vec::new()) }
    }

    /// The line of the entry at `path`, if it is there with a value.
    pub(crate) fn line_of<'a>(&self, path: impl Iterator<Item = &'a str>) -> Option<usize> {
        let (mut node, mut line) = (self, self.line);
        for key in path {
            let Value::Map(entries) = &node.value else { return None };
            let entry = entries.iter().find(|entry| entry.key == key)?;
            (node, line) = (&entry.node, entry.line);
        }
        (node.value != Value::Null).then_some(line)
    }

    /// Puts `value` at `path`, making the maps on the way.
    pub(crate) fn put(&mut self, path: &[&str], value: Value) {
        let Some((first, rest)) = path.split_first() else {
            self.value = value;
            return;
        };
        if !matches!(self.value, Value::Map(_)) {
            self.value = Value::Map(Vec::new());
        }
        let Value::Map(entries) = &mut self.value else { return };
        let index = entries.iter().position(|entry| entry.key == *first).unwrap_or_else(|| {
            entries.push(Entry { key: (*first).to_owned(), line: 0, node: Self::empty() });
            entries.len() - 1
        });
        if let Some(entry) = entries.get_mut(index) {
            entry.node.put(rest, value);
        }
    }
}

/// Adds an entry to a map unless its key is there already.
pub(crate) fn add(entries: &mut Vec<Entry>, key: String, line: usize, node: Node) -> Result<(), Problem> {
    if let Some(first) = entries.iter().find(|entry| entry.key == key) {
        return Err(duplicate(&key, first.line, line));
    }
    entries.push(Entry { key, line, node });
    Ok(())
}

/// The problem of a key that is there twice.
pub(crate) fn duplicate(key: &str, first: usize, second: usize) -> Problem {
    let elsewhere = if first > 0 { format!(", first on line {first}") } else { String::new() };
    Problem::new(format!("the key is there twice{elsewhere}"))
        .instead("keep one of the two; nothing is overwritten in silence")
        .key(key)
        .at(second)
}

/// Turns byte offsets into line numbers.
pub(crate) struct Lines(Vec<usize>);

impl Lines {
    pub(crate) fn of(text: &str) -> Self {
        Self(text.bytes().enumerate().filter(|(_, byte)| *byte == b'\n').map(|(offset, _)| offset).collect())
    }

    /// The line of the byte at `offset`, counted from 1.
    pub(crate) fn at(&self, offset: usize) -> usize {
        self.0.partition_point(|newline| *newline < offset) + 1
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_on_the_line_after_the_newlines_before_it() {
        let lines = Lines::of("a\nbc\n\nd");
        assert_eq!([0, 1, 2, 4, 5, 6].map(|offset| lines.at(offset)), [1, 1, 2, 2, 3, 4]);
    }
}
