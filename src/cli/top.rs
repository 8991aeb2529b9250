//! `khook top` shows incidents as they move, on the whole terminal.

use std::{
    io::{IsTerminal as _, Write as _},
    process::ExitCode,
    time::Duration,
};

use anstyle::{AnsiColor, Effects, Style};
use chrono::Utc;
use futures::StreamExt as _;
use terminal_size::{Height, Width, terminal_size};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::{MissedTickBehavior, interval},
};

use super::{
    Error,
    cluster::{Cluster, Connection},
    output::{cut, line, paint},
    status::{Board, Wanted, render},
};

/// What it was told.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    wanted: Wanted,
    /// With more columns
    #[arg(long)]
    wide: bool,
}

/// Does it.
pub async fn main(args: Args, connection: Connection) -> Result<ExitCode, Error> {
    if !std::io::stdout().is_terminal() {
        return Err(Error::new(
            "khook top draws on a terminal, and standard output is none: use `khook status --watch`",
        ));
    }
    let cluster = connection.connect().await?;
    // What is wrong is said on the usual screen.
    cluster.list_hooks(args.wanted.all_namespaces).await?;
    show(&args, &cluster).await
}

/// Takes the whole screen, and gives it back whatever happens.
struct Screen;

impl Screen {
    fn take() -> Result<Self, Error> {
        // Alternate screen; no cursor.
        put("\u{1b}[?1049h\u{1b}[?25l")?;
        Ok(Self)
    }

    /// Draws over what is there, without a flicker in between.
    fn draw(&self, lines: &[String]) -> Result<(), Error> {
        let mut text = String::from("\u{1b}[H");
        for (number, line) in lines.iter().enumerate() {
            if number > 0 {
                text.push_str("\r\n");
            }
            text.push_str(line);
            text.push_str("\u{1b}[K");
        }
        text.push_str("\u{1b}[J");
        put(&text)
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        // A terminal that is gone needs nothing.
        let _ = put("\u{1b}[?25h\u{1b}[?1049l");
    }
}

// Not by anstream, which takes out what moves the cursor where colours are not wanted.
fn put(text: &str) -> Result<(), Error> {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).map_err(Error::because("the terminal is gone"))
}

/// Exit code of whoever was ended by SIGTERM or SIGHUP, as shells have it.
const ENDED: u8 = 128;

async fn show(args: &Args, cluster: &Cluster) -> Result<ExitCode, Error> {
    let listen = |kind: SignalKind| signal(kind).map_err(Error::because("signals cannot be heard"));
    let mut stop = listen(SignalKind::interrupt())?;
    let mut term = listen(SignalKind::terminate())?;
    let mut hangup = listen(SignalKind::hangup())?;
    let mut resized = listen(SignalKind::window_change())?;
    let mut changes = cluster.watch_hooks(args.wanted.all_namespaces);
    let mut seconds = interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut board = Board::new();
    let (mut complete, mut trouble) = (false, None);
    let colours = colours();
    let screen = Screen::take()?;
    loop {
        tokio::select! {
            _ = stop.recv() => return Ok(ExitCode::SUCCESS),
            _ = term.recv() => return Ok(ExitCode::from(ENDED + 15)),
            _ = hangup.recv() => return Ok(ExitCode::from(ENDED + 1)),
            _ = resized.recv() => {}
            _ = seconds.tick() => {}
            change = changes.next() => match change {
                Some(Ok(event)) => {
                    trouble = None;
                    if !board.apply(event) {
                        continue;
                    }
                    complete = true;
                }
                Some(Err(error)) => trouble = Some(error.to_string()),
                None => return Ok(ExitCode::SUCCESS),
            }
        }
        let size = terminal_size().map_or((80, 24), |(Width(width), Height(height))| {
            (usize::from(width).max(1), usize::from(height).max(1))
        });
        let place = if args.wanted.all_namespaces { "all namespaces" } else { cluster.namespace.as_str() };
        let lines = frame(&board, args, place, (complete, trouble.as_deref()), size);
        let plain = |line: &String| anstream::adapter::strip_str(line).to_string();
        let lines = if colours { lines } else { lines.iter().map(plain).collect() };
        screen.draw(&lines)?;
    }
}

fn colours() -> bool {
    anstream::AutoStream::choice(&std::io::stdout()) != anstream::ColorChoice::Never
}

/// What stands on a screen of this width and height.
fn frame(
    board: &Board,
    args: &Args,
    place: &str,
    (complete, trouble): (bool, Option<&str>),
    (width, height): (usize, usize),
) -> Vec<String> {
    let now = Utc::now();
    let rows = board.rows(&args.wanted);
    let state = match (complete, trouble) {
        (_, Some(error)) => {
            let text = format!("not connected, trying again: {}", line(error, 200));
            paint(&text, AnsiColor::Red.on_default())
        }
        (false, None) => "looking".into(),
        (true, None) => board.summary(&rows, &args.wanted),
    };
    let title = format!("khook · {place} · {} · {state}", now.format("%H:%M:%SZ"));
    let mut lines = vec![cut(&title, width)];
    let bold = Style::new().effects(Effects::BOLD);
    let table = render(&rows, args.wanted.all_namespaces, args.wide, now);
    for (number, row) in table.lines().enumerate() {
        let row = cut(row, width);
        lines.push(if number == 0 { paint(&row, bold) } else { row });
    }
    if lines.len() > height {
        // The title, the names of the columns and what is left out stay.
        let hidden = lines.len() - height + 1;
        lines.truncate(height.saturating_sub(1));
        lines.push(cut(&format!("… {hidden} more: make the terminal higher, or use --phase"), width));
        lines.truncate(height);
    }
    lines
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::hook::Hook;

    fn board(incidents: usize) -> Board {
        let entries: Vec<_> = (0..incidents)
            .map(|number| {
                json!({"id": format!("id-{number}"), "eventType": "oom-kill", "resourceName": format!("web-{number}"),
                    "status": "notified", "reason": "AgentCalled", "answer": "\u{1b}[2Jgone",
                    "firstSeen": "2026-01-01T00:00:00Z", "lastSeen": "2026-01-01T00:00:00Z"})
            })
            .collect();
        let hook: Hook = serde_json::from_value(json!({
            "apiVersion": "kagent.dev/v1alpha2", "kind": "Hook", "metadata": {"name": "shop", "namespace": "a"},
            "spec": {"eventConfigurations": []}, "status": {"activeEvents": entries},
        }))
        .unwrap();
        Board::of(vec![hook])
    }

    fn drawn(incidents: usize, size: (usize, usize)) -> Vec<String> {
        let args = Args { wanted: Wanted::default(), wide: false };
        frame(&board(incidents), &args, "a", (true, None), size)
    }

    #[test]
    fn a_frame_fits_its_terminal() {
        for size in [(80, 24), (20, 5), (1, 1), (300, 60)] {
            let lines = drawn(40, size);
            assert!(lines.len() <= size.1, "{} lines in {size:?}", lines.len());
            for line in &lines {
                assert!(super::super::output::width(line) <= size.0, "{line:?} in {size:?}");
            }
        }
        assert!(drawn(40, (80, 24))[23].starts_with("… 19 more"));
        assert_eq!(drawn(3, (80, 24)).len(), 5);
    }

    #[test]
    fn what_an_agent_says_does_not_clear_the_screen() {
        assert!(drawn(1, (200, 24)).iter().all(|line| !line.contains("\u{1b}[2J")));
    }
}
