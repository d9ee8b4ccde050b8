//! Names that a version of a file defines for others, and whether two versions differ in more than comments.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use regex::Regex;
use tree_sitter::{Language, Node, Parser, Tree};

#[derive(Clone, Copy, PartialEq, Eq)]
enum Grammar {
    Rust,
    Python,
    JavaScript,
}

/// Names that `head` defines publicly and `base` does not. Empty for languages without a grammar: then nothing is claimed.
pub(super) fn added_public_names(path: &str, base: &str, head: &str) -> BTreeSet<String> {
    let Some(grammar) = grammar(path) else { return BTreeSet::new() };
    let old = names(grammar, base);
    names(grammar, head).into_iter().filter(|name| !old.contains(name)).collect()
}

/// Whether the text uses the name as a word.
pub(super) fn names_word(text: &str, name: &str) -> bool {
    let is_word = |c: char| c.is_alphanumeric() || c == '_';
    text.match_indices(name).any(|(at, _)| {
        !text[..at].chars().next_back().is_some_and(is_word)
            && !text[at + name.len()..].chars().next().is_some_and(is_word)
    })
}

/// Both versions are the same but for comments and blanks. `false` when it cannot be told, and where a comment does
/// more than explain.
pub(super) fn same_code(path: &str, base: &str, head: &str) -> bool {
    let Some(grammar) = grammar(path) else { return false };
    let is_odd = |text: &str| has_odd_lines(text) || (grammar == Grammar::Python && CODING.is_match(text));
    if is_odd(base) || is_odd(head) {
        return false;
    }
    matches!((code_of(grammar, base), code_of(grammar, head)), (Some(a), Some(b)) if a == b)
}

/// Python reads a file with such a line at its beginning in another encoding, in which a comment can hold a line's end.
/// PEP 263.
static CODING: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(r"\A\u{feff}?(?:[^\n]*\n)?[ \t\f]*#[^\n]*?coding[:=][ \t]*[-_.a-zA-Z0-9]").expect("a constant pattern")
});

/// Comments that tell a tool what to do: what to run, to build, to transform, or what to leave unchecked. In doubt one
/// more word is listed.
static DIRECTIVE: LazyLock<Regex> = LazyLock::new(|| {
    Regex::new(
        r"(?ix) ^//[\#@~] | @[a-z_] | \#__ | ^\#\s*///
        | sourceMappingURL | sourceURL | -\s*(?:ignore|disable|enable|expect) | :\s*(?:ignore|disable|enable|skip)
        | \b(?: types? | coding | globals? | exported | requires ) \s* [:=]
        | ^/\*\s*(?: globals? | exported )\b
        | \b(?: biome | bandit | c8 | cython | distutils | eslint | flake8 | fmt | istanbul | isort | jest | jshint
          | jslint | mypy | noinspection | nolint | nopycln | noqa | nosec | nosonar | oxlint | prettier | pragma | pycln
          | pylint | pyre | pyright | pytype | ruff | rustfmt | semgrep | swc | tslint | v8 | vitest | webpack\w*
          | yapf )\b",
    )
    .expect("a constant pattern")
});

/// Whether languages may see other lines than a syntax tree: Python and JavaScript end a line, and a comment with it,
/// at signs that look like part of one.
fn has_odd_lines(text: &str) -> bool {
    let text = text.replace("\r\n", "\n");
    text.chars().any(|c| matches!(c, '\u{2028}' | '\u{2029}') || (c.is_control() && !matches!(c, '\n' | '\t')))
}

/// What decides what a file does: its tokens with their places, and the Rust documentation that holds examples.
#[derive(Debug, PartialEq, Eq)]
struct Code {
    tokens: Vec<Token>,
    examples: Vec<String>,
}

#[derive(Debug, PartialEq, Eq)]
struct Token {
    text: String,
    /// The token is the first of its line. Always `false` in Rust, where lines mean nothing.
    begins_line: bool,
    /// Zero but in Python, where indentation means something.
    column: usize,
}

