//! `[telemetry]`

use super::{
    decode::Decoder,
    overlay::Overlay,
    problem::Place,
    schema::{Key, Table},
    setting::Filled,
};

/// Names that every signal carries.
#[derive(Debug, Clone)]
pub struct TelemetryConfig {
    /// `deployment.environment.name`
    pub environment: String,
    /// Before `mlx-server` and `mlx-manager` in `service.name`.
    pub service_prefix: String,
    /// LOGFIRE_SERVICE_NAME: replaces both service names.
    pub service_name: Option<String>,
}

pub(super) const ENVIRONMENT: Key =
    Key::new("environment", "\"development\"", "deployment.environment.name; LOGFIRE_ENVIRONMENT");
const SERVICE_PREFIX: Key = Key::new(
    "service_prefix",
    "\"\"",
    "before mlx-server and mlx-manager in service.name; LOGFIRE_SERVICE_NAME replaces both",
);

/// Of the variable alone: the file can't have it.
const SERVICE_NAME: Key = Key::bare("service_name", "");

pub(super) const TABLE: Table = Table::single("telemetry", "", &[ENVIRONMENT, SERVICE_PREFIX]);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<TelemetryConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let environment = decoder.get::<Filled>(&section, &ENVIRONMENT);
    let service_prefix = decoder.get(&section, &SERVICE_PREFIX);
    // Only the variable can replace both names, since a file that did could just as well name its components.
    let variable = "LOGFIRE_SERVICE_NAME";
    if let Some(name) = decoder.environment.set(variable) {
        let overlay = Overlay { text: name, place: Place::Environment(variable.to_owned()) };
        decoder.overlays.insert(section.path_of(&SERVICE_NAME), overlay);
    }
    let service_name = if section.has(&SERVICE_NAME) { None } else { decoder.get::<Filled>(&section, &SERVICE_NAME) };
    Some(TelemetryConfig {
        environment: environment?.0,
        service_prefix: service_prefix?,
        service_name: service_name.map(|name| name.0),
    })
}
