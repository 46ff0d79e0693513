//! The bound on what a rendering may make.
//!
//! minijinja bounds a rendering in steps, but a step may double a text: forty of them are a terabyte. So the compiled
//! template is rewritten before it runs: whatever joins, repeats or builds goes through a filter here that charges the
//! rendering for it, and what it writes goes through a formatter that does too. What a rendering has made is never given
//! back, so the charge bounds its memory, whatever it keeps.

use std::collections::BTreeMap;

use minijinja::{
    Error, ErrorKind, State, Value,
    machinery::{CompiledTemplate, Instruction, Instructions},
    value::{ObjectRepr, Tuple, ValueKind},
};

use super::{
    filters::number,
    text::{self, Text},
};

/// Names that no template can write.
pub(super) const BEGIN: &str = "\0begin";
pub(super) const CONCAT: &str = "\0concat";
pub(super) const ADD: &str = "\0add";
pub(super) const MULTIPLY: &str = "\0multiply";
pub(super) const REMAINDER: &str = "\0remainder";
pub(super) const MADE: &str = "\0made";
pub(super) const KEPT: &str = "\0kept";

/// Bytes of one value, and of all that a rendering makes, before what the conversation itself needs is added.
const VALUE: usize = 8 << 20;
const TOTAL: usize = 256 << 20;
/// How often a template may hold the whole conversation in one value, and copy it.
const VALUE_PER_INPUT: usize = 4;
const TOTAL_PER_INPUT: usize = 128;

/// Values below one value, which then could be written or compared.
const NODES: usize = 1 << 20;
/// Far beyond JSON's own 128 levels. Values are dropped by recursion, so this keeps the stack.
const DEPTH: usize = 256;
/// What a value takes, whatever it is.
const SLOT: usize = 24;

/// A rendering that went beyond a bound.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Limit {
    /// More steps than any conversation takes.
    #[error("it takes more than {0} steps; it may never end")]
    Steps(u64),
    /// One value is too large.
    #[error("it makes a value of more than {0} bytes")]
    Value(usize),
    /// All values together are too large.
    #[error("it makes more than {0} bytes in all")]
    Total(usize),
    /// Too many values within one.
    #[error("it makes a value that holds more than {NODES} others")]
    Nodes,
    /// Values within values.
    #[error("it makes a value that is nested more than {DEPTH} levels deep")]
    Depth,
}

impl From<Limit> for Error {
    fn from(limit: Limit) -> Self {
        Self::new(ErrorKind::InvalidOperation, "beyond the limits of a chat template").with_source(limit)
    }
}

/// What a rendering may still make.
#[derive(Debug, Clone, Copy)]
pub(super) struct Meter {
    value: usize,
    total: usize,
    left: usize,
}

impl Meter {
    /// For a conversation of so many bytes.
    fn new(input: usize) -> Self {
        let total = TOTAL.saturating_add(input.saturating_mul(TOTAL_PER_INPUT));
        Self { value: VALUE.saturating_add(input.saturating_mul(VALUE_PER_INPUT)), total, left: total }
    }

    /// A text of these bytes is about to be made.
    pub(super) fn charge(&mut self, bytes: usize) -> Result<(), Limit> {
        if bytes > self.value {
            return Err(Limit::Value(self.value));
        }
        self.left = self.left.checked_sub(bytes.saturating_add(SLOT)).ok_or(Limit::Total(self.total))?;
        Ok(())
    }

    /// The longest text that may be made now.
    pub(super) fn room(&self) -> usize {
        self.value.min(self.left)
    }

    /// Why a text longer than [`Self::room`] may not be made.
    pub(super) fn beyond(&self) -> Limit {
        if self.left < self.value { Limit::Total(self.total) } else { Limit::Value(self.value) }
    }