fn code_of(grammar: Grammar, text: &str) -> Option<Code> {
    let tree = parse(grammar, text).filter(|tree| !tree.root_node().has_error())?;
    let mut tokens = Vec::new();
    let mut last_row = None;
    leaves_of(tree.root_node(), text, &mut |leaf| {
        tokens.push(Token {
            text: text[leaf.byte_range()].to_owned(),
            begins_line: grammar != Grammar::Rust && last_row != Some(leaf.start_position().row),
            column: if grammar == Grammar::Python { leaf.start_position().column } else { 0 },
        });
        last_row = Some(leaf.end_position().row);
    });
    let examples = if grammar == Grammar::Rust { examples_of(tree.root_node(), text) } else { Vec::new() };
    Some(Code { tokens, examples })
}

/// The documentation comments of each item that may hold a code block, whole: `cargo test` runs those blocks, and what
/// stands around one decides whether it is one.
fn examples_of(root: Node<'_>, text: &str) -> Vec<String> {
    let mut examples = Vec::new();
    let mut item = String::new();
    let mut end = |item: &mut String| {
        let item = std::mem::take(item);
        let is_example = |line: &str| {
            let line = line.trim_start();
            let words = line.strip_prefix("///").or_else(|| line.strip_prefix("//!"));
            words.is_none_or(|words| words.contains("```") || words.contains("~~~") || is_indented(words))
        };
        if item.lines().any(is_example) {
            examples.push(item);
        }
    };
    walk(root, &mut |node| {
        if is_comment(node) {
            let comment = text[node.byte_range()].trim_end();
            if is_rust_documentation(comment) {
                item.push_str(comment);
                item.push('\n');
            }
            return Walk::Over;
        }
        // Documentation goes on behind an attribute, and an attribute is code already.
        if matches!(node.kind(), "attribute_item" | "inner_attribute_item") {
            return Walk::Over;
        }
        if node.child_count() == 0 {
            end(&mut item);
        }
        Walk::Into
    });
    end(&mut item);
    examples
}

fn is_rust_documentation(comment: &str) -> bool {
    ["///", "//!", "/**", "/*!"].iter().any(|begin| comment.starts_with(begin))
}

/// By four columns or more, as code in Markdown.
fn is_indented(words: &str) -> bool {
    let blanks = &words[..words.len() - words.trim_start().len()];
    blanks.len() < words.len() && (blanks.len() >= 4 || blanks.contains('\t'))
}

fn grammar(path: &str) -> Option<Grammar> {
    match path.rsplit_once('.')?.1 {
        "rs" => Some(Grammar::Rust),
        "py" => Some(Grammar::Python),
        "js" | "mjs" | "cjs" | "jsx" => Some(Grammar::JavaScript),
        _ => None,
    }
}

fn parse(grammar: Grammar, text: &str) -> Option<Tree> {
    let language: Language = match grammar {
        Grammar::Rust => tree_sitter_rust::LANGUAGE.into(),
        Grammar::Python => tree_sitter_python::LANGUAGE.into(),
        Grammar::JavaScript => tree_sitter_javascript::LANGUAGE.into(),
    };
    let mut parser = Parser::new();
    parser.set_language(&language).ok()?;
    parser.parse(text, None)
}

fn names(grammar: Grammar, text: &str) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    let Some(tree) = parse(grammar, text) else { return found };
    each(tree.root_node(), &mut |node| {
        if is_public_definition(grammar, node)
            && let Some(name) = node.child_by_field_name("name")
        {
            let name = &text[name.byte_range()];
            if grammar != Grammar::Python || !name.starts_with('_') {
                found.insert(name.to_owned());
            }
        }
    });
    found
}

fn is_public_definition(grammar: Grammar, node: Node<'_>) -> bool {
    match grammar {
        Grammar::Rust => match node.kind() {
            "enum_variant" | "function_signature_item" | "macro_definition" => true,
            "function_item" | "struct_item" | "enum_item" | "union_item" | "trait_item" | "type_item"
            | "const_item" | "static_item" | "mod_item" | "field_declaration" => {
                let mut cursor = node.walk();
                node.children(&mut cursor).any(|child| child.kind() == "visibility_modifier")
            }
            _ => false,
        },
        Grammar::Python => matches!(node.kind(), "function_definition" | "class_definition"),
        Grammar::JavaScript => matches!(
            node.kind(),
            "function_declaration"
                | "generator_function_declaration"
                | "class_declaration"
                | "method_definition"
                | "variable_declarator"
        ),
    }
}

