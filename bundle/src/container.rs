//! The frame of a bundle: lengths and parts, nothing of what they mean.
//!
//! ```text
//! 0   8  magic "POSTERN1"
//! 8   4  trust length, big endian (<= 64 KiB, may be 0)
//! 12  4  payload length (<= 900 KiB)
//! 16  4  signatures length (<= 16 KiB)
//! 20     TRUST    0..8 records: u32 length, JSON, u32 length, armoured signatures
//! ..     PAYLOAD  sections in fixed order: 8-byte tag, u32 length, bytes
//! ..     SIGS     1..8 armoured SSH signatures over PAYLOAD; the file ends exactly here
//! ```
//!
//! There is no archive, no path and no compression inside, so nothing here grows or escapes.
//!
//! # Invariants
//!
//! 1. Every byte of the file belongs to exactly one part.
//! 2. [`Container::parse`] does not look into the payload: that is [`Sections::parse`], which is
//!    called once the signatures hold.

/// First bytes of a bundle.
pub const MAGIC: &[u8; 8] = b"POSTERN1";
/// Longest bundle.
pub const MAX_FILE: usize = 1 << 20;
/// Longest TRUST part.
pub const MAX_TRUST: usize = 64 << 10;
/// Longest PAYLOAD part.
pub const MAX_PAYLOAD: usize = 900 << 10;
/// Longest SIGS part.
pub const MAX_SIGNATURES: usize = 16 << 10;
/// Most trust records, and most signatures over one thing.
pub const MAX_COUNT: usize = 8;

const HEADER: usize = 20;
const MAX_MANIFEST: usize = 16 << 10;
const MAX_SECTION: usize = 256 << 10;
const BEGIN: &str = "-----BEGIN SSH SIGNATURE-----\n";
const END: &str = "-----END SSH SIGNATURE-----\n";

/// Why bytes are not a bundle. Final: the same bytes never become one.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub enum FramingError {
    /// Other magic.
    #[error("not a bundle: it does not begin with POSTERN1")]
    Magic,
    /// The file ends early.
    #[error("cut short: {declared} bytes declared, {present} present")]
    CutShort {
        /// What the header, as far as it is there, asks for.
        declared: usize,
        /// What there is.
        present: usize,
    },
    /// The file goes on after its end.
    #[error("{surplus} bytes after the end of the bundle")]
    Surplus {
        /// How many.
        surplus: usize,
    },
    /// A part is above its limit.
    #[error("{part} of {length} bytes is above its limit of {limit}")]
    TooLong {
        /// Which part.
        part: &'static str,
        /// Its length.
        length: usize,
        /// The most allowed.
        limit: usize,
    },
    /// A length inside a part points outside it.
    #[error("{part} does not fill its part exactly")]
    Overrun {
        /// Which part.
        part: &'static str,
    },
    /// Too many of a thing.
    #[error("more than {limit} {part}")]
    TooMany {
        /// Of what.
        part: &'static str,
        /// The most allowed.
        limit: usize,
    },
    /// No signature at all.
    #[error("unsigned: the bundle carries no signature")]
    Unsigned,
    /// The signatures are not a run of armoured SSH signatures.
    #[error("signatures are not armoured SSH signatures, one after the other")]
    Armour,
    /// A section is missing, twice there, unknown or out of order.
    #[error("section {found:?} where {expected:?} belongs")]
    Section {
        /// The tag that belongs there.
        expected: &'static str,
        /// The tag found, empty at the end.
        found: String,
    },
    /// A text section that is not UTF-8.
    #[error("section {section} is not UTF-8")]
    Text {
        /// Which.
        section: &'static str,
    },
}

/// A bundle taken apart, borrowed from the file's bytes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Container<'a> {
    /// The trust records, oldest first.
    pub trust: Vec<TrustRecord<'a>>,
    /// What the signatures are over.
    pub payload: &'a [u8],
    /// Armoured signatures, at least one.
    pub signatures: Vec<&'a str>,
}

