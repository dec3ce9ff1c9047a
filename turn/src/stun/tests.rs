//! The vectors of RFC 5769 and RFC 8489, and hostile shapes.

use super::{
    AttributeType, Class, Integrity, Key, Message, Method, ParseError, PasswordAlgorithm,
    TransactionId, Writer, userhash,
};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn ice_key() -> Key {
    Key::short_term("VOkJxbRl1RmTxUk/WvJxBt")
}

/// RFC 5769 §2.1.
const REQUEST: &str = "00010058 2112a442 b7e7a701 bc34d686 fa87dfae
    80220010 5354554e 20746573 7420636c 69656e74 00240004 6e0001ff
    80290008 932ff9b1 51263b36 00060009 6576746a 3a683676 59202020
    00080014 9aeaa70c bfd8cb56 781ef2b5 b2d3f249 c1b571a2
    80280004 e57a3bcf";

/// RFC 5769 §2.2.
const RESPONSE_V4: &str = "0101003c 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220 00200008 0001a147 e112a643
    00080014 2b91f599 fd9e90c3 8c7489f9 2af9ba53 f06be7d7
    80280004 c07d4c96";

/// RFC 5769 §2.3.
const RESPONSE_V6: &str = "01010048 2112a442 b7e7a701 bc34d686 fa87dfae
    8022000b 74657374 20766563 746f7220
    00200014 0002a147 0113a9fa a5d3f179 bc25f4b5 bed2b9d9
    00080014 a382954e 4be67bf1 1784c97c 8292c275 bfe3ed41
    80280004 c8fb0b4c";

/// RFC 5769 §2.4.
const REQUEST_LONG_TERM: &str = "00010060 2112a442 78ad3433 c6ad72c0 29da412e
    00060012 e3839ee3 8388e383 aae38383 e382afe3 82b90000
    0015001c 662f2f34 39396b39 35346436 4f4c3334 6f4c3946 53547679 36347341
    0014000b 6578616d 706c652e 6f726700
    00080014 f6702465 6dd64a3e 02b8e071 2e85c9a2 8ca89666";

/// RFC 8489 §B.1 as corrected by erratum 6268: the printed one has no PASSWORD-ALGORITHM and counts
/// the header into its length.
const REQUEST_SHA256: &str = "00010090 2112a442 78ad3433 c6ad72c0 29da412e
    001e0020 4a3cf38f ef6992bd a952c678 0417da0f 24819415 569e60b2 05c46e41 407f1704
    00150029 6f624d61 744a6f73 32414141 43662f2f 3439396b 39353464 364f4c33 346f4c39
             46535476 79363473 41000000
    0014000b 6578616d 706c652e 6f726700
    001d0004 00020000
    001c0020 b5c7bf00 5b6c52a2 1c51c5e8 92f81924 136296cb 927c4314 9309278c c6518e65";

const MATRIX: &str = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

#[test]
fn rfc5769_sample_request_verifies() {
    let bytes = hex(REQUEST);
    let message = Message::parse(&bytes).unwrap();

    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert!(message.has_fingerprint());
    assert!(message.verify(&ice_key()));
    assert!(!message.verify(&Key::short_term("other")));
    assert_eq!(message.attribute(AttributeType::USERNAME), Some(&b"evtj:h6vY"[..]));
    assert_eq!(message.attribute(AttributeType::SOFTWARE), Some(&b"STUN test client"[..]));
}

#[test]
fn rfc5769_sample_responses_verify() {
    for (text, address) in [
        (RESPONSE_V4, "192.0.2.1:32853"),
        (RESPONSE_V6, "[2001:db8:1234:5678:11:2233:4455:6677]:32853"),
    ] {
        let bytes = hex(text);
        let message = Message::parse(&bytes).unwrap();

        assert!(message.has_fingerprint());
        assert!(message.verify(&ice_key()));
        assert_eq!(
            message.xor_address(AttributeType::XOR_MAPPED_ADDRESS),
            Some(address.parse().unwrap())
        );
    }
}

#[test]
fn rfc5769_long_term_request_verifies() {
    let bytes = hex(REQUEST_LONG_TERM);
    let message = Message::parse(&bytes).unwrap();

    let user = std::str::from_utf8(message.attribute(AttributeType::USERNAME).unwrap()).unwrap();
    assert!(message.verify(&Key::long_term(user, "example.org", "TheMatrIX")));
}

