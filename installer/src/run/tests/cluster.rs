//! The same for a cluster: k3s, helm and what they hold are in memory, and every change to them can be the last one.

use super::*;
use crate::answers::SecretFrom;
use crate::host::Entry;
use crate::k3s::bundle::Bundle;
use crate::k3s::layout::{DATA, HELM, K3S, KUBECONFIG, VALUES};
use crate::k3s::{Facts as ClusterFacts, plan};

const SECRET_VALUE: &str = "of-the-operator-and-of-nobody-else";
const SECRET_FILE: &str = "/srv/keys/app.pem";

/// A bundle as it lies on the host, with programs that say which version they are.
fn bundle(host: &mut FakeHost, version: &str) -> (Release, Bundle) {
    let release = release(host, version);
    let folder = format!("/srv/bundle-{version}");
    let mut sums = String::new();
    for file in [
        "k3s/k3s",
        "k3s/k3s-airgap-images.tar.zst",
        "k3s/helm",
        "charts/fettle.tgz",
        "charts/cert-manager.tgz",
        "charts/keda.tgz",
        "charts/nvidia-device-plugin.tgz",
        "images/fettle.tar",
        "images/others.tar",
    ] {
        // Those of others do not change with each of our releases, but for k3s itself.
        let text = match file {
            "k3s/k3s" | "charts/fettle.tgz" | "images/fettle.tar" | "images/others.tar" => format!("{file} {version}"),
            _ => file.to_owned(),
        };
        host.put(&format!("{folder}/{file}"), &text, 0o644);
        sums.push_str(&format!("{}  {file}\n", sha256(text.as_bytes())));
    }
    host.put(&format!("{folder}/SHA256SUMS"), &sums, 0o644);
    let bundle = Bundle::read(host, &folder).unwrap();
    (release, bundle)
}

fn answers(host: &FakeHost, bundle: &Bundle, more: &str) -> Answers {
    let sums = host.text(&format!("{}/SHA256SUMS", bundle.source())).unwrap();
    Answers::parse(&format!(
        "workers = 3\n{more}\n[settings.forge]\napp_id = 7\napp_key_file = 'secrets/app.pem'\n[secrets]\n'app.pem' = '{SECRET_FILE}'\n\
         [k3s]\nhost = 'fettle.example.org'\nsource = '{}'\n[k3s.sha256]\nSHA256SUMS = '{}'\n",
        bundle.source(),
        sha256(sums.as_bytes())
    ))
    .unwrap()
}

fn facts() -> ClusterFacts {
    ClusterFacts { arch: "x86_64".to_owned(), nvidia: true, ..ClusterFacts::default() }
}

fn machine() -> FakeHost {
    let mut host = FakeHost::fresh();
    host.put(SECRET_FILE, SECRET_VALUE, 0o600);
    for (name, value) in
        [("kernel/panic", "0"), ("kernel/panic_on_oops", "0"), ("vm/overcommit_memory", "0"), ("vm/panic_on_oom", "0")]
    {
        host.put(&format!("/proc/sys/{name}"), &format!("{value}\n"), 0o644);
    }
    host
}

fn steps(host: &FakeHost, release: &Release, bundle: &Bundle, answers: &Answers) -> (Vec<Step>, Product) {
    let plan = plan(release, bundle, &facts(), answers);
    assert_eq!(plan.refusals, Vec::<String>::new());
    (settled(host, &plan).steps, plan.product)
}

fn apply(
    host: &mut FakeHost,
    release: &Release,
    bundle: &Bundle,
    answers: &Answers,
) -> Option<Result<Outcome, RunError>> {
    // k3s writes it when it starts; helm is not asked before.
    let (steps, product) = steps(host, release, bundle, answers);
    let run = run(Purpose::Apply, product, steps);
    process(host, |host, runner| runner.start(host, run))
}

struct World {
    start: FakeHost,
    wanted: FakeHost,
    release: Release,
    bundle: Bundle,
    answers: Answers,
}

