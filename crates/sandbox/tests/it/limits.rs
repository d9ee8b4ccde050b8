//! Commands that take too much, or do not want to end.

use std::time::Duration;

use fettle_app::ports::sandbox::{CommandEnd, KilledBy, Sandbox, SandboxLevel};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use crate::world::{PATIENCE, PYTHON, World, has_python, world, worlds};

const MIB: u64 = 1024 * 1024;
/// The contract: the whole tree is dead within this time.
const DEATH: Duration = Duration::from_secs(2);

/// Marks itself as started, and leaves daemons behind in sessions of their own, one of which closes everything.
fn daemons(marker: &str) -> String {
    let sleep = format!("sh -c \"trap '' TERM HUP INT; while :; do sleep 1; done\" {marker}");
    format!("(setsid {sleep} &) ; (setsid setsid {sleep} </dev/null >/dev/null 2>&1 &) ; echo > started")
}

#[tokio::test]
async fn daemons_die_with_the_command() {
    for world in worlds().await {
        let output = world.run(&world.shell(&daemons(&world.marker))).await;
        assert_eq!(output.end, CommandEnd::Exited(0));
        assert_eq!(world.survivors(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_command_over_its_time_is_ended_with_its_daemons() {
    for world in worlds().await {
        let mut command =
            world.shell(&format!("echo said; {}; trap '' TERM; while :; do sleep 1; done", daemons(&world.marker)));
        command.limits.time = Duration::from_millis(700);
        let output = world.run(&command).await;
        assert_eq!(output.end, CommandEnd::TimedOut);
        assert_eq!(output.output, b"said\n");
        assert!(output.took < command.limits.time + DEATH, "{:?}", output.took);
        assert_eq!(world.survivors(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_cancelled_command_is_ended_with_its_daemons() {
    for world in worlds().await {
        let command = world.shell(&format!("{}; sleep 1000", daemons(&world.marker)));
        let cancel = CancellationToken::new();
        let mut cancelled_at = Instant::now();
        let (output, ()) = tokio::join!(world.sandbox.run(&command, &cancel), async {
            world.until_started().await;
            cancelled_at = Instant::now();
            cancel.cancel();
        });
        assert_eq!(output.unwrap().end, CommandEnd::Cancelled);
        assert!(cancelled_at.elapsed() < DEATH);
        assert_eq!(world.survivors(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn a_dropped_run_leaves_nothing_behind() {
    for world in worlds().await {
        let command = world.shell(&format!("{}; sleep 1000", daemons(&world.marker)));
        let cancel = CancellationToken::new();
        tokio::select! {
            output = world.sandbox.run(&command, &cancel) => panic!("it ended by itself: {output:?}"),
            () = world.until_started() => {}
        }
        assert_eq!(world.survivors(), Vec::<String>::new());
        assert_eq!(fs_err::read_dir(world.workspace.with_file_name("scratch")).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn a_killed_helper_takes_the_sandbox_along() {
    let Some(world) = world(SandboxLevel::Full).await else { return };
    let command = world.shell(&format!("{}; sleep 1000", daemons(&world.marker)));
    let cancel = CancellationToken::new();
    let (output, ()) = tokio::join!(world.sandbox.run(&command, &cancel), async {
        world.until_started().await;
        for helper in helpers_of(&world.marker) {
            let killed = tokio::process::Command::new("kill").args(["-9", &helper]).status().await;
            assert!(killed.unwrap().success());
        }
    });
    assert!(output.is_err(), "{output:?}");
    world.until("died", || world.survivors().is_empty()).await;
}

/// The children of this process that are the outermost process of the sandbox with `marker` in a descendant's command line.
fn helpers_of(marker: &str) -> Vec<String> {
    let parent = |pid: &str| {
        let stat = fs_err::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let rest = stat.rsplit_once(") ")?.1.to_owned();
        rest.split(' ').nth(1).map(str::to_owned)
    };
    let pids = fs_err::read_dir("/proc").unwrap().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    let marked = pids.filter(|pid| {
        fs_err::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
    });
    let own = std::process::id().to_string();
    let mut helpers: Vec<String> = marked
        .filter_map(|pid| {
            let mut at = pid;
            loop {
                let above = parent(&at)?;
                match above.as_str() {
                    "0" | "1" => return None,
                    above_own if above_own == own => return Some(at),
                    _ => at = above,
                }
            }
        })
        .collect();
    helpers.sort();
    helpers.dedup();
    assert_eq!(helpers.len(), 1, "{helpers:?}");
    helpers
}

const PROCESSES: u32 = 60;
/// Process numbers beyond the limit that stay free for those which ended leaders of groups still hold.
const SLACK: usize = 32;

/// `None`, with a line on the output, where nothing but counting limits processes: there a bomb may take the host's numbers away
/// from everybody before it is ended.
async fn capped(level: SandboxLevel) -> Option<World> {
    let world = world(level).await?;
    let uncapped = world.sandbox.report().notes.iter().find(|note| note.contains("they are only counted"));
    if let Some(uncapped) = uncapped {
        println!("SKIPPED at level {}: {uncapped}", level.name());
        return None;
    }
    Some(world)
}

async fn a_fork_bomb_is_held_and_ended(world: &World) {
    let mut command = world.shell("bomb() { bomb | bomb & bomb; }; bomb");
    command.limits.processes = PROCESSES;
    command.limits.time = Duration::from_secs(2);
    let mut most = 0;
    let exploding = world.run(&command);
    tokio::pin!(exploding);
    let output = timeout(PATIENCE, async {
        loop {
            tokio::select! {
                output = &mut exploding => break output,
                () = tokio::time::sleep(Duration::from_millis(20)) => most = most.max(world.survivors().len()),
            }
        }
    });
    let output = output.await.expect("the bomb is ended in time");
    assert!(!output.succeeded(), "{output:?}");
    assert!(output.took < command.limits.time + DEATH, "{:?}", output.took);
    assert!(most <= PROCESSES as usize + SLACK, "there were {most} processes");
    assert_eq!(world.survivors(), Vec::<String>::new());
}

#[tokio::test]
async fn a_fork_bomb_is_held_by_the_kernel_at_level_full() {
    if let Some(world) = capped(SandboxLevel::Full).await {
        a_fork_bomb_is_held_and_ended(&world).await;
    }
}

#[tokio::test]
async fn a_fork_bomb_of_an_ordinary_user_is_held_by_the_kernel_at_level_landlock() {
    if let Some(world) = capped(SandboxLevel::Landlock).await {
        a_fork_bomb_is_held_and_ended(&world).await;
    }
}

#[tokio::test]
async fn one_process_too_many_is_refused_and_the_others_go_on() {
    for level in [SandboxLevel::Full, SandboxLevel::Landlock] {
        let Some(world) = capped(level).await else { continue };
        // The shell gives up at the first refusal; more than this it must not start in any case.
        let mut command = world.shell("(for i in $(seq 200); do sleep 1000 & echo started; done); echo alive");
        command.limits.processes = PROCESSES;
        let output = world.run(&command).await;
        let text = String::from_utf8_lossy(&output.output);
        let started = text.matches("started").count();
        // At level landlock processes of the same user that begin meanwhile count too.
        let least = if level == SandboxLevel::Full { PROCESSES as usize - 5 } else { 1 };
        assert!((least..=PROCESSES as usize + SLACK).contains(&started), "{started} at level {}: {text}", level.name());
        assert!(text.contains("alive"), "at level {}: {text}", level.name());
    }
}

#[tokio::test]
async fn threads_count_as_processes() {
    let Some(world) = capped(SandboxLevel::Full).await else { return };
    if !has_python() {
        return;
    }
    fs_err::write(
        world.workspace.join("threads.py"),
        "import threading\n\
         stop = threading.Event()\n\
         count = 0\n\
         try:\n\
         \x20   while count < 400:\n\
         \x20       threading.Thread(target=stop.wait, daemon=True).start()\n\
         \x20       count += 1\n\
         except RuntimeError:\n\
         \x20   pass\n\
         print(count, flush=True)\n\
         stop.set()\n",
    )
    .unwrap();
    let mut command = world.shell(&format!("exec {PYTHON} threads.py"));
    command.limits.processes = PROCESSES;
    let output = world.run(&command).await;
    let text = String::from_utf8_lossy(&output.output);
    let count: usize = text.trim().parse().unwrap_or_else(|_| panic!("{text}"));
    assert!((PROCESSES as usize - 5..=PROCESSES as usize + SLACK).contains(&count), "{count}");
}

#[tokio::test]
async fn the_cap_of_a_sandbox_leaves_the_hosts_alone() {
    let before = fs_err::read_to_string("/proc/sys/kernel/pid_max").unwrap();
    let Some(world) = capped(SandboxLevel::Full).await else { return };
    world.succeed("true").await;
    assert_eq!(fs_err::read_to_string("/proc/sys/kernel/pid_max").unwrap(), before);
    world.fail("echo 4000000 > /proc/sys/kernel/pid_max").await;
}

#[tokio::test]
async fn a_memory_hog_is_killed() {
    for world in worlds().await {
        // `tail` keeps the last line, which here has no end.
        let mut command = world.shell("tail /dev/zero & sleep 1000");
        command.limits.memory_bytes = 200 * MIB;
        let output = world.run(&command).await;
        assert_eq!(output.end, CommandEnd::Killed(KilledBy::Memory));
        assert_eq!(world.survivors(), Vec::<String>::new());
    }
}

#[tokio::test]
async fn endless_output_is_cut_and_then_ended() {
    for world in worlds().await {
        let mut command = world.shell("echo first; seq 1 20000; echo last");
        command.limits.output_kept_bytes = 1000;
        let output = world.run(&command).await;
        let text = String::from_utf8(output.output).unwrap();
        assert!(
            output.truncated && text.starts_with("first\n") && text.ends_with("last\n") && text.len() < 1100,
            "{text}"
        );
        assert!(output.bytes_total > 100_000);

        let mut command = world.shell("exec yes");
        command.limits.output_killed_bytes = 4 * MIB;
        command.limits.output_kept_bytes = MIB;
        let output = world.run(&command).await;
        assert_eq!(output.end, CommandEnd::Killed(KilledBy::Output));
        assert!(output.output.len() as u64 <= MIB + 100);
    }
}

#[tokio::test]
async fn a_full_workspace_ends_the_command() {
    for world in worlds().await {
        let mut command = world.shell("head -c 40m /dev/zero > big; sleep 1000");
        command.limits.workspace_bytes = 20 * MIB;
        let output = world.run(&command).await;
        assert_eq!(output.end, CommandEnd::Killed(KilledBy::Disk));
        assert_eq!(world.survivors(), Vec::<String>::new());
        // What is too large already may still be made smaller.
        let output = world
            .run(&{
                let mut c = world.shell("sleep 0.6; rm big");
                c.limits = command.limits;
                c
            })
            .await;
        assert_eq!(output.end, CommandEnd::Exited(0));
    }
}

#[tokio::test]
async fn temporary_files_have_a_limit_of_their_own() {
    for world in worlds().await {
        let mut command = world.shell("head -c 40m /dev/zero > $TMPDIR/big && sleep 1000");
        command.limits.temporary_bytes = 20 * MIB;
        let output = world.run(&command).await;
        match world.level {
            SandboxLevel::Full => assert_eq!(output.end, CommandEnd::Exited(1)),
            SandboxLevel::Landlock => assert_eq!(output.end, CommandEnd::Killed(KilledBy::Disk)),
        }
    }
}

#[tokio::test]
async fn open_files_are_limited() {
    for world in worlds().await {
        let mut command = world.shell("ulimit -n; ulimit -c");
        command.limits.open_files = 77;
        assert_eq!(world.run(&command).await.output, b"77\n0\n");
    }
}
