//! Files of variables as systemd's `EnvironmentFile=` reads them (systemd.exec(5)): `NAME=value` lines, comments that begin
//! with `#` or `;`, values in single or double quotes, a backslash that keeps the next character or joins the next line. Nothing
//! is substituted and nothing is run.

use std::collections::BTreeMap;

/// Variables by name; the last one of a name counts, and what is no assignment is passed over, as systemd does.
pub fn read(text: &str) -> BTreeMap<String, String> {
    let mut found = BTreeMap::new();
    let mut rest = text.chars().peekable();
    while rest.peek().is_some() {
        let name: String = std::iter::from_fn(|| rest.next_if(|c| !matches!(c, '=' | '\n'))).collect();
        let name = name.trim();
        let comment = name.starts_with(['#', ';']);
        if rest.next_if_eq(&'=').is_none() || comment {
            // To the end of the line.
            while rest.next().is_some_and(|c| c != '\n') {}
            continue;
        }
        let value = value(&mut rest);
        if is_name(name) {
            found.insert(name.to_owned(), value);
        }
    }
    found
}

fn is_name(name: &str) -> bool {
    let plain = name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    plain && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
}

/// What follows `=`, up to and with the end of the line. Blanks around what is not quoted do not count, and a quote begins
/// only where nothing unquoted stands yet.
fn value(rest: &mut std::iter::Peekable<std::str::Chars<'_>>) -> String {
    let mut value = String::new();
    let mut bare = false;
    // Characters up to here are kept, whatever blanks follow.
    let mut kept = 0;
    while let Some(c) = rest.next() {
        match c {
            '\n' | '\r' => break,
            '\\' => {
                bare = true;
                value.extend(rest.next().filter(|c| *c != '\n'));
            }
            '"' | '\'' if !bare => quoted(rest, c, &mut value),
            ' ' | '\t' => {
                if bare {
                    value.push(c);
                }
                continue;
            }
            other => {
                bare = true;
                value.push(other);
            }
        }
        kept = value.len();
    }
    value.truncate(kept);
    value
}

fn quoted(rest: &mut std::iter::Peekable<std::str::Chars<'_>>, quote: char, value: &mut String) {
    while let Some(c) = rest.next() {
        match c {
            c if c == quote => return,
            // In double quotes a backslash is one, unless it stands before what it could be needed for.
            '\\' if quote == '"' => match rest.next() {
                Some('\n') | None => {}
                Some(kept @ ('"' | '\\' | '`' | '$')) => value.push(kept),
                Some(other) => value.extend(['\\', other]),
            },
            c => value.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_are_what_systemd_makes_of_them() {
        let text = "# KEY=commented\n ; OTHER=commented\nKEY=plain \nEMPTY=\nexport BAD=1\n9=x\nSPACED = two words\t\n\
                    SINGLE='a \"b\" $c \\ '\nDOUBLE=\"a 'b' \\\"c\\\" \\x\"\nJOINED=one\\\ntwo\nHASH=a#b\nINNER=a\"b\" 'c'\nTWICE=\"a\" 'b' c\nKEY2=\"two\nlines\"\nWIN=x\r\nno assignment\nKEY=last";
        let expected = [
            ("DOUBLE", "a 'b' \"c\" \\x"),
            ("EMPTY", ""),
            ("HASH", "a#b"),
            ("INNER", "a\"b\" 'c'"),
            ("JOINED", "onetwo"),
            ("KEY", "last"),
            ("KEY2", "two\nlines"),
            ("SINGLE", "a \"b\" $c \\ "),
            ("SPACED", "two words"),
            ("TWICE", "abc"),
            ("WIN", "x"),
        ];
        let read = read(text);
        let read: Vec<(&str, &str)> = read.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
        assert_eq!(read, expected);
    }
}
