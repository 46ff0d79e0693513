//! `gen_ai.usage.raw`: what a provider said of the usage, in its own words, as far as those are names and numbers.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{Error, MapAccess, Visitor},
};
use serde_json::Value as Json;

use super::redact;

/// The largest report of a usage, in bytes.
const MAX_BYTES: usize = 4096;

/// What [`reported_usage`] says, as text. Nearly all reports hold nothing but what is known here, and they stay as they are.
pub(super) fn raw_usage(reports: [Option<&str>; 2]) -> Option<String> {
    match reports {
        [Some(only), None] if is_known(only) => Some(only.to_owned()),
        _ => reported_usage(reports).map(|usage| usage.to_string()),
    }
}

/// The provider's report of the usage: of a stream the first one with the fields of the last one, as the official clients
/// add them up. A report that is no object of a sane size is none.
pub(super) fn reported_usage(reports: [Option<&str>; 2]) -> Option<Json> {
    let objects = reports.into_iter().flatten().filter(|report| report.len() <= MAX_BYTES);
    let mut objects = objects.filter_map(|report| serde_json::from_str::<serde_json::Map<_, _>>(report).ok());
    let mut usage = objects.next()?;
    usage.extend(objects.flatten());
    let mut usage = Json::Object(usage);
    leave_prose_out(&mut usage);
    redact::json(&mut usage);
    Some(usage)
}

/// Keeps numbers, switches and names. A provider's usage has no prose, and if it had, that might be the prompt.
fn leave_prose_out(value: &mut Json) {
    const MAX_NAME: usize = 64;
    let is_name = |text: &str| {
        text.len() <= MAX_NAME && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-.".contains(&byte))
    };
    match value {
        Json::Object(fields) => {
            fields.values_mut().for_each(leave_prose_out);
            fields.retain(|name, value| is_name(name) && !value.is_null());
        }
        Json::Array(items) => items.iter_mut().for_each(leave_prose_out),
        Json::String(text) if !is_name(text) => *value = Json::Null,
        _ => {}
    }
}

/// Whether a report is an object of known names and of numbers, without spaces, so that nothing need be looked for in it.
fn is_known(report: &str) -> bool {
    report.len() <= MAX_BYTES
        && report.starts_with('{')
        && !report.bytes().any(|byte| byte.is_ascii_whitespace())
        && serde_json::from_str::<Known>(report).is_ok()
}

/// A number, a switch, a tier, or an object of known names that holds only such.
struct Known;

impl<'de> Deserialize<'de> for Known {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Self)
    }
}

impl<'de> Visitor<'de> for Known {
    type Value = Self;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("known names and numbers")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self, E> {
        Ok(self)
    }

    fn visit_borrowed_str<E: Error>(self, tier: &'de str) -> Result<Self, E> {
        match tier {
            "standard" | "priority" | "batch" | "default" => Ok(self),
            _ => Err(E::custom("a word")),
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self, A::Error> {
        while let Some(name) = fields.next_key::<&str>()? {
            if !is_known_name(name) {
                return Err(A::Error::custom("another name"));
            }
            fields.next_value::<Self>()?;
        }
        Ok(self)
    }
}

fn is_known_name(name: &str) -> bool {
    matches!(
        name,
        "prompt_tokens"
            | "completion_tokens"
            | "total_tokens"
            | "input_tokens"
            | "output_tokens"
            | "prompt_tokens_details"
            | "completion_tokens_details"
            | "input_tokens_details"
            | "output_tokens_details"
            | "cached_tokens"
            | "cache_write_tokens"
            | "audio_tokens"
            | "text_tokens"
            | "image_tokens"
            | "reasoning_tokens"
            | "thinking_tokens"
            | "accepted_prediction_tokens"
            | "rejected_prediction_tokens"
            | "cache_read_input_tokens"
            | "cache_creation_input_tokens"
            | "cache_creation"
            | "ephemeral_5m_input_tokens"
            | "ephemeral_1h_input_tokens"
            | "server_tool_use"
            | "web_search_requests"
            | "web_fetch_requests"
            | "service_tier"
            | "prompt_cache_hit_tokens"
            | "prompt_cache_miss_tokens"
            | "queue_time"
            | "prompt_time"
            | "completion_time"
            | "total_time"
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_of_known_names_and_numbers_is_left_as_it_is_and_no_other() {
        for known in [
            r#"{"prompt_tokens":5,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":1.50}}"#,
            r#"{"input_tokens":5,"cache_creation":{},"service_tier":"standard"}"#,
            "{}",
        ] {
            assert!(is_known(known));
            assert_eq!(raw_usage([Some(known), None]).unwrap(), known);
        }
        for other in [
            r#"{"prompt_tokens": 1}"#,
            r#"{"prompt_tokens":null}"#,
            r#"{"prompt_tokens":[1]}"#,
            r#"{"service_tier":"hunter2"}"#,
            r#"{"api_key":1}"#,
            r#"{"sk-abcdefghijklmnopqrstu":1}"#,
            r#"{"prompt_t\u006fkens":1}"#,
            r#"{"prompt_tokens":1"#,
            r#"{"prompt_tokens":1,}"#,
            r#"{"prompt_tokens":1e999}"#,
            "[1]",
            "1",
        ] {
            assert!(!is_known(other), "{other}");
            let same = reported_usage([Some(other), None]).map(|usage| usage.to_string());
            assert_eq!(raw_usage([Some(other), None]), same);
        }
    }

    #[test]
    fn no_known_name_gives_a_secret_away() {
        let report = r#"{"prompt_tokens":1,"service_tier":"priority","web_search_requests":2,"total_time":0.5}"#;
        assert!(is_known(report));
        assert_eq!(reported_usage([Some(report), None]), serde_json::from_str(report).ok());
    }

    #[test]
    fn reported_usage_is_merged_and_holds_no_prose() {
        let first =
            r#"{"input_tokens":5,"output_tokens":1,"service_tier":"standard","prompt":"tell me a story","gone":null}"#;
        let last =
            r#"{"output_tokens":9,"details":{"audio_tokens":null,"reasoning_tokens":2,"said":"it is a secret"}}"#;
        assert_eq!(
            reported_usage([Some(first), Some(last)]),
            Some(json!({"input_tokens": 5, "output_tokens": 9, "service_tier": "standard",
                "details": {"reasoning_tokens": 2}}))
        );
        assert_eq!(reported_usage([None, None]), None);
        assert_eq!(reported_usage([Some("[1]"), None]), None);
        assert_eq!(reported_usage([Some(&format!(r#"{{"a":"{}"}}"#, "b".repeat(5_000))), None]), None);
    }
}
