//! What libraries say through the `log` crate, as events of tracing.
//!
//! Each place in a library that speaks becomes a callsite of its own, with the library's module path as its target, so that
//! levels, caps, sinks and reloads hold for it as for everything else. (tracing-log has one callsite for all of them, whose
//! target is `log`.) Enter at [`hear_libraries`].

use std::{
    collections::HashMap,
    sync::{
        OnceLock,
        atomic::{AtomicBool, Ordering},
    },
};

use ::log::{Log, Record, SetLoggerError};
use parking_lot::RwLock;
use tracing::{
    Event, Level, Metadata,
    callsite::{self, Callsite, Identifier},
    dispatcher,
    field::{FieldSet, Value},
    level_filters::LevelFilter,
    metadata::Kind,
    subscriber::Interest,
};

/// The target of what has no module path of its own.
const NAMELESS: &str = "log";

/// Makes what is said through the `log` crate from now on part of the logs.
///
/// # Errors
/// When somebody else listens to it already.
pub fn hear_libraries() -> Result<(), SetLoggerError> {
    ::log::set_boxed_logger(Box::new(Libraries::default()))?;
    // What passes is decided event by event, and a reload may change it.
    ::log::set_max_level(::log::LevelFilter::Trace);
    Ok(())
}

/// A place that speaks. There are as many as the libraries' code has.
type Place = (&'static str, Option<u32>, ::log::Level);

#[derive(Default)]
struct Libraries {
    sites: RwLock<HashMap<Place, &'static Site>>,
}

impl Libraries {
    fn site(&self, record: &Record<'_>) -> &'static Site {
        let place = match record.module_path_static() {
            Some(module) => (module, record.line(), record.level()),
            None => (NAMELESS, None, record.level()),
        };
        if let Some(site) = self.sites.read().get(&place) {
            return site;
        }
        let mut sites = self.sites.write();
        let mut new = false;
        let site = *sites.entry(place).or_insert_with(|| {
            new = true;
            Site::leak(place)
        });
        drop(sites);
        if new {
            callsite::register(site);
        }
        site
    }
}

impl Log for Libraries {
    fn enabled(&self, metadata: &::log::Metadata<'_>) -> bool {
        level(metadata.level()) <= LevelFilter::current()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let site = self.site(record);
        if site.silent.load(Ordering::Relaxed) {
            return;
        }
        let metadata = site.get();
        dispatcher::get_default(|dispatch| {
            let fields = metadata.fields();
            if dispatch.enabled(metadata)
                && let Some(message) = fields.field("message")
            {
                let values = [(&message, Some(record.args() as &dyn Value))];
                dispatch.event(&Event::new(metadata, &fields.value_set(&values)));
            }
        });
    }

    fn flush(&self) {}
}

/// The callsite of a place; tracing wants them to live for ever.
struct Site {
    metadata: OnceLock<Metadata<'static>>,
    silent: AtomicBool,
}

impl Site {
    fn leak((module, line, log_level): Place) -> &'static Self {
        let site: &'static Self =
            Box::leak(Box::new(Self { metadata: OnceLock::new(), silent: AtomicBool::new(false) }));
        let fields = FieldSet::new(&["message"], Identifier(site));
        site.metadata.get_or_init(|| {
            Metadata::new("log record", module, level(log_level), None, line, Some(module), fields, Kind::EVENT)
        });
        site
    }

    #[expect(clippy::expect_used, reason = "the metadata names the site, so that it can only come right after it")]
    fn get(&self) -> &Metadata<'static> {
        self.metadata.get().expect("a site gets its metadata where it is made")
    }
}

impl Callsite for Site {
    fn set_interest(&self, interest: Interest) {
        self.silent.store(interest.is_never(), Ordering::Relaxed);
    }

    fn metadata(&self) -> &Metadata<'_> {
        self.get()
    }
}

fn level(level: ::log::Level) -> Level {
    match level {
        ::log::Level::Error => Level::ERROR,
        ::log::Level::Warn => Level::WARN,
        ::log::Level::Info => Level::INFO,
        ::log::Level::Debug => Level::DEBUG,
        ::log::Level::Trace => Level::TRACE,
    }
}

#[cfg(test)]
mod tests {
    use mlx_manager_config::{Directive, Format};

    use super::{
        super::tests::{SOON, config, file, log, read, start},
        *,
    };

    fn say(libraries: &Libraries, module: Option<&'static str>, level: ::log::Level, text: &str) {
        let mut record = Record::builder();
        record.level(level).module_path_static(module).line(Some(7)).target("whatever");
        libraries.log(&record.args(format_args!("{text}")).build());
    }

    #[test]
    fn a_library_speaks_under_its_own_name_and_within_its_cap() {
        use ::log::Level::{Debug, Info, Warn};
        let folder = tempfile::tempdir().unwrap();
        let mut server = file(&folder, "server", Format::Text);
        server.include = vec!["mlx_manager::server".into()];
        let mut rest = file(&folder, "rest", Format::Text);
        rest.exclude = server.include.clone();
        let mut config = config(mlx_manager_config::Level::Info, vec![server, rest]);
        config.targets = vec![Directive { target: "tokenizers".into(), level: mlx_manager_config::Level::Warn }];
        let (router, handle) = start(&config);
        let libraries = Libraries::default();
        log(router, || {
            for _ in 0..2 {
                say(&libraries, Some("tokenizers::models"), Info, "below its cap");
                say(&libraries, Some("tokenizers::models"), Warn, "by itself\nforged");
                say(&libraries, Some("reqwest::connect"), Debug, "below the level");
                say(&libraries, None, Info, "from nowhere");
            }
            let span = tracing::info_span!(target: "mlx_manager::server::http", "http", request_id = "r-1");
            span.in_scope(|| say(&libraries, Some("tokenizers::models"), Warn, "for a request"));
        });
        assert!(handle.flush(SOON));
        let lines = |name: &str| -> Vec<String> {
            let text = read(&folder, name);
            text.lines().map(|line| line.split_once(" | ").unwrap().1.to_owned()).collect()
        };
        let twice = [r"WARN     | tokenizers::models:7 - by itself\nforged", "INFO     | log - from nowhere"];
        assert_eq!(lines("rest"), [twice, twice].concat());
        assert_eq!(lines("server"), ["WARN     | tokenizers::models:7 - for a request request_id=r-1"]);
        assert_eq!(libraries.sites.read().len(), 3, "one for each place, and none below the level");
    }
}
