//! Which TLS library runs, what is told of it, and that FIPS can be required.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process::Stdio,
    time::Duration,
};

use serde_json::Value;

use crate::support::{Running, bare, crypto, ended, linked, not_linked};

/// How long an answer may take on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

/// A configuration file with this text about TLS.
fn file(folder: &tempfile::TempDir, tls: &str) -> PathBuf {
    let path = folder.path().join("lictor.hcl");
    std::fs::write(&path, format!("service = \"web\"\ntls {{\n{tls}\n}}\n")).expect("written");
    path
}

#[test]
fn the_facts_of_each_linked_library_are_complete() {
    let report = crypto();
    let libraries = report["libraries"].as_array().expect("a list");
    let names: Vec<&str> = libraries.iter().filter_map(|library| library["backend"].as_str()).collect();
    assert_eq!(names, linked());
    assert_eq!(report["chosen"].as_str(), Some(names[0]).filter(|_| names.len() == 1));
    assert_eq!(report["require_fips"], false);
    let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
    assert!(list(&report["policy"]["off"]).iter().any(|off| off == "early data"), "{report}");
    for library in libraries {
        assert!(library["library"].as_str().is_some_and(|text| text.contains('.')), "no version: {library}");
        assert!(library["fips"]["enabled"].is_boolean(), "{library}");
        for key in ["means", "self_test"] {
            assert!(library["fips"][key].as_str().is_some_and(|text| text.len() > 3), "{key}: {library}");
        }
        assert!(library["differs"].is_array(), "{library}");
        for key in ["versions", "suites", "groups", "signature_schemes"] {
            let (has, asked) = (list(&library[key]), list(&report["policy"][key]));
            assert!(!has.is_empty() && has.iter().all(|one| asked.contains(one)), "{key}: {library}");
            // What is left out is said.
            assert!(has == asked || !list(&library["differs"]).is_empty(), "{key}: {library}");
        }
    }
}

#[test]
fn the_page_for_people_says_the_same_as_the_json() {
    for library in crypto()["libraries"].as_array().expect("a list") {
        let name = library["backend"].as_str().expect("a name");
        let (code, stdout, stderr) = ended(bare(&format!("crypto -tls-backend {name}")));
        assert_eq!((code, stderr.as_str()), (Some(0), ""));
        // Lines are wrapped.
        let page = stdout.split_whitespace().collect::<Vec<_>>().join(" ");
        let mut texts = Vec::new();
        leaves(library, &mut texts);
        for text in texts {
            assert!(page.contains(&text), "{text:?} is not in\n{stdout}");
        }
    }
}

/// All texts of a value.
fn leaves(value: &Value, texts: &mut Vec<String>) {
    match value {
        Value::String(text) => texts.push(text.clone()),
        Value::Array(items) => items.iter().for_each(|item| leaves(item, texts)),
        Value::Object(entries) => entries.values().for_each(|item| leaves(item, texts)),
        _ => {}
    }
}

#[test]
fn the_policy_that_is_shown_is_that_of_file_variables_and_flags() {
    let folder = tempfile::tempdir().expect("a folder");
    let name = &linked()[0];
    let path =
        file(&folder, &format!("backend = \"{name}\"\nmin_version = \"1.3\"\nhybrid = false")).display().to_string();
    let policy = |arguments: &str, variable: (&str, &str)| {
        let mut command = bare(&format!("crypto -json {arguments}"));
        command.env(variable.0, variable.1);
        let (code, stdout, stderr) = ended(command);
        assert_eq!(code, Some(0), "{stderr}");
        let report: Value = serde_json::from_str(&stdout).unwrap_or_else(|error| panic!("{error}: {stdout}"));
        assert_eq!(report["chosen"], **name);
        (report["libraries"][0]["versions"].clone(), report["libraries"][0]["groups"][0] == "X25519MLKEM768")
    };
    let (only_13, both) = (serde_json::json!(["TLSv1.3"]), serde_json::json!(["TLSv1.3", "TLSv1.2"]));
    assert_eq!(policy(&format!("-config {path}"), ("A", "")), (only_13.clone(), false));
    assert_eq!(policy(&format!("-config {path}"), ("LICTOR_TLS__MIN_VERSION", "1.2")), (both, false));
    let flags = format!("-config {path} -tls-min-version 1.3");
    assert_eq!(policy(&flags, ("LICTOR_TLS__MIN_VERSION", "1.2")), (only_13, false));
}

