//! The ports of `lictor dev`: friendly ones, and free ones where those are taken.

use std::{
    io,
    net::{Ipv4Addr, SocketAddr, TcpListener},
};

/// Everything that listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ports {
    pub(crate) agent: SocketAddr,
    pub(crate) control: SocketAddr,
    pub(crate) web: SocketAddr,
    pub(crate) api: SocketAddr,
    /// Where `web` reaches `api`.
    pub(crate) upstream: SocketAddr,
    pub(crate) web_sidecar: SocketAddr,
    pub(crate) api_sidecar: SocketAddr,
    pub(crate) web_admin: SocketAddr,
    pub(crate) api_admin: SocketAddr,
}

/// The ports when nobody chooses: that of every Consul agent, and a row of our own.
const FRIENDLY: [u16; 9] = [8500, 19109, 19180, 19181, 19191, 19121, 19122, 19101, 19102];

impl Ports {
    /// Chooses the ports: a row from `base`, free ones for a `base` of 0, the friendly ones where there is no base.
    ///
    /// A friendly port that is taken is replaced by a free one, a row that is asked for must be had. The sockets are
    /// closed again before the caller binds them, so in theory somebody may come between.
    ///
    /// # Errors
    /// When a port of the row is taken.
    pub(crate) fn choose(base: Option<u16>) -> io::Result<Self> {
        let at = |port: u16| TcpListener::bind((Ipv4Addr::LOCALHOST, port));
        let mut held = Vec::new();
        for (index, friendly) in FRIENDLY.into_iter().enumerate() {
            let listener = match base {
                None => at(friendly).or_else(|_| at(0))?,
                Some(0) => at(0)?,
                Some(base) => {
                    let port = u16::try_from(index).ok().and_then(|index| base.checked_add(index));
                    let port = port.ok_or_else(|| io::Error::other("the ports from this base on end beyond 65535"))?;
                    at(port).map_err(|error| io::Error::new(error.kind(), format!("port {port}: {error}")))?
                }
            };
            held.push(listener);
        }
        let mut chosen = held.iter().map(TcpListener::local_addr);
        let mut next = || chosen.next().unwrap_or_else(|| Err(io::Error::other("no port left")));
        Ok(Self {
            agent: next()?,
            control: next()?,
            web: next()?,
            api: next()?,
            upstream: next()?,
            web_sidecar: next()?,
            api_sidecar: next()?,
            web_admin: next()?,
            api_admin: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_friendly_port_that_is_taken_is_replaced_by_a_free_one() {
        let _taken = TcpListener::bind((Ipv4Addr::LOCALHOST, FRIENDLY[4]));
        let ports = Ports::choose(None).expect("free ones are left");
        assert_ne!(ports.upstream.port(), FRIENDLY[4]);
        assert_ne!(ports.upstream.port(), 0);
    }

    #[test]
    fn a_row_that_is_asked_for_must_be_had() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let base = taken.local_addr().expect("its address").port();
        let error = Ports::choose(Some(base)).expect_err("the first of the row is taken");
        assert_eq!(error.kind(), io::ErrorKind::AddrInUse);
        assert!(error.to_string().contains(&base.to_string()));
    }
}
