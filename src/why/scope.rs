//! Which topics a search looks at.

use std::collections::BTreeSet;

use super::Error;
use crate::dead_letters::SUFFIXES;
use crate::route::RouteTable;

/// Topics to look at.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Scope {
    /// Those with requests.
    pub request_topics: Vec<String>,
    /// Those with their dead letters.
    pub dead_letter_topics: Vec<String>,
}

/// The topics that were named, with those of the routes, or all that may hold
/// requests; only those of `existing`. A topic that was named must exist.
pub fn scope(
    routes: Option<&RouteTable>,
    existing: &BTreeSet<String>,
    reply_prefix: &str,
    named: BTreeSet<String>,
    of_record: impl IntoIterator<Item = String>,
) -> Result<Scope, Error> {
    let mut requests = named;
    if let Some(missing) = requests.iter().find(|topic| !existing.contains(*topic)) {
        return Err(Error::NoTopic(missing.clone()));
    }
    requests.extend(of_record);
    let mut letters = BTreeSet::new();
    // Named topics narrow the search of what the routes have.
    let only_named = !requests.is_empty();
    for route in routes.iter().flat_map(|routes| routes.routes()) {
        if only_named && !requests.contains(&*route.request_topic) {
            continue;
        }
        requests.insert(route.request_topic.to_string());
        letters.insert(route.dead_letter_topic.to_string());
    }
    let is_for_letters = |topic: &str| SUFFIXES.iter().any(|suffix| topic.ends_with(suffix));
    if requests.is_empty() {
        let others = existing.iter().filter(|topic| {
            !topic.starts_with('_') && !topic.starts_with(reply_prefix) && !is_for_letters(topic)
        });
        requests.extend(others.cloned());
    }
    for topic in &requests {
        letters.extend(SUFFIXES.iter().map(|suffix| format!("{topic}{suffix}")));
    }
    requests.retain(|topic| existing.contains(topic) && !letters.contains(topic));
    letters.retain(|topic| existing.contains(topic));
    Ok(Scope {
        request_topics: requests.into_iter().collect(),
        dead_letter_topics: letters.into_iter().collect(),
    })
}