fn each(node: Node<'_>, visit: &mut dyn FnMut(Node<'_>)) {
    let mut stack = vec![node];
    while let Some(node) = stack.pop() {
        visit(node);
        let mut cursor = node.walk();
        stack.extend(node.named_children(&mut cursor));
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Walk {
    Into,
    Over,
}

/// Nodes in source order, an outer one before those in it.
fn walk(root: Node<'_>, visit: &mut dyn FnMut(Node<'_>) -> Walk) {
    let mut stack = vec![root];
    while let Some(node) = stack.pop() {
        if visit(node) == Walk::Over {
            continue;
        }
        let mut cursor = node.walk();
        let at = stack.len();
        stack.extend(node.children(&mut cursor));
        stack[at..].reverse();
    }
}

/// Leaves in source order, without comments that only explain. A Python docstring is a string and counts as code.
fn leaves_of(root: Node<'_>, text: &str, visit: &mut dyn FnMut(Node<'_>)) {
    walk(root, &mut |node| {
        if is_comment(node) {
            if is_active(node, text) {
                visit(node);
            }
            return Walk::Over;
        }
        if node.child_count() == 0 || has_text_of_its_own(node, text) {
            visit(node);
            return Walk::Over;
        }
        Walk::Into
    });
}

/// Some text of the node is in none of its children, as in a string around an escape.
fn has_text_of_its_own(node: Node<'_>, text: &str) -> bool {
    if node.kind().contains("string") {
        return true;
    }
    let is_blank = |from: usize, to: usize| text.get(from..to).is_some_and(|gap| gap.trim().is_empty());
    let mut cursor = node.walk();
    let mut at = node.start_byte();
    for child in node.children(&mut cursor) {
        if !is_blank(at, child.start_byte()) {
            return true;
        }
        at = child.end_byte();
    }
    !is_blank(at, node.end_byte())
}

fn is_comment(node: Node<'_>) -> bool {
    matches!(node.kind(), "line_comment" | "block_comment" | "comment")
}

