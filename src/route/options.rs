//! The options `antiphon.v1.kafka` and `antiphon.v1.kafka_defaults`, and the
//! places in the `.proto` where they are.

use std::cell::RefCell;
use std::collections::HashMap;
use std::path::{Path, PathBuf};

use prost_reflect::{DynamicMessage, MethodDescriptor, ServiceDescriptor, Value};
use prost_types::FileDescriptorProto;

use super::mistake::{Mistakes, Origin};
use super::settings::{Settings, Sourced};

const METHOD_EXTENSION: &str = "antiphon.v1.kafka";
const SERVICE_EXTENSION: &str = "antiphon.v1.kafka_defaults";
/// Field numbers of `options` in `MethodDescriptorProto` and
/// `ServiceDescriptorProto`.
const METHOD_OPTIONS: i32 = 4;
const SERVICE_OPTIONS: i32 = 3;

/// The source texts of `.proto` files, by the names that descriptors have for
/// them, so that a mistake can be shown where it was written.
#[derive(Debug, Default)]
pub(super) struct Texts {
    pub(super) files: HashMap<String, Text>,
    /// Places of declarations and options by file and path, indexed when a
    /// file is first asked for: a search for each would take quadratic time.
    spans: RefCell<HashMap<String, HashMap<Vec<i32>, Span>>>,
}

/// One source file.
#[derive(Debug)]
pub(super) struct Text {
    /// As the user wrote it.
    pub(super) path: PathBuf,
    pub(super) lines: Vec<String>,
}

impl Texts {
    /// Where a descriptor's file is on disk, or its name.
    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.files.get(name).map_or_else(|| Path::new(name).to_owned(), |text| text.path.clone())
    }

    /// The first place at or after a line at which a file has this word, lines
    /// and columns from 0.
    pub(super) fn find(&self, file: &str, line: usize, word: &str) -> Option<(usize, usize)> {
        let lines = self.files.get(file)?.lines.get(line..)?.iter().enumerate();
        lines
            .map(|(after, text)| (line + after, text))
            .find_map(|(line, text)| Some((line, find_word(text, word)?)))
    }

    fn span(&self, file: &FileDescriptorProto, path: &[i32]) -> Option<Span> {
        if let Some(spans) = self.spans.borrow().get(file.name()) {
            return spans.get(path).copied();
        }
        let locations = file.source_code_info.iter().flat_map(|info| &info.location);
        let spans = locations.filter_map(|location| Some((location.path.clone(), Span::of(&location.span)?)));
        let spans: HashMap<_, _> = spans.collect();
        let found = spans.get(path).copied();
        self.spans.borrow_mut().insert(file.name().to_owned(), spans);
        found
    }
}

/// What a service's options set for its methods.
pub(super) fn of_service(service: &ServiceDescriptor, texts: &Texts, mistakes: &mut Mistakes) -> Settings {
    let options = service.options();
    let place = Place {
        file: service.parent_file_descriptor_proto(),
        owner: service.path(),
        options: SERVICE_OPTIONS,
        texts,
    };
    read(&options, SERVICE_EXTENSION, &place, mistakes)
}

/// What a method's options set.
pub(super) fn of_method(method: &MethodDescriptor, texts: &Texts, mistakes: &mut Mistakes) -> Settings {
    let service = method.parent_service();
    let options = method.options();
    let place = Place {
        file: service.parent_file_descriptor_proto(),
        owner: method.path(),
        options: METHOD_OPTIONS,
        texts,
    };
    read(&options, METHOD_EXTENSION, &place, mistakes)
}

/// Where a method is declared.
pub(super) fn origin_of_method(method: &MethodDescriptor, texts: &Texts) -> Origin {
    let service = method.parent_service();
    let file = service.parent_file_descriptor_proto();
    Place { file, owner: method.path(), options: METHOD_OPTIONS, texts }.declaration()
}

fn read(options: &DynamicMessage, extension: &str, place: &Place<'_>, mistakes: &mut Mistakes) -> Settings {
    let mut settings = Settings::default();
    let Some((extension, value)) = options.extensions().find(|(e, _)| e.full_name() == extension) else {
        return settings;
    };
    let Some(message) = value.as_message() else { return settings };
    let number = i32::try_from(extension.number()).unwrap_or_default();
    for unknown in message.unknown_fields() {
        let what = format!(
            "({}) has field {}, which this version does not know",
            extension.full_name(),
            unknown.number()
        );
        mistakes.push(place.option(number, None).mistake(what));
    }
    for (field, value) in message.fields() {
        let subfield = i32::try_from(field.number()).unwrap_or_default();
        set(&mut settings, field.name(), value, place.option(number, Some((field.name(), subfield))));
    }
    settings
}

