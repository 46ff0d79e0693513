//! Who speaks: the two services of this one process.

use opentelemetry::KeyValue;
use opentelemetry_sdk::{Resource, resource::TelemetryResourceDetector};
use uuid::Uuid;

use crate::config::TelemetryConfig;

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
}

/// The resource of each service.
#[derive(Debug)]
pub(crate) struct Resources {
    server: Resource,
    manager: Resource,
}

impl Resources {
    pub(super) fn new(telemetry: &TelemetryConfig) -> Self {
        let instance = Uuid::now_v7().to_string();
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
                    KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
                    KeyValue::new("service.instance.id", instance.clone()),
                    KeyValue::new("deployment.environment.name", telemetry.environment.clone()),
                    KeyValue::new("process.pid", i64::from(std::process::id())),
                ])
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
