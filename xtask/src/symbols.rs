//! Whose cryptography a binary carries, read from its table of symbols.
//!
//! `cargo tree` tells what cargo was asked for; this tells what the linker did, which is another thing: OpenSSL and
//! BoringSSL define the same names, and a search path in the wrong order binds one's callers to the other.

use std::{collections::BTreeSet, path::Path, process::Command};

use anyhow::{Result, bail};

use crate::{features::FeatureSet, workspace::output};

/// A symbol as `nm` shows it: whether this file defines it, and its name.
struct Symbol<'a> {
    defined: bool,
    name: &'a str,
}

/// A family of code by its name, and how a symbol of it is known.
type Family = (&'static str, fn(&Symbol<'_>) -> bool);

/// The families that are told apart, each by what only it has.
const FAMILIES: &[Family] = &[
    ("AWS-LC", |symbol| symbol.defined && symbol.name.starts_with("aws_lc_0_")),
    ("AWS-LC FIPS", |symbol| symbol.defined && symbol.name.starts_with("aws_lc_fips_")),
    // Its C++ namespace, of which OpenSSL has nothing.
    ("BoringSSL", |symbol| symbol.defined && symbol.name.starts_with("_ZN4bssl")),
    ("OpenSSL, shared", |symbol| !symbol.defined && symbol.name.starts_with("SSL_CTX_new")),
    // What OpenSSL 3 calls its inner functions.
    ("OpenSSL, static", |symbol| symbol.defined && symbol.name.starts_with("ossl_")),
    ("ring", |symbol| symbol.defined && symbol.name.starts_with("ring_core_")),
    ("rustls", |symbol| symbol.defined && has_crate(symbol.name, "6rustls")),
];

/// Checks that `binary` carries the families of `set`, all of them and no other.
pub(crate) fn check(set: &FeatureSet, binary: &Path) -> Result<()> {
    let listing = output(Command::new("nm").arg(binary))?;
    let found = families(&listing);
    let wanted: BTreeSet<&str> = set.families.iter().copied().collect();
    if found != wanted {
        bail!("{}: the binary carries {found:?}; this feature set is meant to carry {wanted:?}", set.name);
    }
    println!("{}: carries {}, and no other cryptography", set.name, set.families.join(" and "));
    Ok(())
}

/// The families in a listing of `nm`.
fn families(listing: &str) -> BTreeSet<&'static str> {
    let symbols: Vec<Symbol<'_>> = listing.lines().filter_map(parse).collect();
    FAMILIES.iter().filter(|(_, is_of)| symbols.iter().any(is_of)).map(|(family, _)| *family).collect()
}

/// `0000000000401000 T name`, or `                 U name@VERSION`.
fn parse(line: &str) -> Option<Symbol<'_>> {
    let mut words = line.split_whitespace().rev();
    let (name, kind) = (words.next()?, words.next()?);
    Some(Symbol { defined: !matches!(kind, "U" | "w" | "v"), name })
}

/// Whether a mangled Rust name passes through a crate, given by the length of its name and the name.
fn has_crate(mangled: &str, segment: &str) -> bool {
    mangled.starts_with("_")
        && mangled.match_indices(segment).any(|(at, _)| {
            // `16rustls_pki_types` is another crate: the length of a name has no digit before it.
            let longer_number = mangled[..at].ends_with(|before: char| before.is_ascii_digit());
            let longer_name = mangled[at + segment.len()..].starts_with('_');
            !longer_number && !longer_name
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_is_known_by_what_it_alone_has() {
        for (line, family) in [
            ("0000000000f1a0 T aws_lc_0_47_0_EVP_DigestSign", "AWS-LC"),
            ("0000000000f1a0 T aws_lc_fips_0_14_4_SHA256", "AWS-LC FIPS"),
            ("0000000000f1a0 t _ZN4bssl10ssl_do_foo", "BoringSSL"),
            ("                 U SSL_CTX_new@OPENSSL_3.0.0", "OpenSSL, shared"),
            ("0000000000f1a0 t ossl_statem_connect", "OpenSSL, static"),
            ("0000000000f1a0 t ring_core_0_17_14__x25519", "ring"),
            ("0000000000f1a0 t _ZN6rustls6client9hs17h0E", "rustls"),
        ] {
            assert_eq!(families(line), BTreeSet::from([family]), "{line}");
        }
    }

    #[test]
    fn names_that_only_look_alike_are_no_family() {
        for line in [
            "0000000000f1a0 t _ZN16rustls_pki_types3pem17h0E",
            "0000000000f1a0 t _ZN6rustls_other3pem17h0E",
            "0000000000f1a0 T SSL_CTX_new",
            "                 U malloc@GLIBC_2.2.5",
            "",
        ] {
            assert_eq!(families(line), BTreeSet::new(), "{line}");
        }
    }
}
