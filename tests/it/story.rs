//! What the log says of a request that failed, and where it says so.

use serde_json::{Value, json};

use crate::peer::{
    daemon::Daemon,
    upstream::{Reply, Upstream},
};

fn config(upstream: &Upstream, log: &str) -> String {
    format!(
        r#"
[log]
{log}
[[log.sinks]]
name = "mlx-server"
kind = "file"
file = "mlx-server.log"
format = "json"
include = ["mlx_manager::server"]
[[log.sinks]]
name = "mlx-manager"
kind = "file"
file = "mlx-manager.log"
format = "json"
exclude = ["mlx_manager::server"]
[[log.sinks]]
name = "console"
kind = "console"
level = "info"

[cloud]
retries = 1

[[providers]]
name = "up"
kind = "openai"
base_url = "{}"
api_key = "sk-very-secret-key"

[[routes]]
model = "gpt-*"
targets = ["up"]
"#,
        upstream.openai()
    )
}

async fn ask(daemon: &Daemon, id: &str) -> u16 {
    let body = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "a private question" }] });
    let request = daemon.client.post(daemon.url("/v1/chat/completions")).header("x-request-id", id).json(&body);
    let response = request.send().await.unwrap();
    let status = response.status().as_u16();
    response.bytes().await.unwrap();
    status
}

fn lines(daemon: &Daemon, file: &str) -> Vec<Value> {
    daemon.read(file).lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The lines of a request, as message and whether it is marked.
fn of<'a>(lines: &'a [Value], id: &str) -> Vec<(&'a str, bool)> {
    let lines = lines.iter().filter(|line| line["request_id"] == id);
    lines.map(|line| (line["message"].as_str().unwrap(), line["failure_story"] == true)).collect()
}

fn broken() -> Reply {
    Reply::Status(500, vec![], json!({ "error": { "message": "broken" } }).to_string())
}

#[tokio::test]
async fn failed_request_tells_its_story() {
    for on in [true, false] {
        let upstream = Upstream::start().await;
        let log = format!("level = \"info\"\nfailure_story = {on}");
        let mut daemon = Daemon::start(&config(&upstream, &log)).await;
        upstream.script([Reply::Well, broken(), broken()]);
        assert_eq!(ask(&daemon, "went-well").await, 200);
        assert_eq!(ask(&daemon, "failed").await, 500);
        assert!(daemon.stop().await.success());
        let server = lines(&daemon, "logs/mlx-server.log");
        assert_eq!(of(&server, "went-well"), [("request finished", false)]);
        let mut expected = vec![("retrying", false), ("request finished", false)];
        if on {
            let told = [
                "request decoded",
                "routed",
                "calling target",
                "provider called",
                "attempt failed",
                "provider called",
                "target failed",
            ];
            expected.splice(1..1, told.map(|message| (message, true)));
            expected.push(("request answered", true));
        }
        assert_eq!(of(&server, "failed"), expected);
        let manager = daemon.read("logs/mlx-manager.log");
        assert!(!manager.contains("failure_story"), "{manager}");
        let all = manager + &daemon.read("logs/mlx-server.log") + &daemon.stderr().concat();
        assert!(!all.contains("private question") && !all.contains("very-secret"), "content or a key in the log");
        assert!(!daemon.stderr().concat().contains("request decoded"), "the console has a level of its own");
    }
}

#[tokio::test]
async fn third_partys_record_is_in_the_file_of_its_request() {
    let upstream = Upstream::start().await;
    let mut daemon = Daemon::start(&config(&upstream, "level = \"info,hyper_util=trace\"")).await;
    assert_eq!(ask(&daemon, "first").await, 200);
    assert!(daemon.stop().await.success());
    let about_first = |file: &str, library: &str| {
        let lines = lines(&daemon, file);
        let theirs = |line: &&Value| line["target"].as_str().unwrap().starts_with(library);
        lines.iter().filter(theirs).filter(|line| line["request_id"] == "first").count()
    };
    assert!(about_first("logs/mlx-server.log", "hyper_util::client") > 0, "{}", daemon.read("logs/mlx-server.log"));
    assert_eq!(about_first("logs/mlx-manager.log", "hyper_util::client"), 0);
}
