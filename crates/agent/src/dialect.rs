//! The two ways of speaking: a Consul of today (1.22) and an old one (1.10, and managed proxies before it).

/// Which Consul the agent plays.
///
/// The differences are those that were seen on running agents; everything that is not named in this module
/// is the same in both.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Dialect {
    /// Consul 1.22: empty subjects, one leaf a service for all callers, error texts that name the permission.
    #[default]
    Today,
    /// Consul 1.10: leaves with a common name, one leaf a token, short error texts; and the managed proxies
    /// of 1.2 to 1.5 where a test asks for one.
    Old,
}

impl Dialect {
    /// The version that `/v1/agent/self` gives.
    pub(crate) fn version(self) -> &'static str {
        match self {
            Self::Today => "1.22.0",
            Self::Old => "1.10.12",
        }
    }

    pub(crate) fn is_today(self) -> bool {
        self == Self::Today
    }

    /// The text of a 400 that Consul builds as a `BadRequestError`.
    pub(crate) fn bad_request(self, text: &str) -> String {
        match self {
            Self::Today => text.to_owned(),
            Self::Old => format!("Bad request: {text}"),
        }
    }

    /// The Reason of authorize when no intention matches and no intention policy is set.
    pub(crate) fn default_reason(self, acls_enabled: bool) -> &'static str {
        match (self, acls_enabled) {
            (Self::Old, false) => "ACLs disabled, access is allowed by default",
            _ => "Default behavior configured by ACLs",
        }
    }
}
