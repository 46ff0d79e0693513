//! The spool against a model of it in memory, over any order of what may happen to it.

use proptest::{collection::vec, prelude::*};

use super::*;

const LIMIT: u64 = 40;
/// The clock's first reading.
const START: Duration = Duration::from_hours(1_000);

#[derive(Debug, Clone)]
enum Step {
    /// A batch of so many bytes, which may be more than the limit.
    Push {
        signal: Signal,
        bytes: usize,
        gzip: bool,
    },
    /// The clock goes on, or steps back.
    Tick {
        minutes: i64,
    },
    /// The oldest of a signal is sent.
    Send(Signal),
    /// The oldest of a signal is under way; what `Settle` does to it may come when it gave way already.
    Begin(Signal),
    Settle,
    Expire(Signal),
    /// The process ends, if `crashed` while it wrote a batch, and another one starts.
    Restart {
        crashed: bool,
    },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let signal = || proptest::sample::select(Signal::ALL.to_vec());
    let step = prop_oneof![
        6 => (signal(), prop_oneof![8 => 1..20usize, 1 => Just(LIMIT as usize), 1 => Just(LIMIT as usize + 1)], any::<bool>())
            .prop_map(|(signal, bytes, gzip)| Step::Push { signal, bytes, gzip }),
        3 => prop_oneof![0..2i64, -30..600i64, Just(25 * 60)].prop_map(|minutes| Step::Tick { minutes }),
        2 => signal().prop_map(Step::Send),
        1 => signal().prop_map(Step::Begin),
        1 => Just(Step::Settle),
        1 => signal().prop_map(Step::Expire),
        1 => any::<bool>().prop_map(|crashed| Step::Restart { crashed }),
    ];
    vec(step, 0..60)
}

/// A batch that waits.
#[derive(Debug, Clone, PartialEq)]
struct Waiting {
    signal: Signal,
    /// Microseconds.
    created: u64,
    /// One of its own for each batch, so that it also says which one it is.
    items: u64,
    gzip: bool,
    bytes: usize,
}

impl Waiting {
    fn body(&self) -> Vec<u8> {
        vec![self.items as u8; self.bytes]
    }
}

/// What is on disk, in the order of its coming, and what was let go.
#[derive(Debug, Default)]
struct Model {
    waiting: Vec<Waiting>,
    lost: Vec<Lost>,
}

impl Model {
    fn bytes(&self) -> u64 {
        self.waiting.iter().map(|batch| batch.bytes as u64).sum()
    }

    fn oldest(&self, signal: Signal) -> Option<&Waiting> {
        self.waiting.iter().find(|batch| batch.signal == signal)
    }

    fn let_go(&mut self, items: u64, cause: Cause) {
        let batch = self.take(items).expect("it waits");
        self.lost.push(Lost { signal: batch.signal, items, cause });
    }

    fn take(&mut self, items: u64) -> Option<Waiting> {
        let index = self.waiting.iter().position(|batch| batch.items == items)?;
        Some(self.waiting.remove(index))
    }

    /// Whether it fits at all.
    fn push(&mut self, mut batch: Waiting) -> bool {
        if batch.bytes as u64 > LIMIT {
            return false;
        }
        let last = self.waiting.iter().rfind(|other| other.signal == batch.signal);
        batch.created = last.map_or(batch.created, |last| batch.created.max(last.created + 1));
        while self.bytes() + batch.bytes as u64 > LIMIT {
            // Of those that are as old, the first signal's.
            let oldest = self.waiting.iter().min_by_key(|other| (other.created, other.signal as usize));
            let oldest = oldest.expect("the limit is more than the batch").items;
            self.let_go(oldest, Cause::SpoolFull);
        }
        self.waiting.push(batch);
        true
    }

    fn expire(&mut self, signal: Signal, now: Duration) {
        let limit = (now - MAX_AGE).as_micros() as u64;
        while let Some(oldest) = self.oldest(signal).filter(|oldest| oldest.created < limit) {
            self.let_go(oldest.items, Cause::TooOld);
        }
    }
}

/// The files in the folder, but for the lock.
fn files(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|file| file.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name != LOCK).collect();
    names.sort_unstable();
    names
}

fn check(dir: &Path, spool: &Spool, model: &Model) -> Result<(), TestCaseError> {
    prop_assert_eq!(spool.bytes().load(Ordering::Relaxed), model.bytes());
    prop_assert!(model.bytes() <= LIMIT);
    let mut expected: Vec<_> = model
        .waiting
        .iter()
        .map(|batch| {
            let (signal, encoding) = (batch.signal.as_str(), if batch.gzip { "gz" } else { "pb" });
            format!("{:020}.{signal}.{}.{encoding}", batch.created, batch.items)
        })
        .collect();
    expected.sort_unstable();
    prop_assert_eq!(files(dir), expected);
    for signal in Signal::ALL {
        let oldest = model.oldest(signal);
        prop_assert_eq!(spool.is_empty(signal), oldest.is_none());
        let entry = spool.oldest(signal);
        prop_assert_eq!(entry.as_ref().map(Entry::items), oldest.map(|batch| batch.items));
        if let (Some(entry), Some(batch)) = (entry, oldest) {
            let read = spool.read(&entry).unwrap();
            prop_assert_eq!((read.signal, read.gzip, read.items), (signal, batch.gzip, batch.items));
            prop_assert_eq!(&read.body[..], &batch.body()[..]);
        }
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn it_does_what_its_model_does(steps in steps()) {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        let (mut spool, mut model) = (Spool::open(dir, LIMIT).unwrap(), Model::default());
        let (mut now, mut pushed, mut under_way, mut lost) = (START, 0, None::<Entry>, Vec::new());
        for step in steps {
            match step {
                Step::Push { signal, bytes, gzip } => {
                    pushed += 1;
                    let batch = Waiting { signal, created: now.as_micros() as u64, items: pushed, gzip, bytes };
                    let encoded = Batch { signal, gzip, items: pushed, body: batch.body().into() };
                    let result = spool.push(&encoded, UNIX_EPOCH + now, &mut lost);
                    prop_assert_eq!(result.is_ok(), model.push(batch));
                }
                Step::Tick { minutes } => {
                    let step = Duration::from_mins(minutes.unsigned_abs());
                    now = if minutes < 0 { now - step } else { now + step };
                }
                Step::Send(signal) => if let Some(entry) = spool.oldest(signal) {
                    let (known, removed) = spool.remove(&entry);
                    prop_assert!(known && removed.is_ok() && model.take(entry.items()).is_some());
                },
                Step::Begin(signal) => under_way = spool.oldest(signal),
                Step::Settle => if let Some(entry) = under_way.take() {
                    let (known, removed) = spool.remove(&entry);
                    prop_assert!(removed.is_ok());
                    prop_assert_eq!(known, model.take(entry.items()).is_some(), "it is counted once");
                },
                Step::Expire(signal) => {
                    spool.expire(signal, UNIX_EPOCH + now, &mut lost).unwrap();
                    model.expire(signal, now);
                }
                Step::Restart { crashed } => {
                    drop(spool);
                    if crashed {
                        fs::write(dir.join("00000000000000000007.logs.1.partial"), "half a ba").unwrap();
                    }
                    spool = Spool::open(dir, LIMIT).unwrap();
                }
            }
            prop_assert_eq!(&lost, &model.lost);
            check(dir, &spool, &model)?;
        }
    }
}
