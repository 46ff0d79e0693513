//! Cost by what a configuration and its callers name: rules to look through, providers with keys of their own, models.

use anyhow::Result;

use super::{
    curve::{Curve, Series},
    point::{CHATS, Place, Point, take_turns},
};
use crate::rig::load::chat_with;

const NUMBERS: [usize; 4] = [1, 10, 100, 1000];

/// The rule that matches is the last; each before it is a glob that has to be tried.
pub async fn routes(place: &Place) -> Result<Curve> {
    let mut points = Vec::new();
    for number in NUMBERS {
        // One is there already.
        let rules =
            (1..number).map(|rule| format!("[[routes]]\nmodel = \"model-{rule:04}-*\"\ntargets = [\"provider\"]\n"));
        let model = if number == 1 { "gpt-large".to_owned() } else { format!("model-{:04}-large", number - 1) };
        let more: String = rules.collect();
        points.push(place.point(number as f64, &more)?.asks([chat_with(&model, false, 0)], CHATS));
    }
    curve("routes", "routes, of which the last matches", place, points).await
}

/// The one that is asked is the last.
pub async fn keys(place: &Place) -> Result<Curve> {
    let mut points = Vec::new();
    for number in NUMBERS {
        let providers = (1..=number).map(|provider| {
            let upstream = place.upstream;
            format!(
                "[[providers]]\nname = \"with-key-{provider:04}\"\nkind = \"openai\"\nbase_url = \"http://{upstream}/v1\"\n\
                 api_key = \"sk-bench-{provider:04}\"\n"
            )
        });
        let route = format!("[[routes]]\nmodel = \"last\"\ntargets = [\"with-key-{number:04}\"]\n");
        let more = providers.collect::<String>() + &route;
        points.push(place.point(number as f64, &more)?.asks([chat_with("last", false, 0)], CHATS));
    }
    curve("keys", "providers, each with a key of its own", place, points).await
}

/// Callers ask for so many models, in turn.
pub async fn series(place: &Place) -> Result<Curve> {
    let mut points = Vec::new();
    for number in NUMBERS {
        let models = (0..number).map(|model| chat_with(&format!("gpt-model-{model:04}"), false, 0));
        points.push(place.point(number as f64, "")?.asks(models, CHATS));
    }
    curve("series", "models asked for, of which 100 become labels", place, points).await
}

async fn curve(name: &'static str, against: &'static str, place: &Place, mut points: Vec<Point>) -> Result<Curve> {
    take_turns(&mut points, place).await?;
    let residents = points.iter().map(Point::resident).collect::<Result<_>>()?;
    let series = vec![
        Series::new("CPU, µs a request", points.iter().map(Point::cpu).collect()),
        Series::new("RSS, MB", residents),
        Series::new("CPU, µs a scrape", points.iter().map(Point::page_cost).collect()),
        Series::new("Prometheus page, kB", points.iter().map(Point::page_kilobytes).collect()),
    ];
    Ok(Curve { name, against, series })
}
