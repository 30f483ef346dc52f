//! What BoringSSL says, in the words of the traits.

use boring::{
    error::ErrorStack,
    ssl::{Error, ErrorCode, SslAlert, SslRef, SslVerifyError},
    x509::X509VerifyError,
};
use boring_sys as ffi;
use lictor_core::{RejectReason, SessionError, engine::Stop, tls::BuildError};

/// What is added to the number of the peer's alert to make it a reason (`SSL_AD_REASON_OFFSET`).
const ALERTS: i32 = 1000;

/// Runs calls of BoringSSL and leaves nothing in the thread's queue of errors.
///
/// BoringSSL asks that queue what the last call has come to, so what a call leaves behind, even one that succeeded,
/// turns the next "wants more input" into a failure.
pub(crate) fn no_errors_left<R>(calls: impl FnOnce() -> R) -> R {
    let result = calls();
    drop(ErrorStack::get());
    result
}

/// The result of a call of the library that says 1 when it has done what it was asked for.
pub(crate) fn done(result: i32) -> Result<(), ErrorStack> {
    if result == 1 { Ok(()) } else { Err(ErrorStack::get()) }
}

/// The reason why `what` is refused, in the library's words.
pub(crate) fn refused(what: &'static str) -> impl Fn(ErrorStack) -> BuildError {
    move |errors| {
        let is_mismatch = |reason| matches!(reason, ffi::X509_R_KEY_TYPE_MISMATCH | ffi::X509_R_KEY_VALUES_MISMATCH);
        if reasons(&errors, ffi::ERR_LIB_X509).any(is_mismatch) {
            return BuildError::KeyMismatch;
        }
        BuildError::Refused { what, why: words(&errors) }
    }
}

/// A failure that has nothing to do with a peer.
pub(crate) fn internal(errors: ErrorStack) -> SessionError {
    SessionError::Internal(words(&errors))
}

/// The answer that makes BoringSSL send the alert of `reason`.
pub(crate) fn refusal(reason: RejectReason) -> SslVerifyError {
    SslVerifyError::Invalid(match reason.alert() {
        42 => SslAlert::BAD_CERTIFICATE,
        43 => SslAlert::UNSUPPORTED_CERTIFICATE,
        45 => SslAlert::CERTIFICATE_EXPIRED,
        48 => SslAlert::UNKNOWN_CA,
        _ => SslAlert::CERTIFICATE_UNKNOWN,
    })
}

/// Why a call on a session came back without its result.
pub(crate) fn stop(ssl: &SslRef, error: &Error) -> Stop {
    match error.code() {
        ErrorCode::WANT_READ => Stop::WantsInput,
        ErrorCode::ZERO_RETURN => Stop::PeerClosed,
        code => Stop::Failed(match error.ssl_error() {
            Some(errors) => session_error(ssl, errors),
            None => SessionError::Internal(format!("BoringSSL stopped with code {}", code.as_raw())),
        }),
    }
}

/// A failed session in the words of the trait, by the first reason in it that says something.
fn session_error(ssl: &SslRef, errors: &ErrorStack) -> SessionError {
    // A key of a kind that it does not know it meets in a leaf alone.
    if reasons(errors, ffi::ERR_LIB_EVP).any(|reason| reason == ffi::EVP_R_UNSUPPORTED_ALGORITHM) {
        return SessionError::Rejected(RejectReason::UnsupportedAlgorithm);
    }
    for reason in reasons(errors, ffi::ERR_LIB_SSL) {
        match reason {
            alert @ ALERTS..=1255 => return SessionError::PeerAlert(u8::try_from(alert - ALERTS).unwrap_or(u8::MAX)),
            ffi::SSL_R_PEER_DID_NOT_RETURN_A_CERTIFICATE => {
                return SessionError::Rejected(RejectReason::NoCertificate);
            }
            // Connections with the mesh hold no X.509 objects, and must not be asked about them.
            ffi::SSL_R_CERTIFICATE_VERIFY_FAILED if ssl.ssl_context().has_x509_support() => {
                return certificate_error(ssl);
            }
            // What BoringSSL reads of a leaf before it asks for a verdict, which would be the same.
            ffi::SSL_R_CANNOT_PARSE_LEAF_CERT => return SessionError::Rejected(RejectReason::Malformed),
            ffi::SSL_R_KEY_USAGE_BIT_INCORRECT => return SessionError::Rejected(RejectReason::KeyUsage),
            ffi::SSL_R_BAD_ECC_CERT => return SessionError::Rejected(RejectReason::UnsupportedAlgorithm),
            // The answer to a hello that `policy` refuses.
            ffi::SSL_R_CONNECTION_REJECTED
            | ffi::SSL_R_INAPPROPRIATE_FALLBACK
            | ffi::SSL_R_NO_COMMON_SIGNATURE_ALGORITHMS
            | ffi::SSL_R_NO_SHARED_CIPHER
            | ffi::SSL_R_NO_SHARED_GROUP
            | ffi::SSL_R_UNSUPPORTED_PROTOCOL => return SessionError::NothingInCommon(words(errors)),
            // Said by a client these are breaches: the server chose what it was not offered.
            ffi::SSL_R_MISSING_KEY_SHARE | ffi::SSL_R_WRONG_CURVE if ssl.is_server() => {
                return SessionError::NothingInCommon(words(errors));
            }
            ffi::SSL_R_DECRYPTION_FAILED_OR_BAD_RECORD_MAC => return SessionError::BadRecord,
            ffi::SSL_R_PRIVATE_KEY_OPERATION_FAILED => return internal(errors.clone()),
            _ => {}
        }
    }
    if errors.errors().iter().all(|error| is_of_its_own(error.reason_code())) {
        return internal(errors.clone());
    }
    SessionError::Protocol(words(errors))
}

