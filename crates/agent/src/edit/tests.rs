use proptest::prelude::*;

use super::encoding::{Decoded, Encoding};
use super::patch::{self, ApplyError, FileChange};
use super::*;

fn replace(bytes: &[u8], old: &str, new: &str) -> Result<Vec<u8>, EditError> {
    str_replace(&Decoded::new(bytes).expect("text"), old, new).map(|edited| edited.bytes)
}

#[test]
fn inserted_lines_take_the_line_end_of_the_line_they_replace_or_follow() {
    assert_eq!(replace(b"a\r\nb\r\nc\r\n", "b", "x\ny").unwrap(), b"a\r\nx\r\ny\r\nc\r\n");
    // Mixed: the middle line keeps its `\n`, the others their `\r\n`.
    assert_eq!(replace(b"a\r\nb\nc\r\n", "a\nb\nc\n", "a\nNEW\nb\nc\n").unwrap(), b"a\r\nNEW\r\nb\nc\r\n");
    assert_eq!(replace(b"a\r\nb\nc\r\n", "a\nb\nc\n", "a\nB1\nB2\nc\n").unwrap(), b"a\r\nB1\nB2\nc\r\n");
    assert_eq!(replace(b"a\nb\r\nc\n", "b", "b\nd").unwrap(), b"a\nb\r\nd\r\nc\n");
    // A model that writes `\r\n` itself means the same lines.
    assert_eq!(replace(b"a\r\nb\r\n", "a\r\nb", "a\r\nc").unwrap(), b"a\r\nc\r\n");
    assert_eq!(replace(b"a\nb\n", "a\r\nb", "a\r\nc").unwrap(), b"a\nc\n");
}

#[test]
fn the_final_newline_and_the_byte_order_mark_stay() {
    assert_eq!(replace(b"a\nb", "b", "c").unwrap(), b"a\nc");
    assert_eq!(replace(b"\xEF\xBB\xBFa\nb\n", "a", "c").unwrap(), b"\xEF\xBB\xBFc\nb\n");
    assert_eq!(replace(b"a\r\nb", "b", "b\nc").unwrap(), b"a\r\nb\r\nc");
    assert_eq!(replace(b"a\nb\n", "b\n", "b").unwrap(), b"a\nb");
}

