//! Names that a version of a file defines for others, and whether two versions differ in more than comments.

use std::collections::BTreeSet;

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

/// Both versions are the same but for comments and blanks. `false` when it cannot be told.
pub(super) fn same_code(path: &str, base: &str, head: &str) -> bool {
    let Some(grammar) = grammar(path) else { return false };
    // Blanks mean something in Python, so its lines are compared where they begin.
    let tokens = |text: &str| -> Option<Vec<(String, usize)>> {
        let tree = parse(grammar, text).filter(|tree| !tree.root_node().has_error())?;
        let mut leaves = Vec::new();
        leaves_of(tree.root_node(), &mut |leaf| {
            let indent = if grammar == Grammar::Python { leaf.start_position().column } else { 0 };
            leaves.push((text[leaf.byte_range()].to_owned(), indent));
        });
        Some(leaves)
    };
    matches!((tokens(base), tokens(head)), (Some(a), Some(b)) if a == b)
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

/// Leaves in source order, without comments. A Python docstring is a string and counts as code.
fn leaves_of(root: Node<'_>, visit: &mut dyn FnMut(Node<'_>)) {
    let mut stack = vec![root];
    while let Some(node) = stack.pop() {
        if matches!(node.kind(), "line_comment" | "block_comment" | "comment") {
            continue;
        }
        if node.child_count() == 0 {
            visit(node);
            continue;
        }
        let mut cursor = node.walk();
        let mut children: Vec<Node<'_>> = node.children(&mut cursor).collect();
        children.reverse();
        stack.extend(children);
    }
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
}
