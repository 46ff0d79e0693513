//! The comparison of all books with each other and with the providers' own.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::{
    books::{Books, Page, Row, TYPES, Told, model},
    plan::{Abort, Oddity, Plan},
    price,
    provider::{Bill, Entry},
};

/// The most that two sums of the same costs may differ by for having been added up in another order.
const ROUNDING: f64 = 1e-9;

/// A request, as its client and its provider saw it.
pub struct Request {
    pub plan: Plan,
    pub entry: Entry,
    /// The status that the client saw, unless it left before.
    pub status: Option<u16>,
    /// Whether the answer was all there.
    pub whole: bool,
}

impl Request {
    /// The outcome and the kind of error that there must be.
    pub fn expected(&self) -> (&'static str, Option<&'static str>) {
        match self.plan {
            Plan { abort: Some(_), .. } => ("client_abort", None),
            Plan { fault: Some(fault), .. } => (fault.outcome, Some(fault.kind)),
            Plan { oddity: Oddity::CutAfterContent | Oddity::CutBeforeContent, .. } => {
                ("upstream_error", Some("upstream_error"))
            }
            _ => ("ok", None),
        }
    }

    /// Whether the provider told all of its usage.
    pub fn is_counted(&self) -> bool {
        let unsaid = matches!(self.plan.oddity, Oddity::NoUsage | Oddity::RefusesStreamOptions);
        self.expected().0 == "ok" && !unsaid
    }

    fn bill(&self) -> Bill {
        self.entry.bill.clone().unwrap_or_default()
    }

    fn targets(&self) -> BTreeSet<&str> {
        self.entry.attempts.iter().map(|attempt| attempt.target.as_str()).collect()
    }

    /// What the call costs by the ledger: by the provider's counts, or else by those that the row has.
    pub fn nanos(&self, row: &Row) -> Option<u64> {
        let bill = self.bill();
        if self.is_counted() {
            return price::nanos(&self.plan.asked, &bill.told);
        }
        let [input, output, cache_read, cache_write, reasoning] = row.told.tokens;
        let tokens = super::plan::Tokens { input, output, cache_read, cache_write, reasoning, ..bill.told };
        price::nanos(&self.plan.asked, &tokens)
    }
}

/// All that is not as it should be, in words.
pub fn mismatches(requests: &[Request], books: &Books) -> Vec<String> {
    let mut found = Vec::new();
    for request in requests {
        let mut problems = Vec::new();
        of_request(request, books, &mut problems);
        found.extend(problems.into_iter().map(|problem| format!("{}: {problem}", request.plan.name())));
    }
    let numbers: BTreeSet<_> = requests.iter().map(|request| request.plan.number).collect();
    let strangers = books.rows.keys().chain(books.lines.keys()).filter(|number| !numbers.contains(number));
    found.extend(strangers.map(|number| format!("nobody sent request {number}")));
    of_metrics(requests, books, &mut found);
    found
}

fn of_request(request: &Request, books: &Books, problems: &mut Vec<String>) {
    let number = request.plan.number;
    let (rows, lines) = (books.rows.get(&number), books.lines.get(&number));
    let (Some([row]), Some([line])) = (rows.map(Vec::as_slice), lines.map(Vec::as_slice)) else {
        problems.push(format!("{} rows and {} lines", rows.map_or(0, Vec::len), lines.map_or(0, Vec::len)));
        return;
    };
    if (Row { retries: None, ..line.clone() }) != *row {
        problems.push(format!("the row {row:?} and the line {line:?}"));
    }
    of_trace(request, row, books, problems);
    of_provider(request, row, line, problems);
}

/// A row and the spans of its trace.
fn of_trace(request: &Request, row: &Row, books: &Books, problems: &mut Vec<String>) {
    let trace = books.traces.get(&row.trace).cloned().unwrap_or_default();
    // To the conventions a client that leaves is no error, and an error has the name of its kind.
    let told = Told { kind: row.told.kind.clone(), ..row.told.clone() };
    if trace.answers != [told] {
        problems.push(format!("the row {:?} and the spans {:?}", row.told, trace.answers));
    }
    let (targets, calls) = (request.targets().len(), request.entry.attempts.len());
    if (trace.servers, trace.left + 1, trace.calls) != (1, targets, calls) {
        problems.push(format!("{targets} targets were asked {calls} times, but there are {trace:?}"));
    }
}

