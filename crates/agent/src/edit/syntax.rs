//! What a parser says about a file before and after an edit: only what the edit broke is reported.

use std::collections::HashMap;

use tree_sitter::{Language, Parser, Tree};

use super::{cut_chars, line_of};

/// Larger files are not parsed; the line is advice, not worth seconds.
const MAX_PARSED_BYTES: usize = 1024 * 1024;

/// Errors collected of one tree; a file with more is not code.
const MAX_ERRORS: usize = 200;

const QUOTED_CHARS: usize = 80;

/// The line for the model about `after`: `None` for languages without grammar.
pub fn report(path: &str, before: Option<&str>, after: &str) -> Option<String> {
    let language = language_of(path)?;
    let now = errors(&language, after)?;
    if now.is_empty() {
        return Some("syntax: ok".to_owned());
    }
    let mut known: HashMap<String, usize> = HashMap::new();
    for (_, line) in before.and_then(|text| errors(&language, text)).unwrap_or_default() {
        *known.entry(line).or_default() += 1;
    }
    let new = now.iter().find(|(_, line)| match known.get_mut(line) {
        Some(count) if *count > 0 => {
            *count -= 1;
            false
        }
        _ => true,
    });
    Some(match new {
        None => "syntax: no new error".to_owned(),
        Some((number, line)) => {
            format!("syntax: new error at line {number}: {}", cut_chars(line, QUOTED_CHARS))
        }
    })
}

fn language_of(path: &str) -> Option<Language> {
    let (_, extension) = path.rsplit_once('.')?;
    Some(match extension {
        "rs" => tree_sitter_rust::LANGUAGE.into(),
        "py" | "pyi" => tree_sitter_python::LANGUAGE.into(),
        "js" | "mjs" | "cjs" | "jsx" => tree_sitter_javascript::LANGUAGE.into(),
        _ => return None,
    })
}

/// The 1-based line and the trimmed text of each line where an error begins.
fn errors(language: &Language, text: &str) -> Option<Vec<(usize, String)>> {
    if text.len() > MAX_PARSED_BYTES {
        return None;
    }
    let mut parser = Parser::new();
    parser.set_language(language).ok()?;
    let tree: Tree = parser.parse(text, None)?;
    let mut found = Vec::new();
    let mut cursor = tree.walk();
    'nodes: loop {
        let node = cursor.node();
        if node.is_error() || node.is_missing() {
            let at = node.start_byte().min(text.len());
            let number = line_of(text, at);
            let line = text.lines().nth(number - 1).unwrap_or_default().trim().to_owned();
            found.push((number, line));
            if found.len() >= MAX_ERRORS {
                break;
            }
        }
        let descend = node.has_error() && !node.is_error();
        if descend && cursor.goto_first_child() {
            continue;
        }
        while !cursor.goto_next_sibling() {
            if !cursor.goto_parent() {
                break 'nodes;
            }
        }
    }
    Some(found)
}
