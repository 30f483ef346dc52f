//! `lictor dev` as a newcomer uses it: a call through the mesh, an intention that turns, a root that rotates, the end.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::Stdio,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::support::{Running, lictor};

/// How long anything may take on a loaded machine.
const SOON: Duration = Duration::from_secs(60);

struct Dev {
    process: Running,
    addresses: Value,
}

impl Dev {
    fn start() -> Self {
        let mut process = Running(
            lictor("dev -port-base 0 -ready-json")
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("the binary runs"),
        );
        let mut line = String::new();
        BufReader::new(process.0.stdout.take().expect("a pipe")).read_line(&mut line).expect("a line");
        let addresses = serde_json::from_str(&line).unwrap_or_else(|error| panic!("{error}: {line}"));
        Self { process, addresses }
    }

    fn address(&self, pointer: &str) -> String {
        let url = self.addresses.pointer(pointer).and_then(Value::as_str).unwrap_or_else(|| panic!("no {pointer}"));
        url.trim_start_matches("http://").to_owned()
    }

    /// The status line and the body of one request.
    fn ask(&self, who: &str, method: &str, path: &str, body: &str) -> (String, String) {
        let address = self.address(who);
        let mut stream = TcpStream::connect(&address).expect("somebody listens");
        stream.set_read_timeout(Some(SOON)).expect("a deadline");
        let length = body.len();
        write!(
            stream,
            "{method} {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
        )
        .expect("sent");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        (head.lines().next().unwrap_or_default().to_owned(), body.to_owned())
    }

    fn intend(&self, action: &str) {
        let path = "/v1/connect/intentions/exact?source=web&destination=api";
        let (status, body) = self.ask("/agent", "PUT", path, &format!("{{\"Action\": \"{action}\"}}"));
        assert!(status.contains("200"), "{status} {body}");
    }
}

#[test]
fn a_call_travels_the_mesh_follows_intentions_and_rotations_and_ctrl_c_ends_it() {
    let mut dev = Dev::start();
    let (status, body) = dev.ask("/web", "GET", "/", "");
    assert!(status.contains("200"), "{status} {body}");
    assert!(body.contains("Hello from api") && body.contains("/ns/default/dc/dc1/svc/web"), "{body}");

    dev.intend("deny");
    let (status, body) = dev.ask("/web", "GET", "/", "");
    assert!(status.contains("502"), "{status} {body}");
    dev.intend("allow");
    let (status, body) = dev.ask("/web", "GET", "/", "");
    assert!(status.contains("200"), "{status} {body}");

    let generation = |dev: &Dev| {
        let (_, certs) = dev.ask("/admin/api", "GET", "/certs", "");
        serde_json::from_str::<Value>(&certs).expect("JSON")["roots"]["generation"].as_u64()
    };
    let before = generation(&dev);
    let (status, body) = dev.ask("/control", "POST", "/lictor/control/rotate-root", "");
    assert!(status.contains("200"), "{status} {body}");
    let began = Instant::now();
    while generation(&dev) == before {
        assert!(began.elapsed() < SOON, "the sidecar does not follow the root");
    }
    let (status, body) = dev.ask("/web", "GET", "/", "");
    assert!(status.contains("200"), "{status} {body}");

    let (_, connections) = dev.ask("/admin/api", "GET", "/connections", "");
    assert!(connections.contains("\"connection.reason\":\"finished\""), "{connections}");
    let (_, metrics) = dev.ask("/admin/api", "GET", "/metrics", "");
    assert!(metrics.contains("kind=\"denied\"} 1"), "{metrics}");

    let pid = Pid::from_child(&dev.process.0);
    kill_process(pid, Signal::INT).expect("it runs");
    assert_eq!(dev.process.0.wait().expect("it ends").code(), Some(0));
}
