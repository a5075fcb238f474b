//! What the pages tell of: ten thousand operations of many builds, and one build with what is hard to show.

use croft::digest::Digest;
use croft::proto::longrunning::Operation;
use croft::proto::rev2::command::EnvironmentVariable;
use croft::proto::rev2::platform::Property;
use croft::proto::rev2::{
    Action, Command, Directory, DirectoryNode, ExecuteResponse, FileNode, Platform, RequestMetadata,
    ToolDetails,
};
use futures_util::{StreamExt, stream};
use prost::Message;
use tonic::Streaming;

use crate::client::{Client, Inputs, response, shell, with_metadata};
use crate::fleet::{OUTPUT, POOL};

/// Builds, the operations of each, and those of them that the build before has had, too. Together 10,200 operations.
const BUILDS: usize = 34;
const OPERATIONS: usize = 300;
const REPEATED: usize = 120;

/// Actions that one build has executed at once.
const JOBS: usize = 100;

/// Actions that are stored with one request.
const BATCH: usize = 1000;

/// Files of the large input tree.
const FILES: usize = 10_000;

/// What actions demand that run in a real sandbox.
pub(crate) const SANDBOX: &str = "sandbox";

/// What an action writes wherever it can.
pub(crate) const TAG: &str = "<script>alert(1)</script>";

/// Kinds of actions with their command lines.
const KINDS: [(&str, &str); 5] = [
    (
        "CppCompile",
        "/usr/bin/gcc -U_FORTIFY_SOURCE -fstack-protector -Wall -Wunused-but-set-parameter -Wno-free-nonheap-object \
         -fno-omit-frame-pointer -std=c++17 -MD -MF bazel-out/k8-fastbuild/bin/src/net/socket.d -iquote . -iquote \
         bazel-out/k8-fastbuild/bin -c src/net/socket.cc -o bazel-out/k8-fastbuild/bin/src/net/socket.o",
    ),
    ("CppLink", "/usr/bin/gcc @bazel-out/k8-fastbuild/bin/src/server/server-2.params"),
    (
        "Javac",
        "external/remotejdk/bin/java -jar external/java_tools/JavaBuilder_deploy.jar @bazel-out/params",
    ),
    (
        "GoCompilePkg",
        "external/go_sdk/builder compilepkg -src src/api/handler.go -importpath example.org/api",
    ),
    ("TestRunner", "external/bazel_tools/tools/test/test-setup.sh src/net/socket_test --gtest_filter=*"),
];

/// Operations by what is to be seen of them.
pub(crate) struct Book {
    pub(crate) done: String,
    pub(crate) failed: String,
    pub(crate) cached: String,
    pub(crate) hostile: String,
    /// It has a large input tree and prints much.
    pub(crate) large: String,
    pub(crate) running: String,
    pub(crate) waiting: String,
    pub(crate) invocation: String,
    /// An action with a result, for the page of the action cache.
    pub(crate) action: Digest,
    /// The farm ends what nobody follows any more.
    _followed: Vec<Streaming<Operation>>,
}

/// A client and what it says of its requests.
struct Build<'a> {
    client: &'a Client,
    invocation: String,
}

impl Book {
    pub(crate) async fn fill(client: &Client) -> Self {
        let actions = actions(client).await;
        let mut last = Vec::new();
        let mut build = Build::new(client);
        for number in 0..BUILDS {
            build = Build::new(client);
            let first = number * (OPERATIONS - REPEATED);
            last = build.all(&actions[first..first + OPERATIONS]).await;
        }
        let done =
            |response: &ExecuteResponse| response.result.as_ref().is_some_and(|result| result.exit_code == 0);
        let (index, (operation, _)) = last
            .iter()
            .enumerate()
            .rfind(|(_, (_, response))| done(response) && !response.cached_result)
            .unwrap();
        let cached = last.iter().find(|(_, response)| response.cached_result).unwrap();
        let action = actions[(BUILDS - 1) * (OPERATIONS - REPEATED) + index];
        let (running, waiting) = (build.follow(RUNNING, SANDBOX).await, build.follow("true", "gpu").await);
        Self {
            done: operation.clone(),
            failed: build.run(FAILING, &Inputs::default()).await,
            cached: cached.0.clone(),
            hostile: build.hostile().await,
            large: build.large().await,
            running: running.0,
            waiting: waiting.0,
            action,
            invocation: build.invocation,
            _followed: vec![running.1, waiting.1],
        }
    }
}

const RUNNING: &str =
    "n=0; while :; do echo \"[ RUN      ] SocketTest.Reconnects/$n\"; sleep 1; n=$((n + 1)); done";

const FAILING: &str = "printf '\\033[1msrc/net/socket.cc:42:7: \\033[31merror: \\033[0mno member named reset in Socket\\n   42 |   \
                       socket.reset();\\n      |   ~~~~~~ ^\\n1 error generated.\\n' >&2; exit 1";

/// One after the other, each a little different from the one before.
async fn actions(client: &Client) -> Vec<Digest> {
    let root = client.put_inputs(&Inputs::default().file("socket.cc", "int main() { return 0; }\n")).await;
    let mut commands = Vec::new();
    for (_, line) in KINDS {
        let variable =
            |name: &str, value: &str| EnvironmentVariable { name: name.into(), value: value.into() };
        let command = Command {
            arguments: line.split_whitespace().map(str::to_owned).collect(),
            environment_variables: vec![
                variable("PATH", "/bin:/usr/bin:/usr/local/bin"),
                variable("PWD", "/proc/self/cwd"),
            ],
            output_paths: vec![OUTPUT.to_owned()],
            ..Command::default()
        };
        commands.push(client.put_message(&command).await);
    }
    let action = |number: usize| Action {
        command_digest: Some(commands[number % KINDS.len()].to_proto()),
        input_root_digest: Some(root.to_proto()),
        salt: number.to_string().into_bytes(),
        platform: Some(pool(POOL)),
        ..Action::default()
    };
    let blobs: Vec<_> =
        (0..BUILDS * OPERATIONS).map(|number| action(number).encode_to_vec().into()).collect();
    let mut digests = Vec::new();
    for batch in blobs.chunks(BATCH) {
        digests.extend(client.put_all(batch.to_vec()).await);
    }
    digests
}

