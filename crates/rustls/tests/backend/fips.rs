//! The FIPS build, as its peers see it. What it says of itself is tested beside the code.

use lictor_core::{MeshSession, SessionError, TlsBackend, TlsPolicy};
use lictor_rustls::RustlsBackend;
use rustls::{
    CipherSuite, ClientConfig,
    crypto::{CryptoProvider, aws_lc_rs as library, aws_lc_rs::kx_group},
    server::Acceptor,
};

use crate::{
    peers::{End, Ours, Plain, TLS12, TLS13, WHOLE, client_config, client_config_of, client_config_with, pump},
    pki::Ca,
};

#[test]
fn the_module_is_in_use_and_says_so() {
    let told = RustlsBackend::new().expect("the module is there").crypto(&TlsPolicy::default());
    assert!(told.fips.enabled);
    assert!(told.library.contains("AWS-LC FIPS "), "{}", told.library);
}

#[test]
fn the_hello_offers_what_is_said_and_nothing_else() {
    let ca = Ca::new();
    let told = RustlsBackend::new().unwrap().crypto(&TlsPolicy::default());
    let mut acceptor = Acceptor::default();
    let mut client = Ours::client(&ca.leaf("db"), &ca);
    client.feed(&[]);
    acceptor.read_tls(&mut &client.sent()[..]).unwrap();
    let accepted = acceptor.accept().unwrap().expect("a whole hello");
    let hello = accepted.client_hello();
    let suites = hello.cipher_suites().iter().filter(|suite| **suite != CipherSuite::TLS_EMPTY_RENEGOTIATION_INFO_SCSV);
    assert_eq!(suites.count(), told.suites.len());
    let groups: Vec<_> = hello.named_groups().unwrap().iter().map(|group| format!("{group:?}")).collect();
    assert_eq!(groups, told.groups);
}

#[test]
fn peers_that_know_only_what_fips_does_not_approve_of_are_refused() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let refused = |config: ClientConfig| {
        let mut client = Plain::client_of(&config.into());
        let mut server = Ours::<dyn MeshSession>::server(&web, &ca);
        pump(&mut client, &mut server, WHOLE);
        assert!(matches!(server.error, Some(SessionError::NothingInCommon(_))), "{:?}", server.error);
    };
    refused(client_config_of(vec![kx_group::X25519], &db));
    for version in [TLS12, TLS13] {
        let suites = library::ALL_CIPHER_SUITES.iter().filter(|suite| !suite.fips()).copied().collect();
        let provider = CryptoProvider { cipher_suites: suites, ..library::default_provider() };
        refused(client_config_with(provider, version, Some(&db)));
    }
}

#[test]
fn a_tls_1_2_peer_without_the_extended_master_secret_is_refused() {
    let ca = Ca::new();
    let (web, db) = (ca.leaf("web"), ca.leaf("db"));
    let mut client = Plain::client_of(&client_config(TLS12, Some(&db)).into());
    let mut hello = client.sent();
    // The extension is empty: type 23, length 0. Under a type that nobody knows it is as good as not there.
    let at = hello.windows(4).position(|bytes| bytes == [0, 23, 0, 0]).expect("rustls offers it");
    hello[at..at + 2].copy_from_slice(&[0x5a, 0x5a]);
    let mut server = Ours::<dyn MeshSession>::server(&web, &ca);
    server.feed(&hello);
    assert!(matches!(server.error, Some(SessionError::NothingInCommon(_))), "{:?}", server.error);
}
