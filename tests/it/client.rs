//! A client of the Remote Execution API for tests: short names for what they do all the time.

use std::collections::BTreeMap;

use bytes::Bytes;
use croft::digest::{Digest, Function};
use croft::proto::bytestream::byte_stream_client::ByteStreamClient;
use croft::proto::bytestream::{ReadRequest, WriteRequest};
use croft::proto::longrunning::operations_client::OperationsClient;
use croft::proto::longrunning::{Operation, operation};
use croft::proto::rev2::action_cache_client::ActionCacheClient;
use croft::proto::rev2::batch_update_blobs_request::Request as Update;
use croft::proto::rev2::content_addressable_storage_client::ContentAddressableStorageClient;
use croft::proto::rev2::execution_client::ExecutionClient;
use croft::proto::rev2::{
    self, Action, BatchUpdateBlobsRequest, Command, Directory, ExecuteOperationMetadata, ExecuteRequest,
    ExecuteResponse, FindMissingBlobsRequest, GetActionResultRequest, RequestMetadata,
    UpdateActionResultRequest,
};
use prost::Message;
use tonic::metadata::MetadataValue;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

use crate::farm::{Farm, MESSAGE_BYTES_MAX};

/// One connection, with a stub for each service.
#[derive(Clone)]
pub(crate) struct Client {
    pub(crate) cas: ContentAddressableStorageClient<Channel>,
    pub(crate) bytes: ByteStreamClient<Channel>,
    pub(crate) execution: ExecutionClient<Channel>,
    pub(crate) operations: OperationsClient<Channel>,
    pub(crate) cache: ActionCacheClient<Channel>,
    pub(crate) function: Function,
}

impl Client {
    pub(crate) async fn new(farm: &Farm) -> Self {
        Self::over(farm.channel().await)
    }

    pub(crate) fn over(channel: Channel) -> Self {
        Self {
            cas: ContentAddressableStorageClient::new(channel.clone())
                .max_decoding_message_size(MESSAGE_BYTES_MAX),
            bytes: ByteStreamClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            execution: ExecutionClient::new(channel.clone()).max_decoding_message_size(MESSAGE_BYTES_MAX),
            operations: OperationsClient::new(channel.clone()),
            cache: ActionCacheClient::new(channel),
            function: Function::Sha256,
        }
    }

    /// Stores small blobs, all of which must be taken.
    pub(crate) async fn put_all(&self, blobs: Vec<Bytes>) -> Vec<Digest> {
        let digests: Vec<Digest> = blobs.iter().map(|blob| self.function.hash(blob)).collect();
        let update = |(digest, data): (&Digest, Bytes)| Update {
            digest: Some(digest.to_proto()),
            data,
            compressor: 0,
        };
        let request = BatchUpdateBlobsRequest {
            requests: digests.iter().zip(blobs).map(update).collect(),
            digest_function: self.function.to_proto().into(),
            ..Default::default()
        };
        let answer = self.cas.clone().batch_update_blobs(request).await.unwrap().into_inner();
        for response in answer.responses {
            let status = response.status.unwrap();
            assert_eq!(status.code, 0, "{}", status.message);
        }
        digests
    }

    pub(crate) async fn put(&self, blob: impl Into<Bytes>) -> Digest {
        self.put_all(vec![blob.into()]).await[0]
    }

    pub(crate) async fn put_message(&self, message: &impl Message) -> Digest {
        self.put(message.encode_to_vec()).await
    }

    pub(crate) async fn missing(&self, digests: &[Digest]) -> Vec<rev2::Digest> {
        let request = FindMissingBlobsRequest {
            blob_digests: digests.iter().map(Digest::to_proto).collect(),
            digest_function: self.function.to_proto().into(),
            ..Default::default()
        };
        self.cas.clone().find_missing_blobs(request).await.unwrap().into_inner().missing_blob_digests
    }

    /// Reads `limit` bytes (0: all) from `offset` on.
    pub(crate) async fn read(&self, resource_name: &str, offset: i64, limit: i64) -> Result<Vec<u8>, Status> {
        let request =
            ReadRequest { resource_name: resource_name.into(), read_offset: offset, read_limit: limit };
        let mut chunks = self.bytes.clone().read(request).await?.into_inner();
        let mut content = Vec::new();
        while let Some(chunk) = chunks.message().await? {
            content.extend_from_slice(&chunk.data);
        }
        Ok(content)
    }

