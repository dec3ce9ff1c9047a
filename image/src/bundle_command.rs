//! `postern bundle`: keys, site file, signed bundle.

mod check;
mod files;
mod keygen;
mod new;
mod show;
mod sign;
mod split;
mod verify;

/// The verbs of `postern bundle`.
#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Makes a signing key with its trust blob, or a box's device keys.
    Keygen(keygen::Args),
    /// Writes a commented site file to start from.
    New(new::Args),
    /// Reports every fault of a site file, each with its place and what to write instead.
    Check(check::Args),
    /// Makes a signed bundle from a site file, its certificates and its secrets.
    Sign(sign::Args),
    /// Judges a bundle as a box would.
    Verify(verify::Args),
    /// Prints what a bundle says; of secrets only names and sizes.
    Show(show::Args),
    /// Writes a bundle's parts as files that `ssh-keygen -Y verify` and `age -d` can audit.
    Split(split::Args),
}

/// Runs one.
pub(crate) fn run(command: &Command) -> anyhow::Result<()> {
    match command {
        Command::Keygen(args) => keygen::run(args),
        Command::New(args) => new::run(args),
        Command::Check(args) => check::run(args),
        Command::Sign(args) => sign::run(args),
        Command::Verify(args) => verify::run(args),
        Command::Show(args) => show::run(args),
        Command::Split(args) => split::run(args),
    }
}

#[cfg(test)]
mod tests;
