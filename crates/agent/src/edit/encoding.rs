//! A file's bytes as text with `\n` line ends and no byte order mark, and the way back to the exact bytes.

use std::ops::Range;

/// Bytes looked at to tell text from binary.
const SNIFFED_BYTES: usize = 8192;

/// More control characters than one in this many means that the bytes are no text in an 8-bit encoding.
const CONTROL_SHARE: usize = 32;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Encoding {
    Utf8,
    Utf16Le,
    Utf16Be,
    /// The reversible view of any byte: each is the character of its number.
    Latin1,
}

impl Encoding {
    /// As shown to people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Utf8 => "utf-8",
            Self::Utf16Le => "utf-16le",
            Self::Utf16Be => "utf-16be",
            Self::Latin1 => "iso-8859-1",
        }
    }
}

/// The bytes are no text in any encoding that can be turned back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binary;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotEncodable {
    pub character: char,
    pub encoding: Encoding,
}

/// How the lines of a file end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LineEnds {
    /// All `\n`, or no line end at all.
    Lf,
    CrLf,
    Mixed,
}

#[derive(Debug, Clone)]
pub struct Decoded<'b> {
    bytes: &'b [u8],
    encoding: Encoding,
    bom: usize,
    text: String,
    line_ends: LineEnds,
}

impl<'b> Decoded<'b> {
    pub fn new(bytes: &'b [u8]) -> Result<Self, Binary> {
        let (encoding, bom) = detect(bytes)?;
        let mut text = String::with_capacity(bytes.len());
        let (mut lf, mut crlf) = (false, false);
        for unit in (Units { bytes, encoding, at: bom }) {
            let unit = unit.ok_or(Binary)?;
            if unit.character == '\n' {
                if unit.is_crlf { crlf = true } else { lf = true }
            }
            text.push(unit.character);
        }
        let line_ends = match (lf, crlf) {
            (true, true) => LineEnds::Mixed,
            (false, true) => LineEnds::CrLf,
            (_, false) => LineEnds::Lf,
        };
        Ok(Self { bytes, encoding, bom, text, line_ends })
    }

    pub fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// The view: line ends are `\n`, the byte order mark is left out. A lone `\r` stays a character.
    pub fn text(&self) -> &str {
        &self.text
    }

    pub fn encoding(&self) -> Encoding {
        self.encoding
    }

    pub fn has_bom(&self) -> bool {
        self.bom > 0
    }

    pub fn ends(&self) -> LineEnds {
        self.line_ends
    }

    /// The bytes behind a span of the view; both ends stand on characters.
    pub fn raw_span(&self, span: Range<usize>) -> Range<usize> {
        if self.encoding == Encoding::Utf8 && self.line_ends == LineEnds::Lf {
            return self.bom + span.start..self.bom + span.end;
        }
        let mut view = 0;
        let (mut start, mut end) = (None, None);
        for unit in (Units { bytes: self.bytes, encoding: self.encoding, at: self.bom }).flatten() {
            if view == span.start {
                start = Some(unit.start);
            }
            if view == span.end {
                end = Some(unit.start);
                break;
            }
            view += unit.character.len_utf8();
        }
        let all = self.bytes.len();
        start.unwrap_or(all)..end.unwrap_or(all)
    }

    /// The line ends inside a span of the view, in order.
    pub(super) fn line_ends(&self, span: Range<usize>) -> Vec<&'static str> {
        match self.line_ends {
            LineEnds::Lf => vec!["\n"; self.text[span].matches('\n').count()],
            LineEnds::CrLf => vec!["\r\n"; self.text[span].matches('\n').count()],
            LineEnds::Mixed => {
                let raw = self.raw_span(span);
                (Units { bytes: &self.bytes[..raw.end], encoding: self.encoding, at: raw.start })
                    .flatten()
                    .filter(|unit| unit.character == '\n')
                    .map(|unit| if unit.is_crlf { "\r\n" } else { "\n" })
                    .collect()
            }
        }
    }

    /// The end of the line that holds `offset`; of the line before when it has none; `\n` in a file without line ends.
    pub(super) fn line_end_near(&self, offset: usize) -> &'static str {
        match self.line_ends {
            LineEnds::Lf => "\n",
            LineEnds::CrLf => "\r\n",
            LineEnds::Mixed => {
                let next = self.text[offset..].find('\n').map(|at| offset + at);
                let at = next.or_else(|| self.text[..offset].rfind('\n'));
                at.and_then(|at| self.line_ends(at..at + 1).first().copied()).unwrap_or("\n")
            }
        }
    }

    /// Appends `text` in the file's encoding.
    pub(super) fn encode_into(&self, text: &str, out: &mut Vec<u8>) -> Result<(), NotEncodable> {
        match self.encoding {
            Encoding::Utf8 => out.extend_from_slice(text.as_bytes()),
            Encoding::Utf16Le => text.encode_utf16().for_each(|unit| out.extend_from_slice(&unit.to_le_bytes())),
            Encoding::Utf16Be => text.encode_utf16().for_each(|unit| out.extend_from_slice(&unit.to_be_bytes())),
            Encoding::Latin1 => {
                for character in text.chars() {
                    let byte = u8::try_from(u32::from(character))
                        .map_err(|_| NotEncodable { character, encoding: self.encoding })?;
                    out.push(byte);
                }
            }
        }
        Ok(())
    }
}

