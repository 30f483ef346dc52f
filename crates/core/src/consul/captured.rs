//! Recorded answers of real agents, for the tests of the parsers.

use serde_json::Value;

/// The body of a recorded answer.
macro_rules! captured {
    ($name:literal) => {
        $crate::consul::captured::body(include_str!(concat!("../../tests/captures/", $name, ".json")))
    };
}
pub(super) use captured;

pub(super) fn body(capture: &str) -> Vec<u8> {
    let capture: Value = serde_json::from_str(capture).unwrap();
    capture["response"]["body"].to_string().into_bytes()
}
