//! Reads a body level by level without building a tree of it, and writes JSON in the order in which it is said.
//! Values that are not looked into stay the bytes they came as.

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::fmt;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::refused::Refused;

/// Fields of one object. No interface has a hundredth of them; the limit keeps a hostile body from costing memory.
const FIELDS_MAX: usize = 10_000;
/// Items of one list that is looked into: messages, parts, tools.
const ITEMS_MAX: usize = 100_000;
/// Nesting of a value that is kept as it came. As deep as serde_json itself reads.
const DEPTH_MAX: usize = 128;

/// Where in a body something stands; becomes text only for a refusal.
#[derive(Clone, Copy)]
pub(crate) enum At<'p> {
    Body,
    Key(&'p At<'p>, &'p str),
    Item(&'p At<'p>, usize),
}

impl<'p> At<'p> {
    pub(crate) fn key(&'p self, key: &'p str) -> At<'p> {
        At::Key(self, key)
    }

    pub(crate) fn item(&'p self, index: usize) -> At<'p> {
        At::Item(self, index)
    }

    fn refuse(&self, what: &str) -> Refused {
        match self {
            At::Body => Refused::whole(format!("The body {what}.")),
            _ => Refused::at(self.to_string(), format!("The field `{self}` {what}.")),
        }
    }

    pub(crate) fn wrong(&self, wanted: &str) -> Refused {
        self.refuse(&format!("must be {wanted}"))
    }

    pub(crate) fn missing(&self) -> Refused {
        self.refuse("is missing")
    }

    pub(crate) fn unsupported(&self, why: &str) -> Refused {
        self.refuse(why)
    }
}

impl fmt::Display for At<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            At::Body => Ok(()),
            At::Key(At::Body, key) => f.write_str(key),
            At::Key(parent, key) => write!(f, "{parent}.{key}"),
            At::Item(parent, index) => write!(f, "{parent}[{index}]"),
        }
    }
}

/// The body as one JSON value. Errors: not UTF-8, or no JSON.
pub(crate) fn body(bytes: &[u8]) -> Result<&RawValue, Refused> {
    let text = str::from_utf8(bytes).map_err(|_| Refused::whole("The body must be UTF-8."))?;
    serde_json::from_str(text).map_err(|e| {
        Refused::whole(format!("The body must be one JSON object: line {}, column {}.", e.line(), e.column()))
    })
}

/// The fields of one object, in their order. Taking one away leaves the others, so what is left was not asked for.
pub(crate) struct Fields<'a, 'p> {
    at: &'p At<'p>,
    entries: Vec<(Cow<'a, str>, &'a RawValue)>,
}

impl<'a, 'p> Fields<'a, 'p> {
    pub(crate) fn of(raw: &'a RawValue, at: &'p At<'p>) -> Result<Self, Refused> {
        if !raw.get().starts_with('{') {
            return Err(at.wrong("an object"));
        }
        let mut de = serde_json::Deserializer::from_str(raw.get());
        let entries =
            Entries.deserialize(&mut de).map_err(|_| at.wrong(&format!("an object of at most {FIELDS_MAX} fields")))?;
        Ok(Self { at, entries })
    }

    pub(crate) fn at(&self) -> &'p At<'p> {
        self.at
    }

