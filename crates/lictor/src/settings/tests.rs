use std::ffi::OsString;

use lictor_core::TlsPolicy;

use super::*;
use crate::{backends, cli};

/// A library that is linked; it is named in tests about other things, since it must be where several are.
fn linked() -> &'static str {
    backends::linked()[0].name
}

fn resolve_with<const N: usize>(line: &str, environment: [(&str, &str); N]) -> Result<Settings, Failure> {
    let named = line.contains("-config") || environment.iter().any(|(name, _)| *name == "LICTOR_TLS__BACKEND");
    let backend = if named { String::new() } else { format!("-tls-backend {}", linked()) };
    let line = format!("lictor proxy {backend} {line}");
    match cli::parse(line.split_whitespace().map(OsString::from)).unwrap_or_else(|error| panic!("{error}")) {
        cli::Action::Proxy(flags) => Settings::resolve(&flags, &environment.into()),
        _ => panic!("not proxy"),
    }
}

fn settings<const N: usize>(line: &str, environment: [(&str, &str); N]) -> Settings {
    resolve_with(line, environment).unwrap_or_else(|failure| panic!("{line}: {failure}"))
}

fn failure<const N: usize>(line: &str, environment: [(&str, &str); N]) -> (Exit, String) {
    let failure = resolve_with(line, environment).expect_err(line);
    (failure.exit, failure.to_string().lines().next().unwrap_or_default().to_owned())
}

fn file(text: &str) -> tempfile::NamedTempFile {
    let file = tempfile::Builder::new().suffix(".hcl").tempfile().expect("a temporary file");
    let tls = format!("\ntls {{\n backend = \"{}\"\n}}\n", linked());
    let tls = if text.contains("tls {") { "" } else { &tls };
    std::fs::write(file.path(), format!("{text}{tls}")).expect("written");
    file
}

#[test]
fn without_a_mode_the_message_names_the_ways_to_choose_one() {
    let (exit, message) = failure("", []);
    assert_eq!(exit, Exit::Usage);
    assert!(message.contains("-service") && message.contains("-proxy-id"), "{message}");
}

#[test]
fn a_service_alone_has_no_listener_and_no_upstream() {
    let Mode::Static(sidecar) = settings("-service web", []).mode else { panic!("not by flags") };
    assert_eq!((sidecar.inbound, sidecar.upstreams.len(), sidecar.register), (None, 0, None));
}

#[test]
fn upstream_flags_become_listeners_and_the_last_of_a_name_wins() {
    let Mode::Static(sidecar) =
        settings("-service web -upstream db:1 -upstream db:2 -upstream q.query:127.0.0.55:8282", []).mode
    else {
        panic!("not by flags")
    };
    assert_eq!(sidecar.upstreams.len(), 2);
    assert_eq!(sidecar.upstreams["db"].bind, StaticBind::Tcp("127.0.0.1:2".parse().unwrap()));
    assert_eq!(sidecar.upstreams["q"].bind, StaticBind::Tcp("127.0.0.55:8282".parse().unwrap()));
    assert_eq!(sidecar.upstreams["q"].destination.kind, DestinationKind::PreparedQuery);
}

#[test]
fn flags_that_need_another_flag_say_which() {
    for (line, word) in [("-service web -listen :4567", "-service-addr"), ("-service web -register", "-listen")] {
        let (exit, message) = failure(line, []);
        assert_eq!(exit, Exit::Usage, "{message}");
        assert!(message.contains(word), "{message}");
    }
}

#[test]
fn a_listen_address_without_a_host_is_every_address() {
    let Mode::Static(sidecar) =
        settings("-service web -listen :4567 -service-addr localhost:80 -register -register-id x", []).mode
    else {
        panic!("not by flags")
    };
    let (bind, app) = sidecar.inbound.expect("there is one");
    assert_eq!(bind, "0.0.0.0:4567".parse().unwrap());
    assert_eq!(app, Target::Tcp { host: "localhost".to_owned(), port: 80 });
    assert_eq!(sidecar.register, Some(Registering { suffix: Some("x".to_owned()), host: String::new(), port: 4567 }));
}

