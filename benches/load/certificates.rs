//! A root and two leaves on P-256, as Consul's own CA issues them, for the peers that read files.

use std::{fs, path::Path};

use anyhow::{Context, Result};
use lictor_conformance::{
    certs::{AltName, Extension, Mesh, pem, service_uri},
    keys::{Key, KeyKind},
};

/// Writes `roots.pem`, and for `web` and `echo` each `NAME.pem`, `NAME.key` and `NAME.both.pem` (both in one).
pub(crate) fn write(folder: &Path) -> Result<()> {
    let mesh = Mesh::new(1);
    let put = |name: &str, text: &str| {
        fs::write(folder.join(name), text).with_context(|| format!("cannot write {name} into {}", folder.display()))
    };
    put("roots.pem", &mesh.root.pem())?;
    for service in ["web", "echo"] {
        let key = Key::generate(KeyKind::P256);
        // The peers' clients compare a DNS name, which Consul's leaves have not.
        let uri = service_uri(service);
        let names = Extension::alt_names(&[AltName::Dns("localhost"), AltName::Uri(uri.as_bytes())]);
        let certificate = pem("CERTIFICATE", &mesh.root.issue(&mesh.leaf_of(service).with(names), &key));
        let key = pem("PRIVATE KEY", key.pkcs8().context("a key that cannot be written")?);
        put(&format!("{service}.pem"), &certificate)?;
        put(&format!("{service}.key"), &key)?;
        put(&format!("{service}.both.pem"), &format!("{certificate}{key}"))?;
    }
    Ok(())
}