    /// Errors: the field stands twice, so that two readers could see two things. `null` is as good as absent.
    pub(crate) fn take(&mut self, key: &str) -> Result<Option<&'a RawValue>, Refused> {
        Ok(self.take_null(key)?.filter(|raw| raw.get() != "null"))
    }

    /// As `take`, and tells `null` from absent.
    pub(crate) fn take_null(&mut self, key: &str) -> Result<Option<&'a RawValue>, Refused> {
        let mut found = self.entries.iter().enumerate().filter(|(_, (name, _))| name == key).map(|(index, _)| index);
        let Some(first) = found.next() else { return Ok(None) };
        if found.next().is_some() {
            return Err(self.at.key(key).refuse("stands twice"));
        }
        Ok(Some(self.entries.swap_remove(first).1))
    }

    /// Errors: two names that a reader which does not mind case takes for one (those of Go, and so Ollama's), or one that such a
    /// reader takes for one of `deciding` and we do not: it would see another request than we do.
    pub(crate) fn refuse_lookalikes(&self, deciding: &[&str]) -> Result<(), Refused> {
        let mut seen = BTreeSet::new();
        for (name, _) in &self.entries {
            let folded = folded(name);
            if deciding.contains(&folded.as_ref()) && folded != *name {
                return Err(self.at.key(name).refuse("has the name of another field in another case"));
            }
            if !seen.insert(folded) {
                return Err(self.at.key(name).refuse("stands twice"));
            }
        }
        Ok(())
    }

    pub(crate) fn require(&mut self, key: &str) -> Result<&'a RawValue, Refused> {
        self.take(key)?.ok_or_else(|| self.at.key(key).missing())
    }

    pub(crate) fn string(&mut self, key: &str) -> Result<Option<Cow<'a, str>>, Refused> {
        self.take(key)?.map(|raw| string(raw, &self.at.key(key))).transpose()
    }

    pub(crate) fn text(&mut self, key: &str) -> Result<Option<String>, Refused> {
        Ok(self.string(key)?.map(Cow::into_owned))
    }

    pub(crate) fn require_text(&mut self, key: &str) -> Result<String, Refused> {
        let raw = self.require(key)?;
        string(raw, &self.at.key(key)).map(Cow::into_owned)
    }

    pub(crate) fn bool(&mut self, key: &str) -> Result<Option<bool>, Refused> {
        self.take(key)?.map(|raw| boolean(raw, &self.at.key(key))).transpose()
    }

    /// A whole number that is not negative; `3.0` counts.
    pub(crate) fn count(&mut self, key: &str) -> Result<Option<u64>, Refused> {
        self.take(key)?.map(|raw| count(raw, &self.at.key(key))).transpose()
    }

    pub(crate) fn integer(&mut self, key: &str) -> Result<Option<i64>, Refused> {
        let Some(raw) = self.take(key)? else { return Ok(None) };
        raw.get().parse().map(Some).map_err(|_| self.at.key(key).wrong("a whole number"))
    }

    pub(crate) fn number(&mut self, key: &str) -> Result<Option<f64>, Refused> {
        let Some(raw) = self.take(key)? else { return Ok(None) };
        let wrong = || self.at.key(key).wrong("a number");
        if !raw.get().starts_with(|c: char| c == '-' || c.is_ascii_digit()) {
            return Err(wrong());
        }
        raw.get().parse().ok().filter(|number: &f64| number.is_finite()).map(Some).ok_or_else(wrong)
    }

    /// An object that is kept as it came.
    pub(crate) fn kept_object(&mut self, key: &str) -> Result<Option<Box<RawValue>>, Refused> {
        let Some(raw) = self.take(key)? else { return Ok(None) };
        let at = self.at.key(key);
        if !raw.get().starts_with('{') {
            return Err(at.wrong("an object"));
        }
        kept(raw, &at).map(Some)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// What nobody has taken, without the fields that say nothing.
    pub(crate) fn rest(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|(_, raw)| raw.get() != "null").map(|(name, _)| name.as_ref())
    }
}

/// A name without its case: as Unicode folds it, where the long s is an s and the Kelvin sign a k.
fn folded(name: &str) -> Cow<'_, str> {
    if name.bytes().all(|byte| byte.is_ascii() && !byte.is_ascii_uppercase()) {
        return Cow::Borrowed(name);
    }
    Cow::Owned(name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect())
}

pub(crate) fn string<'a>(raw: &'a RawValue, at: &At<'_>) -> Result<Cow<'a, str>, Refused> {
    text_of(raw.get()).ok_or_else(|| at.wrong("a string"))
}

/// The string that a JSON text is, or `None`.
pub(crate) fn text_of(json: &str) -> Option<Cow<'_, str>> {
    let inner = json.strip_prefix('"')?.strip_suffix('"')?;
    if memchr::memchr(b'\\', inner.as_bytes()).is_none() {
        return Some(Cow::Borrowed(inner));
    }
    serde_json::from_str::<String>(json).ok().map(Cow::Owned)
}

pub(crate) fn boolean(raw: &RawValue, at: &At<'_>) -> Result<bool, Refused> {
    match raw.get() {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(at.wrong("true or false")),
    }
}

pub(crate) fn count(raw: &RawValue, at: &At<'_>) -> Result<u64, Refused> {
    const EXACT: f64 = 9_007_199_254_740_992.0; // above 2^53 a float names no single whole number
    if let Ok(count) = raw.get().parse() {
        return Ok(count);
    }
    match raw.get().parse::<f64>() {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "whole and in range, as just checked"
        )]
        Ok(float) if (0.0..EXACT).contains(&float) && float.fract() == 0.0 => Ok(float as u64),
        _ => Err(at.wrong("a whole number, 0 or more")),
    }
}

/// The items of a list. Errors: no list, or longer than any that is meant honestly.
pub(crate) fn items<'a>(raw: &'a RawValue, at: &At<'_>) -> Result<Vec<&'a RawValue>, Refused> {
    if !raw.get().starts_with('[') {
        return Err(at.wrong("a list"));
    }
    let mut de = serde_json::Deserializer::from_str(raw.get());
    Items.deserialize(&mut de).map_err(|_| at.wrong(&format!("a list of at most {ITEMS_MAX} items")))
}

/// A value that goes on as it came. Errors: nested deeper than readers of JSON follow.
pub(crate) fn kept(raw: &RawValue, at: &At<'_>) -> Result<Box<RawValue>, Refused> {
    if depth(raw.get()) > DEPTH_MAX {
        return Err(at.refuse(&format!("is nested deeper than {DEPTH_MAX}")));
    }
    Ok(raw.to_owned())
}

/// Whether `text` is a JSON object, and none nested too deep to send on.
pub(crate) fn is_object(text: &str) -> bool {
    text.trim_start().starts_with('{') && serde_json::from_str::<&RawValue>(text).is_ok() && depth(text) <= DEPTH_MAX
}

