//! Whom the daemon's threads wait for: every wait that reaches the system, by the lock that it is for.
//!
//! A thread that finds a lock taken tries again a few times, gives its core away (`sched_yield`), and then sleeps
//! (`futex`). `perf` writes down both calls with their stacks, so nothing is guessed. What a thread without work sleeps on
//! is a futex too; those are told apart by their stacks.

use std::{
    collections::BTreeMap,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::condition::Condition;
use crate::rig::load::chat;

const WINDOW: Duration = Duration::from_secs(4);
/// FUTEX_WAIT and FUTEX_WAIT_BITSET, each private or not.
const WAITS: &str = "op == 0 || op == 9 || op == 128 || op == 137";
/// Functions that a thread is in only if it waits for a lock.
const LOCKS: [&str; 8] = [
    "RawMutex::lock_slow",
    "RawRwLock::lock_shared_slow",
    "RawRwLock::lock_exclusive_slow",
    "RawRwLock::wait_for_readers",
    "lock_contended",
    "read_contended",
    "write_contended",
    "lll_lock_wait",
];
/// What is between a lock and whoever wants it.
const MACHINERY: [&str; 8] =
    ["parking_lot", "std::sys", "core::", "lock_api", "syscall", "lll_lock_wait", "pthread_", "std::sync"];
/// Whose functions make a lock telemetry's.
const TELEMETRY: [&str; 6] =
    ["mlx_manager_telemetry", "mlx_manager_signal", "metrics", "tracing", "opentelemetry", "sharded_slab"];

/// A wait: whose it is, and of which thread.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Wait {
    thread: String,
    /// Whether the thread slept, or gave its core away only.
    slept: bool,
    /// Who wanted the lock; `None` slept for want of work.
    who: Option<String>,
    is_telemetry: bool,
}

/// Traces a daemon under load and prints what it waited for.
pub async fn contention(condition: &mut Condition, interval: Duration) -> Result<()> {
    let file = condition.daemon.folder.path().join("perf.data");
    let process = condition.daemon.id().to_string();
    let mut perf = Command::new("perf")
        .args(["record", "--quiet", "--mmap-pages", "8192", "--call-graph", "dwarf,8192", "--pid", &process])
        .args(["-e", "syscalls:sys_enter_futex", "--filter", WAITS, "-e", "syscalls:sys_enter_sched_yield", "--output"])
        .arg(&file)
        .args(["--", "sleep", &WINDOW.as_secs().to_string()])
        .stderr(Stdio::null())
        .spawn()
        .context("there is no `perf`, which this needs")?;
    // A little longer, since `perf` takes its time to begin.
    let count = ((WINDOW.as_secs_f64() + 2.0) / interval.as_secs_f64()) as usize;
    condition.window(&chat(false, 0), count, interval).await?;
    ensure!(perf.wait()?.success(), "`perf` may not trace system calls here");
    let output = Command::new("perf")
        .args(["script", "--no-inline", "--fields", "comm,event,ip,sym", "--input"])
        .arg(&file)
        .stderr(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let mut waits = BTreeMap::<Wait, usize>::new();
    for wait in text.split("\n\n").filter_map(wait) {
        *waits.entry(wait).or_default() += 1;
    }
    let chats = WINDOW.as_secs_f64() / interval.as_secs_f64();
    println!("{chats:.0} chats in {} s; waits by thread and by who wanted the lock\n", WINDOW.as_secs());
    println!("{:>7} {:>12}  {:<18} {:<8} for", "waits", "per 1,000", "thread", "");
    let mut rows: Vec<_> = waits.iter().collect();
    rows.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    for (wait, count) in rows {
        println!(
            "{count:>7} {:>12.2}  {:<18} {:<8} {}",
            *count as f64 * 1e3 / chats,
            wait.thread,
            if wait.slept { "slept" } else { "yielded" },
            wait.who.as_deref().unwrap_or("work")
        );
    }
    let of_telemetry: usize = waits.iter().filter(|(wait, _)| wait.is_telemetry).map(|(_, count)| count).sum();
    println!("\n{of_telemetry} waits for locks of telemetry, {:.2} per 1,000 chats", of_telemetry as f64 * 1e3 / chats);
    Ok(())
}

/// A wait from its block: a line with the thread and the call, and a line for each function, innermost first.
fn wait(block: &str) -> Option<Wait> {
    let mut lines = block.lines().filter(|line| !line.trim().is_empty());
    let (thread, event) = lines.next()?.trim().split_once("syscalls:")?;
    let functions: Vec<&str> = lines.filter_map(|line| Some(line.trim().split_once(' ')?.1)).collect();
    let slept = event.contains("futex");
    let is_one_of = |function: &str, names: &[&str]| names.iter().any(|name| function.contains(name));
    let lock = functions.iter().rposition(|function| is_one_of(function, &LOCKS));
    let wanted = lock.and_then(|lock| functions[lock..].iter().find(|function| !is_one_of(function, &MACHINERY)));
    let name = |function: &&str| function.split("::h").next().unwrap_or_default().to_owned();
    let who = match lock {
        Some(_) => Some(wanted.map_or_else(|| "?".to_owned(), name)),
        // Whatever else gives its core away is shown by its innermost function.
        None if !slept => functions.iter().find(|function| !is_one_of(function, &MACHINERY)).map(name),
        None => None,
    };
    let is_telemetry = who.as_deref().is_some_and(|who| is_one_of(who, &TELEMETRY));
    Some(Wait {
        thread: thread.trim().trim_end_matches(|last: char| last.is_ascii_digit()).to_owned(),
        slept,
        who,
        is_telemetry,
    })
}
