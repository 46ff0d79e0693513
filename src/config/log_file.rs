//! The part of `[[log.sinks]]` that only file sinks have: rotation and retention.

use super::{
    Period, Retention, Rotation, SinkKind,
    decode::{Decoder, Found, Section},
    log::Every,
    schema::Key,
    setting::{Count, Filled, Raw, Size},
};

const ROTATION: &[Key] = &[Key::bare("size", ""), Key::bare("every", ""), Key::bare("at", ""), Key::bare("on", "")];
const RETENTION: &[Key] = &[Key::bare("age", ""), Key::bare("files", ""), Key::bare("total", "")];

/// The file, rotation, retention and compression of a sink of kind `file`; `dir` is `log.dir`.
pub(super) fn decode_file<'a>(
    decoder: &mut Decoder<'a>,
    section: &Section<'a>,
    dir: &std::path::Path,
) -> Option<SinkKind> {
    let file = decoder.required::<Filled>(section, "file");
    let compression = decoder.get(section, "compression");
    let rotation = decode_rotation(decoder, section);
    let retention = decode_retention(decoder, section);
    let (rotation, mut retention) = (rotation?, retention?);
    if rotation == Rotation::default() && retention != Retention::default() {
        if decoder.given(section, "retention") {
            let key = format!("{}.retention", section.path);
            let place = decoder.place_of(&key);
            let hint = "only archives are deleted: set a rotation, or retention = \"never\"";
            decoder.report_relation(&key, place, "can delete nothing, because the sink never rotates", hint);
        }
        retention = Retention::default();
    }
    if let (Some(size), Some(total)) = (rotation.size, retention.total)
        && total < size
    {
        let key = format!("{}.retention", section.path);
        decoder.warn(&key, "keeps less than one full archive", "make `total` larger than the rotation's `size`");
    }
    Some(SinkKind::File { path: dir.join(file?.0), rotation, retention, compression: compression? })
}

/// Whether the key says `"never"`, which stands in place of a table.
fn is_never<'a>(decoder: &mut Decoder<'a>, section: &Section<'a>, name: &str) -> bool {
    match decoder.find(section, name) {
        Ok(Some(Found { raw: Raw::Table, .. })) => false,
        Ok(Some(found)) if found.raw.text() == Some("never") => {
            decoder.show(&found, "\"never\"".to_owned());
            true
        }
        Ok(Some(found)) => {
            decoder.refuse(&found, false, ("a table in braces, or \"never\"", None));
            true
        }
        _ => true,
    }
}

fn decode_rotation<'a>(decoder: &mut Decoder<'a>, sink: &Section<'a>) -> Option<Rotation> {
    if is_never(decoder, sink, "rotation") {
        return Some(Rotation::default());
    }
    let section = decoder.nested(sink, "rotation", ROTATION)?;
    decoder.check_keys(&section, &[]);
    let size = decoder.get::<Size>(&section, "size").map(|size| size.0);
    let every = decoder.get::<Every>(&section, "every");
    let at = decoder.get::<jiff::civil::Time>(&section, "at");
    let on = decoder.get::<jiff::civil::Weekday>(&section, "on");
    let midnight = jiff::civil::Time::midnight();
    if section.written().next().is_none() && decoder.overlaid(&section).is_empty() {
        let message = "sets nothing";
        decoder.report(&section.path, section.place.clone(), message, "allowed: size and/or every, or \"never\"");
    }
    if decoder.given(&section, "at") && !matches!(every, Some(Every::Day | Every::Week)) {
        let (key, hint) = (format!("{}.at", section.path), "add every = \"day\" or \"week\", or leave it out");
        decoder.report_relation(&key, decoder.place_of(&key), "has no day or week to start", hint);
    }
    if decoder.given(&section, "on") && every != Some(Every::Week) {
        let (key, hint) = (format!("{}.on", section.path), "add every = \"week\", or leave it out");
        decoder.report_relation(&key, decoder.place_of(&key), "has no week to start", hint);
    }
    let every = every.map(|every| match every {
        Every::Hour => Period::Hour,
        Every::Day => Period::Day { at: at.unwrap_or(midnight) },
        Every::Week => Period::Week { on: on.unwrap_or(jiff::civil::Weekday::Monday), at: at.unwrap_or(midnight) },
    });
    remember(decoder, &section);
    Some(Rotation { size, every })
}

fn decode_retention<'a>(decoder: &mut Decoder<'a>, sink: &Section<'a>) -> Option<Retention> {
    if is_never(decoder, sink, "retention") {
        return Some(Retention::default());
    }
    let section = decoder.nested(sink, "retention", RETENTION)?;
    decoder.check_keys(&section, &[]);
    let age = decoder.get(&section, "age");
    let files = decoder.get::<Count<1, 1_000_000>>(&section, "files").map(|count| count.0 as usize);
    let total = decoder.get::<Size>(&section, "total").map(|size| size.0);
    if section.written().next().is_none() && decoder.overlaid(&section).is_empty() {
        let message = "can delete nothing, because it sets no limit";
        let allowed = "allowed: age, files and/or total; or \"never\" to keep every archive";
        decoder.report(&section.path, section.place.clone(), message, allowed);
    }
    remember(decoder, &section);
    Some(Retention { age, files, total })
}

/// Notes where a table in braces stands, for problems that are about the whole of it.
fn remember(decoder: &mut Decoder<'_>, section: &Section<'_>) {
    decoder.places.insert(section.path.clone(), section.place.clone());
}
