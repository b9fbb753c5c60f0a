//! The kinds of values that settings have beside strings and numbers:
//! durations, byte sizes, addresses, brokers, metadata names.

use std::net::{Ipv4Addr, SocketAddr, ToSocketAddrs};
use std::time::Duration;

use super::raw::{FromRaw, Raw, float_of, integer_of, items_of, text_of, wrong};
use crate::access::Rule;
use crate::exchange::config::Ordinal;
use crate::limits;
use crate::route::{DURATION_HINT, Mistake, did_you_mean, parse_duration, show_duration};
use crate::terms::UnknownTerm;

/// A time that may be nothing.
pub(super) struct Pause(pub(super) Duration);

impl FromRaw for Pause {
    const EXPECTED: &'static str = "a duration";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let text = text_of::<Self>(raw).map_err(|mistake| mistake.hint(DURATION_HINT))?;
        let duration = parse_duration(text);
        let duration = duration.map_err(|error| wrong(raw, error.to_string()).hint(DURATION_HINT))?;
        if duration > limits::CALL_TIMEOUT_CEILING {
            let most = show_duration(limits::CALL_TIMEOUT_CEILING);
            return Err(wrong(raw, format!("{text:?} is longer than {most}, the most that can be set")));
        }
        Ok(Self(duration))
    }
}

/// A time that is more than nothing.
pub(super) struct Time(pub(super) Duration);

impl FromRaw for Time {
    const EXPECTED: &'static str = "a duration";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        match Pause::from_raw(raw)? {
            Pause(Duration::ZERO) => Err(wrong(raw, "must be more than zero")),
            Pause(duration) => Ok(Self(duration)),
        }
    }
}

/// A number of bytes.
pub(super) struct Bytes(pub(super) i64);

impl FromRaw for Bytes {
    const EXPECTED: &'static str = "a number of bytes";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        const HINT: &str = "an integer, or one with KiB, MiB or GiB, such as \"4MiB\"";
        if let Some(bytes) = integer_of(raw) {
            return Ok(Self(bytes));
        }
        let text = text_of::<Self>(raw).map_err(|mistake| mistake.hint(HINT))?;
        let digits = text.bytes().take_while(u8::is_ascii_digit).count();
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "KiB" => 10,
            "MiB" => 20,
            "GiB" => 30,
            _ => return Err(wrong(raw, format!("{text:?} is not a number of bytes")).hint(HINT)),
        };
        let bytes = number.parse::<i64>().ok().and_then(|number| number.checked_mul(1 << shift));
        bytes.map(Self).ok_or_else(|| wrong(raw, format!("{text:?} is not a number of bytes")).hint(HINT))
    }
}

/// A part of a whole.
pub(super) struct Share(pub(super) f64);

impl FromRaw for Share {
    const EXPECTED: &'static str = "a number from 0 to 1";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let share = float_of::<Self>(raw)?;
        // Not a number is in no range, either.
        if !(0.0..=1.0).contains(&share) {
            return Err(wrong(raw, format!("{share} is not within 0 to 1")).hint("0.01 is one in a hundred"));
        }
        Ok(Self(share))
    }
}

/// An address to listen on.
pub(super) struct Listen(pub(super) SocketAddr);

impl FromRaw for Listen {
    const EXPECTED: &'static str = "an address";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        const HINT: &str = "HOST:PORT, or :PORT for all interfaces";
        let text = text_of::<Self>(raw).map_err(|mistake| mistake.hint(HINT))?;
        if let Ok(address) = text.parse::<SocketAddr>() {
            return Ok(Self(address));
        }
        let no_address = || wrong(raw, format!("{text:?} is not an address"));
        let Some((host, port)) = text.rsplit_once(':') else {
            let port = text.parse::<u16>().ok().map(|port| format!("did you mean \":{port}\"?"));
            return Err(no_address().hint(HINT).maybe_hint(port));
        };
        let Ok(port) = port.parse::<u16>() else {
            return Err(no_address().hint(format!("{port:?} is not a port; a port is 0 to 65535")));
        };
        match host {
            "" => Ok(Self(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port)))),
            "localhost" => Ok(Self(SocketAddr::from((Ipv4Addr::LOCALHOST, port)))),
            _ => {
                let found = (host, port).to_socket_addrs().ok().and_then(|mut all| all.next());
                found.map(Self).ok_or_else(|| no_address().hint(format!("no host {host:?} was found")))
            }
        }
    }
}

impl Listen {
    /// Whether the name server would have to be asked.
    pub(super) fn names_a_host(raw: &Raw) -> bool {
        let Ok(text) = text_of::<Self>(raw) else { return false };
        let host = text.rsplit_once(':').map(|(host, _)| host);
        text.parse::<SocketAddr>().is_err() && !matches!(host, None | Some("" | "localhost"))
    }
}

/// Brokers, `host:port` each.
pub(super) struct Servers(pub(super) Vec<String>);

impl FromRaw for Servers {
    const EXPECTED: &'static str = "a list of HOST:PORT";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let items = items_of::<Self>(raw)?;
        if items.is_empty() {
            return Err(wrong(raw, "must name a broker").hint("HOST:PORT, such as \"127.0.0.1:9092\""));
        }
        items.iter().map(server).collect::<Result<_, _>>().map(Self)
    }
}

