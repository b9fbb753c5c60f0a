//! `antiphon dlq purge`.

use std::process::ExitCode;

use antiphon::dead_letters::{Before, parse_when, plan_purge, purge};

use super::flags::PurgeFlags;
use super::{Connected, Failed, print};
use crate::exit;

/// Throws away what lies before the place that the flags name.
pub(super) async fn run(connected: &Connected, flags: &PurgeFlags) -> Result<ExitCode, Failed> {
    if !connected.is_for_dead_letters() && !flags.any_topic {
        let what = format!(
            "{} is not known to hold dead letters; --any-topic purges it all the same",
            connected.topic.name
        );
        return Err(Failed::usage(what));
    }
    let before = before(&flags.before, connected.now_ms)?;
    let plan =
        plan_purge(&connected.cluster, &connected.topic, flags.partition, before, connected.deadline).await?;
    let real = flags.yes && !flags.dry_run;
    let (mut total, mut failed) = (0, 0);
    for part in &plan {
        let is_whole = connected.report(&part.scan);
        let range = format!("{}/{}: {} to {}", connected.topic.name, part.partition, part.start, part.before);
        let count = print::count(part.offsets().unsigned_abs(), "record");
        if !real || part.offsets() <= 0 {
            println!("{range}, {count}");
            total += part.offsets();
            failed += u32::from(!is_whole);
            continue;
        }
        match purge(&connected.cluster, &connected.topic, part).await {
            Ok(()) => {
                println!("{range}, {count} gone");
                total += part.offsets();
                failed += u32::from(!is_whole);
            }
            Err(error) => {
                eprintln!("antiphon: {error}");
                failed += 1;
            }
        }
    }
    let count = print::count(total.unsigned_abs(), "record");
    match (real, flags.dry_run) {
        (true, _) => eprintln!("antiphon: {count} thrown away"),
        (false, true) => eprintln!("antiphon: {count} would be thrown away"),
        (false, false) => {
            return Err(Failed::usage(format!("{count} would be thrown away; --yes does it")));
        }
    }
    Ok(if failed > 0 { exit::UNAVAILABLE.into() } else { ExitCode::SUCCESS })
}

fn before(text: &str, now_ms: i64) -> Result<Before, Failed> {
    if text == "end" {
        return Ok(Before::End);
    }
    if let Ok(offset) = text.parse::<i64>() {
        return Ok(Before::Offset(offset));
    }
    let time = parse_when(text, now_ms)
        .map_err(|error| Failed::usage(format!("{error}; or an offset, or \"end\"")))?;
    Ok(Before::TimeMs(time))
}
