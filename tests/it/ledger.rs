//! The proof of the accounting: requests through providers of every oddity, some left by their clients, some tried again and
//! some moved to another target, and then the providers' own ledger against rows, spans, log lines and metrics, to the token
//! and to the billionth of a dollar.
//!
//! `make ledger` sends ten thousand and prints the table. What differs is named with the seed and the number of its request,
//! by which it can be made again alone.

mod audit;
mod books;
mod fault;
mod plan;
mod price;
mod provider;
mod script;
mod table;

use std::{collections::BTreeSet, pin::pin, time::Duration};

use futures_util::{StreamExt, stream};
use tokio::time::{Instant, sleep};

use self::{
    audit::Request,
    books::Books,
    plan::{Abort, Oddity, Plan},
    provider::Providers,
};
use crate::peer::{
    daemon::{Daemon, PATIENCE, sum},
    otlp::Otlp,
};

/// How many requests are open at the same time.
const AT_ONCE: usize = 32;
/// Enough for every oddity and every fault to be there.
const FEW: usize = 1_000;
const SEED: u64 = 20_260_101;

#[expect(clippy::disallowed_methods, reason = "a test has no configuration")]
fn asked(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|value| value.parse().expect(name))
}

async fn gateway(providers: &Providers, otlp: &Otlp, commit_after: &str) -> Daemon {
    let mut config = format!(
        r#"
[cloud]
retries = 2
stream_commit_after = "{commit_after}"
breaker = {{ failures = 1000000, open = "1 s" }}
[log]
failure_story = false
[[log.sinks]]
name = "console"
kind = "console"
exclude = ["mlx_manager::server"]
[[log.sinks]]
name = "ledger"
kind = "file"
file = "ledger.log"
format = "json"
include = ["mlx_manager::server"]
rotation = "never"
[local]
default_model = ""
[[otlp]]
name = "collector"
kind = "otlp"
endpoint = "{}"
signals = ["traces", "metrics"]
"#,
        otlp.endpoint()
    );
    let targets = [
        ("first", "openai"),
        ("second", "openai"),
        ("stubborn", "openai"),
        ("claude", "anthropic"),
        ("spare", "anthropic"),
    ];
    for (name, kind) in targets {
        // Each has a folder of its own, by which it is known who was asked.
        let path = if kind == "openai" { format!("/{name}/v1") } else { format!("/{name}") };
        let url = format!("http://{}{path}", providers.address);
        config.push_str(&format!("[[providers]]\nname = \"{name}\"\nkind = \"{kind}\"\nbase_url = \"{url}\"\n"));
    }
    let mut route = |model: &str, targets: &[String]| {
        let targets = targets.iter().map(|target| format!("{target:?}")).collect::<Vec<_>>().join(", ");
        let budget = "retry_budget = { ratio = \"100%\", min_per_minute = 1000000 }";
        config.push_str(&format!("[[routes]]\nmodel = {model:?}\ntargets = [{targets}]\n{budget}\n"));
    };
    route("stubborn", &["stubborn/gpt-4o-mini".to_owned()]);
    for (limited, anthropic, first, second) in
        [("limited-gpt-*", false, "first", "second"), ("limited-claude-*", true, "claude", "spare")]
    {
        for model in price::models(anthropic).iter().chain([&limited]) {
            route(model, &[first.to_owned()]);
            route(&format!("over-{model}"), &[format!("{first}/{model}"), format!("{second}/{model}")]);
        }
    }
    config.push_str(price::CONFIG);
    Daemon::start(&config).await
}

