//! `google.longrunning.Operations`: looks at, waits for, cancels and forgets executions.

use std::time::Duration;

use tonic::{Request, Response, Status};

use crate::access::{Demand, Right};
use crate::error::Error;
use crate::proto::longrunning::operations_server::Operations;
use crate::proto::longrunning::{
    CancelOperationRequest, DeleteOperationRequest, GetOperationRequest, ListOperationsRequest,
    ListOperationsResponse, Operation, WaitOperationRequest,
};
use crate::scheduler::{OperationId, Watch};

use super::inline::Hints;
use super::{Farm, names};

/// Operations on one page of `ListOperations`, at most; each may hold a result of some KiB.
const PAGE_MAX: usize = 100;

/// How long `WaitOperation` waits when the client names no time.
const WAIT_DEFAULT: Duration = Duration::from_secs(60);

#[tonic::async_trait]
impl Operations for Farm {
    async fn get_operation(
        &self,
        request: Request<GetOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let mut watch = self.watch(&demand, &request.get_ref().name).await?;
        Ok(Response::new(self.current(&mut watch).await?))
    }

    async fn list_operations(
        &self,
        request: Request<ListOperationsRequest>,
    ) -> Result<Response<ListOperationsResponse>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let request = request.into_inner();
        let instance = names::parse_collection(&request.name)
            .ok_or_else(|| Error::invalid("the name to list is `{instance}/operations`"))?;
        self.instances.admit(&demand, &instance)?;
        let after = parse_token(&request.page_token)?;
        let wanted = usize::try_from(request.page_size).ok().filter(|size| *size > 0).unwrap_or(PAGE_MAX);
        let found = self.scheduler.list(after, wanted.min(PAGE_MAX)).await?;
        let is_last = found.len() < wanted.min(PAGE_MAX);
        let next_page_token = match found.last() {
            Some((id, _)) if !is_last => token(*id),
            _ => String::new(),
        };
        let mut operations = Vec::new();
        for (id, update) in found.iter().filter(|(_, update)| *update.task.instance == *instance) {
            operations.push(self.operation(*id, update, &Hints::default()).await?);
        }
        Ok(Response::new(ListOperationsResponse { operations, next_page_token, ..Default::default() }))
    }

    async fn delete_operation(
        &self,
        request: Request<DeleteOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let demand = Demand::of(request.extensions(), Right::Execute | Right::Admin);
        let name = request.into_inner().name;
        let id = self.watch(&demand, &name).await?.id();
        demand.caller.record_administration(names::parse(&name)?.0.as_str());
        self.found(self.scheduler.delete(id).await?, &name)
    }

    async fn cancel_operation(
        &self,
        request: Request<CancelOperationRequest>,
    ) -> Result<Response<()>, Status> {
        let demand = Demand::of(request.extensions(), Right::Execute | Right::Admin);
        let name = request.into_inner().name;
        let id = self.watch(&demand, &name).await?.id();
        demand.caller.record_administration(names::parse(&name)?.0.as_str());
        self.found(self.scheduler.cancel(id).await?, &name)
    }

    async fn wait_operation(
        &self,
        request: Request<WaitOperationRequest>,
    ) -> Result<Response<Operation>, Status> {
        let demand = Demand::of(request.extensions(), Right::Read);
        let request = request.into_inner();
        let mut watch = self.watch(&demand, &request.name).await?;
        let seconds = request.timeout.and_then(|timeout| u64::try_from(timeout.seconds).ok());
        let wait = seconds.map_or(WAIT_DEFAULT, Duration::from_secs);
        // Running out of time is no error: REv2's clients get the operation as it stands.
        let _ = tokio::time::timeout(wait, until_done(&mut watch)).await;
        Ok(Response::new(self.current(&mut watch).await?))
    }
}

impl Farm {
    async fn current(&self, watch: &mut Watch) -> Result<Operation, Status> {
        Ok(self.operation(watch.id(), &watch.current(), &Hints::default()).await?)
    }

    fn found(&self, is_known: bool, name: &str) -> Result<Response<()>, Status> {
        if is_known { Ok(Response::new(())) } else { Err(names::unknown(name).into()) }
    }
}

async fn until_done(watch: &mut Watch) {
    while watch.current().response.is_none() {
        if watch.next().await.is_none() {
            return;
        }
    }
}

/// Where the next page begins. The last operation of a page may be another instance's, which who lists this one must not learn of: half
/// of an identifier is a place among all of them, and the other half is not to be guessed. Identifiers are random, so that no two have
/// the same half.
fn token(last: OperationId) -> String {
    format!("{:016x}", last.number() >> 64)
}

fn parse_token(token: &str) -> Result<Option<OperationId>, Error> {
    if token.is_empty() {
        return Ok(None);
    }
    let is_half = token.len() == 16 && token.bytes().all(|digit| digit.is_ascii_hexdigit());
    let half = u64::from_str_radix(token, 16).ok().filter(|_| is_half);
    let half = half.ok_or_else(|| Error::invalid("the page token is not one of ours"))?;
    Ok(Some(OperationId::new(u128::from(half) << 64 | u128::from(u64::MAX))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_token_is_a_place_behind_an_operation_and_does_not_name_it() {
        let last = OperationId::new(0x0123_4567_89ab_cdef_fedc_ba98_7654_3210);
        let token = token(last);
        assert!(OperationId::parse(&token).is_none(), "{token}");
        let after = parse_token(&token).unwrap().unwrap();
        assert!(after >= last && after < OperationId::new(0x0123_4567_89ab_cdf0 << 64));
        assert_ne!(after, last);
        assert!(parse_token("").unwrap().is_none());
        for wrong in
            [&last.to_string()[..], "0", "x123456789abcdef", "+123456789abcdef", "0123456789abcde\u{e9}"]
        {
            assert!(parse_token(wrong).is_err(), "{wrong}");
        }
    }
}
