//! What a command sees and what it cannot reach.

use camino::Utf8PathBuf;
use fettle_app::ports::sandbox::{Access, CommandEnd, Mount, Sandbox, SandboxError, SandboxLevel};
use fettle_sandbox::ProcessSandbox;
use tokio_util::sync::CancellationToken;

use crate::world::{options, world, worlds};

#[tokio::test]
async fn a_command_reads_and_writes_the_workspace_and_prints_in_order() {
    for world in worlds().await {
        fs_err::create_dir(world.workspace.join("folder")).unwrap();
        fs_err::write(world.workspace.join("folder/in"), "text").unwrap();
        let mut command = world.shell("cat in; echo; echo error >&2; echo last; pwd; cp in ../out; exit 3");
        command.cwd = "folder".into();
        let output = world.run(&command).await;
        let inside = world.sandbox.workspace_inside(&world.workspace).join("folder");
        assert_eq!(String::from_utf8(output.output).unwrap(), format!("text\nerror\nlast\n{inside}\n"));
        assert_eq!(output.end, CommandEnd::Exited(3));
        assert_eq!(fs_err::read_to_string(world.workspace.join("out")).unwrap(), "text");
    }
}

#[tokio::test]
async fn the_environment_is_what_was_given_and_the_private_folders() {
    for world in worlds().await {
        let mut command = world.command(&["env"]);
        command.env.insert("GIVEN".to_owned(), "a b=c".to_owned());
        let output = world.run(&command).await;
        let text = String::from_utf8(output.output).unwrap();
        let (private, plain): (Vec<_>, Vec<_>) =
            text.lines().partition(|line| line.starts_with("HOME=") || line.starts_with("TMPDIR="));
        assert_eq!(plain, ["GIVEN=a b=c", "PATH=/usr/local/bin:/usr/bin:/bin"]);
        assert_eq!(private.len(), 2, "{text}");
    }
}

#[tokio::test]
async fn the_private_folders_are_empty_writable_and_gone_afterwards() {
    for world in worlds().await {
        let script = "ls -A $HOME $TMPDIR | grep -v : ; echo x > $HOME/a && echo x > $TMPDIR/b && mkdir -m 0 $TMPDIR/locked && ls $HOME $TMPDIR";
        let first = world.succeed(script).await;
        let again = world.succeed(script).await;
        assert_eq!(first.matches("locked").count(), 1, "{first}");
        assert_eq!(again.matches("locked").count(), 1, "{again}");
        let scratch = world.workspace.with_file_name("scratch");
        assert_eq!(fs_err::read_dir(scratch).unwrap().count(), 0);
    }
}

#[tokio::test]
async fn no_secret_of_the_worker_can_be_read() {
    // Cargo sets this variable for the test process, which stands for the worker here.
    const CANARY: &str = "CARGO_MANIFEST_DIR=";
    let own = fs_err::read("/proc/self/environ").unwrap();
    assert!(String::from_utf8_lossy(&own).contains(CANARY), "the canary is missing, so this test would prove nothing");
    for world in worlds().await {
        let secret = world.outside.join("secret");
        fs_err::write(&secret, "canary-in-a-file").unwrap();
        fs_err::os::unix::fs::symlink(&secret, world.workspace.join("link")).unwrap();
        let pid = std::process::id();
        let script = format!(
            "cat {secret} link ../outside/secret /etc/shadow; cat /proc/1/environ /proc/{pid}/environ /proc/*/environ; \
             cat /proc/*/root/{secret} /proc/{pid}/cwd/Cargo.toml; ls {} {}; true",
            world.outside,
            env!("CARGO_MANIFEST_DIR"),
        );
        let text = world.succeed(&script).await;
        assert!(!text.contains(CANARY), "{text}");
        assert!(!text.contains("canary-in-a-file"), "{text}");
        assert!(!text.contains("root:"), "{text}");
        assert!(!text.lines().any(|line| line == "secret" || line == "Cargo.toml"), "{text}");
    }
}

