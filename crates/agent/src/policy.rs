//! Rules of ACL policies, as `consul acl policy create` sends them: `service "web" { policy = "write" }`.

use crate::acl::{Access, Token};

/// Resources that this agent has nothing of. Their rules are read and have no effect.
const WITHOUT_EFFECT: &[&str] = &[
    "key",
    "key_prefix",
    "session",
    "session_prefix",
    "event",
    "event_prefix",
    "query",
    "query_prefix",
    "keyring",
    "mesh",
    "peering",
];

/// Adds what the rules give to `token`; the error says what was not understood.
pub(crate) fn add(token: &mut Token, rules: &str) -> Result<(), String> {
    let words = words(rules)?;
    let mut rest = words.as_slice();
    while let [Word::Name(resource), tail @ ..] = rest {
        // `operator = "write"`, or `service "web" { … }`.
        if let [Word::Sign('='), Word::Text(policy), tail @ ..] = tail {
            plain(token, resource, access(policy)?)?;
            rest = tail;
            continue;
        }
        let [Word::Text(name), Word::Sign('{'), tail @ ..] = tail else {
            return Err(format!("no name and block behind {resource}"));
        };
        let end = tail
            .iter()
            .position(|w| *w == Word::Sign('}'))
            .ok_or_else(|| format!("the block of {resource} \"{name}\" does not end"))?;
        block(token, resource, name, &tail[..end])?;
        rest = &tail[end + 1..];
    }
    match rest.first() {
        None => Ok(()),
        Some(word) => Err(format!("unexpected {word:?}")),
    }
}

fn block(token: &mut Token, resource: &str, name: &str, body: &[Word]) -> Result<(), String> {
    for line in body.chunks(3) {
        let [Word::Name(key), Word::Sign('='), Word::Text(value)] = line else {
            return Err(format!("the block of {resource} \"{name}\" is not understood"));
        };
        let value = access(value)?;
        match (resource, key.as_str()) {
            ("service", "policy") => token.services.push((name.to_owned(), value)),
            ("service_prefix", "policy") => token.service_prefixes.push((name.to_owned(), value)),
            ("service", "intentions") if value == Access::Write => {
                token.intentions_write.push(name.to_owned());
            }
            ("service_prefix", "intentions") if value == Access::Write && name.is_empty() => {
                token.intentions_write.push("*".to_owned());
            }
            ("service" | "service_prefix", "intentions") => {}
            // One node, one agent: a rule for any part of them is a rule for all.
            ("node" | "node_prefix", "policy") => token.node_read = value >= Access::Read,
            ("agent" | "agent_prefix", "policy") => token.agent_read = value >= Access::Read,
            (other, _) if WITHOUT_EFFECT.contains(&other) => {}
            (other, key) => return Err(format!("{other} has no {key} here")),
        }
    }
    Ok(())
}

fn plain(token: &mut Token, resource: &str, value: Access) -> Result<(), String> {
    match resource {
        "operator" => token.operator_write = value == Access::Write,
        "acl" => token.acl_write = value == Access::Write,
        other if WITHOUT_EFFECT.contains(&other) => {}
        other => return Err(format!("unknown resource {other}")),
    }
    Ok(())
}

fn access(text: &str) -> Result<Access, String> {
    match text {
        "deny" => Ok(Access::Deny),
        "read" | "list" => Ok(Access::Read),
        "write" => Ok(Access::Write),
        other => Err(format!("invalid policy \"{other}\"")),
    }
}

#[derive(Debug, PartialEq)]
enum Word {
    Name(String),
    Text(String),
    Sign(char),
}

fn words(rules: &str) -> Result<Vec<Word>, String> {
    let mut out = Vec::new();
    for line in rules.lines() {
        let mut rest = line.trim_start();
        while let Some(first) = rest.chars().next() {
            let len = match first {
                '#' => break,
                '{' | '}' | '=' => {
                    out.push(Word::Sign(first));
                    1
                }
                '"' => {
                    let tail = &rest[1..];
                    let end = tail.find('"').ok_or("a text does not end")?;
                    out.push(Word::Text(tail[..end].to_owned()));
                    end + 2
                }
                c if c.is_ascii_alphabetic() => {
                    let end = rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(rest.len());
                    out.push(Word::Name(rest[..end].to_owned()));
                    end
                }
                other => return Err(format!("unexpected {other:?}")),
            };
            rest = rest[len..].trim_start();
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_read_on_one_line_and_on_many() {
        let mut token = Token::default();
        let rules = r#"
            # the service itself
            service "web" { policy = "write" intentions = "write" }
            service_prefix "" {
              policy = "read"
            }
            node_prefix "" { policy = "read" }
            key_prefix "" { policy = "read" }
            operator = "write"
        "#;
        add(&mut token, rules).unwrap();
        assert_eq!(token.services, [("web".to_owned(), Access::Write)]);
        assert_eq!(token.service_prefixes, [(String::new(), Access::Read)]);
        assert_eq!(token.intentions_write, ["web"]);
        assert!(token.node_read && token.operator_write && !token.agent_read);
    }

    #[test]
    fn rules_that_are_not_understood_are_refused() {
        for bad in [
            "service \"web\"",
            "service \"web\" { policy = \"perhaps\" }",
            "service \"web\" { policy = \"write\"",
            "moon = \"read\"",
            "service \"web { policy",
            "{",
        ] {
            assert!(add(&mut Token::default(), bad).is_err(), "{bad}");
        }
    }
}
