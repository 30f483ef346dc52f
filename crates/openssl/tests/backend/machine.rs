//! The machine's openssl.cnf, which OpenSSL reads by itself when it starts.
//!
//! Since it does so once, each configuration gets a process of its own: the test runs itself again under it.

use std::{
    env,
    fmt::Write as _,
    fs,
    path::Path,
    process::{Command, Output},
    sync::Arc,
};

use lictor_conformance::{
    certs::Mesh,
    pair::{Ours, Peer, PeerSettings, Version, our_context, talk},
    rows::Case,
    seed, suite,
    verifier::{Side, judge},
};
use lictor_core::{TlsBackend, TlsPolicy, tls::BuildError};
use lictor_openssl::OpensslBackend;
use openssl::ssl::{SslContextBuilder, SslMethod, SslOptions, SslVersion};

use crate::queue::nothing_is_left;

/// A section of what OpenSSL sets on each context that a program makes, and the proof that it was read.
struct Default {
    name: &'static str,
    lines: &'static str,
    is_in_force: fn(&mut SslContextBuilder) -> bool,
}

const DEFAULTS: [Default; 4] = [
    Default {
        name: "loose",
        lines: "MinProtocol = TLSv1
                CipherString = ALL:@SECLEVEL=0
                Ciphersuites = TLS_AES_128_CCM_SHA256:TLS_CHACHA20_POLY1305_SHA256
                Groups = X448:P-521
                SignatureAlgorithms = ed25519:RSA+SHA1:ECDSA+SHA1
                ClientSignatureAlgorithms = ed25519:RSA+SHA1:ECDSA+SHA1
                Options = Compression,UnsafeLegacyRenegotiation,-MiddleboxCompat
                NumTickets = 4
                RecordPadding = 4096
                VerifyMode = Once",
        is_in_force: |builder| builder.min_proto_version() == Some(SslVersion::TLS1),
    },
    Default {
        name: "tight",
        lines: "MinProtocol = TLSv1.3
                CipherString = AES256-SHA:@SECLEVEL=4
                Ciphersuites = TLS_AES_256_GCM_SHA384
                Groups = P-521
                SignatureAlgorithms = RSA-PSS+SHA512
                ClientSignatureAlgorithms = RSA-PSS+SHA512
                Options = PrioritizeChaCha,-EncryptThenMac,-ExtendedMasterSecret",
        is_in_force: |builder| builder.min_proto_version() == Some(SslVersion::TLS1_3),
    },
    Default {
        name: "old",
        lines: "MaxProtocol = TLSv1.2
                Protocol = -TLSv1.3",
        is_in_force: |builder| builder.options().contains(SslOptions::NO_TLSV1_3),
    },
    // OpenSSL leaves an error behind and goes on.
    Default { name: "wrong", lines: "NoSuchCommand = 1", is_in_force: |_| true },
];

/// Names the configuration that a process was started under.
const UNDER: &str = "LICTOR_TEST_UNDER";

/// What the backend says and sends when no configuration tells it anything.
const UNTOLD: &str = "LICTOR_TEST_UNTOLD";

#[test]
fn a_configuration_cannot_change_the_policy() {
    let test = "machine::a_configuration_cannot_change_the_policy";
    if let Ok(name) = env::var(UNDER) {
        return holds_the_policy(&name);
    }
    for default in DEFAULTS {
        let configuration = format!(
            "openssl_conf = all\n[all]\nssl_conf = programs\n[programs]\nsystem_default = each\n[each]\n{}\n",
            default.lines
        );
        let output = under(&configuration, default.name, test, &untold());
        assert!(output.status.success(), "{}: {}", default.name, text(&output));
    }
}

