//! Unified kernel images (UAPI group, Unified Kernel Image specification): systemd's stub with the
//! kernel, the initrd and their command line appended as sections of its PE file
//! (Microsoft PE format, sections "Optional Header" and "Section Table").
//!
//! The stub's bytes are taken as they are but for the counts and sizes in its headers; sections go
//! behind its last one. Signing for Secure Boot is a later step, over this file.

/// What a kernel image is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    /// systemd's `linuxx64.efi.stub`.
    pub(crate) stub: &'a [u8],
    /// `.osrel`: the os-release file.
    pub(crate) os_release: &'a [u8],
    /// `.cmdline`: what the kernel is started with.
    pub(crate) command_line: &'a str,
    /// `.uname`: the kernel's version.
    pub(crate) kernel_version: &'a str,
    /// `.initrd`.
    pub(crate) initrd: &'a [u8],
    /// `.linux`: the bzImage.
    pub(crate) kernel: &'a [u8],
}

/// Why the stub cannot carry the sections.
#[derive(Clone, Debug, Eq, PartialEq, thiserror::Error)]
pub(crate) enum UkiError {
    /// Not a PE32+ file, or cut short.
    #[error("the EFI stub is no PE32+ file: {0}")]
    NotPe(&'static str),
    /// The section table cannot grow.
    #[error("the EFI stub's headers have room for {room} sections, {needed} are needed")]
    NoRoom {
        /// Room in all.
        room: usize,
        /// Needed in all.
        needed: usize,
    },
    /// A UKI is loaded into memory below 4 GiB.
    #[error("the kernel image would be larger than 4 GiB")]
    TooLarge,
}

/// `IMAGE_SCN_CNT_INITIALIZED_DATA | IMAGE_SCN_MEM_READ`.
const DATA: u32 = 0x4000_0040;
const SECTION_HEADER: usize = 40;
/// Offsets in the COFF header, which follows the signature.
const NUMBER_OF_SECTIONS: usize = 4 + 2;
const SIZE_OF_OPTIONAL_HEADER: usize = 4 + 16;
const OPTIONAL_HEADER: usize = 4 + 20;
/// Offsets in the optional header.
const SIZE_OF_INITIALIZED_DATA: usize = 8;
const SECTION_ALIGNMENT: usize = 32;
const FILE_ALIGNMENT: usize = 36;
const SIZE_OF_IMAGE: usize = 56;
const SIZE_OF_HEADERS: usize = 60;
const CHECKSUM: usize = 64;

/// Puts the parts together.
pub(crate) fn build(parts: &Parts<'_>) -> Result<Vec<u8>, UkiError> {
    // The stub finds them by name; the kernel comes last because nothing may follow what it
    // unpacks itself over.
    let sections: [(&str, &[u8]); 5] = [
        (".osrel", parts.os_release),
        (".cmdline", parts.command_line.as_bytes()),
        (".uname", parts.kernel_version.as_bytes()),
        (".initrd", parts.initrd),
        (".linux", parts.kernel),
    ];
    append(parts.stub, &sections)
}

fn append(stub: &[u8], sections: &[(&str, &[u8])]) -> Result<Vec<u8>, UkiError> {
    let pe = usize_of(word(stub, 0x3c)?);
    if stub.get(..2) != Some(b"MZ") || stub.get(pe..pe + 4) != Some(b"PE\0\0") {
        return Err(UkiError::NotPe("no signature"));
    }
    let optional = pe + OPTIONAL_HEADER;
    if half(stub, optional)? != 0x20b {
        return Err(UkiError::NotPe("not for 64 bits"));
    }
    let count = usize::from(half(stub, pe + NUMBER_OF_SECTIONS)?);
    let table = optional + usize::from(half(stub, pe + SIZE_OF_OPTIONAL_HEADER)?);
    let alignment = word(stub, optional + SECTION_ALIGNMENT)?;
    let file_alignment = word(stub, optional + FILE_ALIGNMENT)?;
    if !alignment.is_power_of_two() || !file_alignment.is_power_of_two() {
        return Err(UkiError::NotPe("its alignments are no powers of two"));
    }

    let mut image = stub.to_vec();
    let (mut end, mut first_raw) = (0, word(stub, optional + SIZE_OF_HEADERS)?);
    for index in 0..count {
        let header = table + index * SECTION_HEADER;
        let (size, address) = (word(stub, header + 8)?, word(stub, header + 12)?);
        end = end.max(address.checked_add(size).ok_or(UkiError::TooLarge)?);
        let (raw_size, raw) = (word(stub, header + 16)?, word(stub, header + 20)?);
        if raw_size > 0 {
            first_raw = first_raw.min(raw);
        }
    }
    let room = usize_of(first_raw).saturating_sub(table) / SECTION_HEADER;
    let needed = count + sections.len();
    if needed > room {
        return Err(UkiError::NoRoom { room, needed });
    }

    let mut data = word(stub, optional + SIZE_OF_INITIALIZED_DATA)?;
    for (index, (name, bytes)) in sections.iter().enumerate() {
        let length = u32::try_from(bytes.len()).map_err(|_| UkiError::TooLarge)?;
        let address = aligned(end, alignment)?;
        end = address.checked_add(length).ok_or(UkiError::TooLarge)?;
        image.resize(image.len().next_multiple_of(usize_of(file_alignment)), 0);
        let raw = u32::try_from(image.len()).map_err(|_| UkiError::TooLarge)?;
        let raw_size = aligned(length, file_alignment)?;
        image.extend_from_slice(bytes);
        image.resize(usize_of(raw) + usize_of(raw_size), 0);
        data = data.checked_add(raw_size).ok_or(UkiError::TooLarge)?;

        let header = table + (count + index) * SECTION_HEADER;
        let place = image
            .get_mut(header..header + SECTION_HEADER)
            .ok_or(UkiError::NotPe("its section table is cut short"))?;
        place.fill(0);
        place[..name.len()].copy_from_slice(name.as_bytes());
        for (at, value) in [(8, length), (12, address), (16, raw_size), (20, raw), (36, DATA)] {
            place[at..at + 4].copy_from_slice(&value.to_le_bytes());
        }
    }
    let total = u16::try_from(needed).map_err(|_| UkiError::TooLarge)?;
    put(&mut image, pe + NUMBER_OF_SECTIONS, &total.to_le_bytes());
    put(&mut image, optional + SIZE_OF_INITIALIZED_DATA, &data.to_le_bytes());
    put(&mut image, optional + SIZE_OF_IMAGE, &aligned(end, alignment)?.to_le_bytes());
    // Firmware does not check it; a signature would make it wrong anyway.
    put(&mut image, optional + CHECKSUM, &[0; 4]);
    Ok(image)
}

/// Writes into a header that has just been read, so that it is there.
fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    if let Some(place) = image.get_mut(at..at + bytes.len()) {
        place.copy_from_slice(bytes);
    }
}

