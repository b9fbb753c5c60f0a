//! Schema ids: those of requests, which are asked for once, at the start, and
//! those that replies name, which are asked for when they first come and kept.
//!
//! A call never waits for the registry to write its request. For a reply with
//! an unknown id it waits until its deadline at most; calls that need the same
//! id wait for one question together, and for a second after a failure they are
//! told of it without another one.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use prost_reflect::FileDescriptor;
use tokio::sync::OnceCell;
use tokio::time::{Instant, timeout_at};

use crate::limits;
use crate::message::DecodeError;
use crate::message::format::Format;
use crate::message::format::confluent::{
    self, Messages, Reference, RegistryError, Schema, SchemaRef, SchemaRegistry,
};
use crate::route::{Route, RouteTable};

/// How long a failed question is not asked again.
const FAILURE_KEPT: Duration = Duration::from_secs(1);
/// Files that import files.
const IMPORT_DEPTH_MAX: usize = 32;

/// Why the schema of a route's requests has no id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("schema registry at {url}, subject {subject:?}: {source}")]
pub struct PrepareError {
    url: String,
    subject: String,
    source: RegistryError,
}

impl PrepareError {
    /// Whether another attempt may do better.
    pub const fn may_pass(&self) -> bool {
        matches!(self.source, RegistryError::Unreachable(_))
    }
}

/// What is known of schemas, process-wide.
#[derive(Debug)]
pub struct Schemas {
    registry: Arc<dyn SchemaRegistry>,
    register: bool,
    /// By the ids that replies have named.
    known: Mutex<HashMap<i32, Arc<Known>>>,
}

#[derive(Debug, Default)]
struct Known {
    messages: OnceCell<Messages>,
    failure: Mutex<Option<(Instant, DecodeError)>>,
}

impl Schemas {
    /// Asks `registry`. Schemas of requests are registered, or else expected to
    /// be there.
    pub fn new(registry: Arc<dyn SchemaRegistry>, register: bool) -> Self {
        Self { registry, register, known: Mutex::default() }
    }

    /// Learns the schema id of every route that needs one.
    pub async fn prepare(&self, routes: &RouteTable) -> Result<(), PrepareError> {
        for route in routes.routes() {
            if let Format::ConfluentProtobuf(framing) = &route.format {
                let (id, index) = match self.register {
                    true => self.register(route, &framing.subject).await?,
                    false => self.find(route, &framing.subject).await?,
                };
                framing.set_schema(id, &index);
                tracing::info!(method = &*route.path, subject = framing.subject, id, "schema id");
            }
        }
        Ok(())
    }

    async fn register(&self, route: &Route, subject: &str) -> Result<(i32, Vec<usize>), PrepareError> {
        let schema = self.schema_of(&route.input.parent_file(), 0).await?;
        let id =
            self.registry.register(subject, &schema).await.map_err(|source| self.failed(subject, source))?;
        Ok((id, confluent::index_of(&route.input)))
    }

    /// The schema of a file; what it imports is registered under the names of
    /// those files, as Confluent's serializers do.
    async fn schema_of(&self, file: &FileDescriptor, depth: usize) -> Result<Schema, PrepareError> {
        let mut references = Vec::new();
        for import in confluent::imports(file) {
            if confluent::is_well_known(&import) {
                continue;
            }
            let name = import.name().to_owned();
            if depth >= IMPORT_DEPTH_MAX {
                let refused =
                    RegistryError::Refused(format!("imports are more than {IMPORT_DEPTH_MAX} deep"));
                return Err(self.failed(&name, refused));
            }
            let schema = Box::pin(self.schema_of(&import, depth + 1)).await?;
            let registered = async {
                self.registry.register(&name, &schema).await?;
                self.registry.version_of(&name, &schema).await
            };
            let version = registered.await.map_err(|source| self.failed(&name, source))?;
            references.push(Reference { subject: name.clone(), name, version });
        }
        Ok(Schema { text: confluent::schema_text(file), references })
    }

    /// The subject's latest schema, which must have the route's message.
    async fn find(&self, route: &Route, subject: &str) -> Result<(i32, Vec<usize>), PrepareError> {
        let latest = self.registry.latest(subject).await.map_err(|source| self.failed(subject, source))?;
        let name = route.input.full_name();
        let messages = Messages::read(&latest.text)
            .map_err(|cause| format!("version {} cannot be read: {cause}", latest.version));
        let index = messages.and_then(|messages| {
            let missing = || format!("version {} has no message {name}", latest.version);
            messages.index_of(name).ok_or_else(missing)
        });
        let index = index.map_err(|cause| self.failed(subject, RegistryError::Refused(cause)))?;
        Ok((latest.id, index))
    }

    fn failed(&self, subject: &str, source: RegistryError) -> PrepareError {
        PrepareError { url: self.registry.url().to_owned(), subject: subject.to_owned(), source }
    }

    /// Whether the schema that a reply names holds the type that the method
    /// returns. Waits until `limit` at most.
    pub async fn check(&self, schema: &SchemaRef, output: &str, limit: Instant) -> Result<(), DecodeError> {
        let wrong = |cause: String| DecodeError::Schema { id: schema.id, cause };
        let known = self.known(schema.id);
        let read = async { known.messages.get_or_try_init(|| self.ask(schema.id, &known)).await };
        let messages = timeout_at(limit, read)
            .await
            .map_err(|_| wrong(format!("could not be looked up at {} in time", self.registry.url())))??;
        match messages.name_at(&schema.index) {
            Some(name) if name == output => Ok(()),
            Some(name) => Err(wrong(format!("is that of {name}, and the method returns {output}"))),
            None => Err(wrong(format!("has no message at index {:?}", schema.index))),
        }
    }