#[tokio::test]
async fn nothing_outside_the_workspace_can_be_written() {
    for world in worlds().await {
        let target = world.outside.join("file");
        fs_err::write(&target, "before").unwrap();
        fs_err::os::unix::fs::symlink(&target, world.workspace.join("link")).unwrap();
        fs_err::os::unix::fs::symlink(&world.outside, world.workspace.join("folder")).unwrap();
        let script = format!(
            "echo after > link; echo after > {target}; echo new > folder/new; truncate -s 0 link; rm -f folder/file; \
             mv {target} stolen; ln {target} hard; echo x > /usr/bin/evil; echo x > /etc/evil; echo x > /evil; \
             echo x > /proc/sys/kernel/core_pattern; true"
        );
        world.succeed(&script).await;
        assert_eq!(fs_err::read_to_string(&target).unwrap(), "before");
        assert_eq!(fs_err::read_dir(&world.outside).unwrap().count(), 1);
        for evil in ["/usr/bin/evil", "/etc/evil", "/evil"] {
            assert!(!Utf8PathBuf::from(evil).exists());
        }
    }
}

#[tokio::test]
async fn a_read_only_workspace_stays_as_it_is() {
    for world in worlds().await {
        fs_err::write(world.workspace.join("file"), "before").unwrap();
        let mut command =
            world.shell("cat file; echo after > file; echo new > new; rm -f file; mkdir folder; chmod 777 file; true");
        command.workspace_access = Access::ReadOnly;
        let output = world.run(&command).await;
        assert!(output.output.starts_with(b"before"));
        assert_eq!(fs_err::read_to_string(world.workspace.join("file")).unwrap(), "before");
        assert_eq!(fs_err::read_dir(&world.workspace).unwrap().count(), 1);
    }
}

#[tokio::test]
async fn mounts_appear_where_they_should_with_the_access_they_should() {
    for world in worlds().await {
        let [cache, out] = ["cache", "out"].map(|name| world.outside.join(name));
        for folder in [&cache, &out] {
            fs_err::create_dir(folder).unwrap();
            fs_err::write(folder.join("file"), "content").unwrap();
        }
        let moved = world.level == SandboxLevel::Full;
        let (cache_inside, out_inside) = if moved {
            ("/opt/cache".into(), world.sandbox.workspace_inside(&world.workspace).join("deep/out"))
        } else {
            (cache.clone(), out.clone())
        };
        let mut command = world.shell(&format!(
            "cat {cache_inside}/file && ! (echo x > {cache_inside}/new) && cat {out_inside}/file && echo new > {out_inside}/new"
        ));
        command.mounts = vec![
            Mount { host: cache.clone(), inside: cache_inside, access: Access::ReadOnly },
            Mount { host: out.clone(), inside: out_inside, access: Access::ReadWrite },
        ];
        let output = world.run(&command).await;
        assert_eq!(output.end, CommandEnd::Exited(0), "{}", String::from_utf8_lossy(&output.output));
        assert!(!cache.join("new").exists());
        assert_eq!(fs_err::read_to_string(out.join("new")).unwrap(), "new\n");
    }
}

#[tokio::test]
async fn a_mount_point_never_leads_through_a_link_of_the_workspace() {
    let Some(world) = world(SandboxLevel::Full).await else { return };
    for target in [world.outside.as_str(), "/.old/tmp"] {
        let link = world.workspace.join("link");
        fs_err::os::unix::fs::symlink(target, &link).unwrap();
        let mut command = world.shell("true");
        let inside = world.sandbox.workspace_inside(&world.workspace).join("link/made");
        command.mounts = vec![Mount { host: world.outside.clone(), inside, access: Access::ReadWrite }];
        let refused = world.sandbox.run(&command, &CancellationToken::new()).await;
        assert!(matches!(&refused, Err(SandboxError::Invalid(why)) if why.contains("is a symlink")), "{refused:?}");
        assert_eq!(fs_err::read_dir(&world.outside).unwrap().count(), 0);
        fs_err::remove_file(&link).unwrap();
    }
}