    /// A value was made: it must be one that can be written, compared and dropped.
    fn weigh(&mut self, value: &Value) -> Result<(), Limit> {
        let mut bytes = 0;
        let mut nodes = 0;
        self.walk(value, 0, &mut nodes, &mut bytes)?;
        self.charge(nodes.max(value.len().unwrap_or_default().saturating_mul(SLOT)))
    }

    fn walk(&self, value: &Value, depth: usize, nodes: &mut usize, bytes: &mut usize) -> Result<(), Limit> {
        *nodes += 1;
        *bytes += value.as_str().map_or(0, str::len);
        if *nodes > NODES {
            return Err(Limit::Nodes);
        }
        if depth > DEPTH {
            return Err(Limit::Depth);
        }
        if *bytes > self.value {
            return Err(Limit::Value(self.value));
        }
        let Some(object) = value.as_object() else { return Ok(()) };
        match object.repr() {
            ObjectRepr::Map => {
                for (key, inner) in object.try_iter_pairs().into_iter().flatten() {
                    self.walk(&key, depth + 1, nodes, bytes)?;
                    self.walk(&inner, depth + 1, nodes, bytes)?;
                }
            }
            ObjectRepr::Seq | ObjectRepr::Iterable => {
                for inner in object.try_iter().into_iter().flatten() {
                    self.walk(&inner, depth + 1, nodes, bytes)?;
                }
            }
            _ => {}
        }
        Ok(())
    }
}

/// The bytes of texts in a value that comes from without.
pub(super) fn bytes(value: &Value) -> usize {
    let mut bytes = value.as_str().map_or(0, str::len);
    if let Some(object) = value.as_object() {
        match object.repr() {
            ObjectRepr::Map => {
                for (key, inner) in object.try_iter_pairs().into_iter().flatten() {
                    bytes += self::bytes(&key) + self::bytes(&inner);
                }
            }
            ObjectRepr::Seq => {
                bytes += object.try_iter().into_iter().flatten().map(|inner| self::bytes(&inner)).sum::<usize>()
            }
            _ => {}
        }
    }
    bytes
}

/// The rendering's meter; [`begin`] has put it there.
pub(super) fn meter<'a>(state: &'a mut State<'_, '_>) -> &'a mut Meter {
    state.get_or_insert_extension_with(|| Meter::new(0))
}

/// Sets the bounds for a conversation of so many bytes.
pub(super) fn begin(state: &mut State<'_, '_>, input: usize) {
    *meter(state) = Meter::new(input);
}

/// Charges for a value that was made. What is lazy becomes a list, so that lazy values can't be piled up.
pub(super) fn made(state: &mut State<'_, '_>, value: Value) -> Result<Value, Error> {
    let meter = meter(state);
    if let Some(text) = value.as_str() {
        meter.charge(text.len())?;
        return Ok(value);
    }
    let Some(object) = value.as_object() else { return Ok(value) };
    match object.repr() {
        ObjectRepr::Iterable => {
            let mut items = Vec::new();
            for item in object.try_iter().into_iter().flatten() {
                if items.len() >= NODES {
                    return Err(Limit::Nodes.into());
                }
                items.push(item);
            }
            let list = Value::from(items);
            meter.weigh(&list)?;
            Ok(list)
        }
        ObjectRepr::Plain => {
            // A macro, with what it encloses.
            meter.charge(512)?;
            Ok(value)
        }
        _ => {
            meter.weigh(&value)?;
            Ok(value)
        }
    }
}

/// A namespace may be changed after it was weighed, so no other may hold it.
pub(super) fn kept(value: Value) -> Result<Value, Error> {
    if holds_namespace(&value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a namespace can't be kept in a namespace"));
    }
    Ok(value)
}

fn holds_namespace(value: &Value) -> bool {
    let Some(object) = value.as_object() else { return false };
    match object.repr() {
        ObjectRepr::Map if object.type_name().ends_with("Namespace") => true,
        ObjectRepr::Map => object.try_iter_pairs().into_iter().flatten().any(|(_, inner)| holds_namespace(&inner)),
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            object.try_iter().into_iter().flatten().any(|it| holds_namespace(&it))
        }
        _ => false,
    }
}

