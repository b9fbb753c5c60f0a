//! `antiphon dlq list`.

use std::io::Write as _;
use std::process::ExitCode;

use antiphon::dead_letters::{Collected, Entry, Keep, collect};

use super::flags::ListFlags;
use super::{Connected, Failed, print};
use crate::exit;

const HEAD: [&str; 9] =
    ["PLACE", "AGE", "CLASS", "METHOD", "KEY", "CORRELATION ID", "OUTCOME", "BESIDE", "REASON"];

/// Prints the letters that the flags ask for.
pub(super) async fn run(connected: &Connected, flags: &ListFlags) -> Result<ExitCode, Failed> {
    let filter = flags.filter.filter(&[], connected.now_ms)?;
    let keep = Keep::Newest(flags.limit as usize);
    let found = collect(&connected.cluster, &connected.topic, &filter, keep, connected.deadline).await?;
    let text = match flags.json {
        true => found
            .entries
            .iter()
            .map(|entry| format!("{}\n", print::to_json(&connected.topic.name, entry)))
            .collect::<String>(),
        false => render(connected, &found),
    };
    // A reader that has gone, as in `list | head`, is no failure.
    let _ = std::io::stdout().write_all(text.as_bytes());
    if found.more > 0 {
        eprintln!("antiphon: {} more; --limit shows more of them", found.more);
    }
    match connected.report(&found.scan) {
        true => Ok(ExitCode::SUCCESS),
        false => Ok(exit::UNAVAILABLE.into()),
    }
}

fn render(connected: &Connected, found: &Collected) -> String {
    let mut rows = vec![HEAD.map(str::to_owned).to_vec()];
    rows.extend(found.entries.iter().map(|entry| row(entry, connected.now_ms)));
    let done = found
        .entries
        .iter()
        .filter(|entry| entry.beside.late_reply.as_ref().is_some_and(|late| late.is_done()));
    let done = match done.count() {
        0 => String::new(),
        done => format!(", {done} of them done all the same"),
    };
    let letters = print::count(found.entries.len() as u64, "dead letter");
    format!("{}\n{letters} on {}{done}\n", print::table(&rows), connected.topic.name)
}

fn row(Entry { letter, beside }: &Entry, now_ms: i64) -> Vec<String> {
    let text = |text: Option<std::borrow::Cow<'_, str>>| {
        text.map_or_else(|| "-".to_owned(), |text| print::tame(&text))
    };
    vec![
        letter.place.to_string(),
        print::age(now_ms - letter.failed_at_ms()),
        letter.class().map_or("-", |class| class.as_str()).to_owned(),
        print::tame(&print::method_of(letter)),
        letter.key().unwrap_or_else(|| "-".to_owned()),
        letter.correlation_id().unwrap_or_else(|| "-".to_owned()),
        text(letter.outcome()),
        print::beside(beside),
        text(letter.reason()),
    ]
}
