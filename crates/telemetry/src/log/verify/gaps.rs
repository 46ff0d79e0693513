//! From runs of numbers to gaps, and from loss records to which gaps they explain.

use super::{Family, Fault, Lost, Reading, Run, Spot};

/// Consecutive numbers that are missing.
#[derive(Debug, PartialEq, Eq)]
pub struct Gap {
    /// The lowest.
    pub first: u64,
    /// The highest.
    pub last: u64,
    /// The record with the number below.
    pub after: Spot,
    /// The record with the number above.
    pub before: Spot,
    /// The loss record that stands for all of them, if there is one.
    pub explained_by: Option<Spot>,
}

impl Gap {
    /// How many numbers are missing.
    pub fn count(&self) -> u64 {
        self.last - self.first + 1
    }
}

/// Loss records whose stretches overlap. They are judged together: each says how many numbers of its stretch were
/// lost, but not which, and what one leaves out another may have.
#[derive(Debug)]
struct Account {
    first: u64,
    last: u64,
    /// How many numbers are missing if everything else is there.
    expected: u64,
    spot: Spot,
}

pub(super) fn judge(family: &mut Family, reading: Reading) {
    let Reading { mut runs, losses } = reading;
    runs.sort_by(|left, right| (left.first, &left.start).cmp(&(right.first, &right.start)));
    let (Some(lowest), Some(highest)) = (runs.first(), runs.iter().map(|run| run.last).max()) else { return };
    let lowest = lowest.first;
    family.numbers = Some((lowest, highest));
    let accounts = accounts(losses);
    let mut reach: Option<&Run> = None;
    for run in &runs {
        if let Some(reach) = reach {
            if run.first <= reach.last {
                let numbers = run.first..=run.last.min(reach.last);
                let (first, again) = (reach.spot_of(run.first), run.start.clone());
                family.faults.push(Fault::Twice { numbers, first, again });
            } else if run.first - reach.last > 1 {
                split(reach, run, &accounts, &mut family.gaps);
            }
        }
        if reach.is_none_or(|reach| run.last > reach.last) {
            reach = Some(run);
        }
    }
    for account in &accounts {
        let within = |gap: &&mut Gap| (account.first..=account.last).contains(&gap.first);
        let missing = family.gaps.iter_mut().filter(within).map(|gap| gap.count()).sum::<u64>();
        // What came before the first of these files can't be counted.
        let clipped = account.first < lowest;
        if missing == account.expected || clipped && missing <= account.expected {
            for gap in family.gaps.iter_mut().filter(within) {
                gap.explained_by = Some(account.spot.clone());
            }
        } else if missing < account.expected {
            let (counted, spot) = (account.expected, account.spot.clone());
            family.faults.push(Fault::Miscount { counted, missing, spot });
        }
    }
}

fn accounts(mut losses: Vec<(Lost, u64, Spot)>) -> Vec<Account> {
    losses.sort_by_key(|(lost, _, _)| lost.first);
    let mut accounts: Vec<Account> = Vec::new();
    for (lost, own, spot) in losses {
        // A loss record may take one of the numbers that it stands for; that one is not missing.
        let taken = u64::from((lost.first..=lost.last).contains(&own));
        let expected = lost.count.saturating_sub(taken);
        match accounts.last_mut() {
            Some(account) if lost.first <= account.last => {
                account.last = account.last.max(lost.last);
                account.expected += expected;
            }
            _ => accounts.push(Account { first: lost.first, last: lost.last, expected, spot }),
        }
    }
    accounts
}

/// Adds what is missing between two runs, cut where a loss record begins or ends to stand for it.
fn split(below: &Run, above: &Run, accounts: &[Account], gaps: &mut Vec<Gap>) {
    let (mut first, last) = (below.last + 1, above.first - 1);
    let starts = accounts.iter().map(|account| account.first);
    let ends = accounts.iter().map(|account| account.last.saturating_add(1));
    let mut cuts: Vec<u64> = starts.chain(ends).filter(|cut| (first + 1..=last).contains(cut)).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let mut add = |first, last| {
        let (after, before) = (below.spot_of(below.last), above.start.clone());
        gaps.push(Gap { first, last, after, before, explained_by: None });
    };
    for cut in cuts {
        add(first, cut - 1);
        first = cut;
    }
    add(first, last);
}
