//! What a dashboard is made of, and its way into Grafana's JSON.

use serde_json::{Value, json};

/// A page of panels.
pub(super) struct Dashboard {
    /// The file below `dashboards/`, without `.json`, and the end of the uid.
    pub name: &'static str,
    pub title: &'static str,
    pub description: &'static str,
    pub rows: &'static [Row],
}

/// Panels under one heading.
pub(super) struct Row {
    pub title: &'static str,
    pub panels: &'static [Panel],
}

/// One picture. Begin with [`Panel::LINES`], [`Panel::AREAS`] or [`Panel::STAT`].
pub(super) struct Panel {
    pub title: &'static str,
    /// One or two sentences: what is shown, and what to make of it.
    pub description: &'static str,
    /// A unit's id in Grafana.
    pub unit: &'static str,
    pub queries: &'static [Query],
    /// What the spans behind the panel have in common, in TraceQL; the labels of a series are added.
    pub spans: &'static str,
    /// Words in place of numbers.
    pub words: &'static [(&'static str, &'static str)],
    /// The upper end of the axis, where there is one.
    pub max: Option<f64>,
    pub shape: Shape,
}

/// How a panel draws.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Shape {
    Lines,
    Areas,
    Stat,
}

impl Panel {
    /// Lines over time.
    pub const LINES: Self = Self {
        title: "",
        description: "",
        unit: "short",
        queries: &[],
        spans: "",
        words: &[],
        max: None,
        shape: Shape::Lines,
    };
    /// Areas on top of each other, for parts of a whole.
    pub const AREAS: Self = Self { shape: Shape::Areas, ..Self::LINES };
    /// The latest value in large letters.
    pub const STAT: Self = Self { shape: Shape::Stat, ..Self::LINES };
}

/// One query of a panel.
pub(super) struct Query {
    pub legend: &'static str,
    pub expression: Expression,
    /// Why a daemon that is well and at work may have nothing to show.
    pub may_be_empty: Option<&'static str>,
}

/// What Prometheus is asked.
pub(super) enum Expression {
    Promql(&'static str),
    Quantile { quantile: f64, histogram: &'static str, by: &'static str },
}

/// A query in PromQL. `$daemon` stands for the matchers of the chosen daemons, `$rate` for a range that suits the scrape
/// interval.
pub(super) const fn query(legend: &'static str, promql: &'static str) -> Query {
    Query { legend, expression: Expression::Promql(promql), may_be_empty: None }
}

/// A quantile of a histogram, by one label or, if that is empty, over all series. `histogram` may end with matchers.
pub(super) const fn quantile(quantile: f64, histogram: &'static str, by: &'static str) -> Query {
    Query { legend: "", expression: Expression::Quantile { quantile, histogram, by }, may_be_empty: None }
}

impl Query {
    pub fn expression(&self) -> String {
        let text = match self.expression {
            Expression::Promql(text) => text.to_owned(),
            Expression::Quantile { quantile, histogram, by } => {
                let (name, matchers) = histogram.split_once('{').unwrap_or((histogram, "}"));
                let separator = if matchers == "}" { "" } else { "," };
                let by = if by.is_empty() { "le".to_owned() } else { format!("le, {by}") };
                format!(
                    "histogram_quantile({quantile}, sum by ({by}) (rate({name}_bucket{{$daemon{separator}{matchers}[$rate])))"
                )
            }
        };
        text.replace("$daemon", r#"job=~"$job",instance=~"$instance""#).replace("$rate", "$__rate_interval")
    }

    pub fn legend(&self) -> String {
        match self.expression {
            Expression::Promql(_) => self.legend.to_owned(),
            Expression::Quantile { quantile, by, .. } => {
                let percentile = format!("p{}", quantile * 100.0);
                if by.is_empty() { percentile } else { format!("{{{{{by}}}}} {percentile}") }
            }
        }
    }
}

/// Labels that spans have as well, with their attribute.
pub(super) const SPAN_ATTRIBUTES: [(&str, &str); 8] = [
    ("outcome", "span.mlx_manager.outcome"),
    ("model", "span.gen_ai.request.model"),
    ("gen_ai_request_model", "span.gen_ai.request.model"),
    ("mlx_manager_provider", "span.mlx_manager.provider"),
    ("route", "span.http.route"),
    ("server_address", "span.server.address"),
    ("db_operation_name", "span.db.operation.name"),
    ("rule", "span.mlx_manager.route.rule"),
];

impl Dashboard {
    /// The file's text.
    pub fn render(&self) -> String {
        let mut text = serde_json::to_string_pretty(&self.json()).unwrap();
        text.push('\n');
        text
    }

    /// The panels with their rows' titles.
    pub fn panels(&self) -> impl Iterator<Item = &'static Panel> + use<> {
        self.rows.iter().flat_map(|row| row.panels)
    }

