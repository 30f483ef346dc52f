//! What rustls says, in the words of the traits.

use std::{fmt, sync::Arc};

use lictor_core::{RejectReason, SessionError, tls::BuildError};
use rustls::{CertificateError, Error, InconsistentKeys, OtherError};

/// A failed context as the reason why `what` is refused.
pub(crate) fn build_error(what: &'static str, error: &Error) -> BuildError {
    match error {
        Error::InconsistentKeys(InconsistentKeys::KeyMismatch) => BuildError::KeyMismatch,
        Error::InvalidCertificate(_) => BuildError::Refused { what: "certificate", why: error.to_string() },
        _ => BuildError::Refused { what, why: error.to_string() },
    }
}

/// The rustls error that makes it send the alert of `reason`.
///
/// rustls chooses the alert by the kind of error. `BadSignature` and `ApplicationVerificationFailure` would be alerts
/// 51 and 49, which are not among those that all libraries can send.
pub(crate) fn refusal(reason: RejectReason) -> Error {
    Error::InvalidCertificate(match reason.alert() {
        42 => CertificateError::BadEncoding,
        43 => CertificateError::InvalidPurpose,
        45 => CertificateError::Expired,
        48 => CertificateError::UnknownIssuer,
        // Sent as certificate_unknown, alert 46.
        _ => CertificateError::Other(OtherError(Arc::new(Refused(reason)))),
    })
}

/// A failed session in the words of the trait.
///
/// For the mesh a refusal by our own verifier is known before this is asked; what is left of certificate errors are
/// those of the agent, and signatures of the handshake that are wrong.
pub(crate) fn session_error(error: &Error) -> SessionError {
    match error {
        Error::InvalidCertificate(certificate) => certificate_error(certificate),
        Error::NoCertificatesPresented => SessionError::Rejected(RejectReason::NoCertificate),
        Error::AlertReceived(alert) => SessionError::PeerAlert(u8::from(*alert)),
        Error::PeerIncompatible(_) | Error::NoApplicationProtocol => SessionError::NothingInCommon(error.to_string()),
        // What a TLS 1.2 client that takes no signature of our key is called, alone among such failures.
        Error::General(why) if why == "incompatible signing key" => SessionError::NothingInCommon(why.clone()),
        Error::DecryptError => SessionError::BadRecord,
        Error::InappropriateMessage { .. }
        | Error::InappropriateHandshakeMessage { .. }
        | Error::InvalidMessage(_)
        | Error::PeerMisbehaved(_)
        | Error::PeerSentOversizedRecord => SessionError::Protocol(error.to_string()),
        _ => SessionError::Internal(error.to_string()),
    }
}

fn certificate_error(error: &CertificateError) -> SessionError {
    let reason = match error {
        CertificateError::Expired | CertificateError::ExpiredContext { .. } => RejectReason::Expired,
        CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => RejectReason::NotYetValid,
        CertificateError::UnknownIssuer => RejectReason::UnknownIssuer,
        CertificateError::Other(OtherError(inner)) => match inner.downcast_ref::<Refused>() {
            Some(Refused(reason)) => *reason,
            None => return SessionError::Protocol(Error::InvalidCertificate(error.clone()).to_string()),
        },
        // The name that was asked for, and what else a reason cannot carry: the library's words help more.
        _ => return SessionError::Protocol(Error::InvalidCertificate(error.clone()).to_string()),
    };
    SessionError::Rejected(reason)
}

/// Our own reason inside an error of the library.
#[derive(Debug)]
struct Refused(RejectReason);

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "refused: {}", self.0)
    }
}

impl std::error::Error for Refused {}
