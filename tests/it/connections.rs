//! By which connections a provider is called: kept ones, new ones, and those through a proxy.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional},
    net::{TcpListener, TcpStream},
    process::Command,
};
use tokio_util::task::TaskTracker;

use crate::peer::{
    daemon::Daemon,
    upstream::{Upstream, openai_body},
    wire::Wire,
};

async fn gateway(base_url: &str, change: impl FnOnce(&mut Command)) -> Daemon {
    let config = format!(
        "[cloud]\nretries = 0\n[[providers]]\nname = \"up\"\nkind = \"openai\"\nbase_url = \"{base_url}\"\n\
         [[routes]]\nmodel = \"gpt-*\"\ntargets = [\"up\"]\n"
    );
    Daemon::start_with(&config, change).await
}

async fn ask(daemon: &Daemon) -> u16 {
    let request = json!({ "model": "gpt-x", "messages": [{ "role": "user", "content": "Hi" }] });
    daemon.post("/v1/chat/completions", &request).await.status().as_u16()
}

/// What the system is told of proxies.
fn environment(command: &mut Command, proxy: SocketAddr, no_proxy: &str) {
    for name in ["HTTP_PROXY", "HTTPS_PROXY"] {
        command.env(name, format!("http://name:word@{proxy}"));
    }
    command.env("NO_PROXY", no_proxy).env_remove("no_proxy").env_remove("http_proxy").env_remove("https_proxy");
}

/// A proxy that forwards and tunnels, and keeps the heads of what it is asked.
async fn proxy(to: SocketAddr) -> (SocketAddr, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let heads = Arc::<Mutex<Vec<String>>>::default();
    let (kept, tasks) = (Arc::clone(&heads), TaskTracker::new());
    tasks.clone().spawn(async move {
        while let Ok((mut caller, _)) = listener.accept().await {
            let kept = Arc::clone(&kept);
            tasks.spawn(async move {
                let mut head = Vec::new();
                while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                    if caller.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let text = String::from_utf8_lossy(&head).to_lowercase();
                let mut there = TcpStream::connect(to).await.unwrap();
                if text.starts_with("connect") {
                    caller.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await.unwrap();
                } else {
                    there.write_all(&head).await.unwrap();
                }
                kept.lock().unwrap().push(text);
                copy_bidirectional(&mut caller, &mut there).await.unwrap_or_default();
            });
        }
    });
    (address, heads)
}

#[tokio::test]
async fn a_proxy_that_the_system_names_is_asked_to_forward() {
    let upstream = Upstream::start().await;
    let (address, heads) = proxy(upstream.address).await;
    let daemon = gateway(&upstream.openai(), |command| environment(command, address, "")).await;
    assert_eq!(ask(&daemon).await, 200);
    let head = heads.lock().unwrap().concat();
    assert!(head.starts_with(&format!("post {}/chat/completions http/1.1\r\n", upstream.openai())), "{head}");
    assert!(head.contains("\r\nproxy-authorization: basic bmftztp3b3jk\r\n"), "{head}");
    assert!(head.contains(&format!("\r\nhost: {}\r\n", upstream.address)), "{head}");

    let daemon = gateway(&upstream.openai(), |command| environment(command, address, "127.0.0.1")).await;
    assert_eq!(ask(&daemon).await, 200);
    assert_eq!(heads.lock().unwrap().len(), 1, "nothing of what it is not for");
    assert!(!upstream.received()[1].headers.contains_key("proxy-authorization"));
}

#[tokio::test]
async fn tls_goes_through_a_tunnel_that_a_proxy_makes() {
    let upstream = Upstream::start_over(Wire::Http2 { streams: 100 }).await;
    let (address, heads) = proxy(upstream.address).await;
    let daemon = gateway(&upstream.openai(), |command| {
        upstream.trust(command);
        environment(command, address, "");
    })
    .await;
    assert_eq!(ask(&daemon).await, 200);
    assert_eq!(ask(&daemon).await, 200);
    let heads = heads.lock().unwrap();
    assert!(heads[0].starts_with(&format!("connect {} http/1.1\r\n", upstream.address)), "{heads:?}");
    assert!(heads[0].contains("proxy-authorization: basic bmftztp3b3jk"), "{heads:?}");
    assert_eq!(heads.len(), 1, "one connection carries both");
    assert!(upstream.received().iter().all(|received| !received.headers.contains_key("proxy-authorization")));
}

/// A provider that closes each connection after so many answers without a word; and how many answers each gave.
async fn closes_after(answers: usize) -> (SocketAddr, Arc<Mutex<Vec<usize>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let given = Arc::<Mutex<Vec<usize>>>::default();
    let kept = Arc::clone(&given);
    TaskTracker::new().spawn(async move {
        let body = openai_body("gpt-x").to_string();
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        while let Ok((mut caller, _)) = listener.accept().await {
            kept.lock().unwrap().push(0);
            for _ in 0..answers {
                let mut request = Vec::new();
                while !request.ends_with(b"}") {
                    if caller.read_buf(&mut request).await.unwrap_or(0) == 0 {
                        break;
                    }
                }
                caller.write_all(answer.as_bytes()).await.unwrap();
                *kept.lock().unwrap().last_mut().unwrap() += 1;
            }
        }
    });
    (address, given)
}

#[tokio::test]
async fn a_connection_is_used_until_its_provider_closes_it_which_costs_no_answer() {
    let (address, given) = closes_after(3).await;
    let daemon = gateway(&format!("http://{address}/v1"), |_| {}).await;
    for _ in 0..7 {
        assert_eq!(ask(&daemon).await, 200);
    }
    assert_eq!(*given.lock().unwrap(), [3, 3, 1]);
}
