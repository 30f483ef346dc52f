use super::*;

const HCL: &str = r#"
service = "web"
workers = 2

inbound {
  listen          = "0.0.0.0:21000"
  app             = "127.0.0.1:8080"
  connect_timeout = "500ms"
}

upstream "db" {
  port            = 5432
  connect_timeout = "1m 30s"
}

upstream "cache" {
  query = "nearest-cache"
  port  = 6379
}

tls {
  min_version = "1.3"
  hybrid      = true
}

peers {
  extra_trust_domains = ["11111111-2222-3333-4444-555555555555.consul"]
}
"#;

const TOML: &str = r#"
service = "web"
workers = 2
[inbound]
listen = "0.0.0.0:21000"
app = "127.0.0.1:8080"
connect_timeout = "500ms"
[upstream.db]
port = 5432
connect_timeout = "1m 30s"
[upstream.cache]
query = "nearest-cache"
port = 6379
[tls]
min_version = "1.3"
hybrid = true
[peers]
extra_trust_domains = ["11111111-2222-3333-4444-555555555555.consul"]
"#;

const JSON: &str = r#"{
  "service": "web",
  "workers": 2,
  "inbound": {"listen": "0.0.0.0:21000", "app": "127.0.0.1:8080", "connect_timeout": "500ms"},
  "upstream": {
    "db": {"port": 5432, "connect_timeout": "1m 30s"},
    "cache": {"query": "nearest-cache", "port": 6379}
  },
  "tls": {"min_version": "1.3", "hybrid": true},
  "peers": {"extra_trust_domains": ["11111111-2222-3333-4444-555555555555.consul"]}
}"#;

const YAML: &str = r#"
service: web
workers: 2
inbound:
  listen: 0.0.0.0:21000
  app: 127.0.0.1:8080
  connect_timeout: 500ms
upstream:
  db:
    port: 5432
    connect_timeout: 1m 30s
  cache:
    query: nearest-cache
    port: 6379
tls:
  min_version: "1.3"
  hybrid: true
peers:
  extra_trust_domains:
    - 11111111-2222-3333-4444-555555555555.consul
"#;

fn file(extension: &str, text: &str) -> File {
    let layer = Layer::text(&format!("lictor.{extension}"), Some(extension), text).unwrap_or_else(|e| panic!("{e}"));
    merge(&[layer]).unwrap_or_else(|e| panic!("{e}"))
}

fn message(extension: &str, text: &str) -> String {
    Layer::text(&format!("lictor.{extension}"), Some(extension), text).expect_err(text).to_string()
}

#[test]
fn the_four_formats_say_the_same() {
    let hcl = file("hcl", HCL);
    assert_eq!(hcl.upstream.len(), 2);
    assert_eq!(hcl.upstream["db"].port, Some(values::Port(5432)));
    assert_eq!(hcl.tls.min_version, Some(schema::MinVersion::Tls13));
    assert_eq!(hcl, file("toml", TOML));
    assert_eq!(hcl, file("json", JSON));
    assert_eq!(hcl, file("yaml", YAML));
}

#[test]
fn an_unknown_key_is_named_with_its_line_and_the_nearest_known_one() {
    for (extension, text, line) in [
        ("hcl", "service = \"web\"\nupstream \"db\" {\n  prot = 5432\n}\n", 3),
        ("toml", "service = \"web\"\n[upstream.db]\nprot = 5432\n", 3),
        ("json", "{\"service\": \"web\",\n \"upstream\": {\"db\": {\n  \"prot\": 5432}}}", 3),
        ("yaml", "service: web\nupstream:\n  db:\n    prot: 5432\n", 4),
    ] {
        assert_eq!(
            message(extension, text),
            format!("lictor.{extension}:{line}: upstream.db.prot: there is no such key; did you mean \"port\"?")
        );
    }
}

#[test]
fn a_key_that_is_there_twice_is_refused_by_name() {
    for (extension, text, line, key) in [
        ("hcl", "workers = 1\nworkers = 2\n", 2, "workers"),
        ("hcl", "upstream \"db\" {\n port = 1\n}\nupstream \"db\" {\n port = 2\n}\n", 4, "upstream.db"),
        ("hcl", "agent = {\n  address = \"a\"\n  address = \"b\"\n}\n", 3, "address"),
        ("toml", "workers = 1\nworkers = 2\n", 2, "workers"),
        ("toml", "[agent]\naddress = \"a\"\n\"address\" = \"b\"\n", 3, "address"),
        ("toml", "[upstream.db]\nport = 1\n[upstream.db]\nport = 2\n", 3, "db"),
        ("json", "{\"workers\": 1,\n\"workers\": 2}", 2, "workers"),
        ("yaml", "workers: 1\nworkers: 2\n", 2, "workers"),
    ] {
        let message = message(extension, text);
        assert!(message.starts_with(&format!("lictor.{extension}:{line}: ")), "{message}");
        assert!(message.contains(key), "{message}");
    }
}

