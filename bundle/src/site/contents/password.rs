//! Passwords and shared secrets against what an attacker tries first. No complaint repeats one.

use std::collections::BTreeMap;

use crate::site::{SecretKind, Site, without_newline};

use super::Findings;

/// Below this a password is refused.
const SHORTEST: usize = 8;
/// Below this it is warned of: TURN's credentials can be tried offline by whoever saw one request.
const SHORT: usize = 12;
/// The same for a secret that no person types.
const SHORT_REST: usize = 20;

/// What the reference deployments and everybody's guides use.
const KNOWN: [&str; 14] = [
    "cisco",
    "cisco123",
    "password",
    "passw0rd",
    "changeme",
    "admin",
    "administrator",
    "secret",
    "letmein",
    "turnuser",
    "turnpassword",
    "12345678",
    "123456789",
    "qwertyuiop",
];

pub(super) fn judge(findings: &mut Findings<'_>, secrets: &BTreeMap<String, Vec<u8>>) {
    let site = findings.site;
    let mut seen: BTreeMap<&str, String> = BTreeMap::new();
    for (path, name, kind) in site.secret_references() {
        let Some(bytes) = secrets.get(name.as_str()) else { continue };
        if kind == SecretKind::PrivateKey {
            continue;
        }
        let path = format!("{path}.secret");
        let Ok(text) = std::str::from_utf8(bytes) else {
            findings.error(
                &path,
                format!("the secret `{name}` is not UTF-8 text"),
                "write a password, not binary data",
            );
            continue;
        };
        let text = without_newline(text);
        if text.chars().any(char::is_control) {
            findings.error(
                &path,
                format!("the secret `{name}` has more than one line or a control character"),
                "write it in one line",
            );
        } else if text.trim() != text {
            findings.warning(
                &path,
                format!("the secret `{name}` begins or ends with a space"),
                "is it meant to?",
            );
        }
        weak(findings, kind, &path, name, text);
        match seen.get(text) {
            Some(other) if other != name.as_str() => {
                let message = format!("the secret `{name}` is the same as `{other}`");
                findings.error(
                    &path,
                    message,
                    "who learns one must not have the other: choose a new one",
                );
            }
            _ => drop(seen.insert(text, name.to_string())),
        }
    }
}

fn weak(findings: &mut Findings<'_>, kind: SecretKind, path: &str, name: &str, text: &str) {
    let short = if kind == SecretKind::TurnRest { SHORT_REST } else { SHORT };
    let length = text.chars().count();
    let help = "make one: `openssl rand -base64 24`";
    let lower = text.to_lowercase();
    if let Some(what) = public(findings.site, &lower) {
        findings.error(path, format!("the secret `{name}` is equal to {what}"), help);
    } else if KNOWN.contains(&lower.as_str()) {
        findings.error(path, format!("the secret `{name}` is in every list of passwords"), help);
    } else if length < SHORTEST {
        findings.error(path, format!("the secret `{name}` has only {length} characters"), help);
    } else if length < short {
        findings.warning(path, format!("the secret `{name}` has only {length} characters"), help);
    } else if lower.chars().collect::<std::collections::BTreeSet<_>>().len() < 5 {
        findings.error(path, format!("the secret `{name}` repeats a few characters"), help);
    }
}

/// What of the site's public words the text is.
fn public(site: &Site, text: &str) -> Option<&'static str> {
    let is = |word: &str| word.to_lowercase() == text;
    let machines = || site.boxes.values();
    let turn = || site.turn.iter();
    if turn().flat_map(|turn| &turn.users).any(|user| is(&user.name)) {
        return Some("a user name");
    }
    if machines().any(|machine| is(&machine.admin.user)) {
        return Some("a user name");
    }
    if turn().any(|turn| is(&turn.realm)) {
        return Some("the realm");
    }
    if is(&site.name)
        || machines().any(|m| is(&m.name) || is(&m.host_name) || is(&m.fqdn()) || is(&m.domain))
    {
        return Some("a name of the site");
    }
    None
}
