//! What the lab's supervisor reads of a unit file: enough to start the process as systemd would.
//!
//! Sandboxing lines are not applied here; only the booted image proves those.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};

/// One service unit.
#[derive(Clone, Debug)]
pub struct Unit {
    /// Its name without `.service`.
    pub name: String,
    /// The words of `ExecStart=` after the program.
    pub arguments: Vec<String>,
    /// `User=`; root when there is none.
    pub user: Option<String>,
    /// `AmbientCapabilities=`, without `CAP_`, in lower case.
    pub ambient: Vec<String>,
    /// `CapabilityBoundingSet=`, likewise; `None` when the unit does not say.
    pub bounding: Option<Vec<String>>,
    /// `LoadCredential=`: name and path.
    pub credentials: Vec<(String, String)>,
    /// `PrivateNetwork=yes`.
    pub private_network: bool,
}

impl Unit {
    /// Reads `NAME.service` in `folder`.
    ///
    /// # Errors
    ///
    /// Says when the file is not there or has no `ExecStart=`.
    pub fn read(folder: &Path, name: &str) -> Result<Self> {
        let path = folder.join(format!("{name}.service"));
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        let values = |key: &str| -> Vec<String> {
            let prefix = format!("{key}=");
            text.lines().filter_map(|l| l.strip_prefix(&prefix)).map(str::to_owned).collect()
        };
        let exec = values("ExecStart").pop().context("no ExecStart=")?;
        Ok(Self {
            name: name.to_owned(),
            arguments: exec.split_whitespace().skip(1).map(str::to_owned).collect(),
            user: values("User").pop(),
            ambient: capabilities(&values("AmbientCapabilities")),
            bounding: match values("CapabilityBoundingSet") {
                lines if lines.is_empty() => None,
                lines => Some(capabilities(&lines)),
            },
            credentials: values("LoadCredential")
                .iter()
                .filter_map(|line| line.split_once(':'))
                .map(|(name, path)| (name.to_owned(), path.to_owned()))
                .collect(),
            private_network: values("PrivateNetwork").iter().any(|v| v == "yes"),
        })
    }

    /// The setpriv(1) options that give a process this unit's user and capabilities.
    ///
    /// # Errors
    ///
    /// Names the user that `users` does not have.
    pub fn setpriv(&self, users: &BTreeMap<String, u32>) -> Result<Vec<String>> {
        let mut options = vec!["--no-new-privs".to_owned()];
        if let Some(user) = &self.user {
            let id = users.get(user).with_context(|| format!("no user {user} in sysusers.d"))?;
            options.push(format!("--reuid={id}"));
            options.push(format!("--regid={id}"));
            options.push("--clear-groups".to_owned());
        }
        if let Some(bounding) = &self.bounding {
            options.push(format!("--bounding-set={}", set_of(bounding)));
        }
        options.push(format!("--inh-caps={}", set_of(&self.ambient)));
        options.push(format!("--ambient-caps={}", set_of(&self.ambient)));
        Ok(options)
    }
}

/// Users with their ids, from a sysusers.d(5) file.
///
/// # Errors
///
/// Says when the file cannot be read.
pub fn read_users(path: &Path) -> Result<BTreeMap<String, u32>> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(text
        .lines()
        .filter_map(|line| {
            let mut words = line.split_whitespace();
            let kind = words.next()?;
            let (name, id) = (words.next()?, words.next()?);
            (kind.trim_end_matches('!') == "u").then_some(())?;
            Some((name.to_owned(), id.parse().ok()?))
        })
        .collect())
}

fn capabilities(lines: &[String]) -> Vec<String> {
    lines
        .iter()
        .flat_map(|line| line.split_whitespace())
        .map(|word| word.trim_start_matches("CAP_").to_lowercase())
        .collect()
}

fn set_of(capabilities: &[String]) -> String {
    let mut set = "-all".to_owned();
    for capability in capabilities {
        set.push_str(",+");
        set.push_str(capability);
    }
    set
}
