//! Reads what we need of ELF files (64-bit, little endian): sections, symbol names, the soname.
//!
//! What does not parse has no sections; nothing here panics on damaged files.

/// A `.symtab` entry's length.
const SYMBOL: usize = 24;
const SHT_NOBITS: u32 = 8;
const SHT_SYMTAB: u32 = 2;
const DT_NEEDED: u64 = 1;
const DT_STRTAB: u64 = 5;
const DT_SONAME: u64 = 14;
const EM_X86_64: u16 = 62;

/// An ELF file of x86-64.
#[derive(Debug)]
pub(super) struct Elf<'a> {
    sections: Vec<Section<'a>>,
}

#[derive(Clone, Copy, Debug)]
struct Section<'a> {
    name: &'a [u8],
    kind: u32,
    address: u64,
    body: &'a [u8],
    link: usize,
}

impl<'a> Elf<'a> {
    /// Reads the headers; `None` when it is another kind of file.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let is_ours = bytes.starts_with(b"\x7fELF\x02\x01") && u16_at(bytes, 18)? == EM_X86_64;
        if !is_ours {
            return None;
        }
        let table = usize::try_from(u64_at(bytes, 40)?).ok()?;
        let entry = usize::from(u16_at(bytes, 58)?);
        let count = usize::from(u16_at(bytes, 60)?);
        let names_index = usize::from(u16_at(bytes, 62)?);
        let mut sections = Vec::with_capacity(count);
        let mut name_offsets = Vec::with_capacity(count);
        for index in 0..count {
            let header = bytes.get(table.checked_add(index * entry)?..)?;
            let kind = u32_at(header, 4)?;
            let offset = usize::try_from(u64_at(header, 24)?).ok()?;
            let size = usize::try_from(u64_at(header, 32)?).ok()?;
            let body = match kind {
                SHT_NOBITS => &[][..],
                _ => bytes.get(offset..offset.checked_add(size)?)?,
            };
            name_offsets.push(usize::try_from(u32_at(header, 0)?).ok()?);
            let link = usize::try_from(u32_at(header, 40)?).ok()?;
            sections.push(Section { name: b"", kind, address: u64_at(header, 16)?, body, link });
        }
        let names = sections.get(names_index).map(|section| section.body).unwrap_or_default();
        for (section, offset) in sections.iter_mut().zip(name_offsets) {
            section.name = string_at(names, offset).unwrap_or_default();
        }
        Some(Self { sections })
    }

    /// The bytes of a section.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        self.sections.iter().find(|s| s.name == name.as_bytes()).map(|section| section.body)
    }

    /// The names in the symbol table.
    pub(super) fn symbols(&self) -> impl Iterator<Item = &'a str> {
        let table = self.sections.iter().find(|section| section.kind == SHT_SYMTAB);
        let names = table.and_then(|table| self.sections.get(table.link)).map(|s| s.body);
        let entries = table.map(|table| table.body).unwrap_or_default().chunks_exact(SYMBOL);
        entries.filter_map(move |entry| {
            let name = string_at(names?, usize::try_from(u32_at(entry, 0)?).ok()?)?;
            std::str::from_utf8(name).ok()
        })
    }

    /// The name by which other programs ask for this shared library.
    pub(super) fn soname(&self) -> Option<&'a str> {
        self.dynamic(DT_SONAME).next()
    }

    /// The shared libraries that it cannot start without.
    pub(super) fn needed(&self) -> impl Iterator<Item = &'a str> {
        self.dynamic(DT_NEEDED)
    }

    /// The strings that entries of one kind in the dynamic section point to.
    fn dynamic(&self, kind: u64) -> impl Iterator<Item = &'a str> {
        let section = self.section(".dynamic").unwrap_or_default();
        let entries = section
            .chunks_exact(16)
            .filter_map(|entry| Some((u64_at(entry, 0)?, u64_at(entry, 8)?)));
        let address = entries.clone().find(|(tag, _)| *tag == DT_STRTAB).map(|(_, value)| value);
        let strings = self.sections.iter().find(|section| Some(section.address) == address);
        let strings = strings.map(|section| section.body).unwrap_or_default();
        entries.filter(move |(tag, _)| *tag == kind).filter_map(move |(_, offset)| {
            std::str::from_utf8(string_at(strings, usize::try_from(offset).ok()?)?).ok()
        })
    }
}

fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    bytes.get(at..)?.first_chunk().map(|bytes| u16::from_le_bytes(*bytes))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    bytes.get(at..)?.first_chunk().map(|bytes| u32::from_le_bytes(*bytes))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    bytes.get(at..)?.first_chunk().map(|bytes| u64::from_le_bytes(*bytes))
}

fn string_at(table: &[u8], at: usize) -> Option<&[u8]> {
    table.get(at..)?.split(|byte| *byte == 0).next()
}