#[test]
fn the_mode_follows_the_order_of_the_original_whatever_says_it() {
    let proxy = |id: &str, managed| Mode::Proxy { id: id.to_owned(), managed };
    let sidecar_for = |id: &str| Mode::SidecarFor { id: id.to_owned() };
    assert_eq!(settings("", [("CONNECT_SIDECAR_FOR", "web")]).mode, sidecar_for("web"));
    assert_eq!(settings("", [("CONNECT_SIDECAR_FOR", "web"), ("CONNECT_PROXY_ID", "p")]).mode, proxy("p", false));
    assert_eq!(settings("", [("CONSUL_PROXY_ID", "p")]).mode, proxy("p", false));
    assert_eq!(settings("-proxy-id flag", [("CONNECT_PROXY_ID", "variable")]).mode, proxy("flag", false));
    assert_eq!(settings("-sidecar-for web -service x", []).mode, sidecar_for("web"));
    assert_eq!(settings("-sidecar-for web", [("CONNECT_PROXY_ID", "")]).mode, sidecar_for("web"));
    assert_eq!(
        settings("", [("CONNECT_PROXY_ID", "web-proxy"), ("CONNECT_PROXY_TOKEN", "t")]).mode,
        proxy("web-proxy", true)
    );
}

#[test]
fn tokens_follow_the_order_of_the_original() {
    let token = |line: &str, environment: [(&str, &str); 4]| {
        let agent = settings(&format!("-service web {line}"), environment).agent;
        match (agent.token, agent.token_file) {
            (Some(Secret(token)), None) => token,
            (None, Some(path)) => path.display().to_string(),
            (None, None) => "none".to_owned(),
            both => panic!("{both:?}"),
        }
    };
    let none = [("CONSUL_HTTP_TOKEN", ""), ("A", ""), ("B", ""), ("C", "")];
    let all = [
        ("CONSUL_HTTP_TOKEN", "v"),
        ("CONSUL_HTTP_TOKEN_FILE", "/v"),
        ("CONNECT_PROXY_TOKEN", "managed"),
        ("CONSUL_PROXY_TOKEN", "documented"),
    ];
    let plain = [("CONSUL_HTTP_TOKEN", "v"), ("CONSUL_HTTP_TOKEN_FILE", "/v"), ("B", ""), ("C", "")];
    assert_eq!(token("", none), "none");
    assert_eq!(token("", plain), "/v");
    assert_eq!(token("", all), "managed");
    assert_eq!(token("-token flag", all), "flag");
    assert_eq!(token("-token flag -token-file /flag", all), "/flag");
    assert_eq!(token("-token-file /flag", plain), "/flag");
}

#[test]
fn flags_rule_over_variables_and_variables_over_the_file() {
    let file = file("service = \"web\"\nagent {\n  address = \"file:1\"\n  token_file = \"/file\"\n}\nworkers = 1\n");
    let line = format!("-config {}", file.path().display());
    let address = |settings: Settings| settings.agent.address.to_string();
    assert_eq!(address(settings(&line, [])), "http://file:1");
    assert_eq!(address(settings(&line, [("CONSUL_HTTP_ADDR", "consul:2")])), "http://consul:2");
    let both = [("CONSUL_HTTP_ADDR", "consul:2"), ("LICTOR_AGENT__ADDRESS", "own:3")];
    assert_eq!(address(settings(&line, both)), "http://own:3");
    assert_eq!(address(settings(&format!("{line} -http-addr flag:4"), both)), "http://flag:4");
    assert_eq!(
        settings(&line, [("CONSUL_HTTP_TOKEN", "x")]).agent.token_file,
        None,
        "a token from above replaces the file from below"
    );
    assert_eq!(
        settings(&format!("{line} -sidecar-for db"), []).mode,
        Mode::SidecarFor { id: "db".to_owned() },
        "a mode from above replaces the mode of the file"
    );
}