    pub(crate) async fn read_blob(&self, digest: &Digest) -> Result<Vec<u8>, Status> {
        self.read(&format!("blobs/{digest}"), 0, 0).await
    }

    /// Sends `messages` as one write.
    pub(crate) async fn write(&self, messages: Vec<WriteRequest>) -> Result<i64, Status> {
        let answer = self.bytes.clone().write(tokio_stream::iter(messages)).await?;
        Ok(answer.into_inner().committed_size)
    }

    /// Uploads a blob in pieces through ByteStream.
    pub(crate) async fn write_blob(&self, content: &Bytes) -> Result<Digest, Status> {
        let digest = self.function.hash(content);
        let name = format!("uploads/{}/blobs/{digest}", uuid::Uuid::new_v4());
        self.write(pieces(&name, content, 0)).await?;
        Ok(digest)
    }

    /// Stores an action with its command and inputs.
    pub(crate) async fn action(
        &self,
        command: &Command,
        inputs: &Inputs,
        change: impl FnOnce(&mut Action),
    ) -> Digest {
        let root = self.put_inputs(inputs).await;
        let command = self.put_message(command).await;
        let mut action = Action {
            command_digest: Some(command.to_proto()),
            input_root_digest: Some(root.to_proto()),
            ..Action::default()
        };
        change(&mut action);
        self.put_message(&action).await
    }

    pub(crate) async fn put_inputs(&self, inputs: &Inputs) -> Digest {
        let blobs: Vec<Bytes> = inputs.files.values().map(|(content, _)| content.clone()).collect();
        let digests = self.put_all(blobs).await;
        let files =
            inputs.files.iter().zip(digests).map(|((name, (_, is_executable)), digest)| rev2::FileNode {
                name: name.clone(),
                digest: Some(digest.to_proto()),
                is_executable: *is_executable,
                node_properties: None,
            });
        self.put_message(&Directory { files: files.collect(), ..inputs.root.clone() }).await
    }

    pub(crate) fn request(&self, action: &Digest) -> ExecuteRequest {
        ExecuteRequest {
            action_digest: Some(action.to_proto()),
            digest_function: self.function.to_proto().into(),
            inline_stdout: true,
            inline_stderr: true,
            ..ExecuteRequest::default()
        }
    }

    pub(crate) async fn execute(&self, request: ExecuteRequest) -> Result<ExecuteResponse, Status> {
        let mut operations = self.execution.clone().execute(request).await?.into_inner();
        finish(&mut operations).await
    }

    /// Runs `script` with `/bin/sh` in a tree of `inputs`.
    pub(crate) async fn run(&self, script: &str, inputs: &Inputs, outputs: &[&str]) -> ExecuteResponse {
        let action = self.action(&shell(script, outputs), inputs, |_| {}).await;
        self.execute(self.request(&action)).await.unwrap()
    }

    /// Asks for the result of an action, as a client that says which kind of action it is.
    pub(crate) async fn look_up(
        &self,
        action: &Digest,
        mnemonic: &str,
    ) -> Result<rev2::ActionResult, Status> {
        let metadata = RequestMetadata { action_mnemonic: mnemonic.into(), ..RequestMetadata::default() };
        let request = GetActionResultRequest {
            action_digest: Some(action.to_proto()),
            digest_function: self.function.to_proto().into(),
            ..GetActionResultRequest::default()
        };
        let request = with_metadata(request, &metadata);
        self.cache.clone().get_action_result(request).await.map(tonic::Response::into_inner)
    }

    pub(crate) async fn put_result(&self, action: &Digest, result: rev2::ActionResult) -> Result<(), Status> {
        let request = UpdateActionResultRequest {
            action_digest: Some(action.to_proto()),
            action_result: Some(result),
            digest_function: self.function.to_proto().into(),
            ..Default::default()
        };
        self.cache.clone().update_action_result(request).await.map(|_| ())
    }
}