fn aligned(value: u32, alignment: u32) -> Result<u32, UkiError> {
    value.checked_next_multiple_of(alignment).ok_or(UkiError::TooLarge)
}

fn half(bytes: &[u8], at: usize) -> Result<u16, UkiError> {
    let slice = bytes.get(at..at + 2).and_then(|slice| slice.try_into().ok());
    slice.map(u16::from_le_bytes).ok_or(UkiError::NotPe("it is cut short"))
}

fn word(bytes: &[u8], at: usize) -> Result<u32, UkiError> {
    let slice = bytes.get(at..at + 4).and_then(|slice| slice.try_into().ok());
    slice.map(u32::from_le_bytes).ok_or(UkiError::NotPe("it is cut short"))
}

fn usize_of(value: u32) -> usize {
    usize::try_from(value).unwrap_or(usize::MAX)
}

#[cfg(test)]
pub(crate) mod tests {
    use std::io::Write;
    use std::process::Command;

    use super::{Parts, UkiError, append, build};

    /// The smallest PE32+ file with one section and a header of `headers` bytes.
    pub(crate) fn stub(headers: u32) -> Vec<u8> {
        let mut stub = vec![0; headers as usize + 512];
        let mut put = |at: usize, bytes: &[u8]| stub[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, b"MZ");
        put(0x3c, &64_u32.to_le_bytes());
        put(64, b"PE\0\0");
        put(68, &0x8664_u16.to_le_bytes());
        put(70, &1_u16.to_le_bytes());
        put(84, &240_u16.to_le_bytes());
        put(86, &0x22e_u16.to_le_bytes());
        let optional = 88;
        put(optional, &0x20b_u16.to_le_bytes());
        put(optional + 32, &4096_u32.to_le_bytes());
        put(optional + 36, &512_u32.to_le_bytes());
        put(optional + 56, &8192_u32.to_le_bytes());
        put(optional + 60, &headers.to_le_bytes());
        put(optional + 68, &10_u16.to_le_bytes());
        put(optional + 108, &16_u32.to_le_bytes());
        let section = optional + 240;
        put(section, b".text");
        for (at, value) in [(8, 100_u32), (12, 4096), (16, 512), (20, headers), (36, 0x6000_0020)] {
            put(section + at, &value.to_le_bytes());
        }
        stub
    }

