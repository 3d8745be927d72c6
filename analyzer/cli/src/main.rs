//! `meshdiff`: of the time that a request through an Istio mesh took, how much was the application, the sidecars, the
//! loopback between them, and the network.
//!
//! Data goes to stdout; progress and logs go to stderr.

mod analysis;
mod args;
mod check;
mod exit;
mod record;
mod report;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use exit::Failure;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = match cli.verbose {
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let filter = EnvFilter::try_from_env("MESHDIFF_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(cli.verbose > 1)
        .init();
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Record(args) => record::run(&args.try_into()?),
        Command::Report(args) => report::report(&args),
        Command::Requests(args) => report::requests(&args),
        Command::Check(args) => check::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshdiff", &mut std::io::stdout());
            Ok(())
        }
    }
}