#[test]
fn variables_that_do_not_make_sense_are_errors_that_name_them() {
    assert_eq!(
        failure("-service web", [("CONSUL_HTTP_SSL_VERIFY", "maybe")]),
        (
            Exit::Config,
            "CONSUL_HTTP_SSL_VERIFY: \"maybe\" is neither true nor false; write true or false, or leave the variable \
             unset"
                .to_owned()
        )
    );
    let (exit, message) = failure("-service web", [("LICTOR_DRAIN__TIMEOUT", "30")]);
    assert_eq!(exit, Exit::Config);
    assert!(message.starts_with("LICTOR_DRAIN__TIMEOUT: drain.timeout: expected a duration"), "{message}");
    let (exit, message) = failure("-service web -client-cert /c", []);
    assert_eq!(exit, Exit::Config);
    assert!(message.contains("has no key"), "{message}");
}

#[test]
fn a_variable_of_ours_that_is_no_key_is_told_and_passed_over() {
    let settings = settings("-service web", [("LICTOR_SERVICE_PORT", "80"), ("LICTOR_DRAIN__TIMEUOT", "1s")]);
    assert_eq!(settings.warnings.len(), 2, "{:?}", settings.warnings);
    assert!(settings.warnings[0].contains("did you mean \"timeout\""), "{:?}", settings.warnings);
}

#[test]
fn our_own_variables_reach_every_key() {
    let settings = settings(
        "",
        [
            ("LICTOR_SERVICE", "web"),
            ("LICTOR_UPSTREAM__DB__PORT", "5432"),
            ("LICTOR_TLS__MIN_VERSION", "1.3"),
            ("LICTOR_TLS__HYBRID", "false"),
            ("LICTOR_TLS__REQUIRE_FIPS", "true"),
            ("LICTOR_LOG__LEVEL", "debug"),
            ("LICTOR_ADMIN__ADDRESS", "off"),
            ("LICTOR_PEERS__EXTRA_TRUST_DOMAINS", "a.consul, b.consul"),
        ],
    );
    assert_eq!(settings.tls.policy, TlsPolicy { tls12: false, hybrid_first: false });
    assert!(settings.tls.require_fips);
    assert_eq!((settings.log.level, settings.admin), (Level::Debug, Admin::Off));
    assert_eq!(settings.peers.extra_trust_domains.len(), 2);
    assert!(matches!(settings.mode, Mode::Static(sidecar) if sidecar.upstreams.len() == 1));
}

#[test]
fn what_a_file_asks_for_and_cannot_have_is_one_message() {
    for (text, expected) in [
        (
            "service = \"web\"\nproxy_id = \"p\"",
            " proxy_id and service contradict each other; keep the one that says whose sidecar it is",
        ),
        (
            "service = \"web\"\nadmin {\n address = \"0.0.0.0:19100\"\n}",
            "3: admin.address: 0.0.0.0:19100 can be reached from other hosts, and the admin listener asks nobody for a \
             password; write \"127.0.0.1:19100\", or allow it outright with allow_remote = true (-admin-allow-remote)",
        ),
        (
            "service = \"web\"\nupstream \"db\" {\n}",
            "2: upstream.db: it does not say where to listen; add port = 5432, or socket = \"/path\"",
        ),
        (
            "service = \"web\"\nupstream \"a\" {\n port = 1\n}\nupstream \"b\" {\n port = 1\n}",
            "5: upstream.b: another upstream listens on 127.0.0.1:1 already; give each upstream a port of its own",
        ),
        (
            "service = \"web\"\nupstream \"db\" {\n port   = 5432\n socket = \"/run/db\"\n}",
            "4: upstream.db.socket: port and socket contradict each other; keep one of the two",
        ),
        (
            "service = \"web\"\ninbound {\n listen = \"21000\"\n app = \":80\"\n}",
            "3: inbound.listen: \"21000\" is no address to listen on; write host:port or :port, such as \
             \"127.0.0.1:21000\"",
        ),
        (
            "service = \"web\"\nregistration {\n socket_directories = [\"run\"]\n}",
            "3: registration.socket_directories: \"run\" is no absolute path; write it from the root, such as \
             \"/run/lictor/db.sock\"",
        ),
        (
            "service = \"we b\"",
            "1: service: the name of the service, \"we b\", has a path segment that is empty or holds characters outside A-Z a-z \
             0-9 . _ -: peers would refuse its identity; rename the service, or set allow_percent_encoding in peers \
             here and at every peer",
        ),
    ] {
        let file = file(text);
        let failure = Settings::of_path(file.path()).expect_err(text);
        assert_eq!(failure.exit, Exit::Config, "{text}");
        assert_eq!(failure.to_string(), format!("{}:{expected}", file.path().display()));
    }
}

