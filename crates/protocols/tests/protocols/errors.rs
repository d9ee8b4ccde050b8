//! Errors in each family's shape, and what upstreams' errors mean.

use std::time::Duration;

use fettle_protocols::{
    Failure, Family, ModelEntry, Protocol, UpstreamError, read_error, write_error, write_model, write_models,
    write_ollama_show, write_stream_error,
};
use serde_json::{Value, json};

fn sentence() -> String {
    "Because.".to_owned()
}

/// OpenAI's status, type and code, Anthropic's status and type, and the headers.
type Row = (Failure, u16, &'static str, Value, u16, &'static str, &'static [(&'static str, &'static str)]);

/// The table of the design, row by row.
#[test]
fn each_failure_is_said_as_the_sdks_know_it() {
    let wait = Duration::from_millis(2500);
    let rows: [Row; 12] = [
        (
            Failure::BadBody { field: Some("n".to_owned()), sentence: sentence() },
            400,
            "invalid_request_error",
            Value::Null,
            400,
            "invalid_request_error",
            &[],
        ),
        (
            Failure::ContextTooLong { sentence: sentence() },
            400,
            "invalid_request_error",
            json!("context_length_exceeded"),
            400,
            "invalid_request_error",
            &[],
        ),
        (
            Failure::BadKey { sentence: sentence() },
            401,
            "invalid_request_error",
            json!("invalid_api_key"),
            401,
            "authentication_error",
            &[],
        ),
        (
            Failure::NotAllowed { sentence: sentence() },
            403,
            "invalid_request_error",
            json!("not_allowed"),
            403,
            "permission_error",
            &[],
        ),
        (
            Failure::UnknownModel { model: "m".to_owned() },
            404,
            "invalid_request_error",
            json!("model_not_found"),
            404,
            "not_found_error",
            &[],
        ),
        (
            Failure::QueueFull { sentence: sentence(), retry_after: wait },
            429,
            "rate_limit_error",
            json!("rate_limit_exceeded"),
            429,
            "rate_limit_error",
            &[("retry-after", "3")],
        ),
        (
            Failure::BudgetSpent { sentence: sentence() },
            429,
            "rate_limit_error",
            json!("insufficient_quota"),
            402,
            "billing_error",
            &[("x-should-retry", "false")],
        ),
        (
            Failure::CannotPlaceNow { sentence: sentence(), retry_after: Duration::from_secs(900) },
            503,
            "server_error",
            json!("model_unavailable"),
            529,
            "overloaded_error",
            &[("retry-after", "60")],
        ),
        (
            Failure::CannotPlaceEver { sentence: sentence() },
            503,
            "server_error",
            json!("model_unplaceable"),
            503,
            "api_error",
            &[("x-should-retry", "false")],
        ),
        (
            Failure::UpstreamFailed { sentence: sentence() },
            502,
            "server_error",
            json!("upstream_error"),
            502,
            "api_error",
            &[],
        ),
        (
            Failure::UpstreamSlow { sentence: sentence() },
            504,
            "server_error",
            json!("timeout"),
            504,
            "timeout_error",
            &[],
        ),
        (
            Failure::QueueFull { sentence: sentence(), retry_after: Duration::ZERO },
            429,
            "rate_limit_error",
            json!("rate_limit_exceeded"),
            429,
            "rate_limit_error",
            &[("retry-after", "1")],
        ),
    ];
    for (failure, status, kind, code, anthropic_status, anthropic_kind, headers) in rows {
        let openai = write_error(Protocol::OpenAiChat, &failure);
        let body: Value = serde_json::from_slice(&openai.body).unwrap();
        assert_eq!((openai.status, &body["error"]["type"], &body["error"]["code"]), (status, &json!(kind), &code));
        assert_eq!(body["error"]["message"], failure.sentence());
        let anthropic = write_error(Protocol::AnthropicMessages, &failure);
        let body: Value = serde_json::from_slice(&anthropic.body).unwrap();
        assert_eq!((anthropic.status, &body["error"]["type"]), (anthropic_status, &json!(anthropic_kind)));
        assert_eq!(body["type"], "error");
        for answer in [openai, anthropic] {
            let said: Vec<(&str, &str)> =
                answer.headers.iter().skip(1).map(|(name, value)| (*name, value.as_str())).collect();
            assert_eq!(said, headers, "{failure:?}");
        }
        let ollama: Value = serde_json::from_slice(&write_error(Protocol::OllamaChat, &failure).body).unwrap();
        assert_eq!(ollama, json!({ "error": failure.sentence() }));
    }
}

#[test]
fn a_stream_that_fails_ends_in_the_shape_of_its_protocol() {
    let failure = Failure::UpstreamFailed { sentence: sentence() };
    let said = |protocol| String::from_utf8(write_stream_error(protocol, &failure).to_vec()).unwrap();
    assert_eq!(
        said(Protocol::OpenAiChat),
        "data: {\"error\":{\"message\":\"Because.\",\"type\":\"server_error\",\"param\":null,\"code\":\"upstream_error\"}}\n\n"
    );
    assert_eq!(
        said(Protocol::AnthropicMessages),
        "event: error\ndata: {\"type\":\"error\",\"error\":{\"type\":\"api_error\",\"message\":\"Because.\"}}\n\n"
    );
    assert_eq!(said(Protocol::OllamaGenerate), "{\"error\":\"Because.\"}\n");
    let responses = said(Protocol::OpenAiResponses);
    let (event, data) = responses.trim_end().split_once('\n').unwrap();
    let body: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
    assert_eq!((event, &body["response"]["status"]), ("event: response.failed", &json!("failed")));
    assert_eq!(body["response"]["error"], json!({ "code": "upstream_error", "message": "Because." }));
}

#[test]
fn upstreams_errors_are_understood() {
    use UpstreamError::{
        BadKey, BadRequest, ContextTooLong, Failed, NoCredit, Overloaded, RateLimited, Slow, UnknownModel,
    };
    let after = |seconds| Some(Duration::from_secs(seconds));
    let cases = [
        (
            400,
            r#"{"error":{"message":"This model's maximum context length is 4096 tokens","type":"invalid_request_error","code":"context_length_exceeded"}}"#,
            ContextTooLong,
        ),
        (
            400,
            r#"{"type":"error","error":{"type":"invalid_request_error","message":"prompt is too long: 210000 tokens > 200000 maximum"}}"#,
            ContextTooLong,
        ),
        (
            400,
            r#"{"error":{"code":400,"message":"the request exceeds the available context size","type":"exceed_context_size_error"}}"#,
            ContextTooLong,
        ),
        (
            400,
            r#"{"object":"error","message":"This model's maximum context length is 100 tokens","code":400}"#,
            ContextTooLong,
        ),
        (400, r#"{"error":{"message":"bad","type":"invalid_request_error"}}"#, BadRequest),
        (
            400,
            r#"{"error":{"code":400,"message":"API key not valid.","status":"INVALID_ARGUMENT","details":[{"@type":"type.googleapis.com/google.rpc.ErrorInfo","reason":"API_KEY_INVALID"}]}}"#,
            BadKey,
        ),
        (401, "", BadKey),
        (402, "{}", NoCredit),
        (404, r#"{"error":"model 'x' not found"}"#, UnknownModel),
        (429, r#"{"error":{"code":"insufficient_quota","message":"You exceeded your current quota"}}"#, NoCredit),
        (429, r#"{"error":{"code":429,"status":"RESOURCE_EXHAUSTED"}}"#, RateLimited { retry_after: after(7) }),
        (
            529,
            r#"{"type":"error","error":{"type":"overloaded_error","message":"Overloaded"}}"#,
            Overloaded { retry_after: after(7) },
        ),
        (503, "<html>nginx</html>", Overloaded { retry_after: after(7) }),
        (504, "", Slow),
        (500, "\u{fffd}{[", Failed),
    ];
    for (status, body, error) in cases {
        assert_eq!(read_error(status, Some("7"), body.as_bytes()), error, "{status} {body}");
    }
    assert_eq!(read_error(429, Some("Wed, 21 Oct 2026 07:28:00 GMT"), b""), RateLimited { retry_after: None });
    assert_eq!(read_error(429, Some("-1"), b""), RateLimited { retry_after: None });
    assert_eq!(read_error(429, Some("NaN"), b""), RateLimited { retry_after: None });
}

/// Servers quote what they refuse.
#[test]
fn a_callers_words_in_an_upstreams_sentence_say_nothing_of_the_upstream() {
    for words in
        ["invalid_api_key", "authentication_error", "insufficient_quota", "slow_down", "credit balance is too low"]
    {
        let quoted = format!("Unknown value: '{words}'.");
        let bodies = [
            json!({ "error": { "message": quoted, "type": "invalid_request_error", "param": "tool_choice", "code": null } }),
            json!({ "error": { "code": 400, "message": quoted, "status": "INVALID_ARGUMENT",
                               "details": [{ "fieldViolations": [{ "description": quoted }] }] } }),
            json!({ "detail": [{ "type": "value_error", "msg": quoted, "input": words }] }),
            json!({ "error": quoted }),
        ];
        for body in bodies {
            assert_eq!(read_error(400, None, body.to_string().as_bytes()), UpstreamError::BadRequest, "{body}");
        }
    }
    let body = br#"{"error":{"message":"Your credit balance is too low","type":"invalid_request_error"}}"#;
    assert_eq!(read_error(402, None, body), UpstreamError::NoCredit);
}

#[test]
fn an_upstreams_words_are_never_said() {
    for status in [400, 401, 402, 403, 404, 408, 429, 500, 503] {
        let failure = read_error(status, None, br#"{"error":{"message":"sk-secret at /srv/models"}}"#).to_failure();
        for protocol in Protocol::ALL {
            let said = String::from_utf8(write_error(protocol, &failure).body.to_vec()).unwrap();
            assert!(!said.contains("secret") && !said.contains("/srv"), "{said}");
        }
    }
}

#[test]
fn models_are_listed_in_each_familys_shape() {
    let model = ModelEntry {
        id: "coder".to_owned(),
        display_name: "Coder".to_owned(),
        owned_by: "fettle".to_owned(),
        created: 1_790_000_000,
        context_tokens: Some(131_072),
        max_output_tokens: None,
        vision: false,
        tools: true,
        thinking: true,
        size_bytes: Some(5),
        fettle: None,
    };
    let list = |family| serde_json::from_slice::<Value>(&write_models(family, std::slice::from_ref(&model))).unwrap();
    let openai =
        json!({"id":"coder","object":"model","created":1_790_000_000,"owned_by":"fettle","max_model_len":131_072});
    assert_eq!(list(Family::OpenAi), json!({ "object": "list", "data": [openai] }));
    assert_eq!(serde_json::from_slice::<Value>(&write_model(Family::OpenAi, &model)).unwrap(), openai);
    let anthropic = list(Family::Anthropic);
    assert_eq!((&anthropic["first_id"], &anthropic["has_more"]), (&json!("coder"), &json!(false)));
    assert_eq!(anthropic["data"][0]["created_at"], "2026-09-21T14:13:20Z");
    assert_eq!(anthropic["data"][0]["lifecycle"], "active");
    assert_eq!(list(Family::Ollama)["models"][0]["name"], "coder");
    let shown: Value = serde_json::from_slice(&write_ollama_show(&model)).unwrap();
    assert_eq!(shown["capabilities"], json!(["completion", "tools", "thinking"]));
    let empty: Value = serde_json::from_slice(&write_models(Family::Anthropic, &[])).unwrap();
    assert_eq!(empty, json!({ "data": [], "has_more": false, "first_id": null, "last_id": null }));
}
