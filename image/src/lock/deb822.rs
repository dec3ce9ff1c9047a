//! Reads deb822 paragraphs: `Release`, `Packages`, `.sources` (deb822(5)), without copying.

/// One paragraph: fields in the order of the file.
#[derive(Clone, Debug, Default)]
pub(crate) struct Paragraph<'a>(Vec<(&'a str, &'a str)>);

impl<'a> Paragraph<'a> {
    /// The value of a field; its name is compared without case. Continuation lines stay raw.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| *value)
    }
}

/// The paragraphs of `text`. Lines that are neither a field nor a continuation are passed over.
pub(crate) fn paragraphs(text: &str) -> impl Iterator<Item = Paragraph<'_>> {
    let mut rest = text;
    std::iter::from_fn(move || {
        loop {
            if rest.is_empty() {
                return None;
            }
            let (paragraph, after) = take_paragraph(rest);
            rest = after;
            if !paragraph.0.is_empty() {
                return Some(paragraph);
            }
        }
    })
}

/// Reads up to the next empty line; also returns what follows it.
fn take_paragraph(text: &str) -> (Paragraph<'_>, &str) {
    let mut fields: Vec<(&str, &str)> = Vec::new();
    // Where the value of the last field begins and ends, in bytes of `text`.
    let mut open: Option<(usize, usize)> = None;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let start = at;
        at += line.len();
        let trimmed = line.trim_end();
        if trimmed.is_empty() {
            break;
        }
        if line.starts_with('#') {
            continue;
        }
        if line.starts_with([' ', '\t']) {
            if let (Some((begin, end)), Some(last)) = (open.as_mut(), fields.last_mut()) {
                *end = start + trimmed.len();
                last.1 = text[*begin..*end].trim();
            }
            continue;
        }
        if let Some((key, value)) = trimmed.split_once(':') {
            let begin = start + key.len() + 1;
            open = Some((begin, start + trimmed.len()));
            fields.push((key, value.trim()));
        }
    }
    (Paragraph(fields), &text[at..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_keep_their_continuation_lines() {
        let text = "Package: a\nSHA256:\n 00 1 x\n 11 2 y\nSize: 3\n\n\n# note\nPackage: b\n";

        let all: Vec<Paragraph<'_>> = paragraphs(text).collect();

        assert_eq!(all.len(), 2);
        assert_eq!(all[0].get("sha256"), Some("00 1 x\n 11 2 y"));
        assert_eq!(all[0].get("Size"), Some("3"));
        assert_eq!(all[1].get("Package"), Some("b"));
        assert_eq!(all[1].get("Size"), None);
    }

    #[test]
    fn rubbish_is_no_paragraph() {
        assert_eq!(paragraphs("\n\n \n x\n").count(), 0);
    }
}
