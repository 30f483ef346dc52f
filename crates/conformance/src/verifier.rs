//! The rows at the level of the verifier: [`verify_peer`] alone, over the signature verification of a backend.

use std::sync::Arc;

use lictor_core::{ExpectedPeer, Judge, Roots, SignatureAlgorithms, SpiffeId, SpiffeService, verify_peer};

use crate::{
    certs::{Mesh, TRUST_DOMAIN, service_uri},
    report::Report,
    rows::{Build, Case, Row, Want, rows},
};

/// A side of a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// We are the server.
    Inbound,
    /// We are the client.
    Outbound,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Inbound, Self::Outbound];

    /// The name in the table.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Inbound => "in",
            Self::Outbound => "out",
        }
    }

    /// What the row wants on this side.
    #[must_use]
    pub fn want(self, row: &Row) -> Want {
        match self {
            Self::Inbound => row.inbound,
            Self::Outbound => row.outbound,
        }
    }

    /// Who may be at the other end: as a server any service, seen by `db`; as a client exactly `web`.
    ///
    /// # Panics
    /// Never: the names are good.
    #[must_use]
    pub fn expected(self) -> ExpectedPeer {
        match self {
            Self::Inbound => ExpectedPeer::ClientOf(Arc::new(service("db"))),
            Self::Outbound => ExpectedPeer::Server(Arc::new(service("web"))),
        }
    }
}

/// The identity of a service of dc1 in the default namespace.
///
/// # Panics
/// When `name` is no legal one.
#[must_use]
pub fn service(name: &str) -> SpiffeService {
    match SpiffeId::parse(service_uri(name).as_bytes(), lictor_core::identity::Grammar::PercentEncoding) {
        Ok(SpiffeId::Service(service)) => service,
        other => panic!("{name} is {other:?}"),
    }
}

/// By what a case is judged on a side.
///
/// # Panics
/// When the case has no list of roots, which is a fault of the row.
#[must_use]
pub fn judge(mesh: &Mesh, case: &Case, side: Side) -> Judge {
    let roots = Roots::from_pem(1, TRUST_DOMAIN, case.roots.iter().map(String::as_str)).expect("a list of roots");
    Judge { expected: side.expected(), roots: Arc::new(roots), policy: Arc::new(case.policy.clone()), now: mesh.time() }
}

/// Runs every row that is about a chain through the verifier, on both sides; `backend` names whose algorithms they are.
#[must_use]
pub fn run(backend: &str, algorithms: &SignatureAlgorithms, seed: u64) -> Report {
    let mut report = Report::new("verifier", backend, seed);
    let mesh = Mesh::new(seed);
    for row in rows() {
        let Build::Chain(build) = row.build else { continue };
        let case = build(&mesh);
        for side in Side::BOTH {
            let want = side.want(&row);
            report.add_wanted(&row.title(), side, want, check(&mesh, &case, side, want, algorithms));
        }
    }
    report
}

fn check(mesh: &Mesh, case: &Case, side: Side, want: Want, algorithms: &SignatureAlgorithms) -> Result<String, String> {
    let judge = judge(mesh, case, side);
    // A root may be complained of twice, for its certificate and for the entry that then holds none.
    let named = judge.roots.ignored().iter().filter_map(|why| why.split_once(':')).map(|(root, _)| root);
    let ignored = named.collect::<std::collections::BTreeSet<_>>().len();
    if ignored != case.ignored_roots {
        return Err(format!("{ignored} roots were ignored: {:?}", judge.roots.ignored()));
    }
    match (verify_peer(&judge, &case.chain, algorithms), want) {
        (Ok(proof), Want::Accept) => {
            check_identity(case, &proof.identity)?;
            if proof.chain != case.chain {
                return Err("the proof holds another chain than was sent".to_owned());
            }
            Ok(format!("accepted, serial {}", proof.identity.serial()))
        }
        (Err(reason), Want::Reject(wanted)) if reason == wanted => Ok(format!("{reason}")),
        (Ok(proof), _) => Err(format!("accepted as {}, wanted {want:?}", proof.identity.uri())),
        (Err(reason), _) => Err(format!("{reason}, wanted {want:?}")),
    }
}

/// Checks that an accepted peer is who the case says.
///
/// # Errors
/// What differs.
pub fn check_identity(case: &Case, identity: &lictor_core::PeerIdentity) -> Result<(), String> {
    if identity.uri() != case.uri {
        return Err(format!("accepted as {}, sent {}", identity.uri(), case.uri));
    }
    match SpiffeId::parse(case.uri.as_bytes(), case.policy.grammar) {
        Ok(SpiffeId::Service(service)) if service == *identity.service() => {}
        other => return Err(format!("accepted as {}, sent {other:?}", identity.service())),
    }
    if case.serial.is_some_and(|serial| serial != identity.serial().as_str()) {
        return Err(format!("serial {}, wanted {:?}", identity.serial(), case.serial));
    }
    Ok(())
}
