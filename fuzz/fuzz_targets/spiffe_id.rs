//! No bytes make the identity parser panic, and what it accepts is written and read back as the same identity.
#![no_main]

use libfuzzer_sys::fuzz_target;
use lictor_core::{SpiffeId, identity::Grammar};

fuzz_target!(|bytes: &[u8]| {
    for grammar in [Grammar::Spiffe, Grammar::PercentEncoding] {
        if let Ok(SpiffeId::Service(service)) = SpiffeId::parse(bytes, grammar) {
            let again = SpiffeId::parse(service.to_string().as_bytes(), grammar);
            assert_eq!(again, Ok(SpiffeId::Service(service)));
        }
    }
});
