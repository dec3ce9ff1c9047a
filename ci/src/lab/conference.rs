//! The conference on the inside: Janus behind nginx with a private certificate.
//!
//! It is itself a TURN client of the edge's LAN1, as the media server of the reference deployment
//! is.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

use super::certificates::Authority;
use super::host::{Daemon, Host};
use super::topology::{CONFERENCE, LAN1};

/// The room of the reference deployment.
pub const ROOM: u32 = 100_101;
/// What its page is titled.
pub const ROOM_NAME: &str = "Proxy webRTC";

/// How the conference and its guests use TURN.
#[derive(Clone, Debug)]
pub struct Turn {
    /// User name of both.
    pub user: String,
    /// Password of both.
    pub password: String,
    /// Whether the conference itself offers only a relay of the edge.
    pub relay_only: bool,
}

/// A running conference.
#[derive(Debug)]
pub struct Conference {
    janus: Daemon,
    _nginx: Daemon,
}

impl Conference {
    /// Starts both on `inside`.
    ///
    /// The edge's TURN server must answer already when the conference uses it.
    ///
    /// # Errors
    ///
    /// Shows the end of the log of the program that does not come up.
    pub fn start(inside: &Host, authority: &Authority, turn: &Turn) -> Result<Self> {
        let janus = start_janus(inside, turn)?;
        let nginx = start_nginx(inside, authority, turn)?;
        Ok(Self { janus, _nginx: nginx })
    }

    /// The end of Janus's log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let log = self.janus.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(30)..].join("\n")
    }
}

fn start_janus(inside: &Host, turn: &Turn) -> Result<Daemon> {
    let folder = inside.directory().join("janus");
    fs::create_dir_all(folder.join("empty"))?;
    let turn_client = if turn.relay_only {
        format!(
            "turn_server = \"{LAN1}\"\nturn_port = 3478\nturn_type = \"udp\"\n\
             turn_user = \"{}\"\nturn_pwd = \"{}\"\nallow_force_relay = true\n\
             ignore_unreachable_ice_server = true\n",
            turn.user, turn.password
        )
    } else {
        String::new()
    };
    let plugins = "/usr/lib/x86_64-linux-gnu/janus/plugins";
    fs::write(
        folder.join("janus.jcfg"),
        format!(
            "general: {{ configs_folder = \"{folder}\"\n plugins_folder = \"{plugins}\"\n\
             transports_folder = \"/usr/lib/x86_64-linux-gnu/janus/transports\"\n\
             events_folder = \"{folder}/empty\"\n loggers_folder = \"{folder}/empty\"\n\
             debug_level = 4\n debug_colors = false\n }}\n\
             certificates: {{ }}\nmedia: {{ }}\n\
             nat: {{\n{turn_client}nice_debug = false\n\
             ice_enforce_list = \"{CONFERENCE}\"\nignore_mdns = true\n}}\n\
             plugins: {{ disable = \"{others}\" }}\n\
             transports: {{ disable = \"libjanus_http.so,libjanus_pfunix.so,libjanus_mqtt.so,\
             libjanus_rabbitmq.so,libjanus_nanomsg.so\" }}\nevents: {{ broadcast = false }}\n",
            folder = folder.display(),
            others = all_plugins_but_videoroom(plugins)?,
        ),
    )?;
    fs::write(
        folder.join("janus.transport.websockets.jcfg"),
        "general: { json = \"compact\"\n ws = true\n ws_port = 8188\n ws_ip = \"127.0.0.1\"\n }\n",
    )?;
    fs::write(
        folder.join("janus.plugin.videoroom.jcfg"),
        format!(
            "general: {{ }}\nroom-{ROOM}: {{ description = \"{ROOM_NAME}\"\n publishers = 10\n\
             bitrate = 256000\n fir_freq = 10\n videocodec = \"vp8\"\n }}\n"
        ),
    )?;
    let mut command = inside.command("janus");
    command.arg(format!("--configs-folder={}", folder.display()));
    command.arg(format!("--config={}", folder.join("janus.jcfg").display()));
    let mut janus = inside.daemon("janus", &mut command)?;
    janus.wait_for("WebSockets thread started", Duration::from_secs(20)).context("Janus")?;
    Ok(janus)
}

fn all_plugins_but_videoroom(folder: &str) -> Result<String> {
    let mut others = Vec::new();
    for entry in fs::read_dir(folder).context("is the package janus installed?")? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".so") && name != "libjanus_videoroom.so" {
            others.push(name);
        }
    }
    others.sort();
    Ok(others.join(","))
}

fn start_nginx(inside: &Host, authority: &Authority, turn: &Turn) -> Result<Daemon> {
    let folder = inside.directory().join("nginx");
    fs::create_dir_all(folder.join("www"))?;
    let pair = authority.issue(&["cms.octavio.local"])?;
    fs::write(folder.join("chain.pem"), &pair.chain)?;
    fs::write(folder.join("key.pem"), &pair.key)?;
    fs::write(folder.join("www/index.html"), include_str!("../../lab/room.html"))?;
    let config = serde_json::json!({
        "forceRelay": turn.relay_only,
        "iceServers": [{
            "urls": "turn:vcse.octavio.com:3478?transport=udp",
            "username": turn.user,
            "credential": turn.password,
        }],
    });
    fs::write(folder.join("www/config.json"), config.to_string())?;
    fs::write(
        folder.join("nginx.conf"),
        format!(
            "daemon off; pid {f}/nginx.pid; error_log stderr warn; user root; worker_processes 1;
             events {{ }}
             http {{
               access_log {f}/access.log; client_body_temp_path {f}/body; proxy_temp_path {f}/proxy;
               fastcgi_temp_path {f}/fastcgi; uwsgi_temp_path {f}/uwsgi; scgi_temp_path {f}/scgi;
               types {{ text/html html; application/json json; }}
               server {{
                 listen {CONFERENCE}:443 ssl; server_name _;
                 ssl_certificate {f}/chain.pem; ssl_certificate_key {f}/key.pem;
                 root {f}/www;
                 location /ws {{
                   proxy_pass http://127.0.0.1:8188; proxy_http_version 1.1;
                   proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection Upgrade;
                   proxy_read_timeout 1h;
                 }}
               }}
             }}",
            f = folder.display()
        ),
    )?;
    let mut command = inside.command("nginx");
    command.arg("-c").arg(folder.join("nginx.conf")).args(["-e", "stderr"]);
    let nginx = inside.daemon("nginx", &mut command)?;
    super::host::eventually(Duration::from_secs(10), || {
        inside.run(&format!("curl -sfk --max-time 2 https://{CONFERENCE}/ -o /dev/null"))
    })
    .with_context(|| format!("nginx does not answer:\n{}", nginx.log()))?;
    Ok(nginx)
}