fn detect(bytes: &[u8]) -> Result<(Encoding, usize), Binary> {
    if bytes.starts_with(&[0xFF, 0xFE]) && !bytes.starts_with(&[0xFF, 0xFE, 0, 0]) {
        return Ok((Encoding::Utf16Le, 2));
    }
    if bytes.starts_with(&[0xFE, 0xFF]) {
        return Ok((Encoding::Utf16Be, 2));
    }
    if bytes.contains(&0) {
        return Err(Binary);
    }
    if std::str::from_utf8(bytes).is_ok() {
        let bom = if bytes.starts_with(&[0xEF, 0xBB, 0xBF]) { 3 } else { 0 };
        return Ok((Encoding::Utf8, bom));
    }
    let sniffed = &bytes[..bytes.len().min(SNIFFED_BYTES)];
    let controls = sniffed.iter().filter(|&&b| matches!(b, 0..=8 | 14..=26 | 28..=31 | 127)).count();
    if controls * CONTROL_SHARE > sniffed.len() { Err(Binary) } else { Ok((Encoding::Latin1, 0)) }
}

struct Unit {
    start: usize,
    character: char,
    is_crlf: bool,
}

/// The characters of the view with the place of their bytes; `\r\n` is one. `None` is what cannot be turned back.
struct Units<'b> {
    bytes: &'b [u8],
    encoding: Encoding,
    at: usize,
}

impl Units<'_> {
    fn decode(&self, at: usize) -> Option<(char, usize)> {
        let rest = &self.bytes[at..];
        match self.encoding {
            Encoding::Latin1 => Some((char::from(rest[0]), 1)),
            Encoding::Utf8 => {
                let length = match rest[0] {
                    0..=0x7F => return Some((char::from(rest[0]), 1)),
                    0xC0..=0xDF => 2,
                    0xE0..=0xEF => 3,
                    _ => 4,
                };
                let character = std::str::from_utf8(rest.get(..length)?).ok()?.chars().next()?;
                Some((character, length))
            }
            Encoding::Utf16Le | Encoding::Utf16Be => {
                let unit = |at: usize| {
                    let pair = [*rest.get(at)?, *rest.get(at + 1)?];
                    Some(if self.encoding == Encoding::Utf16Le {
                        u16::from_le_bytes(pair)
                    } else {
                        u16::from_be_bytes(pair)
                    })
                };
                let first = unit(0)?;
                if (0xD800..0xDC00).contains(&first) {
                    let character = char::decode_utf16([first, unit(2)?]).next()?.ok()?;
                    Some((character, 4))
                } else {
                    Some((char::from_u32(u32::from(first))?, 2))
                }
            }
        }
    }
}

impl Iterator for Units<'_> {
    type Item = Option<Unit>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.bytes.len() {
            return None;
        }
        let start = self.at;
        let Some((character, length)) = self.decode(start) else {
            self.at = self.bytes.len();
            return Some(None);
        };
        self.at += length;
        if character == '\r'
            && self.at < self.bytes.len()
            && let Some(('\n', more)) = self.decode(self.at)
        {
            self.at += more;
            return Some(Some(Unit { start, character: '\n', is_crlf: true }));
        }
        Some(Some(Unit { start, character, is_crlf: false }))
    }
}