#[test]
fn what_the_writer_writes_is_what_rfc5769_prints() {
    let transaction = TransactionId(hex("78ad3433c6ad72c029da412e").try_into().unwrap());

    let written = Writer::new(Class::Request, Method::BINDING, transaction)
        .attribute(AttributeType::USERNAME, MATRIX.as_bytes())
        .attribute(AttributeType::NONCE, b"f//499k954d6OL34oL9FSTvy64sA")
        .attribute(AttributeType::REALM, b"example.org")
        .integrity(&Key::long_term(MATRIX, "example.org", "TheMatrIX"))
        .finish();

    assert_eq!(written, hex(REQUEST_LONG_TERM));
}

#[test]
fn rfc8489_request_with_userhash_and_sha256_verifies() {
    let bytes = hex(REQUEST_SHA256);
    let message = Message::parse(&bytes).unwrap();

    let hash = userhash(MATRIX, "example.org");
    let algorithm =
        PasswordAlgorithm::of(message.attribute(AttributeType::PASSWORD_ALGORITHM).unwrap());
    let key =
        |password| Key::long_term_with(PasswordAlgorithm::Sha256, MATRIX, "example.org", password);
    assert_eq!(message.attribute(AttributeType::USERHASH), Some(&hash[..]));
    assert_eq!(algorithm, Some(PasswordAlgorithm::Sha256));
    assert_eq!(message.integrity(), Some(Integrity::Sha256));
    assert!(message.verify(&key("TheMatrIX")));
    assert!(!message.verify(&key("TheMatrix")));
}

#[test]
fn what_the_writer_writes_is_what_rfc8489_prints() {
    let transaction = TransactionId(hex("78ad3433c6ad72c029da412e").try_into().unwrap());
    let algorithm = PasswordAlgorithm::Sha256;

    let written = Writer::new(Class::Request, Method::BINDING, transaction)
        .attribute(AttributeType::USERHASH, &userhash(MATRIX, "example.org"))
        .attribute(AttributeType::NONCE, b"obMatJos2AAACf//499k954d6OL34oL9FSTvy64sA")
        .attribute(AttributeType::REALM, b"example.org")
        .attribute(AttributeType::PASSWORD_ALGORITHM, &algorithm.value())
        .integrity(&Key::long_term_with(algorithm, MATRIX, "example.org", "TheMatrIX"))
        .finish();

    assert_eq!(written, hex(REQUEST_SHA256));
}

#[test]
fn rfc8489_key_of_user_realm_pass() {
    let [md5, sha256] = [PasswordAlgorithm::Md5, PasswordAlgorithm::Sha256]
        .map(|algorithm| Key::long_term_with(algorithm, "user", "realm", "pass"));

    assert_eq!(md5.octets(), hex("8493fbc53ba582fb4c044c456bdc40eb"));
    assert_eq!(
        sha256.octets(),
        hex("07e934117abd40836e7c6329b54731b2b2d2a5f9a71f544922d75e0730d8251b")
    );
}

#[test]
fn sha256_integrity_counts_whole_only() {
    let key = Key::long_term_with(PasswordAlgorithm::Sha256, "u", "r", "p");
    let other = Key::long_term_with(PasswordAlgorithm::Sha256, "u", "r", "q");
    for octets in 0..=32 {
        let bytes = Writer::new(Class::Request, Method::REFRESH, TransactionId([7; 12]))
            .truncated_integrity(&key, octets)
            .fingerprint()
            .finish();
        let message = Message::parse(&bytes).unwrap();

        let fits = octets == 32;

        assert!(message.has_integrity());
        assert_eq!(message.integrity().is_some(), fits, "{octets}");
        assert_eq!(message.verify(&key), fits, "{octets}");
        assert!(!message.verify(&other), "{octets}");
    }
}

#[test]
fn of_two_integrity_attributes_sha256_counts_and_covers_the_other() {
    let key = Key::long_term("u", "r", "p");
    let sha256 = key.clone().signing(Integrity::Sha256);
    let bytes = |first: &Key, second: &Key| {
        Writer::new(Class::Request, Method::REFRESH, TransactionId([7; 12]))
            .integrity(first)
            .integrity(second)
            .finish()
    };
    let wrong = Key::long_term("u", "r", "wrong");

    let both = bytes(&key, &sha256);
    let only_sha1 = bytes(&key, &wrong.clone().signing(Integrity::Sha256));
    let sha256_first = bytes(&sha256, &wrong);

    assert_eq!(Message::parse(&both).unwrap().integrity(), Some(Integrity::Sha256));
    assert!(Message::parse(&both).unwrap().verify(&key));
    assert!(!Message::parse(&only_sha1).unwrap().verify(&key));
    assert!(Message::parse(&sha256_first).unwrap().verify(&key));
}