    /// The place for an id. When there are too many all are forgotten: ids are
    /// as many as schemas, so only nonsense makes that happen.
    fn known(&self, id: i32) -> Arc<Known> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= limits::SCHEMAS_KNOWN_MAX && !known.contains_key(&id) {
            known.clear();
        }
        Arc::clone(known.entry(id).or_default())
    }

    async fn ask(&self, id: i32, known: &Known) -> Result<Messages, DecodeError> {
        let recent = known.failure.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((at, error)) = recent
            && at.elapsed() < FAILURE_KEPT
        {
            return Err(error);
        }
        let url = self.registry.url();
        let cause = match self.registry.by_id(id).await {
            Ok(text) => match Messages::read(&text) {
                Ok(messages) => return Ok(messages),
                Err(error) => format!("cannot be read as protobuf: {error}"),
            },
            Err(RegistryError::NotFound(_)) => format!("is not known to the schema registry at {url}"),
            Err(error) => format!("could not be looked up at {url}: {error}"),
        };
        tracing::warn!(id, cause, "schema of a reply");
        let error = DecodeError::Schema { id, cause };
        *known.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), error.clone()));
        Err(error)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::message::format::confluent::Registered;

    /// A registry that knows schema 1 and is slow to say so; 9 hangs.
    #[derive(Debug, Default)]
    struct Slow {
        asked: AtomicU32,
    }

    #[async_trait]
    impl SchemaRegistry for Slow {
        fn url(&self) -> &str {
            "http://registry"
        }

        async fn register(&self, _: &str, _: &Schema) -> Result<i32, RegistryError> {
            Err(RegistryError::Refused("no".to_owned()))
        }

        async fn version_of(&self, _: &str, _: &Schema) -> Result<i32, RegistryError> {
            Err(RegistryError::Refused("no".to_owned()))
        }

        async fn latest(&self, _: &str) -> Result<Registered, RegistryError> {
            Err(RegistryError::Refused("no".to_owned()))
        }

        async fn by_id(&self, id: i32) -> Result<String, RegistryError> {
            self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(if id == 9 { 60_000 } else { 10 })).await;
            match id {
                1 => Ok("syntax = \"proto3\"; package a; message A {} message B {}".to_owned()),
                _ => Err(RegistryError::NotFound("40403".to_owned())),
            }
        }
    }

    fn schema(id: i32, place: usize) -> SchemaRef {
        SchemaRef { id, index: vec![place] }
    }

    #[tokio::test(start_paused = true)]
    async fn many_calls_ask_once_and_a_failure_is_kept_for_a_while() {
        let registry = Arc::new(Slow::default());
        let schemas = Schemas::new(Arc::clone(&registry) as _, true);
        let limit = Instant::now() + Duration::from_secs(5);
        let all = (0..50).map(|_| async { schemas.check(&schema(1, 0), "a.A", limit).await });
        assert!(futures_util::future::join_all(all).await.iter().all(Result::is_ok));
        assert_eq!(registry.asked.load(Ordering::Relaxed), 1);

        let said = |result: Result<(), DecodeError>| result.unwrap_err().to_string();
        assert_eq!(
            said(schemas.check(&schema(1, 1), "a.A", limit).await),
            "its schema id 1 is that of a.B, and the method returns a.A"
        );
        assert_eq!(
            said(schemas.check(&schema(1, 7), "a.A", limit).await),
            "its schema id 1 has no message at index [7]"
        );
        let unknown = "its schema id 5 is not known to the schema registry at http://registry";
        let all = (0..50).map(|_| async { schemas.check(&schema(5, 0), "a.A", limit).await });
        for result in futures_util::future::join_all(all).await {
            assert_eq!(said(result), unknown);
        }
        assert_eq!(registry.asked.load(Ordering::Relaxed), 2);
        tokio::time::sleep(FAILURE_KEPT).await;
        assert_eq!(said(schemas.check(&schema(5, 0), "a.A", limit).await), unknown);
        assert_eq!(registry.asked.load(Ordering::Relaxed), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_beyond_the_deadline() {
        let schemas = Schemas::new(Arc::new(Slow::default()), true);
        let began = Instant::now();
        let late = schemas.check(&schema(9, 0), "a.A", began + Duration::from_secs(2)).await.unwrap_err();
        assert_eq!(late.to_string(), "its schema id 9 could not be looked up at http://registry in time");
        assert_eq!(began.elapsed(), Duration::from_secs(2));
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded() {
        let schemas = Schemas::new(Arc::new(Slow::default()), true);
        let limit = Instant::now() + Duration::from_secs(3_600);
        for id in 100..100 + 2 * i32::try_from(limits::SCHEMAS_KNOWN_MAX).unwrap() {
            assert!(schemas.check(&schema(id, 0), "a.A", limit).await.is_err());
        }
        assert!(schemas.known.lock().unwrap().len() <= limits::SCHEMAS_KNOWN_MAX);
    }
}
