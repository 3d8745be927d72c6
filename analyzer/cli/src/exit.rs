//! How the program ends. Scripts rely on the codes: 0 ok, 1 failed, 2 usage, 3 a gate failed, 4 too little data to say.

use std::io;
use std::process::ExitCode;

/// Why the program does not end well.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Something went wrong.
    Failed(anyhow::Error),
    /// The arguments make no sense together.
    Usage(String),
    /// There is too little data to say anything: never reported as a pass.
    TooLittleData(String),
    /// The answer that was asked for is no, and has been given.
    Answered,
    /// Whoever read our output has gone: not worth a word.
    BrokenPipe,
}

impl Failure {
    /// Says it on stderr, and gives the exit code.
    pub(crate) fn report(self) -> ExitCode {
        match self {
            Self::Failed(error) => {
                eprintln!("meshdiff: {}", causes(&error));
                ExitCode::from(1)
            }
            Self::Usage(text) => {
                eprintln!("meshdiff: {text}");
                ExitCode::from(2)
            }
            Self::TooLittleData(text) => {
                eprintln!("meshdiff: {text}");
                ExitCode::from(4)
            }
            Self::Answered => ExitCode::from(1),
            Self::BrokenPipe => ExitCode::SUCCESS,
        }
    }
}

/// An error and its causes, each said once: messages of libraries often contain their source's already.
fn causes(error: &anyhow::Error) -> String {
    let mut text = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let broken =
            error.chain().any(|e| e.downcast_ref::<io::Error>().is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe));
        if broken { Self::BrokenPipe } else { Self::Failed(error) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_broken_pipe_is_no_failure() {
        let error = io::Error::from(io::ErrorKind::BrokenPipe);
        assert!(matches!(Failure::from(anyhow::Error::new(error).context("writing")), Failure::BrokenPipe));
        assert!(matches!(Failure::from(io::Error::other("x")), Failure::Failed(_)));
    }

    #[test]
    fn causes_are_said_once() {
        let error = anyhow::anyhow!("disk full").context("cannot write: disk full").context("report");
        assert_eq!(causes(&error), "report: cannot write: disk full");
    }
}