#[test]
fn a_variable_about_tls_that_is_no_key_is_told() {
    let mut command = bare("crypto");
    command.env("LICTOR_TLS__REQUIRE_FIBS", "true").env("LICTOR_DRAIN__TIMOUT", "1s");
    let (code, _, stderr) = ended(command);
    assert_eq!(code, Some(0), "{stderr}");
    let told =
        "lictor: LICTOR_TLS__REQUIRE_FIBS: tls.require_fibs: there is no such key; did you mean \"require_fips\"?\n";
    assert_eq!(stderr, told, "only what is about TLS is read here");
}

#[test]
fn a_library_that_is_not_linked_ends_every_command_with_3_and_the_list_of_those_that_are() {
    let folder = tempfile::tempdir().expect("a folder");
    let (name, linked) = (not_linked(), linked().join(", "));
    let wrong = format!("tls.backend: this binary is built without \"{name}\"; linked here: {linked}\n");
    let path = file(&folder, &format!("  backend = \"{name}\"")).display().to_string();
    for arguments in [format!("crypto -config {path}"), format!("validate {path}"), format!("proxy -config {path}")] {
        let (code, stdout, stderr) = ended(bare(&arguments));
        assert_eq!((code, stdout.as_str()), (Some(3), ""), "{arguments}: {stderr}");
        assert_eq!(stderr, format!("lictor: {path}:3: {wrong}"), "{arguments}");
    }
    for command in commands() {
        let (code, stdout, stderr) = ended(bare(&format!("{command} -tls-backend {name}")));
        assert_eq!((code, stdout.as_str()), (Some(3), ""), "{command}: {stderr}");
        assert_eq!(stderr, format!("lictor: -tls-backend: {wrong}"), "{command}");
        let mut with_variable = bare(command);
        with_variable.env("LICTOR_TLS__BACKEND", name);
        let (code, _, stderr) = ended(with_variable);
        assert_eq!(code, Some(3), "{command}: {stderr}");
        assert_eq!(stderr, format!("lictor: LICTOR_TLS__BACKEND: {wrong}"), "{command}");
    }
}

#[test]
fn where_several_libraries_are_linked_nothing_starts_until_one_is_named() {
    let linked = linked();
    if linked.len() == 1 {
        // Then it need not be named: all other tests would fail without this.
        assert_eq!(crypto()["chosen"], *linked[0]);
        return;
    }
    for command in commands().into_iter().filter(|command| *command != "crypto") {
        let (code, _, stderr) = ended(bare(command));
        assert_eq!(code, Some(3), "{command}: {stderr}");
        assert!(stderr.contains(&linked.join(", ")) && stderr.contains("-tls-backend"), "{command}: {stderr}");
    }
}

#[test]
fn without_fips_where_it_is_required_every_command_ends_with_6_and_says_what_to_install() {
    let folder = tempfile::tempdir().expect("a folder");
    for library in crypto()["libraries"].as_array().expect("a list") {
        let name = library["backend"].as_str().expect("a name");
        let has_fips = library["fips"]["enabled"] == true;
        let path = file(&folder, &format!("backend = \"{name}\"\nrequire_fips = true")).display().to_string();
        let mut refused = Vec::new();
        for arguments in [format!("validate {path}"), format!("crypto -json -config {path}")] {
            let (code, stdout, stderr) = ended(bare(&arguments));
            assert_eq!(code, Some(if has_fips { 0 } else { 6 }), "{arguments}: {stderr}");
            assert_eq!(stdout.is_empty(), !has_fips && arguments.starts_with("validate"), "{arguments}: {stdout}");
            refused.push(stderr);
        }
        if has_fips {
            continue;
        }
        for command in commands() {
            let (code, _, stderr) = ended(bare(&format!("{command} -tls-backend {name} -tls-require-fips")));
            assert_eq!(code, Some(6), "{command}: {stderr}");
            let mut by_variable = bare(&format!("{command} -tls-backend {name}"));
            by_variable.env("LICTOR_TLS__REQUIRE_FIPS", "true");
            let (code, ..) = ended(by_variable);
            assert_eq!(code, Some(6), "{command}");
            refused.push(stderr);
        }
        for message in refused {
            for words in ["tls.require_fips", name, library["library"].as_str().expect("a text"), "rustls-fips"] {
                assert!(message.contains(words), "{words:?} is not in {message}");
            }
        }
    }
}

