//! Single values: how a TOML value becomes a typed one, and what is allowed when it doesn't.

use std::{net::SocketAddr, time::Duration};

use toml::de::DeArray;

use super::Secret;

/// A value as it stands in the file, with its variables replaced.
#[derive(Debug, Clone)]
pub(super) enum Raw<'a> {
    Text {
        text: String,
        /// It came from a variable or the command line, where a number has no other way to be written.
        substituted: bool,
    },
    Integer(i64),
    Float(f64),
    Boolean(bool),
    Datetime(String),
    Array(DeArray<'a>),
    Table,
}

impl Raw<'_> {
    /// For messages: what was found.
    pub(super) fn describe(&self) -> String {
        match self {
            Self::Text { .. } => shorten(self.toml()),
            Self::Array(_) => "a list".to_owned(),
            Self::Table => "a table".to_owned(),
            _ => self.toml(),
        }
    }

    /// As TOML text.
    pub(super) fn toml(&self) -> String {
        match self {
            Self::Text { text, .. } => quote(text),
            Self::Integer(number) => number.to_string(),
            Self::Float(number) => format!("{number:?}"),
            Self::Boolean(boolean) => boolean.to_string(),
            Self::Datetime(text) => text.clone(),
            Self::Array(_) => "[…]".to_owned(),
            Self::Table => "{…}".to_owned(),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match self {
            Self::Text { text, .. } => Some(text),
            _ => None,
        }
    }

    fn number(&self) -> Result<f64, Option<String>> {
        match self {
            Self::Integer(number) => Ok(*number as f64),
            Self::Float(number) => Ok(*number),
            Self::Text { text, substituted: true } => text.trim().parse().map_err(|_| None),
            Self::Text { text, .. } if text.trim().parse::<f64>().is_ok() => Err(without_quotes(text)),
            _ => Err(None),
        }
    }
}

/// A TOML string.
pub(super) fn quote(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn shorten(text: String) -> String {
    const LONGEST: usize = 60;
    if text.chars().count() <= LONGEST {
        return text;
    }
    text.chars().take(LONGEST).chain(['…']).collect()
}

fn without_quotes(text: &str) -> Option<String> {
    Some(format!("write it without quotes: {text}"))
}

/// A type that a single value can be read as.
pub(super) trait Setting: Sized {
    /// Whether it must never be shown.
    const SECRET: bool = false;

    /// What is allowed, as it follows "allowed: ".
    fn allowed() -> String;

    /// Reads it; the error is a hint, if there is a good one.
    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>>;
}

/// A closed set of words.
pub(super) trait Choice: Copy + 'static {
    const CHOICES: &'static [(&'static str, Self)];
}

impl<T: Choice> Setting for T {
    fn allowed() -> String {
        let names: Vec<String> = T::CHOICES.iter().map(|(name, _)| format!("\"{name}\"")).collect();
        names.join(", ")
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?;
        let found = T::CHOICES.iter().find(|(name, _)| name.eq_ignore_ascii_case(text));
        found.map(|(_, choice)| *choice).ok_or_else(|| suggest(text, T::CHOICES.iter().map(|(name, _)| *name)))
    }
}

/// "did you mean …", when one of the candidates is near.
pub(super) fn suggest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<String> {
    nearest(text, candidates).map(|candidate| format!("did you mean `{candidate}`?"))
}

/// The candidate nearest to a text, if it is near at all.
pub(super) fn nearest<'a>(text: &str, candidates: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let text = text.to_lowercase();
    candidates
        .map(|candidate| (similarity(&text, &candidate.to_lowercase()), candidate))
        .filter(|(similarity, _)| *similarity > 0.78)
        .max_by(|left, right| left.0.total_cmp(&right.0))
        .map(|(_, candidate)| candidate)
}

fn similarity(left: &str, right: &str) -> f64 {
    // Jaro-Winkler judges two swapped letters of a short word too harshly.
    let one_slip = left.len() > 2 && strsim::osa_distance(left, right) == 1;
    strsim::jaro_winkler(left, right).max(if one_slip { 0.9 } else { 0.0 })
}

impl Setting for String {
    fn allowed() -> String {
        "a string".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        raw.text().map(str::to_owned).ok_or_else(|| match raw {
            Raw::Integer(_) | Raw::Float(_) | Raw::Boolean(_) => Some(format!("put it in quotes: \"{}\"", raw.toml())),
            _ => None,
        })
    }
}

impl Setting for Secret {
    const SECRET: bool = true;

