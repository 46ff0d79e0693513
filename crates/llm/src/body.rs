//! A request body kept field by field as it came, so that a provider of the same dialect gets exactly what was sent.

use std::fmt;

use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{MapAccess, Visitor},
    ser::SerializeMap,
};
use serde_json::value::RawValue;

/// The most fields a body may have. No API comes near it, and it keeps the linear look-ups cheap whatever is sent.
const MAX_FIELDS: usize = 512;

/// The fields of a JSON object in their order, each as its original text. Of a field given twice the last one counts.
#[derive(Debug, Clone, Default)]
pub struct Body {
    fields: Vec<(String, Box<RawValue>)>,
}

impl Body {
    /// The text of a field.
    pub fn get(&self, name: &str) -> Option<&RawValue> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| &**value)
    }

    /// Replaces a field in its place, or appends it.
    ///
    /// # Errors
    /// When the value can't be written as JSON.
    pub fn set(&mut self, name: &str, value: &impl Serialize) -> serde_json::Result<()> {
        let value = serde_json::value::to_raw_value(value)?;
        self.insert(name.to_owned(), value);
        Ok(())
    }

    /// Field names and texts in order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &RawValue)> {
        self.fields.iter().map(|(name, value)| (name.as_str(), &**value))
    }

    fn insert(&mut self, name: String, value: Box<RawValue>) {
        match self.fields.iter_mut().find(|(field, _)| *field == name) {
            Some(field) => field.1 = value,
            None => self.fields.push((name, value)),
        }
    }
}

impl Serialize for Body {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.fields.len()))?;
        for (name, value) in &self.fields {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Fields;
        impl<'de> Visitor<'de> for Fields {
            type Value = Body;

            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str("a JSON object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Body, A::Error> {
                let mut body = Body::default();
                while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                    body.insert(name, value);
                    if body.fields.len() > MAX_FIELDS {
                        return Err(serde::de::Error::custom(format_args!("more than {MAX_FIELDS} fields")));
                    }
                }
                Ok(body)
            }
        }
        deserializer.deserialize_map(Fields)
    }
}

#[cfg(test)]
mod tests {
    use super::Body;

    #[test]
    fn every_byte_of_a_value_survives() {
        let text =
            r#"{"model":"m","temperature":1.0,"big":123456789012345678901234567890,"nested":{"b":1,"a":[1, 2]}}"#;
        let mut body: Body = serde_json::from_str(text).unwrap();
        body.set("model", &"other").unwrap();
        assert_eq!(serde_json::to_string(&body).unwrap(), text.replace("\"m\"", "\"other\""));
    }
}
