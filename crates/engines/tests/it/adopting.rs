//! Engines that outlive their host, as units of systemd do. A script stands in for `systemctl`: it starts the same keeper from the
//! same folder, away from the host, and signals it.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use fettle_app::ports::serving::{Adopted, EngineHost, ExitClass, ProcessState};
use fettle_engines::record::{Folder, file_name};
use fettle_engines::settings::Launcher;
use fettle_fake_engine::{Behaviour, Fault};
use fettle_placement::id::{EngineId, RecipeId};
use fettle_placement::recipe::{EngineKind, Recipe};

use crate::hosts::{Home, Host, address, ask, kill, order, recipe, until};

const SYSTEMCTL: &str = r#"#!/bin/sh
home=$(dirname "$0")
verb=$1
for unit; do :; done
name=${unit#fettle-engine@}; name=${name%.service}
pid=$(cat "$home/units/$name" 2>/dev/null)
case $verb in
    start) setsid KEEPER keep "$home/engines/$name" </dev/null >/dev/null 2>&1 & echo $! >"$home/units/$name" ;;
    stop) [ -z "$pid" ] || kill -TERM "$pid" 2>/dev/null || : ;;
    kill) [ -z "$pid" ] || kill -KILL "$pid" 2>/dev/null || : ;;
    show) if [ -n "$pid" ] && kill -0 "$pid" 2>/dev/null; then echo active; else echo inactive; fi ;;
    list-units)
        for file in "$home"/units/*; do
            [ -e "$file" ] || continue
            if kill -0 "$(cat "$file")" 2>/dev/null; then echo "fettle-engine@${file##*/}.service loaded active running x"; fi
        done ;;
esac
"#;

fn home() -> Home {
    let mut home = Home::new();
    let systemctl = home.path().join("systemctl");
    fs_err::write(&systemctl, SYSTEMCTL.replace("KEEPER", env!("CARGO_BIN_EXE_fettle-engine-keeper"))).unwrap();
    fs_err::set_permissions(&systemctl, PermissionsExt::from_mode(0o755)).unwrap();
    fs_err::create_dir(home.path().join("units")).unwrap();
    home.launcher = Launcher::Systemd { systemctl };
    let behaviour =
        Behaviour { gpu: Some(home.gpu(1)), workers: 1, faults: vec![Fault::OrphanedWorkers], ..Behaviour::default() };
    home.engine("fake", &behaviour);
    home
}

/// A host with a ready engine has come and gone.
async fn left_behind(home: &Home) {
    let host = home.open().await;
    host.engines.start(order("m.1", 4, EngineKind::Command));
    host.ready("m.1").await;
    let record = folder(home);
    until(Duration::from_secs(60), "the record to say so", || record.record().unwrap().filter(|record| record.ready))
        .await;
    host.engines.close().await;
    assert_eq!(home.marked().len(), 2, "it goes on without its host");
}

fn folder(home: &Home) -> Folder {
    Folder::at(home.records().join(file_name(&EngineId::new("m.1"))))
}

async fn next(home: &Home, recipes: &[Recipe]) -> (Host, Vec<Adopted>) {
    let host = home.open_only();
    let adopted = host.engines.adopt(recipes).await.unwrap();
    (host, adopted)
}

