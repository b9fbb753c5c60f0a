//! Composition of the configuration: flags over environment over file over the
//! options in the `.proto` files over defaults.
//!
//! The rooms own their `Config`s and know nothing of where values come from;
//! this room fills them, and is the only one that reads the environment.
//! Everything that is wrong is collected and refused in one go, before anything
//! is bound or connected to.
//!
//! ```text
//! file, environment, flags ──► layers of raw settings, each with its place
//!   sections: what there is  ──► values ──► resolve: bounds, what goes together ──► Config
//! ```

mod observers;
mod opentelemetry;
mod reply;
mod resolve;
mod sections;
mod security;

mod file;
mod flags;
mod layers;

mod kinds;
mod raw;

use std::ffi::OsString;
use std::path::Path;

pub use flags::Flags;

use crate::app;
use crate::route::{self, Mistakes, RouteTable};
use layers::Layers;
use resolve::Resolved;

/// Everything that a process is told before it starts.
#[derive(Debug, Clone)]
pub struct Config {
    /// Sections `[kafka]`, `[grpc]`, `[admin]`, `[limits]`, `[reply]`, `[drain]`
    /// and `shards`.
    pub gateway: app::Config,
    /// Section `[log]`.
    pub log: crate::telemetry::config::Config,
    /// Sections `[proto]`, `[service."..."]` and `[method."..."]`.
    pub routes: route::Sources,
}

/// Reads flags, environment and file.
///
/// # Errors
/// Everything that is wrong in any of them.
pub fn load(flags: &Flags) -> Result<Config, Mistakes> {
    let mut mistakes = Mistakes::default();
    let resolved = read(flags, &variables(), &mut mistakes);
    mistakes.or(resolved.config)
}

/// Reads flags, environment and file, and makes the route table of what they
/// name, so that the mistakes of all come in one list.
///
/// # Errors
/// Everything that is wrong in any of them.
pub fn load_with_routes(flags: &Flags) -> Result<(Config, RouteTable), Mistakes> {
    load_with_routes_from(flags, &variables())
}

fn load_with_routes_from(
    flags: &Flags,
    variables: &[(OsString, OsString)],
) -> Result<(Config, RouteTable), Mistakes> {
    let mut mistakes = Mistakes::default();
    let resolved = read(flags, variables, &mut mistakes);
    if !resolved.sources_complete {
        return Err(mistakes.sorted());
    }
    match route::compile(&resolved.config.routes) {
        Ok(table) => {
            security::check_rules(&resolved.config, &table, resolved.access_place, &mut mistakes);
            mistakes.or((resolved.config, table))
        }
        Err(of_routes) => {
            mistakes.extend(of_routes);
            Err(mistakes.sorted())
        }
    }
}

/// Checks what stands in a configuration file by itself: its form, its names,
/// kinds and bounds, and what must come together. Nothing outside of the text is
/// looked at: neither the files nor the hosts that it names.
///
/// # Errors
/// Everything that is wrong in it.
pub fn check_text(text: &str) -> Result<Config, Mistakes> {
    let (mut layers, mut mistakes) = (Layers::default(), Mistakes::default());
    file::read_text(Path::new("configuration"), text, &mut layers, &mut mistakes);
    layers.leave_out_what_is_outside(&mut mistakes);
    let resolved = resolve::resolve(layers, &mut mistakes);
    mistakes.or(resolved.config)
}

fn variables() -> Vec<(OsString, OsString)> {
    std::env::vars_os().collect()
}

fn read(flags: &Flags, variables: &[(OsString, OsString)], mistakes: &mut Mistakes) -> Resolved {
    let mut layers = Layers::default();
    if let Some(path) = layers::file_path(flags, variables) {
        file::read(&path, &mut layers, mistakes);
    }
    layers.layers.insert(0, opentelemetry::layer(variables, mistakes));
    layers.layers.push(layers::environment(variables, mistakes));
    layers.layers.push(layers::flags(flags));
    resolve::resolve(layers, mistakes)
}

/// One setting, for the configuration reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReferenceRow {
    /// Section in the TOML file; empty at its top.
    pub section: &'static str,
    /// Name within the section.
    pub name: &'static str,
    /// Environment variable.
    pub variable: String,
    /// Flag, where there is one.
    pub flag: Option<&'static str>,
    /// What it takes.
    pub kind: &'static str,
    /// What holds when it is not set; empty for nothing.
    pub default: &'static str,
    /// What it is for.
    pub doc: &'static str,
}

/// Every setting but those of `[service]` and `[method]`, which are the fields
/// of `antiphon.v1.KafkaOptions`.
pub fn reference() -> Vec<ReferenceRow> {
    let row = |row: &sections::Row| ReferenceRow {
        section: row.section,
        name: row.name,
        variable: row.variable(),
        flag: layers::FLAGS.iter().find(|f| (f.0, f.1) == (row.section, row.name)).map(|f| f.2),
        kind: row.kind,
        default: row.default,
        doc: row.doc.trim(),
    };
    sections::ROWS.iter().map(row).collect()
}

#[cfg(test)]
mod tests;