fn holds_the_policy(name: &str) {
    let default = DEFAULTS.iter().find(|default| default.name == name).unwrap();
    let mut builder = SslContextBuilder::new(SslMethod::tls()).unwrap();
    assert!((default.is_in_force)(&mut builder), "the configuration was not read");
    drop(openssl::error::ErrorStack::get());

    let backend: Arc<dyn TlsBackend> = Arc::new(OpensslBackend::new().unwrap());
    nothing_is_left();
    let untold = env::var(UNTOLD).unwrap();
    let (facts, mask) = untold.split_once('\n').unwrap();
    assert_eq!(format!("{:?}", backend.crypto(&TlsPolicy::default())), facts);
    let hello = hex(&hello(backend.as_ref()));
    assert_eq!(hello.len(), mask.len());
    for (at, (told, untold)) in hello.chars().zip(mask.chars()).enumerate() {
        assert!(untold == '.' || told == untold, "the hello differs at {at}: {hello}\n{mask}");
    }
    assert_eq!(size_of_a_record(backend.as_ref()), 5 + 1 + 1 + 16, "padding");
    for family in suite::families() {
        if ["policy", "versions", "resumption"].contains(&family.name) {
            family.run(&backend, seed()).judge();
        }
    }
}

#[test]
fn a_configuration_that_leaves_no_cryptography_is_an_error_at_the_start() {
    let test = "machine::a_configuration_that_leaves_no_cryptography_is_an_error_at_the_start";
    if env::var(UNDER).is_ok() {
        let error = OpensslBackend::new().err();
        assert!(matches!(error, Some(BuildError::Refused { what: "policy", .. })), "{error:?}");
        return nothing_is_left();
    }
    for (name, section) in [
        ("no provider", "providers = some\n[some]\nnull = on\n[on]\nactivate = 1\n"),
        ("FIPS that is not there", "alg_section = evp\n[evp]\ndefault_properties = fips=yes\n"),
    ] {
        let output = under(&format!("openssl_conf = all\n[all]\n{section}"), name, test, "");
        assert!(output.status.success(), "{name}: {}", text(&output));
    }
}

/// Runs the test of this name again in a process that reads `configuration`.
fn under(configuration: &str, name: &str, test: &str, untold: &str) -> Output {
    let file = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}.cnf", name.replace(' ', "-")));
    fs::write(&file, configuration).unwrap();
    let mut run = Command::new(env::current_exe().unwrap());
    run.args(["--exact", test, "--nocapture"]).env(UNDER, name).env(UNTOLD, untold).env("OPENSSL_CONF", file);
    run.output().unwrap()
}

/// What a backend says, and in a second line its hello, with a dot for each digit that is another each time.
fn untold() -> String {
    let backend = OpensslBackend::new().unwrap();
    let mut mask: Vec<char> = hex(&hello(&backend)).chars().collect();
    for _ in 0..16 {
        for (known, again) in mask.iter_mut().zip(hex(&hello(&backend)).chars()) {
            if *known != again {
                *known = '.';
            }
        }
    }
    format!("{:?}\n{}", backend.crypto(&TlsPolicy::default()), mask.into_iter().collect::<String>())
}

/// Our session with a peer, at its beginning.
fn pair(backend: &dyn TlsBackend) -> (Ours, Peer) {
    let mesh = Mesh::new(1);
    let context = our_context(backend, &mesh, &TlsPolicy::default());
    let case = Case::issued(&mesh.leaf(), &mesh.root, &[], &[&mesh.root]);
    let ours = Ours::new(context.as_ref(), judge(&mesh, &case, Side::Outbound), Side::Outbound);
    (ours, Peer::new(&PeerSettings::new(case.chain, case.key, Version::Tls13), Side::Outbound))
}

/// The ClientHello of a new session.
fn hello(backend: &dyn TlsBackend) -> Vec<u8> {
    pair(backend).0.sent()
}

/// How many bytes it takes to send one.
fn size_of_a_record(backend: &dyn TlsBackend) -> usize {
    let (mut ours, mut peer) = pair(backend);
    talk(&mut ours, &mut peer, usize::MAX);
    ours.send(&[1]);
    ours.sent().len()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut hex, byte| {
        let _ = write!(hex, "{byte:02x}");
        hex
    })
}

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}
