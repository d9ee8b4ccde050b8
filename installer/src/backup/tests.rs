//! Whole backups of a small installation on temporary folders.

use std::os::unix::fs::PermissionsExt as _;

use camino::{Utf8Path, Utf8PathBuf};
use jiff::Timestamp;

use super::create::{Made, Wanted, create};
use super::error::BackupError;
use super::manifest::Manifest;
use super::places::Places;
use super::restore::{discard, fits, stage};
use super::secrets::{Key, Lock};
use super::store;
use super::verify::verify;
use crate::action::{Action, Trace};
use crate::host::{HostView as _, RealHost, sha256};

/// What must never be anywhere in clear.
const CANARY: &str = "canary-5b1f0a77";
const BLOB: &str = "a patch";
const CONFIG: &str = "[auth]\nworker_key_file = \"secrets/worker.key\"\n";

/// An installation without services. Everything else in the data folder is left alone.
struct Installed {
    _folder: tempfile::TempDir,
    places: Places,
}

fn put(path: &Utf8Path, text: &str, mode: u32) {
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, text).unwrap();
    fs_err::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

fn blob_path(places: &Places, content: &str) -> Utf8PathBuf {
    let digits = sha256(content.as_bytes());
    places.ledger().join("blobs").join(&digits[..2]).join(&digits[2..])
}

fn empty() -> Installed {
    let folder = tempfile::tempdir().unwrap();
    let root = Utf8Path::from_path(folder.path()).unwrap();
    let data = root.join("state/dashboard");
    let places = Places {
        etc: root.join("etc"),
        config: root.join("etc/fettle.toml"),
        answers: root.join("etc/installer.toml"),
        secrets: root.join("etc/secrets"),
        default_data: data.clone(),
        data: data.clone(),
        backups: root.join("state/backups"),
        receipt: root.join("home/receipt.json"),
        program: Utf8Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/fettle"),
    };
    for folder in [&places.secrets, &places.data, &places.backups] {
        fs_err::create_dir_all(folder).unwrap();
    }
    put(&places.config, "# from the first apply\n", 0o640);
    Installed { _folder: folder, places }
}

fn installed() -> Installed {
    let installed = empty();
    let places = &installed.places;
    put(&places.config, CONFIG, 0o640);
    put(&places.answers, "workers = 3\n[secrets]\n\"worker.key\" = \"/srv/keys/worker.key\"\n", 0o644);
    put(&places.secrets.join("worker.key"), CANARY, 0o600);
    put(&places.receipt, "{\"schema\": 1}", 0o600);
    put(&places.ledger().join("ledger.db"), "rows", 0o600);
    put(&places.ledger().join("ledger.lock"), "1", 0o600);
    put(&blob_path(places, BLOB), BLOB, 0o600);
    put(&places.ledger().join("blobs/tmp/half"), "half", 0o600);
    put(&places.data.join("admin.key"), CANARY, 0o600);
    put(&places.data.join("mirrors/big.pack"), "a mirror", 0o600);
    put(&places.data.join("cache/prepared/x"), "an environment", 0o600);
    installed
}

fn pair() -> (Lock, Key) {
    let identity = age::x25519::Identity::generate();
    (Lock::of_recipients(&[identity.to_public().to_string()]).unwrap(), Key::Identities(vec![identity]))
}

fn made(places: &Places, lock: Option<Lock>) -> Made {
    let now = Timestamp::from_second(1_800_000_000).unwrap();
    create(places, Wanted { to: &places.backups, version: "0.1.0", now, lock }).unwrap()
}

fn names(manifest: &Manifest) -> Vec<&str> {
    manifest.members.keys().map(String::as_str).collect()
}

/// Carries the exchanges out as a run does.
fn exchange(swaps: &[Action]) -> Vec<Trace> {
    let mut host = RealHost::new().unwrap();
    let mut befores = Vec::new();
    for swap in swaps {
        let Action::Swap { path, .. } = swap else { panic!("{swap:?}") };
        let before = Trace::Path { entry: host.entry(path).unwrap(), saved: None };
        for _ in 0..2 {
            swap.execute(&mut host, &before).unwrap();
        }
        befores.push(before);
    }
    befores
}

