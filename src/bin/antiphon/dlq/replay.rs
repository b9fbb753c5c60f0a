//! `antiphon dlq replay`.

use std::io::{IsTerminal as _, Write as _};
use std::process::ExitCode;

use antiphon::dead_letters::{
    Collected, Entry, Keep, Prepared, ReplayOptions, Replayer, Sent, collect, fetch_one,
};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::time::Instant;

use super::flags::ReplayFlags;
use super::{Connected, Failed, print};
use crate::exit;

/// What became of the letters.
#[derive(Debug, Default)]
struct Tally {
    sent: u64,
    refused: u64,
    unknown: u64,
    failed: u64,
    left: u64,
}

impl Tally {
    fn code(&self) -> ExitCode {
        let nothing_done = self.sent == 0 && self.refused > 0;
        if self.unknown + self.failed + self.left > 0 || nothing_done {
            return exit::DATA.into();
        }
        ExitCode::SUCCESS
    }
}

/// Sends the requests that the flags ask for once more.
pub(super) async fn run(connected: &Connected, flags: &ReplayFlags) -> Result<ExitCode, Failed> {
    let filter = flags.filter.filter(&flags.which, connected.now_ms)?;
    if filter.is_empty() && !flags.all {
        return Err(Failed::usage("which ones? Name places or correlation ids, set a filter, or say --all"));
    }
    let keep = Keep::Oldest(flags.limit as usize);
    let mut found = collect(&connected.cluster, &connected.topic, &filter, keep, connected.deadline).await?;
    found.in_original_order();
    let whole = connected.report(&found.scan);
    if !whole {
        // A late reply may lie where nothing was read.
        let what = "nothing was sent: what was not read may tell that a request was carried out";
        return Err(Failed(format!("{what}; --timeout gives more time"), exit::UNAVAILABLE));
    }
    if found.more > 0 {
        eprintln!("antiphon: {} more are left for another run (--limit)", found.more);
    }
    let options = ReplayOptions {
        even_if_done: flags.even_if_done,
        again: flags.again,
        deadline: flags.deadline,
        compression: Some(connected.compression),
        by: flags.by.clone(),
    };
    let replayer = Replayer::new(&connected.cluster, &connected.topics, options);
    let willing =
        found.entries.iter().filter(|entry| replayer.judge(&entry.letter, &entry.beside).is_ok()).count();
    if !flags.dry_run && !flags.yes && (willing > 1 || std::io::stdin().is_terminal()) {
        let requests = print::count(willing as u64, "request");
        return Err(Failed::usage(format!(
            "{requests} would be sent; --dry-run shows them, --yes sends them"
        )));
    }
    let mut run = Run { connected, flags, replayer, tally: Tally::default() };
    run.all(&found).await;
    Ok(run.summary())
}

struct Run<'a> {
    connected: &'a Connected,
    flags: &'a ReplayFlags,
    replayer: Replayer<'a>,
    tally: Tally,
}