fn depth(json: &str) -> usize {
    let (mut now, mut most, mut quoted, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match (quoted, escaped, byte) {
            (true, true, _) => escaped = false,
            (true, false, b'\\') => escaped = true,
            (true, false, b'"') => quoted = false,
            (false, _, b'"') => quoted = true,
            (false, _, b'{' | b'[') => {
                now += 1;
                most = most.max(now);
            }
            (false, _, b'}' | b']') => now = now.saturating_sub(1),
            _ => {}
        }
    }
    most
}

struct Entries;

impl<'de> DeserializeSeed<'de> for Entries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for Entries {
    type Value = Vec<(Cow<'de, str>, &'de RawValue)>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
        let mut entries = Vec::new();
        while let Some((key, value)) = map.next_entry::<Key<'de>, &'de RawValue>()? {
            if entries.len() == FIELDS_MAX {
                return Err(serde::de::Error::custom("too many fields"));
            }
            entries.push((key.0, value));
        }
        Ok(entries)
    }
}

#[derive(Deserialize)]
struct Key<'a>(#[serde(borrow)] Cow<'a, str>);

struct Items;

impl<'de> DeserializeSeed<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        deserializer.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Items {
    type Value = Vec<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a list")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = seq.next_element()? {
            if items.len() == ITEMS_MAX {
                return Err(serde::de::Error::custom("too many items"));
            }
            items.push(item);
        }
        Ok(items)
    }
}

/// One object as text, its fields in the order of the calls.
pub(crate) fn object(fill: impl FnOnce(&mut Object<'_>)) -> String {
    let mut out = String::new();
    write_object(&mut out, fill);
    out
}

fn write_object<R>(out: &mut String, fill: impl FnOnce(&mut Object<'_>) -> R) -> R {
    out.push('{');
    let result = fill(&mut Object { out, first: true });
    out.push('}');
    result
}

fn write_list<R>(out: &mut String, fill: impl FnOnce(&mut List<'_>) -> R) -> R {
    out.push('[');
    let result = fill(&mut List { out, first: true });
    out.push(']');
    result
}

/// Between its tokens JSON may have line breaks, which would end an event or a line too early.
fn push_line(out: &mut String, json: &str) {
    out.extend(json.split(['\n', '\r']));
}

fn write_value(out: &mut String, value: &(impl Serialize + ?Sized)) {
    // Strings, numbers, options and raw JSON: none of them has a way to fail.
    out.push_str(&serde_json::to_string(value).unwrap_or_else(|_| "null".to_owned()));
}

/// Arguments as the object that some protocols want. What a model wrote in place of one goes on as its text.
pub(crate) fn arguments_object(arguments: &str) -> String {
    if arguments.trim().is_empty() {
        "{}".to_owned()
    } else if is_object(arguments) {
        arguments.to_owned()
    } else {
        object(|out| {
            out.put("arguments", arguments);
        })
    }
}

/// RFC 3339, in UTC. Instants that no calendar has become 1970.
pub(crate) fn instant(seconds: i64) -> String {
    jiff::Timestamp::from_second(seconds).unwrap_or(jiff::Timestamp::UNIX_EPOCH).to_string()
}

/// An object being written.
pub(crate) struct Object<'o> {
    out: &'o mut String,
    first: bool,
}

impl Object<'_> {
    fn key(&mut self, key: &str) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        write_value(self.out, key);
        self.out.push(':');
    }

    pub(crate) fn put(&mut self, key: &str, value: impl Serialize) -> &mut Self {
        self.key(key);
        write_value(self.out, &value);
        self
    }

    /// Leaves the field out where there is nothing to say.
    pub(crate) fn put_some(&mut self, key: &str, value: Option<impl Serialize>) -> &mut Self {
        if let Some(value) = value {
            self.put(key, value);
        }
        self
    }

    /// `json` is a JSON text.
    pub(crate) fn raw(&mut self, key: &str, json: &str) -> &mut Self {
        self.key(key);
        push_line(self.out, json);
        self
    }

    pub(crate) fn object<R>(&mut self, key: &str, fill: impl FnOnce(&mut Object<'_>) -> R) -> R {
        self.key(key);
        write_object(self.out, fill)
    }

    pub(crate) fn list<R>(&mut self, key: &str, fill: impl FnOnce(&mut List<'_>) -> R) -> R {
        self.key(key);
        write_list(self.out, fill)
    }
}

/// A list being written.
pub(crate) struct List<'o> {
    out: &'o mut String,
    first: bool,
}

impl List<'_> {
    fn comma(&mut self) {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
    }

    pub(crate) fn put(&mut self, value: impl Serialize) {
        self.comma();
        write_value(self.out, &value);
    }

    pub(crate) fn raw(&mut self, json: &str) {
        self.comma();
        push_line(self.out, json);
    }

    pub(crate) fn object<R>(&mut self, fill: impl FnOnce(&mut Object<'_>) -> R) -> R {
        self.comma();
        write_object(self.out, fill)
    }
}
