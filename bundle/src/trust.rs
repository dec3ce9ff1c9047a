//! Trust: whose signatures count, and how that changes over time.
//!
//! A box starts from the blob that its image carries and walks to newer ones. Version N+1 needs
//! the root threshold of N, by roots of N, and the root threshold of N+1, by roots of N+1. The
//! newest version reached is the whole truth: versions are never merged, so a revocation sticks.
//!
//! A trust file (`NAME.trust`, the image's, the box's stored one) is a run of records as in a
//! bundle's TRUST part ([`TrustRecord`]).

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};
use ssh_key::PrivateKey;

use crate::container::{FramingError, TrustRecord, split_armour};
use crate::signature::{
    self, Fingerprint, ParsedSignature, SignatureError, SignerKey, SigningError, TRUST_NAMESPACE,
};

const MAX_KEYS: usize = 32;
/// Most records in a trust file: one per change of trust since the image's.
const MAX_STORED: usize = 256;

/// Why trust could not be taken or walked. Final for these bytes.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum TrustError {
    /// The file's frame is wrong.
    #[error("trust: {0}")]
    Framing(FramingError),
    /// A trust file without any record.
    #[error("the trust file is empty")]
    Empty,
    /// Not the JSON of a trust blob.
    #[error("trust blob is malformed: {reason}")]
    Json {
        /// What is wrong and where.
        reason: String,
    },
    /// A blob that could never work.
    #[error("trust version {version}: {reason}")]
    Blob {
        /// Which.
        version: u32,
        /// What is wrong.
        reason: &'static str,
    },
    /// Versions in one file do not follow each other.
    #[error("trust version {found} follows {before}; versions must be consecutive")]
    NotConsecutive {
        /// The one before.
        before: u32,
        /// The one found.
        found: u32,
    },
    /// The walk cannot go on.
    #[error("needs trust version {needed}; the oldest newer one here is {found}")]
    Gap {
        /// The version that is missing.
        needed: u32,
        /// The first one that is there.
        found: u32,
    },
    /// A signature over a blob does not hold.
    #[error("trust version {version}: {error}")]
    Signature {
        /// Which.
        version: u32,
        /// What is wrong with it.
        error: SignatureError,
    },
    /// Too few roots signed.
    #[error("trust version {version} is signed by {found} of the {needed} roots of {by} it needs")]
    Threshold {
        /// Which.
        version: u32,
        /// Whose roots were counted.
        by: u32,
        /// How many signed.
        found: usize,
        /// How many are needed.
        needed: usize,
    },
}

impl From<FramingError> for TrustError {
    fn from(error: FramingError) -> Self {
        Self::Framing(error)
    }
}

/// One version of trust.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct TrustBlob {
    /// Grows by one with each change.
    pub version: u32,
    /// Keys that may change trust.
    pub roots: Vec<SignerKey>,
    /// How many of them it takes.
    pub root_threshold: usize,
    /// Keys that may sign bundles.
    pub signers: Vec<Signer>,
    /// How many of them it takes.
    pub threshold: usize,
    /// Keys that no longer count, as roots or as signers.
    pub revoked: BTreeSet<Fingerprint>,
    /// Bundles of an earlier trust epoch are refused.
    pub min_epoch: u32,
}

/// A key that may sign bundles.
#[derive(Clone, Debug, Eq, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub struct Signer {
    /// The key.
    pub key: SignerKey,
    /// Whether its signatures count only with the user verified (PIN, fingerprint).
    pub require_uv: bool,
}

impl TrustBlob {
    /// The first trust of a lab or a small owner: one key is the root and the only signer.
    #[must_use]
    pub fn first(key: SignerKey) -> Self {
        Self {
            version: 1,
            roots: vec![key.clone()],
            root_threshold: 1,
            signers: vec![Signer { key, require_uv: false }],
            threshold: 1,
            revoked: BTreeSet::new(),
            min_epoch: 1,
        }
    }

