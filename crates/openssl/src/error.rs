//! What OpenSSL says, in the words of the traits.

use libc::c_int;
use lictor_core::{RejectReason, SessionError, engine::Stop, tls::BuildError};
use openssl::{
    error::ErrorStack,
    ssl::{Error, ErrorCode, SslRef},
    x509::X509VerifyResult,
};
use openssl_sys as ffi;

/// The part of OpenSSL that an error comes from (`ERR_LIB_…`).
const LIB_SSL: i32 = 20;

/// The numbers of OpenSSL's own header for the reasons that mean something to us (`SSL_R_…`).
mod reason {
    pub(super) const NO_SUITABLE_KEY_SHARE: i32 = 101;
    pub(super) const NO_SUITABLE_SIGNATURE_ALGORITHM: i32 = 118;
    pub(super) const CERTIFICATE_VERIFY_FAILED: i32 = 134;
    pub(super) const DECRYPTION_FAILED: i32 = 147;
    pub(super) const NO_PROTOCOLS_AVAILABLE: i32 = 191;
    pub(super) const NO_SHARED_CIPHER: i32 = 193;
    pub(super) const PEER_DID_NOT_RETURN_A_CERTIFICATE: i32 = 199;
    pub(super) const UNSUPPORTED_PROTOCOL: i32 = 258;
    pub(super) const DECRYPTION_FAILED_OR_BAD_RECORD_MAC: i32 = 281;
    pub(super) const NO_SUITABLE_GROUPS: i32 = 295;
    pub(super) const NO_SHARED_SIGNATURE_ALGORITHMS: i32 = 376;
    pub(super) const WRONG_CURVE: i32 = 378;
    pub(super) const VERSION_TOO_LOW: i32 = 396;
    pub(super) const NO_SHARED_GROUPS: i32 = 410;
    /// From here on: the peer's alert, by its number (`SSL_AD_REASON_OFFSET`).
    pub(super) const ALERTS: i32 = 1000;
    /// Set in the reasons of a failure of the library itself, such as a lack of memory (`ERR_RFLAG_FATAL`).
    pub(super) const FATAL: i32 = 1 << 18;
}

/// Runs calls of OpenSSL and leaves nothing in the thread's queue of errors.
///
/// OpenSSL asks that queue what the last call has come to, so what a call leaves behind, even one that succeeded,
/// turns the next "wants more input" into a failure.
pub(crate) fn no_errors_left<R>(calls: impl FnOnce() -> R) -> R {
    let result = calls();
    drop(ErrorStack::get());
    result
}

/// The reason why `what` is refused, in the library's words.
pub(crate) fn refused(what: &'static str) -> impl Fn(ErrorStack) -> BuildError {
    move |errors| BuildError::Refused { what, why: words(&errors) }
}

/// A failure that has nothing to do with a peer.
pub(crate) fn internal(errors: ErrorStack) -> SessionError {
    SessionError::Internal(words(&errors))
}

/// The result of verification that makes OpenSSL send the alert of `reason`.
pub(crate) fn refusal(reason: RejectReason) -> c_int {
    match reason.alert() {
        42 => ffi::X509_V_ERR_CERT_REJECTED,
        43 => ffi::X509_V_ERR_INVALID_PURPOSE,
        45 => ffi::X509_V_ERR_CERT_HAS_EXPIRED,
        48 => ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY,
        // One of those that OpenSSL has no alert of its own for, so it is certificate_unknown, alert 46.
        _ => ffi::X509_V_ERR_INVALID_EXTENSION,
    }
}

/// Why a call on a session came back without its result.
pub(crate) fn stop(ssl: &SslRef, error: &Error) -> Stop {
    match error.code() {
        ErrorCode::WANT_READ => Stop::WantsInput,
        ErrorCode::ZERO_RETURN => Stop::PeerClosed,
        code => Stop::Failed(match error.ssl_error() {
            Some(errors) => session_error(ssl, errors),
            None => SessionError::Internal(format!("OpenSSL stopped with code {}", code.as_raw())),
        }),
    }
}

