//! Access control: tokens, rules, and the texts of a refusal.

use std::collections::HashMap;
use std::fmt;

use crate::dialect::Dialect;

/// Allow or deny: of an intention, of a default, of a rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Policy {
    /// May.
    Allow,
    /// May not.
    Deny,
}

impl Policy {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        }
    }

    pub(crate) fn allows(self) -> bool {
        self == Self::Allow
    }
}

/// What a rule gives on a resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Access {
    /// Nothing, even where the default allows.
    Deny,
    /// Look at it.
    Read,
    /// Change it; includes read.
    Write,
}

/// The access control lists of an agent.
#[derive(Debug, Clone)]
pub struct Acl {
    /// What holds for a resource that no rule names.
    pub default_policy: Policy,
    /// All tokens, by secret.
    pub tokens: HashMap<String, Token>,
}

impl Acl {
    /// Lists with no token yet.
    pub fn new(default_policy: Policy) -> Self {
        Self { default_policy, tokens: HashMap::new() }
    }

    /// Adds a token under its secret.
    #[must_use]
    pub fn with(mut self, secret: &str, token: Token) -> Self {
        self.tokens.insert(secret.to_owned(), token);
        self
    }
}

/// One token's rights.
#[derive(Clone, Default, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Token {
    /// The public name of the token, which refusals show; made at random where empty.
    pub accessor: String,
    /// May do everything.
    pub management: bool,
    /// Rules for services by exact name.
    pub services: Vec<(String, Access)>,
    /// Rules for services by prefix; the longest that matches counts.
    pub service_prefixes: Vec<(String, Access)>,
    /// `node_prefix "" { policy = "read" }`
    pub node_read: bool,
    /// `agent_prefix "" { policy = "read" }`
    pub agent_read: bool,
    /// Destinations whose intentions it may change; `*` for all.
    pub intentions_write: Vec<String>,
    /// `operator = "write"`
    pub operator_write: bool,
    /// `acl = "write"`
    pub acl_write: bool,
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Token")
            .field("accessor", &self.accessor)
            .field("management", &self.management)
            .finish_non_exhaustive()
    }
}

impl Token {
    /// A token that may do everything.
    pub fn management() -> Self {
        Self { management: true, ..Self::fresh() }
    }

    /// What a service identity gives: write on the service and on its sidecar, read on everything.
    pub fn service_identity(name: &str) -> Self {
        Self {
            services: vec![(name.to_owned(), Access::Write), (format!("{name}-sidecar-proxy"), Access::Write)],
            service_prefixes: vec![(String::new(), Access::Read)],
            node_read: true,
            ..Self::fresh()
        }
    }

    /// A token with one rule on one service, and no more.
    pub fn service(name: &str, access: Access) -> Self {
        Self { services: vec![(name.to_owned(), access)], ..Self::fresh() }
    }

    pub(crate) fn fresh() -> Self {
        Self { accessor: uuid::Uuid::new_v4().to_string(), ..Self::default() }
    }

    fn service_access(&self, name: &str) -> Option<Access> {
        if let Some((_, access)) = self.services.iter().find(|(n, _)| n == name) {
            return Some(*access);
        }
        self.service_prefixes
            .iter()
            .filter(|(prefix, _)| name.starts_with(prefix.as_str()))
            .max_by_key(|(prefix, _)| prefix.len())
            .map(|(_, access)| *access)
    }
}

