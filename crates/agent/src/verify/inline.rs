//! Rust tests that stand in the same file as the code they test, told apart by the syntax tree.

use std::collections::BTreeMap;
use std::ops::Range;

use tree_sitter::{Node, Parser};

/// Modules within modules; deeper ones are left with the code.
const DEPTH_MAX: usize = 8;

/// A file's tests: by container and name, so that the same test is found on both sides.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Region {
    /// Names of the enclosing modules.
    container: Vec<String>,
    key: String,
    range: Range<usize>,
}

struct Parsed<'a> {
    text: &'a str,
    regions: Vec<Region>,
    /// Where a new test of a module goes: just before its closing brace.
    ends: BTreeMap<Vec<String>, usize>,
}

/// The code of one version with the tests of the other. `None`: one of them cannot be parsed, so nothing can be told apart.
pub(super) fn compose(code_from: &str, tests_from: &str) -> Option<String> {
    let code = parse(code_from)?;
    let tests = parse(tests_from)?;
    let mut edits: Vec<(Range<usize>, String)> = Vec::new();
    for region in &code.regions {
        let text = tests.find(region).map(|other| tests.text[other.range.clone()].to_owned()).unwrap_or_default();
        edits.push((region.range.clone(), text));
    }
    for region in tests.regions.iter().filter(|region| code.find(region).is_none()) {
        let Some(&at) = code.ends.get(&region.container) else { continue };
        let mut text = tests.text[region.range.clone()].to_owned();
        if !text.ends_with('\n') {
            text.push('\n');
        }
        let needs_line = at > 0 && !code.text[..at].ends_with('\n');
        edits.push((at..at, if needs_line { format!("\n{text}") } else { text }));
    }
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut composed = String::with_capacity(code.text.len());
    let mut at = 0;
    for (range, text) in edits {
        composed.push_str(&code.text[at..range.start]);
        composed.push_str(&text);
        at = range.end;
    }
    composed.push_str(&code.text[at..]);
    Some(composed)
}

/// The text of each test region, by a key that is the same in every version. `None`: not parsable.
pub(super) fn tests_of(text: &str) -> Option<BTreeMap<String, String>> {
    let parsed = parse(text)?;
    let entry = |region: &Region| {
        (format!("{}::{}", region.container.join("::"), region.key), text[region.range.clone()].to_owned())
    };
    Some(parsed.regions.iter().map(entry).collect())
}

/// The file without its tests.
pub(super) fn code_of(text: &str) -> Option<String> {
    compose(text, "")
}

impl Parsed<'_> {
    fn find(&self, like: &Region) -> Option<&Region> {
        self.regions.iter().find(|region| region.container == like.container && region.key == like.key)
    }
}

fn parse(text: &str) -> Option<Parsed<'_>> {
    let mut parser = Parser::new();
    parser.set_language(&tree_sitter_rust::LANGUAGE.into()).ok()?;
    let tree = parser.parse(text, None)?;
    if tree.root_node().has_error() {
        return None;
    }
    let mut parsed = Parsed { text, regions: Vec::new(), ends: BTreeMap::from([(Vec::new(), text.len())]) };
    walk(&mut parsed, tree.root_node(), &mut Vec::new());
    Some(parsed)
}

fn walk(parsed: &mut Parsed<'_>, items: Node<'_>, container: &mut Vec<String>) {
    let mut cursor = items.walk();
    let mut start: Option<usize> = None;
    let mut is_test = false;
    for node in items.named_children(&mut cursor) {
        match node.kind() {
            "attribute_item" => {
                start.get_or_insert(node.start_byte());
                is_test |= marks_test(&parsed.text[node.byte_range()]);
                continue;
            }
            // A comment between attributes, or above them, belongs to the item below it.
            "line_comment" | "block_comment" => {
                start.get_or_insert(node.start_byte());
                continue;
            }
            "mod_item" if !is_test && container.len() < DEPTH_MAX => {
                if let Some(body) = node.child_by_field_name("body") {
                    container.push(name_of(parsed.text, node));
                    parsed.ends.insert(container.clone(), body.end_byte().saturating_sub(1));
                    walk(parsed, body, container);
                    container.pop();
                }
            }
            _ if is_test => {
                let range = whole_lines(parsed.text, start.unwrap_or(node.start_byte())..node.end_byte());
                let key = format!("{} {}", node.kind(), name_of(parsed.text, node));
                let same =
                    parsed.regions.iter().filter(|r| r.container == *container && r.key.starts_with(&key)).count();
                let key = if same == 0 { key } else { format!("{key} #{same}") };
                parsed.regions.push(Region { container: container.clone(), key, range });
            }
            _ => {}
        }
        start = None;
        is_test = false;
    }
}

