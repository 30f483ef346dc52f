//! TOML, read by `toml` with its spans; the crate refuses duplicate keys itself.

use toml::de::{DeTable, DeValue};

use super::{
    problem::Problem,
    tree::{Entry, Lines, Node, Value, duplicate},
};

/// Reads `text` into a tree.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let lines = Lines::of(text);
    let table = DeTable::parse(text).map_err(|error| {
        let line = error.span().map_or(0, |span| lines.at(span.start));
        // The crate's words for it leave out the key, which the span points at.
        if error.message() == "duplicate key"
            && let Some(key) = error.span().and_then(|span| text.get(span))
        {
            return duplicate(key.trim_matches(['"', '\'']), 0, line);
        }
        Problem::new(format!("not TOML: {}", error.message())).at(line)
    })?;
    Ok(Node { line: 1, value: map(table.get_ref(), &lines)? })
}

fn map(table: &DeTable<'_>, lines: &Lines) -> Result<Value, Problem> {
    let mut entries = Vec::new();
    for (key, value) in table {
        let name = key.get_ref().to_string();
        let line = lines.at(key.span().start);
        let node = node(value.get_ref(), lines.at(value.span().start), lines)
            .map_err(|problem| problem.key(name.clone()).at(line))?;
        entries.push(Entry { key: name, line, node });
    }
    // The crate sorts the keys; the order of the file reads better in messages.
    entries.sort_by_key(|entry| entry.line);
    Ok(Value::Map(entries))
}

fn node(value: &DeValue<'_>, line: usize, lines: &Lines) -> Result<Node, Problem> {
    let value = match value {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Boolean(value) => Value::Bool(*value),
        DeValue::Integer(integer) => Value::Integer(
            i64::from_str_radix(integer.as_str(), integer.radix())
                .map_err(|_| Problem::new("the number is too large").at(line))?,
        ),
        DeValue::Float(float) => Value::Float(float.as_str().parse().unwrap_or(f64::NAN)),
        DeValue::Datetime(time) => Value::Text(time.to_string()),
        DeValue::Array(items) => Value::List(
            items
                .iter()
                .map(|item| node(item.get_ref(), lines.at(item.span().start), lines))
                .collect::<Result<_, _>>()?,
        ),
        DeValue::Table(table) => map(table, lines)?,
    };
    Ok(Node { line, value })
}
