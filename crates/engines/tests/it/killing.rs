//! kill -9 of everybody, at any moment: nothing is left five seconds later, or there is a record that finds it.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use fettle_app::ports::serving::EngineHost;
use fettle_engines::record::{Folder, file_name};
use fettle_engines::table::{MARKER, MARKER_HOME};
use fettle_fake_engine::{Behaviour, Fault};
use fettle_placement::id::EngineId;
use fettle_placement::quantity::Millis;
use fettle_placement::recipe::EngineKind;

use crate::hosts::{Home, Host, kill, order, until};

/// What nobody may need longer than to be rid of an engine.
const RID: Duration = Duration::from_secs(5);
/// In the environment of a host that is a process of its own.
const HOME: &str = "FETTLE_TEST_HOME";

fn stubborn(home: &Home) -> Behaviour {
    let faults = vec![Fault::OrphanedWorkers, Fault::DetachedWorkers, Fault::IgnoreTerm];
    Behaviour { gpu: Some(home.gpu(1 << 30)), workers: 2, faults, ..Behaviour::default() }
}

async fn with_engine() -> (Home, Host) {
    let home = Home::new();
    home.engine("fake", &stubborn(&home));
    let host = home.open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    host.ready("m.1").await;
    host.sees("m.1", "three processes", |one| one.pids.len() == 3).await;
    (home, host)
}

fn keeper_of(home: &Home) -> fettle_engines::record::Kept {
    let folder = Folder::at(home.records().join(file_name(&EngineId::new("m.1"))));
    folder.kept().unwrap().unwrap()
}

#[tokio::test]
async fn of_an_engine_whose_first_process_is_killed_nothing_is_left() {
    let (home, host) = with_engine().await;
    kill(keeper_of(&home).engine.unwrap().pid);
    home.becomes_empty(RID).await;
    assert_eq!(host.gone("m.1").await.why, "it was ended by signal 9");
}

#[tokio::test]
async fn of_an_engine_whose_keeper_is_killed_nothing_is_left() {
    let (home, host) = with_engine().await;
    kill(keeper_of(&home).keeper.pid);
    home.becomes_empty(RID).await;
    host.gone("m.1").await;
}

#[tokio::test]
async fn a_worker_that_is_killed_is_told_as_gone() {
    let (home, host) = with_engine().await;
    let first = keeper_of(&home).engine.unwrap().pid;
    let worker = host.now()[0].pids.iter().copied().find(|pid| *pid != first).unwrap();
    kill(worker);
    let seen = host.sees("m.1", "two processes", |one| one.pids.len() == 2).await;
    assert!(!seen.pids.contains(&worker));
}

/// A host that is a process of its own, so that it can be killed.
struct Supervisor(Child);

impl Supervisor {
    fn start(home: &Home) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["--exact", "--ignored", "--nocapture", "killing::role_of_a_host"])
            .env(HOME, home.path())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Self(command.spawn().unwrap())
    }

    fn kill(mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

#[tokio::test]
#[ignore = "other tests start it, as a process that they can kill"]
async fn role_of_a_host() {
    let Some((_, path)) = std::env::vars().find(|(name, _)| name == HOME) else { return };
    let host = Home::at(path.into()).open().await;
    host.engines.start(order("m.1", 1, EngineKind::Command));
    std::future::pending::<()>().await;
}

#[tokio::test]
async fn of_a_host_that_is_killed_nothing_is_left() {
    let home = Home::new();
    home.engine("fake", &stubborn(&home));
    let supervisor = Supervisor::start(&home);
    until(Duration::from_secs(60), "all three processes", || (home.held().0.len() == 3).then_some(())).await;
    supervisor.kill();
    until(RID, "nothing to be left", || (home.held().0.is_empty() && home.marked().is_empty()).then_some(())).await;
    // Its record names nobody, and goes with the next start.
    assert_eq!(home.folders(), 1);
    let _host = home.open().await;
    home.becomes_empty(RID).await;
}

#[tokio::test]
async fn what_host_and_keeper_leave_behind_is_found_by_the_next_host() {
    let home = Home::new();
    home.engine("fake", &stubborn(&home));
    let supervisor = Supervisor::start(&home);
    until(Duration::from_secs(60), "all three processes", || (home.held().0.len() == 3).then_some(())).await;
    let keeper = keeper_of(&home).keeper.pid;
    // The host first, and the keeper before it hears of it.
    let stop = rustix::process::Pid::from_raw(i32::try_from(keeper).unwrap()).unwrap();
    rustix::process::kill_process(stop, rustix::process::Signal::STOP).unwrap();
    supervisor.kill();
    kill(keeper);
    until(RID, "the first process to follow its keeper", || (home.held().0.len() == 2).then_some(())).await;
    let _host = home.open().await;
    home.becomes_empty(RID).await;
}

#[tokio::test]
async fn a_host_may_be_killed_at_any_moment_of_a_start() {
    let home = Home::new();
    home.engine("fake", &stubborn(&home));
    for step in 0..12 {
        let supervisor = Supervisor::start(&home);
        // From the first sign of the record on, a little later each time; the lock comes before.
        until(Duration::from_secs(60), "the host", || home.records().join("lock").exists().then_some(())).await;
        tokio::time::sleep(Duration::from_millis(step * 7)).await;
        supervisor.kill();
        let host = home.open().await;
        home.becomes_empty(RID).await;
        host.engines.close().await;
        drop(host);
        fs_err::remove_file(home.records().join("lock")).unwrap();
    }
}

#[tokio::test]
async fn orphans_are_ended_and_what_is_foreign_never_is() {
    let mut home = Home::new();
    home.limits.sweep = Millis::new(50);
    let records = home.records();
    let sleep = |engine: &str, of: &str| {
        Command::new("sleep").arg("600").env(MARKER, engine).env(MARKER_HOME, of).spawn().unwrap()
    };
    let mut orphan = sleep("m.1:1", records.as_str());
    let mut foreign = [sleep("m.1:1", "/somebody/else"), Command::new("sleep").arg("600").spawn().unwrap()];
    let host = home.open().await;
    orphan.wait().unwrap();
    assert_eq!(host.engines.orphans_ended(), 1);
    // And those that turn up later, also of an older life of an engine that is there.
    home.engine("fake", &Behaviour::default());
    host.engines.start(order("m.1", 2, EngineKind::Command));
    let ready = host.ready("m.1").await;
    let mut late = sleep("m.1:1", records.as_str());
    until(Duration::from_secs(60), "the sweep", || late.try_wait().unwrap()).await;
    assert_eq!(host.engines.orphans_ended(), 2);
    assert_eq!(host.now()[0].pids, ready.pids);
    for process in &mut foreign {
        assert!(process.try_wait().unwrap().is_none());
        process.kill().unwrap();
        process.wait().unwrap();
    }
}
