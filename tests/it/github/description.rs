//! What adapter and emulator say to each other, held against GitHub's own OpenAPI description.

use std::collections::BTreeSet;
use std::sync::OnceLock;

use fettle_app::ports::forge::{Changed, Forge, ForgeReader, ForgeWatch, PullOpened};
use fettle_tests::downloads;
use fettle_tests::forge::{Recorded, Role};
use serde_json::{Value, json};

use super::World;

/// Answers that GitHub gives to any call and describes for few.
const EVERYWHERE: [u16; 5] = [304, 401, 403, 404, 422];

struct Description(Value);

impl Description {
    /// `None`: the registry is away, which was said and counted.
    fn load() -> Option<&'static Self> {
        static LOADED: OnceLock<Option<Description>> = OnceLock::new();
        let load = || {
            let file = downloads::npm_file("@octokit/openapi", "23.0.2", "generated/api.github.com.json")?;
            Some(Self(serde_json::from_slice(&fs_err::read(file).unwrap()).unwrap()))
        };
        LOADED.get_or_init(load).as_ref()
    }

    fn resolve<'a>(&'a self, value: &'a Value) -> &'a Value {
        match value.get("$ref").and_then(Value::as_str) {
            Some(path) => self.resolve(self.0.pointer(path.trim_start_matches('#')).unwrap()),
            None => value,
        }
    }

    /// The template with the most literal segments that fits, and what it describes.
    fn operation(&self, method: &str, path: &str) -> Option<(&str, &Value)> {
        let given: Vec<&str> = path.split('/').collect();
        let fits = |template: &str| {
            let wanted: Vec<&str> = template.split('/').collect();
            (wanted.len() == given.len()
                && wanted.iter().zip(&given).all(|(w, g)| w == g || (w.starts_with('{') && !g.is_empty())))
            .then(|| wanted.iter().filter(|segment| !segment.starts_with('{')).count())
        };
        let paths = self.0["paths"].as_object().unwrap();
        let best = paths
            .iter()
            .filter_map(|(template, item)| Some((fits(template)?, template, item.get(method.to_ascii_lowercase())?)));
        best.max_by_key(|(literal, ..)| *literal).map(|(_, template, operation)| (template.as_str(), operation))
    }

    /// Everything about the exchange that GitHub does not describe.
    fn breaches(&self, exchange: &Recorded) -> Vec<String> {
        let Some((_, operation)) = self.operation(&exchange.method, &exchange.path) else {
            return vec![format!("no such operation: {} {}", exchange.method, exchange.path)];
        };
        let mut found = Vec::new();
        self.check_query(operation, &exchange.query, &mut found);
        self.check_body(operation, exchange.body.as_ref(), &mut found);
        if exchange.api_version.is_none() {
            found.push("no API version".to_owned());
        }
        if let Some(status) = exchange.status {
            self.check_answer(operation, status, exchange.answer.as_ref(), &mut found);
        }
        found.into_iter().map(|breach| format!("{} {}: {breach}", exchange.method, exchange.path)).collect()
    }

    fn check_query(&self, operation: &Value, query: &str, found: &mut Vec<String>) {
        let described: Vec<&Value> =
            operation["parameters"].as_array().into_iter().flatten().map(|p| self.resolve(p)).collect();
        for (name, text) in url::form_urlencoded::parse(query.as_bytes()) {
            let Some(parameter) = described.iter().find(|p| p["in"] == "query" && p["name"] == *name) else {
                found.push(format!("unknown query parameter {name}"));
                continue;
            };
            let schema = self.resolve(&parameter["schema"]);
            let value = match schema["type"].as_str() {
                Some("integer") => text.parse::<u64>().map_or_else(|_| json!(text), |number| json!(number)),
                _ => json!(text),
            };
            self.check(schema, &value, &format!("query {name}"), found);
        }
    }

    fn check_body(&self, operation: &Value, body: Option<&Value>, found: &mut Vec<String>) {
        let described = operation.get("requestBody").map(|body| self.resolve(body));
        match (described, body) {
            (None, None) => {}
            (None, Some(_)) => found.push("a body that nobody reads".to_owned()),
            (Some(described), None) => {
                if described["required"] == true {
                    found.push("no body".to_owned());
                }
            }
            (Some(described), Some(body)) => {
                let schema = &described["content"]["application/json"]["schema"];
                self.check(schema, body, "body", found);
                let known = self.properties(schema);
                for name in body.as_object().into_iter().flatten().map(|(name, _)| name) {
                    if !known.contains(name.as_str()) {
                        found.push(format!("unknown body property {name}"));
                    }
                }
            }
        }
    }

    /// Of a schema or of its alternatives.
    fn properties<'a>(&'a self, schema: &'a Value) -> BTreeSet<&'a str> {
        let schema = self.resolve(schema);
        let own = schema["properties"].as_object().into_iter().flatten().map(|(name, _)| name.as_str());
        let others = ["oneOf", "anyOf", "allOf"].into_iter().filter_map(|key| schema[key].as_array()).flatten();
        own.chain(others.flat_map(|other| self.properties(other))).collect()
    }

    fn check_answer(&self, operation: &Value, status: u16, answer: Option<&Value>, found: &mut Vec<String>) {
        let Some(described) = operation["responses"].get(status.to_string()) else {
            if !EVERYWHERE.contains(&status) {
                found.push(format!("undescribed status {status}"));
            }
            return;
        };
        let described = self.resolve(described);
        match (described.get("content").map(|content| &content["application/json"]["schema"]), answer) {
            (Some(schema), Some(answer)) => self.check(schema, answer, &format!("answer {status}"), found),
            (Some(_), None) => found.push(format!("answer {status} without its body")),
            (None, Some(_)) => found.push(format!("answer {status} with a body")),
            (None, None) => {}
        }
    }

    /// The part of JSON Schema that the description uses for what we exchange.
    fn check(&self, schema: &Value, value: &Value, at: &str, found: &mut Vec<String>) {
        let schema = self.resolve(schema);
        if value.is_null() && schema["nullable"] == true {
            return;
        }
        for part in schema["allOf"].as_array().into_iter().flatten() {
            self.check(part, value, at, found);
        }
        for alternatives in ["anyOf", "oneOf"].into_iter().filter_map(|key| schema[key].as_array()) {
            let tried: Vec<Vec<String>> = alternatives
                .iter()
                .map(|alternative| {
                    let mut breaches = Vec::new();
                    self.check(alternative, value, at, &mut breaches);
                    breaches
                })
                .collect();
            if tried.iter().all(|breaches| !breaches.is_empty()) {
                found.extend(tried.into_iter().min_by_key(Vec::len).into_iter().flatten());
            }
        }
        if let Some(values) = schema["enum"].as_array()
            && !values.contains(value)
        {
            found.push(format!("{at}: {value} is none of {values:?}"));
        }
        let fits = match schema["type"].as_str() {
            Some("object") => value.is_object(),
            Some("array") => value.is_array(),
            Some("string") => value.is_string(),
            Some("integer") => value.is_i64() || value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            _ => true,
        };
        if !fits {
            found.push(format!("{at}: {value} is no {}", schema["type"]));
            return;
        }
        if schema["format"] == "date-time" && value.as_str().is_some_and(|t| t.parse::<jiff::Timestamp>().is_err()) {
            found.push(format!("{at}: {value} is no instant"));
        }
        for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            if value.is_object() && value.get(name).is_none() {
                found.push(format!("{at}: lacks {name}"));
            }
        }
        for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
            if let Some(value) = value.get(name) {
                self.check(inner, value, &format!("{at}.{name}"), found);
            }
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            if let Some(items) = schema.get("items") {
                self.check(items, item, &format!("{at}[{index}]"), found);
            }
        }
    }
}

