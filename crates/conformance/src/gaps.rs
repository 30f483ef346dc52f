//! What a library cannot do as wanted, row by row, each with its reason.
//!
//! A row of this list is run like any other. Where it fails it stands in the table as a gap with the reason of the
//! list and with what was seen; where it passes although it should not be able to, it fails, so that no entry outlives
//! its reason.

use crate::report::Way;

/// One entry.
#[derive(Clone, Copy, Debug)]
pub struct Gap {
    /// The backend.
    pub backend: &'static str,
    /// The family.
    pub family: &'static str,
    /// The row, by its whole name.
    pub row: &'static str,
    /// The side and version of which it holds; of all where they are left open.
    pub way: Way,
    /// Whether the row is drawn by lot, so that it may pass without hitting on the fault.
    pub by_lot: bool,
    /// Why.
    pub why: &'static str,
}

const OPENSSL_WRITES_NOTHING_IN_MID_MESSAGE: &str =
    "OpenSSL seals nothing while a message of the peer is incomplete, so whoever cuts one ends the connection";

/// The list.
const GAPS: &[Gap] = &[
    Gap {
        backend: "openssl",
        family: "key updates",
        row: "in two records, cut anywhere, sealing between",
        way: Way::NONE,
        by_lot: false,
        why: OPENSSL_WRITES_NOTHING_IN_MID_MESSAGE,
    },
    Gap {
        backend: "openssl",
        family: "records",
        row: "a good peer's odd records",
        way: Way::NONE,
        by_lot: true,
        why: OPENSSL_WRITES_NOTHING_IN_MID_MESSAGE,
    },
];

/// The entry about a line, if there is one.
pub(crate) fn find(backend: &str, family: &str, row: &str, way: Way) -> Option<&'static Gap> {
    let open = |gap: &Gap| {
        gap.way.side.is_none_or(|side| way.side == Some(side))
            && gap.way.version.is_none_or(|version| way.version == Some(version))
    };
    GAPS.iter().find(|gap| (gap.backend, gap.family, gap.row) == (backend, family, row) && open(gap))
}