/// `left ~ right`
pub(super) fn concat(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    let meter = meter(state);
    let mut text = Text::new(meter);
    text::write(&mut text, left)?;
    text::write(&mut text, right)?;
    Ok(text.finish(meter)?.into())
}

/// `left + right`, where a sum of many lists may not be longer than one may be.
pub(super) fn add(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    if let (Some(left), Some(right)) = (left.as_str(), right.as_str()) {
        meter(state).charge(left.len() + right.len())?;
        return Ok([left, right].concat().into());
    }
    // Python refuses to add to what isn't there; templates rely on neither.
    match (left.as_str(), right.as_str()) {
        (Some(text), None) if right.is_undefined() => return Ok(text.into()),
        (None, Some(text)) if left.is_undefined() => return Ok(text.into()),
        _ => {}
    }
    if let (Some(left), Some(right)) = (items(left), items(right)) {
        if left.0 != right.0 {
            return Err(impossible("+", "a tuple and a list"));
        }
        return made(state, sequence(left.0, left.1.into_iter().chain(right.1).collect()));
    }
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => {
            left.checked_add(right).map(whole).ok_or_else(|| impossible("+", "so large numbers"))
        }
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => Ok((left + right).into()),
            _ => Err(impossible("+", &format!("{} and {}", left.kind(), right.kind()))),
        },
    }
}

/// `left * right`
pub(super) fn multiply(state: &mut State<'_, '_>, left: &Value, right: &Value) -> Result<Value, Error> {
    let (what, count) = if left.is_number() { (right, left) } else { (left, right) };
    if let (Some(text), Some(count)) = (what.as_str(), integer(count)) {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        meter(state).charge(text.len().saturating_mul(count))?;
        return Ok(text.repeat(count).into());
    }
    if let (Some((is_tuple, list)), Some(count)) = (items(what), integer(count)) {
        let count = usize::try_from(count.max(0)).unwrap_or(usize::MAX);
        if list.len().saturating_mul(count) > NODES {
            return Err(Limit::Nodes.into());
        }
        let length = list.len() * count;
        return made(state, sequence(is_tuple, list.into_iter().cycle().take(length).collect()));
    }
    match (integer(left), integer(right)) {
        (Some(left), Some(right)) => {
            left.checked_mul(right).map(whole).ok_or_else(|| impossible("*", "so large numbers"))
        }
        _ => match (number(left), number(right)) {
            (Some(left), Some(right)) => Ok((left * right).into()),
            _ => Err(impossible("*", &format!("{} and {}", left.kind(), right.kind()))),
        },
    }
}

/// Whether it is a tuple, and the items of a list or tuple.
fn items(value: &Value) -> Option<(bool, Vec<Value>)> {
    let object = value.as_object()?;
    match object.repr() {
        ObjectRepr::Seq | ObjectRepr::Iterable => {
            Some((value.is_tuple(), object.try_iter()?.take(NODES + 1).collect()))
        }
        _ => None,
    }
}

fn sequence(is_tuple: bool, items: Vec<Value>) -> Value {
    if is_tuple { Tuple::from(items).into() } else { items.into() }
}

fn impossible(operator: &str, what: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, format!("`{operator}` can't be used with {what}"))
}

/// A whole number; Python's booleans are some.
fn integer(value: &Value) -> Option<i128> {
    match value.kind() {
        ValueKind::Bool => Some(i128::from(value.is_true())),
        ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok(),
        _ => None,
    }
}

fn whole(number: i128) -> Value {
    i64::try_from(number).map_or_else(|_| number.into(), Value::from)
}

/// A template with its charges, for a conversation of so many bytes.
pub(super) struct Charged<'a> {
    pub(super) instructions: Instructions<'a>,
    pub(super) blocks: BTreeMap<&'a str, Instructions<'a>>,
}