/// The files at the top of an input root, and what else its directory holds.
#[derive(Debug, Clone, Default)]
pub(crate) struct Inputs {
    files: BTreeMap<String, (Bytes, bool)>,
    pub(crate) root: Directory,
}

impl Inputs {
    #[must_use]
    pub(crate) fn file(mut self, name: &str, content: impl Into<Bytes>) -> Self {
        self.files.insert(name.into(), (content.into(), false));
        self
    }

    #[must_use]
    pub(crate) fn program(mut self, name: &str, content: impl Into<Bytes>) -> Self {
        self.files.insert(name.into(), (content.into(), true));
        self
    }
}

/// A command that runs `script` with the shell.
pub(crate) fn shell(script: &str, outputs: &[&str]) -> Command {
    Command {
        arguments: ["/bin/sh", "-c", script].map(String::from).into(),
        environment_variables: vec![rev2::command::EnvironmentVariable {
            name: "PATH".into(),
            value: "/usr/bin:/bin".into(),
        }],
        output_paths: outputs.iter().map(|path| (*path).to_owned()).collect(),
        ..Command::default()
    }
}

/// A request of a client that says what it builds.
pub(crate) fn with_metadata<T>(message: T, metadata: &RequestMetadata) -> Request<T> {
    let mut request = Request::new(message);
    let value = MetadataValue::from_bytes(&metadata.encode_to_vec());
    request.metadata_mut().insert_bin("build.bazel.remote.execution.v2.requestmetadata-bin", value);
    request
}

/// Follows an operation to its end.
pub(crate) async fn finish(operations: &mut Streaming<Operation>) -> Result<ExecuteResponse, Status> {
    let mut last = None;
    // To its end: a connection is given up on which thousands of streams were dropped a moment before theirs.
    while let Some(operation) = operations.message().await? {
        last = operation.done.then_some(operation);
    }
    last.map(|operation| response(&operation))
        .ok_or_else(|| Status::internal("the stream ended before the operation was done"))
}

pub(crate) fn response(operation: &Operation) -> ExecuteResponse {
    match operation.result.as_ref().expect("a finished operation has a result") {
        operation::Result::Response(any) => ExecuteResponse::decode(any.value.as_slice()).unwrap(),
        operation::Result::Error(status) => panic!("REv2 forbids Operation.error: {status:?}"),
    }
}

pub(crate) fn metadata(operation: &Operation) -> ExecuteOperationMetadata {
    let any = operation.metadata.as_ref().expect("every operation has metadata");
    assert_eq!(any.type_url, "type.googleapis.com/build.bazel.remote.execution.v2.ExecuteOperationMetadata");
    ExecuteOperationMetadata::decode(any.value.as_slice()).unwrap()
}

/// The messages of one write of `content` from `offset` on, in pieces of 256 KiB.
pub(crate) fn pieces(name: &str, content: &Bytes, offset: usize) -> Vec<WriteRequest> {
    const PIECE: usize = 256 << 10;
    let starts = (offset..content.len().max(offset + 1)).step_by(PIECE);
    let piece = |start: usize| {
        let end = content.len().min(start + PIECE);
        WriteRequest {
            resource_name: if start == offset { name.to_owned() } else { String::new() },
            write_offset: start.try_into().unwrap(),
            finish_write: end == content.len(),
            data: content.slice(start..end),
        }
    };
    starts.map(piece).collect()
}

/// The code of the status inside a response; 0 when it has none.
pub(crate) fn code(response: &ExecuteResponse) -> i32 {
    response.status.as_ref().map_or(0, |status| status.code)
}

/// The message of the status inside a response.
pub(crate) fn message(response: &ExecuteResponse) -> &str {
    response.status.as_ref().map_or("", |status| &status.message)
}

pub(crate) fn stdout(response: &ExecuteResponse) -> String {
    String::from_utf8_lossy(&response.result.as_ref().expect("the action ran").stdout_raw).into_owned()
}

pub(crate) fn stderr(response: &ExecuteResponse) -> String {
    String::from_utf8_lossy(&response.result.as_ref().expect("the action ran").stderr_raw).into_owned()
}
