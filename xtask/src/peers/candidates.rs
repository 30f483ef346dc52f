//! Who is measured: the peers that are installed, and Lictor's binaries; and how each is started.

use std::{
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail, ensure};

/// How a proxy is started in one direction; words in `@` are filled in by [`fill`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct Recipe {
    /// A template in `benches/peers`, written out to `@config@`.
    pub(crate) config: Option<&'static str>,
    /// The arguments after the program, separated by spaces.
    pub(crate) arguments: &'static str,
}

/// A proxy that may be installed.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    /// The variable that says where it is.
    variable: &'static str,
    /// What it is called on the `PATH`.
    programs: &'static [&'static str],
    /// How it is asked for its version.
    version: &'static str,
    /// mTLS in, plain out.
    inbound: Recipe,
    /// Plain in, mTLS out.
    outbound: Option<Recipe>,
    /// Takes its certificates from an agent and asks it about each connection.
    mesh: bool,
}

/// Every peer that is known.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "Envoy",
        variable: "ENVOY",
        programs: &["envoy"],
        version: "--version",
        inbound: Recipe { config: Some("envoy-in.yaml"), arguments: ENVOY },
        outbound: Some(Recipe { config: Some("envoy-out.yaml"), arguments: ENVOY }),
        mesh: false,
    },
    Peer {
        name: "HAProxy",
        variable: "HAPROXY",
        programs: &["haproxy"],
        version: "-v",
        inbound: Recipe { config: Some("haproxy-in.cfg"), arguments: "-db -f @config@" },
        outbound: Some(Recipe { config: Some("haproxy-out.cfg"), arguments: "-db -f @config@" }),
        mesh: false,
    },
    Peer {
        name: "nginx",
        variable: "NGINX",
        programs: &["nginx"],
        version: "-v",
        inbound: Recipe { config: Some("nginx-in.conf"), arguments: "-c @config@ -e @folder@/nginx.log" },
        outbound: Some(Recipe { config: Some("nginx-out.conf"), arguments: "-c @config@ -e @folder@/nginx.log" }),
        mesh: false,
    },
    Peer {
        name: "stunnel",
        variable: "STUNNEL",
        programs: &["stunnel4", "stunnel"],
        version: "-version",
        inbound: Recipe { config: Some("stunnel-in.conf"), arguments: "@config@" },
        outbound: Some(Recipe { config: Some("stunnel-out.conf"), arguments: "@config@" }),
        mesh: false,
    },
    Peer {
        name: "hitch",
        variable: "HITCH",
        programs: &["hitch"],
        version: "--version",
        inbound: Recipe { config: Some("hitch-in.conf"), arguments: "--config=@config@" },
        outbound: None,
        mesh: false,
    },
    Peer {
        name: "ghostunnel",
        variable: "GHOSTUNNEL",
        programs: &["ghostunnel"],
        version: "--version",
        inbound: Recipe {
            config: None,
            arguments: "server --listen 127.0.0.1:@listen@ --target 127.0.0.1:@target@ --cert @certificate@ --key \
                        @key@ --cacert @roots@ --allow-all --quiet all",
        },
        outbound: Some(Recipe {
            config: None,
            arguments: "client --listen 127.0.0.1:@listen@ --target 127.0.0.1:@target@ --override-server-name \
                        localhost --cert @certificate@ --key @key@ --cacert @roots@ --quiet all",
        }),
        mesh: false,
    },
    Peer {
        name: "Consul's own",
        variable: "CONSUL",
        programs: &["consul"],
        version: "version",
        inbound: Recipe {
            config: None,
            arguments: "connect proxy -http-addr http://127.0.0.1:@agent@ -log-level err -service @service@ \
                        -service-addr 127.0.0.1:@target@ -listen 127.0.0.1:@listen@ -register",
        },
        outbound: Some(Recipe {
            config: None,
            arguments: "connect proxy -http-addr http://127.0.0.1:@agent@ -log-level err -service web -upstream \
                        @service@:127.0.0.1:@listen@",
        }),
        mesh: true,
    },
];

const ENVOY: &str = "-c @config@ --concurrency 1 --disable-hot-restart -l error --use-dynamic-base-id";

/// Lictor as its users run it: every check, limit and deadline is at its default. Only its listeners are put where
/// several of them can stand beside each other, and the log is as loud as that of the peers.
const LICTOR_IN: Recipe = Recipe {
    config: None,
    arguments: "proxy -http-addr http://127.0.0.1:@agent@ -log-level warn -admin 127.0.0.1:@admin@ -service @service@ \
                -service-addr 127.0.0.1:@target@ -listen 127.0.0.1:@listen@ -register",
};
const LICTOR_OUT: Recipe = Recipe {
    config: None,
    arguments: "proxy -http-addr http://127.0.0.1:@agent@ -log-level warn -admin 127.0.0.1:@admin@ -service web \
                -upstream @service@:127.0.0.1:@listen@",
};

/// In a chain Lictor agrees on the keys with itself, and would choose the hybrid group where the peers have X25519.
const LICTOR_ENVIRONMENT: &[(&str, &str)] = &[("LICTOR_TLS__HYBRID", "false")];

