//! Output is what a command prints: a table for people, or JSON and YAML for programs.

use std::io::Write as _;

use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use serde::Serialize;

use super::Error;
use crate::{hook::Phase, incident::prompt};

pub use crate::{incident::prompt::rfc3339 as time, view::age};

/// Form of what is printed.
#[derive(Args, Clone, Copy, Debug)]
pub struct Output {
    /// Form of the output
    #[arg(short, long, value_enum, default_value_t = Format::Table, hide_default_value = true)]
    pub output: Format,
}

/// The forms.
#[derive(ValueEnum, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// A table
    Table,
    /// A table with more columns
    Wide,
    /// JSON
    Json,
    /// YAML
    Yaml,
}

impl Format {
    /// Prints a value as JSON or YAML; false where a table is wanted.
    ///
    /// # Errors
    /// Where standard output is closed.
    pub fn print(self, value: &impl Serialize) -> Result<bool, Error> {
        let text = match self {
            Self::Table | Self::Wide => return Ok(false),
            Self::Json => serde_json::to_string_pretty(value).map_err(Error::because("no JSON"))?,
            Self::Yaml => serde_yaml::to_string(value).map_err(Error::because("no YAML"))?,
        };
        print(text.trim_end())?;
        Ok(true)
    }
}

/// Prints a text and a line break; colours only where the reader is a terminal that wants them.
///
/// # Errors
/// Where standard output is closed.
pub fn print(text: &str) -> Result<(), Error> {
    let mut out = anstream::stdout();
    writeln!(out, "{text}").map_err(|error| match error.kind() {
        // Whoever reads has read enough, as with `| head`.
        std::io::ErrorKind::BrokenPipe => Error::closed(),
        _ => Error::because("nothing can be printed")(error),
    })
}

/// Columns side by side under their names, as kubectl has them.
pub fn table<H: AsRef<str>, R: AsRef<[String]>>(head: &[H], rows: &[R]) -> String {
    let head: Vec<&str> = head.iter().map(AsRef::as_ref).collect();
    let mut lines = vec![head.join("\t")];
    lines.extend(rows.iter().map(|row| row.as_ref().join("\t")));
    let mut out = tabwriter::TabWriter::new(Vec::new()).padding(3).ansi(true);
    let _ = out.write_all(lines.join("\n").as_bytes());
    let bytes = out.into_inner().unwrap_or_default();
    let text = String::from_utf8_lossy(&bytes);
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

/// A text of somebody else on one line of so many characters at most: nothing in it can move the cursor, hide or
/// reorder what is shown.
pub fn line(text: &str, longest: usize) -> String {
    let shown = prompt::visible(text);
    let mut line = String::new();
    for word in shown.split_whitespace() {
        if !line.is_empty() {
            line.push(' ');
        }
        line.push_str(word);
    }
    if line.chars().count() > longest {
        line = line.chars().take(longest.saturating_sub(1)).collect();
        line.push('…');
    }
    line
}

/// A text of somebody else with its lines, made as harmless.
pub fn block(text: &str, indent: &str) -> String {
    let shown = prompt::visible(text).replace('\t', "    ");
    let lines: Vec<String> =
        shown.trim().lines().map(|line| format!("{indent}{line}").trim_end().to_owned()).collect();
    lines.join("\n")
}

/// A text in a style; where nobody sees colours the printer takes them out again.
pub fn paint(text: &str, style: Style) -> String {
    format!("{style}{text}{style:#}")
}

/// How a phase looks.
pub fn style(phase: Phase) -> Style {
    let color = match phase {
        Phase::Pending => AnsiColor::Yellow,
        Phase::Firing => AnsiColor::Magenta,
        Phase::Notified => AnsiColor::Cyan,
        Phase::Resolved => AnsiColor::Green,
    };
    color.on_default()
}

/// So many of something: `1 Hook`, `2 Hooks`.
pub fn count(number: usize, what: &str) -> String {
    if number == 1 { format!("1 {what}") } else { format!("{number} {what}s") }
}

/// How many characters of a text are seen.
pub fn width(text: &str) -> usize {
    anstream::adapter::strip_str(text).to_string().chars().count()
}

/// Cuts a line to the characters that are seen, colours and all.
pub fn cut(text: &str, longest: usize) -> String {
    if width(text) <= longest {
        return text.to_owned();
    }
    let mut left = longest.saturating_sub(1);
    let mut out = String::new();
    let mut escaped = false;
    for c in text.chars() {
        if c == '\u{1b}' {
            escaped = true;
        }
        if escaped {
            out.push(c);
            escaped = c != 'm';
        } else if left > 0 {
            left -= 1;
            out.push(c);
            if left == 0 {
                out.push('…');
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_say_moves_no_cursor_and_is_one_line() {
        let text = "\u{1b}[2J\u{1b}]0;title\u{7} all\r\nis\t well\u{202e}\u{9b}31m now";
        assert_eq!(line(text, 80), "[2J]0;title all is well31m now");
        assert_eq!(line("über alles", 5), "über…");
        assert_eq!(line("", 5), "");
        assert_eq!(block("a\n\u{1b}[31mb\tc\n", "  "), "  a\n  [31mb    c");
    }

    #[test]
    fn a_line_is_cut_by_what_is_seen_and_ends_its_colours() {
        let red = paint("abcdef", AnsiColor::Red.on_default());
        assert_eq!(width(&red), 6);
        assert_eq!(cut(&red, 6), red);
        assert_eq!(cut(&red, 4), "\u{1b}[31mabc…\u{1b}[0m");
    }
}