impl<'a> Container<'a> {
    /// Takes a file apart.
    ///
    /// # Errors
    ///
    /// Returns the first thing that is wrong with the frame.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, FramingError> {
        let magic = bytes.len().min(MAGIC.len());
        if bytes[..magic] != MAGIC[..magic] {
            return Err(FramingError::Magic);
        }
        let Some((header, body)) = bytes.split_at_checked(HEADER) else {
            return Err(FramingError::CutShort { declared: HEADER, present: bytes.len() });
        };
        if bytes.len() > MAX_FILE {
            return Err(FramingError::TooLong {
                part: "file",
                length: bytes.len(),
                limit: MAX_FILE,
            });
        }
        let trust = limited("trust", be32(&header[8..12]), MAX_TRUST)?;
        let payload = limited("payload", be32(&header[12..16]), MAX_PAYLOAD)?;
        let signatures = limited("signatures", be32(&header[16..20]), MAX_SIGNATURES)?;
        let declared = HEADER + trust + payload + signatures;
        if bytes.len() < declared {
            return Err(FramingError::CutShort { declared, present: bytes.len() });
        }
        if bytes.len() > declared {
            return Err(FramingError::Surplus { surplus: bytes.len() - declared });
        }
        let (trust, rest) = body.split_at(trust);
        let (payload, signatures) = rest.split_at(payload);
        if signatures.is_empty() {
            return Err(FramingError::Unsigned);
        }
        Ok(Self {
            trust: TrustRecord::parse_all(trust, MAX_COUNT)?,
            payload,
            signatures: split_armour(signatures)?,
        })
    }
}

/// A trust blob as it lies in a file: JSON and the signatures over it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct TrustRecord<'a> {
    /// The JSON.
    pub blob: &'a [u8],
    /// Armoured signatures one after the other; empty for an image's first record.
    pub signatures: &'a [u8],
}

impl<'a> TrustRecord<'a> {
    /// Reads records that lie one after the other, as in TRUST and in a trust file.
    ///
    /// # Errors
    ///
    /// Returns an error when they do not fill `bytes` exactly or are more than `limit`.
    pub fn parse_all(mut bytes: &'a [u8], limit: usize) -> Result<Vec<Self>, FramingError> {
        let overrun = FramingError::Overrun { part: "trust record" };
        let mut records = Vec::new();
        while !bytes.is_empty() {
            if records.len() == limit {
                return Err(FramingError::TooMany { part: "trust records", limit });
            }
            let blob = take_prefixed(&mut bytes).ok_or_else(|| overrun.clone())?;
            let signatures = take_prefixed(&mut bytes).ok_or_else(|| overrun.clone())?;
            records.push(Self { blob, signatures });
        }
        Ok(records)
    }

    /// Appends the record in its file form.
    pub fn write(&self, to: &mut Vec<u8>) {
        write_prefixed(to, self.blob);
        write_prefixed(to, self.signatures);
    }
}

/// The sections of a payload, borrowed from it.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sections<'a> {
    /// JSON of the manifest.
    pub manifest: &'a [u8],
    /// The site file.
    pub site: &'a str,
    /// JSON {path as written in the site file: PEM text}.
    pub certs: &'a str,
    /// One age file per box that has a seal key, in manifest order.
    pub secrets: Vec<&'a [u8]>,
}

impl<'a> Sections<'a> {
    /// Takes a payload apart. Call it only once its signatures hold.
    ///
    /// # Errors
    ///
    /// Returns an error for any other sequence than manifest, site, certs, secrets.
    pub fn parse(mut payload: &'a [u8]) -> Result<Self, FramingError> {
        let manifest = section(&mut payload, "manifest", MAX_MANIFEST)?;
        let site = section(&mut payload, "site    ", MAX_SECTION)?;
        let certs = section(&mut payload, "certs   ", MAX_SECTION)?;
        let mut secrets = Vec::new();
        while !payload.is_empty() {
            secrets.push(section(&mut payload, "secrets ", MAX_SECTION)?);
        }
        let text =
            |bytes, section| std::str::from_utf8(bytes).map_err(|_| FramingError::Text { section });
        Ok(Self { manifest, site: text(site, "site")?, certs: text(certs, "certs")?, secrets })
    }

