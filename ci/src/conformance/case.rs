//! A case: a fact about a server, the section that asks for it, and how to see whether it holds.

use std::fmt::Debug;

use super::setting::{Server, Stage};

/// What became of a case.
pub(super) type Outcome<T = ()> = Result<T, Fault>;

/// One fact.
#[derive(Clone, Copy, Debug)]
pub struct Case {
    /// The fact, as a name.
    pub name: &'static str,
    /// Where it is written that it should be so; "policy" is DESIGN's, the rest are RFCs.
    pub section: &'static str,
    pub(super) server: Server,
    pub(super) run: fn(&Stage<'_>) -> Outcome,
}

impl Case {
    /// A case for the main server.
    pub(super) const fn new(
        name: &'static str,
        section: &'static str,
        run: fn(&Stage<'_>) -> Outcome,
    ) -> Self {
        Self { name, section, server: Server::Main, run }
    }

    /// The same case for a server with other settings.
    pub(super) const fn on(self, server: Server) -> Self {
        Self { server, ..self }
    }
}

/// Why a case did not hold.
#[derive(Debug)]
pub enum Fault {
    /// The server did something else.
    Differs {
        /// What the section asks for.
        expected: String,
        /// What was seen.
        received: String,
    },
    /// The case could not be tried.
    Broken(anyhow::Error),
}

impl<E: Into<anyhow::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Broken(error.into())
    }
}

impl Fault {
    /// The server did something else.
    pub(super) fn differs(expected: impl Into<String>, received: impl Into<String>) -> Self {
        Self::Differs { expected: expected.into(), received: received.into() }
    }
}

/// Fails the case unless `received` is what was expected.
pub(super) fn expect_equal<T: PartialEq + Debug>(what: &str, expected: T, received: T) -> Outcome {
    if expected == received {
        return Ok(());
    }
    Err(Fault::differs(format!("{what}: {expected:?}"), format!("{received:?}")))
}

/// Fails the case unless `holds`.
pub(super) fn expect(holds: bool, expected: &str, received: impl Debug) -> Outcome {
    if holds { Ok(()) } else { Err(Fault::differs(expected, format!("{received:?}"))) }
}
