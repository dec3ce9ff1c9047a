//! What is wrong in a site file, where, and what to write instead.

use std::fmt;

/// How bad a [`Fault`] is.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub enum Severity {
    /// The site file is refused.
    Error,
    /// It is taken, but a person should look at it.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// A stretch of one line of the site file; lines and columns count characters from 1.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq, Ord, PartialOrd, Hash)]
pub struct Place {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
    /// Length in characters; what is shown is at least one caret.
    pub length: usize,
}

/// One thing that is wrong; `Display` writes it with the line it is about and carets below.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Whether it refuses the file.
    pub severity: Severity,
    /// The file's name as the reader was told it.
    pub file: String,
    /// Where it is.
    pub place: Place,
    /// What is wrong, in one sentence without a full stop.
    pub message: String,
    /// What to write instead.
    pub help: String,
    /// The line of the file that it is about.
    pub source_line: String,
}

impl Fault {
    /// Whether it refuses the file.
    #[must_use]
    pub fn is_error(&self) -> bool {
        self.severity == Severity::Error
    }

    /// The fault as text of a few lines, with ANSI colours when `colour` is set.
    #[must_use]
    pub fn render(&self, colour: bool) -> String {
        let paint = |code: &str, text: &str| match colour {
            true => format!("\x1b[{code}m{text}\x1b[0m"),
            false => text.to_owned(),
        };
        let code = match self.severity {
            Severity::Error => "1;31",
            Severity::Warning => "1;33",
        };
        let Place { line, column, length } = self.place;
        let number = line.to_string();
        let gutter = " ".repeat(number.len());
        let bar = paint("34", "|");
        // Tabs become single spaces so that the carets stand below what they point at.
        let source: String =
            self.source_line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
        let room = source.chars().count().saturating_sub(column.saturating_sub(1));
        let carets = "^".repeat(length.clamp(1, room.max(1)));
        let mut text = format!(
            "{}:{line}:{column}: {}: {}\n{gutter} {bar}\n{} {bar} {source}\n{gutter} {bar} {}{}",
            self.file,
            paint(code, &self.severity.to_string()),
            paint("1", &self.message),
            paint("34", &number),
            " ".repeat(column.saturating_sub(1)),
            paint(code, &carets),
        );
        if !self.help.is_empty() {
            text.push_str(&format!("\n{gutter} {} {}", paint("34", "="), self.help));
        }
        text
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.render(false))
    }
}

/// Why a text is not a value of the type asked for; becomes a [`Fault`] where the text stands.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Complaint {
    /// What is wrong.
    pub(crate) message: String,
    /// What to write instead.
    pub(crate) help: String,
}

impl Complaint {
    /// A complaint of these two sentences.
    pub(crate) fn new(message: impl Into<String>, help: impl Into<String>) -> Self {
        Self { message: message.into(), help: help.into() }
    }
}