    fn parts(stub: &[u8]) -> Parts<'_> {
        Parts {
            stub,
            os_release: b"ID=postern\n",
            command_line: "roothash=00",
            kernel_version: "6.12",
            initrd: &[7; 5000],
            kernel: &[9; 10_001],
        }
    }

    #[test]
    fn binutils_lists_the_sections_and_gives_their_bytes_back() {
        let stub = stub(1024);
        let image = build(&parts(&stub)).unwrap();
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(&image).unwrap();
        let out = tempfile::NamedTempFile::new().unwrap();
        for (name, bytes) in [
            (".cmdline", b"roothash=00".to_vec()),
            (".initrd", vec![7; 5000]),
            (".linux", vec![9; 10_001]),
        ] {
            let output = Command::new("objcopy")
                .arg("-O")
                .arg("binary")
                .arg(format!("--only-section={name}"))
                .args([file.path(), out.path()])
                .output()
                .unwrap_or_else(|error| panic!("objcopy (package binutils): {error}"));

            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            let read = std::fs::read(out.path()).unwrap();
            assert!(read.starts_with(&bytes), "{name}: {} bytes", read.len());
            assert!(read.len() - bytes.len() < 512, "{name}: {} bytes", read.len());
        }
    }

    #[test]
    fn sections_follow_each_other_in_memory_and_the_image_covers_them() {
        let stub = stub(1024);
        let image = build(&parts(&stub)).unwrap();
        let word = |at: usize| u32::from_le_bytes(image[at..at + 4].try_into().unwrap());
        let sections: Vec<(u32, u32)> = (0..6)
            .map(|index| 88 + 240 + index * 40)
            .map(|at| (word(at + 12), word(at + 8)))
            .collect();

        assert_eq!(image[70], 6);
        assert!(sections.iter().all(|(address, _)| address % 4096 == 0), "{sections:?}");
        assert!(sections.windows(2).all(|two| two[0].0 + two[0].1 <= two[1].0), "{sections:?}");
        let (address, size) = sections[5];
        assert_eq!(word(88 + 56), (address + size).next_multiple_of(4096));
        assert_eq!(image.len() % 512, 0);
    }

    #[test]
    fn a_stub_without_room_in_its_headers_is_refused() {
        let error = append(&stub(512), &[(".a", b"1"), (".b", b"2"), (".c", b"3"), (".d", b"4")]);

        assert_eq!(error, Err(UkiError::NoRoom { room: 4, needed: 5 }));
    }

    #[test]
    fn a_stub_cut_anywhere_in_its_headers_is_refused() {
        let stub = stub(1024);
        for length in 0..88 + 240 + 24 {
            assert!(append(&stub[..length], &[(".a", b"1")]).is_err(), "{length}");
        }
    }
}