fn server(raw: &Raw) -> Result<String, Mistake> {
    let text = text_of::<Servers>(raw)?;
    if text.contains('@') {
        let hint = "user and password belong into [kafka.sasl]";
        return Err(wrong(raw, "a broker is HOST:PORT, without a user").hint(hint));
    }
    let no_broker = || wrong(raw, format!("{text:?} is not HOST:PORT"));
    if let Some((_, rest)) = text.split_once("://") {
        return Err(no_broker().hint(format!("did you mean {rest:?}?")));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.starts_with('[') && host.ends_with(']') => {
            (host, port)
        }
        _ => {
            let bracketed = if text.contains(':') { format!("[{text}]") } else { text.to_owned() };
            return Err(no_broker().hint(format!("did you mean \"{bracketed}:9092\"?")));
        }
    };
    let named = !host.is_empty() && !host.contains(|c: char| c.is_whitespace() || "/,\"".contains(c));
    match port.parse::<u16>() {
        Ok(1..) if named => Ok(text.to_owned()),
        Ok(_) if named => Err(no_broker().hint("a broker's port is 1 to 65535")),
        Err(_) if named => Err(no_broker().hint(format!("{port:?} is not a port; a port is 1 to 65535"))),
        _ => Err(no_broker()),
    }
}

/// Names of metadata, or of headers that become metadata.
pub(super) struct MetadataNames(pub(super) Vec<String>);

impl FromRaw for MetadataNames {
    const EXPECTED: &'static str = "a list of metadata names";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        items_of::<Self>(raw)?.iter().map(metadata_name).collect::<Result<_, _>>().map(Self)
    }
}

fn metadata_name(raw: &Raw) -> Result<String, Mistake> {
    let name = text_of::<MetadataNames>(raw)?;
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_-.".contains(c);
    if name.is_empty() || !name.chars().all(allowed) {
        let lower = name.to_ascii_lowercase();
        let hint =
            did_you_mean(name, [lower.as_str()]).filter(|_| lower != name && lower.chars().all(allowed));
        let hint = hint.unwrap_or_else(|| "a metadata name is made of a-z, 0-9, '_', '-' and '.'".to_owned());
        return Err(wrong(raw, format!("{name:?} can't name metadata")).hint(hint));
    }
    if name.starts_with("grpc-") {
        return Err(wrong(raw, format!("{name:?} is one of gRPC's own names, which are never passed on")));
    }
    Ok(name.to_owned())
}

/// Web origins (RFC 6454): scheme, host and, where it is not the scheme's own,
/// port; or `*`.
pub(super) struct Origins(pub(super) Vec<String>);

impl FromRaw for Origins {
    const EXPECTED: &'static str = "a list of web origins";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        items_of::<Self>(raw)?.iter().map(origin).collect::<Result<_, _>>().map(Self)
    }
}

fn origin(raw: &Raw) -> Result<String, Mistake> {
    let text = text_of::<Origins>(raw)?;
    let authority = text.strip_prefix("https://").or_else(|| text.strip_prefix("http://"));
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "-.:[]".contains(c);
    match authority {
        _ if text == "*" => Ok(text.to_owned()),
        Some(authority) if !authority.is_empty() && authority.chars().all(allowed) => Ok(text.to_owned()),
        _ => {
            let hint = "an origin is https://HOST or http://HOST, with :PORT where needed, in lower case, without a path; or *";
            Err(wrong(raw, format!("{text:?} is no web origin")).hint(hint))
        }
    }
}

/// `reply.ordinal`: a number or `hostname`.
pub(super) struct OrdinalWord(pub(super) Ordinal);

impl FromRaw for OrdinalWord {
    const EXPECTED: &'static str = "a number or \"hostname\"";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        if let Some(number) = integer_of(raw) {
            let number = u32::try_from(number).map_err(|_| wrong(raw, format!("{number} is no ordinal")))?;
            return Ok(Self(Ordinal::Number(number)));
        }
        match text_of::<Self>(raw)? {
            "hostname" => Ok(Self(Ordinal::Hostname)),
            other => Err(wrong(raw, format!("expected {}, found {other:?}", Self::EXPECTED))),
        }
    }
}

/// Rules of who may call what.
pub(super) struct Rules(pub(super) Vec<Rule>);

impl FromRaw for Rules {
    const EXPECTED: &'static str = "a list of rules";

    fn from_raw(raw: &Raw) -> Result<Self, Mistake> {
        let rule = |raw: &Raw| {
            let text = text_of::<Self>(raw)?;
            text.parse::<Rule>().map_err(|error| wrong(raw, error.to_string()))
        };
        items_of::<Self>(raw)?.iter().map(rule).collect::<Result<_, _>>().map(Self)
    }
}

/// Declares how the words of an enum from another room are read.
macro_rules! words {
    ($(#[$doc:meta])* $name:ident for $of:path { $($text:literal => $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        pub(super) struct $name(pub(super) $of);

        impl std::str::FromStr for $name {
            type Err = UnknownTerm;

            fn from_str(text: &str) -> Result<Self, UnknownTerm> {
                use $of as Of;
                match text {
                    $($text => Ok(Self(Of::$variant)),)+
                    _ => Err(UnknownTerm { found: text.to_owned(), expected: &[$($text),+] }),
                }
            }
        }
    };
}

words! {
    /// `kafka.sasl.mechanism`, as Kafka spells it.
    Mechanism for crate::kafka::config::SaslMechanism {
        "PLAIN" => Plain,
        "SCRAM-SHA-256" => ScramSha256,
        "SCRAM-SHA-512" => ScramSha512,
        "OAUTHBEARER" => OauthBearer,
    }
}

words! {
    /// `log.format`.
    LogFormat for crate::telemetry::config::LogFormat {
        "text" => Text,
        "json" => Json,
    }
}
