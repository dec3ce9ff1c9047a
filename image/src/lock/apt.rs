//! Finds the archive to download from: what the user names, else what the host's own apt uses.
//!
//! Only the addresses of the Debian main and security archives are taken from the host; which
//! suites are read from them is the recipe's business, and trust comes from our own keys.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::deb822;

/// The environment variable that names a mirror.
pub(crate) const MIRROR_VARIABLE: &str = "POSTERN_MIRROR";

/// Base addresses, without a trailing slash, and the proxy to reach them by.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Mirror {
    /// Of the suites `CODENAME` and `CODENAME-updates`.
    pub(crate) main: String,
    /// Of the suite `CODENAME-security`.
    pub(crate) security: String,
    /// apt's `Acquire::http::Proxy`; `None` leaves it to the environment.
    pub(crate) proxy: Option<String>,
}

/// Why no mirror is known; the text says what to pass.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FindMirrorError {
    /// The host cannot say.
    #[error(
        "{why}; name a Debian mirror: `--mirror URL` or {MIRROR_VARIABLE}=URL \
         (URL of the main archive; a second one after a comma is the security archive, else \
         `-security` is added to the first)"
    )]
    Unknown {
        /// What was looked at.
        why: String,
    },
    /// What the user named is no address.
    #[error("`{0}` is no mirror: an address begins with http:// or https://")]
    Address(String),
}

/// Finds the mirror: `named` (the option, or the environment's), else the host's apt sources below
/// `root` (`/` outside tests).
///
/// # Errors
///
/// Returns why there is none.
pub(crate) fn find_mirror(named: Option<&str>, root: &Path) -> Result<Mirror, FindMirrorError> {
    let proxy = read_configuration(root).remove("acquire::http::proxy").filter(|p| p != "DIRECT");
    if let Some(named) = named {
        let (main, security) = match named.split_once([',', ' ']) {
            Some((main, security)) => (address(main)?, address(security)?),
            None => (address(named)?, format!("{}-security", address(named)?)),
        };
        return Ok(Mirror { main, security, proxy });
    }
    let unknown = |why: &str| FindMirrorError::Unknown { why: why.to_owned() };
    let os_release = fs::read_to_string(root.join("etc/os-release")).unwrap_or_default();
    let field = |name: &str| {
        let line = os_release.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
        line.map(|value| value.trim_matches('"').to_owned())
    };
    if field("ID").as_deref() != Some("debian") {
        return Err(unknown("this host is not Debian, so its apt sources do not help"));
    }
    let Some(codename) = field("VERSION_CODENAME") else {
        return Err(unknown("/etc/os-release has no VERSION_CODENAME"));
    };
    let entries = read_sources(root);
    let find = |suites: &[String]| {
        let entry = entries.iter().find(|entry| {
            suites.contains(&entry.suite) && entry.components.iter().any(|c| c == "main")
        });
        entry.map(|entry| entry.uri.clone())
    };
    let main = find(&[codename.clone(), "stable".to_owned(), "testing".to_owned()])
        .ok_or_else(|| unknown("no entry of this host's apt sources is Debian's main archive"))?;
    let security = find(&[format!("{codename}-security"), "stable-security".to_owned()])
        .unwrap_or_else(|| format!("{main}-security"));
    Ok(Mirror { main, security, proxy })
}

fn address(text: &str) -> Result<String, FindMirrorError> {
    let text = text.trim().trim_end_matches('/');
    if text.starts_with("http://") || text.starts_with("https://") {
        Ok(text.to_owned())
    } else {
        Err(FindMirrorError::Address(text.to_owned()))
    }
}

/// One archive and suite of sources.list(5).
struct Source {
    uri: String,
    suite: String,
    components: Vec<String>,
}

fn read_sources(root: &Path) -> Vec<Source> {
    let mut entries = Vec::new();
    let mut files = vec![root.join("etc/apt/sources.list")];
    files.extend(sorted_files(&root.join("etc/apt/sources.list.d")));
    for path in files {
        let Ok(text) = fs::read_to_string(&path) else { continue };
        if path.extension().is_some_and(|extension| extension == "sources") {
            parse_deb822_sources(&text, &mut entries);
        } else {
            parse_list(&text, &mut entries);
        }
    }
    entries.retain(|entry| address(&entry.uri).is_ok());
    entries
}

/// `deb [options] uri suite component…`
fn parse_list(text: &str, entries: &mut Vec<Source>) {
    for line in text.lines() {
        let line = line.split('#').next().unwrap_or_default();
        let Some(rest) = line.trim().strip_prefix("deb ") else { continue };
        let rest = rest.trim_start();
        let rest = match rest.strip_prefix('[') {
            Some(options) => options.split_once(']').map_or("", |(_, rest)| rest),
            None => rest,
        };
        let mut words = rest.split_whitespace();
        let (Some(uri), Some(suite)) = (words.next(), words.next()) else { continue };
        entries.push(Source {
            uri: uri.trim_end_matches('/').to_owned(),
            suite: suite.to_owned(),
            components: words.map(str::to_owned).collect(),
        });
    }
}

