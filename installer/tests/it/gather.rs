use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::Clock as _;
use fettle_installer::facts::{
    Ask, Attempt, Files, HostFacts, JournalFacts, RealAsk, ReceiptFacts, Seen, Strength, Uname, Wanted, gather,
};
use fettle_runtime::environment::Environment;
use fettle_runtime::system::SystemClock;
use jiff::Timestamp;

/// Answers of a host that runs systemd.
struct FakeAsk {
    uid: u32,
}

impl Ask for FakeAsk {
    fn now(&self) -> Timestamp {
        "2026-11-20T09:30:00Z".parse().unwrap()
    }

    fn uid(&self) -> u32 {
        self.uid
    }

    fn uname(&self) -> Uname {
        Uname { release: "5.15.0-1063-nvidia".into(), machine: "x86_64".into() }
    }

    fn run(&self, program: &str, arguments: &[&str]) -> Result<String, String> {
        match (program, arguments) {
            ("systemctl", ["--version"]) => Ok("systemd 249 (249.11-0ubuntu3.16)\n+PAM +AUDIT\n".into()),
            ("systemctl", ["show", _, units @ ..]) => {
                assert!(units.contains(&"fettle-worker@07.service"), "{units:?}");
                Ok("Id=fettle-worker@07.service\nLoadState=loaded\nActiveState=active\nUnitFileState=enabled\nWatchdogUSec=30s\nNeedDaemonReload=no\n".into())
            }
            ("timedatectl", _) => Ok("NTPSynchronized=yes\n".into()),
            _ => Err(format!("the program {program} is not there")),
        }
    }

    fn namespaces(&self) -> Seen<Attempt> {
        Seen::Known(Attempt { ok: true, said: String::new() })
    }

    fn landlock_abi(&self) -> Seen<u32> {
        Seen::Known(1)
    }

    fn connect(&self, addresses: &[String]) -> Vec<Attempt> {
        addresses.iter().map(|address| Attempt { ok: false, said: format!("{address} refused") }).collect()
    }
}

struct Tree(tempfile::TempDir);

impl Tree {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    fn root(&self) -> &Utf8Path {
        Utf8Path::from_path(self.0.path()).unwrap()
    }

    fn at(&self, path: &str) -> Utf8PathBuf {
        self.root().join(path.trim_start_matches('/'))
    }

    fn put(&self, path: &str, text: &str) -> &Self {
        fs_err::create_dir_all(self.at(path).parent().unwrap()).unwrap();
        fs_err::write(self.at(path), text).unwrap();
        self
    }

