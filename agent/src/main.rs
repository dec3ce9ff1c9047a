//! `postern-agent`: everything that runs on the box, one process per privilege.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod client;
mod connection_limit;
mod console;
mod control;
mod device;
mod host;
mod ipc;
mod log;
mod message;
mod net;
mod notify;
mod plan;
mod proxy;
mod relay;
mod unseal;

/// What runs on the box, one process per privilege.
#[derive(Debug, Parser)]
#[command(name = "postern-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Configures the NICs and holds the listening sockets (unit postern-net).
    Net,
    /// Sets host name, DNS, time servers and the clock floor (unit postern-host).
    Host,
    /// Takes bundles and drives the other processes (unit postern-agent).
    Agent,
    /// Judges one bundle that comes over standard input, then exits (unit postern-unseal@).
    Unseal,
    /// The TURN relay (unit postern-relay).
    Relay(relay::Options),
    /// The web proxy (unit postern-proxy).
    Proxy,
    /// Puts the device keys in place, then exits (unit postern-device).
    Device,
    /// Shows what is observed on this box.
    Status {
        /// As one JSON object.
        #[arg(long)]
        json: bool,
    },
    /// Shows what is counted on this box, in the text format of Prometheus.
    Metrics,
    /// Hands a bundle to the agent and says what became of it.
    Apply {
        /// The NAME.postern file.
        bundle: PathBuf,
    },
    /// Keeps what waits for a confirmation by hand.
    Confirm,
    /// Prints what a person at the box wants to know, again at each change (unit postern-console).
    Console,
}

fn main() -> ExitCode {
    log::init();
    let result = match Cli::parse().command {
        Command::Net => net::run(),
        Command::Host => host::run(),
        Command::Agent => control::run(),
        Command::Unseal => unseal::run(),
        Command::Relay(options) => relay::run(&options),
        Command::Proxy => proxy::run(),
        Command::Device => device::run(),
        Command::Status { json } => client::status(json),
        Command::Metrics => client::metrics(),
        Command::Apply { bundle } => return client::apply(&bundle),
        Command::Confirm => client::confirm(),
        Command::Console => console::run(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