/// A row and what the provider has in its books.
fn of_provider(request: &Request, row: &Row, line: &Row, problems: &mut Vec<String>) {
    let Request { plan, entry, .. } = request;
    let bill = request.bill();
    let (outcome, kind) = request.expected();
    if (row.told.outcome.as_str(), row.told.kind.as_deref()) != (outcome, kind) {
        problems.push(format!("{:?} ({:?}) and not {outcome} ({kind:?})", row.told.outcome, row.told.kind));
    }
    if request.status.is_some_and(|status| u64::from(status) != row.status) {
        problems.push(format!("the client saw {:?}, the row {}", request.status, row.status));
    }
    if outcome == "ok" && !request.whole {
        problems.push("the client did not get the whole answer".to_owned());
    }
    let last = entry.attempts.last().map(|attempt| attempt.target.as_str());
    if row.provider.as_deref() != last || row.model != plan.model || row.stream != plan.stream {
        problems.push(format!("{last:?} was asked, not {row:?}"));
    }
    let tries = entry.attempts.len() - request.targets().len();
    if line.retries != Some(tries as u64) {
        problems.push(format!("{:?} retries, but the provider saw {tries}", line.retries));
    }
    let told = &bill.told;
    let counted = [told.input, told.output, told.cache_read, told.cache_write, told.reasoning];
    if outcome == "ok" && row.answering != plan.answering() {
        problems.push(format!("{:?} answered, not {:?}", plan.answering(), row.answering));
    }
    if request.is_counted() {
        if row.source.as_deref() != Some("provider") || row.told.tokens != counted {
            problems.push(format!("the provider counted {counted:?}, not {:?} ({:?})", row.told.tokens, row.source));
        }
    } else {
        of_guess(row, &bill, problems);
    }
    of_cost(request, row, problems);
}

/// What nobody told to the end is a guess, which has bounds.
fn of_guess(row: &Row, bill: &Bill, problems: &mut Vec<String>) {
    if bill.words == 0 {
        if row.told.tokens != [None; 5] || row.source.is_some() {
            problems.push(format!("nothing was generated, but {:?} ({:?})", row.told.tokens, row.source));
        }
        return;
    }
    let [input, output, ..] = row.told.tokens;
    let source = row.source.as_deref();
    let unsaid = bill.told.output.is_none();
    let source_fits = source == Some("estimated") || (!unsaid && source == Some("partial"));
    let least = bill.words.max(bill.sure.output.unwrap_or(0));
    let most = bill.bytes.max(bill.told.output.unwrap_or(0));
    let input_fits = match (bill.sure.input, bill.told.input) {
        (None, None) => input > Some(0),
        (sure, told) => input == told || (sure.is_none() && input > Some(0)),
    };
    if !source_fits || !input_fits || !output.is_some_and(|output| (least..=most).contains(&output)) {
        problems.push(format!("{:?} ({source:?}) of {bill:?}", row.told.tokens));
    }
}

fn of_cost(request: &Request, row: &Row, problems: &mut Vec<String>) {
    let expected = request.nanos(row).map(price::dollars);
    let fits = match (expected, row.told.cost) {
        (Some(expected), Some(cost)) => (expected - cost).abs() < ROUNDING,
        (expected, cost) => expected == cost,
    };
    // What the last frame told may have been outrun.
    let outrun = matches!(request.plan.abort, Some(Abort::AfterWords(_))) && request.bill().sure != request.bill().told;
    if !fits && !outrun {
        problems.push(format!("it costs {expected:?}, not {:?}, for {:?}", row.told.cost, row.told.tokens));
    }
}

/// Rows against the sums that `mlx-manager usage` prints of them.
pub fn of_usage(books: &Books, printed: &str, found: &mut Vec<String>) {
    let groups: Vec<Value> = serde_json::from_str(printed).unwrap();
    let rows: Vec<&Row> = books.rows.values().flatten().collect();
    let failed = rows.iter().filter(|row| row.told.outcome != "ok").count();
    let tokens = |index: usize| rows.iter().filter_map(|row| row.told.tokens[index]).sum::<u64>() as f64;
    let cost: f64 = rows.iter().filter_map(|row| row.told.cost).sum();
    for (name, expected) in [
        ("requests", rows.len() as f64),
        ("failed", failed as f64),
        ("input_tokens", tokens(0)),
        ("output_tokens", tokens(1)),
        ("cache_read_tokens", tokens(2)),
        ("cost_usd", cost),
    ] {
        let sum: f64 = groups.iter().filter_map(|group| group[name].as_f64()).sum();
        if (sum - expected).abs() > ROUNDING * expected.max(1.0) {
            found.push(format!("`usage` says {name} {sum}, but all requests together have {expected}"));
        }
    }
}

type Sums = BTreeMap<Vec<String>, f64>;

