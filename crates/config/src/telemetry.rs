//! `[telemetry]`

use super::{
    decode::Decoder,
    overrides::Overlay,
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

pub(super) const TABLE: Table = Table::single(
    "telemetry",
    "",
    &[
        Key::new("environment", "\"development\"", "deployment.environment.name; LOGFIRE_ENVIRONMENT"),
        Key::new(
            "service_prefix",
            "\"\"",
            "before mlx-server and mlx-manager in service.name; LOGFIRE_SERVICE_NAME replaces both",
        ),
    ],
);

pub(super) fn decode(decoder: &mut Decoder<'_>) -> Option<TelemetryConfig> {
    let section = decoder.table(&TABLE);
    decoder.check_keys(&section, &[]);
    let environment = decoder.get::<Filled>(&section, "environment");
    let service_prefix = decoder.get(&section, "service_prefix");
    // Only the variable can replace both names, since a file that did could just as well name its components.
    let variable = "LOGFIRE_SERVICE_NAME";
    if let Some(name) = decoder.environment.set(variable) {
        let overlay = Overlay { text: name, place: Place::Environment(variable.to_owned()) };
        decoder.overlays.insert("telemetry.service_name".to_owned(), overlay);
    }
    let service_name = if section.has("service_name") { None } else { decoder.get::<Filled>(&section, "service_name") };
    Some(TelemetryConfig {
        environment: environment?.0,
        service_prefix: service_prefix?,
        service_name: service_name.map(|name| name.0),
    })
}
