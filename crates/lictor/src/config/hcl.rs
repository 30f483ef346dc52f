//! HCL, read by `hcl-rs` with its spans.
//!
//! A block with a label is an entry of a map by name (`upstream "db" { … }`), one without is a map. Only plain
//! values may stand in it: this is a configuration, not a programme.

use hcl::edit::{
    Span,
    expr::{Expression, ObjectKey, UnaryOperator},
    structure::{Body, Structure},
};

use super::{
    problem::Problem,
    tree::{Entry, Lines, MAX_DEPTH, Node, Value, add, duplicate},
};

/// Reads `text` into a tree.
pub(crate) fn read(text: &str) -> Result<Node, Problem> {
    let body = text.parse::<Body>().map_err(|error| {
        let line = error.location().line();
        // The crate's words for it leave out the key; the place it tells is somewhere behind the key.
        if error.message().contains("found redefined")
            && let Some(key) = text.lines().nth(line.saturating_sub(1)).and_then(key_at_start)
        {
            return duplicate(key, 0, line);
        }
        Problem::new(format!("not HCL: {}", error.message().trim()))
            .instead("HCL is written as key = \"value\" and block \"name\" { … }")
            .at(line)
    })?;
    let lines = Lines::of(text);
    Ok(Node { line: 1, value: Value::Map(entries(&body, &lines, 0)?) })
}

/// The key that a line begins with.
fn key_at_start(line: &str) -> Option<&str> {
    line.split(['=', '{']).next().map(str::trim).filter(|key| !key.is_empty())
}

fn entries(body: &Body, lines: &Lines, depth: usize) -> Result<Vec<Entry>, Problem> {
    let line = |span: Option<std::ops::Range<usize>>| span.map_or(0, |span| lines.at(span.start));
    if depth > MAX_DEPTH {
        return Err(Problem::new("blocks are nested too deeply"));
    }
    let mut all: Vec<Entry> = Vec::new();
    for structure in body {
        match structure {
            Structure::Attribute(attribute) => {
                let at = line(attribute.key.span());
                let node = expression(&attribute.value, lines, at, depth + 1)
                    .map_err(|problem| problem.key(attribute.key.as_str()).at(at))?;
                add(&mut all, attribute.key.as_str().to_owned(), at, node)?;
            }
            Structure::Block(block) => {
                let (key, at) = (block.ident.as_str(), line(block.ident.span()));
                let inner = Node {
                    line: at,
                    value: Value::Map(entries(&block.body, lines, depth + 1).map_err(|problem| {
                        block.labels.iter().rev().fold(problem, |problem, label| problem.key(label.as_str())).key(key)
                    })?),
                };
                match block.labels.as_slice() {
                    [] => add(&mut all, key.to_owned(), at, inner)?,
                    [label] => {
                        let label = label.as_str().to_owned();
                        match all.iter_mut().find(|entry| entry.key == key) {
                            Some(Entry { node: Node { value: Value::Map(named), .. }, .. }) => {
                                add(named, label, at, inner).map_err(|problem| problem.key(key))?;
                            }
                            Some(first) => return Err(duplicate(key, first.line, at)),
                            None => {
                                let named = vec![Entry { key: label, line: at, node: inner }];
                                let node = Node { line: at, value: Value::Map(named) };
                                all.push(Entry { key: key.to_owned(), line: at, node });
                            }
                        }
                    }
                    _ => {
                        return Err(Problem::new("a block has at most one name")
                            .instead(format!("write {key} \"name\" {{ … }}"))
                            .key(key)
                            .at(at));
                    }
                }
            }
        }
    }
    Ok(all)
}

fn expression(expression: &Expression, lines: &Lines, parent: usize, depth: usize) -> Result<Node, Problem> {
    if depth > MAX_DEPTH {
        return Err(Problem::new("values are nested too deeply"));
    }
    let line = expression.span().map_or(parent, |span| lines.at(span.start));
    let value = match expression {
        Expression::Null(_) => Value::Null,
        Expression::Bool(value) => Value::Bool(*value.value()),
        Expression::String(text) => Value::Text(text.value().clone()),
        Expression::Number(number) => number_value(number.value()),
        Expression::UnaryOp(operation) if *operation.operator.value() == UnaryOperator::Neg => {
            match self::expression(&operation.expr, lines, line, depth + 1)?.value {
                Value::Integer(number) => Value::Integer(-number),
                Value::Float(number) => Value::Float(-number),
                _ => return Err(not_plain().at(line)),
            }
        }
        Expression::HeredocTemplate(template) => {
            let mut text = String::new();
            for element in &template.template {
                match element {
                    hcl::edit::template::Element::Literal(literal) => text.push_str(literal),
                    _ => return Err(not_plain().at(line)),
                }
            }
            Value::Text(text)
        }
        Expression::Array(items) => Value::List(
            items.iter().map(|item| self::expression(item, lines, line, depth + 1)).collect::<Result<_, _>>()?,
        ),
        Expression::Object(object) => {
            let mut all = Vec::new();
            for (key, value) in object {
                let (name, at) = match key {
                    ObjectKey::Ident(ident) => (ident.as_str().to_owned(), ident.span()),
                    ObjectKey::Expression(Expression::String(text)) => (text.value().clone(), text.span()),
                    ObjectKey::Expression(_) => return Err(not_plain().at(line)),
                };
                let at = at.map_or(line, |span| lines.at(span.start));
                let node = self::expression(value.expr(), lines, at, depth + 1)
                    .map_err(|problem| problem.key(name.clone()).at(at))?;
                add(&mut all, name, at, node)?;
            }
            Value::Map(all)
        }
        _ => return Err(not_plain().at(line)),
    };
    Ok(Node { line, value })
}

fn number_value(number: &hcl::Number) -> Value {
    number.as_i64().map_or_else(|| Value::Float(number.as_f64().unwrap_or(f64::NAN)), Value::Integer)
}

fn not_plain() -> Problem {
    Problem::new("only plain values may stand here: no variables, functions or ${…}")
        .instead("write the value itself, texts in double quotes")
}
