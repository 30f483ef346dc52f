//! All families in one list, so that no backend can leave one out.
//!
//! The `tests/conformance.rs` of a backend is one line, [`conformance!`](crate::conformance), which makes a test of
//! each family of the list.

use std::{fmt, sync::Arc};

use lictor_core::TlsBackend;

use crate::{
    Report, agent, bounds, handshake, mutants, paths, policy, rotation, seed, session, signatures, streams, verifier,
};

/// A family of rows.
#[derive(Clone, Copy)]
pub struct Family {
    /// Its name in the table.
    pub name: &'static str,
    /// The name of its test, which says to what it holds a backend.
    pub test: &'static str,
    run: fn(&Arc<dyn TlsBackend>, u64) -> Report,
}

impl Family {
    /// Runs it over a backend, with this seed for what varies.
    #[must_use]
    pub fn run(&self, backend: &Arc<dyn TlsBackend>, seed: u64) -> Report {
        (self.run)(backend, seed)
    }
}

impl fmt::Debug for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Family({})", self.name)
    }
}

/// Runs the family whose test has this name, and prints its table; what [`conformance!`](crate::conformance) calls.
///
/// # Panics
/// When a row failed (see [`Report::conclude`]), or when there is no such family.
pub fn conclude(test: &str, backend: Arc<dyn TlsBackend>) {
    let families = families();
    let family = families.iter().find(|family| family.test == test).expect("a family of the list");
    family.run(&backend, seed()).conclude();
}

macro_rules! list {
    ($dollar:tt $($name:literal $test:ident: $run:expr;)*) => {
        /// The list.
        #[must_use]
        pub fn families() -> Vec<Family> {
            vec![$(Family { name: $name, test: stringify!($test), run: $run },)*]
        }

        /// Makes a test of each family over the backend that the expression gives; it is asked anew for each.
        ///
        /// ```text
        /// lictor_conformance::conformance!(RustlsBackend::new().expect("the library starts"));
        /// ```
        #[macro_export]
        macro_rules! conformance {
            ($dollar backend:expr) => {
                $(
                    #[test]
                    fn $test() {
                        $crate::suite::conclude(stringify!($test), ::std::sync::Arc::new($dollar backend));
                    }
                )*
            };
        }
    };
}

list! { $
    "verifier" every_row_gets_its_verdict_from_the_verifier:
        |backend, seed| verifier::run(backend.name(), backend.signature_algorithms(), seed);
    "bounds" the_search_for_a_path_stays_within_its_counted_bounds:
        |backend, seed| bounds::run(backend.name(), backend.signature_algorithms(), seed);
    "mutants" what_is_accepted_of_a_mutant_keeps_every_rule:
        |backend, seed| mutants::run(backend.name(), backend.signature_algorithms(), seed);
    "signatures" signatures_are_verified_by_the_list_and_no_other_is:
        |backend, seed| signatures::run(backend.as_ref(), seed);
    "policy" the_policy_is_on_the_wire_as_it_is_said: |backend, seed| policy::run(backend.as_ref(), seed);
    "handshake" every_row_gets_its_verdict_in_a_handshake:
        |backend, seed| handshake::run(backend.as_ref(), seed);
    "paths" every_row_gets_its_verdict_in_the_data_plane: paths::run;
    "streams" only_a_clean_end_looks_like_one: streams::run;
    "rotation" roots_and_leaves_rotate_without_a_refusal: rotation::run;
    "pieces" handshakes_and_data_arrive_in_pieces_of_any_size:
        |backend, seed| session::pieces(backend.as_ref(), seed);
    "ends" connections_end_at_any_moment: |backend, seed| session::ends(backend.as_ref(), seed);
    "versions" old_versions_and_other_protocols_are_refused:
        |backend, seed| session::versions(backend.as_ref(), seed);
    "verdicts" each_handshake_gets_one_verdict_of_its_own_by_the_newest_roots:
        |backend, seed| session::verdicts(backend.as_ref(), seed);
    "damage" damage_is_noticed: |backend, seed| session::damage(backend.as_ref(), seed);
    "key updates" keys_may_change: |backend, seed| session::key_updates(backend.as_ref(), seed);
    "meetings" both_sides_learn_what_was_agreed_or_why_nothing_was:
        |backend, seed| session::meetings(backend.as_ref(), seed);
    "records" a_peer_with_good_keys_can_end_its_session_and_nothing_more:
        |backend, seed| session::records(backend.as_ref(), seed);
    "resumption" nothing_is_resumed_that_a_peer_remembers:
        |backend, seed| session::resumption(backend.as_ref(), seed);
    "sizes" certificate_lists_are_bounded: |backend, seed| session::sizes(backend.as_ref(), seed);
    "material" bad_material_is_refused_and_good_material_serves:
        |backend, seed| session::material(backend.as_ref(), seed);
    "agent" the_agent_is_known_by_its_name: |backend, seed| agent::run(backend.as_ref(), seed);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_family_has_a_name_and_a_test_of_its_own() {
        let families = families();
        let names: BTreeSet<&str> = families.iter().flat_map(|family| [family.name, family.test]).collect();
        assert_eq!(names.len(), 2 * families.len());
    }
}
