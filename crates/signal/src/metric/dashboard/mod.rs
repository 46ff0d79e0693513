//! The dashboards: described here, written to `dashboards/*.json` by a test, and held against the enum of names.
//!
//! `UPDATE_DASHBOARDS=1 cargo test -p mlx-manager-signal dashboards_are_written` writes them again, and with them the list of queries that
//! `tests/observe` asks a real Prometheus. All of this is compiled for tests only.

mod cloud;
mod engine;
mod health;
mod overview;
mod panel;
mod tests;

use serde_json::{Value, json};

use self::panel::Dashboard;

/// All of them.
const DASHBOARDS: [Dashboard; 4] = [overview::OVERVIEW, engine::ENGINE, cloud::CLOUD, health::HEALTH];

/// Everything that is written, by path below the repository's root.
fn written() -> Vec<(String, String)> {
    let mut files: Vec<_> = DASHBOARDS
        .iter()
        .map(|dashboard| (format!("dashboards/{}.json", dashboard.name), dashboard.render()))
        .collect();
    let queries: Vec<Value> = DASHBOARDS
        .iter()
        .flat_map(|dashboard| dashboard.panels().map(move |panel| (dashboard.name, panel)))
        .flat_map(|(dashboard, panel)| panel.queries.iter().map(move |query| (dashboard, panel, query)))
        .map(|(dashboard, panel, query)| {
            json!({
                "dashboard": dashboard, "panel": panel.title, "unit": panel.unit, "max": panel.max,
                "legend": query.legend(), "expression": query.expression(), "may_be_empty": query.may_be_empty,
            })
        })
        .collect();
    files.push(("tests/observe/queries.json".to_owned(), serde_json::to_string_pretty(&queries).unwrap() + "\n"));
    files
}
