//! The TOML file: where everything in it stands, and what it has no place for.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::ops::Range;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeInteger, DeString, DeTable, DeValue};

use super::layers::{Layer, Layers};
use super::raw::{FromRaw, Place, Raw, Value};
use super::sections::{ROWS, Row};
use crate::route::{DURATION_HINT, Mistake, Mistakes, Origin, Overlay, Settings, Sourced, did_you_mean};

/// A key with its value.
type Entry<'t, 'i> = (&'t Spanned<DeString<'i>>, &'t Spanned<DeValue<'i>>);

/// Reads the file into the weakest layer.
pub(super) fn read(path: &Path, layers: &mut Layers, mistakes: &mut Mistakes) {
    match std::fs::read_to_string(path) {
        Ok(text) => read_text(path, &text, layers, mistakes),
        Err(error) => {
            let at = Origin::of_file(path);
            layers.unread = true;
            mistakes.push(match error.kind() {
                ErrorKind::NotFound => at.mistake("no such file"),
                ErrorKind::InvalidData => at.mistake("is not UTF-8"),
                _ => at.mistake(format!("can't be read: {error}")),
            });
        }
    }
}

/// Reads what stands in the file.
pub(super) fn read_text(path: &Path, text: &str, layers: &mut Layers, mistakes: &mut Mistakes) {
    let at = Origin::of_file(path);
    let (table, errors) = DeTable::parse_recoverable(text);
    let base = path.parent().map(Path::to_owned).unwrap_or_default();
    let mut reader = Reader { path, base, text, layers, mistakes, layer: Layer::default() };
    if errors.is_empty() {
        reader.top(table.get_ref());
    } else {
        reader.layers.unread = true;
        for error in errors {
            let origin = error.span().map_or_else(|| at.clone(), |span| reader.origin(&span));
            // The message alone: the error's own form shows the line, which
            // may hold a password.
            reader.mistakes.push(origin.mistake(error.message()));
        }
    }
    let layer = reader.layer;
    layers.layers.push(layer);
}

struct Reader<'a> {
    path: &'a Path,
    base: PathBuf,
    text: &'a str,
    layers: &'a mut Layers,
    mistakes: &'a mut Mistakes,
    layer: Layer,
}

impl Reader<'_> {
    fn top(&mut self, table: &DeTable<'_>) {
        for entry in table.iter() {
            let key: &str = entry.0.get_ref();
            match key {
                "service" => self.overlays(entry, true),
                "method" => self.overlays(entry, false),
                _ => self.entry("", entry),
            }
        }
    }

    /// One key of a section: a setting, a section within, or a mistake.
    fn entry(&mut self, section: &'static str, (key, value): Entry<'_, '_>) {
        let name: &str = key.get_ref();
        let path = if section.is_empty() { name.to_owned() } else { format!("{section}.{name}") };
        let place = Place { origin: self.origin(&key.span()), label: path.clone() };
        if let Some(row) = ROWS.iter().find(|row| row.section == section && row.name == name) {
            let raw = self.raw(path, value);
            self.layer.0.insert((row.section, row.name), raw);
        } else if let Some(inner) = ROWS.iter().map(|row| row.section).find(|section| *section == path) {
            match value.get_ref().as_table() {
                Some(table) => {
                    self.layers.sections.insert(inner, place);
                    table.iter().for_each(|entry| self.entry(inner, entry));
                }
                None => self.mistakes.push(place.mistake("expected a table").hint(format!("[{path}]"))),
            }
        } else {
            self.mistakes.push(unknown(section, name, value.get_ref(), &place));
        }
    }

    /// `[service."..."]` or `[method."..."]`.
    fn overlays(&mut self, (key, value): Entry<'_, '_>, of_services: bool) {
        let kind: &str = key.get_ref();
        let place = Place { origin: self.origin(&key.span()), label: kind.to_owned() };
        let Some(table) = value.get_ref().as_table() else {
            let example = if of_services { "pkg.Service" } else { "pkg.Service/Method" };
            self.mistakes.push(place.mistake("expected a table").hint(format!("[{kind}.{example:?}]")));
            return;
        };
        let mut overlays = BTreeMap::new();
        for (name, value) in table.iter() {
            let origin = self.origin(&name.span());
            let label = format!("{kind}.{:?}", name.get_ref());
            if let Some(mistake) = unquoted(kind, name.get_ref(), value.get_ref(), &origin) {
                self.mistakes.push(mistake);
            } else if let Some(table) = value.get_ref().as_table() {
                let settings = self.settings(&label, table);
                let name = name.get_ref().strip_prefix('/').unwrap_or(name.get_ref());
                overlays.insert(name.to_owned(), Overlay { origin, settings });
            } else {
                self.mistakes.push(Place { origin, label }.mistake("expected a table"));
            }
        }
        match of_services {
            true => self.layers.services = overlays,
            false => self.layers.methods = overlays,
        }
    }

    fn settings(&mut self, label: &str, table: &DeTable<'_>) -> Settings {
        let mut settings = Settings::default();
        for (key, value) in table.iter() {
            let name: &str = key.get_ref();
            let raw = self.raw(format!("{label}.{name}"), value);
            if let Some(set) = SETTERS.iter().find(|(known, _)| *known == name) {
                if let Err(mistake) = (set.1)(&mut settings, &raw) {
                    let hint = name.starts_with("timeout").then(|| DURATION_HINT.to_owned());
                    self.mistakes.push(mistake.maybe_hint(hint));
                }
                continue;
            }
            let place = Place { origin: self.origin(&key.span()), label: format!("{label}.{name}") };
            let hint = did_you_mean(name, Settings::NAMES.iter().copied());
            self.mistakes.push(place.mistake("unknown setting").maybe_hint(hint));
        }
        settings
    }

    fn raw(&self, label: String, value: &Spanned<DeValue<'_>>) -> Raw {
        let place = Place { origin: self.origin(&value.span()), label };
        let value = match value.get_ref() {
            DeValue::String(text) => Value::Text(text.to_string()),
            DeValue::Integer(number) => {
                integer(number).map_or(Value::Other("an integer of more than 64 bits"), Value::Integer)
            }
            DeValue::Boolean(yes) => Value::Bool(*yes),
            DeValue::Float(number) => {
                number.as_str().replace('_', "").parse().map_or(Value::Other("a float"), Value::Float)
            }
            DeValue::Datetime(_) => Value::Other("a date"),
            DeValue::Table(_) => Value::Other("a table"),
            DeValue::Array(items) => {
                Value::List(items.iter().map(|item| self.raw(place.label.clone(), item)).collect())
            }
        };
        Raw { value, place, base: self.base.clone() }
    }

    fn origin(&self, span: &Range<usize>) -> Origin {
        let before = self.text.get(..span.start).unwrap_or(self.text);
        let line_start = before.rfind('\n').map_or(0, |newline| newline + 1);
        Origin {
            file: Some(self.path.to_owned()),
            line: Some(before.matches('\n').count() + 1),
            column: Some(before.get(line_start..).unwrap_or_default().chars().count() + 1),
        }
    }
}

