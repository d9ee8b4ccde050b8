//! Real inference servers on this machine's CPU, with a model of some thousand weights: llama.cpp's own server through its driver, and
//! the Python server on the same library through `command`.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use fettle_tests::downloads;
use rustix::process::{Pid, Signal, kill_process};

use super::tiny_model::gguf;
use super::*;

const CONTEXT: u32 = 1_024;
/// Python takes seconds to import a server on a busy machine; the gateway waits longer for a model that is loaded.
const MAX_WAIT: &str = "120s";

/// A host whose engines are `kind`, started as `program` with the model that lies beside it.
async fn host(kind: &str, program: impl FnOnce(&Host) -> String, recipe: &str) -> Host {
    let mut host = Host::with_gpus(&[]);
    let bin = host.root.join("bin");
    fs_err::create_dir_all(&bin).unwrap();
    fs_err::write(bin.join("tiny.gguf"), gguf(CONTEXT)).unwrap();
    let engine = program(&host);
    host.max_wait = MAX_WAIT;
    host.http = reqwest::Client::builder().timeout(2 * PATIENCE).build().unwrap();
    host.models = format!(
        "host_reserve = \"1GiB\"\n[gpu.engines.{kind}]\n{engine}\n\
         [[gateway.models]]\nname = \"tiny\"\npath = \"{bin}/tiny.gguf\"\ncontext = {CONTEXT}\n\
         recipes = [{{ engine = \"{kind}\", device = \"cpu\", {recipe} }}]\n"
    );
    host.up().await
}

/// By llama.cpp's own server.
async fn on_llama_server(llama: &Path) -> Host {
    let program = |host: &Host| {
        let link = host.root.join("bin/llama-server");
        std::os::unix::fs::symlink(llama.join("bin/llama-server"), &link).unwrap();
        format!("program = \"{link}\"")
    };
    host("llama-server", program, "parallel = 2").await
}

/// By the server of llama-cpp-python.
async fn on_python(llama: &Path) -> Host {
    let script = format!(
        "#!/bin/sh\nexec env PYTHONPATH={llama}/packages LLAMA_CPP_LIB_PATH={llama}/bin API_KEY=\"$FETTLE_ENGINE_KEY\" \
         python3 -m llama_cpp.server --host 127.0.0.1 --port \"$1\" --model \"$2\" --model_alias tiny --n_ctx \"$3\"\n",
        llama = llama.display()
    );
    let program = |host: &Host| {
        let path = host.root.join("bin/python-server");
        fs_err::write(&path, script).unwrap();
        fs_err::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        format!("program = \"{path}\"\nargs = [\"{{port}}\", \"{{model}}\", \"{{ctx}}\"]\nhealth = \"/v1/models\"")
    };
    host("command", program, "memory = \"1GiB\"").await
}

/// Answers whole and streamed, is killed and replaced, and leaves nothing behind.
async fn lives_as_an_engine_does(mut host: Host) {
    let body = json!({ "model": "tiny", "max_tokens": 8, "messages": [{ "role": "user", "content": "hi" }] });
    let (status, whole) = host.post(&body).await;
    assert_eq!(status, 200, "{whole}\n{}", host.tells(&["models", "logs", "tiny"]));
    let whole: Value = serde_json::from_str(&whole).unwrap();
    assert_eq!((&whole["model"], &whole["object"]), (&json!("tiny"), &json!("chat.completion")), "{whole:#}");
    // The Python server counts one more than it was asked for.
    assert!((1..=9).contains(&whole["usage"]["completion_tokens"].as_u64().unwrap()), "{whole:#}");
    let mut streamed = body.clone();
    streamed["stream"] = json!(true);
    let (status, text) = host.post(&streamed).await;
    assert_eq!(status, 200, "{text}");
    let events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("data: ")).collect();
    assert_eq!(events.last(), Some(&"[DONE]"), "{text}");
    let chunk: Value = serde_json::from_str(events[0]).unwrap();
    assert_eq!((&chunk["model"], &chunk["object"]), (&json!("tiny"), &json!("chat.completion.chunk")), "{chunk:#}");

    let placed = host.json(&["models"]);
    assert_eq!(placed["engines"][0]["devices"], json!(["cpu"]), "{placed:#}");
    let first = host.engines();
    for pid in &first {
        let pid = Pid::from_raw(i32::try_from(*pid).unwrap()).unwrap();
        kill_process(pid, Signal::KILL).unwrap();
    }
    let (status, text) = host.post(&body).await;
    assert_eq!(status, 200, "{text}");
    let second = host.engines();
    assert!(!second.is_empty() && first.iter().all(|pid| !second.contains(pid)), "{first:?}, {second:?}");
    let events = host.tells(&["placements", "--events"]);
    assert!(events.contains("ended while it served: it was ended by signal 9"), "{events}");

    host.process.take().unwrap().kill();
    host.no_engine_is_left().await;
}

#[tokio::test]
async fn the_real_llama_server_serves_streams_and_is_replaced_when_it_is_killed() {
    let Some(llama) = downloads::engines("llama.cpp") else { return };
    let host = on_llama_server(&llama).await;
    lives_as_an_engine_does(host).await;
}

#[tokio::test]
async fn the_python_server_of_llama_cpp_runs_as_a_command() {
    let Some(llama) = downloads::engines("llama.cpp") else { return };
    let host = on_python(&llama).await;
    lives_as_an_engine_does(host).await;
}
