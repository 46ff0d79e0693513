//! Whom the daemon's threads wait for: every wait that reaches the system, by the lock that it is for.
//!
//! A thread that finds a lock taken tries again a few times, gives its core away (`sched_yield`), and then sleeps
//! (`futex`). `perf` writes down both calls with their stacks, and when they return, so nothing is guessed. What a thread
//! without work sleeps on is a futex too; those are told apart by their stacks. Only the threads that answer requests are
//! traced: to trace the others would slow those who hold the locks.

use std::{
    collections::{BTreeMap, HashMap},
    fs,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};

use super::condition::Condition;
use crate::rig::load::chat;

const WINDOW: Duration = Duration::from_secs(5);
/// What the threads are called that answer requests.
const WORKERS: &str = "tokio-rt-worker";
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

/// What was waited for.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Wait {
    /// Nothing to do.
    Work,
    /// Who wanted the lock, and whether the thread slept, or gave its core away only.
    Lock { who: String, slept: bool },
}

/// How often, and how long in seconds: together and at most.
#[derive(Debug, Default)]
struct Sum {
    count: usize,
    total: f64,
    longest: f64,
}

/// Traces a daemon under load and prints what it waited for.
pub async fn contention(condition: &mut Condition, interval: Duration) -> Result<()> {
    let file = condition.daemon.folder.path().join("perf.data");
    let mut perf = Command::new("perf")
        .args(["record", "--quiet", "--mmap-pages", "4096", "--call-graph", "dwarf,8192"])
        .args(["--tid", &workers(condition.daemon.id())?.join(",")])
        .args(["-e", "syscalls:sys_enter_futex", "--filter", WAITS, "-e", "syscalls:sys_enter_sched_yield"])
        .args(["-e", "syscalls:sys_exit_futex/call-graph=no/", "-e", "syscalls:sys_exit_sched_yield/call-graph=no/"])
        .arg("--output")
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
        .args(["script", "--no-inline", "--fields", "tid,time,event,ip,sym", "--input"])
        .arg(&file)
        .stderr(Stdio::null())
        .output()?;
    let sums = sums(&String::from_utf8_lossy(&output.stdout));
    let chats = WINDOW.as_secs_f64() / interval.as_secs_f64();
    println!(
        "{chats:.0} chats in {} s; waits of the threads that answer them, by who wanted a lock\n",
        WINDOW.as_secs()
    );
    println!("{:>7} {:>10} {:>11} {:>11}  ", "waits", "per 1,000", "mean µs", "longest µs");
    let mut rows: Vec<_> = sums.iter().collect();
    rows.sort_by_key(|(_, sum)| std::cmp::Reverse(sum.count));
    for (wait, sum) in rows {
        let (per, mean, longest) =
            (sum.count as f64 * 1e3 / chats, sum.total * 1e6 / sum.count as f64, sum.longest * 1e6);
        let what = match wait {
            Wait::Work => "slept for want of work".to_owned(),
            Wait::Lock { who, slept } => format!("{} in {who}", if *slept { "slept" } else { "yielded" }),
        };
        println!("{:>7} {per:>10.2} {mean:>11.0} {longest:>11.0}  {what}", sum.count);
    }
    println!();
    for (what, wanted) in [("slept", true), ("yielded", false)] {
        let is_telemetrys = |wait: &Wait| match wait {
            Wait::Lock { who, slept } => *slept == wanted && is_one_of(who, &TELEMETRY),
            Wait::Work => false,
        };
        let (count, total, longest) = sums
            .iter()
            .filter(|(wait, _)| is_telemetrys(wait))
            .fold((0, 0.0, 0.0), |(count, total, longest), (_, sum)| {
                (count + sum.count, total + sum.total, f64::max(longest, sum.longest))
            });
        println!(
            "telemetry's locks, {what}: {count}, {:.2} per 1,000 chats, {:.2} µs a chat, {:.0} µs at most",
            count as f64 * 1e3 / chats,
            total * 1e6 / chats,
            longest * 1e6
        );
    }
    Ok(())
}

/// The threads that answer requests; none where the system doesn't list them.
pub fn workers(process: u32) -> Result<Vec<String>> {
    let mut found = Vec::new();
    for task in fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten() {
        let task = task?;
        // One may have ended meanwhile.
        let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        if name.trim_end() == WORKERS {
            found.push(task.file_name().to_string_lossy().into_owned());
        }
    }
    Ok(found)
}

/// Puts the ends of waits to their beginnings.
fn sums(text: &str) -> BTreeMap<Wait, Sum> {
    let (mut sums, mut open) = (BTreeMap::<Wait, Sum>::new(), HashMap::new());
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let Some((thread, time, event)) = event(line) else { continue };
        if event.contains("sys_exit") {
            // An exit without a beginning is of a call that was none of those.
            if let Some((wait, begun)) = open.remove(thread) {
                let sum = sums.entry(wait).or_default();
                sum.count += 1;
                sum.total += time - begun;
                sum.longest = sum.longest.max(time - begun);
            }
            continue;
        }
        let mut functions = Vec::new();
        while let Some(function) = lines.next_if(|line| event_of_stack(line)) {
            functions.extend(function.trim().split_once(' ').map(|(_, function)| function));
        }
        open.insert(thread, (wait(&functions, event.contains("futex")), time));
    }
    sums
}

/// Thread, seconds and name of an event.
fn event(line: &str) -> Option<(&str, f64, &str)> {
    let (place, event) = line.split_once("syscalls:")?;
    let (thread, time) = place.trim().split_once(char::is_whitespace)?;
    Some((thread, time.trim().trim_end_matches(':').parse().ok()?, event))
}

/// Whether a line is part of a stack.
fn event_of_stack(line: &str) -> bool {
    !line.trim().is_empty() && !line.contains("syscalls:")
}

/// What is waited for in these functions, of which the first is the innermost.
fn wait(functions: &[&str], slept: bool) -> Wait {
    let wanted = |functions: &[&str]| {
        let function = functions.iter().find(|function| !is_one_of(function, &MACHINERY));
        function.map_or_else(|| "an unknown function".to_owned(), |function| without_hash(function).to_owned())
    };
    match functions.iter().rposition(|function| is_one_of(function, &LOCKS)) {
        Some(lock) => Wait::Lock { who: wanted(&functions[lock..]), slept },
        None if slept => Wait::Work,
        // Whatever else gives its core away.
        None => Wait::Lock { who: wanted(functions), slept },
    }
}

fn is_one_of(function: &str, names: &[&str]) -> bool {
    names.iter().any(|name| function.contains(name))
}

/// A function's name without what the compiler puts behind it.
fn without_hash(function: &str) -> &str {
    match function.rsplit_once("::h") {
        Some((name, hash)) if hash.len() == 16 && hash.bytes().all(|byte| byte.is_ascii_hexdigit()) => name,
        _ => function,
    }
}