    fn json(&self) -> Value {
        json!({
            "uid": format!("mlx-manager-{}", self.name),
            "title": self.title,
            "description": self.description,
            "tags": ["mlx-manager", "llm"],
            "schemaVersion": 41,
            "version": 1,
            "editable": true,
            "graphTooltip": 1,
            "refresh": "30s",
            "time": { "from": "now-1h", "to": "now" },
            "timezone": "browser",
            "links": [{
                "type": "dashboards", "title": "mlx-manager", "tags": ["mlx-manager"], "asDropdown": false,
                "icon": "external link", "includeVars": true, "keepTime": true, "targetBlank": false, "tooltip": "",
            }],
            "annotations": { "list": [] },
            "templating": { "list": [
                source_variable("datasource", "Metrics", "prometheus"),
                source_variable("traces", "Traces", "tempo"),
                label_variable("job", "Job", "label_values(mlx_manager_build_info, job)"),
                label_variable("instance", "Instance", r#"label_values(mlx_manager_build_info{job=~"$job"}, instance)"#),
            ] },
            "panels": self.laid_out(),
        })
    }

    /// Rows from top to bottom, their panels from left to right: at most six numbers or three pictures side by side.
    fn laid_out(&self) -> Vec<Value> {
        let (mut placed, mut y, mut line) = (Vec::new(), 0, 0);
        for row in self.rows {
            y += line;
            let place = json!({ "x": 0, "y": y, "w": 24, "h": 1 });
            placed.push(json!({
                "id": placed.len() + 1, "type": "row", "title": row.title, "collapsed": false, "gridPos": place,
                "panels": [],
            }));
            (y, line) = (y + 1, 0);
            let is_small = row.panels.iter().all(|panel| panel.shape == Shape::Stat);
            let (most, height) = if is_small { (6, 4) } else { (3, 8) };
            let lines = row.panels.len().div_ceil(most);
            let mut rest = row.panels;
            for number in 0..lines {
                // The panels left, over the lines left: no line is much longer than another.
                let (panels, below) = rest.split_at(rest.len().div_ceil(lines - number));
                let width = 24 / panels.len();
                for (column, panel) in panels.iter().enumerate() {
                    let place = json!({ "x": column * width, "y": y + line, "w": width, "h": height });
                    placed.push(panel.json(placed.len() + 1, place));
                }
                line += height;
                rest = below;
            }
        }
        placed
    }
}

fn source_variable(name: &str, label: &str, kind: &str) -> Value {
    json!({ "type": "datasource", "name": name, "label": label, "query": kind, "refresh": 1 })
}

fn label_variable(name: &str, label: &str, query: &str) -> Value {
    json!({
        "type": "query", "name": name, "label": label, "datasource": source(),
        "query": { "qryType": 1, "query": query, "refId": "PrometheusVariableQueryEditor-VariableQuery" },
        "refresh": 2, "sort": 1, "multi": true, "includeAll": true, "allValue": ".*",
        "current": { "text": ["All"], "value": ["$__all"] },
    })
}

fn source() -> Value {
    json!({ "type": "prometheus", "uid": "${datasource}" })
}

impl Panel {
    fn json(&self, id: usize, place: Value) -> Value {
        let targets: Vec<Value> = self
            .queries
            .iter()
            .zip('A'..='Z')
            .map(|(query, letter)| {
                json!({
                    "refId": letter.to_string(), "datasource": source(), "editorMode": "code",
                    "expr": query.expression(), "legendFormat": query.legend(),
                    "range": self.shape != Shape::Stat, "instant": self.shape == Shape::Stat,
                })
            })
            .collect();
        json!({
            "id": id,
            "type": if self.shape == Shape::Stat { "stat" } else { "timeseries" },
            "title": self.title,
            "description": self.description,
            "datasource": source(),
            "gridPos": place,
            "options": self.options(),
            "fieldConfig": { "defaults": self.field(), "overrides": [] },
            "targets": targets,
        })
    }

    fn options(&self) -> Value {
        match self.shape {
            Shape::Stat => json!({
                "reduceOptions": { "calcs": ["lastNotNull"], "fields": "", "values": false },
                "orientation": "auto", "textMode": "auto", "wideLayout": true, "colorMode": "value",
                "graphMode": "none", "justifyMode": "auto", "showPercentChange": false,
                "percentChangeColorMode": "standard",
            }),
            Shape::Lines | Shape::Areas => json!({
                "legend": { "displayMode": "list", "placement": "bottom", "showLegend": true, "calcs": [] },
                "tooltip": { "mode": "multi", "sort": "desc" },
            }),
        }
    }