impl Run<'_> {
    /// One after the other, in the order of the requests, so that those of one
    /// key stay in order. An interrupt ends it between two.
    async fn all(&mut self, found: &Collected) {
        let bar = self.bar(found.entries.len() as u64);
        let mut interrupted = std::pin::pin!(tokio::signal::ctrl_c());
        let mut next = Instant::now();
        for (n, entry) in found.entries.iter().enumerate() {
            tokio::select! {
                biased;
                _ = &mut interrupted => {
                    self.tally.left = (found.entries.len() - n) as u64;
                    break;
                }
                () = tokio::time::sleep_until(next) => {}
            }
            let is_tried = self.one(entry, &bar).await;
            bar.inc(1);
            if let Some(pause) = self.flags.rate.filter(|_| is_tried) {
                next = Instant::now().max(next + pause);
            }
        }
        bar.finish_and_clear();
    }

    fn bar(&self, letters: u64) -> ProgressBar {
        if self.flags.dry_run || !std::io::stderr().is_terminal() {
            return ProgressBar::hidden();
        }
        let style = ProgressStyle::with_template("{bar:40} {pos}/{len} {per_sec} {eta}");
        ProgressBar::new(letters).with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
    }

    /// `true`: it was sent, or tried to be.
    async fn one(&mut self, entry: &Entry, bar: &ProgressBar) -> bool {
        let refused = |what: String| ("refused", what);
        let prepared = match self.replayer.judge(&entry.letter, &entry.beside) {
            Err(refusal) => Err(refused(refusal.to_string())),
            Ok(()) => {
                match fetch_one(&self.connected.cluster, &self.connected.topic, entry.letter.place).await {
                    Ok(Some(whole)) => {
                        let prepared = self.replayer.prepare(&whole, &entry.beside);
                        prepared.map_err(|refusal| refused(refusal.to_string()))
                    }
                    Ok(None) => Err(("failed", "it is not there any more".to_owned())),
                    Err(error) => Err(("failed", error.to_string())),
                }
            }
        };
        let prepared = match prepared {
            Ok(prepared) => prepared,
            Err((word, why)) => {
                match word {
                    "refused" => self.tally.refused += 1,
                    _ => self.tally.failed += 1,
                }
                self.say(bar, entry, word, None, &why);
                return false;
            }
        };
        if self.flags.dry_run {
            self.tally.sent += 1;
            self.say(bar, entry, "would be sent", Some(&prepared), "");
            return false;
        }
        self.send(entry, &prepared, bar).await;
        true
    }

    async fn send(&mut self, entry: &Entry, prepared: &Prepared, bar: &ProgressBar) {
        let sent = self.replayer.send(prepared).await;
        let (word, why) = match &sent {
            Sent::Sent(offset) => {
                self.tally.sent += 1;
                ("sent", offset.map_or_else(String::new, |offset| format!("offset {offset}")))
            }
            Sent::Unknown(why) => {
                self.tally.unknown += 1;
                ("unknown", format!("it may be in the log, and was not repeated: {why}"))
            }
            Sent::NotSent(why) => {
                self.tally.failed += 1;
                ("failed", why.clone())
            }
        };
        self.say(bar, entry, word, Some(prepared), &why);
        if matches!(sent, Sent::NotSent(_)) {
            return;
        }
        let noted = self.replayer.note(&self.connected.topic, &entry.letter, prepared, &sent).await;
        if let Sent::NotSent(why) | Sent::Unknown(why) = noted {
            let place = entry.letter.place;
            bar.suspend(|| eprintln!("antiphon: the replay of {place} could not be noted beside it: {why}"));
        }
    }

    fn say(&self, bar: &ProgressBar, entry: &Entry, word: &str, prepared: Option<&Prepared>, why: &str) {
        let letter = &entry.letter;
        let to = prepared.map(|prepared| format!("{}/{}", prepared.topic, prepared.partition));
        let changes = prepared.map(|prepared| prepared.changes.as_slice()).unwrap_or_default();
        let line = if self.flags.json {
            json!({
                "place": letter.place.to_string(),
                "correlation_id": letter.correlation_id(),
                "result": word,
                "to": to,
                "replay": prepared.map(|prepared| prepared.count),
                "changes": changes,
                "detail": why,
            })
            .to_string()
        } else {
            let id = letter.correlation_id().unwrap_or_else(|| "-".to_owned());
            let to = to.map(|to| format!(" to {to}")).unwrap_or_default();
            let mut rest = changes.join(", ");
            if !why.is_empty() {
                rest = if rest.is_empty() { why.to_owned() } else { format!("{why}; {rest}") };
            }
            let rest = if rest.is_empty() { rest } else { format!(": {}", print::tame(&rest)) };
            format!("{} {id} {word}{to}{rest}", letter.place)
        };
        bar.suspend(|| {
            let _ = writeln!(std::io::stdout(), "{line}");
        });
    }

    fn summary(&self) -> ExitCode {
        let Tally { sent, refused, unknown, failed, left } = self.tally;
        let word = if self.flags.dry_run { "would be sent" } else { "sent" };
        let mut parts = vec![format!("{sent} {word}"), format!("{refused} refused")];
        let others = [(unknown, "unknown"), (failed, "failed"), (left, "left when interrupted")];
        parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, word)| format!("{n} {word}")));
        eprintln!("antiphon: {} on {}", parts.join(", "), self.connected.topic.name);
        self.tally.code()
    }
}
