//! Holds every answer against the OpenAPI document.

use std::collections::BTreeMap;
use std::sync::{Arc, LazyLock, Mutex, PoisonError};

use jsonschema::Validator;
use reqwest::Method;
use serde_json::{Value, json};

use crate::world::Seen;

static DOCUMENT: LazyLock<Value> = LazyLock::new(|| serde_json::from_str(&fettle_api::openapi_json()).unwrap());
const PROBLEM: &str = "application/problem+json";

/// Panics when `seen` is not what the document says of `method` and `path`.
pub(crate) fn check(method: &Method, path: &str, seen: &Seen) {
    let path = path.split('?').next().unwrap();
    let kind = seen.headers.get("content-type").map(|kind| kind.to_str().unwrap()).unwrap_or_default();
    let kind = kind.split(';').next().unwrap().to_owned();
    for name in ["x-correlation-id", "x-request-id"] {
        seen.header(name);
    }
    if kind == PROBLEM && *method != Method::HEAD {
        let body = seen.json();
        assert_valid(&json!({"$ref": "#/components/schemas/Problem"}), &body);
        assert_eq!(body["status"], seen.status.as_u16());
        assert_eq!(body["request_id"], seen.header("x-request-id"));
        assert_eq!(body["type"], format!("/problems/{}", body["code"].as_str().unwrap()));
    }
    let Some(operation) = operation(method, path) else {
        assert!(kind == PROBLEM || !path.starts_with("/api/v1"), "{method} {path} is not documented");
        return;
    };
    let responses = &operation["responses"];
    let response = [seen.status.as_str(), "default"].iter().find_map(|key| responses.get(*key));
    let response = response.unwrap_or_else(|| panic!("{method} {path} does not document {}", seen.status));
    if *method == Method::HEAD || response["content"].is_null() {
        assert_eq!(seen.text, "", "{method} {path} says something with {}", seen.status);
        return;
    }
    let content = response["content"].get(&kind);
    let content = content.unwrap_or_else(|| panic!("{method} {path} does not document {kind} for {}", seen.status));
    if kind == "application/json" {
        assert_valid(&content["schema"], &seen.json());
    }
}

/// Panics when `value` is not a `name` of the document.
pub(crate) fn check_component(name: &str, value: &Value) {
    assert_valid(&json!({"$ref": format!("#/components/schemas/{name}")}), value);
}

fn assert_valid(schema: &Value, value: &Value) {
    let validator = validator(schema);
    let errors: Vec<String> = validator.iter_errors(value).map(|error| error.to_string()).collect();
    assert!(errors.is_empty(), "{errors:?} in {value:#}");
}

/// Made once for each schema: it takes longer than many answers take to check.
fn validator(schema: &Value) -> Arc<Validator> {
    static MADE: Mutex<BTreeMap<String, Arc<Validator>>> = Mutex::new(BTreeMap::new());
    let mut made = MADE.lock().unwrap_or_else(PoisonError::into_inner);
    let new = || {
        let mut root = schema.clone();
        root["components"] = DOCUMENT["components"].clone();
        Arc::new(jsonschema::draft202012::new(&root).unwrap())
    };
    made.entry(schema.to_string()).or_insert_with(new).clone()
}

fn operation(method: &Method, path: &str) -> Option<&'static Value> {
    let fits = |template: &str| {
        let (template, path): (Vec<_>, Vec<_>) = (template.split('/').collect(), path.split('/').collect());
        template.len() == path.len() && template.iter().zip(path).all(|(t, p)| *t == p || t.starts_with('{'))
    };
    let (_, item) = DOCUMENT["paths"].as_object()?.iter().find(|(template, _)| fits(template))?;
    let method = if *method == Method::HEAD { &Method::GET } else { method };
    item.get(method.as_str().to_ascii_lowercase())
}
