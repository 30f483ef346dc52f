//! The command line: what may be written, its help, and what was written as plain values.

pub(crate) mod go;
pub(crate) mod upstream;

use std::{ffi::OsString, path::PathBuf};

use clap::{
    Arg, ArgAction, ArgMatches, Command,
    builder::{NonEmptyStringValueParser, PossibleValuesParser, TypedValueParser as _},
};

use self::upstream::UpstreamFlag;

/// What to do, in the words of the command line. Without `Debug`, since a flag may hold a token.
pub(crate) enum Action {
    Proxy(Box<ProxyFlags>),
    #[cfg(feature = "dev")]
    Dev(DevFlags),
    #[cfg(feature = "dev")]
    Agent(AgentFlags),
    Validate(PathBuf),
    Crypto(CryptoFlags),
    Version,
}

/// A flag whose value goes to a key of the configuration: flag, key, and the value as it was written.
pub(crate) type Setting = (&'static str, &'static str, String);

/// The flags of `lictor proxy`. `None` and empty mean: not written. Without `Debug`, since one may hold a token.
#[derive(Default)]
pub(crate) struct ProxyFlags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) proxy_id: Option<String>,
    pub(crate) sidecar_for: Option<String>,
    pub(crate) service: Option<String>,
    pub(crate) service_addr: Option<String>,
    pub(crate) listen: Option<String>,
    pub(crate) upstreams: Vec<UpstreamFlag>,
    pub(crate) register: Option<bool>,
    pub(crate) register_id: Option<String>,
    /// Settings that have a key in the file.
    pub(crate) settings: Vec<Setting>,
    /// Flags of the original that mean nothing here, for one warning each.
    pub(crate) ignored: Vec<&'static str>,
    pub(crate) ready_json: bool,
}

/// The flags of `lictor crypto`.
#[derive(Debug)]
pub(crate) struct CryptoFlags {
    pub(crate) config: Option<PathBuf>,
    pub(crate) settings: Vec<Setting>,
    pub(crate) json: bool,
}

/// The flags of `lictor dev`.
#[cfg(feature = "dev")]
#[derive(Clone, Debug)]
pub(crate) struct DevFlags {
    /// Those about TLS.
    pub(crate) settings: Vec<Setting>,
    /// The first of the ports that are used, or 0 for free ones.
    pub(crate) port_base: Option<u16>,
    pub(crate) json: bool,
    pub(crate) verbose: bool,
}

/// The flags of `lictor agent`.
#[cfg(feature = "dev")]
#[derive(Debug)]
pub(crate) struct AgentFlags {
    /// Those about TLS.
    pub(crate) settings: Vec<Setting>,
    pub(crate) address: std::net::SocketAddr,
    pub(crate) control: Option<std::net::SocketAddr>,
    pub(crate) unix_socket: Option<PathBuf>,
    pub(crate) datacenter: String,
    pub(crate) classic: bool,
    pub(crate) leaf_ttl: std::time::Duration,
    pub(crate) json: bool,
}

