//! The ACL token and the basic credentials that requests carry.

use std::{
    fmt,
    fs::File,
    io::Read,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use base64::Engine as _;
use http::HeaderValue;
use tokio::time::Instant;

/// The most that is read from a token file, in bytes.
const MAX_FILE: u64 = 16 * 1024;

/// How often, at most, the file is looked at for a change.
const LOOK_EVERY: Duration = Duration::from_secs(10);

/// The token for `X-Consul-Token`: given as a value, or in a file that is read again when it changes.
///
/// An empty token means none, as it does in Consul's own tools. Neither `Debug` nor any error shows it.
pub struct Token {
    file: Option<PathBuf>,
    state: Mutex<State>,
}

struct State {
    value: Option<HeaderValue>,
    stamp: Option<Stamp>,
    looked_at: Option<Instant>,
}

/// What tells one version of a file from the next without reading it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    size: u64,
    inode: u64,
}

impl Token {
    /// No token: the agent uses its own default token, or the anonymous one.
    #[must_use]
    pub fn none() -> Self {
        Self { file: None, state: Mutex::new(State { value: None, stamp: None, looked_at: None }) }
    }

    /// The token itself; white space around it is dropped.
    ///
    /// # Errors
    /// [`TokenError::Characters`] for a token that no header can carry.
    pub fn value(token: &str) -> Result<Self, TokenError> {
        let value = header(token)?;
        Ok(Self { file: None, state: Mutex::new(State { value, stamp: None, looked_at: None }) })
    }

    /// The file that holds the token, such as `CONSUL_HTTP_TOKEN_FILE` names.
    ///
    /// # Errors
    /// [`TokenError`] when it cannot be read now, so that a wrong path is an error at start.
    pub fn file(path: PathBuf) -> Result<Self, TokenError> {
        let (stamp, value) = read(&path)?;
        Ok(Self { file: Some(path), state: Mutex::new(State { value, stamp: Some(stamp), looked_at: None }) })
    }

    /// The header to send, marked as sensitive.
    #[must_use]
    pub fn header(&self) -> Option<HeaderValue> {
        self.lock().value.clone()
    }

    /// Reads the file again. True when the token is another one now. Without a file nothing happens.
    ///
    /// # Errors
    /// [`TokenError`]; the last token stays in use.
    pub fn reload(&self) -> Result<bool, TokenError> {
        let Some(path) = &self.file else { return Ok(false) };
        let (stamp, value) = read(path)?;
        let mut state = self.lock();
        let changed = state.value != value;
        state.value = value;
        state.stamp = Some(stamp);
        Ok(changed)
    }

    /// Whether the file is due for a look: there is one, and the last look is long enough ago. Counts as a look.
    pub(crate) fn look_is_due(&self) -> bool {
        if self.file.is_none() {
            return false;
        }
        let mut state = self.lock();
        let now = Instant::now();
        if state.looked_at.is_some_and(|last| now.duration_since(last) < LOOK_EVERY) {
            return false;
        }
        state.looked_at = Some(now);
        true
    }

    /// Whether there is a file to read again.
    pub(crate) fn has_file(&self) -> bool {
        self.file.is_some()
    }

    /// Reads the file again if it looks changed.
    ///
    /// # Errors
    /// As for [`reload`](Self::reload).
    pub(crate) fn reload_if_changed(&self) -> Result<bool, TokenError> {
        let Some(path) = &self.file else { return Ok(false) };
        let seen = self.lock().stamp;
        match std::fs::metadata(path) {
            Ok(metadata) if Some(stamp(&metadata)) == seen => Ok(false),
            _ => self.reload(),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        // Each field is assigned whole, so a panic elsewhere leaves the state sound.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Token {
    /// Without the token.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let set = self.lock().value.is_some();
        f.debug_struct("Token").field("set", &set).field("file", &self.file).finish_non_exhaustive()
    }
}

/// User and password for an agent behind a proxy that asks for them: `CONSUL_HTTP_AUTH`.
#[derive(Clone)]
pub struct BasicAuth(HeaderValue);

impl BasicAuth {
    /// Takes `user` or `user:password` and encodes it (RFC 7617).
    ///
    /// # Errors
    /// [`TokenError::Characters`] for control characters.
    pub fn parse(text: &str) -> Result<Self, TokenError> {
        if text.chars().any(char::is_control) {
            return Err(TokenError::Characters);
        }
        let pair = if text.contains(':') { text.to_owned() } else { format!("{text}:") };
        let encoded = base64::engine::general_purpose::STANDARD.encode(pair);
        let mut header = HeaderValue::try_from(format!("Basic {encoded}")).map_err(|_| TokenError::Characters)?;
        header.set_sensitive(true);
        Ok(Self(header))
    }

