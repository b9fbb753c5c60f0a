//! The layers that settings come from: the file, the environment, the flags.
//! The last that has a setting decides it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ffi::OsString;
use std::path::PathBuf;

use super::flags::Flags;
use super::kinds::Listen;
use super::raw::{Found, FromRaw, Paths, Place, Raw, Value};
use super::sections::{ROWS, Row};
use crate::route::{Mistake, Mistakes, Origin, Overlay, did_you_mean};

/// Names the configuration file.
const CONFIG_VARIABLE: &str = "ANTIPHON_CONFIG";
const PREFIX: &str = "ANTIPHON_";

/// Sections with a password that may be in a file.
const WITH_PASSWORD: [&str; 2] = ["kafka.sasl", "schema_registry"];

/// One source of settings, by section and name.
#[derive(Default)]
pub(super) struct Layer(pub(super) HashMap<(&'static str, &'static str), Raw>);

/// All sources, the weakest first.
#[derive(Default)]
pub(super) struct Layers {
    pub(super) layers: Vec<Layer>,
    /// Sections that the file has, even when there is nothing in them.
    pub(super) sections: HashMap<&'static str, Place>,
    pub(super) services: BTreeMap<String, Overlay>,
    pub(super) methods: BTreeMap<String, Overlay>,
    /// Whether the file could not be read, so that what is missing may be
    /// missing for that reason.
    pub(super) unread: bool,
    /// Settings that were left out because they are about what is outside.
    pub(super) outside: HashSet<(&'static str, &'static str)>,
}

impl Layers {
    /// The strongest layer's value. A value that makes no sense is a mistake
    /// in whatever layer it is.
    pub(super) fn read<T: FromRaw>(
        &self,
        section: &'static str,
        name: &'static str,
        mistakes: &mut Mistakes,
    ) -> Option<Found<T>> {
        let mut found = None;
        for raw in self.layers.iter().filter_map(|layer| layer.0.get(&(section, name))) {
            match T::from_raw(raw) {
                Ok(value) => found = Some(Found { value, place: raw.place.clone() }),
                Err(mistake) => mistakes.push(mistake),
            }
        }
        found
    }

    /// Checks that paths and addresses are what they should be by their kind,
    /// and then leaves out what only the system could tell more of.
    pub(super) fn leave_out_what_is_outside(&mut self, mistakes: &mut Mistakes) {
        for layer in &mut self.layers {
            let passwords = WITH_PASSWORD
                .map(|section| Some((section, layer.0.get(&(section, "password_file"))?.clone())));
            layer.0.retain(|(section, name), raw| {
                let row = ROWS.iter().find(|row| (row.section, row.name) == (*section, *name));
                let checked = match row.map(|row| row.kind) {
                    Some(PathBuf::EXPECTED) => PathBuf::from_raw(raw).map(drop),
                    Some(Paths::EXPECTED) => Paths::from_raw(raw).map(drop),
                    Some(Listen::EXPECTED) if Listen::names_a_host(raw) => Ok(()),
                    _ => return true,
                };
                checked.unwrap_or_else(|mistake| mistakes.push(mistake));
                self.outside.insert((*section, *name));
                false
            });
            // Something stands in the file, for all that can be known here.
            for (section, raw) in passwords.into_iter().flatten() {
                let raw = Raw { value: Value::Word("outside".to_owned()), ..raw };
                layer.0.entry((section, "password")).or_insert(raw);
            }
        }
    }

    /// Where a section is first set, if it is.
    pub(super) fn place_of(&self, section: &str) -> Option<Place> {
        let mut rows = ROWS.iter().filter(|row| row.section == section);
        let set = |row: &Row| {
            let raw = self.layers.iter().find_map(|layer| layer.0.get(&(row.section, row.name)));
            raw.map(|raw| raw.place.clone())
        };
        self.sections.get(section).cloned().or_else(|| rows.find_map(set))
    }
}

/// The path of the configuration file, if one is named.
pub(super) fn file_path(flags: &Flags, variables: &[(OsString, OsString)]) -> Option<PathBuf> {
    let variable = variables.iter().find(|(name, value)| name == CONFIG_VARIABLE && !value.is_empty());
    flags.config.clone().or_else(|| variable.map(|(_, value)| PathBuf::from(value)))
}