/// Flags of `proxy` whose value goes to a key of the configuration: flag, key, name of the value, help.
const SETTINGS: [(&str, &str, &str, &str); 19] = [
    (
        "http-addr",
        "agent.address",
        "ADDR",
        "The agent: host:port, http://…, https://… or unix:///path [env: CONSUL_HTTP_ADDR]",
    ),
    (
        "token",
        "agent.token",
        "TOKEN",
        "ACL token. Others on this host can read command lines: prefer -token-file [env: CONSUL_HTTP_TOKEN]",
    ),
    (
        "token-file",
        "agent.token_file",
        "FILE",
        "File with the ACL token; read again when it changes [env: CONSUL_HTTP_TOKEN_FILE]",
    ),
    ("ca-file", "agent.tls.ca_file", "FILE", "CA that issued the agent's certificate [env: CONSUL_CACERT]"),
    ("ca-path", "agent.tls.ca_path", "DIR", "Directory of such CAs [env: CONSUL_CAPATH]"),
    (
        "client-cert",
        "agent.tls.client_cert",
        "FILE",
        "Our certificate for an agent that asks for one [env: CONSUL_CLIENT_CERT]",
    ),
    ("client-key", "agent.tls.client_key", "FILE", "Its key [env: CONSUL_CLIENT_KEY]"),
    (
        "tls-server-name",
        "agent.tls.server_name",
        "NAME",
        "Name in the agent's certificate [env: CONSUL_TLS_SERVER_NAME]",
    ),
    ("datacenter", "agent.datacenter", "DC", "Datacenter in which upstreams are looked up; the agent's own by default"),
    ("namespace", "agent.namespace", "NS", "Namespace (Consul Enterprise) [env: CONSUL_NAMESPACE]"),
    ("partition", "agent.partition", "NAME", "Admin partition (Consul Enterprise) [env: CONSUL_PARTITION]"),
    (
        "tls-backend",
        "tls.backend",
        "NAME",
        "TLS library: rustls, openssl or boring; needed only where several are linked",
    ),
    ("tls-min-version", "tls.min_version", "VERSION", "Lowest TLS version in the mesh, 1.2 or 1.3 [default: 1.2]"),
    ("tls-require-fips", "tls.require_fips", "BOOL", "Start only where the TLS library is in FIPS mode"),
    ("workers", "workers", "N", "Threads that carry data [default: 2, at most the cores]"),
    ("admin", "admin.address", "ADDR", "Admin listener, host:port or off [default: 127.0.0.1:19100]"),
    ("admin-allow-remote", "admin.allow_remote", "BOOL", "Let the admin listener be reached from other hosts"),
    ("drain-timeout", "drain.timeout", "TIME", "How long connections may finish after SIGTERM [default: 30s]"),
    (
        "allow-public-upstreams",
        "registration.allow_public_upstreams",
        "BOOL",
        "Let the registration bind upstreams to addresses other than loopback",
    ),
];

/// Parses `argv`, the name of the programme included.
///
/// # Errors
/// clap's error: usage, or help and version to be printed.
pub(crate) fn parse(argv: impl IntoIterator<Item = OsString>) -> Result<Action, clap::Error> {
    let command = command();
    let argv = go::normalise(&command, argv);
    let matches = command.try_get_matches_from(argv)?;
    Ok(match matches.subcommand() {
        Some(("proxy", matches)) => Action::Proxy(Box::new(proxy_flags(matches))),
        #[cfg(feature = "dev")]
        Some(("dev", matches)) => Action::Dev(DevFlags {
            settings: settings_of(matches, is_about_tls),
            port_base: matches.get_one("port-base").copied(),
            json: switch(matches, "ready-json").unwrap_or_default(),
            verbose: switch(matches, "verbose").unwrap_or_default(),
        }),
        #[cfg(feature = "dev")]
        Some(("agent", matches)) => Action::Agent(AgentFlags {
            settings: settings_of(matches, is_about_library),
            address: matches.get_one("http-addr").copied().unwrap_or(DEFAULT_AGENT),
            control: matches.get_one("control").copied(),
            unix_socket: matches.get_one("unix-socket").cloned(),
            datacenter: matches.get_one("datacenter").cloned().unwrap_or_else(|| "dc1".to_owned()),
            classic: switch(matches, "classic").unwrap_or_default(),
            leaf_ttl: matches.get_one("leaf-ttl").copied().unwrap_or(std::time::Duration::from_secs(72 * 3600)),
            json: switch(matches, "ready-json").unwrap_or_default(),
        }),
        Some(("validate", matches)) => {
            Action::Validate(matches.get_one::<PathBuf>("FILE").cloned().unwrap_or_default())
        }
        Some(("crypto", matches)) => Action::Crypto(CryptoFlags {
            config: matches.get_one("config").cloned(),
            settings: settings_of(matches, is_about_tls),
            json: switch(matches, "json").unwrap_or_default(),
        }),
        _ => Action::Version,
    })
}

#[cfg(feature = "dev")]
const DEFAULT_AGENT: std::net::SocketAddr =
    std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 8500);