fn parse_deb822_sources(text: &str, entries: &mut Vec<Source>) {
    for paragraph in deb822::paragraphs(text) {
        let words = |name: &str| {
            let value = paragraph.get(name).unwrap_or_default();
            value.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        };
        if words("Enabled").first().is_some_and(|word| word == "no")
            || !words("Types").iter().any(|word| word == "deb")
        {
            continue;
        }
        for uri in words("URIs") {
            for suite in words("Suites") {
                let uri = uri.trim_end_matches('/').to_owned();
                entries.push(Source { uri, suite, components: words("Components") });
            }
        }
    }
}

/// The settings of apt.conf(5), names in lower case; later files win.
fn read_configuration(root: &Path) -> BTreeMap<String, String> {
    let mut settings = BTreeMap::new();
    let mut files = sorted_files(&root.join("etc/apt/apt.conf.d"));
    files.push(root.join("etc/apt/apt.conf"));
    for path in files {
        if let Ok(text) = fs::read_to_string(path) {
            parse_configuration(&text, &mut settings);
        }
    }
    settings
}

/// Reads `A::B "value";` and `A { B "value"; };`; `#` and `//` begin a comment.
fn parse_configuration(text: &str, settings: &mut BTreeMap<String, String>) {
    let mut scopes: Vec<String> = Vec::new();
    let mut name = String::new();
    let mut value: Option<String> = None;
    let mut in_comment = false;
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        match c {
            '\n' => in_comment = false,
            _ if in_comment => {}
            '"' => value = Some(characters.by_ref().take_while(|c| *c != '"').collect()),
            '#' => in_comment = true,
            '/' if characters.peek() == Some(&'/') => in_comment = true,
            '{' => scopes.push(std::mem::take(&mut name)),
            '}' => {
                scopes.pop();
            }
            ';' => {
                if let Some(value) = value.take().filter(|_| !name.is_empty()) {
                    let mut path = scopes.clone();
                    path.push(std::mem::take(&mut name));
                    settings.insert(path.join("::").to_lowercase(), value);
                }
                name.clear();
            }
            c if c.is_whitespace() => {}
            c => name.push(c),
        }
    }
}

/// The files of a folder, by name; none when it cannot be read.
fn sorted_files(folder: &Path) -> Vec<PathBuf> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    files
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(id: &str, files: &[(&str, &str)]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("etc/apt/sources.list.d")).unwrap();
        fs::create_dir_all(root.path().join("etc/apt/apt.conf.d")).unwrap();
        let os_release = format!("PRETTY_NAME=\"x\"\nID={id}\nVERSION_CODENAME=bookworm\n");
        fs::write(root.path().join("etc/os-release"), os_release).unwrap();
        for (path, text) in files {
            fs::write(root.path().join(path), text).unwrap();
        }
        root
    }

    #[test]
    fn deb822_sources_of_the_host_name_both_archives() {
        let root = host(
            "debian",
            &[(
                "etc/apt/sources.list.d/debian.sources",
                "Types: deb\n# note\nURIs: http://mirror.example.org/debian/\n\
                 Suites: bookworm bookworm-updates\nComponents: main\n\n\
                 Types: deb\nURIs: http://security.example.org/debian-security\n\
                 Suites: bookworm-security\nComponents: main\n",
            )],
        );

        let mirror = find_mirror(None, root.path()).unwrap();

        assert_eq!(mirror.main, "http://mirror.example.org/debian");
        assert_eq!(mirror.security, "http://security.example.org/debian-security");
        assert_eq!(mirror.proxy, None);
    }

    #[test]
    fn one_line_sources_and_the_proxy_are_read_past_foreign_entries() {
        let root = host(
            "debian",
            &[
                (
                    "etc/apt/sources.list",
                    "deb cdrom:[x]/ bookworm main\n\
                     # deb http://off.example.org/debian bookworm main\n\
                     deb [arch=amd64 signed-by=/k] https://tool.example.org/apt bookworm stable\n\
                     deb [ trusted=no ] http://m.example.org/debian bookworm main non-free # x\n",
                ),
                (
                    "etc/apt/apt.conf.d/01proxy",
                    "// Acquire::http::Proxy \"http://off.example.org\";\n\
                     Acquire { http { Proxy \"http://192.0.2.1:3142\"; }; };\n",
                ),
            ],
        );

        let mirror = find_mirror(None, root.path()).unwrap();

        assert_eq!(mirror.main, "http://m.example.org/debian");
        assert_eq!(mirror.security, "http://m.example.org/debian-security");
        assert_eq!(mirror.proxy.as_deref(), Some("http://192.0.2.1:3142"));
    }

    #[test]
    fn what_the_user_names_wins_over_the_host() {
        let root = host("ubuntu", &[]);

        let one = find_mirror(Some("http://192.0.2.7/debian/"), root.path()).unwrap();
        let two = find_mirror(Some("https://a.example.org/d,http://b.example.org/s"), root.path());

        assert_eq!(one.security, "http://192.0.2.7/debian-security");
        assert_eq!(two.unwrap().security, "http://b.example.org/s");
    }

    #[test]
    fn a_host_that_cannot_say_is_told_what_to_pass() {
        for id in ["ubuntu", "fedora", "debian"] {
            let error = find_mirror(None, host(id, &[]).path()).unwrap_err().to_string();
            assert!(error.contains("--mirror") && error.contains(MIRROR_VARIABLE), "{error}");
        }
        assert!(find_mirror(Some("ftp://example.org"), Path::new("/nonexistent")).is_err());
    }
}