fn integer(number: &DeInteger<'_>) -> Option<i64> {
    i64::from_str_radix(number.as_str(), number.radix()).ok()
}

fn unknown(section: &str, name: &str, value: &DeValue<'_>, place: &Place) -> Mistake {
    let names = ROWS.iter().filter(|row| row.section == section).map(|row| row.name);
    let inner = ROWS.iter().filter_map(|row| match section {
        "" => row.section.split('.').next().filter(|first| !first.is_empty()),
        _ => row.section.strip_prefix(section)?.strip_prefix('.'),
    });
    let overlays = ["service", "method"].into_iter().filter(|_| section.is_empty());
    let what = if value.is_table() { "unknown section" } else { "unknown setting" };
    let near = did_you_mean(name, names.chain(inner).chain(overlays));
    let elsewhere = || {
        let found: Vec<&Row> = ROWS.iter().filter(|row| row.name == name && row.section != section).collect();
        (found.len() == 1 && !value.is_table()).then(|| format!("{name} belongs into [{}]", found[0].section))
    };
    place.mistake(what).maybe_hint(near.or_else(elsewhere))
}

/// `[service.payments.v1.PaymentService]`, which TOML takes for four tables.
fn unquoted(kind: &str, name: &str, value: &DeValue<'_>, origin: &Origin) -> Option<Mistake> {
    let mut path = name.to_owned();
    let mut table = value.as_table()?;
    while let Some((key, inner)) =
        table.iter().find_map(|(key, inner)| Some((key, inner.get_ref().as_table()?)))
    {
        path = format!("{path}.{}", key.get_ref());
        table = inner;
    }
    (path != name).then(|| {
        let what = format!("{kind}.{path}: the name must be in quotes");
        origin.mistake(what).hint(format!("[{kind}.{path:?}]"))
    })
}

/// Sets one field from a raw value.
type Setter = fn(&mut Settings, &Raw) -> Result<(), Mistake>;

fn sourced<T: FromRaw>(raw: &Raw) -> Result<Option<Sourced<T>>, Mistake> {
    Ok(Some(Sourced::new(T::from_raw(raw)?, raw.place.origin.clone())))
}

macro_rules! setters {
    ($($name:ident),+) => {
        &[$((stringify!($name), |settings, raw| { settings.$name = sourced(raw)?; Ok(()) })),+]
    };
}

const SETTERS: &[(&str, Setter)] = setters![
    request_topic,
    key,
    partition,
    timeout,
    timeout_max,
    mode,
    dialect,
    correlation_form,
    format,
    json_names,
    json_defaults,
    schema_subject,
    compression,
    partition_field,
    dead_letter_on,
    dead_letter_topic,
    cancel_record,
    in_flight_max,
    replies,
    until_last,
    partial_on_timeout,
    replies_field,
    skip_errors,
    replies_max
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_setting_of_a_route_can_be_set() {
        let names: Vec<&str> = SETTERS.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, Settings::NAMES);
    }
}
