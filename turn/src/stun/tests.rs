//! The vectors of RFC 5769 and hostile shapes.

use super::{AttributeType, Class, Key, Message, Method, ParseError, TransactionId, Writer};

fn hex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect()
}

fn ice_key() -> Key {
    Key::ShortTerm(b"VOkJxbRl1RmTxUk/WvJxBt".to_vec())
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

#[test]
fn rfc5769_sample_request_verifies() {
    let bytes = hex(REQUEST);
    let message = Message::parse(&bytes).unwrap();

    assert_eq!((message.class(), message.method()), (Class::Request, Method::BINDING));
    assert!(message.has_fingerprint());
    assert!(message.verify(&ice_key()));
    assert!(!message.verify(&Key::ShortTerm(b"other".to_vec())));
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
    let user = "\u{30DE}\u{30C8}\u{30EA}\u{30C3}\u{30AF}\u{30B9}";

    let written = Writer::new(Class::Request, Method::BINDING, transaction)
        .attribute(AttributeType::USERNAME, user.as_bytes())
        .attribute(AttributeType::NONCE, b"f//499k954d6OL34oL9FSTvy64sA")
        .attribute(AttributeType::REALM, b"example.org")
        .integrity(&Key::long_term(user, "example.org", "TheMatrIX"))
        .finish();

    assert_eq!(written, hex(REQUEST_LONG_TERM));
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
fn attributes_after_message_integrity_do_not_exist() {
    let key = Key::long_term("u", "r", "p");
    let bytes = Writer::new(Class::Request, Method::REFRESH, TransactionId([7; 12]))
        .integrity(&key)
        .attribute(AttributeType::LIFETIME, &[0; 4])
        .fingerprint()
        .finish();

    let message = Message::parse(&bytes).unwrap();

    assert!(message.verify(&key));
    assert!(message.has_fingerprint());
    assert_eq!(message.attribute(AttributeType::LIFETIME), None);
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
