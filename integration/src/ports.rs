//! Ports for processes that bind them themselves.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    ops::Range,
};

use anyhow::{Result, bail};
use parking_lot::Mutex;

/// Below the range from which Linux takes ports for outgoing connections (32768 and up), so that nobody's connection
/// takes one between the moment it is chosen and the moment the child binds it.
const RANGE: Range<u16> = 10_000..32_000;

/// Ports come in blocks. Whoever listens on the first port of a block has the others, so that two runs of these tests
/// at once do not take each other's.
const BLOCK: u16 = 100;

/// The blocks that are ours, and what is left of the last one.
static OURS: Mutex<Ours> = Mutex::new(Ours { leaders: Vec::new(), left: 0..0 });

struct Ours {
    leaders: Vec<TcpListener>,
    left: Range<u16>,
}

/// A port of 127.0.0.1 that is free now and is given to nobody else.
pub(crate) fn free() -> Result<SocketAddr> {
    let mut ours = OURS.lock();
    loop {
        for port in ours.left.by_ref() {
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            // Both, since some of the children listen on every address.
            let everywhere = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
            if TcpListener::bind(address).is_ok() && TcpListener::bind(everywhere).is_ok() {
                return Ok(address);
            }
        }
        ours.take_block()?;
    }
}

impl Ours {
    /// Where the search begins depends on the process, so that two runs seldom try the same block.
    fn take_block(&mut self) -> Result<()> {
        let blocks = (RANGE.end - RANGE.start) / BLOCK;
        let begin = u16::try_from(std::process::id() % u32::from(blocks))?;
        for step in 0..blocks {
            let first = RANGE.start + (begin + step) % blocks * BLOCK;
            if let Ok(leader) = TcpListener::bind((Ipv4Addr::LOCALHOST, first)) {
                self.leaders.push(leader);
                self.left = first + 1..first + BLOCK;
                return Ok(());
            }
        }
        bail!("no free block of ports between {} and {}", RANGE.start, RANGE.end)
    }
}