#[test]
fn utf16_and_latin1_come_back_as_they_were() {
    let le = |text: &str| -> Vec<u8> {
        [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect()
    };
    let be = |text: &str| -> Vec<u8> {
        [0xFE, 0xFF].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect()
    };
    assert_eq!(replace(&le("a😀\r\nb\r\n"), "b", "é\n😀").unwrap(), le("a😀\r\né\r\n😀\r\n"));
    assert_eq!(replace(&be("a😀\nb"), "a😀", "x").unwrap(), be("x\nb"));
    assert_eq!(replace(b"caf\xE9\nna\xEFve\n", "naïve", "ü").unwrap(), b"caf\xE9\n\xFC\n");
    assert_eq!(
        replace(b"caf\xE9\n", "café", "€"),
        Err(EditError::NotEncodable(NotEncodable { character: '€', encoding: Encoding::Latin1 }))
    );
}

#[test]
fn binary_files_are_told_from_text() {
    assert!(Decoded::new(b"\x7fELF\0\0").is_err());
    assert!(Decoded::new(&[0xFF, 0xFE, 0x00, 0xD8]).is_err());
    assert!(Decoded::new(&[0xFF, 0xFE, 0x61]).is_err());
    assert!(Decoded::new(&[0x80, 1, 2, 3, 4, 5, 6, 7, 0x90]).is_err());
    assert!(Decoded::new(b"").is_ok());
}

#[test]
fn signs_of_replacement_languages_mean_themselves() {
    assert_eq!(
        replace(b"a x b\n", "x", r"$1 \1 & $$ ${y}").unwrap(),
        br"a $1 \1 & $$ ${y} b
"
    );
}

#[test]
fn an_ambiguous_anchor_names_its_lines_even_when_matches_overlap() {
    let Err(EditError::NotUnique { count, lines, regions }) = replace(b"x\nfoo\ny\nfoo\n", "foo", "bar") else {
        panic!("two places")
    };
    assert_eq!((count, lines), (2, vec![2, 4]));
    assert!(regions.contains("region 1, lines 1–4:\n1\tx\n2\tfoo\n"), "{regions}");
    assert!(matches!(replace(b"aaa", "aa", "b"), Err(EditError::NotUnique { count: 2, .. })));
}

#[test]
fn a_difference_in_blanks_is_shown_and_not_guessed() {
    let file = b"fn main() {\n    let x = 1;\n    let y = 2;\n}\n";
    let Err(EditError::NoMatch { regions }) = replace(file, "let x = 1;\nlet  y = 2;", "z") else { panic!("no match") };
    assert_eq!(
        regions,
        "region 1, lines 2–3:\n2\t    let x = 1;\n3\t    let y = 2;\nregion 1 differs only in whitespace; copy it exactly.\n"
    );
}

#[test]
fn the_closest_regions_are_found_for_a_misremembered_line() {
    let mut file: String = (0..500).map(|n| format!("fn filler_{n}() {{ compute({n}) }}\n")).collect();
    file.push_str("pub fn parse_header(input: &str) -> Result<Header, ParseError> {\n    input.parse()\n}\n");
    let old = "pub fn parse_header(input: &[u8]) -> Option<Header> {\n    input.parse()\n}";
    let Err(EditError::NoMatch { regions }) = replace(file.as_bytes(), old, "z") else { panic!("no match") };
    assert!(regions.starts_with("region 1, lines 501–503:\n501\tpub fn parse_header"), "{regions}");
    assert!(!regions.contains("whitespace"));
}

#[test]
fn a_large_file_without_a_match_is_answered_in_bounded_work() {
    let file: String = (0..60_000).map(|n| format!("line {n} of many lines with a few words\n")).collect();
    let old = "a line that is not there\n".repeat(1000);
    assert!(matches!(replace(file.as_bytes(), &old, "z"), Err(EditError::NoMatch { .. })));
}

#[test]
fn copied_line_numbers_are_named() {
    assert_eq!(replace(b"a\nb\n", "1\ta\n2\tb", "x"), Err(EditError::LineNumbers));
    // A table with numbers that stands in the file is text like any other.
    assert_eq!(replace(b"1\ta\n2\tb\n", "1\ta", "x").unwrap(), b"x\n2\tb\n");
    assert_eq!(replace(b"a\n", "a", "a"), Err(EditError::NoChange));
}

#[test]
fn a_rewrite_keeps_the_bytes_of_lines_that_stay() {
    let file = Decoded::new(b"\xEF\xBB\xBFone\r\ntwo\nthree\r\n").unwrap();
    let edited = rewrite(&file, "one\n2\nthree\nfour\n").unwrap();
    assert_eq!(edited.bytes, b"\xEF\xBB\xBFone\r\n2\nthree\r\nfour\r\n");
}

#[test]
fn placeholders_for_code_are_found_and_ordinary_ellipses_are_not() {
    for line in [
        "// ... existing code ...",
        "    # ... rest of the function unchanged ...",
        "/* ... other methods ... */",
        "<!-- ... existing content ... -->",
        "// rest of the file remains unchanged",
        "# Rest of code stays the same",
        "... (rest of the code unchanged)",
        "// … remaining tests …",
    ] {
        assert_eq!(elided::placeholder(&format!("a\n{line}\nb"), None), Some(line.trim()), "{line}");
    }
    for line in [
        "def f(): ...",
        "    ...",
        "let all = [first, ..rest];",
        "match x { A => 1, .. }",
        "// Waits for the rest of the input.",
        "print(\"loading...\")",
        "The rest of the story is told elsewhere...",
        "# keep the original order of lines",
    ] {
        assert_eq!(elided::placeholder(line, None), None, "{line}");
    }
    let line = "// ... existing code ...";
    assert_eq!(elided::placeholder(line, Some("x\n  // ... existing code ...\n")), None);
}

#[test]
fn only_new_syntax_errors_are_reported() {
    assert_eq!(syntax::report("a.rs", None, "fn a() {}\n").as_deref(), Some("syntax: ok"));
    assert_eq!(
        syntax::report("a.py", Some("x = 1\n"), "x = 1\ny = (2 +\n").as_deref(),
        Some("syntax: new error at line 2: y = (2 +")
    );
    let broken = "function f( {\n}\n";
    assert_eq!(
        syntax::report("a.js", Some(broken), &format!("{broken}let x = 1;\n")).as_deref(),
        Some("syntax: no new error")
    );
    assert_eq!(syntax::report("a.txt", None, "(("), None);
}

fn hunks(patch_text: &str) -> Vec<patch::Hunk> {
    match patch::parse(patch_text).expect("a patch").remove(0).change {
        FileChange::Update { hunks, .. } => hunks,
        other => panic!("not an update: {other:?}"),
    }
}

#[test]
fn a_v4a_patch_changes_its_lines_only() {
    let text = "*** Begin Patch\n*** Update File: a.py\n@@ def two():\n-    return 1\n+    return 2\n+    # done\n*** End Patch";
    let file = b"def one():\r\n    return 1\r\ndef two():\r\n    return 1\r\nlast";
    assert_eq!(
        patch::apply(file, &hunks(text)).unwrap().bytes,
        b"def one():\r\n    return 1\r\ndef two():\r\n    return 2\r\n    # done\r\nlast"
    );
    // Context may differ in trailing blanks, and then stays as it is in the file.
    let text = "*** Begin Patch\n*** Update File: a\n context\n-old\n+new\n*** End Patch";
    assert_eq!(patch::apply(b"context  \nold\n", &hunks(text)).unwrap().bytes, b"context  \nnew\n");
    // Lines taken out at the end of a file without final newline.
    let text = "*** Begin Patch\n*** Update File: a\n keep\n-gone\n*** End Patch";
    assert_eq!(patch::apply(b"keep\ngone", &hunks(text)).unwrap().bytes, b"keep");
}

#[test]
fn a_v4a_patch_whose_context_fits_twice_or_nowhere_is_refused() {
    let text = "*** Begin Patch\n*** Update File: a\n-x\n+y\n*** End Patch";
    assert!(matches!(
        patch::apply(b"x\nx\n", &hunks(text)),
        Err(ApplyError::Edit(EditError::NotUnique { count: 2, .. }))
    ));
    assert!(matches!(patch::apply(b"z\n", &hunks(text)), Err(ApplyError::Edit(EditError::NoMatch { .. }))));
    for broken in [
        "*** Begin Patch\n*** Update File: a\n@@ -1,2 +1,2 @@\n-x\n+y\n*** End Patch",
        "*** Begin Patch\n*** Update File: a\n-x\n+y",
        "*** Begin Patch\n*** Update File: a\n x\n*** End Patch",
        "*** Begin Patch\n*** Add File: a\nno plus\n*** End Patch",
        "*** Begin Patch\n*** End Patch",
        "--- a\n+++ b\n",
    ] {
        assert!(patch::parse(broken).is_err(), "{broken}");
    }
}

/// Texts of few letters and all line ends, so that anchors are short and line ends mix.
fn file_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof!["[abcé😀 ]{0,4}", Just("\n".to_owned()), Just("\r\n".to_owned()), Just("\r".to_owned())];
    prop::collection::vec(piece, 1..24).prop_map(|pieces| pieces.concat())
}

