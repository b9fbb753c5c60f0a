//! OpenTelemetry's own variables: the weakest layer, as far as there is a
//! setting for what they say.

use std::ffi::OsString;
use std::path::PathBuf;

use super::layers::Layer;
use super::raw::{Place, Raw, Value};
use crate::route::{Mistakes, Origin};

/// The path that is added to the endpoint of all signals.
const TRACES_PATH: &str = "/v1/traces";

/// Reads them. A variable that is empty is one that is not set.
pub(super) fn layer(variables: &[(OsString, OsString)], mistakes: &mut Mistakes) -> Layer {
    let mut layer = Layer::default();
    let get = |name: &'static str| {
        let found = variables.iter().find(|(found, _)| found == name)?.1.to_str()?;
        Some((name, found)).filter(|(_, value)| !value.is_empty())
    };
    let is = |name, word: &str| get(name).is_some_and(|(_, value)| value.eq_ignore_ascii_case(word));
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return layer;
    }
    let of_traces = get("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT").map(|(name, url)| (name, url.to_owned()));
    let of_all = get("OTEL_EXPORTER_OTLP_ENDPOINT")
        .map(|(name, url)| (name, format!("{}{TRACES_PATH}", url.trim_end_matches('/'))));
    let Some(endpoint) = of_traces.or(of_all) else { return layer };
    let mut put = |setting, (name, value): (&'static str, String)| {
        let raw = Raw { value: Value::Word(value), place: place(name), base: PathBuf::new() };
        layer.0.insert(("traces", setting), raw);
    };
    put("endpoint", endpoint);
    for (setting, names) in [
        ("headers", ["OTEL_EXPORTER_OTLP_TRACES_HEADERS", "OTEL_EXPORTER_OTLP_HEADERS"]),
        ("service_name", ["OTEL_SERVICE_NAME"; 2]),
        ("resource", ["OTEL_RESOURCE_ATTRIBUTES"; 2]),
        ("ca_file", ["OTEL_EXPORTER_OTLP_TRACES_CERTIFICATE", "OTEL_EXPORTER_OTLP_CERTIFICATE"]),
    ] {
        if let Some((name, value)) = names.into_iter().find_map(get) {
            put(setting, (name, value.to_owned()));
        }
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_TIMEOUT", "OTEL_EXPORTER_OTLP_TIMEOUT"] {
        if let Some((name, ms)) = get(name) {
            put("timeout", (name, format!("{ms}ms")));
            break;
        }
    }
    let protocol = get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL").or_else(|| get("OTEL_EXPORTER_OTLP_PROTOCOL"));
    if let Some((name, other)) = protocol.filter(|(_, protocol)| *protocol != "http/protobuf") {
        let what = format!("{other:?} is not spoken; spans are sent as http/protobuf");
        mistakes.push(place(name).mistake(what).hint("a collector takes that at port 4318"));
    }
    let ratio = get("OTEL_TRACES_SAMPLER_ARG").map_or("1", |(_, ratio)| ratio);
    match get("OTEL_TRACES_SAMPLER") {
        None => {}
        Some((name, "parentbased_always_on")) => put("ratio", (name, "1".to_owned())),
        Some((name, "parentbased_always_off")) => put("ratio", (name, "0".to_owned())),
        Some((name, "parentbased_traceidratio")) => put("ratio", (name, ratio.to_owned())),
        Some((name, other)) => {
            let what = format!("the sampler {other:?} is not known");
            let hint = "parentbased_traceidratio, parentbased_always_on or parentbased_always_off";
            mistakes.push(place(name).mistake(what).hint(hint));
        }
    }
    layer
}

fn place(name: &str) -> Place {
    Place { origin: Origin::default(), label: name.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> (Vec<(String, String)>, usize) {
        let mut mistakes = Mistakes::default();
        let variables: Vec<_> =
            variables.iter().map(|(n, v)| (OsString::from(n), OsString::from(v))).collect();
        let layer = layer(&variables, &mut mistakes);
        let mut found: Vec<_> = layer
            .0
            .into_iter()
            .map(|((_, name), raw)| match raw.value {
                Value::Word(word) => (name.to_owned(), word),
                _ => panic!("{name} is no word"),
            })
            .collect();
        found.sort();
        (found, mistakes.len())
    }

    #[test]
    fn what_opentelemetry_says_is_read() {
        let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
        let (found, mistakes) = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318/"),
            ("OTEL_SERVICE_NAME", "pay"),
            ("OTEL_TRACES_SAMPLER", "parentbased_traceidratio"),
            ("OTEL_TRACES_SAMPLER_ARG", "0.25"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
        ]);
        let expected = [
            pair("endpoint", "http://collector:4318/v1/traces"),
            pair("ratio", "0.25"),
            pair("service_name", "pay"),
            pair("timeout", "2500ms"),
        ];
        assert_eq!((&found[..], mistakes), (&expected[..], 0));
        let (found, _) = read(&[
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://c/x"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://d"),
        ]);
        assert_eq!(found, [pair("endpoint", "http://c/x")]);
    }

    #[test]
    fn what_cannot_be_done_is_said() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        assert_eq!(read(&[endpoint, ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]).1, 1);
        assert_eq!(read(&[endpoint, ("OTEL_TRACES_SAMPLER", "jaeger_remote")]).1, 1);
        assert_eq!(read(&[endpoint, ("OTEL_SDK_DISABLED", "true")]), (vec![], 0));
        assert_eq!(read(&[("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")]), (vec![], 0));
    }
}
