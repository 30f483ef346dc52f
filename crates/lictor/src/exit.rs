//! How the process ends: the exit codes, and the failures that carry one.

use std::fmt;

use crate::config::Problem;

/// The exit codes that scripts and supervisors may rely on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    /// Stopped cleanly, by a signal, with every connection finished.
    Clean = 0,
    /// Failed while running, or connections had to be cut at the end of the drain.
    Failed = 1,
    /// The command line is wrong.
    Usage = 2,
    /// The configuration (file, variables, files they name) is wrong.
    Config = 3,
    /// The agent is unreachable or refuses, where nothing can start without it.
    Agent = 4,
    /// An address that flags or file name is in use.
    AddressInUse = 5,
    /// FIPS is required and the TLS library is not in that mode.
    NoFips = 6,
}

/// Why the process ends, with its exit code.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) exit: Exit,
    message: Message,
}

#[derive(Debug)]
enum Message {
    Words(String),
    /// Something in the configuration; which layer said it is found out where the layers are known.
    Problem(Box<Problem>),
}

impl Failure {
    pub(crate) fn new(exit: Exit, message: impl Into<String>) -> Self {
        Self { exit, message: Message::Words(message.into()) }
    }

    /// Says more about a problem of the configuration, where it is one.
    pub(crate) fn map_problem(self, more: impl FnOnce(Problem) -> Problem) -> Self {
        match self.message {
            Message::Problem(problem) => Self::from(more(*problem)),
            Message::Words(_) => self,
        }
    }

    /// A command line that clap accepts and that still makes no sense.
    pub(crate) fn usage(message: impl fmt::Display) -> Self {
        Self::new(Exit::Usage, format!("{message}\n\nFor more information, try 'lictor proxy -help'."))
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.message {
            Message::Words(words) => f.write_str(words),
            Message::Problem(problem) => problem.fmt(f),
        }
    }
}

impl From<Problem> for Failure {
    fn from(problem: Problem) -> Self {
        Self { exit: Exit::Config, message: Message::Problem(Box::new(problem)) }
    }
}
