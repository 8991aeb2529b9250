//! Telemetry is what khook logs: JSON for a cluster's collector, text for a person at a terminal.

use std::io::{self, IsTerminal as _};

use tracing_subscriber::{EnvFilter, fmt};

/// Form of the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// Text on a terminal, else JSON.
    Auto,
    /// One JSON object a line, the fields of an event beside its message.
    Json,
    /// Lines for people.
    Text,
}

impl Format {
    /// Parses `auto`, `json` or `text`.
    ///
    /// # Errors
    /// What is allowed.
    pub fn parse(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "auto" => Ok(Self::Auto),
            "json" => Ok(Self::Json),
            "text" => Ok(Self::Text),
            _ => Err("auto, json or text".into()),
        }
    }
}

/// Starts logging to standard output, with times in UTC. Does nothing where logging has started.
pub fn start(level: &str, format: Format) {
    // The level was parsed with the settings; `info` is for callers that skip them.
    let filter = filter(level).unwrap_or_else(|_| EnvFilter::new("info"));
    let terminal = io::stdout().is_terminal();
    let builder = fmt().with_env_filter(filter).with_writer(io::stdout);
    let started = match (format, terminal) {
        (Format::Json, _) | (Format::Auto, false) => {
            builder.json().flatten_event(true).with_span_list(false).try_init()
        }
        (Format::Text, _) | (Format::Auto, true) => builder.with_ansi(terminal).try_init(),
    };
    if let Err(error) = started {
        tracing::debug!(%error, "logging was started before");
    }
}

/// The filter for a level or for tracing directives. The libraries below khook say warnings only,
/// unless a directive names them.
///
/// # Errors
/// What is allowed.
pub fn filter(level: &str) -> Result<EnvFilter, String> {
    const QUIET: &str = "kube_client=warn,kube_runtime=warn,kube_runtime::watcher=off,hyper=warn,hyper_util=warn,reqwest=warn,rustls=warn,tower=warn";
    const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
    const FORM: &str = "off, error, warn, info, debug, trace, or directives such as info,khook::agent=debug";
    // A bare word that is no level would parse as the name of a module, and switch the log off.
    let known =
        |part: &str| part.contains('=') || LEVELS.contains(&part.trim().to_ascii_lowercase().as_str());
    // Brackets filter by span and may hold commas.
    if !level.contains('[') && !level.split(',').all(known) {
        return Err(FORM.into());
    }
    EnvFilter::builder().parse(format!("{QUIET},{level}")).map_err(|_| FORM.into())
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    fn levels_and_directives_are_taken(
        #[values(
            "info",
            "DEBUG",
            "off",
            "info,khook::agent=debug",
            "kube_client=trace,warn",
            "[call{agent=a}]=debug"
        )]
        level: &str,
    ) {
        assert!(filter(level).is_ok(), "{level}");
    }

    #[rstest]
    fn misspelt_levels_are_refused(#[values("", "inof", "info,", "khook=loud", "khook")] level: &str) {
        assert!(filter(level).is_err(), "{level}");
    }

    #[test]
    fn a_directive_wins_over_the_quiet_default() {
        let text = filter("debug,kube_client=trace").unwrap().to_string();
        assert!(text.contains("kube_client=trace") && !text.contains("kube_client=warn"), "{text}");
        assert!(text.contains("kube_runtime=warn") && text.contains("debug"), "{text}");
    }
}
