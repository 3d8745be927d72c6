//! `meshdiff`: of the time that a request through an Istio mesh took, how much was the application, the sidecars, the
//! loopback between them, and the network.
//!
//! Data goes to stdout; progress and logs go to stderr.

mod agent;
mod analysis;
mod args;
mod by;
mod by_parts;
mod check;
mod cluster;
mod exit;
mod otlp;
mod record;
mod report;
mod store;

use args::{Cli, Command};
use clap::{CommandFactory, Parser};
use exit::Failure;
use std::io::IsTerminal;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    let default = match cli.verbose {
        // An agent says what it does; commands show it.
        0 if matches!(cli.command, Command::Agent(_)) => "info",
        0 => "warn",
        1 => "info",
        2 => "debug",
        _ => "trace",
    };
    let colour = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let filter = EnvFilter::try_from_env("MESHDIFF_LOG").unwrap_or_else(|_| EnvFilter::new(default));
    let logs = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(colour)
        .with_target(cli.verbose > 1);
    if matches!(&cli.command, Command::Agent(args) if args.log_format == agent::LogFormat::Json) {
        logs.json().flatten_event(true).init();
    } else {
        logs.init();
    }
    match run(cli.command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Record(args) => store::record(*args),
        Command::Agent(args) => agent::run(&(*args).try_into()?),
        Command::Report(args) => report::report(&args),
        Command::Requests(args) => report::requests(&args),
        Command::Store(args) => store::run(&args),
        Command::Check(args) => check::run(&args),
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "meshdiff", &mut std::io::stdout());
            Ok(())
        }
    }
}
