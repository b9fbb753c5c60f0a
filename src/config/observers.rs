//! Sections that say what is told of calls.

use super::resolve::{Judge, value};
use super::sections::AccessLog;
use crate::access_log::config::{Config, Format};
use crate::telemetry::config::LogFormat;

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
}