/// Sends a request, and leaves or waits as its plan says: the status, and whether the whole answer came.
async fn send(daemon: &Daemon, providers: &Providers, plan: &Plan) -> (Option<u16>, bool) {
    let request = daemon.client.post(daemon.url(plan.path())).header("x-request-id", plan.id()).json(&plan.body());
    match plan.abort {
        Some(Abort::BeforeHead) => {
            let mut silence = pin!(providers.fell_silent(plan.number));
            tokio::select! {
                response = request.send() => {
                    let response = response.unwrap();
                    assert!(plan.stream && response.status() == 200, "{}: answered {response:?}", plan.name());
                    silence.await;
                    (Some(200), false)
                }
                () = &mut silence => (None, false),
            }
        }
        Some(Abort::AfterWords(words)) => {
            let mut response = request.send().await.unwrap();
            let (word, mut read) = (plan.word(words), Vec::new());
            while !String::from_utf8_lossy(&read).contains(&word) {
                let chunk = response.chunk().await.unwrap().unwrap_or_else(|| panic!("{}: ended", plan.name()));
                read.extend_from_slice(&chunk);
            }
            (Some(response.status().as_u16()), false)
        }
        None => {
            let mut response = request.send().await.unwrap();
            let status = response.status().as_u16();
            if plan.hurries() {
                let mut text = String::new();
                while !text.contains("[DONE]") && !text.contains("\"message_stop\"") {
                    let chunk = response.chunk().await.unwrap().unwrap_or_else(|| panic!("{}: ended", plan.name()));
                    text.push_str(&String::from_utf8_lossy(&chunk));
                }
                return (Some(status), text.contains(&plan.word(1)) && text.contains(&plan.word(plan.words)));
            }
            let text = response.text().await.unwrap_or_else(|error| panic!("{}: {error}", plan.name()));
            (Some(status), text.contains(&plan.word(1)) && text.contains(&plan.word(plan.words)))
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn all_books_say_the_same_to_the_token_and_the_cent() {
    prove("1 h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn all_books_say_the_same_of_streams_whose_heads_go_out_at_once() {
    prove("0 s").await;
}

/// Sends the requests and compares all books. `commit_after` is how long the heads of streams wait for content.
async fn prove(commit_after: &str) {
    let seed = asked("LEDGER_SEED").unwrap_or(SEED);
    let numbers: Vec<usize> = match asked("LEDGER_ONLY") {
        Some(only) => vec![only as usize],
        None => (0..asked("LEDGER_REQUESTS").map_or(FEW, |count| count as usize)).collect(),
    };
    let begin = Instant::now();
    let (providers, otlp) = (Providers::start(seed, numbers.last().unwrap() + 1).await, Otlp::start().await);
    let mut daemon = gateway(&providers, &otlp, commit_after).await;
    let requests: Vec<Request> = stream::iter(&numbers)
        .map(|number| {
            let (daemon, providers) = (&daemon, &providers);
            async move {
                let plan = Plan::of(seed, *number);
                let (status, whole) = send(daemon, providers, &plan).await;
                Request { plan, entry: provider::Entry::default(), status, whole }
            }
        })
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let patience = Instant::now() + PATIENCE;
    let recorded = |page: &str| sum(page, "mlx_manager_overhead_seconds_count", &[("phase", "record")]);
    let mut page = daemon.scrape().await;
    while recorded(&page) < numbers.len() as f64 {
        assert!(Instant::now() < patience, "{} of {} have ended", recorded(&page), numbers.len());
        sleep(Duration::from_millis(20)).await;
        page = daemon.scrape().await;
    }
    // What is queued of rows, spans and lines is written before the end.
    assert!(daemon.stop().await.success());
    let rows = crate::serve::audit_rows(daemon.folder.path()).await;
    let books = Books::new(&rows, &daemon.read("logs/ledger.log"), &otlp, &page);
    let requests: Vec<_> = requests
        .into_iter()
        .map(|request| Request { entry: providers.entry(request.plan.number), ..request })
        .collect();
    let (_, usage, _) = crate::serve::run(daemon.folder.path(), &["usage", "--json"]).await;
    let mut mismatches = audit::mismatches(&requests, &books);
    audit::of_usage(&books, &usage, &mut mismatches);
    println!("\n{}", table::table(&requests, &books, mismatches.is_empty()));
    println!("{} requests in {:.1} s", numbers.len(), begin.elapsed().as_secs_f64());
    assert!(mismatches.is_empty(), "{} differ:\n{}", mismatches.len(), mismatches.join("\n"));
    if numbers.len() >= FEW {
        let stayed = || requests.iter().filter(|request| request.plan.abort.is_none());
        let shown: BTreeSet<_> = stayed().map(|request| request.plan.oddity).collect();
        assert!(Oddity::ALL.iter().all(|oddity| shown.contains(oddity)), "every oddity is there: {shown:?}");
        let told: BTreeSet<_> = stayed().filter_map(|request| request.plan.fault).map(|fault| fault.name).collect();
        assert_eq!(told.len(), fault::FAULTS.len(), "every fault is there: {told:?}");
    }
}