#[tokio::test]
async fn a_command_has_no_capability_and_gets_none() {
    let Some(world) = world(SandboxLevel::Full).await else { return };
    let text = world
        .succeed("grep -E '^(Cap|NoNewPrivs|Seccomp:|Groups)' /proc/self/status; id -u; cat /proc/sys/kernel/hostname")
        .await;
    for line in text.lines().filter(|line| line.starts_with("Cap")) {
        assert!(line.ends_with("0000000000000000"), "{text}");
    }
    assert!(text.contains("NoNewPrivs:\t1") && text.contains("Seccomp:\t2"), "{text}");
    assert!(text.ends_with("1000\nsandbox\n"), "{text}");
}

#[tokio::test]
async fn new_namespaces_and_mounts_are_refused() {
    for world in worlds().await {
        for script in
            ["unshare -U true", "unshare -n true", "unshare -m true", "mount -t tmpfs none .", "chroot . true"]
        {
            world.fail(script).await;
        }
    }
}

#[tokio::test]
async fn a_command_inherits_no_descriptor_and_no_input() {
    let world = worlds().await;
    for world in world {
        let script = "for i in 3 4 5 6 7 8 9; do (eval \": <&$i\") 2>/dev/null && echo open $i; done; cat; echo end";
        assert_eq!(world.succeed(script).await, "end\n");
    }
}

#[tokio::test]
async fn other_processes_can_be_neither_seen_nor_signalled() {
    for world in worlds().await {
        let pid = std::process::id();
        world.fail(&format!("kill -0 {pid}")).await;
        world.fail(&format!("cat /proc/{pid}/cmdline")).await;
        if world.level == SandboxLevel::Full {
            let seen = world.succeed("ls /proc | grep -c '^[0-9]'").await;
            assert!(seen.trim().parse::<u32>().unwrap() <= 5, "{seen}");
            // The init of the sandbox reports how the command ended, so the command must have no power over it.
            world
                .succeed("kill -9 1; kill -9 1; ! cat /proc/1/maps && ! readlink /proc/1/fd/0 && ! cat /proc/1/fd/0")
                .await;
        }
    }
}

#[tokio::test]
async fn a_program_that_is_missing_ends_as_in_a_shell() {
    for world in worlds().await {
        let output = world.run(&world.command(&["no-such-program"])).await;
        assert_eq!(output.end, CommandEnd::Exited(127));
        assert!(String::from_utf8_lossy(&output.output).starts_with("no-such-program: No such file"));
        let output = world.run(&world.shell("kill -SEGV $$")).await;
        assert_eq!(output.end, CommandEnd::Signalled(11));
    }
}

#[tokio::test]
async fn requests_without_sense_are_the_callers_fault() {
    for world in worlds().await {
        let mut climbing = world.shell("true");
        climbing.cwd = "../outside".into();
        let mut missing = world.shell("true");
        missing.cwd = "missing".into();
        let mut nowhere = world.shell("true");
        nowhere.workspace = world.outside.join("missing");
        let mut covering = world.shell("true");
        covering.mounts =
            vec![Mount { host: world.outside.clone(), inside: "/proc/fake".into(), access: Access::ReadOnly }];
        for command in [world.command(&[]), climbing, missing, nowhere, covering] {
            let refused = world.sandbox.run(&command, &CancellationToken::new()).await;
            assert!(matches!(refused, Err(SandboxError::Invalid(_))), "{command:?}: {refused:?}");
        }
    }
}

#[tokio::test]
async fn a_level_that_cannot_be_had_is_refused_and_not_replaced() {
    let Some(world) = world(SandboxLevel::Landlock).await else { return };
    let mut wanted = options(SandboxLevel::Full, world.outside.join("scratch"));
    wanted.max_level = SandboxLevel::Landlock;
    let refused = ProcessSandbox::probe(wanted).await;
    assert!(matches!(&refused, Err(SandboxError::Unavailable(why)) if why.contains("full is required")), "{refused:?}");
}