fn world() -> World {
    let mut start = machine();
    let (release, bundle) = bundle(&mut start, "1.0.0");
    let answers = answers(&start, &bundle, "");
    let mut wanted = start.clone();
    assert_eq!(apply(&mut wanted, &release, &bundle, &answers).unwrap().unwrap(), Outcome::Done);
    World { start, wanted, release, bundle, answers }
}

#[test]
fn a_cluster_is_made_in_order_and_a_second_apply_has_nothing_to_do() {
    let World { wanted, release, bundle, answers, .. } = world();
    let cluster = &wanted.facts.cluster;
    assert_eq!(
        cluster.charts.keys().map(String::as_str).collect::<Vec<_>>(),
        ["cert-manager", "keda", "nvidia-device-plugin", "traefik"]
    );
    assert!(cluster.release.is_some() && wanted.unit("k3s.service").unwrap().enabled);
    let calls: Vec<String> = wanted.calls.iter().map(|call| call[1..3.min(call.len())].join(" ")).collect();
    assert_eq!(calls, ["kubectl apply", "upgrade --install", "test fettle"]);
    assert_eq!(steps(&wanted, &release, &bundle, &answers).0, []);
}

#[test]
fn no_secret_is_among_arguments_or_values_or_in_the_journal() {
    let World { wanted, .. } = world();
    let told = wanted.calls.concat().join(" ");
    assert!(!told.contains(SECRET_VALUE), "{told}");
    use base64::Engine as _;
    let encoded = base64::engine::general_purpose::STANDARD.encode(SECRET_VALUE);
    assert!(wanted.facts.cluster.secrets["fettle"].contains(&encoded), "the cluster has it");
    for file in [VALUES, "/var/lib/fettle-installer/journal.jsonl", "/var/lib/fettle-installer/receipt.json"] {
        let text = wanted.text(file).unwrap();
        assert!(!text.contains(SECRET_VALUE) && !text.contains(&encoded), "{file}");
        assert!(!text.contains(&hex::encode([7; 32])), "{file} holds the word of the cluster");
    }
}

#[test]
fn an_installation_killed_before_any_change_is_finished_by_resume_or_leaves_nothing() {
    let World { mut start, wanted, release, bundle, answers } = world();
    // Killed, helm leaves a revision behind that keeps the next one out.
    start.killed_helm = true;
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(apply(host, &release, &bundle, &answers)),
        |change, host| {
            let mut forth = host.clone();
            match resume(&mut forth) {
                Some(outcome) => assert_eq!(outcome, Outcome::Done, "at change {change}"),
                None => assert_eq!(apply(&mut forth, &release, &bundle, &answers).unwrap().unwrap(), Outcome::Done),
            }
            same(&forth.without(HOME), &wanted.without(HOME), &format!("forth, at change {change}"));
            let mut back = host;
            if turn_back(&mut back).is_none() && Receipt::read(&back, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut back, true).unwrap().unwrap(), Outcome::Done);
            }
            same(&back.without(HOME), &start.without(HOME), &format!("back, at change {change}"));
        },
    );
}

#[test]
fn an_installation_that_is_refused_a_change_takes_itself_back() {
    let World { start, release, bundle, answers, .. } = world();
    at_each_change(
        &start,
        Fault::Refused,
        |host| drop(apply(host, &release, &bundle, &answers)),
        |change, mut host| {
            turn_back(&mut host);
            if Receipt::read(&host, &home().receipt()).unwrap().is_some() {
                assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
            }
            same(&host.without(HOME), &start.without(HOME), &format!("at change {change}"));
        },
    );
}

