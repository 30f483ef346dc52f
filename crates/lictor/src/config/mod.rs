//! The configuration as it was written: file, environment and flags.
//!
//! Each layer is read strictly into the schema first, so that an error names file, line and key; what passed is then
//! merged by the `config` crate, which alone would lose the place, coerce `"8080"` and let the last duplicate win.
//! What the merged values mean is decided in [`crate::settings`], not here.

mod hcl;
mod json;
mod problem;
pub(crate) mod schema;
mod strict;
mod toml;
mod tree;
pub(crate) mod values;
mod yaml;

use std::path::Path;

pub(crate) use self::{
    problem::{Problem, nearest},
    schema::File,
    tree::{Node, Value},
};

/// The largest file that is read.
const MAX_FILE: u64 = 1024 * 1024;

/// The keys that hold lists: a text from the environment is split for them.
const LISTS: [&str; 2] = ["extra_trust_domains", "socket_directories"];

/// One source of configuration.
#[derive(Clone, Debug)]
pub(crate) struct Layer {
    /// The file, or what else said it, for messages.
    origin: String,
    node: Node,
    /// For values that did not stand in a file: the flag or variable that said each.
    said: Vec<(Vec<String>, String)>,
}

impl Layer {
    /// Reads the file at `path`; its extension names the format: `.hcl`, `.toml`, `.json`, `.yaml` or `.yml`.
    pub(crate) fn file(path: &Path) -> Result<Self, Problem> {
        let origin = path.display().to_string();
        let text = read_file(path).map_err(|problem| problem.said_by(&origin))?;
        Self::text(&origin, path.extension().and_then(|extension| extension.to_str()), &text)
    }

    /// Reads `text` as the format that `extension` names.
    pub(crate) fn text(origin: &str, extension: Option<&str>, text: &str) -> Result<Self, Problem> {
        let node = match extension {
            Some("hcl") => hcl::read(text),
            Some("toml") => toml::read(text),
            Some("json") => json::read(text),
            Some("yaml" | "yml") => yaml::read(text),
            _ => Err(Problem::new("the format is not known by the file's name")
                .instead("let the name end in .hcl, .toml, .json or .yaml")),
        };
        let node = node.and_then(|node| strict::read::<File>(&node).map(|_| node));
        node.map(|node| Self { origin: origin.to_owned(), node, said: Vec::new() })
            .map_err(|problem| problem.said_by(origin))
    }

    /// A layer of values that were texts, each of which names where it came from: `(origin, path, text)`. An empty
    /// text for a key removes what lower layers say.
    pub(crate) fn texts(origin: &str, values: Vec<(String, Vec<String>, Value)>) -> Result<Self, Problem> {
        let (mut whole, mut said) = (Node::empty(), Vec::new());
        for (origin, path, value) in values {
            said.push((path.clone(), origin.clone()));
            let path: Vec<&str> = path.iter().map(String::as_str).collect();
            let mut alone = Node::empty();
            alone.put(&path, value.clone());
            strict::read_text::<File>(&alone).map_err(|problem| problem.without_quotes().said_by(&origin))?;
            let value = match value {
                Value::Text(text) if path.last().is_some_and(|key| LISTS.contains(key)) => Value::List(
                    strict::items(&text).map(|item| Node { line: 0, value: Value::Text(item.to_owned()) }).collect(),
                ),
                value => value,
            };
            whole.put(&path, value);
        }
        Ok(Self { origin: origin.to_owned(), node: whole, said })
    }

    /// Names what said the value that `problem` is about, if this layer did.
    fn locate(&self, problem: Problem) -> Result<Problem, Problem> {
        let Some(line) = self.node.line_of(problem.path()) else { return Err(problem) };
        if self.said.is_empty() {
            return Ok(problem.said_by(&self.origin).at(line));
        }
        // For a problem with a whole block: the last that said anything in it.
        let path: Vec<&str> = problem.path().collect();
        match self.said.iter().rev().find(|(said, _)| said.iter().zip(&path).all(|(said, key)| said == key)) {
            Some((_, origin)) => Ok(problem.said_by(origin)),
            None => Err(problem),
        }
    }
}

/// Names the file and line, the flag or the variable that said the value that `problem` is about: the topmost of
/// `layers`, since that is the one that counts.
pub(crate) fn locate(layers: &[Layer], problem: Problem) -> Problem {
    if problem.path().next().is_none() {
        return problem;
    }
    layers
        .iter()
        .rev()
        .try_fold(problem, |problem, layer| match layer.locate(problem) {
            Ok(found) => Err(found),
            Err(problem) => Ok(problem),
        })
        .unwrap_or_else(|found| found)
}

/// Merges `layers`, the later ones over the earlier.
pub(crate) fn merge(layers: &[Layer]) -> Result<File, Problem> {
    let mut builder = config::Config::builder();
    for layer in layers {
        builder = builder.add_source(layer.clone());
    }
    let merged = builder.build().map_err(|error| Problem::new(error.to_string()))?;
    merged.try_deserialize().map_err(|error| Problem::new(error.to_string()))
}

impl config::Source for Layer {
    fn clone_into_box(&self) -> Box<dyn config::Source + Send + Sync> {
        Box::new(self.clone())
    }

    fn collect(&self) -> Result<config::Map<String, config::Value>, config::ConfigError> {
        match value(&self.origin, &self.node).kind {
            config::ValueKind::Table(table) => Ok(table),
            _ => Ok(config::Map::new()),
        }
    }
}

fn value(origin: &String, node: &Node) -> config::Value {
    let kind = match &node.value {
        Value::Null => config::ValueKind::Nil,
        Value::Bool(value) => config::ValueKind::Boolean(*value),
        Value::Integer(number) => config::ValueKind::I64(*number),
        Value::Float(number) => config::ValueKind::Float(*number),
        Value::Text(text) => config::ValueKind::String(text.clone()),
        Value::List(items) => config::ValueKind::Array(items.iter().map(|item| value(origin, item)).collect()),
        Value::Map(entries) => config::ValueKind::Table(
            entries.iter().map(|entry| (entry.key.clone(), value(origin, &entry.node))).collect(),
        ),
    };
    config::Value::new(Some(origin), kind)
}

fn read_file(path: &Path) -> Result<String, Problem> {
    use std::io::Read as _;
    let unreadable = |error: std::io::Error| {
        Problem::new(format!("the file cannot be read: {error}"))
            .instead("check the path and that this user may read it")
    };
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(MAX_FILE + 1).read_to_string(&mut text).map_err(unreadable)?;
    if text.len() as u64 > MAX_FILE {
        return Err(Problem::new("the file is larger than 1 MiB").instead("a configuration of lictor is a few kB"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
