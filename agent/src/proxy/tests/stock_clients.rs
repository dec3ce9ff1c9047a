//! The same with curl and OpenSSL, which were not written by the same hands.

use std::process::Output;

use tokio::process::Command;

use super::setting::{GUEST, Setting};

async fn run(program: &str, arguments: &[&str]) -> Output {
    let mut command = Command::new(program);
    command.args(arguments).stdin(std::process::Stdio::null());
    let output = command.output().await;
    output.unwrap_or_else(|error| panic!("{program} is needed for this test: {error}"))
}

#[tokio::test]
async fn curl_gets_the_page() {
    let setting = Setting::new().await;
    let roots = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(roots.path(), &setting.authority.pem).unwrap();
    let tls = format!("{GUEST}:443:{}", setting.slice.tls[0]);
    let redirect = format!("{GUEST}:80:{}", setting.slice.redirect[0]);
    let roots = roots.path().to_str().unwrap();

    let output = run(
        "curl",
        &[
            "--silent",
            "--show-error",
            "--noproxy",
            "*",
            "--max-time",
            "20",
            "--location",
            "--cacert",
            roots,
            "--connect-to",
            &tls,
            "--connect-to",
            &redirect,
            "--data",
            "name=guest",
            "--include",
            &format!("http://{GUEST}/join"),
        ],
    )
    .await;

    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.starts_with("HTTP/1.1 308 "), "{text}");
    assert!(text.ends_with("guest page name=guest"), "{text}");
}

#[tokio::test]
async fn openssl_agrees_on_versions_and_names() {
    let setting = Setting::new().await;
    let address = setting.slice.tls[0].to_string();
    let handshake = async |arguments: &[&str]| {
        let all = [&["s_client", "-connect", &address][..], arguments].concat();
        let output = run("openssl", &all).await;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        text(&output.stdout) + &text(&output.stderr)
    };

    for (arguments, expected) in [
        (&["-servername", GUEST, "-tls1_3"][..], "New, TLSv1.3"),
        (&["-servername", GUEST, "-tls1_2"], "New, TLSv1.2"),
        (
            &["-servername", GUEST, "-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
            "alert handshake failure",
        ),
        (&["-servername", GUEST, "-groups", "P-256"], "prime256v1"),
        (&["-servername", GUEST, "-groups", "P-384"], "secp384r1"),
        (&["-servername", GUEST, "-alpn", "h2,http/1.1"], "ALPN protocol: http/1.1"),
        (&["-servername", "other.example.org"], "alert number 112"),
        (&["-noservername"], "New, TLSv1.3"),
    ] {
        let text = handshake(arguments).await;
        assert!(text.contains(expected), "{arguments:?}: {text}");
    }
}