/// Every method of the ports, with each answer they know.
async fn use_everything(world: &World) {
    let github = &world.github;
    let repo = world.repo().await;
    world.forge.set_role(&world.name, "triager", Some(Role::Triage));
    world.forge.label(&world.name, world.issue, "ai-help", "alice");
    world.forge.unlabel(&world.name, world.issue, "ai-help", "alice");
    for n in 0..101 {
        world.forge.comment(&world.name, world.issue, "bob", &format!("{n}"));
    }
    github.own_login().await.unwrap();
    github.issue(&repo, world.issue).await.unwrap();
    github.comments(&repo, world.issue).await.unwrap();
    github.labeled(&repo, world.issue, "ai-help").await.unwrap();
    github.permission(&repo, "triager").await.unwrap();
    github.permission(&repo, "nobody-there").await.unwrap();
    github.read_token(&repo).await.unwrap();
    github.write_token(&repo).await.unwrap();
    let spec = world.branch("ai-agent/quickfix-issue-1").await;
    let PullOpened::Created(pull) = github.open_pull(&repo, &spec).await.unwrap() else { panic!("created") };
    assert_eq!(github.open_pull(&repo, &spec).await.unwrap(), PullOpened::Exists);
    github.pulls_by_head(&repo, &spec.head).await.unwrap();
    github.edit_pull_body(&repo, pull.number, "body").await.unwrap();
    let comment = github.put_comment(&repo, world.issue, None, "marker").await.unwrap();
    github.put_comment(&repo, world.issue, Some(comment), "marker 2").await.unwrap();
    github.own_comments(&repo, world.issue, "marker").await.unwrap();
    github.delete_comment(&repo, comment).await.unwrap();
    github.add_labels(&repo, world.issue, &["done".to_owned()]).await.unwrap();
    github.remove_label(&repo, world.issue, "done").await.unwrap();
    github.remove_label(&repo, world.issue, "done").await.unwrap();
    github.reachable(10).await.unwrap();
    let long_ago = jiff::Timestamp::UNIX_EPOCH;
    world.forge.label(&world.name, world.issue, "ai-help", "alice");
    let Changed::Issues { tag, .. } = github.changed_issues(&repo, "ai-help", long_ago, None).await.unwrap() else {
        panic!("nothing was known before")
    };
    github.changed_issues(&repo, "ai-help", long_ago, tag.as_deref()).await.unwrap();
    world.forge.set_hook("http://127.0.0.1:9/", "s3cret");
    world.forge.send_hook("issues", &world.forge.issue_opened(&world.name, world.issue)).await;
    // Only an App has such a list.
    if let Ok(log) = github.hook_attempts(None).await {
        github.redeliver(log.attempts[0].1.id).await.unwrap();
    }
}

