//! `ActionCache`: results by action digest.

use tonic::{Request, Response, Status};

use crate::access::{Demand, Right};
use crate::digest::Digest;
use crate::error::{Error, Kind};
use crate::proto::rev2::action_cache_server::ActionCache;
use crate::proto::rev2::{ActionResult, GetActionResultRequest, UpdateActionResultRequest};
use crate::store::ActionKey;

use super::inline::Hints;
use super::{Farm, lookups};

#[tonic::async_trait]
impl ActionCache for Farm {
    async fn get_action_result(
        &self,
        request: Request<GetActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let client = lookups::request_metadata(request.metadata());
        let request = request.into_inner();
        let named = (request.digest_function, request.action_digest.as_ref());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        let digest = Digest::from_proto(function, request.action_digest.as_ref()).map_err(Error::from)?;
        let key = ActionKey { instance: request.instance_name.into(), digest };
        let found = self.action_cache.get(&key).await;
        lookups::count(lookups::Method::GetActionResult, &client.action_mnemonic, &found);
        if let Ok(found) = &found {
            let identity = demand.caller.account();
            self.builds.looked_up(&client, (&key.instance, digest, &identity), found.is_some());
        }
        let Some(mut result) = found? else {
            return Err(Error::new(Kind::NotFound, format!("no result of action {digest} is cached")).into());
        };
        let hints = Hints {
            stdout: request.inline_stdout,
            stderr: request.inline_stderr,
            files: request.inline_output_files.into_iter().collect(),
        };
        hints.apply(&self.cas, function, &mut result).await;
        Ok(Response::new(result))
    }

    async fn update_action_result(
        &self,
        request: Request<UpdateActionResultRequest>,
    ) -> Result<Response<ActionResult>, Status> {
        let demand = Demand::of(request.extensions(), Right::CacheWrite);
        let request = request.into_inner();
        let named = (request.digest_function, request.action_digest.as_ref());
        let function = self.function_of(&demand, &request.instance_name, named)?;
        let digest = Digest::from_proto(function, request.action_digest.as_ref()).map_err(Error::from)?;
        let result = request.action_result.ok_or_else(|| Error::invalid("the action result is not set"))?;
        let key = ActionKey { instance: request.instance_name.into(), digest };
        self.action_cache.put(&key, &result).await?;
        Ok(Response::new(result))
    }
}
