//! `Capabilities`: what this server can do.

use tonic::{Request, Response, Status};

use crate::access::{Demand, Right, Rights};
use crate::digest::Function;
use crate::proto::SemVer;
use crate::proto::rev2::capabilities_server::Capabilities;
use crate::proto::rev2::compressor::Value as Compressor;
use crate::proto::rev2::priority_capabilities::PriorityRange;
use crate::proto::rev2::symlink_absolute_path_strategy::Value as SymlinkStrategy;
use crate::proto::rev2::{
    ActionCacheUpdateCapabilities, CacheCapabilities, ExecutionCapabilities, FastCdc2020Params,
    GetCapabilitiesRequest, PriorityCapabilities, ServerCapabilities,
};

use crate::store::chunking;

use super::Farm;
use super::cas::BATCH_BYTES_MAX;

/// What a batch may carry as we announce it. It is less than [`BATCH_BYTES_MAX`] because the answer to a read of that many bytes
/// also holds digests (350 KiB for blobs of 1 KiB), and most clients refuse messages above 4 MiB.
const BATCH_BYTES_ANNOUNCED: i64 = BATCH_BYTES_MAX as i64 - 512 * 1024;

/// Bazel up to 7, recc and Pants speak 2.0.
const LOW: SemVer = SemVer { major: 2, minor: 0, patch: 0, prerelease: String::new() };
const HIGH: SemVer = SemVer { major: 2, minor: 12, patch: 0, prerelease: String::new() };

#[tonic::async_trait]
impl Capabilities for Farm {
    async fn get_capabilities(
        &self,
        request: Request<GetCapabilitiesRequest>,
    ) -> Result<Response<ServerCapabilities>, Status> {
        // Whoever may do anything here may know what; it is told what it may do itself.
        let demand = Demand::of(request.extensions(), Rights::all());
        let instance = &request.get_ref().instance_name;
        self.instances.admit(&demand, instance)?;
        let rights = demand.caller.within(instance);
        Ok(Response::new(ServerCapabilities {
            cache_capabilities: self.offered.cache.then(|| cache(rights)),
            execution_capabilities: self.offered.execution.then(|| execution(rights)),
            deprecated_api_version: None,
            low_api_version: Some(LOW),
            high_api_version: Some(HIGH),
        }))
    }
}

fn cache(rights: Rights) -> CacheCapabilities {
    CacheCapabilities {
        digest_functions: digest_functions(),
        action_cache_update_capabilities: Some(ActionCacheUpdateCapabilities {
            update_enabled: rights.has(Right::CacheWrite),
        }),
        max_batch_total_size_bytes: BATCH_BYTES_ANNOUNCED,
        symlink_absolute_path_strategy: SymlinkStrategy::Allowed.into(),
        supported_compressors: vec![Compressor::Zstd.into()],
        supported_batch_update_compressors: vec![Compressor::Zstd.into()],
        split_blob_support: true,
        splice_blob_support: true,
        fast_cdc_2020_params: Some(FastCdc2020Params {
            avg_chunk_size_bytes: chunking::AVERAGE_BYTES,
            seed: chunking::SEED,
        }),
        ..CacheCapabilities::default()
    }
}

fn execution(rights: Rights) -> ExecutionCapabilities {
    let priorities = vec![PriorityRange { min_priority: i32::MIN, max_priority: i32::MAX }];
    ExecutionCapabilities {
        digest_function: Function::Sha256.to_proto().into(),
        exec_enabled: rights.has(Right::Execute),
        execution_priority_capabilities: Some(PriorityCapabilities { priorities }),
        supported_node_properties: Vec::new(),
        digest_functions: digest_functions(),
    }
}

fn digest_functions() -> Vec<i32> {
    Function::ALL.iter().map(|function| function.to_proto().into()).collect()
}
