//! Filters that are bounded, or that write as Python does, in place of minijinja's.

use minijinja::{
    Environment, Error, ErrorKind, State, Value, filters,
    value::{Kwargs, Rest, ValueKind, ValueOrKwargs, from_args},
};

use super::{
    limit::{self, Limit, Meter, meter},
    methods,
    text::{self, Text},
};
use crate::json;

/// No list is cut into more groups, and no group is filled up to more.
const GROUPS: usize = 1 << 16;

/// Puts the charges and the filters into an environment.
pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter(limit::BEGIN, limit::begin);
    environment.add_filter(limit::CONCAT, limit::concat);
    environment.add_filter(limit::ADD, limit::add);
    environment.add_filter(limit::MULTIPLY, limit::multiply);
    environment.add_filter(limit::REMAINDER, remainder);
    environment
        .add_filter(limit::MADE, |state: &mut State<'_, '_>, value: ValueOrKwargs| limit::made(state, value.into()));
    environment.add_filter(limit::KEPT, limit::kept);
    environment.add_filter("string", string);
    environment.add_filter("pprint", |state: &mut State<'_, '_>, value: &Value| {
        let meter = meter(state);
        let mut written = Text::new(meter);
        text::write_repr(&mut written, value)?;
        written.finish(meter)
    });
    environment.add_filter("tojson", to_json);
    environment.add_filter("join", join);
    environment.add_filter(
        "replace",
        |state: &mut State<'_, '_>, value: &Value, old: &Value, new: &Value, count: Option<i64>| {
            let (value, old, new) = (plain(state, value)?, plain(state, old)?, plain(state, new)?);
            methods::replace(meter(state), &value, &old, &new, count.unwrap_or(-1))
        },
    );
    environment.add_filter("indent", indent);
    environment.add_filter("format", |state: &mut State<'_, '_>, format: &Value, args: Rest<ValueOrKwargs>| {
        let args = args.into_values();
        printf(state, format, args)
    });
    environment.add_filter("center", |state: &mut State<'_, '_>, value: &Value, width: Option<i64>| {
        let value = plain(state, value)?;
        methods::justify(meter(state), &value, "center", width.unwrap_or(80), ' ')
    });
    environment.add_filter("batch", |state: &mut State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        filters::batch(state, value, groups(count)?, fill)
    });
    environment.add_filter("slice", |state: &mut State<'_, '_>, value: Value, count: usize, fill: Option<Value>| {
        filters::slice(state, value, groups(count)?, fill)
    });
    environment.add_filter("wordcount", |state: &mut State<'_, '_>, value: &Value| {
        plain(state, value)
            .map(|text| text.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|it| !it.is_empty()).count())
    });
    environment.add_filter("int", int);
    environment.add_filter("float", |value: &Value, default: Option<f64>| {
        let read = match value.as_str() {
            Some(text) => text.trim().parse().ok(),
            None => number(value),
        };
        read.or(default).unwrap_or_default()
    });
    environment.add_filter("length", length);
    environment.add_filter("count", length);
    environment.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Map | ValueKind::Iterable)
    });
    environment.add_test("callable", |value: &Value| {
        value.kind() == ValueKind::Plain && value.downcast_object_ref::<json::Whole>().is_none()
    });
    environment.add_filter("trim", |state: &mut State<'_, '_>, value: &Value, characters: Option<&str>| {
        let text = plain(state, value)?;
        let is_trimmed = |character: char| match characters {
            Some(characters) => characters.contains(character),
            None => methods::is_space(character),
        };
        Ok::<_, Error>(text.trim_matches(is_trimmed).to_owned())
    });
}

/// A number as a float; Python's booleans are some.
pub(super) fn number(value: &Value) -> Option<f64> {
    match value.kind() {
        ValueKind::Bool => Some(f64::from(u8::from(value.is_true()))),
        ValueKind::Number => f64::try_from(value.clone()).ok(),
        _ => None,
    }
}

/// Jinja's `int(default=0, base=10)`, which never fails.
fn int(value: &Value, default: Option<i64>, options: Kwargs) -> Result<Value, Error> {
    let default = default.or(options.get("default")?).unwrap_or_default();
    let base: u32 = options.get::<Option<u32>>("base")?.unwrap_or(10);
    options.assert_all_used()?;
    if value.is_integer() {
        return Ok(value.clone());
    }
    let whole = |number: f64| (number.is_finite() && number.abs() < 1e36).then_some(number.trunc() as i128);
    let read = match value.as_str() {
        Some(text) => {
            let digits = text.trim().to_lowercase();
            let prefix = match base {
                16 => "0x",
                8 => "0o",
                2 => "0b",
                _ => "",
            };
            let digits = digits.strip_prefix(prefix).unwrap_or(&digits);
            let exact = if (2..=36).contains(&base) { i128::from_str_radix(digits, base).ok() } else { None };
            exact.or_else(|| digits.parse().ok().and_then(whole))
        }
        None => number(value).and_then(whole),
    };
    Ok(read.map_or_else(|| default.into(), |read| i64::try_from(read).map_or_else(|_| read.into(), Value::from)))
}

fn length(value: &Value) -> Result<usize, Error> {
    if value.is_undefined() {
        return Ok(0);
    }
    value.len().ok_or_else(|| Error::new(ErrorKind::InvalidOperation, format!("{} has no length", value.kind())))
}

/// `str(value)`, bounded.
fn plain(state: &mut State<'_, '_>, value: &Value) -> Result<String, Error> {
    let meter = meter(state);
    let mut written = Text::new(meter);
    text::write(&mut written, value)?;
    written.finish(meter)
}