/// The whole command line.
pub(crate) fn command() -> Command {
    let root = Command::new("lictor")
        .about("A sidecar proxy for Consul's service mesh: mutual TLS and intentions for plain TCP")
        .version(env!("CARGO_PKG_VERSION"))
        .disable_help_subcommand(true)
        .subcommand_required(true)
        .arg_required_else_help(true)
        .after_help(
            "Try it with nothing else installed:\n  lictor dev\n\nBeside a Consul agent:\n  lictor proxy -sidecar-for \
             web\n\nExit codes: 0 stopped cleanly, 1 failed or drained by force, 2 usage, 3 invalid configuration,\n4 \
             the agent is unreachable or refuses, 5 address in use, 6 FIPS is required and absent.",
        );
    #[cfg(feature = "dev")]
    let root = root.subcommand(dev_command());
    let root = root.subcommand(proxy_command());
    #[cfg(feature = "dev")]
    let root = root.subcommand(agent_command());
    root.subcommand(
        Command::new("validate")
            .about("Check a configuration file without starting anything")
            .arg(
                Arg::new("FILE")
                    .help("Configuration file: .hcl, .toml, .json or .yaml")
                    .required(true)
                    .value_parser(clap::value_parser!(PathBuf)),
            )
            .after_help("Example:\n  lictor validate /etc/lictor/web.hcl"),
    )
    .subcommand(crypto_command())
    .subcommand(Command::new("version").about("Print the version and what is linked"))
}

fn proxy_command() -> Command {
    let mut command = Command::new("proxy")
        .about("Run the sidecar of one service")
        .long_about(
            "Run the sidecar of one service. Takes the flags and variables of `consul connect proxy`, with one dash or \
             two.\n\nWhose sidecar it is, say in one of four ways: -sidecar-for with the ID of a service whose sidecar is \
             registered with the agent, -proxy-id with the ID of the sidecar itself, -service with everything else by \
             flags, or -config with a file.",
        )
        .args_override_self(true)
        .arg(config_file())
        .arg(text("sidecar-for", "ID", "ID of a registered service; its sidecar's registration is followed [env: CONNECT_SIDECAR_FOR]"))
        .arg(text("proxy-id", "ID", "ID of a registered sidecar; its registration is followed [env: CONNECT_PROXY_ID]"))
        .arg(text("service", "NAME", "Name of the service, for a sidecar that is described by flags"))
        .arg(text("service-addr", "ADDR", "Where the application listens, host:port; needed with -listen"))
        .arg(text("listen", "ADDR", "Where the mesh connects to, [host]:port; without it nothing comes in"))
        .arg(
            text("upstream", "NAME:PORT", "A local port that leads to another service, name[.query]:[address:]port; may be repeated")
                .action(ArgAction::Append)
                .value_parser(NonEmptyStringValueParser::new().try_map(|text| upstream::parse(&text))),
        )
        .arg(flag("register", "Register the sidecar with the agent, with a TTL check; needs -service and -listen"))
        .arg(text("register-id", "SUFFIX", "Suffix of the registered ID, for several sidecars of one service"))
        .arg(
            text("log-level", "LEVEL", "trace, debug, info, warn or error [default: info]").value_parser(
                PossibleValuesParser::new(["trace", "debug", "info", "warn", "err", "error"]).map(|level| {
                    if level.eq_ignore_ascii_case("err") { "error".to_owned() } else { level.to_lowercase() }
                }),
            )
            .ignore_case(true)
            .hide_possible_values(true),
        )
        .arg(flag("log-json", "Log as JSON, one object a line"))
        .arg(flag("ready-json", "Print one line of JSON on standard output when everything is ready"))
        .arg(text("pprof-addr", "ADDR", "Not served; taken with a warning").hide(true))
        .arg(flag("stale", "Without effect, as in the original").hide(true));
    command = with_settings(command, |_| true);
    command.after_help(
        "Examples:\n  lictor proxy -sidecar-for web\n  lictor proxy -service web -service-addr 127.0.0.1:8080 -listen \
         :21000 -upstream db:5432 -register\n  lictor proxy -config /etc/lictor/web.hcl\n\nEvery key of the file can be \
         given by a variable as well: LICTOR_TLS__MIN_VERSION=1.3 is min_version in tls.\nFlags rule over variables, \
         variables over the file.",
    )
}

fn crypto_command() -> Command {
    let command = Command::new("crypto")
        .about("Show which TLS library would run, and what it does")
        .long_about(
            "Shows the TLS library that `lictor proxy` would run with under the same file, variables and flags: its \
             version, whether it is in FIPS mode and what that means, versions, suites, groups and signature schemes, \
             and in what it differs from the policy. Starts nothing else. Where several libraries are linked and none \
             is named, all are shown.",
        )
        .args_override_self(true)
        .arg(config_file())
        .arg(flag("json", "Print JSON"));
    with_settings(command, is_about_tls).after_help(
        "Examples:\n  lictor crypto\n  lictor crypto -json -config /etc/lictor/web.hcl\n\nEnds with 6 where FIPS is \
         required and absent.",
    )
}

