//! Wires the rooms together: a checked [`Config`] becomes a [`Running`] daemon, which serves until it is told to stop.
//!
//! [`App::build`] connects the rooms, [`Running::serve`] is the daemon's whole life and [`Running::drain`] its end, whose
//! order is that of what depends on what: listeners have drained, then the engine stops, then the audit queue is written,
//! and whoever called [`App::run`] flushes telemetry last.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    http::{StatusCode, header},
    routing::get,
};
use mlx_manager_config::Config;
use mlx_manager_signal::event::{DaemonServing, DaemonStopped, DrainTimedOut, TasksLeftBehind};
use mlx_manager_telemetry::{Build, metric::Metrics};
use tokio::{
    net::TcpListener,
    task::{JoinHandle, spawn_blocking},
    time::{MissedTickBehavior, interval, timeout},
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    gateway::{
        api::{self, Bodies},
        cloud::{self, Provider},
        dispatch::{Dispatch, breaker::Breaker},
        local::{self, Engine},
    },
    http::{
        listener::{self, ListenError},
        stack::stack,
    },
    manager::api::health::{self, Probe, Readiness},
    route::Route,
    store,
};

/// Which build this is.
pub const BUILD: Build = Build {
    version: env!("CARGO_PKG_VERSION"),
    commit: env!("MLX_MANAGER_GIT_COMMIT"),
    engine: local::NAME,
    compiler: env!("MLX_MANAGER_RUSTC"),
    compiler_version: env!("MLX_MANAGER_RUSTC_VERSION"),
};

/// How often the metrics recorder tidies up; without it its memory grows.
const METRICS_UPKEEP: Duration = Duration::from_secs(5);
/// How long the audit queue may take to reach the database at the end.
const AUDIT_DEADLINE: Duration = Duration::from_secs(5);
/// How long a scrape may take to finish at the end.
const SCRAPE_DRAIN: Duration = Duration::from_secs(1);

/// The daemon, with its ports open.
pub(crate) struct App {
    api: TcpListener,
    prometheus: Option<TcpListener>,
}

