//! Kafka as the flow sees it.