    fn field(&self) -> Value {
        let words: serde_json::Map<String, Value> = self
            .words
            .iter()
            .enumerate()
            .map(|(index, (number, word))| ((*number).to_owned(), json!({ "text": word, "index": index })))
            .collect();
        let mut field = json!({
            "unit": self.unit,
            "min": 0,
            "color": { "mode": if self.shape == Shape::Stat { "thresholds" } else { "palette-classic" } },
            "links": [{ "title": "Traces behind this", "url": self.trace_link(), "targetBlank": true }],
        });
        if !words.is_empty() {
            field["mappings"] = json!([{ "type": "value", "options": words }]);
        }
        if let Some(max) = self.max {
            field["max"] = json!(max);
        }
        if self.shape == Shape::Stat {
            field["thresholds"] = json!({ "mode": "absolute", "steps": [{ "color": "blue", "value": null }] });
        } else {
            let stacked = self.shape == Shape::Areas;
            field["custom"] = json!({
                "drawStyle": "line", "lineWidth": 1, "fillOpacity": if stacked { 25 } else { 8 },
                "showPoints": "never", "spanNulls": false,
                "stacking": { "mode": if stacked { "normal" } else { "none" }, "group": "A" },
            });
        }
        field
    }

    /// Grafana's trace view, with the spans that the panel is about in the time that it shows.
    fn trace_link(&self) -> String {
        let panes = json!({ "traces": {
            "datasource": "${traces}",
            "queries": [{
                "refId": "A", "datasource": { "type": "tempo", "uid": "${traces}" }, "queryType": "traceql",
                "query": self.traceql(), "limit": 20,
            }],
            "range": { "from": "${__from}", "to": "${__to}" },
        } });
        format!("/explore?schemaVersion=1&panes={}", percent_encoded(&panes.to_string()))
    }

    fn traceql(&self) -> String {
        let mut conditions = vec![r#"resource.service.name=~".*mlx-(server|manager)""#.to_owned()];
        if !self.spans.is_empty() {
            conditions.push(self.spans.to_owned());
        }
        let mut elsewhere = String::new();
        for (label, attribute) in SPAN_ATTRIBUTES {
            let placeholder = format!("{{{{{label}}}}}");
            if self.queries.is_empty() || !self.queries.iter().all(|query| query.legend().contains(&placeholder)) {
                continue;
            }
            let value = format!("${{__field.labels.{label}}}");
            match label {
                // The span in question may have no model, or the one asked of the target; its trace has this one too.
                "model" => elsewhere = format!(r#" && {{ {attribute}="{value}" || "{value}"="_other" }}"#),
                "gen_ai_request_model" => {
                    conditions.push(format!(r#"({attribute}="{value}" || "{value}"="_other")"#));
                }
                _ => conditions.push(format!(r#"{attribute}="{value}""#)),
            }
        }
        format!("{{ {} }}{elsewhere}", conditions.join(" && "))
    }
}

/// Encodes all but Grafana's variables, which it fills in itself.
fn percent_encoded(text: &str) -> String {
    let mut encoded = String::new();
    let mut rest = text;
    while let Some(character) = rest.chars().next() {
        if let Some(end) = rest.strip_prefix("${").and_then(|tail| tail.find('}')) {
            let variable = &rest[..end + 3];
            encoded.push_str(variable);
            rest = &rest[variable.len()..];
            continue;
        }
        if character.is_ascii_alphanumeric() || "-_.~".contains(character) {
            encoded.push(character);
        } else {
            let mut bytes = [0; 4];
            for byte in character.encode_utf8(&mut bytes).bytes() {
                encoded.push_str(&format!("%{byte:02X}"));
            }
        }
        rest = &rest[character.len_utf8()..];
    }
    encoded
}

#[test]
fn variables_stay_readable_in_links() {
    assert_eq!(percent_encoded(r#"{"a":"${b}"}"#), "%7B%22a%22%3A%22${b}%22%7D");
}

#[test]
fn a_link_finds_the_spans_of_a_series() {
    const BY_MODEL: &[Query] = &[query("{{model}} {{outcome}}", "")];
    const BY_MODEL_ASKED: &[Query] = &[quantile(0.5, "x", "gen_ai_request_model")];
    const BY_PROVIDER: &[Query] = &[quantile(0.5, "x", "mlx_manager_provider")];
    let traceql = |queries| Panel { spans: "kind=client", queries, ..Panel::LINES }.traceql();
    let service = r#"resource.service.name=~".*mlx-(server|manager)""#;
    assert_eq!(
        traceql(BY_MODEL),
        format!(
            r#"{{ {service} && kind=client && span.mlx_manager.outcome="${{__field.labels.outcome}}" }} && {{ span.gen_ai.request.model="${{__field.labels.model}}" || "${{__field.labels.model}}"="_other" }}"#
        )
    );
    assert_eq!(
        traceql(BY_MODEL_ASKED),
        format!(
            r#"{{ {service} && kind=client && (span.gen_ai.request.model="${{__field.labels.gen_ai_request_model}}" || "${{__field.labels.gen_ai_request_model}}"="_other") }}"#
        )
    );
    assert!(traceql(BY_PROVIDER).contains("span.mlx_manager.provider="));
}
