//! Exit codes and the one message that comes with each.

use std::{
    io::{BufRead as _, BufReader},
    net::TcpListener,
    process::Stdio,
};

use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Running, lictor, linked, run};

#[test]
fn help_and_version_go_to_standard_output() {
    for arguments in ["-h", "proxy -help", "validate --help", "crypto --help", "version", "--version"] {
        let (code, stdout, stderr) = run(arguments);
        assert_eq!((code, stderr.as_str()), (Some(0), ""), "{arguments}");
        assert!(stdout.contains("lictor"), "{arguments}: {stdout}");
    }
}

#[test]
fn a_wrong_command_line_ends_with_2() {
    for (arguments, words) in [
        ("", "Usage:"),
        ("proxy", "-sidecar-for ID, -proxy-id ID, -service NAME, or -config FILE"),
        ("proxy web", "unexpected argument 'web'"),
        ("proxy -sidecar-fro web", "--sidecar-for"),
        ("proxy -service web -upstream foo", "there is no port in it"),
        ("proxy -service web -upstream db:hello", "\"hello\" is no port"),
        ("proxy -service web -upstream db:a:1:b", "is no address"),
        ("proxy -service web -upstream db.bad:1", "neither \".service\" nor \".query\""),
        ("proxy -service web -listen :4567", "-service-addr"),
        ("proxy -service web -register", "-register needs -listen"),
        ("proxy -service web -log-level chatty", "chatty"),
        ("proxy -service web -workers x", "expected a whole number of at least 1, found the text \"x\""),
        ("proxy -service web -tls-min-version 1.1", "\"1.1\" is not one of the choices; known here: 1.2, 1.3"),
        #[cfg(feature = "dev")]
        ("agent -http-addr foo", "such as 127.0.0.1:8500"),
    ] {
        let (code, _, stderr) = run(arguments);
        assert_eq!(code, Some(2), "{arguments}: {stderr}");
        assert!(stderr.contains(words), "{arguments}: {stderr}");
    }
}

#[test]
fn a_wrong_configuration_ends_with_3_and_one_message() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lictor.hcl");
    for (text, expected) in [
        (
            "service = \"web\"\nworkers = \"2\"\n",
            ":2: workers: expected a whole number of at least 1, without quotes, found the text \"2\"\n",
        ),
        ("service = \"web\"\nserivce = \"web\"\n", ":2: serivce: there is no such key; did you mean \"service\"?\n"),
    ] {
        std::fs::write(&path, text).expect("written");
        let name = path.display();
        for arguments in [format!("validate {name}"), format!("proxy -config {name}")] {
            let (code, stdout, stderr) = run(&arguments);
            assert_eq!((code, stdout.as_str()), (Some(3), ""), "{arguments}: {stderr}");
            assert_eq!(stderr, format!("lictor: {name}{expected}"), "{arguments}");
        }
    }
    let (code, _, stderr) = run("validate /nonexistent/lictor.hcl");
    assert_eq!(code, Some(3), "{stderr}");
    let (code, _, stderr) = run("proxy -service web -token-file /nonexistent/token");
    assert_eq!(code, Some(3), "{stderr}");
    assert!(stderr.contains("/nonexistent/token"), "{stderr}");
}

#[test]
fn a_valid_configuration_is_summed_up() {
    let example = include_str!("../../examples/lictor.hcl");
    // Where several libraries are linked, the line about the library must stand.
    let named = format!("backend = \"{}\"", linked()[0]);
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lictor.hcl");
    std::fs::write(&path, example.replace("# backend    = \"rustls\"", &named)).expect("written");
    let (code, stdout, stderr) = run(&format!("validate {}", path.display()));
    assert_eq!((code, stderr.as_str()), (Some(0), ""));
    assert!(stdout.contains("is valid: the sidecar of web with a listener for the mesh on 0.0.0.0:21000"), "{stdout}");
}

#[test]
fn a_lookup_that_no_agent_answers_ends_with_4() {
    // A port that was free a moment ago: nobody listens there.
    let free = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let (code, _, stderr) = run(&format!("proxy -sidecar-for web -admin off -http-addr {free}"));
    assert_eq!(code, Some(4), "{stderr}");
    assert!(stderr.contains(&free.to_string()), "{stderr}");
    assert!(stderr.contains("cannot connect to the agent: Connection refused"), "{stderr}");
    assert!(stderr.contains("check that it runs there"), "{stderr}");
}

#[test]
fn an_admin_address_that_is_taken_ends_with_5() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = taken.local_addr().expect("its address");
    let (code, _, stderr) = run(&format!("proxy -service web -admin {address}"));
    assert_eq!(code, Some(5), "{stderr}");
    assert!(stderr.contains(&address.to_string()), "{stderr}");
}

#[test]
fn an_unparsable_variable_ends_with_3() {
    let output = lictor("proxy -service web").env("CONSUL_HTTP_SSL_VERIFY", "maybe").output().expect("the binary runs");
    assert_eq!(output.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CONSUL_HTTP_SSL_VERIFY"));
}

#[test]
fn a_hangup_says_in_one_line_what_counts_now_and_what_waits_for_a_restart() {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("lictor.hcl");
    // An agent that never answers.
    let silent = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let agent = silent.local_addr().expect("its address");
    let agent = format!("admin {{\n  address = \"off\"\n}}\nagent {{\n  address = \"{agent}\"\n}}\n");
    std::fs::write(&path, format!("service = \"web\"\n{agent}")).expect("written");
    let mut child = Running(
        lictor(&format!("proxy -config {}", path.display()))
            .env("NO_COLOR", "1")
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary runs"),
    );
    let mut log = BufReader::new(child.0.stderr.take().expect("a pipe")).lines();
    let mut line_with = |word: &str| {
        // The log ends when the process does, so this does not wait for ever.
        let line = log.by_ref().map_while(Result::ok).find(|line| line.contains(word));
        line.unwrap_or_else(|| panic!("no line with {word:?}"))
    };
    line_with("not ready yet");
    std::fs::write(&path, format!("service = \"web\"\nworkers = 1\ndrain {{\n  timeout = \"1s\"\n}}\n{agent}"))
        .expect("written");
    let pid = Pid::from_child(&child.0);
    kill_process(pid, Signal::HUP).expect("it runs");
    let line = line_with("files were read again");
    assert!(line.contains("listeners, upstreams and limits"), "{line}");
    assert!(line.contains("needs_restart=[") && line.contains("\"drain\""), "{line}");
    std::fs::write(&path, "serivce = \"web\"\n").expect("written");
    kill_process(pid, Signal::HUP).expect("it runs");
    let line = line_with("not taken over");
    assert!(line.contains("lictor.hcl:1: serivce: there is no such key"), "{line}");
    kill_process(pid, Signal::TERM).expect("it runs");
    assert_eq!(child.0.wait().expect("it ends").code(), Some(0));
}
