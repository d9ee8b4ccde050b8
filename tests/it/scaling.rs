//! Three dashboards on one database, and workers that come and go with the work, as Kubernetes runs them: one job for each Run that
//! waits, started by what `/v1/scale` says. In the middle of it every dashboard is replaced.
#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::time::Duration;

use fettle_test_kit::measure::process::resident_bytes;
use fettle_tests::keda::{Accurate, NearLimit, Seen};
use fettle_tests::postgres;
use fettle_tests::round_robin::RoundRobin;
use fettle_tests::world::{Layout, PATIENCE, SERVER, Setup, TestBox, message, repository};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};

/// As the chart's `worker.scaledJob.max` of a small cluster.
const MOST_WORKERS: usize = 8;
/// KEDA asks every ten seconds; here nobody waits for so long.
const POLL: Duration = Duration::from_millis(500);
/// Of all Tasks on two busy processors, and for each one more where somebody asks for many.
const ENDS_WITHIN: Duration = Duration::from_secs(300);
const EACH_TAKES: Duration = Duration::from_secs(4);
/// Tasks that end with a pull request; further ones pass through intake, queue and publisher alone.
const PULL_REQUESTS: usize = 12;
const PROBES: usize = 48;
/// Of these so many are asked for by a label: webhooks open a hundred Tasks a day and no more. Further ones are ordered by the API.
const LABELLED: usize = 60;
/// More Tasks, each with a pull request: `FETTLE_TEST_SCALE=500`.
const MANY: &str = "FETTLE_TEST_SCALE";
/// What a worker may take for itself, beside what the commands of a Run take.
const OWN_MEMORY: u64 = 100 * 1024 * 1024;

/// What the model of KEDA rests on stands in the chart.
const CHART: &str = include_str!("../../charts/fettle/tests/snapshots/gpu.yaml");
const FIGURES: [&str; 6] = [
    "rollout: {strategy: gradual, propagationPolicy: foreground}",
    "strategy: accurate",
    "pendingPodConditions: [Ready]",
    "valueLocation: runnable",
    "targetValue: \"1\"",
    "httpGet: {path: /leased, port: internal}",
];
const KEDA: Accurate = Accurate { max: MOST_WORKERS as u64, target: 1, near_limit: NearLimit::FillsUp };

/// Workers as a ScaledJob has them.
#[derive(Default)]
struct Jobs {
    /// Where those tell how they are that have said so.
    health: BTreeMap<usize, String>,
    running: BTreeSet<usize>,
    started: usize,
    most: usize,
    /// Of the largest.
    resident: u64,
}

impl Jobs {
    async fn scale(&mut self, fettle: &mut TestBox, at: SocketAddr, scale: &Value) {
        let mut pending = 0;
        for nth in self.running.clone() {
            if fettle.has_ended(nth).await.unwrap() {
                self.running.remove(&nth);
                continue;
            }
            if let Ok(resident) = resident_bytes(fettle.process(nth).id()) {
                self.resident = self.resident.max(resident);
            }
            pending += u64::from(!self.is_ready(fettle, nth).await);
        }
        let running = u64::try_from(self.running.len()).unwrap();
        let seen = Seen { metric: scale["runnable"].as_u64().unwrap(), running, pending };
        for _ in 0..KEDA.starts(seen) {
            self.running.insert(fettle.start_one_job(at).unwrap());
            self.started += 1;
        }
        self.most = self.most.max(self.running.len());
    }

    /// As the kubelet finds out.
    async fn is_ready(&mut self, fettle: &TestBox, nth: usize) -> bool {
        if !self.health.contains_key(&nth) {
            let log = fettle.process(nth).log();
            let address =
                log.iter().find_map(|line| Some(message(line)?.split_once("health listens on ")?.1.to_owned()));
            self.health.extend(address.map(|address| (nth, address)));
        }
        let Some(address) = self.health.get(&nth) else { return false };
        fettle.api.public(&format!("{address}/leased")).await.is_ok_and(|(status, _)| status == 200)
    }
}