    /// Parses the JSON and refuses what could never work.
    ///
    /// # Errors
    ///
    /// Returns [`TrustError::Json`] or [`TrustError::Blob`].
    pub fn parse(json: &[u8]) -> Result<Self, TrustError> {
        let blob: Self = serde_json::from_slice(json)
            .map_err(|error| TrustError::Json { reason: error.to_string() })?;
        blob.check()?;
        Ok(blob)
    }

    /// Makes a record: the JSON and a signature by each of `roots`.
    ///
    /// # Errors
    ///
    /// Returns an error for a key that cannot sign.
    pub fn to_record(&self, roots: &[&PrivateKey]) -> Result<Vec<u8>, SigningError> {
        let mut blob =
            serde_json::to_vec_pretty(self).expect("a trust blob holds nothing JSON cannot");
        blob.push(b'\n');
        let mut signatures = String::new();
        for root in roots {
            signatures += &signature::sign(root, TRUST_NAMESPACE, &blob)?;
        }
        let mut record = Vec::new();
        TrustRecord { blob: &blob, signatures: signatures.as_bytes() }.write(&mut record);
        Ok(record)
    }

    /// The signer with this key, unless it is revoked.
    #[must_use]
    pub fn signer_of(&self, signature: &ParsedSignature) -> Option<&Signer> {
        self.signers
            .iter()
            .find(|signer| signature.is_by(&signer.key) && !self.is_revoked(&signer.key))
    }

    /// The keys that may sign bundles, without the revoked ones.
    pub fn live_signers(&self) -> impl Iterator<Item = &SignerKey> {
        self.signers.iter().map(|signer| &signer.key).filter(|key| !self.is_revoked(key))
    }

    /// The keys that may change trust, without the revoked ones.
    pub fn live_roots(&self) -> impl Iterator<Item = &SignerKey> {
        self.roots.iter().filter(|key| !self.is_revoked(key))
    }

    fn is_revoked(&self, key: &SignerKey) -> bool {
        self.revoked.contains(&key.fingerprint())
    }

    fn check(&self) -> Result<(), TrustError> {
        let fail = |reason| Err(TrustError::Blob { version: self.version, reason });
        if self.version == 0 {
            return fail("versions begin with 1");
        }
        if self.roots.len() > MAX_KEYS || self.signers.len() > MAX_KEYS {
            return fail("more than 32 keys");
        }
        if self.revoked.len() > 8 * MAX_KEYS {
            return fail("more than 256 revoked keys");
        }
        let distinct = |keys: &[&SignerKey]| {
            let prints: BTreeSet<_> = keys.iter().map(|key| key.fingerprint()).collect();
            prints.len() == keys.len()
        };
        let signers: Vec<_> = self.signers.iter().map(|signer| &signer.key).collect();
        let roots: Vec<_> = self.roots.iter().collect();
        if !distinct(&roots) || !distinct(&signers) {
            return fail("the same key twice");
        }
        let live = |keys: &[&SignerKey]| keys.iter().filter(|key| !self.is_revoked(key)).count();
        if self.root_threshold == 0 || self.root_threshold > live(&roots) {
            return fail("root-threshold is 0 or above the number of roots not revoked");
        }
        if self.threshold == 0 || self.threshold > live(&signers) {
            return fail("threshold is 0 or above the number of signers not revoked");
        }
        Ok(())
    }
}

/// Trust reached by a walk from the image's blob, with the records that prove it.
#[derive(Clone, Debug)]
pub struct TrustChain {
    current: TrustBlob,
    /// Records beside the anchor, oldest first: what the box stores.
    records: Vec<(u32, Vec<u8>)>,
}

impl TrustChain {
    /// Takes a trust file whose first record is trusted as it is, because of where it lies: in
    /// the image, or named by a person on the command line. Further records are walked.
    ///
    /// # Errors
    ///
    /// Returns an error for a malformed file or a walk that fails.
    pub fn anchored(file: &[u8]) -> Result<Self, TrustError> {
        let records = TrustRecord::parse_all(file, MAX_STORED)?;
        let (anchor, newer) = records.split_first().ok_or(TrustError::Empty)?;
        let current = TrustBlob::parse(anchor.blob)?;
        Self { current, records: Vec::new() }.extended(newer)
    }

