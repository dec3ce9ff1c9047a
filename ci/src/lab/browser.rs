//! Chromium on the guest's computer, driven by WebDriver (W3C WebDriver, section 8).

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use super::host::{Daemon, Host, eventually};

/// A browser with a fake camera that trusts the lab's public authority.
#[derive(Debug)]
pub struct Browser<'a> {
    host: &'a Host,
    session: String,
    _driver: Daemon,
    _profile: tempfile::TempDir,
}

impl Drop for Browser<'_> {
    fn drop(&mut self) {
        // chromedriver leaves its browser running when it is ended itself.
        drop(self.request("DELETE", &format!("/session/{}", self.session), None));
    }
}

impl<'a> Browser<'a> {
    /// Starts chromedriver and one headless Chromium on `host`.
    ///
    /// # Errors
    ///
    /// Says what is missing or what the driver answered.
    pub fn start(host: &'a Host, authority: &str) -> Result<Self> {
        let home = host.directory().join("browser");
        prepare_home(host, authority)?;
        let mut command = host.command("env");
        command.arg(format!("HOME={}", home.display()));
        command.args(["chromedriver", "--port=9515", "--allowed-ips=127.0.0.1"]);
        // A profile of its own: Chromium hands over to whoever has the same one open already.
        let profile = tempfile::Builder::new().prefix("profile-").tempdir_in(&home)?;
        let arguments = flags(&profile.path().display().to_string());
        let driver = host.daemon("chromedriver", &mut command)?;
        let mut browser = Self { host, session: String::new(), _driver: driver, _profile: profile };
        eventually(Duration::from_secs(20), || browser.request("GET", "/status", None))
            .context("chromedriver (package chromium-driver) does not answer")?;
        let capabilities = json!({"capabilities": {"alwaysMatch": {
            "browserName": "chrome",
            "goog:chromeOptions": {"binary": "/usr/bin/chromium", "args": arguments},
            "timeouts": {"script": 60_000, "pageLoad": 60_000},
        }}});
        let session = browser.request("POST", "/session", Some(&capabilities))?;
        browser.session =
            session["sessionId"].as_str().context("no session id from chromedriver")?.to_owned();
        Ok(browser)
    }

    /// Loads `url` in the current tab; a page whose certificate does not validate is an error.
    ///
    /// # Errors
    ///
    /// Returns what the browser says, such as `net::ERR_CERT_AUTHORITY_INVALID`.
    pub fn open(&self, url: &str) -> Result<()> {
        self.command("/url", &json!({ "url": url })).map(drop)
    }

    /// Opens a new tab, goes there and returns its handle.
    ///
    /// # Errors
    ///
    /// Returns what the driver says.
    pub fn new_tab(&self) -> Result<String> {
        let made = self.command("/window/new", &json!({"type": "window"}))?;
        let handle = made["handle"].as_str().context("no window handle")?.to_owned();
        self.switch_to(&handle)?;
        Ok(handle)
    }

    /// Goes to the tab with that handle.
    ///
    /// # Errors
    ///
    /// Returns what the driver says.
    pub fn switch_to(&self, handle: &str) -> Result<()> {
        self.command("/window", &json!({ "handle": handle })).map(drop)
    }

    /// Runs the body of an async function in the page and returns what it returns.
    ///
    /// # Errors
    ///
    /// Returns the script's exception.
    pub fn evaluate(&self, body: &str) -> Result<Value> {
        let script = format!(
            "const done = arguments[arguments.length - 1];
             (async () => {{ {body} }})().then((v) => done({{v}}), (e) => done({{e: String(e)}}));"
        );
        let answer = self.command("/execute/async", &json!({"script": script, "args": []}))?;
        match answer.get("e") {
            Some(error) => bail!("script: {error}"),
            None => Ok(answer["v"].clone()),
        }
    }

    fn command(&self, path: &str, body: &Value) -> Result<Value> {
        self.request("POST", &format!("/session/{}{path}", self.session), Some(body))
    }

    fn request(&self, method: &str, path: &str, body: Option<&Value>) -> Result<Value> {
        let mut curl = self.host.command("curl");
        curl.args(["-s", "--max-time", "70", "-X", method, "-H", "Content-Type: application/json"]);
        if let Some(body) = body {
            curl.arg("-d").arg(body.to_string());
        }
        let output = curl.arg(format!("http://127.0.0.1:9515{path}")).output()?;
        if !output.status.success() {
            bail!("chromedriver does not answer (curl: {})", output.status);
        }
        let answer: Value = serde_json::from_slice(&output.stdout).context("chromedriver")?;
        let value = answer["value"].clone();
        if let Some(error) = value.get("error") {
            bail!("{path}: {error}: {}", value["message"].as_str().unwrap_or_default());
        }
        Ok(value)
    }
}

/// A home folder whose certificate store holds the lab's public authority.
///
/// # Errors
///
/// Says when certutil (package libnss3-tools) is missing.
pub fn prepare_home(host: &Host, authority: &str) -> Result<()> {
    let home = host.directory().join("browser");
    let store = home.join(".pki/nssdb");
    if store.exists() {
        // Asked to make its store again, certutil waits for a password.
        return Ok(());
    }
    fs::create_dir_all(&store)?;
    fs::write(home.join("authority.pem"), authority)?;
    host.run(&format!(
        "certutil -d sql:{s} -N --empty-password
         certutil -d sql:{s} -A -t C,, -n lab -i {h}/authority.pem",
        s = store.display(),
        h = home.display()
    ))?;
    Ok(())
}

/// What Chromium is started with: a fake camera, and nothing that calls home.
#[must_use]
pub fn flags(profile: &str) -> Vec<String> {
    let mut flags: Vec<String> = [
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--disable-dev-shm-usage",
        "--use-fake-device-for-media-stream",
        "--use-fake-ui-for-media-stream",
        "--autoplay-policy=no-user-gesture-required",
        "--disable-backgrounding-occluded-windows",
        "--disable-renderer-backgrounding",
        "--disable-background-timer-throttling",
    ]
    .iter()
    .map(ToString::to_string)
    .collect();
    flags.push(format!("--user-data-dir={profile}"));
    flags
}

/// Writes a script that opens a visible Chromium on `host` with the display of whoever runs it.
///
/// # Errors
///
/// Returns what writing said.
pub fn write_launcher(host: &Host, authority: &str, script: &std::path::Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    prepare_home(host, authority)?;
    let home = host.directory().join("browser");
    let mut words = flags(&home.join("visible").display().to_string());
    words.retain(|word| word != "--headless=new");
    let text = format!(
        "#!/bin/sh\nexec nsenter --target {} --net --mount -- env HOME={home} \
         DISPLAY=\"$DISPLAY\" XAUTHORITY=\"${{XAUTHORITY:-$HOME/.Xauthority}}\" \
         chromium {} https://cmsweb.octavio.com/\n",
        host.init(),
        words.join(" "),
        home = home.display()
    );
    fs::write(script, text)?;
    fs::set_permissions(script, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