#[test]
fn an_upgrade_of_k3s_and_chart_killed_before_any_change_ends_as_the_new_or_the_old_release() {
    let World { wanted: mut start, release: old, bundle: old_bundle, answers: old_answers, .. } = world();
    let (release, bundle) = bundle(&mut start, "2.0.0");
    let answers = answers(&start, &bundle, "");
    let keys: Vec<String> =
        steps(&start, &release, &bundle, &answers).0.iter().map(|step| step.action().key()).collect();
    let place = |key: &str| keys.iter().position(|one| one == key).unwrap_or_else(|| panic!("{key}: {keys:?}"));
    assert!(place("restart:forth") < place("await:every node is ready"), "k3s is waited for when it was started anew");
    let mut wanted = start.clone();
    wanted.calls.clear();
    assert_eq!(apply(&mut wanted, &release, &bundle, &answers).unwrap().unwrap(), Outcome::Done);
    assert_eq!(steps(&wanted, &release, &bundle, &answers).0, []);
    let calls: Vec<&str> = wanted.calls.iter().map(|call| call[1].as_str()).collect();
    assert_eq!(calls, ["etcd-snapshot", "ctr", "ctr", "upgrade", "test"], "k3s first, then Fettle");
    at_each_change(
        &start,
        Fault::Killed,
        |host| drop(apply(host, &release, &bundle, &answers)),
        |change, host| {
            let mut forth = host.clone();
            if resume(&mut forth).is_none() {
                apply(&mut forth, &release, &bundle, &answers);
            }
            same(&forth.without(HOME), &wanted.without(HOME), &format!("forth, at change {change}"));
            let mut back = host;
            if turn_back(&mut back).is_some() {
                // What the last steps removed is got again out of the bundle.
                apply(&mut back, &old, &old_bundle, &old_answers);
                same(&back.without(HOME), &start.without(HOME), &format!("back, at change {change}"));
                assert_eq!(steps(&back, &old, &old_bundle, &old_answers).0, []);
            }
        },
    );
}

#[test]
fn a_release_whose_pods_do_not_get_ready_and_one_that_does_not_work_are_rolled_back() {
    let World { wanted: mut start, .. } = world();
    let (release, bundle) = bundle(&mut start, "2.0.0");
    let answers = answers(&start, &bundle, "");
    for (broken, smoking, why) in [(true, false, "timed out"), (false, true, "helm test")] {
        let mut host = start.clone();
        host.calls.clear();
        if broken {
            host.broken.insert("charts/fettle.tgz 2.0.0".to_owned());
        }
        if smoking {
            host.smoking.insert("cluster".to_owned());
        }
        let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
        assert!(matches!(&outcome, Outcome::Reverted { gate: true, reason } if reason.contains(why)), "{outcome:?}");
        same(&host.without(HOME), &start.without(HOME), why);
        assert!(host.calls.iter().any(|call| call[1] == "rollback" && call[3] == "1"), "{:?}", host.calls);
    }
}

#[test]
fn a_k3s_that_never_gets_ready_is_taken_back_without_asking_it_anything() {
    let World { start, release, bundle, answers, .. } = world();
    let mut host = start.clone();
    host.broken.insert("k3s/k3s 1.0.0".to_owned());
    let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
    assert!(
        matches!(&outcome, Outcome::Reverted { reason, .. } if reason.contains("every node is ready")),
        "{outcome:?}"
    );
    same(&host.without(HOME), &start.without(HOME), "");
    assert_eq!(host.calls, Vec::<Vec<String>>::new());
}

#[test]
fn an_uninstallation_killed_before_any_change_goes_on_and_keeps_data_unless_it_is_purged() {
    let World { start: fresh, wanted: start, release, bundle, answers } = world();
    for purge in [false, true] {
        at_each_change(
            &start,
            Fault::Killed,
            |host| drop(remove(host, purge)),
            |change, mut host| {
                if resume(&mut host).is_none()
                    && Receipt::read(&host, &home().receipt()).unwrap().is_some_and(|receipt| receipt.is_installed())
                {
                    assert_eq!(remove(&mut host, purge).unwrap().unwrap(), Outcome::Done);
                }
                assert!(!host.unit("k3s.service").unwrap().active, "at change {change}");
                assert_eq!(host.text(K3S), None, "at change {change}");
                assert_eq!(host.entry(DATA.into()).unwrap().is_absent(), purge, "at change {change}");
                if purge {
                    same(&host.without(HOME), &fresh.without(HOME), &format!("at change {change}"));
                } else {
                    assert!(host.text("/etc/fettle/secrets/k3s-token").is_some(), "at change {change}");
                }
            },
        );
    }
    let mut again = start.clone();
    assert_eq!(remove(&mut again, false).unwrap().unwrap(), Outcome::Done);
    let order: Vec<String> = again.calls[start.calls.len()..].iter().map(|call| call[1..].join(" ")).collect();
    let place =
        |what: &str| order.iter().position(|call| call.contains(what)).unwrap_or_else(|| panic!("{what}: {order:?}"));
    assert!(place("uninstall fettle") < place("delete helmchart keda"), "workers go before what scales them");
    assert!(place("delete helmchart keda") < place("delete helmchart cert-manager"));
    assert_eq!(
        apply(&mut again, &release, &bundle, &answers).unwrap().unwrap(),
        Outcome::Done,
        "it is installed again on its data"
    );
}