/// A comment that does something: it speaks to a tool, or it is documentation that a Rust macro is given as an
/// argument.
fn is_active(comment: Node<'_>, text: &str) -> bool {
    let words = &text[comment.byte_range()];
    let is_argument = comment.parent().is_some_and(|parent| parent.kind().starts_with("token_"));
    DIRECTIVE.is_match(words) || (is_argument && is_rust_documentation(words))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn added(path: &str, base: &str, head: &str) -> Vec<String> {
        added_public_names(path, base, head).into_iter().collect()
    }

    #[test]
    fn only_new_names_that_others_may_use_are_added() {
        let head = "pub fn old() {}\npub fn fresh() {}\nfn private() {}\npub enum E { First }\n";
        assert_eq!(added("a.rs", "pub fn old() {}\n", head), ["E", "First", "fresh"]);
        assert_eq!(added("a.py", "", "def f(): pass\ndef _g(): pass\nclass C: pass\n"), ["C", "f"]);
        assert_eq!(added("a.js", "", "export const f = () => 1; class C { m() {} }"), ["C", "f", "m"]);
        assert_eq!(added("a.txt", "", "def f(): pass"), Vec::<String>::new());
    }

    #[test]
    fn a_name_counts_only_as_a_whole_word() {
        assert!(names_word("x = fresh(1)", "fresh") && !names_word("refresh(1) fresh_2", "fresh"));
    }

    #[test]
    fn comments_and_layout_are_no_code_but_python_indentation_is() {
        assert!(same_code("a.rs", "fn f() { 1; } // old\n", "/// New.\nfn f() {\n    1;\n}\n"));
        assert!(!same_code("a.rs", "fn f() { 1; }", "fn f() { 2; }"));
        assert!(same_code("a.py", "x = 1 # a\n", "# b\nx = 1\n"));
        assert!(!same_code("a.py", "if a:\n    b\n    c\n", "if a:\n    b\nc\n"));
        assert!(!same_code("a.unknown", "a", "a"));
    }

    /// Each pair differs only where a syntax tree sees a comment or a blank.
    fn assert_code(path: &str, pairs: &[(&str, &str)]) {
        for (base, head) in pairs {
            assert!(!same_code(path, base, head), "{base:?} {head:?}");
        }
    }

    #[test]
    fn a_python_comment_that_runs_is_code() {
        assert_code(
            "a.py",
            &[
                ("# coding: utf-8\nx = 1\n", "# coding: unicode_escape\nx = 1\n"),
                ("x = 1\n", "#!/usr/bin/python3\n# -*- coding: utf-7 -*-\nx = 1\n"),
                ("# vim: set fileencoding=utf-7 :\nx = 1 # a\n", "# vim: set fileencoding=utf-7 :\nx = 1 # b\n"),
                ("\u{feff}# coding: unicode_escape\nx = 1\n", "\u{feff}# coding: unicode_escape\nx = 1 # a\n"),
                ("x = 1 # a\n", "x = 1 # a\rimport os\n"),
                ("x = 1 # a\n", "x = 1 # a\u{c}b\n"),
                ("x = 1\n", "# /// script\n# dependencies = [\"evil\"]\n# ///\nx = 1\n"),
                ("x = f() # type: ignore\n", "x = f()\n"),
                ("x = f()\n", "x = f() # noqa\n"),
                ("if a: # pragma: no cover\n    b\n", "if a:\n    b\n"),
            ],
        );
        assert!(same_code("a.py", "x = 1 # a\r\n", "x = 1 # b\r\n"));
        assert!(same_code("a.py", "x = 1\ny = 2\n", "x = 1\n\n# Encoding is someone else's matter.\ny = 2\n"));
    }

    #[test]
    fn text_around_an_escape_is_code() {
        assert_code("a.py", &[(r"x = 'abc\n'", r"x = 'xyz\n'"), (r"x = f'abc\n{y}'", r"x = f'xyz\n{y}'")]);
        assert_code("a.js", &[(r"x = 'abc\n'", r"x = 'xyz\n'"), (r"x = `abc\n${y}`", r"x = `xyz\n${y}`")]);
        assert_code("a.rs", &[(r#"const X: &str = "abc\n";"#, r#"const X: &str = "xyz\n";"#)]);
    }

    #[test]
    fn a_javascript_line_end_or_a_word_to_a_tool_is_code() {
        assert_code(
            "a.js",
            &[
                ("function f() { return 1 }", "function f() { return\n1 }"),
                ("a\n++b", "a++\nb"),
                ("f() // a", "f() // a\u{2028}g()"),
                ("f() // a", "f() // a\rg()"),
                ("f()", "f()\n//# sourceMappingURL=evil.map"),
                ("f()", "/** @jest-environment ./evil.js */\nf()"),
                ("// @ts-check\nf()", "f()"),
                ("/* istanbul ignore next */ f()", "f()"),
                ("/* eslint-disable */\nf()", "f()"),
                ("x = /*#__PURE__*/ f()", "x = f()"),
            ],
        );
        assert!(same_code("a.js", "f() // a\n", "// What f is for.\nf() /* b */\n"));
    }

    #[test]
    fn rust_documentation_that_is_run_or_given_to_a_macro_is_code() {
        let documented = |doc: &str| format!("{doc}\npub fn f() {{}}\n");
        for (base, head) in [
            ("/// What.\n/// ```\n/// f();\n/// ```", "/// What.\n/// ```\n/// evil();\n/// ```"),
            ("/// What.\n/// ```\n/// f();\n/// ```", "/// What."),
            ("/// ```\n/// f();\n/// ```", "/// ```ignore\n/// f();\n/// ```"),
            ("/// ```\n#[inline]\n/// f();\n/// ```", "/// ```\n#[inline]\n/// evil();\n/// ```"),
            ("/// What.\n///\n///     f();", "/// What.\n///\n///     evil();"),
            ("/** What. */", "/** What.\n\n    evil();\n*/"),
        ] {
            assert!(!same_code("a.rs", &documented(base), &documented(head)), "{base:?} {head:?}");
        }
        assert!(!same_code("a.rs", "m! { /// a\n x }", "m! { /// b\n x }"));
        let other = documented("/// ```\n/// f();\n/// ```");
        assert!(same_code("a.rs", &format!("{other}/// a\nfn g() {{}}\n"), &format!("{other}/// b\nfn g() {{}}\n")));
    }
}
