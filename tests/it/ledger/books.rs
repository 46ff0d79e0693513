//! What the daemon left of the requests: rows, spans, log lines and metrics, read into one shape.

use std::collections::{BTreeMap, HashMap};

use opentelemetry_proto::tonic::{
    common::v1::{KeyValue, any_value::Value as Attribute},
    metrics::v1::{Metric, NumberDataPoint, metric::Data, number_data_point::Value as Number},
};
use serde_json::Value;

use super::plan::Plan;
use crate::peer::otlp::{Otlp, ReceivedSpan};

/// The types of `mlx_manager_tokens_total`, in the order of [`Told::tokens`].
pub const TYPES: [&str; 5] = ["input", "output", "cache_read", "cache_write", "reasoning"];

/// What one of the books says of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Told {
    pub outcome: String,
    pub tokens: [Option<u64>; 5],
    pub cost: Option<f64>,
    pub kind: Option<String>,
}

/// An audit row, or the line about the end of a request.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub told: Told,
    pub trace: String,
    pub provider: Option<String>,
    pub model: String,
    pub answering: Option<String>,
    pub source: Option<String>,
    pub status: u64,
    pub stream: bool,
    /// Only the line has them.
    pub retries: Option<u64>,
}

impl Row {
    /// Of a row, or of a line as JSON; they have the same names but for the model's.
    pub fn of(value: &Value) -> Self {
        let text = |name: &str| value[name].as_str().map(ToOwned::to_owned);
        let count = |name: &str| value[name].as_u64();
        let tokens = TYPES.map(|kind| count(&format!("{kind}_tokens")));
        Self {
            told: Told {
                outcome: text("outcome").unwrap(),
                tokens,
                cost: value["cost_usd"].as_f64(),
                kind: text("error_kind"),
            },
            trace: text("trace_id").unwrap(),
            provider: text("provider"),
            model: text("requested_model").or_else(|| text("model")).unwrap(),
            answering: text("response_model"),
            source: text("usage_source"),
            status: count("status").unwrap_or(0),
            stream: value["stream"] == true || value["stream"] == 1,
            retries: count("retries"),
        }
    }

    pub fn input(&self) -> u64 {
        self.told.tokens[0].unwrap_or(0)
    }

    pub fn output(&self) -> u64 {
        self.told.tokens[1].unwrap_or(0)
    }
}

/// What the spans of one trace say.
#[derive(Debug, Clone, Default)]
pub struct Trace {
    /// The inference spans that ended with an outcome.
    pub answers: Vec<Told>,
    /// Those that were left for another target.
    pub left: usize,
    /// Physical calls.
    pub calls: usize,
    /// Server spans.
    pub servers: usize,
}

/// All books.
pub struct Books {
    pub rows: BTreeMap<usize, Vec<Row>>,
    pub lines: BTreeMap<usize, Vec<Row>>,
    pub traces: HashMap<String, Trace>,
    pub page: Page,
    pub exported: Exported,
}

/// The sums that metrics were exported with last.
#[derive(Debug, Default)]
pub struct Exported {
    pub tokens: [f64; 5],
    pub cost: f64,
}

impl Books {
    pub fn new(rows: &[Value], log: &str, otlp: &Otlp, page: &str) -> Self {
        let lines: Vec<Value> = log
            .lines()
            .filter(|line| line.contains("\"message\":\"request finished\""))
            .map(|line| {
                let mut value: Value = serde_json::from_str(line).unwrap();
                // serde_json reads floats all but exactly.
                let cost = line.split_once("\"cost_usd\":").map(|(_, rest)| &rest[..rest.find([',', '}']).unwrap()]);
                value["cost_usd"] = cost.map_or(Value::Null, |cost| cost.parse::<f64>().unwrap().into());
                value
            })
            .collect();
        Self {
            rows: by_number(rows),
            lines: by_number(&lines),
            traces: traces(&otlp.spans()),
            page: Page::read(page),
            exported: exported(&otlp.metrics()),
        }
    }
}

fn by_number(values: &[Value]) -> BTreeMap<usize, Vec<Row>> {
    let mut rows: BTreeMap<usize, Vec<Row>> = BTreeMap::new();
    for value in values {
        let number = Plan::number_of(value["request_id"].as_str().unwrap()).expect("an id of the ledger");
        rows.entry(number).or_default().push(Row::of(value));
    }
    rows
}

