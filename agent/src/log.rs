//! Log lines on standard error; below systemd each one begins with its level, as sd-daemon(3)
//! says, so that the journal knows a warning from a note.

use std::fmt;

use tracing::{Event, Level, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::{Format, Full, Writer};
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What is logged unless `POSTERN_LOG` says otherwise. fatfs warns at each look of properties of
/// the provision partition that are as we want them.
const FILTER: &str = "info,fatfs=error";

/// Sends the log to standard error.
pub(crate) fn init() {
    let filter = EnvFilter::try_from_env("POSTERN_LOG").unwrap_or_else(|_| FILTER.into());
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let line =
        Line { prefix: journal, format: Format::default().without_time().with_target(false) };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(false)
        .event_format(line)
        .with_writer(std::io::stderr)
        .init();
}

/// One line per event.
struct Line {
    prefix: bool,
    format: Format<Full, ()>,
}

impl<S, N> FormatEvent<S, N> for Line
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        context: &FmtContext<'_, S, N>,
        mut writer: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        if self.prefix {
            write!(writer, "<{}>", priority(*event.metadata().level()))?;
        }
        self.format.format_event(context, writer, event)
    }
}

/// The syslog priority (RFC 5424 section 6.2.1) of a level.
fn priority(level: Level) -> u8 {
    match level {
        Level::ERROR => 3,
        Level::WARN => 4,
        Level::INFO => 6,
        _ => 7,
    }
}