    fn mode(&self, path: &str, mode: u32) {
        fs_err::set_permissions(self.at(path), std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn gather(&self) -> HostFacts {
        let environment =
            Environment::from_pairs([("HTTPS_PROXY", "http://me:hush@proxy.example:3128"), ("HOME", "/x")]);
        let wanted = Wanted { environment, reach: vec!["forge.example:443".into()], folders: Vec::new() };
        gather(&Files::below(self.root()), &FakeAsk { uid: 0 }, &wanted)
    }
}

/// A DGX A100 as far as files tell. The form of each is that of public reports; none was read from such a machine by us.
fn dgx() -> Tree {
    let tree = Tree::new();
    tree.put("/etc/os-release", "PRETTY_NAME=\"Ubuntu 22.04.5 LTS\"\nID=ubuntu\nVERSION_ID=\"22.04\"\nHOME_URL=\"https://www.ubuntu.com/\"\n")
        .put("/etc/dgx-release", "DGX_NAME=\"DGX Server\"\nDGX_SWBUILD_VERSION=\"6.1.0\"\nDGX_PLATFORM=\"DGX Server for DGX A100\"\nDGX_SERIAL_NUMBER=\"1573020000041\"\n\nDGX_OTA_VERSION=\"6.3.2\"\n")
        .put("/sys/class/dmi/id/product_name", "DGXA100 920-23687-2530-000\n")
        .put("/proc/1/comm", "systemd\n")
        .put("/proc/1/fd/3", "")
        .put("/proc/meminfo", "MemTotal:       1056291668 kB\nMemFree:        1 kB\nMemAvailable:   1040000000 kB\nSwapTotal:             0 kB\n")
        .put("/proc/devices", "Character devices:\n  1 mem\n195 nvidia-frontend\n507 nvidia-uvm\n510 nvidia-caps\n\nBlock devices:\n  7 loop\n")
        .put("/proc/driver/nvidia/version", "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.06  Wed Jun 26 06:46:07 UTC 2024\n")
        .put("/proc/driver/nvidia/gpus/0000:07:00.0/information", "Model: \t\t NVIDIA A100-SXM4-80GB\nIRQ:   \t\t 123\n")
        .put("/proc/driver/nvidia/gpus/0000:0f:00.0/information", "Model: \t\t NVIDIA A100-SXM4-80GB\n")
        .put("/proc/driver/nvidia/capabilities/gpu0/mig/gi1/access", "")
        .put("/proc/driver/nvidia/capabilities/gpu0/mig/gi2/access", "")
        .put("/proc/driver/nvidia/capabilities/mig/config", "")
        .put("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1", "")
        .put("/dev/nvidia0", "")
        .put("/dev/nvidiactl", "")
        .put("/dev/null", "")
        .put("/sys/bus/pci/devices/0000:07:00.0/vendor", "0x10de\n")
        .put("/sys/bus/pci/devices/0000:07:00.0/class", "0x030200\n")
        .put("/sys/bus/pci/devices/0000:c4:00.0/vendor", "0x10de\n")
        .put("/sys/bus/pci/devices/0000:c4:00.0/class", "0x068000\n")
        .put("/sys/bus/pci/devices/0000:00:02.0/vendor", "0x1a03\n")
        .put("/sys/bus/pci/devices/0000:00:02.0/class", "0x030000\n")
        .put("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io memory pids\n")
        .put("/proc/sys/kernel/hostname", "dgx-01\n")
        .put("/etc/resolv.conf", "# by hand\nnameserver 10.0.0.2\nsearch example\n")
        .put("/etc/passwd", "root:x:0:0:root:/root:/bin/bash\nfettle:x:995:995::/:/usr/sbin/nologin\n")
        .put("/etc/group", "root:x:0:\ndocker:x:998:ops,fettle-worker\n")
        .put("/etc/systemd/system/fettle.target.wants/fettle-worker@07.service", "")
        .put("/etc/apt/apt.conf.d/20auto-upgrades", "APT::Periodic::Update-Package-Lists \"1\";\nAPT::Periodic::Unattended-Upgrade \"1\";\n")
        .put("/usr/bin/unattended-upgrade", "");
    tree
}

#[test]
fn a_host_is_written_down_as_its_files_and_programs_tell() {
    let facts = dgx().gather();
    assert_eq!(facts.os_name().unwrap(), "DGX OS 6.3.2 on Ubuntu 22.04.5 LTS");
    assert_eq!(facts.system.systemd, Seen::Known(Some(249)));
    assert_eq!(facts.system.nixos, Seen::Known(false));
    assert_eq!(facts.system.container, Seen::Known(None));
    assert_eq!(facts.system.clock_synchronised, Seen::Known(true));
    assert_eq!(facts.memory.known().unwrap().total_bytes, 1_056_291_668 * 1024);
    let gpu = &facts.gpu;
    assert_eq!((gpu.on_bus.known(), gpu.switches.known()), (Some(&1), Some(&1)));
    assert_eq!(gpu.driver, Seen::Known(Some("535.183.06".into())));
    assert_eq!(gpu.models.known().unwrap(), &["NVIDIA A100-SXM4-80GB"; 2]);
    assert_eq!(gpu.classes.known().unwrap(), &["nvidia-frontend", "nvidia-uvm", "nvidia-caps"]);
    assert_eq!(gpu.nodes.known().unwrap(), &["nvidia0", "nvidiactl"]);
    assert_eq!(gpu.mig_instances, Seen::Known(2));
    assert_eq!(
        gpu.nvml.known().unwrap().as_deref(),
        Some(Utf8Path::new("/usr/lib/x86_64-linux-gnu/libnvidia-ml.so.1"))
    );
    assert_eq!(facts.network.resolvers.known().unwrap(), &["10.0.0.2"]);
    assert_eq!(facts.network.reach["forge.example:443"].said, "forge.example:443 refused");
    assert_eq!(facts.names.users.known().unwrap()["fettle"].uid, 995);
    assert_eq!(facts.names.groups.known().unwrap()["docker"].members, ["ops", "fettle-worker"]);
    assert_eq!(facts.unit("fettle-worker@07.service").unwrap().watchdog_s, 30);
    assert_eq!(facts.updates.automatic, Seen::Known(Some("unattended-upgrades".into())));
}

#[test]
fn no_secret_and_no_serial_number_is_written_down() {
    let tree = dgx();
    tree.put("/etc/fettle/fettle.toml", "[auth]\nworker_key_file = \"secrets/worker.key\"\n[[gateway.models]]\nname = \"coder\"\nbase_url = \"http://models.example/v1\"\n")
        .put("/etc/fettle/secrets/worker.key", "canary-4711-canary-4711\n")
        .put("/etc/fettle/secrets/old.key", "changeme\n");
    tree.mode("/etc/fettle/secrets/worker.key", 0o600);
    let facts = tree.gather();
    let text = serde_json::to_string(&facts).unwrap();
    for hidden in ["canary", "changeme", "1573020000041", "hush", "pssst"] {
        assert!(!text.contains(hidden), "{hidden}");
    }
    assert_eq!(facts.network.proxies["https_proxy"], "http://proxy.example:3128");
    let secrets = facts.secrets.known().unwrap();
    let key = &secrets[Utf8Path::new("/etc/fettle/secrets/worker.key")];
    assert_eq!((key.file.unwrap().mode, key.strength.known()), (0o600, Some(&Strength::Fine)));
    let old = &secrets[Utf8Path::new("/etc/fettle/secrets/old.key")];
    assert_eq!(old.strength, Seen::Known(Strength::Placeholder));
    let config = facts.config.known().unwrap().as_ref().unwrap();
    assert_eq!(config.plain_models, ["coder"]);
    // One that is refused is told of without what it holds.
    tree.put("/etc/fettle/fettle.toml", "[forge]\napi_url = \"https://user:pssst@forge.example/api\"\n");
    let facts = tree.gather();
    assert!(facts.config.known().is_none() && !serde_json::to_string(&facts).unwrap().contains("pssst"));
}

#[test]
fn an_empty_tree_is_a_host_of_which_little_is_known_and_nothing_is_made_up() {
    let facts = Tree::new().gather_quietly();
    assert!(facts.system.os.known().is_none());
    assert!(facts.memory.known().is_none());
    assert_eq!(facts.system.cgroup, Seen::Known(None));
    assert_eq!(facts.gpu.driver, Seen::Known(None));
    assert_eq!(facts.config, Seen::Known(None));
    assert_eq!(facts.installed.receipt, Seen::Known(ReceiptFacts::None));
}

impl Tree {
    /// Without asking programs.
    fn gather_quietly(&self) -> HostFacts {
        struct Mute;
        impl Ask for Mute {
            fn now(&self) -> Timestamp {
                Timestamp::UNIX_EPOCH
            }
            fn uid(&self) -> u32 {
                0
            }
            fn uname(&self) -> Uname {
                Uname { release: String::new(), machine: String::new() }
            }
            fn run(&self, program: &str, _: &[&str]) -> Result<String, String> {
                Err(format!("the program {program} is not there"))
            }
            fn namespaces(&self) -> Seen<Attempt> {
                Seen::unknown("not tried")
            }
            fn landlock_abi(&self) -> Seen<u32> {
                Seen::unknown("not tried")
            }
            fn connect(&self, _: &[String]) -> Vec<Attempt> {
                Vec::new()
            }
        }
        gather(&Files::below(self.root()), &Mute, &Wanted::default())
    }
}

#[test]
fn what_an_earlier_run_left_is_recognised() {
    let home = "/var/lib/fettle-installer";
    let begin = r#"{"sum":"x","record":"begin","run":{"id":"a","started":"2026-11-19T18:00:00Z"}}"#;
    for (journal, expected) in [
        (format!("{begin}\n"), JournalFacts::Unfinished("2026-11-19T18:00:00Z".into())),
        (format!("{begin}\n{{\"sum\":\"x\",\"record\":\"end\"}}\n"), JournalFacts::Ended),
        (format!("{begin}\n{{\"sum\":\"x\",\"record\":\"en"), JournalFacts::Unfinished("2026-11-19T18:00:00Z".into())),
    ] {
        let tree = Tree::new();
        tree.put(&format!("{home}/journal.jsonl"), &journal);
        assert_eq!(tree.gather_quietly().installed.journal, Seen::Known(expected));
    }
    let tree = Tree::new();
    tree.put(&format!("{home}/receipt.json"), r#"{"schema":7,"mode":"systemd","product":{"version":"2.0.0"},"generations":[{"n":1,"installed":"2026-11-01T12:00:00Z"}]}"#);
    let expected = ReceiptFacts::Present {
        schema: 7,
        version: "2.0.0".into(),
        mode: "systemd".into(),
        installed: Some("2026-11-01T12:00:00Z".parse().unwrap()),
    };
    assert_eq!(tree.gather_quietly().installed.receipt, Seen::Known(expected));
    let tree = Tree::new();
    tree.put(&format!("{home}/receipt.json"), "{\"schema\"");
    assert!(matches!(tree.gather_quietly().installed.receipt, Seen::Known(ReceiptFacts::Unreadable(_))));
}

#[test]
fn the_lock_of_another_installer_is_told_and_ones_own_is_not() {
    let own = std::process::id();
    for (holder, expected) in [(own + 1, Some(own + 1)), (own, None)] {
        let tree = Tree::new();
        tree.put("/var/lib/fettle-installer/lock", "");
        let inode = fs_err::metadata(tree.at("/var/lib/fettle-installer/lock")).unwrap().ino();
        tree.put("/proc/locks", &format!("1: FLOCK  ADVISORY  WRITE {holder} 00:01:{inode} 0 EOF\n"));
        assert_eq!(tree.gather_quietly().installed.lock, Seen::Known(expected));
    }
}

/// The kernel shows who holds a port; here this process does.
#[test]
fn this_very_host_is_gathered_in_time_and_a_port_is_given_to_its_process() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let before = SystemClock.now();
    let facts = gather(&Files::below("/"), &RealAsk, &Wanted::default());
    let took = SystemClock.now().duration_since(before);
    assert!(took.as_secs_f64() < 5.0, "{took}");
    let listeners = facts.listeners.known().unwrap();
    let found = listeners.iter().find(|one| one.port == port).unwrap();
    let process = found.process.known().unwrap();
    assert!(process.ends_with(&format!("(pid {})", std::process::id())), "{process}");
    assert_eq!(facts.system.arch.known().unwrap(), std::env::consts::ARCH);
    assert!(facts.memory.known().unwrap().total_bytes > 0);
    assert!(facts.disks.values().all(|disk| disk.known().is_some()), "{:?}", facts.disks);
}

#[test]
fn a_closed_door_is_connected_to_in_vain_and_says_why() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let open = listener.local_addr().unwrap().to_string();
    let closed = {
        let gone = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        gone.local_addr().unwrap().to_string()
    };
    let attempts = RealAsk.connect(&[open, closed]);
    assert!(attempts[0].ok, "{attempts:?}");
    assert!(!attempts[1].ok && !attempts[1].said.is_empty(), "{attempts:?}");
}