#[test]
fn a_backup_holds_what_cannot_be_made_again_and_nothing_else() {
    let Installed { _folder, places } = installed();
    let (lock, _) = pair();
    let made = made(&places, Some(lock));
    let digits = sha256(BLOB.as_bytes());
    let blob = format!("blobs/{}/{}", &digits[..2], &digits[2..]);
    assert_eq!(
        names(&made.manifest),
        [&blob, "fettle.toml", "installer.toml", "ledger.db", "receipt.json", "secrets.tar.age"]
    );
    assert_eq!((made.manifest.left_out.as_slice(), made.damaged.as_slice()), (&[][..], &[][..]));
    assert_eq!(made.path.file_name(), Some("fettle-backup-0.1.0-20270115T080000Z.tar.zst"));
    assert_eq!(fs_err::metadata(&made.path).unwrap().permissions().mode() & 0o777, 0o600);
    let clear = zstd::decode_all(fs_err::File::open(&made.path).unwrap()).unwrap();
    let canary = CANARY.as_bytes();
    assert!(!clear.windows(canary.len()).any(|window| window == canary), "a secret is in it in clear");
    let now = Timestamp::from_second(1_800_000_100).unwrap();
    assert_eq!(verify(&places, &made.path, now).unwrap().unpacked.manifest, made.manifest);
    let listed = store::list(&places.backups).unwrap();
    assert_eq!((listed.len(), listed[0].verified), (1, Some(now)));
    assert_eq!(fs_err::read_dir(&places.backups).unwrap().count(), 2, "nothing but the archive and its mark is left");
}

#[test]
fn without_a_recipient_secrets_are_left_out_and_the_archive_says_so() {
    let Installed { _folder, places } = installed();
    let made = made(&places, None);
    assert!(!made.manifest.has_secrets());
    let verified = verify(&places, &made.path, Timestamp::UNIX_EPOCH).unwrap();
    assert!(verified.unpacked.manifest.left_out[0].contains("secrets"), "{:?}", verified.unpacked.manifest);
}

#[test]
fn what_the_store_cannot_vouch_for_leads_nowhere_and_is_told() {
    let Installed { _folder, places } = installed();
    let outside = places.etc.join("outside");
    put(&outside, "root's own", 0o600);
    let digits = sha256(b"root's own");
    let link = blob_path(&places, "root's own");
    fs_err::create_dir_all(link.parent().unwrap()).unwrap();
    fs_err::os::unix::fs::symlink(&outside, &link).unwrap();
    let rotten = blob_path(&places, "other");
    put(&rotten, "not what the name says", 0o600);
    let linked_folder = places.ledger().join("blobs/zz");
    fs_err::os::unix::fs::symlink(&places.etc, &linked_folder).unwrap();
    let made = made(&places, None);
    assert_eq!(made.damaged.len(), 2, "{:?}", made.damaged);
    assert!(made.damaged.contains(&format!("blobs/{}/{}", &digits[..2], &digits[2..])));
    assert_eq!(made.manifest.left_out.len(), 3, "{:?}", made.manifest.left_out);
    verify(&places, &made.path, Timestamp::UNIX_EPOCH).unwrap();
}

#[test]
fn a_ledger_that_is_not_whole_does_not_verify_and_its_mark_goes() {
    let Installed { _folder, places } = installed();
    put(&places.ledger().join("ledger.db"), "nothing", 0o600);
    let made = made(&places, None);
    store::mark(&made.path, &made.archive, Timestamp::UNIX_EPOCH).unwrap();
    let refused = verify(&places, &made.path, Timestamp::UNIX_EPOCH).unwrap_err();
    assert!(matches!(&refused, BackupError::Damaged(why) if why.contains("no rows")), "{refused}");
    assert_eq!(store::list(&places.backups).unwrap()[0].verified, None);
}

#[test]
fn a_program_that_fails_leaves_no_archive() {
    let Installed { _folder, places } = installed();
    let places = Places { program: "/nowhere/fettle".into(), ..places };
    let wanted = Wanted { to: &places.backups, version: "0.1.0", now: Timestamp::UNIX_EPOCH, lock: None };
    let error = create(&places, wanted).unwrap_err();
    assert!(error.to_string().contains("/nowhere/fettle"), "{error}");
    assert_eq!(fs_err::read_dir(&places.backups).unwrap().count(), 0);
}

