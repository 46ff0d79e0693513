//! Models brought into memory and out of it, and watched on their way.

use reqwest::Response;
use serde_json::Value;
use tokio::time::timeout;

use crate::peer::daemon::{Daemon, PATIENCE};

/// Reads a stream of events until one of this name came; gives all of them.
async fn until(events: &mut Response, name: &str) -> String {
    let mut text = String::new();
    while !text.contains(&format!("event: {name}\n")) {
        let chunk = timeout(PATIENCE, events.chunk()).await.expect("an event").unwrap().expect("the stream goes on");
        text.push_str(std::str::from_utf8(&chunk).unwrap());
    }
    text
}

#[tokio::test]
async fn a_model_is_loaded_watched_and_unloaded() {
    let mut daemon = Daemon::start("[local]\ndefault_model = \"\"\n").await;
    let state = async |path: &str, post: bool| {
        let request = if post { daemon.client.post(daemon.url(path)) } else { daemon.client.get(daemon.url(path)) };
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        (status, response.json::<Value>().await.unwrap())
    };
    let (_, listed) = state("/admin/models", false).await;
    assert_eq!(listed["models"][0], serde_json::json!({ "name": "demo", "state": "on_disk" }));
    let mut events = daemon.get("/admin/models/demo/events").await;
    assert_eq!(events.headers()["content-type"], "text/event-stream");
    until(&mut events, "on_disk").await;

    let (status, loaded) = state("/admin/models/demo/load", true).await;
    assert_eq!((status, &loaded["state"]), (200, &Value::from("loaded")), "{loaded}");
    assert!(
        loaded["bytes"].as_u64().unwrap() > 0 && ["stored", "unpacked"].contains(&loaded["weights"].as_str().unwrap()),
        "{loaded}"
    );
    assert_eq!(state("/admin/models/demo", false).await.1, loaded);
    assert!(until(&mut events, "loaded").await.contains("\"bytes\""));

    assert_eq!(state("/admin/models/demo/unload", true).await.1["state"], "on_disk");
    until(&mut events, "on_disk").await;
    assert_eq!(state("/admin/models/nowhere", false).await.0, 404);
    assert_eq!(state("/admin/models/demo/frobnicate", true).await.0, 404);
    let foreign = daemon.client.post(daemon.url("/admin/models/demo/load")).header("origin", "https://example.org");
    assert_eq!(foreign.send().await.unwrap().status(), 403);

    // A stream that is still watched doesn't hold the end up.
    assert!(daemon.stop().await.success());
    while timeout(PATIENCE, events.chunk()).await.unwrap().unwrap().is_some() {}
}
