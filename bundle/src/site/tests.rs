use super::*;

const OCTAVIO: &str = include_str!("../../../docs/octavio.site.yaml");

#[test]
fn the_reference_site_is_taken_without_a_warning() {
    let site = match Site::parse(OCTAVIO, "octavio.site.yaml") {
        Ok(site) => site,
        Err(faults) => panic!("{}", faults.iter().map(|f| format!("{f}\n")).collect::<String>()),
    };

    assert_eq!(site.warnings(), []);
    assert_eq!(site.name.as_str(), "octavio");
    assert_eq!(site.serial.get(), 7);
    let edge = site.machine("vcse").unwrap();
    assert_eq!(edge.fqdn(), "vcse.octavio.com");
    assert_eq!(edge.lan2.static_nat, ["10.88.246.156".parse::<std::net::IpAddr>().unwrap()]);
    assert_eq!(site.files(), ["certs/inside-ca.pem", "certs/vcse.pem"].map(String::from).into());
    assert_eq!(
        site.secrets_of("vcse"),
        BTreeMap::from([
            ("admin-password".to_owned(), SecretKind::AdminPassword),
            ("turn-password".to_owned(), SecretKind::TurnPassword),
            ("vcse-key".to_owned(), SecretKind::PrivateKey),
        ])
    );
}