fn string(state: &mut State<'_, '_>, value: &Value) -> Result<Value, Error> {
    if value.as_str().is_some() { Ok(value.clone()) } else { plain(state, value).map(Value::from) }
}

fn groups(count: usize) -> Result<usize, Error> {
    if count > GROUPS { Err(Limit::Nodes.into()) } else { Ok(count) }
}

fn to_json(state: &mut State<'_, '_>, value: &Value, indent: Option<Value>, options: Kwargs) -> Result<String, Error> {
    let indent = match indent.or(options.get("indent")?).filter(|indent| !indent.is_none()) {
        Some(indent) => Some(match indent.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(i64::try_from(indent)?.max(0)).unwrap_or_default();
                if width > meter(state).room() {
                    return Err(meter(state).beyond().into());
                }
                " ".repeat(width)
            }
        }),
        None => None,
    };
    let style = json::Style {
        indent,
        ascii: options.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sorted: options.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        separators: match options.get::<Option<Vec<String>>>("separators")?.as_deref() {
            Some([item, key]) => Some((item.clone(), key.clone())),
            Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators are two strings")),
            None => None,
        },
    };
    options.assert_all_used()?;
    let meter = meter(state);
    let mut text = Text::new(meter);
    text.with(|text| json::write(text, value, &style))?;
    text.finish(meter)
}

fn join(
    state: &mut State<'_, '_>,
    value: &Value,
    by: Option<&str>,
    attribute: Option<Value>,
    named: Kwargs,
) -> Result<Value, Error> {
    let by = by.or(named.get("d")?).unwrap_or_default();
    let attribute = attribute.or(named.get("attribute")?);
    named.assert_all_used()?;
    if value.is_undefined() || value.is_none() {
        return Ok("".into());
    }
    let items = value.try_iter()?;
    match attribute {
        None => methods::join(meter(state), by, items),
        Some(attribute) => {
            let item = |item: Value| item.get_item(&attribute).unwrap_or_default();
            methods::join(meter(state), by, items.map(item))
        }
    }
}

/// Jinja's `indent(width=4, first=False, blank=False)`, whose width may be a text.
fn indent(state: &mut State<'_, '_>, value: &Value, options: Rest<ValueOrKwargs>) -> Result<String, Error> {
    let (width, first, blank, named): (Option<Value>, Option<bool>, Option<bool>, Kwargs) =
        from_args(&options.into_values())?;
    let width = width.or(named.get("width")?);
    let first = first.or(named.get("first")?).unwrap_or(false);
    let blank = blank.or(named.get("blank")?).unwrap_or(false);
    named.assert_all_used()?;
    let source = plain(state, value)?;
    let meter = meter(state);
    let by = match width {
        None => "    ".to_owned(),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => {
                let width = usize::try_from(i64::try_from(width)?.max(0)).unwrap_or_default();
                if width > meter.room() {
                    return Err(meter.beyond().into());
                }
                " ".repeat(width)
            }
        },
    };
    let mut text = Text::new(meter);
    for (index, line) in source.split('\n').enumerate() {
        if index > 0 {
            text.push("\n")?;
        }
        let indented = if index == 0 { first } else { blank || !line.is_empty() };
        if indented {
            text.push(&by)?;
        }
        text.push(line)?;
    }
    text.finish(meter)
}

/// `left % right`: Python's `printf`, if it is a text.
fn remainder(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if left.as_str().is_some() {
        let args = if right.is_tuple() { right.try_iter()?.collect() } else { vec![right.clone()] };
        return printf(state, left, args);
    }
    if left.is_integer() && right.is_integer() {
        let (left, right) = (i128::try_from(left.clone())?, i128::try_from(right.clone())?);
        let rest = left.checked_rem_euclid(right).map(|rest| if rest != 0 && right < 0 { rest + right } else { rest });
        let rest = rest.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "modulo by zero"))?;
        return Ok(i64::try_from(rest).map_or_else(|_| rest.into(), Value::from));
    }
    let (Some(left), Some(right)) = (number(left), number(right)) else {
        return Err(Error::new(
            ErrorKind::InvalidOperation,
            format!("`%` can't be used with {} and {}", left.kind(), right.kind()),
        ));
    };
    if right == 0.0 {
        return Err(Error::new(ErrorKind::InvalidOperation, "modulo by zero"));
    }
    Ok((left - right * (left / right).floor()).into())
}

fn printf(state: &mut State<'_, '_>, format: &Value, args: Vec<Value>) -> Result<Value, Error> {
    check_format(meter(state), format.as_str().unwrap_or_default(), '%', &args)?;
    filters::format(state, format, Rest(args.into_iter().map(ValueOrKwargs::from).collect()))
}

/// Charges for a formatted text before it is made: for its widths, and for all that it names as often as it names any.
pub(super) fn check_format(meter: &mut Meter, format: &str, mark: char, args: &[Value]) -> Result<(), Error> {
    let runs = format.split(|character: char| !character.is_ascii_digit()).filter(|run| !run.is_empty());
    let widths = runs.map(|run| run.parse().unwrap_or(usize::MAX)).fold(0, usize::saturating_add);
    let mut named = Text::new(meter);
    for value in args {
        text::write(&mut named, value)?;
    }
    // A width may be an argument too.
    let widest = args.iter().filter_map(Value::as_i64).map(i64::unsigned_abs).max().unwrap_or_default();
    let width =
        if format.contains('*') || format.contains(":{") { usize::try_from(widest).unwrap_or(usize::MAX) } else { 0 };
    let each = named.finish(meter)?.len().saturating_add(width);
    let fields = format.matches(mark).count().saturating_mul(each);
    Ok(meter.charge(format.len().saturating_add(widths).saturating_add(fields))?)
}
