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

/// Any JSON value of a small size, with the keys of a definition among its keys.
pub(super) fn json() -> impl proptest::strategy::Strategy<Value = Value> {
    use proptest::{collection, prelude::*};
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
    ];
    let key = prop_oneof![
        Just("Proxy".to_owned()),
        Just("Config".to_owned()),
        Just("Upstreams".to_owned()),
        Just("LocalBindPort".to_owned()),
        Just("DestinationName".to_owned()),
        Just("local_connect_timeout_ms".to_owned()),
        "[A-Za-z_]{1,8}",
    ];
    leaf.prop_recursive(4, 64, 8, move |inner| {
        prop_oneof![
            collection::vec(inner.clone(), 0..6).prop_map(Value::from),
            collection::vec((key.clone(), inner), 0..6).prop_map(|pairs| pairs.into_iter().collect()),
        ]
    })
}