/// For the mesh a refusal by our own verifier is known before this is asked; what is left are those of the agent.
fn certificate_error(ssl: &SslRef) -> SessionError {
    let Err(error) = ssl.verify_result() else {
        return SessionError::Internal("BoringSSL refused a certificate without a reason".to_owned());
    };
    SessionError::Rejected(match error {
        X509VerifyError::CERT_HAS_EXPIRED => RejectReason::Expired,
        X509VerifyError::CERT_NOT_YET_VALID => RejectReason::NotYetValid,
        X509VerifyError::UNABLE_TO_GET_ISSUER_CERT
        | X509VerifyError::DEPTH_ZERO_SELF_SIGNED_CERT
        | X509VerifyError::SELF_SIGNED_CERT_IN_CHAIN
        | X509VerifyError::UNABLE_TO_GET_ISSUER_CERT_LOCALLY
        | X509VerifyError::UNABLE_TO_VERIFY_LEAF_SIGNATURE => RejectReason::UnknownIssuer,
        // The name that was asked for, and what else a reason cannot carry: the library's words help more.
        _ => return SessionError::Protocol(format!("invalid peer certificate: {error}")),
    })
}

/// The reasons of one part of the library.
fn reasons(errors: &ErrorStack, part: ffi::ErrLib) -> impl Iterator<Item = i32> {
    errors.errors().iter().filter_map(move |error| error.library_reason(part))
}

/// Whether the library itself is at fault, as for want of memory; these reasons are the same in all of its parts.
fn is_of_its_own(reason: i32) -> bool {
    matches!(
        reason,
        ffi::ERR_R_MALLOC_FAILURE
            | ffi::ERR_R_SHOULD_NOT_HAVE_BEEN_CALLED
            | ffi::ERR_R_PASSED_NULL_PARAMETER
            | ffi::ERR_R_INTERNAL_ERROR
            | ffi::ERR_R_OVERFLOW
    )
}

/// The library's words, which say what but, unlike its whole text, not where in its sources.
fn words(errors: &ErrorStack) -> String {
    let reasons: Vec<&str> = errors.errors().iter().filter_map(|error| error.reason()).collect();
    if reasons.is_empty() { "BoringSSL gives no reason".to_owned() } else { reasons.join(", ") }
}

#[cfg(test)]
mod tests {
    use boring::x509::X509;

    use super::*;

    #[test]
    fn what_a_call_leaves_in_the_queue_is_taken_out_of_it() {
        let errors = X509::from_der(b"none").map(|_| ()).unwrap_err();
        no_errors_left(|| errors.put());
        assert_eq!(ErrorStack::get().errors().len(), 0);
    }

    #[test]
    fn every_alert_of_a_refusal_is_the_one_of_its_reason() {
        for reason in RejectReason::ALL {
            let SslVerifyError::Invalid(alert) = refusal(*reason) else { panic!("{reason} is no answer") };
            let sent = [
                (42, SslAlert::BAD_CERTIFICATE),
                (43, SslAlert::UNSUPPORTED_CERTIFICATE),
                (45, SslAlert::CERTIFICATE_EXPIRED),
                (46, SslAlert::CERTIFICATE_UNKNOWN),
                (48, SslAlert::UNKNOWN_CA),
            ];
            assert!(sent.contains(&(reason.alert(), alert)), "{reason}");
        }
    }
}