#[test]
fn the_library_follows_flag_variable_and_file_in_that_order() {
    let (name, other) = (linked(), backends::not_linked());
    let text = |name: &str| format!("service = \"web\"\ntls {{\n backend = \"{name}\"\n}}");
    let (good, bad) = (file(&text(name)), file(&text(other)));
    let line = |file: &tempfile::NamedTempFile, rest: &str| format!("-config {} {rest}", file.path().display());
    let variable = |name| [("LICTOR_TLS__BACKEND", name)];
    assert_eq!(settings(&line(&good, ""), []).tls.backend.name, name);
    assert_eq!(settings(&line(&bad, ""), variable(name)).tls.backend.name, name);
    assert_eq!(settings(&line(&bad, &format!("-tls-backend {name}")), variable(other)).tls.backend.name, name);
    let wrong = format!("tls.backend: this binary is built without \"{other}\"; linked here: {}", backends::names());
    for (line, environment, origin) in [
        (line(&bad, ""), variable(""), format!("{}:3", bad.path().display())),
        (line(&good, ""), variable(other), "LICTOR_TLS__BACKEND".to_owned()),
        (line(&good, &format!("-tls-backend {other}")), variable(name), "-tls-backend".to_owned()),
    ] {
        assert_eq!(failure(&line, environment), (Exit::Config, format!("{origin}: {wrong}")));
    }
}

#[test]
fn fips_is_required_by_flag_variable_or_file_and_not_by_default() {
    let file = file(&format!("service = \"web\"\ntls {{\n backend = \"{}\"\n require_fips = true\n}}", linked()));
    let line = format!("-config {}", file.path().display());
    let required = |line: &str, variable: &str| {
        settings(line, [("LICTOR_TLS__REQUIRE_FIPS", variable), ("LICTOR_TLS__BACKEND", linked())]).tls.require_fips
    };
    assert!(!required("-service web", ""));
    assert!(required("-service web", "true"));
    assert!(required("-service web -tls-require-fips", "false"));
    assert!(required(&line, ""));
    assert!(!required(&line, "false"));
    assert!(!required(&format!("{line} -tls-require-fips=false"), "true"));
}

#[test]
fn commands_without_a_sidecar_read_the_same_about_tls_and_nothing_else() {
    let environment = Environment::from([
        ("LICTOR_TLS__BACKEND", linked()),
        ("LICTOR_TLS__MIN_VERSION", "1.3"),
        ("LICTOR_DRAIN__TIMEOUT", "senseless"),
    ]);
    let flags = [("tls-require-fips", "tls.require_fips", "true".to_owned())];
    let found = Candidates::resolve(None, &flags, &environment).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(found.backends, [backends::choose(Some(linked())).expect("it is linked")]);
    assert_eq!((found.policy.tls12, found.require_fips), (false, true));
    let all = Candidates::resolve(None, &[], &Environment::default()).unwrap_or_else(|failure| panic!("{failure}"));
    assert_eq!(all.backends.len(), backends::linked().len());
    let flags = [("tls-backend", "tls.backend", backends::not_linked().to_owned())];
    let failure = Candidates::resolve(None, &flags, &environment).expect_err("it is not linked");
    assert_eq!(failure.exit, Exit::Config);
    assert!(failure.to_string().starts_with("-tls-backend: tls.backend: "), "{failure}");
}

