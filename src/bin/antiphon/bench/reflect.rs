//! Asks a server for the descriptors of one of its services.

use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use prost::Message as _;
use prost_types::{FileDescriptorProto, FileDescriptorSet};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::http2::{Broken, Call, Connection, Endpoint, Outcome};
use super::request::{PREFIX_BYTES, framed, headers};

/// One question and its answer.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Files that a service may need.
const FILES_MAX: usize = 10_000;
/// Newest first; they have the same messages.
const SERVICES: [&str; 2] =
    ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
const UNIMPLEMENTED: Outcome = Outcome::Status(12);

/// Why descriptors could not be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum ReflectError {
    #[error(transparent)]
    Broken(#[from] Broken),
    #[error("it does not answer grpc.reflection; name the .proto with --proto or --descriptor-set")]
    NotOffered,
    #[error("reflection ended with {0}")]
    Failed(Outcome),
    #[error("reflection: {0}")]
    Refused(String),
    #[error("reflection: the answer cannot be decoded: {0}")]
    Undecodable(#[from] prost::DecodeError),
    #[error("reflection: no answer within {ANSWER_TIMEOUT:?}")]
    Silent,
    #[error("reflection: the service needs more than {FILES_MAX} files")]
    TooMany,
}

/// The file that declares `service`, and all that it imports.
pub(super) fn descriptors(
    endpoint: &Endpoint,
    authority: &str,
    service: &str,
) -> Result<FileDescriptorSet, ReflectError> {
    let mut reflection = SERVICES[0];
    let first = MessageRequest::FileContainingSymbol(service.to_owned());
    let answer = match ask(endpoint, authority, reflection, first.clone()) {
        Err(ReflectError::NotOffered) => {
            reflection = SERVICES[1];
            ask(endpoint, authority, reflection, first)?
        }
        answer => answer?,
    };
    let mut files = VecDeque::from(answer);
    let mut known = BTreeSet::new();
    let mut set = FileDescriptorSet::default();
    while let Some(file) = files.pop_front() {
        if !known.insert(file.name().to_owned()) {
            continue;
        }
        if known.len() > FILES_MAX {
            return Err(ReflectError::TooMany);
        }
        for import in &file.dependency {
            let at_hand = known.contains(import) || files.iter().any(|file| file.name() == import);
            if !at_hand {
                let more = MessageRequest::FileByFilename(import.clone());
                files.extend(ask(endpoint, authority, reflection, more)?);
            }
        }
        set.file.push(file);
    }
    Ok(set)
}

/// One question on a stream of its own.
fn ask(
    endpoint: &Endpoint,
    authority: &str,
    reflection: &str,
    question: MessageRequest,
) -> Result<Vec<FileDescriptorProto>, ReflectError> {
    let path = format!("/{reflection}/ServerReflectionInfo");
    let endpoint = Endpoint::new(endpoint.address(), &headers(&path, authority, None, &[]), ANSWER_TIMEOUT);
    let mut connection = Connection::open(&endpoint)?;
    connection.keep_answers();
    let request = ServerReflectionRequest { host: String::new(), message_request: Some(question) };
    let messages: Arc<[Box<[u8]>]> = [framed(&request.encode_to_vec())].into();
    connection.start(Call::default(), &messages);
    match finish(&mut connection, &messages)? {
        Outcome::OK => {}
        UNIMPLEMENTED | Outcome::Http(404) => return Err(ReflectError::NotOffered),
        other => return Err(ReflectError::Failed(other)),
    }
    let answers = connection.take_answers();
    let answer = answers.get(PREFIX_BYTES..).unwrap_or_default();
    match ServerReflectionResponse::decode(answer)?.message_response {
        Some(MessageResponse::FileDescriptorResponse(found)) => {
            let files = found.file_descriptor_proto.iter();
            Ok(files.map(|file| FileDescriptorProto::decode(&file[..])).collect::<Result<_, _>>()?)
        }
        Some(MessageResponse::ErrorResponse(error)) => Err(ReflectError::Refused(error.error_message)),
        _ => Err(ReflectError::Refused("it answers another question".to_owned())),
    }
}

fn finish(connection: &mut Connection, messages: &[Box<[u8]>]) -> Result<Outcome, ReflectError> {
    const SLEEP: Timespec = Timespec { tv_sec: 0, tv_nsec: 50_000_000 };
    let until = Instant::now() + ANSWER_TIMEOUT;
    let mut done = Vec::new();
    while done.is_empty() {
        if Instant::now() > until {
            return Err(ReflectError::Silent);
        }
        connection.flush()?;
        // Reading without anything to read does no harm.
        let _ = poll(&mut [PollFd::new(connection.socket(), PollFlags::IN)], Some(&SLEEP));
        if let Err(error) = connection.receive(messages, &mut done)
            && done.is_empty()
        {
            return Err(error.into());
        }
    }
    Ok(done.first().map_or(Outcome::NoStatus, |done| done.outcome))
}