/// A right that a call needs.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Right<'a> {
    ServiceRead(&'a str),
    ServiceWrite(&'a str),
    IntentionRead(&'a str),
    IntentionWrite(&'a str),
    NodeRead(&'a str),
    AgentRead(&'a str),
    OperatorWrite,
    AclWrite,
}

impl Right<'_> {
    fn name(self) -> &'static str {
        match self {
            Self::ServiceRead(_) => "service:read",
            Self::ServiceWrite(_) => "service:write",
            Self::IntentionRead(_) => "intention:read",
            Self::IntentionWrite(_) => "intention:write",
            Self::NodeRead(_) => "node:read",
            Self::AgentRead(_) => "agent:read",
            Self::OperatorWrite => "operator:write",
            Self::AclWrite => "acl:write",
        }
    }

    fn resource(&self) -> Option<&str> {
        match self {
            Self::ServiceRead(n)
            | Self::ServiceWrite(n)
            | Self::IntentionRead(n)
            | Self::IntentionWrite(n)
            | Self::NodeRead(n)
            | Self::AgentRead(n) => Some(n),
            Self::OperatorWrite | Self::AclWrite => None,
        }
    }
}

/// Whom a request's token turned out to be.
#[derive(Debug)]
pub(crate) enum Caller<'a> {
    /// Access control is off.
    Unchecked,
    Anonymous(Policy),
    Known(&'a Token, Policy),
}

impl Caller<'_> {
    pub(crate) fn may(&self, right: Right<'_>) -> bool {
        match self {
            Self::Unchecked => true,
            Self::Anonymous(default) => default.allows() && !matches!(right, Right::AclWrite),
            Self::Known(token, default) => {
                if token.management {
                    return true;
                }
                let by_default = |access: Option<Access>, wanted: Access| match access {
                    Some(have) => have >= wanted,
                    None => default.allows(),
                };
                match right {
                    // A service rule brings intention:read with it; intention:write needs a rule of its own.
                    Right::ServiceRead(name) | Right::IntentionRead(name) => {
                        by_default(token.service_access(name), Access::Read)
                    }
                    Right::ServiceWrite(name) => by_default(token.service_access(name), Access::Write),
                    Right::NodeRead(_) => token.node_read || default.allows(),
                    Right::AgentRead(_) => token.agent_read || default.allows(),
                    Right::IntentionWrite(name) => {
                        token.intentions_write.iter().any(|n| n == "*" || n == name) || default.allows()
                    }
                    Right::OperatorWrite => token.operator_write || default.allows(),
                    // No default gives this one.
                    Right::AclWrite => token.acl_write,
                }
            }
        }
    }

    /// `Err` holds the text of the 403.
    pub(crate) fn need(&self, right: Right<'_>, dialect: Dialect) -> Result<(), String> {
        if self.may(right) {
            return Ok(());
        }
        if !dialect.is_today() {
            return Err("Permission denied".to_owned());
        }
        let on = right.resource().map(|name| format!(" on \"{name}\"")).unwrap_or_default();
        let right = right.name();
        Err(match self {
            Self::Known(token, _) => {
                format!("Permission denied: token with AccessorID '{}' lacks permission '{right}'{on}", token.accessor)
            }
            _ => format!(
                "Permission denied: anonymous token lacks permission '{right}'{on}. The anonymous token is used \
                 implicitly when a request does not specify a token."
            ),
        })
    }
}

/// Looks a token up; `None` for one that does not exist, which Consul answers with "ACL not found".
pub(crate) fn resolve<'a>(acl: Option<&'a Acl>, secret: Option<&str>) -> Option<Caller<'a>> {
    let Some(acl) = acl else {
        return Some(Caller::Unchecked);
    };
    match secret {
        None => Some(Caller::Anonymous(acl.default_policy)),
        Some(secret) => acl.tokens.get(secret).map(|token| Caller::Known(token, acl.default_policy)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn acl() -> Acl {
        Acl::new(Policy::Deny)
            .with("identity", Token::service_identity("web"))
            .with("reader", Token::service("web", Access::Read))
    }

    #[test]
    fn a_service_identity_may_write_its_service_and_its_sidecar_and_read_the_rest() {
        let acl = acl();
        let caller = resolve(Some(&acl), Some("identity")).unwrap();
        assert!(caller.may(Right::ServiceWrite("web")));
        assert!(caller.may(Right::ServiceWrite("web-sidecar-proxy")));
        assert!(caller.may(Right::ServiceRead("db")));
        assert!(!caller.may(Right::ServiceWrite("db")));
    }

    #[test]
    fn a_read_rule_does_not_give_write_nor_anything_on_another_name() {
        let acl = acl();
        let caller = resolve(Some(&acl), Some("reader")).unwrap();
        assert!(caller.may(Right::ServiceRead("web")));
        assert!(!caller.may(Right::ServiceWrite("web")));
        assert!(!caller.may(Right::ServiceRead("web-sidecar-proxy")));
    }

    #[test]
    fn an_unknown_token_is_not_the_anonymous_one() {
        let acl = acl();
        assert!(resolve(Some(&acl), Some("nobody")).is_none());
        assert!(resolve(Some(&acl), None).is_some());
    }
}
