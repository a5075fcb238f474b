//! The auditor with a second run that the test makes up.

use bytes::Bytes;
use prost::Message;

use super::*;
use crate::digest::Function;
use crate::proto::Status;
use crate::proto::rev2::{Directory, DirectoryNode, FileNode, OutputDirectory, OutputFile, Tree};
use crate::store::{Memory, Verified};
use crate::tasks;

const FUNCTION: Function = Function::Sha256;

/// Answers every second run with the same.
struct Again(ExecuteResponse);

#[async_trait]
impl Rerun for Again {
    async fn rerun(&self, _: &ActionKey, avoided: &str) -> Result<ExecuteResponse> {
        assert_eq!(avoided, "first");
        Ok(self.0.clone())
    }
}

fn ran(worker: &str, result: ActionResult) -> ActionResult {
    let mut result = result;
    result.execution_metadata.get_or_insert_default().worker = worker.into();
    result
}

async fn put(cas: &Cas, content: Vec<u8>) -> Option<crate::proto::rev2::Digest> {
    Some(cas.put_bytes(FUNCTION, Bytes::from(content)).await.unwrap().to_proto())
}

async fn file(cas: &Cas, path: &str, content: &str) -> ActionResult {
    let digest = put(cas, content.into()).await;
    let file = OutputFile { path: path.into(), digest, ..OutputFile::default() };
    ActionResult { output_files: vec![file], ..ActionResult::default() }
}

/// A tree with one file, two directories down.
async fn tree(cas: &Cas, content: &str) -> ActionResult {
    let digest = put(cas, content.into()).await;
    let file = FileNode { name: "file".into(), digest, ..FileNode::default() };
    let inner = Directory { files: vec![file], ..Directory::default() };
    let digest = Some(FUNCTION.hash(&inner.encode_to_vec()).to_proto());
    let node = DirectoryNode { name: "inner".into(), digest };
    let top = Directory { directories: vec![node], ..Directory::default() };
    let tree = Tree { root: Some(top), children: vec![inner] };
    let tree_digest = put(cas, tree.encode_to_vec()).await;
    let output = OutputDirectory { path: "out".into(), tree_digest, ..OutputDirectory::default() };
    ActionResult { output_directories: vec![output], ..ActionResult::default() }
}

fn cas() -> Cas {
    Cas::new(store())
}

fn store() -> Arc<Verified> {
    Arc::new(Verified::new(Arc::new(Memory::new(1 << 20))))
}

/// Audits an action whose cached result is `before`.
async fn audit(cas: &Cas, before: ActionResult, response: ExecuteResponse) -> Report {
    let action_cache = ActionCache::new(store(), cas.clone());
    let key = ActionKey { instance: "main".into(), digest: FUNCTION.hash(b"action") };
    action_cache.put(&key, &before).await.unwrap();
    let auditor = Arc::new(Auditor::new(Config::default(), cas.clone(), action_cache.clone()));
    let shutdown = Shutdown::new();
    let running =
        tasks::spawn("auditor", Arc::clone(&auditor).run(Arc::new(Again(response)), shutdown.clone()));
    let number = auditor.ask(vec![key.clone()], 0).unwrap()[0];
    let report = loop {
        match auditor.progress(number).unwrap() {
            Progress::Done { report } => break *report,
            Progress::Waiting | Progress::Running => tokio::task::yield_now().await,
        }
    };
    shutdown.cancel();
    running.await.unwrap().unwrap();
    assert_eq!(action_cache.get(&key).await.unwrap(), Some(before), "the cached result is as it was");
    report
}

fn answered(result: ActionResult) -> ExecuteResponse {
    ExecuteResponse { result: Some(ran("second", result)), ..ExecuteResponse::default() }
}

#[tokio::test]
async fn equal_outputs_are_the_same_whatever_was_printed() {
    let cas = cas();
    let result = file(&cas, "out", "x").await;
    let again = ActionResult { stdout_raw: b"took 3 s"[..].into(), ..result.clone() };
    let report = audit(&cas, ran("first", result), answered(again)).await;
    assert_eq!((report.outcome, report.differences.len()), (Outcome::Same, 1));
    assert_eq!((report.first_worker.as_str(), report.second_worker.as_str()), ("first", "second"));
}

#[tokio::test]
async fn a_file_deep_in_a_tree_is_named_with_its_line() {
    let cas = cas();
    let (one, other) = (tree(&cas, "a\nb\n").await, tree(&cas, "a\nc\n").await);
    let report = audit(&cas, ran("first", one), answered(other)).await;
    assert_eq!(report.outcome, Outcome::Differs);
    assert_eq!(report.differences[0].to_string(), "out/inner/file: other content, line 2: `b`, then `c`");
}

#[tokio::test]
async fn a_second_run_that_fails_differs_by_its_exit_code_alone() {
    let cas = cas();
    let again = ActionResult { exit_code: 3, ..ActionResult::default() };
    let report = audit(&cas, ran("first", file(&cas, "out", "x").await), answered(again)).await;
    let changes: Vec<&Change> = report.differences.iter().map(|one| &one.change).collect();
    assert_eq!((report.outcome, changes), (Outcome::Differs, vec![&Change::ExitCode { again: 3 }]));
}

#[tokio::test]
async fn a_second_run_without_an_end_says_why() {
    let cas = cas();
    let status = Status { code: 9, message: "the inputs are gone".into(), details: Vec::new() };
    let response = ExecuteResponse { status: Some(status), ..ExecuteResponse::default() };
    let report = audit(&cas, ran("first", ActionResult::default()), response).await;
    assert_eq!(report.outcome, Outcome::Failed);
    assert!(report.failure.ends_with("the inputs are gone"), "{}", report.failure);
}

#[test]
fn the_share_that_is_audited_is_always_the_same() {
    let digests: Vec<Digest> = (0..1000_u32).map(|number| FUNCTION.hash(&number.to_be_bytes())).collect();
    let chosen = |rate| digests.iter().filter(|digest| is_chosen(digest, rate)).count();
    assert_eq!((chosen(0.0), chosen(1.0)), (0, 1000));
    assert!((150..350).contains(&chosen(0.25)), "{}", chosen(0.25));
    assert!(digests.iter().all(|digest| !is_chosen(digest, 0.25) || is_chosen(digest, 0.5)));
}

#[test]
fn nonsense_in_the_configuration_is_told() {
    let wrong = Config { rate: f64::NAN, parallel: 0, reports_max: 0 };
    assert_eq!((Config::default().check().len(), wrong.check().len()), (0, 3));
}