#[test]
fn a_new_value_of_a_secret_reaches_the_pods_and_comes_back_with_what_was_before() {
    let World { wanted: mut start, release, bundle, answers, .. } = world();
    start.put(SECRET_FILE, "another", 0o600);
    let mut host = start.clone();
    host.calls.clear();
    assert_eq!(apply(&mut host, &release, &bundle, &answers).unwrap().unwrap(), Outcome::Done);
    let calls: Vec<&str> = host.calls.iter().map(|call| call[1].as_str()).collect();
    assert_eq!(calls, ["etcd-snapshot", "kubectl", "upgrade", "test"]);
    assert_eq!(steps(&host, &release, &bundle, &answers).0, []);
    let mut host = start.clone();
    host.smoking.insert("cluster".to_owned());
    let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
    assert!(matches!(outcome, Outcome::Reverted { gate: true, .. }), "{outcome:?}");
    same(&host.without(HOME), &start.without(HOME), "");
}

/// At each time at which the API server is asked for the Secret it can be about to answer nothing.
#[test]
fn a_secret_of_which_the_cluster_says_nothing_is_neither_changed_nor_removed() {
    let World { wanted: mut start, release, bundle, answers, .. } = world();
    start.put(SECRET_FILE, "another", 0o600);
    for time in 1..=4 {
        let mut host = start.clone();
        host.smoking.insert("cluster".to_owned());
        host.deaf = Some(("kubectl get secret", time));
        let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
        assert!(matches!(outcome, Outcome::Reverted { .. }), "{outcome:?}");
        same(&host.without(HOME), &start.without(HOME), &format!("unanswered the {time}. time"));
        let said_so = format!("{outcome:?}").contains("does not say whether there is a Secret fettle in fettle");
        // The first answer is the planner's, who only finds that there may be something to do; the fourth is not asked for.
        assert_eq!(said_so, [2, 3].contains(&time), "{time}: {outcome:?}");
    }
}

/// A host whose /var/lib/kubelet is a disk of its own, and that has logs of an earlier cluster.
#[test]
fn what_was_there_before_the_pods_stays_when_a_cluster_or_a_node_is_taken_away() {
    for unit in ["k3s.service", "k3s-agent.service"] {
        let mut start = machine();
        for file in ["/var/lib/kubelet/config.yaml", "/var/log/pods/of_others/0.log", "/sys/class/net/eth0"] {
            start.put(file, "of others", 0o644);
        }
        start.put("/proc/self/mounts", "/dev/sda / ext4 rw 0 0\n/dev/sdb /var/lib/kubelet ext4 rw 0 0\n", 0o444);
        let (release, bundle) = bundle(&mut start, "1.0.0");
        let mut answers = answers(&start, &bundle, "");
        if unit == "k3s-agent.service" {
            answers.k3s.join = "https://10.0.0.1:6443".to_owned();
            answers.secrets = [("k3s-token".to_owned(), SecretFrom::File(SECRET_FILE.into()))].into();
        }
        let mut host = start.clone();
        let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
        assert_eq!(outcome, Outcome::Done);
        assert!(host.unit(unit).unwrap().active && host.text("/proc/self/mounts").unwrap().contains("tmpfs"));
        assert_eq!(steps(&host, &release, &bundle, &answers).0, [], "what pods have left since is no change");
        assert_eq!(remove(&mut host, true).unwrap().unwrap(), Outcome::Done);
        same(&host.without(HOME), &start.without(HOME), unit);
        let calls: Vec<String> = host.calls.iter().map(|call| call.join(" ")).collect();
        assert!(calls.contains(&"umount /var/lib/kubelet/pods/uid/volumes".to_owned()), "{calls:?}");
        assert!(calls.contains(&"ip link delete cni0".to_owned()), "{calls:?}");
    }
}