fn exported(metrics: &[Metric]) -> Exported {
    let points = |name: &str| {
        let metric = metrics.iter().rfind(|metric| metric.name == name).expect(name);
        let Some(Data::Sum(sum)) = &metric.data else { panic!("{name} is no sum") };
        sum.data_points.clone()
    };
    let number = |point: &NumberDataPoint| match point.value {
        Some(Number::AsInt(count)) => count as f64,
        Some(Number::AsDouble(number)) => number,
        None => 0.0,
    };
    let of = |point: &NumberDataPoint, kind: &str| {
        let text = |attribute: &KeyValue| attribute.value.clone().and_then(|value| value.value);
        point.attributes.iter().any(|attribute| text(attribute) == Some(Attribute::StringValue(kind.to_owned())))
    };
    let tokens = points("mlx_manager.tokens");
    Exported {
        tokens: TYPES.map(|kind| tokens.iter().filter(|point| of(point, kind)).map(number).sum()),
        cost: points("mlx_manager.cost").iter().map(number).sum(),
    }
}

fn traces(spans: &[ReceivedSpan]) -> HashMap<String, Trace> {
    let mut traces: HashMap<String, Trace> = HashMap::new();
    for span in spans {
        let trace = traces.entry(span.trace_id()).or_default();
        if span.span.name.starts_with("POST /") {
            trace.servers += 1;
        } else if span.span.name == "POST" {
            trace.calls += 1;
        } else if span.attribute("gen_ai.operation.name").is_some() {
            let Some(outcome) = span.text("mlx_manager.outcome") else {
                trace.left += 1;
                continue;
            };
            let count = |name: &str| span.integer(name).map(|count| u64::try_from(count).unwrap());
            let cost = span.attribute("operation.cost").map(|cost| match cost {
                Attribute::DoubleValue(cost) => cost,
                other => panic!("a cost is a number: {other:?}"),
            });
            let tokens = [
                "gen_ai.usage.input_tokens",
                "gen_ai.usage.output_tokens",
                "gen_ai.usage.cache_read.input_tokens",
                "gen_ai.usage.cache_write.input_tokens",
                "gen_ai.usage.reasoning.output_tokens",
            ];
            trace.answers.push(Told { outcome, tokens: tokens.map(count), cost, kind: span.text("error.type") });
        }
    }
    traces
}

/// A scraped page.
#[derive(Debug, Default)]
pub struct Page(HashMap<String, Vec<(String, f64)>>);

impl Page {
    fn read(text: &str) -> Self {
        let mut page: HashMap<String, Vec<(String, f64)>> = HashMap::new();
        for line in text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
            let (series, value) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            page.entry(name.to_owned()).or_default().push((labels.to_owned(), value.parse().unwrap()));
        }
        Self(page)
    }

    /// The sum of a metric's series.
    pub fn total(&self, name: &str) -> f64 {
        // The sum of nothing is -0, which prints so.
        self.by(name, &[]).into_values().fold(0.0, |sum, value| sum + value)
    }

    /// The sums of a metric's series by the values of some labels.
    pub fn by(&self, name: &str, labels: &[&str]) -> BTreeMap<Vec<String>, f64> {
        let mut sums = BTreeMap::new();
        for (series, value) in self.0.get(name).into_iter().flatten() {
            let key = labels.iter().map(|label| model(label_of(series, label))).collect();
            *sums.entry(key).or_insert(0.0) += value;
        }
        sums.retain(|_, sum| *sum != 0.0);
        sums
    }
}

fn label_of<'a>(series: &'a str, label: &str) -> &'a str {
    let find = |start: &str| series.split_once(start).map(|(_, rest)| rest.split_once('"').unwrap().0);
    let first = format!("{label}=\"");
    // The name of one label may be the end of another's.
    if series.starts_with(&first) { find(&first).unwrap() } else { find(&format!(",{first}")).unwrap_or_default() }
}

/// A model as it is compared: of those that are limited there are more than there may be labels.
pub fn model(name: &str) -> String {
    let name = name.strip_prefix("over-").unwrap_or(name);
    if name == "_other" || name.starts_with("limited-") { "limited".to_owned() } else { name.to_owned() }
}