    fn allowed() -> String {
        "a string of visible ASCII characters, which is what an HTTP header can carry".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or_else(|| Some("put it in quotes".to_owned()))?.trim();
        if text.chars().all(|character| character.is_ascii_graphic() || character == ' ') {
            return Ok(Self::new(text));
        }
        Err(Some("it holds a line break, a control character or a letter outside ASCII".to_owned()))
    }
}

impl Setting for bool {
    fn allowed() -> String {
        "true or false".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        match raw {
            Raw::Boolean(boolean) => Ok(*boolean),
            Raw::Text { text, substituted: true } => text.trim().parse().map_err(|_| None),
            Raw::Text { text, .. } if text.parse::<bool>().is_ok() => Err(without_quotes(text)),
            _ => Err(None),
        }
    }
}

impl Setting for SocketAddr {
    fn allowed() -> String {
        "an IP address and a port, such as \"127.0.0.1:10242\" or \"[::1]:10242\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = raw.text().ok_or(None)?.trim();
        text.parse().map_err(|_| match text.rsplit_once(':') {
            Some(("localhost", port)) => Some(format!("write \"127.0.0.1:{port}\"")),
            Some(("" | "*", port)) => Some(format!("for every interface write \"0.0.0.0:{port}\"")),
            None => Some("the port is missing".to_owned()),
            _ => None,
        })
    }
}

/// A size in bytes, at least one.
#[derive(Debug, Clone, Copy)]
pub(super) struct Size(pub(super) u64);

impl Setting for Size {
    fn allowed() -> String {
        "a size above zero, such as \"10 MB\" (10^6) or \"32 MiB\" (2^20)".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        SizeOrZero::read(raw).and_then(|size| if size.0 == 0 { Err(None) } else { Ok(Self(size.0)) })
    }
}

/// A size where zero means something.
#[derive(Debug, Clone, Copy)]
pub(super) struct SizeOrZero(pub(super) u64);

impl Setting for SizeOrZero {
    fn allowed() -> String {
        "a size such as \"0 B\", \"10 MB\" (10^6) or \"32 MiB\" (2^20)".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        match raw {
            Raw::Text { text, .. } => parse_size(text).map(Self).ok_or(None),
            Raw::Integer(number) => Err(Some(format!("say the unit: \"{number} B\""))),
            _ => Err(None),
        }
    }
}

/// Bytes of `"1.5 GB"`; `None` when there is no unit, an unknown one, or more than 2^63 bytes.
pub(super) fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let unit_start = text.find(|character: char| !character.is_ascii_digit() && character != '.')?;
    let (number, unit) = text.split_at(unit_start);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "b" => 1,
        "kb" => 1_000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        "kib" => 1 << 10,
        "mib" => 1 << 20,
        "gib" => 1 << 30,
        "tib" => 1 << 40,
        _ => return None,
    };
    if let Ok(whole) = number.parse::<u64>() {
        return whole.checked_mul(factor).filter(|bytes| *bytes <= i64::MAX as u64);
    }
    let bytes = number.parse::<f64>().ok()? * factor as f64;
    (bytes.is_finite() && bytes < i64::MAX as f64).then_some(bytes as u64)
}

const LONGEST: Duration = Duration::from_secs(100 * 366 * 86_400);

impl Setting for Duration {
    fn allowed() -> String {
        "a duration above zero, such as \"250 ms\", \"30 s\", \"15 min\" or \"7 days\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        DurationOrZero::read(raw).and_then(|duration| if duration.0.is_zero() { Err(None) } else { Ok(duration.0) })
    }
}

/// A duration where zero means something.
#[derive(Debug, Clone, Copy)]
pub(super) struct DurationOrZero(pub(super) Duration);

impl Setting for DurationOrZero {
    fn allowed() -> String {
        "a duration such as \"0 s\", \"250 ms\", \"30 s\", \"15 min\" or \"7 days\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        match raw {
            Raw::Text { text, .. } => match humantime::parse_duration(text.trim()) {
                Ok(duration) if duration <= LONGEST => Ok(Self(duration)),
                Ok(_) => Err(Some("that is more than a hundred years".to_owned())),
                Err(_) if text.trim().parse::<f64>().is_ok() => {
                    Err(Some(format!("say the unit: \"{} s\"", text.trim())))
                }
                Err(_) => Err(None),
            },
            Raw::Integer(number) => Err(Some(format!("say the unit: \"{number} s\""))),
            _ => Err(None),
        }
    }
}

/// A share in [0, 1].
#[derive(Debug, Clone, Copy)]
pub(super) struct Ratio(pub(super) f64);

impl Setting for Ratio {
    fn allowed() -> String {
        "a number from 0 to 1".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let number = raw.number()?;
        if (0.0..=1.0).contains(&number) { Ok(Self(number)) } else { Err(None) }
    }
}