#[test]
fn a_secret_that_somebody_else_has_made_is_a_conflict_and_is_not_removed() {
    let World { start, release, bundle, answers, .. } = world();
    let mut host = start.clone();
    let (first, product) = steps(&host, &release, &bundle, &answers);
    let made = first.iter().position(|step| step.action().key() == "cluster-secret:fettle/fettle").unwrap();
    let run = run(Purpose::Apply, product, first[..made].to_vec());
    assert_eq!(process(&mut host, |host, runner| runner.start(host, run)).unwrap().unwrap(), Outcome::Done);
    host.facts.cluster.secrets.insert("fettle".to_owned(), "{}".to_owned());
    let plan = plan(&release, &bundle, &facts(), &answers);
    let receipt = Receipt::read(&host, &home().receipt()).unwrap();
    let settled = settle(&plan, &host, receipt.as_ref(), Foreign::Refuse).unwrap();
    assert!(settled.conflicts.iter().any(|(_, what)| what.contains("somebody else's")), "{settled:?}");
}

#[test]
fn a_file_that_is_not_the_one_that_was_vouched_for_is_put_nowhere() {
    let World { start, release, bundle, answers, .. } = world();
    let mut host = start.clone();
    host.put(&format!("{}/k3s/helm", bundle.source()), "k3s/heln", 0o644);
    assert!(bundle.verify(&host).unwrap_err().contains("k3s/helm"));
    let outcome = apply(&mut host, &release, &bundle, &answers).unwrap().unwrap();
    assert!(matches!(&outcome, Outcome::Reverted { reason, .. } if reason.contains("checksum")), "{outcome:?}");
    assert_eq!(host.text(HELM), None);
}

/// What is not the file that was asked for can be run by nobody, whenever the power goes; nor what is not compared yet.
#[test]
fn a_file_that_was_not_compared_yet_can_be_run_by_nobody() {
    let World { start, release, bundle, answers, .. } = world();
    let mut seen = 0;
    for damaged in [false, true] {
        let mut start = start.clone();
        if damaged {
            start.put(&format!("{}/k3s/k3s", bundle.source()), "of somebody else", 0o755);
        }
        at_each_change(
            &start,
            Fault::Killed,
            |host| drop(apply(host, &release, &bundle, &answers)),
            |change, host| {
                let staged = host.entry("/usr/local/bin/.k3s.unverified".into()).unwrap();
                let Entry::File { sha256: now, attrs } = staged else { return };
                seen += 1;
                let is_compared = now == sha256(b"k3s/k3s 1.0.0") && attrs.mode == 0o755;
                assert!(attrs.mode == 0o600 || (is_compared && !damaged), "at change {change}: {attrs:?}");
            },
        );
    }
    assert!(seen >= 3, "{seen}");
}

#[test]
fn a_k3s_binary_that_somebody_else_has_put_there_is_not_overwritten() {
    let World { start, release, bundle, answers, .. } = world();
    let mut host = start.clone();
    host.put(K3S, "of somebody else", 0o755);
    let plan = plan(&release, &bundle, &facts(), &answers);
    let settled = settle(&plan, &host, None, Foreign::Refuse).unwrap();
    assert!(settled.conflicts.iter().any(|(key, _)| key.contains(K3S)), "{settled:?}");
    assert_eq!(host.text(KUBECONFIG), None);
}