/// Every command that chooses a library, as short as it can be.
fn commands() -> Vec<&'static str> {
    vec![
        "crypto",
        "proxy -service web -admin off",
        #[cfg(feature = "dev")]
        "dev -port-base 0",
        #[cfg(feature = "dev")]
        "agent -http-addr 127.0.0.1:0",
    ]
}

#[test]
fn log_admin_listener_and_metrics_tell_the_same_facts() {
    // An agent that never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let agent = silent.local_addr().expect("its address");
    for library in crypto()["libraries"].as_array().expect("a list") {
        let name = library["backend"].as_str().expect("a name");
        let mut child = Running(
            bare(&format!("proxy -service web -tls-backend {name} -admin 127.0.0.1:0 -log-json -http-addr {agent}"))
                .stderr(Stdio::piped())
                .spawn()
                .expect("the binary runs"),
        );
        let log = BufReader::new(child.0.stderr.take().expect("a pipe")).lines().map_while(Result::ok);
        let mut lines: Vec<Value> = Vec::new();
        let mut address = None;
        for line in log {
            let line: Value = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
            if line["message"] == "admin listener" {
                address = line["address"].as_str().map(str::to_owned);
                break;
            }
            lines.push(line);
        }
        let address = address.expect("the admin listener is told");

        let line = lines.iter().find(|line| line["message"] == "TLS library").expect("a line about the library");
        assert_eq!((&line["backend"], &line["library"]), (&library["backend"], &library["library"]));
        assert_eq!((&line["fips"], &line["fips_means"]), (&library["fips"]["enabled"], &library["fips"]["means"]));
        let joined = |key: &str| {
            let list = library[key].as_array().expect("a list");
            list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(",")
        };
        for key in ["versions", "suites", "groups", "signature_schemes"] {
            assert_eq!(line[key], joined(key), "{line}");
        }
        for difference in library["differs"].as_array().expect("a list") {
            let sentence = difference.as_str().expect("a text");
            let told = |line: &Value| line["message"].as_str().is_some_and(|message| message.contains(sentence));
            assert!(lines.iter().any(told), "{sentence} is not in the log");
        }

        let page: Value = serde_json::from_str(&get(&address, "/crypto")).expect("JSON");
        assert_eq!((&page["chosen"], &page["libraries"]), (&library["backend"], &serde_json::json!([library])));
        let metrics = get(&address, "/metrics");
        let info = metrics.lines().find(|line| line.starts_with("lictor_tls_info{")).expect("a line about TLS");
        for words in [name, library["library"].as_str().expect("a text"), &joined("groups"), &joined("suites")] {
            assert!(info.contains(words), "{words} is not in {info}");
        }
        let fips = format!("lictor_tls_fips{{service=\"web\"}} {}", u8::from(library["fips"]["enabled"] == true));
        assert!(metrics.lines().any(|line| line == fips), "{fips} is not in {metrics}");
    }
}

/// The body of an admin page.
fn get(address: &str, path: &str) -> String {
    let mut stream = TcpStream::connect(address).expect("somebody listens");
    stream.set_read_timeout(Some(SOON)).expect("a deadline");
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").expect("sent");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("an answer");
    let (head, body) = answer.split_once("\r\n\r\n").expect("a head");
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    body.to_owned()
}