#[test]
fn a_value_of_the_wrong_type_is_not_coerced() {
    for (text, expected) in [
        (
            "upstream \"db\" {\n  port = \"5432\"\n}",
            "lictor.hcl:2: upstream.db.port: expected a port without quotes, from 1 to 65535, such as 5432, found the \
             text \"5432\"",
        ),
        (
            "upstream \"db\" {\n  port = 70000\n}",
            "lictor.hcl:2: upstream.db.port: expected a port without quotes, from 1 to 65535, such as 5432, found the \
             number 70000",
        ),
        (
            "tls {\n  hybrid = \"yes\"\n}",
            "lictor.hcl:2: tls.hybrid: expected true or false, without quotes, found the text \"yes\"",
        ),
        (
            "drain {\n  timeout = 30\n}",
            "lictor.hcl:2: drain.timeout: expected a duration in quotes with its unit, such as \"30s\", \"500ms\" or \
             \"1m 30s\", found the number 30",
        ),
        ("service = [\"web\"]", "lictor.hcl:1: service: expected a text in quotes, found a list"),
        (
            "log {\n\n  level = \"chatty\"\n}",
            "lictor.hcl:3: log.level: \"chatty\" is not one of the choices; known here: trace, debug, info, warn, \
             error",
        ),
        (
            "agent {\n  token = env.TOKEN\n}",
            "lictor.hcl:2: agent.token: only plain values may stand here: no variables, functions or ${…}; write the \
             value itself, texts in double quotes",
        ),
    ] {
        assert_eq!(message("hcl", text), expected);
    }
    assert_eq!(
        message("yaml", "tls:\n  hybrid: yes\n"),
        "lictor.yaml:2: tls.hybrid: expected true or false, without quotes, found the text \"yes\""
    );
}

#[test]
fn a_file_that_is_not_in_its_format_is_refused_with_the_line() {
    for (extension, text, line) in [
        ("hcl", "service = \"web\"\nupstream {{\n", 2),
        ("toml", "service = \"web\"\nworkers = = 2\n", 2),
        ("json", "{\"service\": \"web\",\n workers: 2}", 2),
        ("yaml", "service: web\nworkers: [1, 2\n", 2),
    ] {
        let message = message(extension, text);
        assert!(message.starts_with(&format!("lictor.{extension}:{line}")), "{message}");
    }
    assert!(message("ini", "").contains("let the name end in .hcl, .toml, .json or .yaml"));
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let problem = Layer::file(Path::new("/nonexistent/lictor.hcl")).expect_err("there is no such file").to_string();
    assert!(problem.starts_with("/nonexistent/lictor.hcl: the file cannot be read: "), "{problem}");
}

#[test]
fn a_later_layer_rules_over_an_earlier_one_key_by_key() {
    let below =
        Layer::text("a.hcl", Some("hcl"), "agent {\n token_file = \"/t\"\n address = \"a:1\"\n}").expect("good");
    let texts = |path: &[&str], value: Value| {
        ("flag".to_owned(), path.iter().map(|part| (*part).to_owned()).collect::<Vec<_>>(), value)
    };
    let above = Layer::texts(
        "flags",
        vec![
            texts(&["agent", "token"], Value::Text("123".to_owned())),
            texts(&["agent", "token_file"], Value::Null),
            texts(&["workers"], Value::Text("3".to_owned())),
            texts(&["peers", "extra_trust_domains"], Value::Text("a, b".to_owned())),
        ],
    )
    .expect("good");
    let merged = merge(&[below, above]).expect("merges");
    assert_eq!(merged.agent.address, Some(values::Text("a:1".to_owned())));
    assert_eq!(merged.agent.token, Some(values::Secret("123".to_owned())));
    assert_eq!(merged.agent.token_file, None);
    assert_eq!(merged.workers, Some(values::Count(3)));
    assert_eq!(merged.peers.extra_trust_domains.map(|list| list.len()), Some(2));
}

#[test]
fn a_secret_is_never_shown() {
    let merged = file("hcl", "agent {\n token = \"s3cr3t\"\n}");
    assert!(!format!("{merged:?}").contains("s3cr3t"));
}
