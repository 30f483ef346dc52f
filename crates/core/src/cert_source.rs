//! Where our certificate and the roots come from.

use std::sync::Arc;

use tokio::sync::watch;

use crate::material::Material;

/// A watch of the newest good [`Material`].
pub trait CertSource: Send + Sync + 'static {
    /// The newest good material; `None` while there has never been any.
    ///
    /// A source never replaces a good state by a broken one and never goes back to `None`.
    fn watch(&self) -> watch::Receiver<Option<Arc<Material>>>;

    /// What the source has and what it waits for, for `/ready` and `/certs`.
    fn state(&self) -> SourceState;

    /// A hint that a peer did not chain to the roots we know, so they may be out of date.
    ///
    /// Sources that can ask for roots do so now, at a bounded rate; the default does nothing.
    fn suspect_stale_roots(&self) {}
}

/// What a [`CertSource`] has and what it waits for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SourceState {
    /// What is missing before the first material, in words: `leaf`, `roots`. Empty when there is material.
    pub pending: Vec<String>,
    /// What is wrong at the moment although the last good state serves, in words that name whose fault it is.
    pub problems: Vec<String>,
    /// Whether peers accept our leaf at this moment, as far as we can judge.
    pub usable: bool,
}
