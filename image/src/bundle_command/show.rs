//! `postern bundle show`.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use bundle::container::{Container, Sections};
use bundle::manifest::{ConfirmMode, Manifest};
use bundle::signature::{BUNDLE_NAMESPACE, ParsedSignature};
use bundle::site::Site;
use bundle::trust::TrustBlob;
use bundle::verify::digest;

use super::files::{read, say};

/// Options of `postern bundle show`.
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The NAME.postern file.
    bundle: PathBuf,
    /// Print the site file that is inside, and nothing else.
    #[arg(long)]
    site: bool,
}

/// Runs it.
pub(crate) fn run(args: &Args) -> anyhow::Result<()> {
    let bytes = read(&args.bundle)?;
    let wrong = || format!("{} is not a bundle", args.bundle.display());
    let container = Container::parse(&bytes).with_context(wrong)?;
    let sections = Sections::parse(container.payload).with_context(wrong)?;
    if args.site {
        return say(sections.site.trim_end());
    }
    let manifest = Manifest::parse(sections.manifest).with_context(wrong)?;
    say(describe(&container, &sections, &manifest)?.trim_end())
}

fn describe(
    container: &Container<'_>,
    sections: &Sections<'_>,
    manifest: &Manifest,
) -> anyhow::Result<String> {
    let mut text = String::new();
    writeln!(text, "site           {}", manifest.site)?;
    writeln!(text, "serial         {}", manifest.serial)?;
    writeln!(text, "digest         {}", digest(container.payload))?;
    writeln!(text, "bundle-id      {}", manifest.bundle_id)?;
    writeln!(text, "created        {}", utc(manifest.created_at))?;
    writeln!(text, "reason         {}", manifest.reason.escape_debug())?;
    writeln!(text, "minimum agent  {}", manifest.minimum_agent)?;
    writeln!(text, "trust epoch    {}", manifest.trust_epoch)?;
    let confirm = &manifest.confirm;
    let by = match confirm.mode {
        ConfirmMode::Auto => "by the box",
        ConfirmMode::Manual => "by a person",
    };
    let require: Vec<_> = confirm.require.iter().map(ToString::to_string).collect();
    write!(text, "confirm        {by} within {} s", confirm.deadline)?;
    if !require.is_empty() {
        write!(text, ", requires {}", require.join(", "))?;
    }
    writeln!(text)?;
    let site = Site::parse(sections.site, "site").ok();
    let mut sealed = sections.secrets.iter();
    for one in &manifest.boxes {
        writeln!(text, "box            {}: {}", one.name, one.matches)?;
        let Some(seal_key) = &one.seal_key else {
            writeln!(text, "               no device key, no secrets")?;
            continue;
        };
        writeln!(text, "               device key {seal_key}")?;
        let names: Vec<String> =
            site.iter().flat_map(|site| site.secrets_of(&one.name).into_keys()).collect();
        let size = sealed.next().map_or(0, |bytes| bytes.len());
        writeln!(text, "               secrets, {size} bytes sealed: {}", names.join(", "))?;
    }
    writeln!(text, "site file      {} bytes", sections.site.len())?;
    let certs: std::collections::BTreeMap<String, String> =
        serde_json::from_str(sections.certs).context("section certs is not JSON")?;
    for (path, pem) in &certs {
        writeln!(text, "certificates   {path}, {} bytes", pem.len())?;
    }
    for record in &container.trust {
        let blob = TrustBlob::parse(record.blob)?;
        writeln!(text, "carries trust  version {}", blob.version)?;
    }
    for armoured in &container.signatures {
        match ParsedSignature::parse(armoured, BUNDLE_NAMESPACE) {
            Ok(signature) => writeln!(text, "names signer   {}", signature.signer())?,
            Err(error) => writeln!(text, "bad signature  {error}")?,
        }
    }
    writeln!(text, "Nothing of this is judged: `postern bundle verify` does that.")?;
    Ok(text)
}

/// Seconds since 1970 as date and time (proleptic Gregorian calendar).
fn utc(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    // Days are counted from 1 March of year 0, so that the leap day ends a year; 400 years have
    // 146097 days.
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (rest / 3_600, rest / 60 % 60, rest % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_become_dates() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_370_862), "2026-11-22 18:07:42 UTC");
        assert_eq!(utc(4_107_542_399), "2100-02-28 23:59:59 UTC");
    }
}