#[cfg(feature = "dev")]
fn dev_command() -> Command {
    let command = Command::new("dev")
        .about("A whole mesh in one process to try things out")
        .long_about(
            "Runs an embedded Consul agent with a certificate authority, two small services (web calls api) and a sidecar \
             for each, all on loopback, and prints what to try. Nothing else needs to be installed.",
        )
        .args_override_self(true)
        .arg(
            text("port-base", "PORT", "First of nine ports in a row; 0 takes free ones [default: 8500 and 19100 and on, or free ones]")
                .value_parser(clap::value_parser!(u16)),
        )
        .arg(flag("ready-json", "Print one line of JSON with all addresses instead of the guide").visible_alias("json"))
        .arg(flag("verbose", "Log everything, not only what matters"));
    with_settings(command, is_about_tls).after_help("Example:\n  lictor dev")
}

#[cfg(feature = "dev")]
fn agent_command() -> Command {
    let command = Command::new("agent")
        .about("Run the embedded development agent alone")
        .long_about(
            "Runs the embedded development agent alone: the part of a Consul agent's HTTP API that a mesh needs, with a \
             certificate authority in memory. It is for development and tests, never for production.",
        )
        .args_override_self(true)
        .arg(text("http-addr", "ADDR", "Address of the API [default: 127.0.0.1:8500]").value_parser(socket_address))
        .arg(text("control", "ADDR", "Address of the listener by which tests make it misbehave").value_parser(socket_address))
        .arg(text("unix-socket", "PATH", "A unix socket that serves the same API").value_parser(clap::value_parser!(PathBuf)))
        .arg(text("datacenter", "DC", "Its datacenter [default: dc1]"))
        .arg(flag("classic", "Speak the dialect of Consul 1.10 instead of today's"))
        .arg(text("leaf-ttl", "TIME", "How long leaf certificates live [default: 72h]").value_parser(humantime::parse_duration))
        .arg(flag("ready-json", "Print one line of JSON on standard output when it listens"));
    with_settings(command, is_about_library).after_help("Example:\n  lictor agent -http-addr 127.0.0.1:8500")
}

#[cfg(feature = "dev")]
fn socket_address(text: &str) -> Result<std::net::SocketAddr, String> {
    text.parse().map_err(|_| "write an IP address and a port, such as 127.0.0.1:8500".to_owned())
}

/// Whether a setting says how the mesh is encrypted.
fn is_about_tls(key: &str) -> bool {
    key.starts_with("tls.")
}

/// Whether a setting chooses the library.
#[cfg(feature = "dev")]
fn is_about_library(key: &str) -> bool {
    matches!(key, "tls.backend" | "tls.require_fips")
}

/// Adds the flags whose key is `wanted`.
fn with_settings(mut command: Command, wanted: fn(&str) -> bool) -> Command {
    for (name, _, value, help) in SETTINGS.into_iter().filter(|(_, key, ..)| wanted(key)) {
        command = command.arg(if value == "BOOL" { flag(name, help) } else { text(name, value, help) });
    }
    command
}

/// What was written of the flags whose key is `wanted`.
fn settings_of(matches: &ArgMatches, wanted: fn(&str) -> bool) -> Vec<Setting> {
    let mut settings = Vec::new();
    for (name, key, value, _) in SETTINGS.into_iter().filter(|(_, key, ..)| wanted(key)) {
        let text =
            if value == "BOOL" { switch(matches, name).map(|value| value.to_string()) } else { string(matches, name) };
        settings.extend(text.map(|text| (name, key, text)));
    }
    settings
}

fn config_file() -> Arg {
    text("config", "FILE", "Configuration file: .hcl, .toml, .json or .yaml").value_parser(clap::value_parser!(PathBuf))
}

/// A flag with a value.
fn text(name: &'static str, value: &'static str, help: &'static str) -> Arg {
    Arg::new(name).long(name).value_name(value).help(help).allow_hyphen_values(true)
}

/// A flag that may stand alone: `-x`, `-x=true`, `-x=false`.
fn flag(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name)
        .long(name)
        .help(help)
        .num_args(0..=1)
        .require_equals(true)
        .default_missing_value("true")
        .hide_possible_values(true)
        .value_name("BOOL")
        .value_parser(go::parse_bool)
}