#[test]
fn addresses_and_fingerprints_survive_a_round_trip() {
    for address in ["192.0.2.7:40000", "[2001:db8::7]:1"] {
        let address = address.parse().unwrap();
        let bytes = Writer::new(Class::Success, Method::ALLOCATE, TransactionId([7; 12]))
            .xor_address(AttributeType::XOR_RELAYED_ADDRESS, address)
            .fingerprint()
            .finish();

        let message = Message::parse(&bytes).unwrap();

        assert!(message.has_fingerprint());
        assert_eq!(message.xor_address(AttributeType::XOR_RELAYED_ADDRESS), Some(address));
    }
}

#[test]
fn attributes_after_an_integrity_attribute_do_not_exist() {
    let sha1 = Key::long_term("u", "r", "p");
    let sha256 = sha1.clone().signing(Integrity::Sha256);
    let begin = || Writer::new(Class::Request, Method::REFRESH, TransactionId([7; 12]));
    let zero = |writer: Writer| writer.attribute(AttributeType::LIFETIME, &[0; 4]);
    for writer in [
        zero(begin().integrity(&sha1)),
        zero(begin().integrity(&sha256)),
        zero(zero(begin().integrity(&sha1)).integrity(&sha256)),
        zero(begin().integrity(&sha256)).integrity(&sha1),
    ] {
        let bytes = writer.fingerprint().finish();

        let message = Message::parse(&bytes).unwrap();

        assert!(message.verify(&sha1));
        assert!(message.has_fingerprint());
        assert_eq!(message.attributes().count(), 0);
    }
}

#[test]
fn what_follows_a_fingerprint_does_not_exist() {
    let key = Key::long_term("u", "r", "p");
    let bytes = Writer::new(Class::Request, Method::REFRESH, TransactionId([7; 12]))
        .fingerprint()
        .attribute(AttributeType::LIFETIME, &[0; 4])
        .integrity(&key)
        .finish();

    let message = Message::parse(&bytes).unwrap();

    assert!(!message.has_integrity());
    assert_eq!(message.attributes().count(), 0);
}

#[test]
fn only_the_first_of_two_equal_attributes_counts() {
    let bytes = Writer::new(Class::Request, Method::BINDING, TransactionId([7; 12]))
        .attribute(AttributeType::REALM, b"one")
        .attribute(AttributeType::REALM, b"two")
        .finish();

    let message = Message::parse(&bytes).unwrap();

    assert_eq!(message.attribute(AttributeType::REALM), Some(&b"one"[..]));
    assert_eq!(message.attribute_range(AttributeType::REALM), Some(24..27));
}

#[test]
fn malformed_messages_are_told_apart() {
    let good = hex(REQUEST);
    let mut wrong_crc = good.clone();
    *wrong_crc.last_mut().unwrap() ^= 1;
    let mut no_cookie = good.clone();
    no_cookie[4] = 0;
    let mut beyond = good.clone();
    beyond[23] = 0xFF;

    assert_eq!(Message::parse(&good[..19]).unwrap_err(), ParseError::Short);
    assert_eq!(Message::parse(&no_cookie).unwrap_err(), ParseError::NotStun);
    assert!(matches!(Message::parse(&good[..40]), Err(ParseError::Length { .. })));
    assert_eq!(Message::parse(&beyond).unwrap_err(), ParseError::Attribute { offset: 20 });
    assert_eq!(Message::parse(&wrong_crc).unwrap_err(), ParseError::Fingerprint);
}

#[test]
fn every_class_and_method_survives_the_type_field() {
    for class in [Class::Request, Class::Indication, Class::Success, Class::Error] {
        for method in [0, 1, 3, 0x00F, 0x010, 0x07F, 0x080, 0xABC, 0xFFF] {
            let bytes = Writer::new(class, Method(method), TransactionId([0; 12])).finish();

            let message = Message::parse(&bytes).unwrap();

            assert_eq!((message.class(), message.method()), (class, Method(method)));
        }
    }
}
