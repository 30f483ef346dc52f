//! The cases. Those of a numbered conformance case begin with its number; `README.md` lists them.

mod a_start;
mod acl;
mod addresses;
mod b_certificates;
mod c_inbound;
mod crypto;
mod d_outbound;
mod e_stream;
mod f_changes;
mod federation;
mod g_lifecycle;
mod h_managed;
mod h_old_agents;
mod holds;
mod i_observability;
mod input;
mod interop;
mod libraries;
mod outage;
mod shared_leaf;
pub(crate) mod table;

use crate::runner::Case;

/// All cases, in the order of the table.
pub(crate) fn all() -> Vec<Case> {
    [
        a_start::CASES,
        b_certificates::CASES,
        c_inbound::CASES,
        d_outbound::CASES,
        e_stream::CASES,
        f_changes::CASES,
        g_lifecycle::CASES,
        h_managed::CASES,
        h_old_agents::CASES,
        i_observability::CASES,
        acl::CASES,
        addresses::CASES,
        crypto::CASES,
        holds::CASES,
        input::CASES,
        federation::CASES,
        interop::CASES,
        libraries::CASES,
        outage::CASES,
        shared_leaf::CASES,
    ]
    .concat()
}