#[tokio::test]
async fn every_call_and_every_answer_is_as_github_describes_it() {
    let Some(description) = Description::load() else { return };
    let mut operations = BTreeSet::new();
    for world in [World::with_app().await, World::with_tokens().await] {
        use_everything(&world).await;
        let requests = world.forge.requests();
        let breaches: Vec<String> = requests.iter().flat_map(|request| description.breaches(request)).collect();
        assert_eq!(breaches, Vec::<String>::new());
        for request in &requests {
            let (template, _) = description.operation(&request.method, &request.path).unwrap();
            operations.insert(format!("{} {template}", request.method));
        }
    }
    let expected = [
        "DELETE /repos/{owner}/{repo}/issues/comments/{comment_id}",
        "DELETE /repos/{owner}/{repo}/issues/{issue_number}/labels/{name}",
        "GET /app",
        "GET /app/hook/deliveries",
        "GET /app/installations",
        "GET /installation/repositories",
        "GET /repos/{owner}/{repo}",
        "GET /repos/{owner}/{repo}/collaborators/{username}/permission",
        "GET /repos/{owner}/{repo}/installation",
        "GET /repos/{owner}/{repo}/issues",
        "GET /repos/{owner}/{repo}/issues/{issue_number}",
        "GET /repos/{owner}/{repo}/issues/{issue_number}/comments",
        "GET /repos/{owner}/{repo}/issues/{issue_number}/events",
        "GET /repos/{owner}/{repo}/pulls",
        "GET /user",
        "GET /user/repos",
        "PATCH /repos/{owner}/{repo}/issues/comments/{comment_id}",
        "PATCH /repos/{owner}/{repo}/pulls/{pull_number}",
        "POST /app/hook/deliveries/{delivery_id}/attempts",
        "POST /app/installations/{installation_id}/access_tokens",
        "POST /repos/{owner}/{repo}/issues/{issue_number}/comments",
        "POST /repos/{owner}/{repo}/issues/{issue_number}/labels",
        "POST /repos/{owner}/{repo}/pulls",
    ];
    assert_eq!(operations.iter().map(String::as_str).collect::<Vec<_>>(), expected);
}

/// The check itself is able to fail.
#[tokio::test]
async fn what_github_does_not_describe_is_noticed() {
    let Some(description) = Description::load() else { return };
    let world = World::with_tokens().await;
    use_everything(&world).await;
    let requests = world.forge.requests();
    let find = |method: &str, suffix: &str| {
        requests.iter().find(|r| r.method == method && r.path.ends_with(suffix)).unwrap().clone()
    };
    let mut wrong_path = find("POST", "/pulls");
    wrong_path.path.push_str("/now/please");
    let mut wrong_query = find("GET", "/pulls");
    wrong_query.query.push_str("&sorted=1");
    let mut wrong_value = find("GET", "/pulls");
    wrong_value.query = wrong_value.query.replace("state=all", "state=any");
    let mut wrong_body = find("POST", "/pulls");
    wrong_body.body.as_mut().unwrap().as_object_mut().unwrap().remove("head");
    let mut extra_body = find("POST", "/comments");
    extra_body.body.as_mut().unwrap()["mood"] = json!("good");
    let mut thin_answer = find("GET", "/comments");
    thin_answer.answer.as_mut().unwrap()[0].as_object_mut().unwrap().remove("issue_url");
    let mut deep_answer = find("POST", "/pulls");
    deep_answer.answer.as_mut().unwrap()["head"]["repo"]["owner"]["id"] = json!("7");
    for (broken, words) in [
        (wrong_path, "no such operation"),
        (wrong_query, "unknown query parameter sorted"),
        (wrong_value, "is none of"),
        (wrong_body, "lacks head"),
        (extra_body, "unknown body property mood"),
        (thin_answer, "lacks issue_url"),
        (deep_answer, "head.repo.owner.id"),
    ] {
        let breaches = description.breaches(&broken);
        assert!(breaches.len() == 1 && breaches[0].contains(words), "{words}: {breaches:?}");
    }
}