/// A failed session in the words of the trait, by the first reason in it that says something.
fn session_error(ssl: &SslRef, errors: &ErrorStack) -> SessionError {
    for error in errors.errors().iter().filter(|error| error.library_code() == LIB_SSL) {
        match error.reason_code() {
            alert @ reason::ALERTS..=1255 => {
                return SessionError::PeerAlert(u8::try_from(alert - reason::ALERTS).unwrap_or(u8::MAX));
            }
            reason::PEER_DID_NOT_RETURN_A_CERTIFICATE => {
                return SessionError::Rejected(RejectReason::NoCertificate);
            }
            reason::CERTIFICATE_VERIFY_FAILED => return certificate_error(ssl.verify_result()),
            reason::NO_SUITABLE_KEY_SHARE
            | reason::NO_SUITABLE_SIGNATURE_ALGORITHM
            | reason::NO_PROTOCOLS_AVAILABLE
            | reason::NO_SHARED_CIPHER
            | reason::UNSUPPORTED_PROTOCOL
            | reason::NO_SUITABLE_GROUPS
            | reason::NO_SHARED_SIGNATURE_ALGORITHMS
            | reason::WRONG_CURVE
            | reason::VERSION_TOO_LOW
            | reason::NO_SHARED_GROUPS => return SessionError::NothingInCommon(words(errors)),
            reason::DECRYPTION_FAILED | reason::DECRYPTION_FAILED_OR_BAD_RECORD_MAC => return SessionError::BadRecord,
            fatal if fatal & reason::FATAL != 0 => return internal(errors.clone()),
            _ => {}
        }
    }
    SessionError::Protocol(words(errors))
}

/// For the mesh a refusal by our own verifier is known before this is asked; what is left are those of the agent.
fn certificate_error(result: X509VerifyResult) -> SessionError {
    SessionError::Rejected(match result.as_raw() {
        ffi::X509_V_ERR_CERT_HAS_EXPIRED => RejectReason::Expired,
        ffi::X509_V_ERR_CERT_NOT_YET_VALID => RejectReason::NotYetValid,
        ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT
        | ffi::X509_V_ERR_DEPTH_ZERO_SELF_SIGNED_CERT
        | ffi::X509_V_ERR_SELF_SIGNED_CERT_IN_CHAIN
        | ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | ffi::X509_V_ERR_UNABLE_TO_VERIFY_LEAF_SIGNATURE => RejectReason::UnknownIssuer,
        // The name that was asked for, and what else a reason cannot carry: the library's words help more.
        _ => return SessionError::Protocol(format!("invalid peer certificate: {}", result.error_string())),
    })
}

/// The library's words, which say what but, unlike its whole text, not where in its sources.
fn words(errors: &ErrorStack) -> String {
    let reasons: Vec<&str> = errors.errors().iter().filter_map(|error| error.reason()).collect();
    if reasons.is_empty() { "OpenSSL gives no reason".to_owned() } else { reasons.join(", ") }
}

#[cfg(test)]
mod tests {
    use openssl::x509::X509;

    use super::*;

    #[test]
    fn what_a_call_leaves_in_the_queue_is_taken_out_of_it() {
        let errors = X509::from_der(b"none").map(|_| ()).unwrap_err();
        no_errors_left(|| errors.put());
        assert_eq!(ErrorStack::get().errors().len(), 0);
    }

    #[test]
    fn every_alert_of_a_refusal_has_a_result_of_its_own() {
        let results = [
            (RejectReason::Malformed, ffi::X509_V_ERR_CERT_REJECTED),
            (RejectReason::KeyUsage, ffi::X509_V_ERR_INVALID_PURPOSE),
            (RejectReason::Expired, ffi::X509_V_ERR_CERT_HAS_EXPIRED),
            (RejectReason::TrustDomain, ffi::X509_V_ERR_INVALID_EXTENSION),
            (RejectReason::UnknownIssuer, ffi::X509_V_ERR_UNABLE_TO_GET_ISSUER_CERT_LOCALLY),
        ];
        for (reason, result) in results {
            assert_eq!(refusal(reason), result, "{reason}");
        }
        assert!(RejectReason::ALL.iter().all(|reason| refusal(*reason) != ffi::X509_V_OK));
    }
}