    /// Writes the payload.
    ///
    /// # Errors
    ///
    /// Returns [`FramingError::TooLong`] for what [`Sections::parse`] or [`Container::parse`]
    /// would refuse.
    pub fn to_payload(&self) -> Result<Vec<u8>, FramingError> {
        let mut payload = Vec::new();
        let mut put = |tag: &'static str, bytes: &[u8], limit| {
            limited(tag.trim_end(), bytes.len(), limit)?;
            payload.extend_from_slice(tag.as_bytes());
            write_prefixed(&mut payload, bytes);
            Ok(())
        };
        put("manifest", self.manifest, MAX_MANIFEST)?;
        put("site    ", self.site.as_bytes(), MAX_SECTION)?;
        put("certs   ", self.certs.as_bytes(), MAX_SECTION)?;
        for secrets in &self.secrets {
            put("secrets ", secrets, MAX_SECTION)?;
        }
        limited("payload", payload.len(), MAX_PAYLOAD)?;
        Ok(payload)
    }
}

/// Puts a bundle together.
///
/// # Errors
///
/// Returns an error for what [`Container::parse`] would refuse.
pub fn assemble(
    trust: &[TrustRecord<'_>],
    payload: &[u8],
    signatures: &[String],
) -> Result<Vec<u8>, FramingError> {
    let mut records = Vec::new();
    for record in trust {
        record.write(&mut records);
    }
    let signatures = signatures.concat();
    let mut bytes = MAGIC.to_vec();
    for (part, length, limit) in [
        ("trust", records.len(), MAX_TRUST),
        ("payload", payload.len(), MAX_PAYLOAD),
        ("signatures", signatures.len(), MAX_SIGNATURES),
    ] {
        bytes.extend_from_slice(&length_prefix(limited(part, length, limit)?));
    }
    bytes.extend_from_slice(&records);
    bytes.extend_from_slice(payload);
    bytes.extend_from_slice(signatures.as_bytes());
    Container::parse(&bytes)?;
    Ok(bytes)
}

/// Splits a run of armoured signatures into its members, each with its BEGIN and END lines.
///
/// # Errors
///
/// Returns [`FramingError::Armour`] or [`FramingError::TooMany`].
pub fn split_armour(bytes: &[u8]) -> Result<Vec<&str>, FramingError> {
    let mut rest = std::str::from_utf8(bytes).map_err(|_| FramingError::Armour)?;
    let mut signatures = Vec::new();
    while !rest.is_empty() {
        if signatures.len() == MAX_COUNT {
            return Err(FramingError::TooMany { part: "signatures", limit: MAX_COUNT });
        }
        let end = rest.find(END).ok_or(FramingError::Armour)? + END.len();
        let (signature, after) = rest.split_at(end);
        if !signature.starts_with(BEGIN) {
            return Err(FramingError::Armour);
        }
        signatures.push(signature);
        rest = after;
    }
    Ok(signatures)
}

fn section<'a>(
    payload: &mut &'a [u8],
    tag: &'static str,
    limit: usize,
) -> Result<&'a [u8], FramingError> {
    let found = payload.get(..8).unwrap_or_default();
    if found != tag.as_bytes() {
        return Err(FramingError::Section {
            expected: tag.trim_end(),
            found: String::from_utf8_lossy(found).trim_end().to_owned(),
        });
    }
    *payload = &payload[8..];
    let bytes = take_prefixed(payload).ok_or(FramingError::Overrun { part: "section" })?;
    limited(tag.trim_end(), bytes.len(), limit)?;
    Ok(bytes)
}

fn take_prefixed<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_at_checked(4)?;
    let (taken, rest) = rest.split_at_checked(be32(length))?;
    *bytes = rest;
    Some(taken)
}

fn write_prefixed(to: &mut Vec<u8>, bytes: &[u8]) {
    to.extend_from_slice(&length_prefix(bytes.len()));
    to.extend_from_slice(bytes);
}

fn length_prefix(length: usize) -> [u8; 4] {
    // A part above 4 GiB cannot be framed; the saturated length makes every reader refuse it.
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

fn be32(bytes: &[u8]) -> usize {
    bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte))
}

fn limited(part: &'static str, length: usize, limit: usize) -> Result<usize, FramingError> {
    if length > limit {
        return Err(FramingError::TooLong { part, length, limit });
    }
    Ok(length)
}
