//! Who speaks: the two services of this one process.

use mlx_manager_config::TelemetryConfig;
use opentelemetry::{InstrumentationScope, KeyValue, Value};
use opentelemetry_sdk::{Resource, resource::TelemetryResourceDetector, trace::SpanData};
use uuid::Uuid;

use crate::build::Build;

/// A component, as its users know it from its log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Service {
    /// Everything that happens to an inference request.
    Server,
    /// Everything else.
    Manager,
}

impl Service {
    /// Whose a target is.
    pub(crate) fn of(target: &str) -> Self {
        match target.strip_prefix("mlx_manager::server") {
            Some(rest) if rest.is_empty() || rest.starts_with("::") => Self::Server,
            _ => Self::Manager,
        }
    }

    /// Whose a span is, by the target that it has as an attribute.
    pub(crate) fn of_span(span: &SpanData) -> Self {
        let target = span.attributes.iter().find(|attribute| attribute.key.as_str() == "target");
        match target.map(|target| &target.value) {
            Some(Value::String(target)) => Self::of(target.as_str()),
            _ => Self::Manager,
        }
    }
}

/// The resource of each service.
#[derive(Debug)]
pub(crate) struct Resources {
    server: Resource,
    manager: Resource,
}

impl Resources {
    pub(super) fn new(telemetry: &TelemetryConfig, build: Build) -> Self {
        let instance = Uuid::now_v7().to_string();
        let machine = machine();
        let resource = |component: &str| {
            let name = match &telemetry.service_name {
                Some(name) => name.clone(),
                None => format!("{}{component}", telemetry.service_prefix),
            };
            // Built empty: the default detectors would let OTEL_RESOURCE_ATTRIBUTES overrule the config file.
            Resource::builder_empty()
                .with_detector(Box::new(TelemetryResourceDetector))
                .with_service_name(name)
                .with_attributes([
                    KeyValue::new("service.version", build.version),
                    KeyValue::new("service.instance.id", instance.clone()),
                    KeyValue::new("deployment.environment.name", telemetry.environment.clone()),
                    KeyValue::new("process.pid", i64::from(std::process::id())),
                    KeyValue::new("process.runtime.name", "rustc"),
                    KeyValue::new("process.runtime.version", build.compiler_version),
                    KeyValue::new("process.runtime.description", build.compiler),
                ])
                .with_attributes(machine.clone())
                .build()
        };
        Self { server: resource("mlx-server"), manager: resource("mlx-manager") }
    }

    pub(crate) fn get(&self, service: Service) -> &Resource {
        match service {
            Service::Server => &self.server,
            Service::Manager => &self.manager,
        }
    }
}

/// Who made it, as every span and log record says.
pub(crate) fn scope() -> InstrumentationScope {
    InstrumentationScope::builder("mlx-manager").with_version(env!("CARGO_PKG_VERSION")).build()
}

/// The machine and its system, as the conventions name them.
fn machine() -> Vec<KeyValue> {
    let system = rustix::system::uname();
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let os = match std::env::consts::OS {
        "macos" => "darwin",
        other => other,
    };
    let mut attributes = vec![
        KeyValue::new("host.name", system.nodename().to_string_lossy().into_owned()),
        KeyValue::new("host.arch", architecture),
        KeyValue::new("os.type", os),
        KeyValue::new("os.version", system.release().to_string_lossy().into_owned()),
    ];
    // Where systemd and D-Bus keep it. A machine without one goes without.
    let id = ["/etc/machine-id", "/var/lib/dbus/machine-id"]
        .into_iter()
        .filter_map(|path| std::fs::read_to_string(path).ok())
        .map(|id| id.trim().to_owned())
        .find(|id| !id.is_empty());
    attributes.extend(id.map(|id| KeyValue::new("host.id", id)));
    attributes
}
