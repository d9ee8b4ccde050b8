//! The one secret that a run of `fettle fix` holds is the model's key. A model knows it, and must not get it out.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use fettle_tests::fixtures::{Fix, Project, create, finish};
use fettle_tests::model::ModelServer;

use super::before_the_edit;

const PROJECT: Project = Project::SHELL;
const KEY: &str = "canary-Kq81zV.9wT/model+key=42";

#[test]
fn the_models_key_leaves_in_no_disguise() {
    let split: String = KEY.chars().map(|c| format!("{c}\n")).collect();
    let disguises = [
        KEY.to_owned(),
        format!("key = \"{}\" +\n  \"{}\"\n", &KEY[..11], &KEY[11..]),
        split,
        STANDARD.encode(format!("xy{KEY}")),
        URL_SAFE_NO_PAD.encode(KEY),
        hex::encode_upper(KEY),
        KEY.chars().rev().collect(),
    ];
    for disguise in disguises {
        let turns = before_the_edit(&PROJECT, [create("notes.txt", &disguise)]);
        assert_rejected(turns, "known secret `key file` in notes.txt");
    }
}

#[test]
fn neither_title_nor_text_nor_file_name_carry_the_key() {
    let title = format!("Clamp {KEY}");
    assert_rejected(vec![PROJECT.right_edit(), finish(&title)], "known secret `key file` in commit message");
    let body = format!("Clamp\n\n{}", hex::encode(KEY));
    assert_rejected(vec![PROJECT.right_edit(), finish(&body)], "known secret `key file` in commit message");
    let name = format!("{}.txt", hex::encode(KEY));
    assert_rejected(before_the_edit(&PROJECT, [create(&name, "x\n")]), "known secret `key file` in file names");
}

#[test]
fn what_looks_like_a_credential_is_rejected_too() {
    let token = format!("ghp_{}", "a1B2".repeat(9));
    assert_rejected(before_the_edit(&PROJECT, [create("notes.txt", &token)]), "GitHub token in notes.txt");
}

fn assert_rejected(turns: Vec<fettle_tests::model::Answer>, reason: &str) {
    let repo = PROJECT.repo();
    let key = repo.beside("model.key");
    fs_err::write(&key, KEY).unwrap();
    let server = ModelServer::start(PROJECT.solving().phase("fix", turns).script().requiring_key(KEY));
    let ended = Fix::new(&repo, PROJECT.issue).model(&server).with(&["--model-key-file", key.as_str()]).run();
    let ended = ended.expect(4).reason_has(reason);
    assert_eq!(ended.branch(), None, "{ended}");
    assert!(!format!("{ended}").contains(KEY), "the key was printed");
    assert_eq!(repo.git(&["for-each-ref", "--format=%(refname)"]), "refs/heads/main");
    assert!(!repo.git(&["cat-file", "--batch-all-objects", "--batch"]).contains(KEY), "the key reached the repository");
}