fn set(settings: &mut Settings, name: &str, value: &Value, origin: Origin) {
    let text = || value.as_str().map(|text| Sourced::new(text.to_owned(), origin.clone()));
    let word = || spelling_of(value, name).map(|word| Sourced::new(word, origin.clone()));
    let number = || value.as_u32().map(|number| Sourced::new(i64::from(number), origin.clone()));
    let yes = || value.as_bool().map(|yes| Sourced::new(yes, origin.clone()));
    match name {
        "request_topic" => settings.request_topic = text(),
        "key" => settings.key = text(),
        "partition" => settings.partition = number(),
        "timeout" => settings.timeout = text(),
        "timeout_max" => settings.timeout_max = text(),
        "mode" => settings.mode = word(),
        "dialect" => settings.dialect = text(),
        "correlation_form" => settings.correlation_form = word(),
        "format" => settings.format = word(),
        "json_names" => settings.json_names = word(),
        "json_defaults" => settings.json_defaults = yes(),
        "schema_subject" => settings.schema_subject = text(),
        "compression" => settings.compression = word(),
        "partition_field" => settings.partition_field = text(),
        "dead_letter_on" => {
            let words = value.as_list().unwrap_or_default();
            let words: Vec<String> = words.iter().filter_map(|word| spelling_of(word, name)).collect();
            settings.dead_letter_on = (!words.is_empty()).then(|| Sourced::new(words, origin));
        }
        "dead_letter_topic" => settings.dead_letter_topic = text(),
        "cancel_record" => settings.cancel_record = yes(),
        "in_flight_max" => settings.in_flight_max = number(),
        "replies" => settings.replies = number(),
        "until_last" => settings.until_last = yes(),
        "partial_on_timeout" => settings.partial_on_timeout = yes(),
        "replies_field" => settings.replies_field = text(),
        "skip_errors" => settings.skip_errors = yes(),
        "replies_max" => settings.replies_max = number(),
        _ => {}
    }
}

/// An enum value of the options as TOML spells it: `ONE_WAY` is `one-way`.
/// `None` for the value that means unset.
fn spelling_of(value: &Value, name: &str) -> Option<String> {
    let words: &[&str] = match name {
        "mode" => &["request-reply", "one-way"],
        "correlation_form" => &["text", "binary"],
        "format" => &["protobuf", "json", "confluent-protobuf"],
        "json_names" => &["lower-camel", "proto"],
        "compression" => &["none", "gzip", "snappy", "lz4", "zstd"],
        _ => &["timeout", "undecodable-reply", "rejected"],
    };
    let number = usize::try_from(value.as_enum_number()?).ok();
    match number.map(|number| (number, words.get(number.wrapping_sub(1)))) {
        Some((0, _)) => None,
        Some((_, Some(word))) => Some((*word).to_owned()),
        _ => Some(value.as_enum_number()?.to_string()),
    }
}

/// Where one declaration's options are in its file.
struct Place<'a> {
    file: &'a FileDescriptorProto,
    /// Path of the declaration, as `SourceCodeInfo` counts.
    owner: &'a [i32],
    options: i32,
    texts: &'a Texts,
}

impl Place<'_> {
    fn declaration(&self) -> Origin {
        self.origin(self.span(self.owner).map(|span| (span.start.0, span.start.1)))
    }

    /// The place of one field of the option, of the option as a whole, or of
    /// the declaration: the nearest that is known.
    fn option(&self, extension: i32, field: Option<(&str, i32)>) -> Origin {
        let mut path = [self.owner, &[self.options, extension]].concat();
        let whole = self.span(&path);
        if let Some((name, number)) = field {
            path.push(number);
            if let Some(span) = self.span(&path) {
                return self.origin(Some(span.start));
            }
            // Of an option in braces, descriptors keep only the place of the whole.
            let find = |span: Span| self.texts.find(self.file.name(), span.start.0, name);
            if let Some(place) = whole.and_then(find)
                && whole.is_some_and(|span| place.0 <= span.line_end)
            {
                return self.origin(Some(place));
            }
        }
        whole.map_or_else(|| self.declaration(), |span| self.origin(Some(span.start)))
    }

    fn origin(&self, place: Option<(usize, usize)>) -> Origin {
        Origin {
            file: Some(self.texts.path(self.file.name())),
            line: place.map(|(line, _)| line + 1),
            column: place.map(|(_, column)| column + 1),
        }
    }

    fn span(&self, path: &[i32]) -> Option<Span> {
        self.texts.span(self.file, path)
    }
}

/// Where a line has a word that is no part of another, of a string or of an
/// option's name.
fn find_word(line: &str, word: &str) -> Option<usize> {
    let outside = |c: char| !c.is_alphanumeric() && !"_\".".contains(c);
    line.match_indices(word).map(|(column, _)| column).find(|column| {
        let before = line[..*column].chars().next_back();
        let after = line[column + word.len()..].chars().next();
        !word.is_empty() && before.is_none_or(outside) && after.is_none_or(outside)
    })
}

/// Lines and columns from 0.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: (usize, usize),
    line_end: usize,
}

impl Span {
    /// Of three numbers, or of four when it ends on a later line.
    fn of(numbers: &[i32]) -> Option<Self> {
        let at = |index: usize| numbers.get(index).and_then(|n| usize::try_from(*n).ok());
        let start = (at(0)?, at(1)?);
        Some(Self { start, line_end: if numbers.len() == 4 { at(2)? } else { start.0 } })
    }
}
