//! The table that the ledger prints: by oddity, and the sums of all books beside each other.

use super::{
    audit::Request,
    books::{Books, Row},
    plan::Oddity,
    price,
};

/// Sums of one line. What the providers told to the end is counted, all else is a guess.
#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    requests: u64,
    ok: u64,
    aborted: u64,
    failed: u64,
    /// By ledger and by rows.
    counted_input: [u64; 2],
    counted_output: [u64; 2],
    guessed: [u64; 2],
    /// By rows and by spans.
    input: [u64; 2],
    output: [u64; 2],
    nanos: u64,
    /// By rows and by spans.
    cost: [f64; 2],
}

impl Sums {
    fn add(&mut self, request: &Request, row: &Row, books: &Books) {
        self.requests += 1;
        match row.told.outcome.as_str() {
            "ok" => self.ok += 1,
            "client_abort" => self.aborted += 1,
            _ => self.failed += 1,
        }
        if request.is_counted() {
            let told = request.entry.bill.as_ref().map(|bill| bill.told).unwrap_or_default();
            add(&mut self.counted_input, [told.input.unwrap_or(0), row.input()]);
            add(&mut self.counted_output, [told.output.unwrap_or(0), row.output()]);
        } else {
            add(&mut self.guessed, [row.input(), row.output()]);
        }
        let spans = books.traces.get(&row.trace).map(|trace| trace.answers.as_slice()).unwrap_or_default();
        let by_spans = |index: usize| spans.iter().map(|span| span.tokens[index].unwrap_or(0)).sum();
        add(&mut self.input, [row.input(), by_spans(0)]);
        add(&mut self.output, [row.output(), by_spans(1)]);
        self.nanos += request.nanos(row).unwrap_or(0);
        self.cost[0] += row.told.cost.unwrap_or(0.0);
        self.cost[1] += spans.iter().filter_map(|span| span.cost).sum::<f64>();
    }

    fn line(&self, name: &str) -> String {
        let Self { requests, ok, aborted, failed, counted_input, counted_output, guessed, input, output, nanos, cost } =
            self;
        let [ledger_in, rows_in] = counted_input;
        let [ledger_out, rows_out] = counted_output;
        format!(
            "{name:<22}{requests:>7}{ok:>7}{aborted:>6}{failed:>7} |{ledger_in:>11}{rows_in:>11} |{ledger_out:>10}{rows_out:>10} |{:>9}{:>8} |{:>11}{:>10} |{:>12.6}{:>12.6}{:>12.6}",
            guessed[0],
            guessed[1],
            input[1],
            output[1],
            price::dollars(*nanos),
            cost[0],
            cost[1]
        )
    }
}

fn add(sums: &mut [u64; 2], more: [u64; 2]) {
    sums[0] += more[0];
    sums[1] += more[1];
}

/// The table, which ends with the sums and whether all is equal.
pub fn table(requests: &[Request], books: &Books, equal: bool) -> String {
    let mut lines = vec![
        format!(
            "{:<22}{:>7}{:>7}{:>6}{:>7} |{:>22} |{:>20} |{:>17} |{:>21} |{:>36}",
            "", "", "", "", "", "counted in", "counted out", "guessed (rows)", "all (spans)", "cost in US dollars"
        ),
        format!(
            "{:<22}{:>7}{:>7}{:>6}{:>7} |{:>11}{:>11} |{:>10}{:>10} |{:>9}{:>8} |{:>11}{:>10} |{:>12}{:>12}{:>12}",
            "oddity",
            "all",
            "ok",
            "left",
            "failed",
            "ledger",
            "rows",
            "ledger",
            "rows",
            "in",
            "out",
            "in",
            "out",
            "ledger",
            "rows",
            "spans"
        ),
    ];
    let mut all = Sums::default();
    for oddity in Oddity::ALL {
        let mut sums = Sums::default();
        for request in requests.iter().filter(|request| request.plan.oddity == *oddity) {
            for row in books.rows.get(&request.plan.number).into_iter().flatten() {
                sums.add(request, row, books);
                all.add(request, row, books);
            }
        }
        lines.push(sums.line(&format!("{oddity:?}")));
    }
    lines.push(all.line("sum"));
    let tokens = books.page.by("mlx_manager_tokens_total", &["type"]);
    let metric = |kind: &str| tokens.get(&vec![kind.to_owned()]).copied().unwrap_or(0.0);
    lines.push(format!(
        "in: rows {}, spans {}, metrics {}; out: rows {}, spans {}, metrics {}; cost: ledger {:.9}, rows {:.9}, spans {:.9}, metrics {:.9}",
        all.input[0], all.input[1], metric("input"), all.output[0], all.output[1], metric("output"),
        price::dollars(all.nanos), all.cost[0], all.cost[1], books.page.total("mlx_manager_cost_usd_total")
    ));
    let [calls, retries, fallbacks] = [
        requests.iter().map(|request| request.entry.attempts.len()).sum::<usize>() as f64,
        books.page.total("mlx_manager_retries_total"),
        books.page.total("mlx_manager_fallbacks_total"),
    ];
    let verdict = if equal { "equal" } else { "DIFFERENT" };
    lines.push(format!("{calls} calls to providers, {retries} retries, {fallbacks} failovers: {verdict}"));
    lines.join("\n")
}