/// Why the daemon can't start.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    /// A port is not to be had.
    #[error(transparent)]
    Listen(#[from] ListenError),
    /// A provider's settings don't work.
    #[error("provider {name:?} can't be used")]
    Provider {
        /// Its name.
        name: String,
        /// Why.
        source: cloud::ProviderError,
    },
    /// A route's pattern is no glob.
    #[error("a route can't be used")]
    Route(#[from] globset::Error),
}

impl App {
    /// Opens the ports, so that a busy one is known before anything else starts.
    ///
    /// # Errors
    /// When a port is not to be had.
    pub(crate) async fn bind(config: &Config) -> Result<Self, StartError> {
        let api = listener::bind(config.server.listen, "server.listen").await?;
        let prometheus = match &config.prometheus {
            prometheus if prometheus.enabled => {
                Some(listener::bind(prometheus.listen, "metrics.prometheus.listen").await?)
            }
            _ => None,
        };
        Ok(Self { api, prometheus })
    }

    /// Serves until `stop` is cancelled and everything open has ended or `server.drain_timeout` is over.
    ///
    /// # Errors
    /// When a provider or route can't be used.
    pub(crate) async fn run(
        self,
        config: &Config,
        metrics: Arc<Metrics>,
        stop: CancellationToken,
    ) -> Result<(), StartError> {
        let running = Self::build(config, metrics, stop)?;
        running.serve(self, config).await;
        running.drain().await;
        Ok(())
    }

    /// Connects the rooms. Nobody is served yet, but the engine starts, and whatever is audited from here on is written.
    fn build(config: &Config, metrics: Arc<Metrics>, stop: CancellationToken) -> Result<Running, StartError> {
        let tasks = TaskTracker::new();
        let give_up = CancellationToken::new();
        let (audit, write_audit) = store::writer(config.database.clone(), give_up.clone().cancelled_owned());
        metrics.add_poller(audit.poller());
        let writer = tasks.spawn(write_audit);

        let mut providers = Vec::new();
        for provider in &config.providers {
            let breaker = Breaker::new(&provider.name, provider.calls.breaker.clone());
            let named = |source| StartError::Provider { name: provider.name.clone(), source };
            providers.push((Provider::new(provider, &config.prices).map_err(named)?, breaker));
        }
        let engine = Engine::start(&config.local, &tasks);
        engine.models().iter().for_each(|(model, _)| metrics.add_local_model(model));
        let cut_off = CancellationToken::new();
        let dispatch = Arc::new(Dispatch::new(config, engine, providers, audit, cut_off.clone())?);
        metrics.add_poller({
            // The page must not keep the dispatch, and with it the audit queue, from ending.
            let dispatch = Arc::downgrade(&dispatch);
            move || dispatch.upgrade().into_iter().for_each(|dispatch| dispatch.refresh())
        });

        let bodies = Bodies::new(&config.server);
        metrics.add_poller(bodies.poller());
        let routes = routes(&dispatch, bodies, &stop);
        let drained = CancellationToken::new();
        Ok(Running { metrics, routes, dispatch, writer, give_up, tasks, stop, cut_off, drained })
    }
}

/// The daemon at work.
struct Running {
    metrics: Arc<Metrics>,
    routes: Vec<Route>,
    dispatch: Arc<Dispatch>,
    /// Writes audit rows until its last sender is gone, or until it is told to give up.
    writer: JoinHandle<()>,
    give_up: CancellationToken,
    /// Everything that runs beside the requests.
    tasks: TaskTracker,
    /// Cancelled, nothing new is taken on.
    stop: CancellationToken,
    /// Cancelled when what is still open is dropped.
    cut_off: CancellationToken,
    /// Cancelled when nothing is left that a scrape could show.
    drained: CancellationToken,
}

impl Running {
    /// Serves on the ports until told to stop and everything open has ended, or was cut off.
    async fn serve(&self, App { api, prometheus }: App, config: &Config) {
        DaemonServing {
            listen: &address(&api),
            metrics: prometheus.as_ref().map(address).as_deref(),
            version: BUILD.version,
        }
        .emit();
        self.tasks.spawn(upkeep(Arc::clone(&self.metrics), self.drained.clone()));
        if let Some(listener) = prometheus {
            let metrics = Arc::clone(&self.metrics);
            let routes = scrape_routes(&config.prometheus.path, move || metrics.render());
            let drained = self.drained.clone();
            self.tasks.spawn(async move {
                listener::serve(listener, routes, drained, SCRAPE_DRAIN, CancellationToken::new()).await;
            });
        }
        let (stop, cut_off) = (self.stop.clone(), self.cut_off.clone());
        let ended = listener::serve(
            api,
            stack(self.routes.clone(), &config.server),
            stop,
            config.server.drain_timeout,
            cut_off,
        )
        .await;
        if !ended {
            DrainTimedOut.emit();
        }
    }

    /// Ends what stands behind the listeners, in the order in which it depends on each other.
    async fn drain(self) {
        let Self { routes, dispatch, mut writer, give_up, tasks, drained, .. } = self;
        dispatch.shutdown().await;
        // The last sender goes with the dispatch; the writer ends when it has written what is queued.
        drop((routes, dispatch));
        if timeout(AUDIT_DEADLINE, &mut writer).await.is_err() {
            give_up.cancel();
        }
        drained.cancel();
        tasks.close();
        if timeout(AUDIT_DEADLINE, tasks.wait()).await.is_err() {
            TasksLeftBehind.emit();
        }
        DaemonStopped.emit();
    }
}

/// Every route of the API's port: those of the gateway and the manager.
fn routes(dispatch: &Arc<Dispatch>, bodies: Bodies, stop: &CancellationToken) -> Vec<Route> {
    let probe: Probe = {
        let (dispatch, stop) = (Arc::clone(dispatch), stop.clone());
        Arc::new(move || match (stop.is_cancelled(), dispatch.is_ready()) {
            (true, _) => Readiness::Draining,
            (false, true) => Readiness::Ready,
            (false, false) => Readiness::NothingToServe,
        })
    };
    [api::routes(dispatch, bodies, stop), health::routes(&probe)].concat()
}

fn address(listener: &TcpListener) -> String {
    listener.local_addr().map_or_else(|error| error.to_string(), |address| address.to_string())
}

/// The scrape endpoint has a listener of its own, outside the stack: scrapes are neither traced nor counted.
fn scrape_routes(path: &str, render: impl Fn() -> String + Clone + Send + Sync + 'static) -> Router {
    const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
    // A page of a thousand series and more takes milliseconds, for which a request's thread would answer nobody.
    let page = async move || match spawn_blocking(render).await {
        Ok(page) => Ok(([(header::CONTENT_TYPE, TEXT)], page)),
        Err(_) => Err(StatusCode::INTERNAL_SERVER_ERROR),
    };
    Router::new().route(path, get(page))
}

async fn upkeep(metrics: Arc<Metrics>, stop: CancellationToken) {
    let mut tick = interval(METRICS_UPKEEP);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let metrics = Arc::clone(&metrics);
                // If it fails, the next page does it.
                spawn_blocking(move || metrics.run_upkeep()).await.unwrap_or_default();
            }
            () = stop.cancelled() => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use axum::{body::Body, http::Request};
    use mlx_manager_config::{LoadOptions, load_text};
    use mlx_manager_llm::Api;
    use mlx_manager_signal::testing::lines_of;
    use tower::ServiceExt;

    use super::*;
    use crate::route::Kind;

    #[test]
    fn a_page_is_made_beside_the_threads_that_answer() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let routes = scrape_routes("/metrics", || format!("{:?}", thread::current().id()));
        let page = runtime.block_on(async {
            let answer = routes.oneshot(Request::get("/metrics").body(Body::empty()).unwrap()).await.unwrap();
            assert_eq!(answer.status(), StatusCode::OK);
            axum::body::to_bytes(answer.into_body(), 1000).await.unwrap()
        });
        assert!(page.starts_with(b"ThreadId") && *page != *format!("{:?}", thread::current().id()).as_bytes());
    }

    #[test]
    fn every_route_that_is_served_has_its_label() {
        let config = load_text("[local]\ndefault_model = \"\"\n", None, &LoadOptions::default()).unwrap().config;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let (tasks, stop) = (TaskTracker::new(), CancellationToken::new());
            let (audit, _) = store::writer(config.database.clone(), std::future::pending());
            let engine = Engine::start(&config.local, &tasks);
            let dispatch =
                Arc::new(Dispatch::new(&config, engine, Vec::new(), audit, CancellationToken::new()).unwrap());
            let routes = routes(&dispatch, Bodies::new(&config.server), &stop);
            for Route { path, kind, .. } in &routes {
                let inference = Api::ALL.iter().any(|api| api.path() == *path);
                assert_eq!(*kind == Kind::Inference, inference, "{path}, whose series are opened by its path");
            }
            let paths: Vec<_> = routes.iter().map(|route| route.path).collect();
            let stack = stack(routes, &config.server);
            // Which method it takes is another matter.
            let label = async |path: &str| {
                let request = Request::get(path).body(Body::empty()).unwrap();
                let answered = stack.clone().oneshot(request).await.unwrap();
                let said = lines_of(|| drop(answered));
                said.iter().find_map(|line| line.fields.get("route")).unwrap().trim_matches('"').to_owned()
            };
            assert!(paths.len() > 5, "gateway and manager have routes: {paths:?}");
            for path in paths {
                assert_eq!(label(&path.replace("{*id}", "org/name")).await, path);
            }
            assert_eq!(label("/nowhere").await, "_other");
            dispatch.shutdown().await;
        });
    }
}
