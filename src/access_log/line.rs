//! One line: names and values, so that nothing in a value can look like the end
//! of it, or of the line.

use std::fmt::{Display, Write as _};

use super::config::Format;

/// What is kept of a text, in characters.
const TEXT_CHARS_MAX: usize = 256;

/// A line that is being made.
#[derive(Debug)]
pub struct Line {
    text: String,
    format: Format,
}

impl Line {
    /// A line that begins with this time, in milliseconds since 1970.
    pub(super) fn begin(format: Format, target: &str, time_ms: i64) -> Self {
        let time = chrono::DateTime::from_timestamp_millis(time_ms).unwrap_or_default();
        let time = time.format("%Y-%m-%dT%H:%M:%S%.3fZ");
        let mut text = String::with_capacity(768);
        // Writing to a string can't fail, here and below.
        let _ = match format {
            Format::Json => {
                write!(text, "{{\"timestamp\":\"{time}\",\"level\":\"INFO\",\"target\":\"{target}\"")
            }
            Format::Text => write!(text, "{time}  INFO {target}:"),
        };
        Self { text, format }
    }

    fn name(&mut self, name: &str) {
        let _ = match self.format {
            Format::Json => write!(self.text, ",\"{name}\":"),
            Format::Text => write!(self.text, " {name}="),
        };
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let _ = write!(self.text, "{value}");
    }

    /// A time in microseconds, as milliseconds.
    pub fn millis(&mut self, name: &str, us: u64) {
        self.name(name);
        let _ = write!(self.text, "{}.{:03}", us / 1_000, us % 1_000);
    }

    /// A text from wherever: cut, and everything escaped that could end a value
    /// or a line, or that a terminal would obey.
    pub fn text(&mut self, name: &str, value: &str) {
        self.name(name);
        let plain = |c: char| c.is_ascii_graphic() && !['"', '\\', '='].contains(&c);
        if self.format == Format::Text
            && !value.is_empty()
            && value.len() <= TEXT_CHARS_MAX
            && value.chars().all(plain)
        {
            self.text.push_str(value);
            return;
        }
        self.text.push('"');
        for (number, c) in value.chars().enumerate() {
            if number == TEXT_CHARS_MAX {
                self.text.push('…');
                break;
            }
            match c {
                '"' => self.text.push_str("\\\""),
                '\\' => self.text.push_str("\\\\"),
                // Control characters of ASCII and Latin-1, and what some take for the end of a line
                // or turns the direction of the text.
                c if c.is_control()
                    || ('\u{2028}'..='\u{202e}').contains(&c)
                    || ('\u{2066}'..='\u{2069}').contains(&c) =>
                {
                    let _ = write!(self.text, "\\u{:04x}", u32::from(c));
                }
                c => self.text.push(c),
            }
        }
        self.text.push('"');
    }

    /// The same for bytes that should be text.
    pub fn bytes(&mut self, name: &str, value: &[u8]) {
        // Four bytes are a character at most.
        let cut = &value[..value.len().min(TEXT_CHARS_MAX * 4 + 4)];
        self.text(name, &String::from_utf8_lossy(cut));
    }

    pub(super) fn finish(mut self) -> String {
        self.text.push_str(match self.format {
            Format::Json => "}\n",
            Format::Text => "\n",
        });
        self.text
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn with(format: Format, value: &str) -> String {
        let mut line = Line::begin(format, "t", 1_763_733_374_123);
        line.text("key", value);
        line.number("after", 7);
        line.finish()
    }

    #[test]
    fn a_line_is_as_it_is_written_down() {
        assert_eq!(with(Format::Text, "order-1"), "2025-11-21T13:56:14.123Z  INFO t: key=order-1 after=7\n");
        assert_eq!(
            with(Format::Text, "a b\n after=8"),
            "2025-11-21T13:56:14.123Z  INFO t: key=\"a b\\u000a after=8\" after=7\n"
        );
        assert_eq!(
            with(Format::Json, "x\",\"after\":8,\u{1b}[2J"),
            "{\"timestamp\":\"2025-11-21T13:56:14.123Z\",\"level\":\"INFO\",\"target\":\"t\",\
             \"key\":\"x\\\",\\\"after\\\":8,\\u001b[2J\",\"after\":7}\n"
        );
        let mut line = Line::begin(Format::Json, "t", 0);
        line.millis("took_ms", 12_005);
        assert!(line.finish().ends_with("\"took_ms\":12.005}\n"));
    }

    proptest! {
        #[test]
        fn nothing_gets_out_of_its_value(bytes in proptest::collection::vec(any::<u8>(), 0..2_000)) {
            for format in [Format::Json, Format::Text] {
                let mut line = Line::begin(format, "t", 0);
                line.bytes("key", &bytes);
                let line = line.finish();
                prop_assert_eq!(line.lines().count(), 1);
                prop_assert!(line.len() < 2_000 && !line[..line.len() - 1].contains(char::is_control));
                if format == Format::Json {
                    let read: serde_json::Value = serde_json::from_str(&line).unwrap();
                    let text = String::from_utf8_lossy(&bytes);
                    let cut: String = text.chars().take(TEXT_CHARS_MAX).collect();
                    let key = read["key"].as_str().unwrap();
                    prop_assert_eq!(key.trim_end_matches('…'), cut.trim_end_matches('…'));
                }
            }
        }
    }
}
