//! `antiphon check`: what would be served, or what is wrong, without serving.
#![allow(clippy::print_stderr, reason = "printing is what this command is for")]

use std::io::Write;
use std::process::ExitCode;

use antiphon::config::{self, Flags};
use antiphon::route::{Partitioning, Route, RouteTable, show_duration};

use crate::exit;

const HEAD: [&str; 9] =
    ["METHOD", "TOPIC", "KEY", "PARTITION", "TIMEOUT(max)", "MODE", "DIALECT", "FORMAT", "IDEMPOTENCY"];

/// Prints the route table and exits with 0, or the mistakes and exits with 78.
pub(crate) fn run(flags: &Flags) -> ExitCode {
    match config::load_with_routes(flags) {
        Ok((_, table)) => {
            // A reader that has gone, as in `check | head`, is no failure.
            let _ = std::io::stdout().write_all(render(&table).as_bytes());
            ExitCode::SUCCESS
        }
        Err(mistakes) => {
            eprintln!("{mistakes}");
            eprintln!("{}", count(mistakes.len(), "mistake"));
            exit::CONFIG.into()
        }
    }
}

fn render(table: &RouteTable) -> String {
    let mut rows = vec![HEAD.map(str::to_owned)];
    rows.extend(table.routes().iter().map(|route| row(route)));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..HEAD.len()).map(width).collect();
    let mut text = String::new();
    for row in &rows {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        text.push_str(cells.collect::<Vec<_>>().join("  ").trim_end());
        text.push('\n');
    }
    let (services, topics) = (table.services().count(), table.request_topics().len());
    let counts =
        [count(table.routes().len(), "method"), count(services, "service"), count(topics, "request topic")];
    text.push_str(&format!("\n{}\n", counts.join(", ")));
    for path in table.not_served() {
        text.push_str(&format!(
            "not served: {}, whose caller sends a stream\n",
            path.trim_start_matches('/')
        ));
    }
    text
}

fn row(route: &Route) -> [String; 9] {
    let partition = match &route.partitioning {
        Partitioning::ByKey => "by key".to_owned(),
        Partitioning::Fixed(partition) => partition.to_string(),
        Partitioning::ByField(path) => format!("field {path}"),
        Partitioning::Spread => "spread".to_owned(),
    };
    [
        route.path.trim_start_matches('/').to_owned(),
        route.request_topic.to_string(),
        route.key.as_ref().map_or_else(|| "-".to_owned(), ToString::to_string),
        partition,
        format!("{}({})", show_duration(route.timeout), show_duration(route.timeout_max)),
        match &route.replies {
            None => route.mode.to_string(),
            Some(_) if route.is_stream() => "stream".to_owned(),
            Some(_) => "collect".to_owned(),
        },
        route.dialect.name().to_string(),
        route.format.name().to_string(),
        route.idempotency.as_str().to_owned(),
    ]
}

fn count(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use antiphon::route::{Sources, compile};

    use super::*;

    #[test]
    fn the_table_is_aligned_and_summed_up() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("proto");
        let files = ["payments/v1/payments.proto", "delivery/v1/delivery.proto", "echo/v1/echo.proto"];
        let protos = files.iter().map(|file| root.join(file)).collect();
        let table = compile(&Sources { protos, ..Sources::default() }).unwrap();
        assert_eq!(
            render(&table),
            "\
METHOD                                       TOPIC                    KEY       PARTITION  TIMEOUT(max)  MODE           DIALECT  FORMAT    IDEMPOTENCY
payments.v1.PaymentService/Pay               payment_request          order_id  by key     10s(1m)       request-reply  spring   protobuf  unknown
payments.v1.PaymentService/Refund            payment_request          order_id  by key     10s(1m)       request-reply  spring   protobuf  unknown
delivery.v1.DeliveryRadiusService/SetRadius  delivery_radius_request  shop_id   by key     30s(5m)       request-reply  spring   protobuf  idempotent
echo.v1.EchoService/Echo                     echo.v1.EchoService      -         spread     10s(5m)       request-reply  spring   protobuf  unknown
echo.v1.EchoService/EchoMany                 echo.v1.EchoService      -         spread     10s(5m)       stream         spring   protobuf  unknown

5 methods, 3 services, 3 request topics
"
        );
    }
}
