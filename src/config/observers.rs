//! Sections that say what is told of calls.

use super::raw::Place;
use super::resolve::{Judge, value};
use super::sections::{AccessLog, Traces};
use crate::access_log::config::{Config, Format};
use crate::telemetry::config::LogFormat;
use crate::traces::config as traces;
use crate::web_client::parse_url;

impl Judge<'_> {
    pub(super) fn access_log(&mut self, log: LogFormat) -> Config {
        let part = AccessLog::read(self.layers, self.mistakes);
        let default = Config::default();
        let file = part.file.map(|found| found.value);
        let like_the_log = match log {
            LogFormat::Text if file.is_none() => Format::Text,
            LogFormat::Text | LogFormat::Json => Format::Json,
        };
        let format = part.format.map(|found| match found.value.0.0 {
            LogFormat::Text => Format::Text,
            LogFormat::Json => Format::Json,
        });
        Config {
            enabled: value(part.enabled, |enabled| enabled, default.enabled),
            good_share: value(part.good_share, |share| share.0, default.good_share),
            file,
            format: format.unwrap_or(like_the_log),
        }
    }

    pub(super) fn traces(&mut self) -> Option<traces::Config> {
        let part = Traces::read(self.layers, self.mistakes);
        let default = traces::Config::default();
        let mut headers = Vec::new();
        if let Some(found) = &part.headers {
            let pairs = found.value.reveal().split(',').filter(|pair| !pair.trim().is_empty());
            headers.extend(pairs.filter_map(|pair| self.header(pair, &found.place)));
        }
        if let Some(found) = &part.headers_file {
            match std::fs::read_to_string(&found.value) {
                Ok(text) => {
                    let lines = text.lines().filter(|line| !line.trim().is_empty());
                    headers.extend(lines.filter_map(|line| self.header(line, &found.place)));
                }
                Err(error) => self.mistakes.push(found.place.mistake(format!("cannot be read: {error}"))),
            }
        }
        if let Some(found) = &part.ca_file {
            self.readable(found);
        }
        let mut resource = Vec::new();
        if let Some(found) = &part.resource {
            for pair in &found.value {
                match pair.split_once('=') {
                    Some((name, text)) if !name.trim().is_empty() => {
                        let text = percent_encoding::percent_decode_str(text.trim()).decode_utf8_lossy();
                        resource.push((name.trim().to_owned(), text.into_owned()));
                    }
                    _ => self.mistakes.push(found.place.mistake(format!("{pair:?} is not name=value"))),
                }
            }
        }
        let endpoint = part.endpoint?;
        if parse_url(&endpoint.value).is_none() {
            let hint = "such as \"http://127.0.0.1:4318/v1/traces\"";
            let what = format!("{:?} is no URL", endpoint.value);
            self.mistakes.push(endpoint.place.mistake(what).hint(hint));
            return None;
        }
        Some(traces::Config {
            endpoint: endpoint.value,
            ratio: value(part.ratio, |share| share.0, default.ratio),
            service_name: value(part.service_name, |name| name, default.service_name),
            resource,
            headers: traces::Headers(headers),
            timeout: value(part.timeout, |time| time.0, default.timeout),
            ca_file: part.ca_file.map(|found| found.value),
        })
    }

    /// One header; a mistake does not show its value, which may be a secret.
    fn header(&mut self, pair: &str, place: &Place) -> Option<(String, String)> {
        let header = pair.split_once('=').and_then(|(name, text)| {
            let text = percent_encoding::percent_decode_str(text.trim()).decode_utf8().ok()?;
            http::HeaderValue::from_str(&text).ok()?;
            let name = http::HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
            Some((name.as_str().to_owned(), text.into_owned()))
        });
        if header.is_none() {
            self.mistakes.push(place.mistake("has something that is no header, name=value"));
        }
        header
    }
}