impl<'a> Charged<'a> {
    pub(super) fn new(template: &CompiledTemplate<'a>, input: usize) -> Result<Self, Error> {
        let blocks = template.blocks.iter().map(|(name, block)| Ok((*name, charged(block, None)?)));
        Ok(Self {
            instructions: charged(&template.instructions, Some(input))?,
            blocks: blocks.collect::<Result<_, Error>>()?,
        })
    }
}

/// The same instructions, each followed by a charge for what it makes or replaced by one that charges before it makes.
fn charged<'a>(original: &Instructions<'a>, input: Option<usize>) -> Result<Instructions<'a>, Error> {
    // Not among the cached filters, whose numbers the compiler gives.
    let filter = |name, arguments| Instruction::ApplyFilter(name, Some(arguments), !0);
    let mut rewritten = Instructions::new(original.name(), original.source());
    if let Some(input) = input {
        for instruction in [Instruction::LoadConst(input.into()), filter(BEGIN, 1), Instruction::DiscardTop] {
            rewritten.add(instruction);
        }
    }
    let mut places = Vec::new();
    let mut next = 0;
    while let Some(instruction) = original.get(next) {
        let line = original.get_line(next).and_then(|line| u16::try_from(line).ok()).unwrap_or_default();
        let mut add = |instruction| rewritten.add_with_line(instruction, line);
        let place = match instruction {
            Instruction::EmitRaw(text) => {
                let place = add(Instruction::LoadConst(Value::from(*text)));
                add(Instruction::Emit);
                place
            }
            Instruction::StringConcat => add(filter(CONCAT, 2)),
            Instruction::Add => add(filter(ADD, 2)),
            Instruction::Mul => add(filter(MULTIPLY, 2)),
            Instruction::Rem => add(filter(REMAINDER, 2)),
            Instruction::SetAttr(_) => {
                let place = add(Instruction::Swap);
                add(filter(KEPT, 1));
                add(Instruction::Swap);
                add(instruction.clone());
                place
            }
            // A range is no list of its numbers, and minijinja bounds it.
            Instruction::CallFunction("range", _) => add(instruction.clone()),
            Instruction::BuildMap(_)
            | Instruction::BuildKwargs(_)
            | Instruction::MergeKwargs(_)
            | Instruction::BuildList(_)
            | Instruction::BuildTuple(_)
            | Instruction::BuildMacro(..)
            | Instruction::Slice
            | Instruction::ApplyFilter(..)
            | Instruction::CallFunction(..)
            | Instruction::CallMethod(..)
            | Instruction::CallObject(_) => {
                let place = add(instruction.clone());
                add(filter(MADE, 1));
                place
            }
            // They would run what isn't charged, and there is no other template to name.
            Instruction::Include(_) | Instruction::LoadBlocks => {
                return Err(Error::new(
                    ErrorKind::TemplateNotFound,
                    "a chat template stands alone: it can't take in others",
                ));
            }
            other => add(other.clone()),
        };
        places.push(place);
        next += 1;
    }
    places.push(end(&rewritten));
    let mut index = 0;
    while let Some(instruction) = rewritten.get_mut(index) {
        if let Instruction::Jump(target)
        | Instruction::JumpIfFalse(target)
        | Instruction::JumpIfFalseOrPop(target)
        | Instruction::JumpIfTrueOrPop(target)
        | Instruction::Iterate(target)
        | Instruction::BuildMacro(_, target, _) = instruction
        {
            *target = places.get(*target as usize).copied().unwrap_or(u32::MAX);
        }
        index += 1;
    }
    Ok(rewritten)
}

/// Where a jump past the last instruction leads.
fn end(instructions: &Instructions<'_>) -> u32 {
    (0..).find(|index| instructions.get(*index).is_none()).unwrap_or(u32::MAX)
}