/// `#[cfg(test)]`, `#[test]` and the attributes of test libraries.
fn marks_test(attribute: &str) -> bool {
    let dense: String = attribute.chars().filter(|c| !c.is_whitespace()).collect();
    let inner = dense.trim_start_matches("#[").trim_end_matches(']');
    let name = inner.split(['(', '=']).next().unwrap_or(inner);
    let last = name.rsplit("::").next().unwrap_or(name);
    matches!(last, "test" | "rstest" | "test_case" | "bench" | "quickcheck" | "proptest" | "wasm_bindgen_test")
        || ["cfg(test)", "cfg(all(test,", "cfg(any(test,"].iter().any(|form| inner.starts_with(form))
}

/// The item's name, or its whole text where it has none (`use`).
fn name_of(text: &str, node: Node<'_>) -> String {
    let named = node.child_by_field_name("name").or_else(|| node.child_by_field_name("macro"));
    text[named.unwrap_or(node).byte_range()].to_owned()
}

fn whole_lines(text: &str, range: Range<usize>) -> Range<usize> {
    let line = text[..range.start].rfind('\n').map_or(0, |at| at + 1);
    let start = if text[line..range.start].trim().is_empty() { line } else { range.start };
    let rest = &text[range.end..];
    let blank = rest.len() - rest.trim_start_matches([' ', '\t', '\r']).len();
    let end = if rest[blank..].starts_with('\n') { range.end + blank + 1 } else { range.end };
    start..end
}

#[cfg(test)]
mod tests {
    use super::*;

    const BASE: &str = "pub fn half(n: u32) -> u32 {\n    n\n}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn zero() {\n        assert_eq!(half(0), 0);\n    }\n}\n";
    const HEAD: &str = "pub fn half(n: u32) -> u32 {\n    n / 2\n}\n\n#[cfg(test)]\nmod tests {\n    use super::*;\n\n    #[test]\n    fn zero() {\n        assert_eq!(half(0), 0);\n    }\n\n    #[test]\n    fn four() {\n        assert_eq!(half(4), 2);\n    }\n}\n";

    #[test]
    fn the_old_code_takes_the_new_tests_and_the_new_code_the_old_ones() {
        let on_base = compose(BASE, HEAD).unwrap();
        assert!(on_base.contains("    n\n}") && on_base.contains("fn four"), "{on_base}");
        let on_head = compose(HEAD, BASE).unwrap();
        assert!(on_head.contains("n / 2") && !on_head.contains("fn four"), "{on_head}");
    }

    #[test]
    fn composing_a_file_with_itself_changes_no_byte() {
        for text in
            [BASE, HEAD, "", "// only a comment\n", "#[test]\nfn a() {}", "mod m {\n    #[test]\n    fn a() {}\n}\n"]
        {
            assert_eq!(compose(text, text).as_deref(), Some(text));
        }
    }

    #[test]
    fn a_first_test_module_goes_to_the_end_and_a_deleted_one_goes_away() {
        let code = "fn f() {}";
        let with = "fn f() {}\n#[cfg(test)]\nmod tests {\n    #[test]\n    fn t() {}\n}\n";
        assert_eq!(compose(code, with).as_deref(), Some(with));
        assert_eq!(compose(with, code).as_deref(), Some("fn f() {}\n"));
        assert_eq!(code_of(with).as_deref(), Some("fn f() {}\n"));
    }

    #[test]
    fn a_test_inside_a_module_returns_to_that_module() {
        let base = "mod inner {\n    pub fn f() {}\n}\nfn g() {}\n";
        let head = "mod inner {\n    pub fn f() { todo() }\n    #[test]\n    fn t() {}\n}\nfn g() {}\n";
        let expected = "mod inner {\n    pub fn f() {}\n    #[test]\n    fn t() {}\n}\nfn g() {}\n";
        assert_eq!(compose(base, head).as_deref(), Some(expected));
    }

    #[test]
    fn what_only_looks_like_a_test_stays_with_the_code() {
        let text = "#[cfg(not(test))]\nfn a() {}\n#[derive(Debug)]\nstruct Test;\nfn test() {}\nconst S: &str = \"#[test] fn x() {}\";\n";
        assert_eq!(tests_of(text).unwrap(), BTreeMap::new());
        let marked = "#[tokio::test]\nasync fn a() {}\n#[cfg(all(test, unix))]\nfn b() {}\n#[cfg(test)]\nuse x::y;\n";
        assert_eq!(tests_of(marked).unwrap().len(), 3);
    }

    #[test]
    fn a_file_that_does_not_parse_is_not_guessed_at() {
        assert_eq!(compose("fn f( {", BASE), None);
    }
}