#[test]
fn a_backup_comes_back_on_another_host_and_can_be_taken_back() {
    let from = installed();
    let (lock, key) = pair();
    let archive = made(&from.places, Some(lock)).path;
    let Installed { _folder, places } = empty();
    put(&places.ledger().join("ledger.db"), "rows of the new host", 0o600);
    put(&places.secrets.join("worker.key"), "another key", 0o600);
    let staged = stage(&places, &archive, Some(&key), "0.1.7").unwrap();
    assert_eq!(staged.config, CONFIG);
    let answers = staged.answers.clone().unwrap();
    assert_eq!((answers.workers, answers.secrets.len()), (3, 0), "their originals are on the other host");
    assert_eq!(staged.secrets.len(), 2);
    assert_eq!(fs_err::read_to_string(&places.config).unwrap(), "# from the first apply\n", "not yet");
    for swap in &staged.swaps {
        let Action::Swap { from, path, .. } = swap else { panic!("{swap:?}") };
        let mode = fs_err::metadata(from).unwrap().permissions().mode() & 0o777;
        let wanted = if *path == places.config { 0o640 } else { 0o600 };
        assert!(from.is_dir() && mode == 0o700 || mode == wanted, "{path} {mode:o}");
    }
    let befores = exchange(&staged.swaps);
    let text = |path: &Utf8Path| fs_err::read_to_string(path).unwrap();
    assert_eq!(text(&places.ledger().join("ledger.db")), "rows");
    assert_eq!(text(&blob_path(&places, BLOB)), BLOB);
    assert_eq!(text(&places.config), CONFIG);
    assert_eq!(text(&places.secrets.join("worker.key")), CANARY);
    assert_eq!(text(&places.data.join("admin.key")), CANARY);
    let mut host = RealHost::new().unwrap();
    for (swap, before) in staged.swaps.iter().zip(&befores).rev() {
        for _ in 0..2 {
            swap.revert(&mut host, before, None).unwrap();
        }
    }
    assert_eq!(text(&places.ledger().join("ledger.db")), "rows of the new host");
    assert_eq!(text(&places.secrets.join("worker.key")), "another key");
    assert!(!places.data.join("admin.key").exists());
    discard(&places);
    assert!(!places.etc.join(".restore").exists());
}

#[test]
fn what_does_not_fit_is_refused_before_anything_is_touched() {
    let from = installed();
    let (lock, _) = pair();
    let archive = made(&from.places, Some(lock)).path;
    let host = empty();
    let (_, other) = pair();
    assert!(matches!(stage(&host.places, &archive, Some(&other), "0.1.0"), Err(BackupError::Refused(_))));
    assert!(matches!(stage(&host.places, &archive, None, "1.0.0"), Err(BackupError::Refused(_))));
    let elsewhere = Places { data: host.places.data.join("deeper"), ..host.places.clone() };
    fs_err::create_dir_all(&elsewhere.data).unwrap();
    let refused = stage(&elsewhere, &archive, None, "0.1.0").unwrap_err();
    assert!(refused.to_string().contains("store.data_dir"), "{refused}");
    let nowhere = Places { data: "/nowhere/fettle".into(), ..host.places.clone() };
    assert!(stage(&nowhere, &archive, None, "0.1.0").unwrap_err().to_string().contains("apply"));
    assert!(!host.places.ledger().exists());
}

#[test]
fn a_backup_fits_releases_of_its_major_version_that_are_not_older() {
    for (backup, running) in [("0.1.0", "0.1.0"), ("0.1.0", "0.3.2"), ("1.2.3-rc.1", "1.2.3"), ("1.9.0", "1.10.0")] {
        fits(backup, running).unwrap();
    }
    for (backup, running) in
        [("0.2.0", "0.1.9"), ("1.0.0", "2.0.0"), ("2.0.0", "1.0.0"), ("x", "1.0.0"), ("1.0", "1.0.0")]
    {
        assert!(matches!(fits(backup, running), Err(BackupError::Refused(_))), "{backup} {running}");
    }
}

#[test]
fn a_ledger_that_leads_elsewhere_is_not_read_as_whoever_owns_what_it_leads_to() {
    let installed = installed();
    let places = &installed.places;
    let (ledger, elsewhere) = (places.ledger().join("ledger.db"), places.etc.join("elsewhere.db"));
    fs_err::rename(&ledger, &elsewhere).unwrap();
    fs_err::os::unix::fs::symlink(&elsewhere, &ledger).unwrap();
    let refused = places.snapshot(&places.backups).map(drop).unwrap_err().to_string();
    assert!(refused.contains("no plain file"), "{refused}");
}