#[tokio::test]
async fn an_engine_that_checks_out_goes_on() {
    let home = home();
    left_behind(&home).await;
    let before = home.marked();
    let recipe = recipe(EngineKind::Command);
    let (host, adopted) = next(&home, std::slice::from_ref(&recipe)).await;
    let ordered = order("m.1", 4, EngineKind::Command);
    assert_eq!(adopted, [Adopted { seat: ordered.seat, epoch: ordered.epoch, recipe }]);
    let ready = host.sees("m.1", "two processes", |one| one.pids == before).await;
    assert!(matches!(ready.state, ProcessState::Ready(_)));
    let body = r#"{"model": "m", "messages": [{"role": "user", "content": "still there"}]}"#;
    let (status, text) = ask(&address(&ready), "/v1/chat/completions", Some(body)).await;
    assert!(status == 200 && text.contains("still there"), "{text}");
    host.engines.stop(&ready.engine, ready.epoch);
    assert_eq!(host.gone("m.1").await.class, ExitClass::Asked);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_engine_whose_recipe_is_not_configured_any_more_is_ended() {
    let home = home();
    left_behind(&home).await;
    let other = Recipe { id: RecipeId::new("r2"), ..recipe(EngineKind::Command) };
    let (_host, adopted) = next(&home, &[other]).await;
    assert_eq!(adopted, []);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn an_engine_that_does_not_take_its_key_is_ended() {
    let home = home();
    left_behind(&home).await;
    let mut record = folder(&home).record().unwrap().unwrap();
    record.key = Some("another".to_owned());
    folder(&home).write_record(&record).unwrap();
    let (_host, adopted) = next(&home, &[recipe(EngineKind::Command)]).await;
    assert_eq!(adopted, []);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_record_of_an_earlier_boot_names_nobody() {
    let home = home();
    left_behind(&home).await;
    let mut record = folder(&home).record().unwrap().unwrap();
    record.boot = "another".to_owned();
    folder(&home).write_record(&record).unwrap();
    let (_host, adopted) = next(&home, &[recipe(EngineKind::Command)]).await;
    assert_eq!(adopted, []);
    // Not by that record, whose numbers mean nothing now, but because it says whose it is.
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn what_is_left_of_an_engine_that_died_meanwhile_is_ended() {
    let home = home();
    left_behind(&home).await;
    let kept = folder(&home).kept().unwrap().unwrap();
    kill(kept.keeper.pid);
    until(Duration::from_secs(60), "the first process to follow", || (home.marked().len() == 1).then_some(())).await;
    let (_host, adopted) = next(&home, &[recipe(EngineKind::Command)]).await;
    assert_eq!(adopted, []);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_unit_that_nobody_knows_is_stopped() {
    let home = home();
    left_behind(&home).await;
    // The record is lost, and with it all but the unit's name and the marker.
    fs_err::remove_file(folder(&home).path().join("record.json")).unwrap();
    let (host, adopted) = next(&home, &[recipe(EngineKind::Command)]).await;
    assert_eq!(adopted, []);
    home.becomes_empty(Duration::from_secs(5)).await;
    assert!(host.engines.orphans_ended() > 0);
}

#[tokio::test]
async fn a_unit_is_loaded_classified_and_ended_as_a_child_is() {
    let home = home();
    home.engine("fake", &Behaviour { faults: vec![Fault::OutOfMemory], ..Behaviour::default() });
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    assert_eq!(host.gone("m.1").await.class, ExitClass::OutOfMemory);
    home.engine("fake", &Behaviour { faults: vec![Fault::IgnoreTerm], ..Behaviour::default() });
    host.engines.start(order("m.1", 2, EngineKind::Command));
    let ready = host.ready("m.1").await;
    host.engines.stop(&ready.engine, ready.epoch);
    assert_eq!(host.gone("m.1").await.class, ExitClass::Asked);
    home.becomes_empty(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_next_life_of_an_engine_is_nobodys_remains() {
    let home = home();
    // What was left of the first life is looked for while the second begins.
    let systemctl = home.path().join("systemctl");
    let slow = fs_err::read_to_string(&systemctl).unwrap().replace("list-units)\n", "list-units)\n        sleep 0.5\n");
    fs_err::write(&systemctl, slow).unwrap();
    home.engine("fake", &Behaviour { faults: vec![Fault::OutOfMemory], ..Behaviour::default() });
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    host.gone("m.1").await;
    home.engine("fake", &Behaviour::default());
    tokio::time::sleep(Duration::from_millis(200)).await;
    host.engines.start(order("m.1", 2, EngineKind::Command));
    let ready = host.ready("m.1").await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(matches!(host.now()[0].state, ProcessState::Ready(_)), "{:?}", host.now());
    assert_eq!(host.engines.orphans_ended(), 0);
    host.engines.stop(&ready.engine, ready.epoch);
    host.gone("m.1").await;
}
