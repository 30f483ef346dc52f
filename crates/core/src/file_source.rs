//! A certificate source over files: for operators who bring their own mesh, and for tests.

use std::{fs::File, io::Read, path::PathBuf, sync::Arc, time::Duration};

use tokio::sync::watch;

use crate::{
    cert_source::{CertSource, SourceState},
    material::{Leaf, LeafError, Material, Roots, RootsError},
    rotation::{Rotation, UpdateRefused},
};

/// The most that is read from one file, in bytes.
const MAX_FILE: u64 = 1024 * 1024;

/// Where the PEM files are.
#[derive(Clone, Debug)]
pub struct Files {
    /// Our certificate chain, the leaf first.
    pub certificates: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// The roots of the mesh.
    pub roots: PathBuf,
    /// The trust domain, which the files do not tell.
    pub trust_domain: String,
}

/// Reads leaf and roots from files, again whenever it is told to.
#[derive(Debug)]
pub struct FileSource {
    files: Files,
    rotation: Arc<Rotation>,
}

/// Why the files changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// A file cannot be read.
    #[error("cannot read {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// The roots are no list of roots.
    #[error("{path}: {error}")]
    Roots {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: RootsError,
    },
    /// Certificate or key cannot be parsed.
    #[error("{path}: {error}")]
    Leaf {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        error: LeafError,
    },
    /// The pair is no good.
    #[error("{path}: {error}")]
    Refused {
        /// Which file.
        path: PathBuf,
        /// Why it is refused.
        error: UpdateRefused,
    },
}

impl FileSource {
    /// A source that has read nothing yet; call [`reload`](Self::reload).
    #[must_use]
    pub fn new(files: Files, rotation: Arc<Rotation>) -> Self {
        Self { files, rotation }
    }

    /// Reads the files again. What is broken is refused and the last good state serves on.
    ///
    /// # Errors
    /// [`FileError`] with the path of the file at fault. Roots are read first, and count even when the pair does not.
    pub fn reload(&self) -> Result<(), FileError> {
        let Files { certificates, key, roots, trust_domain } = &self.files;
        let list = read(roots)?;
        let parsed = Roots::from_pem(0, trust_domain, [list.as_str()])
            // A file that is being written may be empty or cut for a moment, which no list of an agent is.
            .and_then(|list| if list.anchors().is_empty() { Err(RootsError::Empty) } else { Ok(list) })
            .map_err(|error| FileError::Roots { path: roots.clone(), error })?;
        self.rotation.offer_roots(parsed);
        let key_text = zeroize::Zeroizing::new(read(key)?);
        let parsed = Leaf::from_pem(&read(certificates)?, &key_text, self.rotation.policy().grammar);
        let leaf = parsed.map_err(|error| {
            let path = if error == LeafError::KeyPem { key } else { certificates };
            FileError::Leaf { path: path.clone(), error }
        })?;
        match self.rotation.offer_leaf(leaf) {
            Ok(_) | Err(UpdateRefused::Stale) => Ok(()),
            Err(error) => Err(FileError::Refused { path: certificates.clone(), error }),
        }
    }

    /// Reads the files again every `period`, for ever; a failure is logged once until it changes.
    pub async fn watch_files(&self, period: Duration) {
        let mut told = None;
        let mut ticks = tokio::time::interval(period);
        loop {
            ticks.tick().await;
            let failure = self.reload().err().map(|error| error.to_string());
            if let Some(error) = failure.as_ref().filter(|_| failure != told) {
                tracing::error!(%error, "certificate files refused; the last good state serves on");
            }
            told = failure;
        }
    }
}

impl CertSource for FileSource {
    fn watch(&self) -> watch::Receiver<Option<Arc<Material>>> {
        self.rotation.watch()
    }

    fn state(&self) -> SourceState {
        self.rotation.state()
    }
}

fn read(path: &PathBuf) -> Result<String, FileError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|file| file.take(MAX_FILE).read_to_string(&mut text))
        .map_err(|error| FileError::Read { path: path.clone(), error })?;
    Ok(text)
}
