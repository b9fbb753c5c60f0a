//! Exit codes, after sysexits(3).

use std::process::ExitCode;

/// A failure that is one of ours, by number.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Exit(u8);

/// What was looked for is not there; as grep says it.
pub(crate) const NOT_FOUND: Exit = Exit(1);
/// The command line is wrong (EX_USAGE).
pub(crate) const USAGE: Exit = Exit(64);
/// What was asked for is not there, or could not be done with all of it
/// (EX_DATAERR).
pub(crate) const DATA: Exit = Exit(65);
/// Something needed is not there: Kafka, a port (EX_UNAVAILABLE).
pub(crate) const UNAVAILABLE: Exit = Exit(69);
/// A defect, or calls that had to be cut (EX_SOFTWARE).
pub(crate) const SOFTWARE: Exit = Exit(70);
/// The operating system refused something (EX_OSERR).
pub(crate) const OS: Exit = Exit(71);
/// The configuration is wrong (EX_CONFIG).
pub(crate) const CONFIG: Exit = Exit(78);
/// Told to stop twice.
pub(crate) const SECOND_SIGNAL: Exit = Exit(130);

impl Exit {
    /// For `std::process::exit`.
    pub(crate) fn number(self) -> i32 {
        i32::from(self.0)
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.0)
    }
}