    /// The value of `Authorization`, marked as sensitive.
    #[must_use]
    pub fn header(&self) -> HeaderValue {
        self.0.clone()
    }
}

impl fmt::Debug for BasicAuth {
    /// Without the credentials.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("BasicAuth(…)")
    }
}

/// Why a token cannot be used. Never says what it is.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// Characters that a header cannot carry.
    #[error("the token holds characters that no HTTP header can carry")]
    Characters,
    /// The file cannot be read.
    #[error("cannot read the token file {path}: {error}")]
    Read {
        /// Which file.
        path: PathBuf,
        /// The system's words.
        error: std::io::Error,
    },
    /// The file is too large to be a token, or no text.
    #[error("the token file {0} is no text of at most {MAX_FILE} bytes")]
    NoToken(PathBuf),
}

fn header(token: &str) -> Result<Option<HeaderValue>, TokenError> {
    let token = token.trim();
    if token.is_empty() {
        return Ok(None);
    }
    let mut value = HeaderValue::from_str(token).map_err(|_| TokenError::Characters)?;
    value.set_sensitive(true);
    Ok(Some(value))
}

fn read(path: &Path) -> Result<(Stamp, Option<HeaderValue>), TokenError> {
    let failed = |error| TokenError::Read { path: path.to_owned(), error };
    let mut file = File::open(path).map_err(failed)?;
    let stamp = stamp(&file.metadata().map_err(failed)?);
    let mut text = zeroize::Zeroizing::new(Vec::new());
    Read::by_ref(&mut file).take(MAX_FILE + 1).read_to_end(&mut text).map_err(failed)?;
    let text = std::str::from_utf8(&text).ok().filter(|text| text.len() as u64 <= MAX_FILE);
    let value = header(text.ok_or_else(|| TokenError::NoToken(path.to_owned()))?)?;
    Ok((stamp, value))
}

fn stamp(metadata: &std::fs::Metadata) -> Stamp {
    #[cfg(unix)]
    let inode = std::os::unix::fs::MetadataExt::ino(metadata);
    #[cfg(not(unix))]
    let inode = 0;
    Stamp { modified: metadata.modified().ok(), size: metadata.len(), inode }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_trimmed_and_an_empty_one_is_none() {
        assert_eq!(Token::value(" abc\n").unwrap().header().unwrap(), "abc");
        assert!(Token::value(" \n").unwrap().header().is_none());
        assert!(Token::none().header().is_none());
        assert!(matches!(Token::value("a\nb"), Err(TokenError::Characters)));
    }

    #[test]
    fn neither_token_nor_password_is_ever_shown() {
        let token = Token::value("hush-1234").unwrap();
        let auth = BasicAuth::parse("user:hush-1234").unwrap();
        assert_eq!(auth.header(), "Basic dXNlcjpodXNoLTEyMzQ=");
        for shown in [format!("{token:?}"), format!("{:?}", token.header()), format!("{auth:?} {:?}", auth.header())] {
            assert!(!shown.contains("hush") && !shown.contains("dXNlcj"), "{shown}");
        }
    }

    #[test]
    fn a_changed_file_gives_the_new_token_and_a_lost_one_keeps_the_last() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token");
        std::fs::write(&path, "first\n").unwrap();
        let token = Token::file(path.clone()).unwrap();
        assert_eq!(token.header().unwrap(), "first");
        assert!(!token.reload_if_changed().unwrap());
        std::fs::write(&path, "second one\n").unwrap();
        assert!(token.reload_if_changed().unwrap());
        assert_eq!(token.header().unwrap(), "second one");
        std::fs::remove_file(&path).unwrap();
        assert!(token.reload_if_changed().is_err());
        assert_eq!(token.header().unwrap(), "second one");
    }

    #[test]
    fn a_file_that_cannot_be_read_or_is_no_token_is_an_error_at_start() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Token::file(folder.path().join("none")), Err(TokenError::Read { .. })));
        let path = folder.path().join("big");
        std::fs::write(&path, "x".repeat(20_000)).unwrap();
        assert!(matches!(Token::file(path), Err(TokenError::NoToken(_))));
    }
}