fn switch(matches: &ArgMatches, name: &str) -> Option<bool> {
    matches.get_one::<bool>(name).copied()
}

/// The value of a flag; an empty one counts as not written, as in Go, whose flags default to empty.
fn string(matches: &ArgMatches, name: &str) -> Option<String> {
    matches.get_one::<String>(name).cloned().filter(|value| !value.is_empty())
}

fn proxy_flags(matches: &ArgMatches) -> ProxyFlags {
    let mut settings = settings_of(matches, |_| true);
    settings.extend(string(matches, "log-level").map(|level| ("log-level", "log.level", level)));
    settings.extend(switch(matches, "log-json").map(|json| ("log-json", "log.json", json.to_string())));
    let mut ignored = Vec::new();
    if string(matches, "pprof-addr").is_some() {
        ignored.push("pprof-addr");
    }
    ProxyFlags {
        config: matches.get_one("config").cloned(),
        proxy_id: string(matches, "proxy-id"),
        sidecar_for: string(matches, "sidecar-for"),
        service: string(matches, "service"),
        service_addr: string(matches, "service-addr"),
        listen: string(matches, "listen"),
        upstreams: matches.get_many("upstream").map(|all| all.cloned().collect()).unwrap_or_default(),
        register: switch(matches, "register"),
        register_id: string(matches, "register-id"),
        settings,
        ignored,
        ready_json: switch(matches, "ready-json").unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn proxy(line: &str) -> Result<ProxyFlags, clap::Error> {
        let argv = line.split_whitespace().map(OsString::from);
        match parse(argv)? {
            Action::Proxy(flags) => Ok(*flags),
            _ => panic!("not proxy: {line}"),
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        command().debug_assert();
    }

    #[test]
    fn every_flag_of_the_original_is_taken() {
        let flags = proxy(
            "lictor proxy -proxy-id a -sidecar-for b -service c -service-addr d:1 -listen :2 -upstream db:3 -register \
             -register-id x -log-level TRACE -log-json -pprof-addr e:4 -http-addr f:5 -token g -token-file h -ca-file i \
             -ca-path j -client-cert k -client-key l -tls-server-name m -datacenter n -stale",
        )
        .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(flags.proxy_id.as_deref(), Some("a"));
        assert_eq!(flags.register, Some(true));
        assert_eq!(flags.upstreams.len(), 1);
        assert_eq!(flags.ignored, ["pprof-addr"]);
        assert_eq!(flags.settings.len(), 11);
        assert!(flags.settings.contains(&("log-level", "log.level", "trace".to_owned())));
    }

    #[test]
    fn the_last_of_a_repeated_flag_counts_and_upstreams_add_up() {
        let flags = proxy("lictor proxy -service a -service b -upstream db:1 -upstream db2:2")
            .unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(flags.service.as_deref(), Some("b"));
        assert_eq!(flags.upstreams.len(), 2);
    }

    #[test]
    fn a_wrong_flag_is_a_usage_error_that_names_the_nearest() {
        let error = proxy("lictor proxy -sidecar-fro web").err().expect("unknown").to_string();
        assert!(error.contains("--sidecar-for"), "{error}");
        for line in [
            "lictor proxy web",
            "lictor proxy -log-level chatty",
            "lictor proxy -upstream foo",
            "lictor proxy -register=maybe",
            "lictor",
        ] {
            let error = parse(line.split_whitespace().map(OsString::from)).err().expect(line);
            assert_eq!(error.exit_code(), 2, "{line}: {error}");
        }
    }

    #[test]
    fn every_command_has_help_with_an_example() {
        for line in ["lictor -h", "lictor proxy -help", "lictor validate --help"] {
            let error = parse(line.split_whitespace().map(OsString::from)).err().expect(line);
            assert_eq!(error.exit_code(), 0, "{line}");
        }
        let help = parse(["lictor", "validate", "-help"].map(OsString::from)).err().expect("help").to_string();
        assert!(help.contains(".hcl, .toml, .json or .yaml") && help.contains("lictor validate /etc"), "{help}");
        let help = parse(["lictor", "proxy", "-help"].map(OsString::from)).err().expect("help").to_string();
        assert!(help.contains("lictor proxy -sidecar-for web"), "{help}");
    }
}
