//! A setting as it was written, in whatever layer, and how it becomes a value.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use crate::kafka::config::Secret;
use crate::route::{Mistake, Origin, did_you_mean};
use crate::terms::UnknownTerm;

/// One setting of one layer. It may hold a secret, so it has no `Debug`.
#[derive(Clone)]
pub(super) struct Raw {
    pub(super) value: Value,
    pub(super) place: Place,
    /// Folder that relative paths count from.
    pub(super) base: PathBuf,
}

#[derive(Clone)]
pub(super) enum Value {
    /// A word from the environment or a flag, which has no type of its own.
    Word(String),
    /// A path from a flag.
    Path(PathBuf),
    /// A string in TOML.
    Text(String),
    Integer(i64),
    Float(f64),
    Bool(bool),
    List(Vec<Raw>),
    /// Anything else, by its name.
    Other(&'static str),
}

/// Where a setting is, and what it is called there: `kafka.client_id`,
/// `ANTIPHON_KAFKA_CLIENT_ID` or `--listen`.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    pub(super) origin: Origin,
    pub(super) label: String,
}

impl Place {
    /// A mistake in this setting.
    pub(super) fn mistake(&self, what: impl AsRef<str>) -> Mistake {
        self.origin.mistake(format!("{}: {}", self.label, what.as_ref()))
    }
}

/// A value that has been read, and its place.
#[derive(Debug, Clone)]
pub(super) struct Found<T> {
    pub(super) value: T,
    pub(super) place: Place,
}

impl Raw {
    fn mistake(&self, what: impl AsRef<str>) -> Mistake {
        self.place.mistake(what)
    }

    fn unexpected<T: FromRaw>(&self) -> Mistake {
        let found = match &self.value {
            Value::Word(word) => return self.mistake(format!("expected {}, found {word:?}", T::EXPECTED)),
            Value::Path(_) => "a path",
            Value::Text(_) => "a string",
            Value::Integer(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::List(_) => "a list",
            Value::Other(name) => name,
        };
        self.mistake(format!("expected {}, found {found}", T::EXPECTED))
    }

    fn text<T: FromRaw>(&self) -> Result<&str, Mistake> {
        match &self.value {
            Value::Word(text) | Value::Text(text) => Ok(text),
            _ => Err(self.unexpected::<T>()),
        }
    }

    fn integer<T: FromRaw>(&self) -> Result<i64, Mistake> {
        match &self.value {
            Value::Integer(number) => Ok(*number),
            Value::Word(word) => word.replace('_', "").parse().map_err(|_| self.unexpected::<T>()),
            _ => Err(self.unexpected::<T>()),
        }
    }

    /// The items of a list; in a word they stand between commas.
    fn items<T: FromRaw>(&self) -> Result<Vec<Self>, Mistake> {
        match &self.value {
            Value::List(items) => Ok(items.clone()),
            Value::Word(word) => {
                let words = word.split(',').map(str::trim).filter(|word| !word.is_empty());
                Ok(words.map(|word| Self { value: Value::Word(word.to_owned()), ..self.clone() }).collect())
            }
            _ => Err(self.unexpected::<T>()),
        }
    }
}

/// A type that a setting can have.
pub(super) trait FromRaw: Sized {
    /// What is expected, for mistakes and for the reference.
    const EXPECTED: &'static str;

    /// Reads the setting.
    fn from_raw(raw: &Raw) -> Result<Self, Mistake>;
}

impl FromRaw for String {
    const EXPECTED: &'static str = "a string";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        raw.text::<Self>().map(str::to_owned)
    }
}

impl FromRaw for Secret {
    const EXPECTED: &'static str = "a string";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        raw.text::<Self>().map(Self::new)
    }
}

impl FromRaw for bool {
    const EXPECTED: &'static str = "true or false";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        match &raw.value {
            Value::Bool(yes) => Ok(*yes),
            Value::Word(word) => word.parse().map_err(|_| raw.unexpected::<Self>()),
            _ => Err(raw.unexpected::<Self>()),
        }
    }
}

impl FromRaw for i64 {
    const EXPECTED: &'static str = "an integer";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        raw.integer::<Self>()
    }
}

/// A path; relative ones count from the folder of the file that names them.
impl FromRaw for PathBuf {
    const EXPECTED: &'static str = "a path";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let path = match &raw.value {
            Value::Path(path) => path.as_path(),
            _ => Path::new(raw.text::<Self>()?),
        };
        if path.as_os_str().is_empty() {
            return Err(raw.mistake("must not be empty"));
        }
        Ok(raw.base.join(path))
    }
}

/// Paths, each with its place, and as they were written.
pub(super) struct Paths(pub(super) Vec<(PathBuf, PathBuf, Place)>);

impl FromRaw for Paths {
    const EXPECTED: &'static str = "a list of paths";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let read = |item: &Raw| {
            let path = PathBuf::from_raw(item)?;
            let written = PathBuf::from_raw(&Raw { base: PathBuf::new(), ..item.clone() })?;
            Ok((path, written, item.place.clone()))
        };
        raw.items::<Self>()?.iter().map(read).collect::<Result<_, _>>().map(Self)
    }
}

impl FromRaw for Vec<String> {
    const EXPECTED: &'static str = "a list of strings";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        raw.items::<Self>()?.iter().map(String::from_raw).collect()
    }
}

/// A word of `crate::terms` or one like it.
pub(super) struct Term<T>(pub(super) T);

impl<T: FromStr<Err = UnknownTerm>> FromRaw for Term<T> {
    const EXPECTED: &'static str = "a word";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        raw.text::<Self>()?.parse().map(Term).map_err(|unknown: UnknownTerm| {
            let like = unknown.found.to_ascii_lowercase().replace('_', "-");
            let near = unknown.expected.iter().copied().find(|word| word.eq_ignore_ascii_case(&like));
            let hint = near.map(|word| format!("did you mean {word:?}?"));
            let hint = hint.or_else(|| did_you_mean(&unknown.found, unknown.expected.iter().copied()));
            raw.mistake(unknown.to_string()).maybe_hint(hint)
        })
    }
}

/// A mistake in this setting, for the types that are defined elsewhere.
pub(super) fn wrong(raw: &Raw, what: impl AsRef<str>) -> Mistake {
    raw.mistake(what)
}

/// The text of a setting that must be one.
pub(super) fn text_of<T: FromRaw>(raw: &Raw) -> Result<&str, Mistake> {
    raw.text::<T>()
}

/// The integer, where it is written as one.
pub(super) fn integer_of(raw: &Raw) -> Option<i64> {
    raw.integer::<i64>().ok()
}

/// A number, with a fraction or without.
pub(super) fn float_of<T: FromRaw>(raw: &Raw) -> Result<f64, Mistake> {
    match &raw.value {
        Value::Float(number) => Ok(*number),
        Value::Integer(number) => Ok(*number as f64),
        Value::Word(word) => word.parse().map_err(|_| raw.unexpected::<T>()),
        _ => Err(raw.unexpected::<T>()),
    }
}

/// The items of a list.
pub(super) fn items_of<T: FromRaw>(raw: &Raw) -> Result<Vec<Raw>, Mistake> {
    raw.items::<T>()
}
