//! The kinds of KEDA, cert-manager, the Gateway API and the Prometheus Operator, made of what `charts/schemas` has written down of
//! their documentation: whatever is not written there is refused.

use std::path::Path;

use anyhow::Context as _;
use serde_json::{Map, Value, json};

/// Of a schema, what both sides mean alike.
const KEPT: &[&str] = &[
    "type",
    "description",
    "enum",
    "required",
    "pattern",
    "format",
    "minimum",
    "maximum",
    "minLength",
    "maxLength",
    "minItems",
    "maxItems",
];
/// Flux acts on our release from outside, and is no part of it.
const OUTSIDE: &str = "fluxcd.io";

/// One CustomResourceDefinition for each.
pub(super) fn definitions() -> anyhow::Result<Vec<Value>> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/schemas");
    let mut definitions = Vec::new();
    for entry in fs_err::read_dir(folder)? {
        let schema: Value = serde_json::from_slice(&fs_err::read(entry?.path())?)?;
        let text = |pointer: &str| schema.pointer(pointer).and_then(Value::as_str).context("a schema names its kind");
        let (version, kind) = (text("/properties/apiVersion/const")?, text("/properties/kind/const")?);
        let (group, version) = version.split_once('/').context("a kind of others has a group")?;
        if !group.ends_with(OUTSIDE) {
            definitions.push(definition(group, version, kind, &schema));
        }
    }
    Ok(definitions)
}

fn definition(group: &str, version: &str, kind: &str, schema: &Value) -> Value {
    let singular = kind.to_lowercase();
    let plural = format!("{singular}s");
    let mut properties = Map::new();
    for (name, property) in schema["properties"].as_object().into_iter().flatten() {
        let is_every_object_s = ["apiVersion", "kind", "metadata"].contains(&name.as_str());
        properties.insert(name.clone(), if is_every_object_s { of_every_object(name) } else { structural(property) });
    }
    // An operator says there how it is.
    properties.insert("status".to_owned(), open());
    json!({
        "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {
            "name": format!("{plural}.{group}"),
            // One of a group of Kubernetes itself is served only with a word that it was approved.
            "annotations": { "api-approved.kubernetes.io": "unapproved, written down for tests" },
        },
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": { "plural": plural, "singular": singular, "kind": kind },
            "versions": [{
                "name": version, "served": true, "storage": true, "subresources": { "status": {} },
                "schema": { "openAPIV3Schema": { "type": "object", "properties": properties } },
            }],
        },
    })
}

fn of_every_object(name: &str) -> Value {
    json!({ "type": if name == "metadata" { "object" } else { "string" } })
}

fn open() -> Value {
    json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

/// As Kubernetes wants it: what is not named is pruned without a word to say so.
fn structural(schema: &Value) -> Value {
    let mut kept = Map::new();
    for (name, value) in schema.as_object().into_iter().flatten().filter(|(name, _)| KEPT.contains(&name.as_str())) {
        kept.insert(name.clone(), value.clone());
    }
    if let Some(value) = schema.get("const") {
        kept.insert("enum".to_owned(), json!([value]));
    }
    // Those that list their words say no more of them; all are text.
    if kept.contains_key("enum") {
        kept.entry("type").or_insert_with(|| "string".into());
        return kept.into();
    }
    if let Some(items) = schema.get("items") {
        kept.insert("items".to_owned(), structural(items));
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    if let Some(properties) = properties {
        let properties: Map<String, Value> =
            properties.iter().map(|(name, property)| (name.clone(), structural(property))).collect();
        kept.insert("properties".to_owned(), properties.into());
    } else if let Some(others) = schema.get("additionalProperties").filter(|others| others.is_object()) {
        kept.insert("additionalProperties".to_owned(), structural(others));
    } else if schema["type"] == "object" || schema.get("type").is_none() {
        return open();
    }
    kept.into()
}