/// A share in [0, 1], written in percent.
#[derive(Debug, Clone, Copy)]
pub(super) struct Share(pub(super) f64);

impl Setting for Share {
    fn allowed() -> String {
        "a share from \"0%\" to \"100%\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        match raw {
            Raw::Text { text, .. } => parse_percent(text).flatten().map(Self).ok_or(None),
            Raw::Integer(_) | Raw::Float(_) => Err(Some("write it in quotes and percent: \"20%\"".to_owned())),
            _ => Err(None),
        }
    }
}

/// The share in [0, 1] that a text like `"75%"` says: `None` for what isn't written in percent, `Some(None)` for percent
/// that say no share.
pub(super) fn parse_percent(text: &str) -> Option<Option<f64>> {
    let percent = text.trim().strip_suffix('%')?.trim().parse::<f64>();
    Some(percent.ok().filter(|percent| (0.0..=100.0).contains(percent)).map(|percent| percent / 100.0))
}

/// An amount of money, in US dollars.
#[derive(Debug, Clone, Copy)]
pub(super) struct Dollars(pub(super) f64);

impl Setting for Dollars {
    fn allowed() -> String {
        "US dollars, such as 0.25 or 3; 0 is free".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let number = raw.number()?;
        if number.is_finite() && number >= 0.0 { Ok(Self(number)) } else { Err(None) }
    }
}

/// A whole number in a closed range.
#[derive(Debug, Clone, Copy)]
pub(super) struct Count<const LEAST: u32, const MOST: u32>(pub(super) u32);

impl<const LEAST: u32, const MOST: u32> Setting for Count<LEAST, MOST> {
    fn allowed() -> String {
        format!("a whole number from {LEAST} to {MOST}")
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let number = raw.number()?;
        let whole = number.fract() == 0.0 && number >= f64::from(LEAST) && number <= f64::from(MOST);
        if whole { Ok(Self(number as u32)) } else { Err(None) }
    }
}

/// A name that becomes a metric label: letters, digits, `-`, `_` and `.`.
#[derive(Debug, Clone)]
pub(super) struct Name(pub(super) String);

impl Setting for Name {
    fn allowed() -> String {
        "a name of letters, digits, `-`, `_` and `.`, at most 64 of them".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        let plain = |character: char| character.is_ascii_alphanumeric() || "-_.".contains(character);
        if (1..=64).contains(&text.len()) && text.chars().all(plain) { Ok(Self(text)) } else { Err(None) }
    }
}

/// A string that isn't empty.
#[derive(Debug, Clone)]
pub(super) struct Filled(pub(super) String);

impl Setting for Filled {
    fn allowed() -> String {
        "a string that isn't empty".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        if text.trim().is_empty() { Err(None) } else { Ok(Self(text)) }
    }
}

/// An HTTP base URL, without a trailing slash.
#[derive(Debug, Clone)]
pub(super) struct BaseUrl(pub(super) String);

impl Setting for BaseUrl {
    fn allowed() -> String {
        "an http or https URL without credentials, query or fragment, such as \"https://api.openai.com/v1\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let url = ProviderUrl::read(raw)?.0;
        if url.contains('?') { Err(None) } else { Ok(Self(url)) }
    }
}

/// A base URL that may have a query, such as `?api-version=2024-10-21`; its path is without a trailing slash.
#[derive(Debug, Clone)]
pub(super) struct ProviderUrl(pub(super) String);

impl Setting for ProviderUrl {
    fn allowed() -> String {
        "an http or https URL without credentials or fragment, such as \"https://api.openai.com/v1\"".to_owned()
    }

    fn read(raw: &Raw<'_>) -> Result<Self, Option<String>> {
        let text = String::read(raw)?;
        let (path, query) = match text.trim().split_once('?') {
            Some((path, query)) => (path, format!("?{query}")),
            None => (text.trim(), String::new()),
        };
        let text = format!("{}{query}", path.trim_end_matches('/'));
        if !path.contains("://") {
            return Err(Some(format!("it needs a scheme: \"https://{text}\"")).filter(|_| !text.contains('@')));
        }
        let uri: http::Uri = text.parse().map_err(|_| None)?;
        let scheme = matches!(uri.scheme_str(), Some("http" | "https"));
        let authority = uri.authority().is_some_and(|authority| {
            let port = authority.as_str().strip_prefix(authority.host());
            let sound = port == Some("") || authority.port_u16().is_some_and(|port| port > 0);
            !authority.as_str().contains('@') && !authority.host().is_empty() && sound
        });
        let clean = scheme && authority && !text.contains('#');
        if clean { Ok(Self(text)) } else { Err(None) }
    }
}
