//! How cost and memory grow: with bodies, open streams, routes, providers' keys, series, and rows in the database.
//!
//! `cargo bench --bench growth`, and `-- bodies rows` for some of the curves only; with `huge` the database has ten million
//! rows too. It fails where something grows faster than in a straight line. benches/README.md says more.
#![expect(clippy::print_stdout, reason = "the figures go to stdout")]
#![expect(clippy::disallowed_methods, reason = "nothing drains here: tasks end with the process")]

mod rig {
    pub mod collector;
    pub mod config;
    pub mod connection;
    pub mod cores;
    pub mod cost;
    pub mod daemon;
    pub mod growth {
        pub mod bodies;
        pub mod curve;
        pub mod point;
        pub mod routes;
        pub mod rows;
        pub mod shape;
        pub mod streams;
    }
    pub mod load;
    pub mod machine;
    pub mod memory;
    pub mod nginx;
    pub mod process;
    pub mod provider;
    pub mod ps;
    pub mod rounds;
    pub mod serve;
    pub mod statistics;
    pub mod trickle;
}

use std::env;

use anyhow::{Context as _, Result, ensure};

use rig::{
    cores::Cores,
    growth::{
        bodies::bodies,
        point::Place,
        routes::{keys, routes, series},
        rows::rows,
        shape::Shape,
        streams::{PROVIDER, streams},
    },
    machine::machine,
    trickle::trickle,
};

const CURVES: [&str; 6] = ["bodies", "streams", "routes", "keys", "series", "rows"];
/// Asks for the most rows too.
const HUGE: &str = "huge";

fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).filter(|argument| argument != "--bench").collect();
    if let [role, listen] = arguments.as_slice()
        && role == PROVIDER
    {
        return runtime()?.block_on(trickle(listen.parse()?));
    }
    Shape::check()?;
    let (huge, named): (Vec<_>, Vec<_>) = arguments.into_iter().partition(|argument| argument == HUGE);
    for name in &named {
        ensure!(CURVES.contains(&name.as_str()), "there is no curve {name:?}; there are {CURVES:?}");
    }
    println!("{}", machine());
    let cores = Cores::share_out();
    runtime()?.block_on(measure(cores, &named, !huge.is_empty()))
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

async fn measure(cores: Cores, named: &[String], huge: bool) -> Result<()> {
    let place = &Place::new(cores).await?;
    let mut bad = Vec::new();
    for name in CURVES.into_iter().filter(|name| named.is_empty() || named.iter().any(|one| one == name)) {
        let curve = match name {
            "bodies" => bodies(place).await,
            "streams" => streams(place).await,
            "routes" => routes(place).await,
            "keys" => keys(place).await,
            "series" => series(place).await,
            _ => rows(place, huge).await,
        };
        let curve = curve.with_context(|| format!("the curve {name:?}"))?;
        println!("{}", curve.to_text());
        curve.save()?;
        if !curve.is_good() {
            bad.push(name);
        }
    }
    ensure!(bad.is_empty(), "neither flat nor linear: {bad:?}");
    Ok(())
}