fn pool(name: &str) -> Platform {
    Platform { properties: vec![Property { name: "Pool".into(), value: name.into() }] }
}

impl<'a> Build<'a> {
    fn new(client: &'a Client) -> Self {
        Self { client, invocation: uuid::Uuid::new_v4().to_string() }
    }

    /// Has an action executed. Returns the identifier of the operation, and what is told of it.
    async fn begin(
        &self,
        action: &Digest,
        (mnemonic, target): (&str, &str),
    ) -> (String, Operation, Streaming<Operation>) {
        let metadata = RequestMetadata {
            tool_details: Some(ToolDetails { tool_name: "bazel".into(), tool_version: "8.4.1".into() }),
            tool_invocation_id: self.invocation.clone(),
            target_id: target.into(),
            action_mnemonic: mnemonic.into(),
            ..RequestMetadata::default()
        };
        let request = with_metadata(self.client.request(action), &metadata);
        let mut operations = self.client.execution.clone().execute(request).await.unwrap().into_inner();
        let first = operations.message().await.unwrap().unwrap();
        (first.name.rsplit('/').next().unwrap().to_owned(), first, operations)
    }

    async fn execute(&self, action: &Digest, named: (&str, &str)) -> (String, ExecuteResponse) {
        let (id, mut last, mut operations) = self.begin(action, named).await;
        // To the end of the stream: a connection on which thousands are dropped before it is closed as an attack.
        while let Some(next) = operations.message().await.unwrap() {
            last = next;
        }
        (id, response(&last))
    }

    async fn all(&self, actions: &[Digest]) -> Vec<(String, ExecuteResponse)> {
        const PACKAGES: [&str; 6] =
            ["net", "api", "server", "storage/index", "ui/components", "third_party/zlib"];
        let executions = actions.iter().enumerate().map(async |(number, action)| {
            let target = format!("//src/{}:target_{number}", PACKAGES[number % PACKAGES.len()]);
            self.execute(action, (KINDS[number % KINDS.len()].0, &target)).await
        });
        stream::iter(executions).buffered(JOBS).collect().await
    }

    async fn run(&self, script: &str, inputs: &Inputs) -> String {
        let platform = |action: &mut Action| action.platform = Some(pool(SANDBOX));
        let action = self.client.action(&shell(script, &[]), inputs, platform).await;
        self.execute(&action, ("CppCompile", "//src/net:socket")).await.0
    }

    /// An action that does not end, or does not begin.
    async fn follow(&self, script: &str, place: &str) -> (String, Streaming<Operation>) {
        let platform = |action: &mut Action| action.platform = Some(pool(place));
        let action = self.client.action(&shell(script, &[]), &Inputs::default(), platform).await;
        let (id, _, operations) = self.begin(&action, ("TestRunner", "//src/net:socket_test")).await;
        (id, operations)
    }

    /// An action that tries to get more than text into the pages.
    async fn hostile(&self) -> String {
        let script = format!(
            "echo '{TAG}'; echo '{TAG}' >&2; mkdir '<b>'; echo '{TAG}' > '<b>/<img src=x onerror=alert(2)>'"
        );
        let mut command = shell(&script, &["<b>"]);
        command.arguments.push(TAG.to_owned());
        command.environment_variables.push(EnvironmentVariable { name: TAG.into(), value: TAG.into() });
        let inputs = Inputs::default().file("<script>alert(3)", "x").file("binary", &b"\0"[..]);
        let platform = |action: &mut Action| action.platform = Some(pool(SANDBOX));
        let action = self.client.action(&command, &inputs, platform).await;
        let (id, response) = self.execute(&action, (TAG, TAG)).await;
        let result = response.result.unwrap();
        assert_eq!(result.exit_code, 0, "{}", String::from_utf8_lossy(&result.stderr_raw));
        id
    }

    async fn large(&self) -> String {
        let content = self.client.put("The quick brown fox jumps over the lazy dog.\n".repeat(50)).await;
        let file = |number: usize| FileNode {
            name: format!("generated_file_{number:05}.h"),
            digest: Some(content.to_proto()),
            is_executable: number.is_multiple_of(7),
            ..FileNode::default()
        };
        let below = Directory { files: vec![file(1)], ..Directory::default() };
        let below = self.client.put_message(&below).await;
        let directory = |name: &str| DirectoryNode { name: name.into(), digest: Some(below.to_proto()) };
        let root = Directory {
            files: (0..FILES).map(file).collect(),
            directories: vec![directory("include"), directory("src")],
            ..Directory::default()
        };
        let script =
            "i=0; while [ $i -lt 20000 ]; do echo \"line $i of what is printed\"; i=$((i + 1)); done";
        let command = self.client.put_message(&shell(script, &[])).await;
        let action = Action {
            command_digest: Some(command.to_proto()),
            input_root_digest: Some(self.client.put_message(&root).await.to_proto()),
            platform: Some(pool(SANDBOX)),
            ..Action::default()
        };
        let action = self.client.put_message(&action).await;
        self.execute(&action, ("Genrule", "//src/codegen:headers")).await.0
    }
}