    /// Walks on with a stored trust file; an empty one changes nothing.
    ///
    /// # Errors
    ///
    /// As [`TrustChain::extended`].
    pub fn with_stored(&self, file: &[u8]) -> Result<Self, TrustError> {
        self.walk(&TrustRecord::parse_all(file, MAX_STORED)?, true)
    }

    /// Walks on with `records`: older versions are skipped, a gap stops.
    ///
    /// # Errors
    ///
    /// Returns an error for the first record that does not hold; nothing is taken then.
    pub fn extended(&self, records: &[TrustRecord<'_>]) -> Result<Self, TrustError> {
        self.walk(records, false)
    }

    /// Writes the newest records beyond the anchor for a bundle's TRUST part, at most eight.
    #[must_use]
    pub fn for_bundle(&self) -> Vec<TrustRecord<'_>> {
        let skip = self.records.len().saturating_sub(crate::container::MAX_COUNT);
        let newest = self.records[skip..].iter();
        newest.filter_map(|(_, bytes)| TrustRecord::parse_all(bytes, 1).ok()?.pop()).collect()
    }

    fn walk(&self, records: &[TrustRecord<'_>], keep_older: bool) -> Result<Self, TrustError> {
        let mut chain = self.clone();
        let mut before = None;
        for record in records {
            let blob = TrustBlob::parse(record.blob)?;
            if let Some(before) = before
                && Some(blob.version) != u32::checked_add(before, 1)
            {
                return Err(TrustError::NotConsecutive { before, found: blob.version });
            }
            before = Some(blob.version);
            chain.step(blob, record, keep_older)?;
        }
        Ok(chain)
    }

    /// The trust in force.
    #[must_use]
    pub fn current(&self) -> &TrustBlob {
        &self.current
    }

    /// Its version.
    #[must_use]
    pub fn version(&self) -> u32 {
        self.current.version
    }

    /// The records beyond the anchor as a trust file: what a box stores.
    #[must_use]
    pub fn to_stored(&self) -> Vec<u8> {
        self.records.iter().flat_map(|(_, record)| record.iter().copied()).collect()
    }

    fn step(
        &mut self,
        blob: TrustBlob,
        record: &TrustRecord<'_>,
        keep_older: bool,
    ) -> Result<(), TrustError> {
        let needed = self.current.version.saturating_add(1);
        if blob.version > needed {
            return Err(TrustError::Gap { needed, found: blob.version });
        }
        let newer = blob.version == needed;
        if newer {
            let error = |error| TrustError::Signature { version: blob.version, error };
            let mut signatures = Vec::new();
            for armoured in split_armour(record.signatures)? {
                let signature = ParsedSignature::parse(armoured, TRUST_NAMESPACE).map_err(error)?;
                signature.verify(record.blob, false).map_err(error)?;
                signatures.push(signature);
            }
            count_roots(&self.current, &blob, &signatures)?;
            count_roots(&blob, &blob, &signatures)?;
        }
        // A stored version below the anchor is kept: an older image in the other slot starts there.
        if (newer || keep_older) && self.records.iter().all(|(version, _)| *version != blob.version)
        {
            let mut bytes = Vec::new();
            record.write(&mut bytes);
            self.records.push((blob.version, bytes));
            self.records.sort_by_key(|(version, _)| *version);
        }
        if newer {
            self.current = blob;
        }
        Ok(())
    }
}

fn count_roots(
    by: &TrustBlob,
    of: &TrustBlob,
    signatures: &[ParsedSignature],
) -> Result<(), TrustError> {
    let found = by
        .roots
        .iter()
        .filter(|root| !by.is_revoked(root) && signatures.iter().any(|one| one.is_by(root)))
        .count();
    if found < by.root_threshold {
        return Err(TrustError::Threshold {
            version: of.version,
            by: by.version,
            found,
            needed: by.root_threshold,
        });
    }
    Ok(())
}

#[cfg(test)]
mod tests;
