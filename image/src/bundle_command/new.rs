//! `postern bundle new`.

use std::path::{Path, PathBuf};

use anyhow::ensure;

use super::files::{Overwrite, say, write};

/// What a new site file says.
const TEMPLATE: &str = include_str!("template.site.yaml");

/// Options of `postern bundle new`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The site's name: lower-case letters, digits and hyphens. Writes NAME.site.yaml.
    name: String,
    /// The folder to write it to.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    folder: PathBuf,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let name = &args.name;
    let fine = (1..=63).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
        && !name.starts_with('-')
        && !name.ends_with('-');
    ensure!(
        fine,
        "`{name}` is not a site's name: write lower-case letters, digits and inner hyphens"
    );
    let path = args.folder.join(format!("{name}.site.yaml"));
    ensure!(
        !path.exists(),
        "{} exists already and is left as it is; choose another name, or edit it",
        path.display()
    );
    write(&path, fill(name).as_bytes(), 0o644, Overwrite::Refuse)?;
    say(&next_steps(name, &path))
}

fn fill(name: &str) -> String {
    TEMPLATE.replace("SITE", name)
}

fn next_steps(name: &str, path: &Path) -> String {
    let file = path.display();
    let beside = |name: String| path.with_file_name(name).display().to_string();
    let secrets = beside(format!("{name}.secrets.yaml"));
    format!(
        "{file} is written. Next:\n\
         \x20 1. Edit it: every value of an example network is marked with `<-`.\n\
         \x20 2. Put the certificate chain and the upstream's CA into {certs}.\n\
         \x20 3. Write the secrets into {secrets} (chmod 600), never into a repository:\n\
         \x20      admin-password: \"...\"\n\
         \x20      turn-password: \"...\"\n\
         \x20      edge-key: |\n\
         \x20        -----BEGIN PRIVATE KEY-----\n\
         \x20        ...\n\
         \x20 4. postern bundle check {file}\n\
         \x20 5. postern bundle keygen, once; then postern bundle sign {file} ...",
        certs = beside("certs".to_owned()),
    )
}

#[cfg(test)]
mod tests {
    use bundle::site::Site;

    use super::*;

    #[test]
    fn a_new_site_file_is_taken_without_a_warning() {
        let site = Site::parse(&fill("branch-7"), "branch-7.site.yaml");

        let site = site.unwrap_or_else(|faults| panic!("{}", faults[0]));
        assert_eq!(site.name.as_str(), "branch-7");
        assert_eq!(site.warnings(), []);
    }

    #[test]
    fn an_existing_file_is_never_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let args = Args { name: "branch".to_owned(), folder: folder.path().to_owned() };
        let path = folder.path().join("branch.site.yaml");
        std::fs::write(&path, "mine").unwrap();

        let error = run(&args).unwrap_err();

        assert!(error.to_string().contains("left as it is"), "{error}");
        assert_eq!(std::fs::read_to_string(path).unwrap(), "mine");
    }

    #[test]
    fn a_name_that_is_a_path_is_refused() {
        let args = Args { name: "../x".to_owned(), folder: PathBuf::from(".") };

        assert!(run(&args).unwrap_err().to_string().contains("not a site's name"));
    }
}