/// The environment's layer. A variable that is empty is one that is not set.
pub(super) fn environment(variables: &[(OsString, OsString)], mistakes: &mut Mistakes) -> Layer {
    let known: HashMap<String, &Row> = ROWS.iter().map(|row| (row.variable(), row)).collect();
    let mut layer = Layer::default();
    for (name, value) in variables {
        let Some(name) = name.to_str().filter(|name| name.starts_with(PREFIX) && *name != CONFIG_VARIABLE)
        else {
            continue;
        };
        let place = Place { origin: Origin::default(), label: name.to_owned() };
        match (known.get(name), value.to_str()) {
            (_, Some("")) => {}
            (Some(_), None) => mistakes.push(place.mistake("is not UTF-8")),
            (Some(row), Some(value)) => {
                let raw = Raw { value: Value::Word(value.to_owned()), place, base: PathBuf::new() };
                layer.0.insert((row.section, row.name), raw);
            }
            (None, value) if is_service_link(name, value.unwrap_or_default()) => {}
            (None, _) => {
                let names = known.keys().map(String::as_str).chain([CONFIG_VARIABLE]);
                let what = format!("{name}: unknown environment variable");
                mistakes.push(Mistake::new(what).maybe_hint(did_you_mean(name, names)));
            }
        }
    }
    layer
}

/// Whether Kubernetes or Docker has set this variable for a service that is
/// called antiphon: `ANTIPHON_SERVICE_HOST`, `ANTIPHON_PORT_50051_TCP_ADDR`.
fn is_service_link(name: &str, value: &str) -> bool {
    let parts: Vec<&str> = name.split('_').collect();
    let number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    (parts.ends_with(&["PORT"]) && value.contains("://"))
        || parts.ends_with(&["SERVICE", "HOST"])
        || parts.windows(2).any(|two| two == ["SERVICE", "PORT"])
        || parts
            .windows(3)
            .any(|three| three[0] == "PORT" && number(three[1]) && matches!(three[2], "TCP" | "UDP" | "SCTP"))
}

/// The flags' layer.
pub(super) fn flags(flags: &Flags) -> Layer {
    let mut layer = Layer::default();
    let mut put = |section, name, flag: &str, value: Option<Value>| {
        let place = Place { origin: Origin::default(), label: flag.to_owned() };
        if let Some(value) = value {
            layer.0.insert((section, name), Raw { value, place, base: PathBuf::new() });
        }
    };
    put("proto", "files", "--proto", paths("--proto", &flags.protos));
    put("proto", "include_paths", "--proto-path", paths("--proto-path", &flags.proto_paths));
    put("proto", "descriptor_sets", "--descriptor-set", paths("--descriptor-set", &flags.descriptor_sets));
    let word = |text: &Option<String>| text.clone().map(Value::Word);
    let servers =
        (!flags.bootstrap_servers.is_empty()).then(|| Value::Word(flags.bootstrap_servers.join(",")));
    put("kafka", "bootstrap_servers", "--bootstrap-servers", servers);
    put("grpc", "listen", "--listen", word(&flags.listen));
    put("admin", "listen", "--admin-listen", word(&flags.admin_listen));
    put("", "shards", "--shards", word(&flags.shards.map(|shards| shards.to_string())));
    put("log", "format", "--log-format", word(&flags.log_format));
    layer
}

/// The flag that sets a setting, for the reference.
pub(super) const FLAGS: &[(&str, &str, &str)] = &[
    ("proto", "files", "--proto"),
    ("proto", "include_paths", "--proto-path"),
    ("proto", "descriptor_sets", "--descriptor-set"),
    ("kafka", "bootstrap_servers", "--bootstrap-servers"),
    ("grpc", "listen", "--listen"),
    ("admin", "listen", "--admin-listen"),
    ("", "shards", "--shards"),
    ("log", "format", "--log-format"),
];

fn paths(flag: &str, paths: &[PathBuf]) -> Option<Value> {
    let place = Place { origin: Origin::default(), label: flag.to_owned() };
    let raw =
        |path: &PathBuf| Raw { value: Value::Path(path.clone()), place: place.clone(), base: PathBuf::new() };
    (!paths.is_empty()).then(|| Value::List(paths.iter().map(raw).collect()))
}
