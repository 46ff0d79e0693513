//! What was measured, on the page and in a file for whoever draws it.

use std::{fs, path::PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::shape::Shape;

/// One quantity against another.
pub struct Series {
    /// What it says, with its unit; of lines with the same, one picture is made.
    pub what: &'static str,
    /// Whose it is.
    pub whose: &'static str,
    pub points: Vec<(f64, f64)>,
}

/// Everything that was measured against one quantity.
pub struct Curve {
    pub name: &'static str,
    /// What grows, with its unit.
    pub against: &'static str,
    pub series: Vec<Series>,
}

impl Series {
    /// Of the daemon.
    pub fn new(what: &'static str, points: Vec<(f64, f64)>) -> Self {
        Self { what, whose: "daemon", points }
    }

    pub fn shape(&self) -> Shape {
        Shape::of(&self.points)
    }
}

impl Curve {
    /// Whether nothing of the daemon's grows faster than it may, which is linear, or as a peer does: what doesn't fit into
    /// the processor's caches costs more a byte for everybody.
    pub fn is_good(&self) -> bool {
        let mut own = self.series.iter().filter(|series| series.whose == "daemon");
        own.all(|series| {
            let mut peers = self.series.iter().filter(|peer| peer.what == series.what && peer.whose != series.whose);
            series.shape().is_good() || peers.any(|peer| peer.shape().is_about(series.shape()))
        })
    }

    pub fn to_text(&self) -> String {
        let mut text = format!("\n{} – {}\n", self.name, self.against);
        let Some(first) = self.series.first() else { return text };
        let row = |what: String, cells: Vec<String>, end: String| {
            let cells: String = cells.iter().map(|cell| format!("{cell:>11}")).collect();
            format!("{what:<34}{cells}   {end}\n")
        };
        let xs = first.points.iter().map(|(x, _)| format!("{x}")).collect();
        text.push_str(row(String::new(), xs, String::new()).trim_end());
        text.push('\n');
        for series in &self.series {
            let what = if series.whose == "daemon" {
                series.what.to_owned()
            } else {
                format!("{}, {}", series.what, series.whose)
            };
            let digits = |y: f64| if y < 10.0 { 2 } else { 0 };
            let ys = series.points.iter().map(|(_, y)| format!("{y:.*}", digits(*y))).collect();
            text.push_str(&row(what, ys, series.shape().to_string()));
        }
        text
    }

    fn to_json(&self) -> Value {
        let series = self.series.iter().map(|series| {
            json!({ "what": series.what, "whose": series.whose, "points": series.points, "shape": series.shape().to_string() })
        });
        json!({ "name": self.name, "against": self.against, "series": series.collect::<Vec<_>>() })
    }

    /// Puts it in the place of what the file had of that name, so that a curve can be measured by itself.
    pub fn save(&self) -> Result<()> {
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.parent().context("the folder is in the target's")?.join("bench-growth.json");
        let text = fs::read_to_string(&file).unwrap_or_default();
        let mut curves: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
        curves.retain(|curve| curve["name"] != self.name);
        curves.push(self.to_json());
        fs::write(file, serde_json::to_string_pretty(&curves)?)?;
        Ok(())
    }
}
