//! Rules that matter are tests: which room may know which, what is named
//! where, and how files look. Reads the source as text.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Every Rust file below `folder`, with its path from the root and its text.
fn sources(folder: &str) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let name = path.strip_prefix(root()).unwrap().to_str().unwrap().to_owned();
                found.push((name, fs::read_to_string(&path).unwrap()));
            }
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found
}

/// The code of a file without comments, strings left as they are.
fn code(text: &str) -> String {
    text.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

/// The part of a file that is compiled into the product.
fn product_code(text: &str) -> String {
    let code = code(text);
    code.split("#[cfg(test)]\nmod ").next().unwrap_or_default().to_owned()
}

/// Rooms by layer, read off `lib.rs`: a comment line starts a layer.
fn layers() -> Vec<(String, Vec<String>)> {
    let text = fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let mut layers: Vec<(String, Vec<String>)> = Vec::new();
    for line in text.lines() {
        if let Some(name) = line.strip_prefix("// ") {
            layers.push((name.trim_end_matches('.').to_owned(), Vec::new()));
        } else if let Some(room) = line.strip_prefix("pub mod ") {
            let room = room.trim_end_matches(';').to_owned();
            layers.last_mut().expect("a layer's name comes first").1.push(room);
        }
    }
    layers
}

fn room_of(file: &str) -> &str {
    let below = file.strip_prefix("src/").unwrap();
    below.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Words, pure rooms and the composition may build on each other; elsewhere a
/// room knows only lower layers. The pairs are exceptions, each with its reason
/// in ARCHITECTURE.md.
#[test]
fn rooms_know_only_what_is_below_them() {
    const WITHIN_LAYER: [&str; 3] = ["Words", "Pure", "Composition"];
    const BESIDE: [(&str, &str); 4] =
        [("admin", "ingress"), ("admin", "telemetry"), ("why", "dead_letters"), ("console", "admin")];

    let layers = layers();
    let mut place = BTreeMap::new();
    for (layer, (_, rooms)) in layers.iter().enumerate() {
        for room in rooms {
            place.insert(room.clone(), layer);
        }
    }
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        if file.starts_with("src/bin/") || file == "src/lib.rs" {
            continue;
        }
        let room = room_of(&file);
        let layer = place[room];
        for used in rooms_used(&product_code(&text)) {
            let Some(&used_layer) = place.get(&used) else { continue };
            let within = WITHIN_LAYER.contains(&layers[layer].0.as_str());
            let allowed = used == room
                || used_layer < layer
                || (used_layer == layer && within)
                || BESIDE.contains(&(room, used.as_str()));
            if !allowed {
                wrong.push(format!(
                    "{file}: {room} ({}) uses {used} ({})",
                    layers[layer].0, layers[used_layer].0
                ));
            }
        }
    }
    assert!(wrong.is_empty(), "rooms that know too much:\n{}", wrong.join("\n"));
}

fn rooms_used(code: &str) -> BTreeSet<String> {
    code.split("crate::")
        .skip(1)
        .flat_map(|rest| {
            // `crate::{a, b::c}` names several.
            let list =
                rest.strip_prefix('{').map_or(rest, |braced| braced.split('}').next().unwrap_or_default());
            let several = rest.starts_with('{');
            let first = list.split(|c: char| !(c.is_alphanumeric() || c == '_')).next().unwrap_or_default();
            if several {
                list.split(',')
                    .map(|part| part.trim().split("::").next().unwrap_or_default().to_owned())
                    .collect::<Vec<_>>()
            } else {
                vec![first.to_owned()]
            }
        })
        .filter(|name| !name.is_empty())
        .collect()
}

/// Who may say what.
#[test]
fn each_name_stays_in_its_rooms() {
    let rules: [(&str, &[&str]); 9] = [
        ("rdkafka::", &["src/worker/"]),
        ("rskafka::", &["src/kafka/"]),
        ("tonic::", &["src/ingress/", "src/admin/", "src/bin/"]),
        ("tonic::Status", &["src/ingress/", "src/bin/antiphon/bench/echo_server.rs"]),
        ("kafka_protocol", &["src/dev_broker/", "src/kafka/"]),
        ("tokio::spawn", &["src/supervisor.rs", "src/dev_broker/"]),
        ("thread::spawn", &["src/supervisor.rs"]),
        ("thread::Builder", &["src/supervisor.rs"]),
        ("env::var", &["src/config/"]),
    ];
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        let code = product_code(&text);
        for (name, rooms) in rules {
            if code.contains(name) && !rooms.iter().any(|room| file.starts_with(room)) {
                wrong.push(format!("{file} names {name}; only {rooms:?} may"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Our errors become a `Status` in `ingress/status.rs`; what else makes one in
/// the edge says what is wrong with the HTTP request itself.
#[test]
fn failures_become_a_status_in_one_file() {
    for (file, text) in sources("src") {
        if file == "src/ingress/status.rs" {
            continue;
        }
        let code = product_code(&text);
        for name in [
            "Status::with_details",
            "Status::with_metadata",
            "Status::unavailable",
            "Status::deadline_exceeded",
        ] {
            assert!(!code.contains(name), "{file} makes a status: {name}");
        }
    }
}

#[test]
fn every_file_says_what_it_is_for_and_stays_readable() {
    const LINES_MAX: usize = 700;
    const FUNCTION_LINES_MAX: usize = 75;
    let mut wrong = Vec::new();
    for (file, text) in sources("src") {
        if !text.starts_with("//!") {
            wrong.push(format!("{file}: no //! at the top"));
        }
        let product_lines = product_code(&text).lines().count();
        if product_lines > LINES_MAX {
            wrong.push(format!("{file}: {product_lines} lines; at most {LINES_MAX}"));
        }
        for (name, lines) in functions(&product_code(&text)) {
            if lines > FUNCTION_LINES_MAX {
                wrong.push(format!("{file}: fn {name} has {lines} lines; at most {FUNCTION_LINES_MAX}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Name and length of each function, by the indentation that rustfmt gives.
fn functions(code: &str) -> Vec<(String, usize)> {
    let mut found = Vec::new();
    let mut open: Vec<(String, usize, usize)> = Vec::new();
    for (number, line) in code.lines().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let trimmed = line.trim_start();
        let words: Vec<&str> = trimmed.split_whitespace().collect();
        if let Some(at) = words.iter().position(|word| *word == "fn")
            && words[..at]
                .iter()
                .all(|word| ["pub", "async", "const", "unsafe"].contains(word) || word.starts_with("pub("))
            && let Some(name) = words.get(at + 1)
        {
            let name = name.split(['(', '<']).next().unwrap_or_default();
            open.push((name.to_owned(), indent, number));
        }
        // A declaration without a body, as in a trait.
        if trimmed.ends_with(';') && open.last().is_some_and(|(_, i, _)| *i == indent) {
            open.pop();
        }
        if trimmed == "}"
            && let Some(at) = open.iter().rposition(|(_, i, _)| *i == indent)
        {
            let (name, _, start) = open.swap_remove(at);
            found.push((name, number - start + 1));
        }
    }
    found
}

#[test]
fn nothing_unfinished_or_switched_off_is_left() {
    let words = ["todo!(", "unimplemented!(", "FIXME", "XXX", "#[ignore", "allow(dead_code)"];
    for folder in ["src", "tests"] {
        for (file, text) in sources(folder) {
            if file == "tests/tidy.rs" {
                continue;
            }
            for word in words {
                assert!(!text.contains(word), "{file} has {word}");
            }
        }
    }
}

/// The README's first two commands are what they are said to be.
#[test]
fn the_readme_and_the_files_it_names_agree() {
    let readme = fs::read_to_string(root().join("README.md")).unwrap();
    assert!(readme.contains("cargo run --release -- demo"), "the first command");
    assert!(readme.contains("cargo test"), "the second command");
    let ci = fs::read_to_string(root().join(".ci/run")).unwrap();
    assert!(ci.contains("cargo test"), ".ci/run calls the README's test command");
    for link in readme.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
        let file = link.split('#').next().unwrap();
        let outside = file.contains("://") || file.is_empty();
        assert!(
            outside || Path::new(&root().join(file)).exists(),
            "README links to {file}, which is not there"
        );
    }
}

/// The table in `docs/metrics.md` is the code's, word for word.
#[test]
fn the_metrics_reference_is_the_codes() {
    let page = fs::read_to_string(root().join("docs/metrics.md")).unwrap();
    let table = antiphon::metrics::table();
    assert!(page.contains(&table), "docs/metrics.md should have this table:\n{table}");
}

/// `docs/configuration.md` has every setting, with the code's default.
#[test]
fn the_configuration_reference_is_the_codes() {
    let page = fs::read_to_string(root().join("docs/configuration.md")).unwrap();
    let mut wrong = Vec::new();
    for row in antiphon::config::reference() {
        let cells = format!("| `{}` | `{}`", row.name, row.variable);
        let Some(line) = page.lines().find(|line| line.starts_with(&cells)) else {
            wrong.push(format!("{} is missing", row.variable));
            continue;
        };
        let default = row.default.replace('`', "");
        if !default.is_empty() && !line.replace('`', "").contains(&format!("| {default} |")) {
            wrong.push(format!("{}: the page lacks its default {default:?}", row.variable));
        }
    }
    assert!(wrong.is_empty(), "docs/configuration.md:\n{}", wrong.join("\n"));
}