/// A proxy that will be measured.
#[derive(Clone, Debug)]
pub(crate) struct Candidate {
    pub(crate) name: String,
    pub(crate) program: PathBuf,
    pub(crate) version: String,
    pub(crate) lictor: bool,
    pub(crate) mesh: bool,
    pub(crate) inbound: Recipe,
    pub(crate) outbound: Option<Recipe>,
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Candidate {
    /// A binary of Lictor under a name of its own.
    pub(crate) fn lictor(name: &str, program: &Path) -> Result<Self> {
        let program = program.canonicalize().with_context(|| format!("no such binary: {}", program.display()))?;
        Ok(Self {
            name: format!("Lictor, {name}"),
            version: said(&program, "version"),
            program,
            lictor: true,
            mesh: true,
            inbound: LICTOR_IN,
            outbound: Some(LICTOR_OUT),
            environment: LICTOR_ENVIRONMENT,
        })
    }

    /// A word for names of services and folders.
    pub(crate) fn slug(&self) -> String {
        let slug: String = self.name.chars().filter(char::is_ascii_alphanumeric).collect();
        slug.to_ascii_lowercase()
    }
}

/// The peers that are there, and a line for each one that is not.
pub(crate) fn installed() -> (Vec<Candidate>, Vec<String>) {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let (mut found, mut missing) = (Vec::new(), Vec::new());
    for peer in PEERS {
        match locate(peer.variable, peer.programs, std::env::var_os(peer.variable).as_deref(), &path) {
            Ok(program) => found.push(Candidate {
                name: peer.name.to_owned(),
                version: said(&program, peer.version),
                program,
                lictor: false,
                mesh: peer.mesh,
                inbound: peer.inbound,
                outbound: peer.outbound,
                environment: &[],
            }),
            Err(why) => missing.push(format!("{}: {why:#}", peer.name)),
        }
    }
    (found, missing)
}

/// The real `consul`, for its agent.
pub(crate) fn consul() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    locate("CONSUL", &["consul"], std::env::var_os("CONSUL").as_deref(), &path).ok()
}

/// The file that the variable names, else the first of these programs on the path.
fn locate(variable: &str, programs: &[&str], named: Option<&OsStr>, path: &OsString) -> Result<PathBuf> {
    if let Some(named) = named.filter(|named| !named.is_empty()) {
        let named = PathBuf::from(named);
        // What is named wrongly is not looked for elsewhere: another version would be measured under its name.
        ensure!(named.is_file(), "not measured, {variable}={} is no file", named.display());
        return Ok(named);
    }
    let folders: Vec<PathBuf> = std::env::split_paths(path).collect();
    for program in programs {
        if let Some(found) = folders.iter().map(|folder| folder.join(program)).find(|file| file.is_file()) {
            return Ok(found);
        }
    }
    bail!("not measured, no {} on the PATH; {variable}=FILE names one", programs.join(" or "))
}

/// The first line that a program says of its version, wherever it says it.
fn said(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let Ok(output) = output else { return "version unknown".to_owned() };
    let text = [output.stdout, output.stderr].concat();
    let text = String::from_utf8_lossy(&text);
    let line = text.lines().map(str::trim).find(|line| line.chars().any(|letter| letter.is_ascii_digit()));
    line.unwrap_or("version unknown").replace(&*program.to_string_lossy(), "").trim().to_owned()
}

/// Fills the words in `@` of a template; one without a value is an error, any other `@` stays.
pub(crate) fn fill(template: &str, values: &[(&str, String)]) -> Result<String> {
    let mut filled = template.to_owned();
    for (word, value) in values {
        filled = filled.replace(&format!("@{word}@"), value);
    }
    let mut parts = filled.split('@').skip(1);
    let is_word =
        |part: &&str| !part.is_empty() && part.chars().all(|letter| letter.is_ascii_lowercase() || letter == '_');
    match parts.find(is_word) {
        // The last part has no `@` behind it.
        Some(word) if filled.contains(&format!("@{word}@")) => bail!("a template asks for @{word}@"),
        _ => Ok(filled),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_named_program_wins_over_the_path() {
        let folder = tempfile::tempdir().unwrap();
        let (named, on_path) = (folder.path().join("mine"), folder.path().join("envoy"));
        fs::write(&named, "").unwrap();
        fs::write(&on_path, "").unwrap();
        let path = folder.path().as_os_str().to_owned();
        assert_eq!(locate("ENVOY", &["envoy"], Some(named.as_os_str()), &path).unwrap(), named);
        assert_eq!(locate("ENVOY", &["envoy"], None, &path).unwrap(), on_path);
        assert_eq!(locate("ENVOY", &["envoy"], Some(OsStr::new("")), &path).unwrap(), on_path);
    }

    #[test]
    fn a_wrongly_named_program_is_not_replaced_by_another() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("envoy"), "").unwrap();
        let path = folder.path().as_os_str().to_owned();
        let why = locate("ENVOY", &["envoy"], Some(OsStr::new("/nowhere/envoy")), &path).unwrap_err().to_string();
        assert!(why.contains("ENVOY=/nowhere/envoy"), "{why}");
    }

    #[test]
    fn a_missing_program_is_told_with_the_variable_that_names_it() {
        let why = locate("STUNNEL", &["stunnel4", "stunnel"], None, &OsString::new()).unwrap_err().to_string();
        assert!(why.contains("stunnel4 or stunnel") && why.contains("STUNNEL="), "{why}");
    }

    #[test]
    fn a_template_is_filled_or_refused() {
        let values = [("listen", "1".to_owned()), ("key", "/k".to_owned())];
        assert_eq!(fill("a @listen@ \"@type\": b@c @key@", &values).unwrap(), "a 1 \"@type\": b@c /k");
        assert!(fill("@listen@ @roots@", &values).is_err());
    }

    #[test]
    fn every_template_that_a_recipe_names_exists() {
        for peer in PEERS {
            for recipe in [Some(peer.inbound), peer.outbound].into_iter().flatten() {
                if let Some(config) = recipe.config {
                    assert!(super::super::place::template(config).is_ok(), "{config}");
                }
            }
        }
    }
}
