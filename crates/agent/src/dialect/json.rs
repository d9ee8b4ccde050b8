//! JSON as models write it: strict JSON plus the lossless repairs of the design, nothing that could be read in two ways.
//!
//! Accepted beyond JSON: raw line breaks and tabs in strings, a trailing comma, single quotes, Python's `True False None`.
//! Refused: duplicate keys, unknown escapes, and everything that just stops, because it may have been cut off.

use serde_json::{Map, Value};

/// Deeper nesting is no call and would only cost stack.
const MAX_DEPTH: u32 = 64;

#[derive(Debug, Clone, PartialEq)]
pub(super) struct Parsed {
    pub(super) value: Value,
    /// Bytes read.
    pub(super) length: usize,
    pub(super) repairs: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum JsonError {
    /// The text ends inside the value.
    CutOff,
    Invalid(String),
}

/// Reads one value at the start of `text`, after blanks.
pub(super) fn parse_prefix(text: &str) -> Result<Parsed, JsonError> {
    let mut reader = Reader { text, at: 0, repairs: 0 };
    let value = reader.value(0)?;
    Ok(Parsed { value, length: reader.at, repairs: reader.repairs })
}

struct Reader<'t> {
    text: &'t str,
    at: usize,
    repairs: u32,
}

impl Reader<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn bump(&mut self) -> Option<char> {
        let c = self.peek()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn skip_blanks(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn invalid<T>(&self, what: &str) -> Result<T, JsonError> {
        Err(JsonError::Invalid(format!("{what} at character {}", self.text[..self.at].chars().count() + 1)))
    }

    fn value(&mut self, depth: u32) -> Result<Value, JsonError> {
        if depth > MAX_DEPTH {
            return self.invalid("too deep");
        }
        self.skip_blanks();
        match self.peek() {
            None => Err(JsonError::CutOff),
            Some('{') => self.object(depth),
            Some('[') => self.array(depth),
            Some('"' | '\'') => Ok(Value::String(self.string()?)),
            Some(c) if c == '-' || c.is_ascii_digit() => self.number(),
            Some(_) => self.word(),
        }
    }

    fn object(&mut self, depth: u32) -> Result<Value, JsonError> {
        let mut map = Map::new();
        self.bump();
        loop {
            self.skip_blanks();
            match self.peek() {
                None => return Err(JsonError::CutOff),
                Some('}') => {
                    self.bump();
                    // Arriving here after a comma is the trailing one.
                    return Ok(Value::Object(map));
                }
                Some('"' | '\'') => {}
                Some(_) => return self.invalid("expected a name in quotes"),
            }
            let key = self.string()?;
            self.skip_blanks();
            match self.peek() {
                None => return Err(JsonError::CutOff),
                Some(':') => self.bump(),
                Some(_) => return self.invalid("expected `:`"),
            };
            let value = self.value(depth + 1)?;
            if map.contains_key(&key) {
                return self.invalid(&format!("`{key}` given twice, ending"));
            }
            map.insert(key, value);
            self.separator('}')?;
        }
    }

    fn array(&mut self, depth: u32) -> Result<Value, JsonError> {
        let mut items = Vec::new();
        self.bump();
        loop {
            self.skip_blanks();
            match self.peek() {
                None => return Err(JsonError::CutOff),
                Some(']') => {
                    self.bump();
                    return Ok(Value::Array(items));
                }
                Some(_) => items.push(self.value(depth + 1)?),
            }
            self.separator(']')?;
        }
    }

    /// A comma, or the closing sign left in place. A comma before the closing sign is a repair.
    fn separator(&mut self, close: char) -> Result<(), JsonError> {
        self.skip_blanks();
        match self.peek() {
            None => Err(JsonError::CutOff),
            Some(',') => {
                self.bump();
                self.skip_blanks();
                self.repairs += u32::from(self.peek() == Some(close));
                Ok(())
            }
            Some(c) if c == close => Ok(()),
            Some(_) => self.invalid(&format!("expected `,` or `{close}`")),
        }
    }

    fn string(&mut self) -> Result<String, JsonError> {
        let quote = self.bump().expect("a string begins with its quote");
        self.repairs += u32::from(quote == '\'');
        let mut out = String::new();
        let mut raw = false;
        loop {
            match self.bump() {
                None => return Err(JsonError::CutOff),
                Some(c) if c == quote => break,
                Some('\\') => self.escape(quote, &mut out)?,
                Some(c @ ('\n' | '\r' | '\t')) => {
                    raw = true;
                    out.push(c);
                }
                Some(c) if c < ' ' => return self.invalid("control character in a string"),
                Some(c) => out.push(c),
            }
        }
        self.repairs += u32::from(raw);
        Ok(out)
    }

    fn escape(&mut self, quote: char, out: &mut String) -> Result<(), JsonError> {
        out.push(match self.bump() {
            None => return Err(JsonError::CutOff),
            Some(c @ ('"' | '\\' | '/')) => c,
            Some('\'') if quote == '\'' => '\'',
            Some('b') => '\u{8}',
            Some('f') => '\u{c}',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('u') => {
                let first = self.four_digits()?;
                if (0xD800..0xDC00).contains(&first) {
                    if !self.rest().starts_with("\\u") {
                        return if self.rest().len() < 2 {
                            Err(JsonError::CutOff)
                        } else {
                            self.invalid("half a surrogate pair")
                        };
                    }
                    self.at += 2;
                    let second = self.four_digits()?;
                    match char::decode_utf16([first, second]).next() {
                        Some(Ok(c)) => c,
                        _ => return self.invalid("half a surrogate pair"),
                    }
                } else {
                    match char::from_u32(u32::from(first)) {
                        Some(c) => c,
                        None => return self.invalid("half a surrogate pair"),
                    }
                }
            }
            Some(c) => return self.invalid(&format!("unknown escape `\\{c}`")),
        });
        Ok(())
    }

    fn four_digits(&mut self) -> Result<u16, JsonError> {
        let Some(digits) = self.rest().get(..4) else {
            return if self.rest().len() < 4 { Err(JsonError::CutOff) } else { self.invalid("bad \\u escape") };
        };
        if !digits.bytes().all(|b| b.is_ascii_hexdigit()) {
            return self.invalid("bad \\u escape");
        }
        let number = u16::from_str_radix(digits, 16).expect("four hexadecimal digits fit");
        self.at += 4;
        Ok(number)
    }

    fn number(&mut self) -> Result<Value, JsonError> {
        let rest = self.rest();
        let length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_digit() || "+-.eE".contains(c)).len();
        if length == rest.len() {
            // `12` may have been `120`: a number at the end of the text is not known to be whole.
            return Err(JsonError::CutOff);
        }
        match serde_json::from_str::<serde_json::Number>(&rest[..length]) {
            Ok(number) => {
                self.at += length;
                Ok(Value::Number(number))
            }
            Err(_) => self.invalid("not a number"),
        }
    }

    fn word(&mut self) -> Result<Value, JsonError> {
        let rest = self.rest();
        let length = rest.len() - rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '_').len();
        let (value, repaired) = match &rest[..length] {
            "true" => (Value::Bool(true), false),
            "false" => (Value::Bool(false), false),
            "null" => (Value::Null, false),
            "True" => (Value::Bool(true), true),
            "False" => (Value::Bool(false), true),
            "None" => (Value::Null, true),
            _ if length == rest.len() && length > 0 => return Err(JsonError::CutOff),
            _ => return self.invalid("expected a value"),
        };
        self.at += length;
        self.repairs += u32::from(repaired);
        Ok(value)
    }
}