#[expect(clippy::disallowed_methods, reason = "whoever runs the test by hand says how large it is")]
fn sizes() -> (usize, usize) {
    match std::env::var(MANY).ok().and_then(|count| count.parse().ok()) {
        Some(count) => (count, 0),
        None => (PULL_REQUESTS, PROBES),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn three_dashboards_are_replaced_while_workers_come_and_go_and_no_task_is_lost_or_done_twice() {
    let Some(server) = postgres::own("fettle").await.unwrap() else { return };
    FIGURES.iter().for_each(|figure| assert!(CHART.contains(figure), "the chart has not `{figure}`"));
    let store = server.tcp_url("fettle");
    let agent = format!("per_repository = {MOST_WORKERS}");
    let setup = Setup {
        layout: Layout::Dashboard,
        store: Some(&store),
        agent: &agent,
        ..Setup::with(repository::solving().script())
    };
    let mut fettle = TestBox::start(setup).await.unwrap();
    let dashboards =
        [SERVER, fettle.start_another_dashboard().await.unwrap(), fettle.start_another_dashboard().await.unwrap()];
    let at: Vec<[SocketAddr; 2]> = dashboards.iter().map(|nth| fettle.addresses(*nth).unwrap()).collect();
    let public = RoundRobin::start(at.iter().map(|[public, _]| *public).collect()).await.unwrap();
    let internal = RoundRobin::start(at.iter().map(|[_, internal]| *internal).collect()).await.unwrap();
    fettle.api = fettle.api_at(public.address(), internal.address()).unwrap();

    let (pulls, probes) = sizes();
    let mut jobs = Jobs::default();
    assert_eq!(scale(&fettle).await["runnable"], 0, "nobody works, and nobody has to");
    let issues: Vec<u64> = (0..pulls).map(|_| fettle.issue()).collect();
    for (nth, issue) in issues.iter().enumerate() {
        if nth < LABELLED {
            fettle.label(*issue).await.unwrap();
            continue;
        }
        let order = json!({ "repository": fettle.repo.to_string(), "issue": issue });
        let (status, text) = fettle.api.post("/api/v1/tasks", &order).await.unwrap();
        assert_eq!(status, 201, "{text}");
    }
    for _ in 0..probes {
        let (status, text) = fettle.api.post("/api/v1/tasks", &json!({ "mode": "probe" })).await.unwrap();
        assert_eq!(status, 201, "{text}");
    }

    let all = pulls + probes;
    let until = Instant::now() + ENDS_WITHIN + EACH_TAKES * u32::try_from(pulls).unwrap();
    let mut replaced = 0;
    loop {
        let wanted = scale(&fettle).await;
        jobs.scale(&mut fettle, internal.address(), &wanted).await;
        let tasks = tasks(&fettle).await;
        let done = tasks.values().filter(|task| task["state"] == "done").count();
        if done == all && jobs.running.is_empty() {
            break;
        }
        assert!(Instant::now() < until, "{done} of {all} have ended; {wanted}");
        // One after the other, each a little later: what stands before them knows first.
        if replaced < dashboards.len() && done * (dashboards.len() + 1) > all * (replaced + 1) {
            let [one, other] = at[replaced];
            public.leave_out(one);
            internal.leave_out(other);
            fettle.replace_dashboard(dashboards[replaced]).await.unwrap();
            public.take_in(one);
            internal.take_in(other);
            replaced += 1;
        }
        sleep(POLL).await;
    }
    assert_eq!(replaced, dashboards.len(), "all were replaced while there was work");
    assert_eq!(scale(&fettle).await["busy"], 0);
    assert_eq!(jobs.most, MOST_WORKERS);
    assert!(jobs.started >= all, "{} jobs for {all} Tasks", jobs.started);
    assert!(jobs.resident <= OWN_MEMORY, "a worker takes {} MB", jobs.resident >> 20);

    let tasks = tasks(&fettle).await;
    assert_eq!(tasks.len(), all, "one Task for each wish");
    let heads: BTreeSet<String> =
        fettle.forge.pulls(&fettle.repo).into_iter().map(|issue| issue.pull.unwrap().head).collect();
    assert_eq!(
        (heads.len(), fettle.forge.pulls(&fettle.repo).len()),
        (pulls, pulls),
        "one pull request for each issue"
    );
    for issue in issues {
        let answers = fettle.answers_on(issue);
        assert!(answers.len() == 1 && answers[0].contains("fixes this"), "{answers:#?}");
    }
    println!(
        "{all} Tasks by {} jobs, {} at once; the largest took {} MB",
        jobs.started,
        jobs.most,
        jobs.resident >> 20
    );
}

/// Whoever asks too early after a dashboard went asks again, as KEDA does.
async fn scale(fettle: &TestBox) -> Value {
    let until = Instant::now() + PATIENCE;
    loop {
        match fettle.api.internal("/v1/scale").await {
            Ok(scale) => return scale,
            Err(error) => assert!(Instant::now() < until, "{error:#}"),
        }
        sleep(POLL).await;
    }
}

/// All of them by their ids.
async fn tasks(fettle: &TestBox) -> BTreeMap<String, Value> {
    let mut found = BTreeMap::new();
    let mut next = Some("/api/v1/tasks?limit=200".to_owned());
    while let Some(path) = next.take() {
        // A dashboard that has just gone answers nothing: what is asked anew comes from another one.
        let Ok(page) = fettle.api.get(&path).await else {
            sleep(POLL).await;
            next = Some(path);
            continue;
        };
        for task in page["items"].as_array().unwrap() {
            found.insert(task["id"].as_str().unwrap().to_owned(), task.clone());
        }
        next = page["next"].as_str().map(|after| format!("/api/v1/tasks?limit=200&after={after}"));
    }
    found
}
