//! The judgement as a function of bundle and inputs.

use std::collections::BTreeMap;

use bundle::manifest::AgentVersion;
use bundle::seal::Secrets;
use bundle::site::Site;
use bundle::trust::TrustChain;
use bundle::verify::{
    AuthenticBundle, Receiver, Target, VerifiedBundle, VerifyError, authenticate, reopen,
    walk_trust,
};

use super::inputs::Inputs;
use super::summary;
use crate::message::UnsealRequest;
use crate::plan::Generation;
use crate::plan::derive::{Derived, Facts, derive};

/// Why a bundle is refused: a stable word and a sentence for people.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Refusal {
    /// The word.
    pub(super) code: &'static str,
    /// The sentence; never a secret.
    pub(super) reason: String,
}

impl From<VerifyError> for Refusal {
    fn from(error: VerifyError) -> Self {
        Self { code: error.code(), reason: error.to_string() }
    }
}

/// What comes of a bundle.
#[derive(Debug)]
pub(super) struct Verdict {
    /// Verified trust above what was stored, in the form in which it is stored.
    pub(super) newer_trust: Option<Vec<u8>>,
    /// Accepted and planned, or not.
    pub(super) outcome: Result<Ready, Refusal>,
}

/// Accepted and planned.
#[derive(Debug)]
pub(super) struct Ready {
    /// Which generation it makes.
    pub(super) generation: Generation,
    /// What status shows of it.
    pub(super) summary: BTreeMap<String, serde_json::Value>,
    /// The plans; slices hold secrets.
    pub(super) derived: Derived,
    /// Whether it is the very bundle in force.
    pub(super) unchanged: bool,
    /// Version of the trust in force.
    pub(super) trust_version: u64,
}

/// Judges a bundle that has arrived, or opens the confirmed one again.
pub(super) fn judge(request: &UnsealRequest, bytes: &[u8], inputs: &Inputs) -> Verdict {
    match request {
        UnsealRequest::Judge => match walk(bytes, inputs) {
            Err(refusal) => Verdict { newer_trust: None, outcome: Err(refusal) },
            Ok((trust, newer_trust)) => {
                let outcome = authenticate(bytes, &trust)
                    .map_err(Refusal::from)
                    .and_then(|bundle| open(bundle, inputs, trust.version()));
                Verdict { newer_trust, outcome }
            }
        },
        UnsealRequest::Reopen => {
            let confirmed = inputs.confirmed.as_ref().ok_or_else(|| Refusal {
                code: "not-confirmed",
                reason: "no bundle was ever confirmed on this box".to_owned(),
            });
            let version = inputs.trust.as_ref().map_or(0, TrustChain::version);
            let outcome = confirmed
                .and_then(|lkg| Ok(reopen(bytes, &lkg.generation.digest)?))
                .and_then(|bundle| open(bundle, inputs, version));
            Verdict { newer_trust: None, outcome }
        }
    }
}

/// Returns the trust in force, and the same as records when it is newer than what is stored.
fn walk(bytes: &[u8], inputs: &Inputs) -> Result<(TrustChain, Option<Vec<u8>>), Refusal> {
    let before = inputs.trust.as_ref().map_err(Refusal::clone)?;
    let trust = walk_trust(bytes, before)?;
    let newer = (trust.version() > before.version()).then(|| trust.to_stored());
    Ok((trust, newer))
}

fn open(bundle: AuthenticBundle, inputs: &Inputs, trust_version: u32) -> Result<Ready, Refusal> {
    let verified = bundle.accept(&Receiver {
        target: Target::Hardware(&inputs.hardware),
        floor: inputs.floor(),
        agent: AgentVersion::this(),
    })?;
    let derived = plan(&verified, inputs)?;
    let manifest = verified.manifest();
    Ok(Ready {
        generation: Generation { serial: manifest.serial, digest: verified.digest().to_owned() },
        summary: summary(manifest, &verified.target().name, verified.signers()),
        derived,
        unchanged: verified.is_unchanged(),
        trust_version: u64::from(trust_version),
    })
}

fn plan(verified: &VerifiedBundle, inputs: &Inputs) -> Result<Derived, Refusal> {
    let refuse = |code, error: &dyn std::fmt::Display| Refusal { code, reason: error.to_string() };
    let certs = verified.certs().map_err(|error| refuse("certs", &error))?;
    let secrets = match (&inputs.seal, &verified.target().seal_key) {
        (_, None) => Secrets::new(),
        (Some(seal), _) => verified.secrets(seal).map_err(|error| refuse("secrets", &error))?,
        (None, Some(wanted)) => {
            return Err(Refusal {
                code: "not-ready",
                reason: format!("sealed to device key {wanted}, this box has no device keys"),
            });
        }
    };
    let site = Site::parse(verified.site(), "site").map_err(|faults| {
        // Without the source line, which a person may have filled with what belongs elsewhere.
        let faults = faults.iter().filter(|fault| fault.is_error());
        let reasons: Vec<String> = faults
            .map(|fault| {
                format!(
                    "line {} column {}: {}",
                    fault.place.line, fault.place.column, fault.message
                )
            })
            .collect();
        Refusal { code: "site", reason: format!("site file: {}", reasons.join("; ")) }
    })?;
    let manifest = verified.manifest();
    if site.serial.get() != manifest.serial || site.name.as_str() != manifest.site {
        return Err(Refusal {
            code: "site",
            reason: format!(
                "site file says site {}, serial {}; the manifest says {}, {}",
                site.name,
                site.serial.get(),
                manifest.site,
                manifest.serial
            ),
        });
    }
    let facts = Facts { created_at: manifest.created_at, ..Facts::default() };
    derive(&site, &verified.target().name, &certs, &secrets, &facts)
        .map_err(|error| refuse("plan", &error))
}
