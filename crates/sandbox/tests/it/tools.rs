//! Real tools in the sandbox.

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::sandbox::{Access, CommandEnd, Mount};

use crate::world::worlds;

#[tokio::test]
async fn cargo_builds_and_runs_a_program() {
    let sysroot = match tokio::process::Command::new("rustc").args(["--print", "sysroot"]).output().await {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            println!("SKIPPED: this user has no rustc");
            return;
        }
        sysroot => sysroot.unwrap(),
    };
    let sysroot = Utf8PathBuf::from(String::from_utf8(sysroot.stdout).unwrap().trim());
    assert!(sysroot.join("bin/cargo").exists(), "the toolchain that runs this test has its cargo in {sysroot}");
    for world in worlds().await {
        write(&world.workspace, "Cargo.toml", "[package]\nname = \"hello\"\nversion = \"0.1.0\"\nedition = \"2024\"\n");
        write(&world.workspace, "src/main.rs", "fn main() { println!(\"hello from {}\", std::env::args().count()) }\n");
        let mut command = world.command(&["cargo", "run", "--quiet", "--offline"]);
        command.mounts = vec![Mount { host: sysroot.clone(), inside: sysroot.clone(), access: Access::ReadOnly }];
        command.env.insert("PATH".to_owned(), format!("{sysroot}/bin:/usr/bin:/bin"));
        let output = world.run(&command).await;
        let text = String::from_utf8_lossy(&output.output);
        assert_eq!((output.end, &*text), (CommandEnd::Exited(0), "hello from 1\n"), "at level {}", world.level.name());
    }
}

fn write(workspace: &Utf8Path, path: &str, text: &str) {
    let path = workspace.join(path);
    fs_err::create_dir_all(path.parent().unwrap()).unwrap();
    fs_err::write(path, text).unwrap();
}
