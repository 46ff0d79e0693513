//! Cost and memory by the size of a request's body, beside nginx.

use anyhow::Result;

use super::{
    curve::{Curve, Series},
    point::{Place, Point, take_turns},
};
use crate::rig::load::chat;

/// Bytes of a body, and how many are sent in a round.
const SIZES: [(usize, usize); 5] = [(1_000, 2000), (10_000, 1000), (100_000, 300), (1_000_000, 100), (10_000_000, 20)];

pub async fn bodies(place: &Place) -> Result<Curve> {
    let mut points = Vec::new();
    for (size, count) in SIZES {
        points.push(place.point(size as f64, "")?.asks([chat(false, size)], count));
    }
    for (size, count) in SIZES {
        points.extend(place.nginx(size as f64)?.map(|point| point.asks([chat(false, size)], count)));
    }
    take_turns(&mut points, place).await?;
    let of = |points: &[Point], whose| {
        let peaks = points.iter().map(Point::peak).collect::<Result<_>>()?;
        let (cpu, memory) = ("CPU, µs a request", "peak RSS, MB");
        let costs = points.iter().map(Point::cpu).collect();
        anyhow::Ok([Series { what: cpu, whose, points: costs }, Series { what: memory, whose, points: peaks }])
    };
    let (daemon, nginx) = points.split_at(SIZES.len());
    let mut series = Vec::from(of(daemon, "daemon")?);
    if !nginx.is_empty() {
        let [cost, _] = of(nginx, "nginx")?;
        series.insert(1, cost);
    }
    Ok(Curve { name: "bodies", against: "bytes of a request's body", series })
}