/// Rows and what the providers saw against metrics, by all labels that there are.
fn of_metrics(requests: &[Request], books: &Books, found: &mut Vec<String>) {
    let rows: Vec<&Row> = books.rows.values().flatten().collect();
    let page = &books.page;
    let provider = |row: &Row| row.provider.clone().unwrap_or_default();
    let target = ["provider", "model"];
    let mut sums = Sums::new();
    for row in &rows {
        let stream = row.stream.to_string();
        *sums.entry(vec![provider(row), model(&row.model), stream, row.told.outcome.clone()]).or_default() += 1.0;
    }
    same("mlx_manager_requests_total", &sums, page, &["provider", "model", "stream", "outcome"], found);
    let mut sums = Sums::new();
    for row in &rows {
        for (kind, tokens) in TYPES.iter().zip(row.told.tokens) {
            let key = vec![provider(row), model(&row.model), (*kind).to_owned()];
            *sums.entry(key).or_default() += tokens.unwrap_or(0) as f64;
        }
    }
    same("mlx_manager_tokens_total", &sums, page, &["provider", "model", "type"], found);
    for (kind, exported) in TYPES.iter().zip(books.exported.tokens) {
        let sum: f64 = sums.iter().filter(|(key, _)| key[2] == *kind).map(|(_, sum)| sum).sum();
        if sum != exported {
            found.push(format!("{exported} tokens of type {kind} were exported, but all requests together have {sum}"));
        }
    }
    let mut sums = Sums::new();
    for row in &rows {
        *sums.entry(vec![provider(row), model(&row.model)]).or_default() += row.told.cost.unwrap_or(0.0);
    }
    same("mlx_manager_cost_usd_total", &sums, page, &target, found);
    let sum: f64 = sums.values().sum();
    if (sum - books.exported.cost).abs() > ROUNDING * sum.max(1.0) {
        found.push(format!("a cost of {} was exported, but all requests together have {sum}", books.exported.cost));
    }
    let names = [
        "input_tokens",
        "output_tokens",
        "cache_read_input_tokens",
        "cache_write_input_tokens",
        "reasoning_output_tokens",
    ];
    for (index, name) in names.iter().enumerate() {
        let mut sums = Sums::new();
        for request in requests {
            // These go by the name that the target was asked for.
            for row in books.rows.get(&request.plan.number).into_iter().flatten() {
                let key = vec![provider(row), model(&request.plan.asked)];
                *sums.entry(key).or_default() += row.told.tokens[index].unwrap_or(0) as f64;
            }
        }
        let labels = ["mlx_manager_provider", "gen_ai_request_model"];
        same(&format!("gen_ai_client_inference_usage_{name}_total"), &sums, page, &labels, found);
        if index < 2 {
            same(&format!("gen_ai_client_inference_operation_{name}_sum"), &sums, page, &labels, found);
        }
    }
    let mut retries = Sums::new();
    let (mut fallbacks, mut unreadable) = (Sums::new(), 0);
    for Request { entry, .. } in requests {
        let mut seen = BTreeSet::new();
        for (index, attempt) in entry.attempts.iter().enumerate() {
            if !seen.insert(&attempt.target) {
                *retries.entry(vec![attempt.target.clone()]).or_default() += 1.0;
            }
            if index > 0 && entry.attempts[index - 1].target != attempt.target {
                let way = vec![entry.attempts[index - 1].target.clone(), attempt.target.clone()];
                *fallbacks.entry(way).or_default() += 1.0;
            }
        }
        unreadable += entry.unreadable;
    }
    same("mlx_manager_retries_total", &retries, page, &["provider"], found);
    same("mlx_manager_fallbacks_total", &fallbacks, page, &["from", "to"], found);
    if page.total("mlx_manager_observer_unreadable_total") != unreadable as f64 {
        found.push(format!(
            "{unreadable} frames can't be read, but that many were counted: {}",
            page.total("mlx_manager_observer_unreadable_total")
        ));
    }
    for name in ["mlx_manager_audit_rows_dropped_total", "mlx_manager_audit_write_errors_total"] {
        if page.total(name) != 0.0 {
            found.push(format!("{name} is {}", page.total(name)));
        }
    }
}

fn same(name: &str, expected: &Sums, page: &Page, labels: &[&str], found: &mut Vec<String>) {
    let counted = page.by(name, labels);
    let keys: BTreeSet<_> = expected.keys().chain(counted.keys()).collect();
    for key in keys {
        let [expected, counted] = [expected, &counted].map(|sums| sums.get(key).copied().unwrap_or(0.0));
        if (expected - counted).abs() > ROUNDING * expected.abs().max(1.0) {
            found.push(format!("{name} of {key:?} is {counted}, but all requests together have {expected}"));
        }
    }
}