#[test]
fn a_value_that_makes_no_sense_is_blamed_on_the_topmost_that_said_it() {
    let file = file("service = \"web\"\ninbound {\n listen = \"21000\"\n}\nupstream \"db\" {\n port = 1\n}\n");
    let line = format!("-config {} -service-addr :80", file.path().display());
    let starts = |line: &str, variable: (&str, &str), expected: &str| {
        let (exit, message) = failure(line, [variable]);
        assert_eq!(exit, Exit::Config);
        assert!(message.starts_with(expected), "{message}\ndoes not begin with\n{expected}");
    };
    starts(&line, ("A", ""), &format!("{}:3: inbound.listen: \"21000\" is no address", file.path().display()));
    starts(&line, ("LICTOR_INBOUND__LISTEN", "x"), "LICTOR_INBOUND__LISTEN: inbound.listen: \"x\" is no address");
    starts(&format!("{line} -listen y"), ("LICTOR_INBOUND__LISTEN", "x"), "-listen: inbound.listen: \"y\" is no");
    starts("-service web -http-addr ftp://a", ("A", ""), "-http-addr: agent.address: \"ftp://a\" is no address");
    starts("-service web -upstream a:1 -upstream b:1", ("A", ""), "-upstream: upstream.b: another upstream listens");
}

#[test]
fn what_only_a_restart_takes_over_is_named_by_its_keys() {
    let before = settings("-service web -upstream db:1", []);
    assert_eq!(before.fixed_by_start(&settings("-service web -upstream db:1 -tls-require-fips", [])), ["tls"]);
    let differs = |line: &str| before.fixed_by_start(&settings(line, []));
    let nothing: [&str; 0] = [];
    assert_eq!(differs("-service web -upstream db:1"), nothing);
    assert_eq!(differs("-service web -upstream db:2 -listen :4567 -service-addr :80"), nothing);
    assert_eq!(differs("-service other -upstream db:1"), ["service"]);
    assert_eq!(
        differs("-service web -tls-min-version 1.3 -http-addr a:1 -admin off -drain-timeout 5s -log-json"),
        ["agent", "tls", "admin", "log", "drain"]
    );
    let followed = settings("-sidecar-for web", []);
    assert_eq!(
        followed.fixed_by_start(&settings("-sidecar-for web", [("LICTOR_LIMITS__IDLE_TIMEOUT", "1s")])),
        ["limits"]
    );
}

#[test]
fn a_managed_proxy_drains_before_its_agent_kills_it() {
    let managed = settings("", [("CONNECT_PROXY_ID", "p"), ("CONNECT_PROXY_TOKEN", "t")]);
    assert_eq!(managed.drain, MANAGED_DRAIN);
    assert_eq!(settings("-service web", []).drain, DEFAULT_DRAIN);
    assert_eq!(settings("-service web -drain-timeout 5s", []).drain, Duration::from_secs(5));
}

#[test]
fn the_documented_example_is_valid() {
    let text = include_str!("../../examples/lictor.hcl");
    // Where several libraries are linked, the line about the library must stand.
    let file = file(&text.replace("# backend    = \"rustls\"", &format!("backend = \"{}\"", linked())));
    let settings = Settings::of_path(file.path()).unwrap_or_else(|failure| panic!("{failure}"));
    let Mode::Static(sidecar) = settings.mode else { panic!("not described by the file") };
    assert_eq!(sidecar.upstreams.len(), 3);
    assert!(sidecar.inbound.is_some() && sidecar.register.is_some());
    assert_eq!((settings.drain, settings.settle), (DEFAULT_DRAIN, DEFAULT_SETTLE));
    assert_eq!(
        settings.peers,
        PeerPolicy { max_leaf_ttl: Some(Duration::from_secs(72 * 3600)), ..PeerPolicy::default() }
    );
}
