//! The binaries that are to meet each other, one for each TLS library.

use std::{
    path::{Path, PathBuf},
    process::Stdio,
};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A binary by the name of the library that it uses.
#[derive(Clone, Debug)]
pub(crate) struct Library {
    pub(crate) name: String,
    pub(crate) binary: PathBuf,
}

/// Those of `LICTOR_BINS` (`rustls=/path,openssl=/path,boring=/path`), or the binary under test alone.
pub(crate) fn from_environment(under_test: &Path) -> Result<Vec<Library>> {
    match std::env::var("LICTOR_BINS").ok().filter(|list| !list.trim().is_empty()) {
        Some(list) => parse(&list)?.into_iter().map(checked).collect(),
        None => {
            let binary = under_test.to_owned();
            Ok(vec![Library { name: used_by(&binary)?, binary }])
        }
    }
}

/// The line that says which libraries met.
pub(crate) fn line(libraries: &[Library]) -> String {
    match libraries {
        [one] => format!("interop of TLS libraries: {} alone; LICTOR_BINS names more binaries", one.name),
        all => {
            let names: Vec<&str> = all.iter().map(|library| library.name.as_str()).collect();
            format!("interop of TLS libraries: {}, each with each", names.join(", "))
        }
    }
}

fn parse(list: &str) -> Result<Vec<Library>> {
    let mut libraries: Vec<Library> = Vec::new();
    for entry in list.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
        let (name, path) =
            entry.split_once('=').with_context(|| format!("LICTOR_BINS: {entry:?} is not of the form name=path"))?;
        ensure!(libraries.iter().all(|known| known.name != name), "LICTOR_BINS names {name} twice");
        libraries.push(Library { name: name.to_owned(), binary: PathBuf::from(path) });
    }
    ensure!(!libraries.is_empty(), "LICTOR_BINS names no binary");
    Ok(libraries)
}

/// The same, once it is sure that the binary uses the library that it is named after.
fn checked(library: Library) -> Result<Library> {
    let Library { name, binary } = &library;
    ensure!(binary.is_file(), "LICTOR_BINS: {} is no file", binary.display());
    let used = used_by(binary)?;
    ensure!(used == *name, "LICTOR_BINS: {} uses {used}, not {name}", binary.display());
    Ok(library)
}

/// The library that a binary uses when nothing is configured.
fn used_by(binary: &Path) -> Result<String> {
    let mut command = std::process::Command::new(binary);
    let said = command.args(["crypto", "-json"]).env_clear().stdin(Stdio::null()).output();
    let said = said.with_context(|| format!("cannot run {}", binary.display()))?;
    let told: Value = serde_json::from_slice(&said.stdout)
        .with_context(|| format!("{} crypto -json is not JSON: {}", binary.display(), said.status))?;
    let chosen = told["chosen"].as_str();
    Ok(chosen.with_context(|| format!("{} does not tell what is chosen: {told}", binary.display()))?.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_of_binaries_is_read_in_its_order() {
        let libraries = parse("rustls=/a/lictor, openssl=/b/lictor,").expect("a good list");
        let read: Vec<_> = libraries.iter().map(|library| (library.name.as_str(), library.binary.to_str())).collect();
        assert_eq!(read, [("rustls", Some("/a/lictor")), ("openssl", Some("/b/lictor"))]);
    }

    #[test]
    fn a_list_that_is_none_is_an_error() {
        for list in ["", ",", "/a/lictor", "rustls=/a,rustls=/b"] {
            assert!(parse(list).is_err(), "{list:?}");
        }
    }
}
