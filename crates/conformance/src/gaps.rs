//! What a library does otherwise than is wanted, row by row, each with its reason.
//!
//! A row of this list is run like any other. Where it fails in the way that the list says, it stands in the table as a
//! gap, with the reason and with what was seen. Where it fails in another way, or passes although it should not be able
//! to, it has failed: so no entry hides more than it says, and none outlives its reason.

use crate::{pair::Version, report::Way, verifier::Side};

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// The backend.
    pub backend: &'static str,
    /// The families in which the row stands.
    pub families: &'static [&'static str],
    /// The row, by its whole name.
    pub row: &'static str,
    /// The side and version of which it holds; of all where they are left open.
    pub way: Way,
    /// What the failure says.
    pub like: &'static str,
    /// Whether the row is drawn by lot, so that it may pass without hitting on the fault.
    pub by_lot: bool,
    /// Why.
    pub why: &'static str,
}

const SEALS_NOTHING_IN_MID_MESSAGE: &str =
    "OpenSSL seals nothing while a message of the peer is incomplete, so whoever cuts one ends the connection";

const EMPTY_LIST_OF_A_SERVER: &str =
    "no server may send an empty list, so to this library it is the message that is bad (RFC 8446, section 4.4.2)";

/// A row about a certificate that is refused under another name.
const fn refused_as_message(
    backend: &'static str,
    row: &'static str,
    way: Way,
    like: &'static str,
    why: &'static str,
) -> Gap {
    Gap { backend, families: &["handshake", "paths"], row, way, like, by_lot: false, why }
}

/// The list.
const GAPS: &[Gap] = &[
    Gap {
        backend: "openssl",
        families: &["key updates"],
        row: "in two records, cut anywhere, sealing between",
        way: Way::NONE,
        like: "the library would not seal",
        by_lot: false,
        why: SEALS_NOTHING_IN_MID_MESSAGE,
    },
    Gap {
        backend: "openssl",
        families: &["records"],
        row: "a good peer's odd records",
        way: Way::NONE,
        like: "the library would not seal",
        by_lot: true,
        why: SEALS_NOTHING_IN_MID_MESSAGE,
    },
    refused_as_message(
        "boring",
        "N84 empty certificate list",
        Way { side: Some(Side::Outbound), version: Some(Version::Tls12) },
        "bad_message instead of no_certificate",
        EMPTY_LIST_OF_A_SERVER,
    ),
];

/// The entry about a line, if there is one.
pub(crate) fn find(backend: &str, family: &str, row: &str, way: Way) -> Option<&'static Gap> {
    let covers = |gap: &Gap| {
        gap.way.side.is_none_or(|side| way.side == Some(side))
            && gap.way.version.is_none_or(|version| way.version == Some(version))
    };
    let is_about = |gap: &Gap| gap.backend == backend && gap.row == row && gap.families.contains(&family);
    GAPS.iter().find(|gap| is_about(gap) && covers(gap))
}
