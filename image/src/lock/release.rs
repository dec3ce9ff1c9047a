//! Opens a suite's `InRelease`: signature, dates, hashes of its indexes.
//!
//! Trust comes from the archive keys in `image/keys` alone, taken from Debian's
//! `debian-archive-keyring` package; no keyring of the host is looked at.
//!
//! # Invariants
//!
//! Only the text that the signature covers is read: what stands before or after the signed message
//! never gets out of this module.

use pgp::composed::{CleartextSignedMessage, Deserializable, SignedPublicKey};
use pgp::types::KeyDetails as _;

use super::deb822;

/// The keys that sign the suites of Debian 13.
const KEYS: [&str; 3] = [
    include_str!("../../keys/debian-archive-trixie-automatic.asc"),
    include_str!("../../keys/debian-archive-trixie-security-automatic.asc"),
    include_str!("../../keys/debian-archive-trixie-stable.asc"),
];

/// What a verified `InRelease` says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Release {
    /// When it was made, in seconds since 1970.
    pub(crate) date: u64,
    /// Fingerprint of the key whose signature was accepted.
    pub(crate) signer: String,
    /// SHA-256 and size of the `Packages.xz` that was asked for.
    pub(crate) index: (String, u64),
}

/// Why a suite's `InRelease` cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenReleaseError {
    /// No OpenPGP clear-signed message.
    #[error("it is not a signed message (a captive portal or a broken mirror?): {0}")]
    NotSigned(String),
    /// No signature by a key of ours.
    #[error("none of its {signatures} signatures is by a key in image/keys")]
    Signature {
        /// How many it has.
        signatures: usize,
    },
    /// It is for another suite.
    #[error("it is for the suite `{found}`, not `{wanted}`")]
    Suite {
        /// What it says.
        found: String,
        /// What was asked for.
        wanted: String,
    },
    /// A field is missing or cannot be read.
    #[error("its field `{0}` is missing or malformed")]
    Field(&'static str),
    /// The mirror lags, or someone holds updates back.
    #[error("it was valid until {until}: the mirror is out of date, use another or wait")]
    Expired {
        /// Its Valid-Until field.
        until: String,
    },
    /// The index is not listed.
    #[error("it does not list {0}")]
    Index(String),
}

/// Opens `text`, the `InRelease` of `suite`, and looks up the hash of `index`.
///
/// `now` is in seconds since 1970, for Valid-Until.
///
/// # Errors
///
/// Returns the first reason not to use it.
pub(crate) fn open_release(
    text: &str,
    suite: &str,
    index: &str,
    now: u64,
) -> Result<Release, OpenReleaseError> {
    let (signed, signer) = verify(text)?;
    let release = deb822::paragraphs(&signed).next().unwrap_or_default();
    let codename = release.get("Codename").ok_or(OpenReleaseError::Field("Codename"))?;
    if codename != suite {
        return Err(OpenReleaseError::Suite { found: codename.into(), wanted: suite.into() });
    }
    let date = release.get("Date").and_then(parse_date);
    let date = date.ok_or(OpenReleaseError::Field("Date"))?;
    if let Some(until) = release.get("Valid-Until") {
        let end = parse_date(until).ok_or(OpenReleaseError::Field("Valid-Until"))?;
        if end < now {
            return Err(OpenReleaseError::Expired { until: until.to_owned() });
        }
    }
    let hashes = release.get("SHA256").ok_or(OpenReleaseError::Field("SHA256"))?;
    let index = hashes
        .lines()
        .find_map(|line| {
            let mut words = line.split_whitespace();
            let (hash, size) = (words.next()?, words.next()?.parse().ok()?);
            (words.next()? == index).then(|| (hash.to_owned(), size))
        })
        .ok_or_else(|| OpenReleaseError::Index(index.to_owned()))?;
    Ok(Release { date, signer, index })
}

/// The signed text and the fingerprint of the key of ours that signed it.
fn verify(text: &str) -> Result<(String, String), OpenReleaseError> {
    let (message, _) = CleartextSignedMessage::from_string(text)
        .map_err(|error| OpenReleaseError::NotSigned(error.to_string()))?;
    for armored in KEYS {
        let (key, _) = SignedPublicKey::from_string(armored).expect("a committed key parses");
        let signed_by_primary = message.verify(&key).is_ok();
        let subkey = key.public_subkeys.iter().find(|subkey| {
            subkey.verify_bindings(&key.primary_key).is_ok() && message.verify(*subkey).is_ok()
        });
        if signed_by_primary || subkey.is_some() {
            return Ok((message.signed_text(), key.fingerprint().to_string()));
        }
    }
    Err(OpenReleaseError::Signature { signatures: message.signatures().len() })
}

/// Reads `Sat, 21 Nov 2026 02:10:46 UTC`.
fn parse_date(text: &str) -> Option<u64> {
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let mut words = text.split_whitespace().skip(1);
    let day: i64 = words.next()?.parse().ok().filter(|day| (1..=31).contains(day))?;
    let month = words.next()?;
    let month = i64::try_from(MONTHS.iter().position(|name| *name == month)?).ok()? + 1;
    let year: i64 = words.next()?.parse().ok().filter(|year| (1970..10_000).contains(year))?;
    let time = words.next()?;
    if !matches!(words.next()?, "UTC" | "GMT" | "+0000") {
        return None;
    }
    let mut seconds = 0;
    for (part, limit) in time.splitn(3, ':').zip([24, 60, 61]) {
        seconds =
            seconds * 60 + part.parse().ok().filter(|part: &i64| (0..limit).contains(part))?;
    }
    // Days since 1970-01-01 of the proleptic Gregorian calendar, with years that begin in March.
    let (y, m) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let days = y * 365 + y / 4 - y / 100 + y / 400 + (m * 153 + 2) / 5 + day - 1 - 719_468;
    u64::try_from(days * 86_400 + seconds).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_are_read_as_seconds() {
        assert_eq!(parse_date("Thu, 01 Jan 1970 00:00:00 UTC"), Some(0));
        assert_eq!(parse_date("Sat, 21 Nov 2026 02:10:46 UTC"), Some(1_795_227_046));
        assert_eq!(parse_date("Thu, 29 Feb 2024 23:59:59 +0000"), Some(1_709_251_199));
        assert_eq!(parse_date("Sat, 21 Nov 2026 02:10:46 CET"), None);
        assert_eq!(parse_date("yesterday"), None);
    }

    #[test]
    fn a_page_that_is_not_signed_is_refused() {
        let error = open_release("<html>log in first</html>", "trixie", "x", 0).unwrap_err();
        assert!(matches!(error, OpenReleaseError::NotSigned(_)), "{error}");
    }

    #[test]
    fn committed_keys_are_the_archive_keys_of_trixie() {
        let fingerprints = KEYS.map(|armored| {
            let (key, _) = SignedPublicKey::from_string(armored).unwrap();
            for subkey in &key.public_subkeys {
                subkey.verify_bindings(&key.primary_key).unwrap();
            }
            key.fingerprint().to_string()
        });

        assert_eq!(
            fingerprints,
            [
                "04b54c3cdca79751b16bc6b5225629df75b188bd",
                "5e04a1e3223a19a20706e20f9904613d4cce68c6",
                "41587f7db8c774bccf131416762f67a0b2c39de4",
            ]
        );
    }
}
