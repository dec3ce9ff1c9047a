//! What a build shows while it works: one line per step, with its time.

use std::io::IsTerminal as _;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// Where the lines go.
#[derive(Clone, Copy, Debug)]
pub(super) struct Steps {
    shown: bool,
}

impl Steps {
    /// On standard error when that is a terminal.
    pub(super) fn new() -> Self {
        Self { shown: std::io::stderr().is_terminal() }
    }

    /// Nowhere.
    #[cfg(test)]
    pub(super) fn hidden() -> Self {
        Self { shown: false }
    }

    /// A step of unknown length.
    pub(super) fn begin(&self, name: &'static str) -> ProgressBar {
        let bar = ProgressBar::new_spinner();
        self.start(&bar, "{spinner} {prefix:26} {elapsed}", name);
        bar
    }

    /// A step that works through `total` bytes.
    pub(super) fn bytes(&self, name: &'static str, total: u64) -> ProgressBar {
        let bar = ProgressBar::new(total);
        self.start(&bar, "{spinner} {prefix:26} {elapsed} {bar:30} {bytes}/{total_bytes}", name);
        bar
    }

    /// Ends a step.
    pub(super) fn done(&self, bar: &ProgressBar) {
        // A template is checked when it is made, and this one is right.
        if let Ok(style) = ProgressStyle::with_template("  {prefix:26} {elapsed_precise}") {
            bar.set_style(style);
        }
        bar.finish();
    }

    fn start(&self, bar: &ProgressBar, template: &str, name: &'static str) {
        let target =
            if self.shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        bar.set_draw_target(target);
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        bar.set_prefix(name);
        bar.enable_steady_tick(Duration::from_millis(100));
    }
}
