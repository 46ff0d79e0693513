//! `[[prices]]`

use super::{
    decode::Decoder,
    schema::{Key, Table},
    section::Section,
    setting::{Dollars, Filled, Setting, nearest},
};

/// What an operator says that a model costs. It beats the built-in price list, at every tier of service.
#[derive(Debug, Clone, PartialEq)]
pub struct Price {
    /// Exact name or glob, in any case.
    pub model: String,
    /// The `[[providers]]` entry whose calls cost this; `None` means those of all.
    pub provider: Option<String>,
    /// US dollars per million tokens of the prompt.
    pub input: f64,
    /// US dollars per million generated tokens.
    pub output: f64,
    /// US dollars per million prompt tokens read from a cache; `None` means as `input`.
    pub cache_read: Option<f64>,
    /// US dollars per million prompt tokens written to a cache; `None` means as `input`.
    pub cache_write: Option<f64>,
    /// US dollars per million prompt tokens written to a cache for an hour; `None` means as `cache_write`.
    pub cache_write_1h: Option<f64>,
    /// US dollars per thousand searches of the web; `None` means unknown.
    pub web_search: Option<f64>,
}

const MODEL: Key =
    Key::bare("model", "exact, or a glob; in any case, and by the name asked for or the one that answered");
const PROVIDER: Key = Key::bare("provider", "left out: whoever serves it");
const INPUT: Key = Key::bare("input", "per million tokens; 0 is a price");
const OUTPUT: Key = Key::bare("output", "");
const CACHE_READ: Key = Key::bare("cache_read", "left out: as input");
const CACHE_WRITE: Key = Key::bare("cache_write", "left out: as input");
const CACHE_WRITE_1H: Key = Key::bare("cache_write_1h", "left out: as cache_write");
const WEB_SEARCH: Key = Key::bare("web_search", "per thousand; left out: a call that made any has no known cost");

pub(super) const TABLE: Table = Table {
    header: "prices",
    doc: "What models cost in US dollars, before the built-in price list. The first that matches wins.",
    keys: &[MODEL, PROVIDER, INPUT, OUTPUT, CACHE_READ, CACHE_WRITE, CACHE_WRITE_1H, WEB_SEARCH],
    entries: Some(&[]),
    suggestions: &[&[
        (MODEL, "\"llama-3.3-*\""),
        (PROVIDER, "\"openai\""),
        (INPUT, "0.59"),
        (OUTPUT, "0.79"),
        (CACHE_READ, "0.06"),
        (CACHE_WRITE, "0.59"),
        (CACHE_WRITE_1H, "1.18"),
        (WEB_SEARCH, "10"),
    ]],
};

pub(super) fn decode(decoder: &mut Decoder<'_>, providers: &[String]) -> Option<Vec<Price>> {
    let entries = decoder.entries(&TABLE);
    let prices: Vec<_> = entries.iter().map(|section| decode_price(decoder, section, providers)).collect();
    prices.into_iter().collect()
}

fn decode_price<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, providers: &[String]) -> Option<Price> {
    decoder.check_keys(section, &[]);
    let model = decoder.required::<Filled>(section, &MODEL).map(|model| model.0);
    if let Some(Err(error)) = model.as_deref().map(globset::Glob::new) {
        let key = section.path_of(&MODEL);
        decoder.report(&key, decoder.place_of(&key), "isn't a glob", &format!("{}; \\ escapes", error.kind()));
    }
    let provider = decode_optional::<Filled>(decoder, section, &PROVIDER).map(|name| name.map(|name| name.0));
    if let Some(Some(name)) = &provider
        && !providers.contains(name)
    {
        let key = section.path_of(&PROVIDER);
        let hint = nearest(name, providers.iter().map(String::as_str)).map_or_else(
            || format!("known providers: {}", providers.join(", ")),
            |near| format!("did you mean `{near}`?"),
        );
        decoder.report_relation(&key, decoder.place_of(&key), &format!("is \"{name}\", which isn't configured"), &hint);
    }
    let input = decoder.required::<Dollars>(section, &INPUT);
    let output = decoder.required::<Dollars>(section, &OUTPUT);
    let mut optional = |key: &Key| decode_optional::<Dollars>(decoder, section, key);
    let (cache_read, cache_write) = (optional(&CACHE_READ), optional(&CACHE_WRITE));
    let (cache_write_1h, web_search) = (optional(&CACHE_WRITE_1H), optional(&WEB_SEARCH));
    let dollars = |price: Option<Dollars>| price.map(|price| price.0);
    Some(Price {
        model: model?,
        provider: provider?,
        input: input?.0,
        output: output?.0,
        cache_read: dollars(cache_read?),
        cache_write: dollars(cache_write?),
        cache_write_1h: dollars(cache_write_1h?),
        web_search: dollars(web_search?),
    })
}

/// A value that may be left out; `None` when it is wrong.
fn decode_optional<'a, T: Setting>(decoder: &mut Decoder<'a>, section: &Section<'a>, key: &Key) -> Option<Option<T>> {
    match decoder.find(section, key) {
        Ok(Some(found)) => decoder.read(&found).map(Some),
        Ok(None) => Some(None),
        Err(_) => None,
    }
}