fn encoded(text: &str, form: u8) -> Vec<u8> {
    match form {
        0 => text.as_bytes().to_vec(),
        1 => [b"\xEF\xBB\xBF", text.as_bytes()].concat(),
        2 => [0xFF, 0xFE].into_iter().chain(text.encode_utf16().flat_map(u16::to_le_bytes)).collect(),
        3 => [0xFE, 0xFF].into_iter().chain(text.encode_utf16().flat_map(u16::to_be_bytes)).collect(),
        // Latin-1 with a byte that is no UTF-8.
        _ => text.chars().map(|c| u8::try_from(u32::from(c)).unwrap_or(b'?')).chain([0xE9]).collect(),
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn bytes_outside_the_span_stay_identical(
        text in file_text(), form in 0u8..5, from in 0usize..40, length in 1usize..12, new in "[xyz\n$\\\\&]{0,6}",
    ) {
        let bytes = encoded(&text, form);
        let file = Decoded::new(&bytes).expect("generated text");
        let view: Vec<char> = file.text().chars().collect();
        prop_assume!(!view.is_empty());
        let from = from % view.len();
        let old: String = view[from..(from + length).min(view.len())].iter().collect();
        match str_replace(&file, &old, &new) {
            Ok(edited) => {
                let at = file.text().find(&old).expect("it was found once");
                let span = file.raw_span(at..at + old.len());
                prop_assert_eq!(&edited.bytes[..span.start], &bytes[..span.start]);
                prop_assert!(edited.bytes.len() >= span.start + (bytes.len() - span.end));
                prop_assert!(edited.bytes.ends_with(&bytes[span.end..]));
                // A lone \r before a new \n would read as one line end; that apart, the view is the text asked for.
                if !file.text().contains('\r') {
                    let mut wanted = file.text().to_owned();
                    wanted.replace_range(at..at + old.len(), &new);
                    let again = Decoded::new(&edited.bytes).expect("still text");
                    if again.encoding() == file.encoding() {
                        prop_assert_eq!(again.text(), wanted);
                    }
                }
            }
            Err(EditError::NotUnique { count, .. }) => prop_assert!(count > 1),
            Err(EditError::NoChange) => prop_assert_eq!(old, new),
            Err(other) => prop_assert!(false, "{:?}", other),
        }
    }

    #[test]
    fn a_view_leads_back_to_the_bytes(text in file_text(), form in 0u8..5) {
        let bytes = encoded(&text, form);
        let file = Decoded::new(&bytes).expect("generated text");
        let whole = file.raw_span(0..file.text().len());
        prop_assert_eq!(whole.end, bytes.len());
        prop_assert!(whole.start <= 3);
    }
}
