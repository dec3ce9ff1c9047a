//! Which names of secrets may be used for what.

use std::collections::BTreeMap;

use crate::site::SecretKind;
use crate::site::value::Name;

use super::Breaches;

/// A secret is for one purpose: who learns one must not learn another.
pub(super) fn judge(breaches: &mut Breaches<'_>) {
    let site = breaches.site;
    let mut seen: BTreeMap<&Name, (String, SecretKind)> = BTreeMap::new();
    for (path, name, kind) in site.secret_references() {
        let Some((first, other)) = seen.get(name) else {
            seen.insert(name, (path, kind));
            continue;
        };
        let shared_admin = kind == SecretKind::AdminPassword && *other == kind;
        if shared_admin {
            continue;
        }
        let message = match *other == kind {
            true => format!("the secret `{name}` is {kind} for the second time"),
            false => format!("the secret `{name}` is {other} already, and here {kind}"),
        };
        let help = "give each its own secret, such as NAME-2";
        breaches.error(&format!("{path}.secret"), &[&path, first], message, help);
    }
}
