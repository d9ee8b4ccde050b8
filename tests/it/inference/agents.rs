//! Coding agents that others wrote, as they are published: each makes one edit through the gateway, in front of a scripted model.

use std::path::Path;

use fettle_tests::downloads;
use fettle_tests::model::{Answer, ModelServer, Script};

use super::*;

/// They import for half a minute on a busy machine.
const EDITED: Duration = Duration::from_secs(300);
const WRONG: &str = "print(\"helo\")\n";
const RIGHT: &str = "print(\"hello\")\n";
const TASK: &str = "Correct the greeting.";

/// Corrects the file in a shell when it is offered one, else by writing it out.
fn corrects() -> Script {
    Script::from_fn(|conversation| match (conversation.tools.is_empty(), conversation.turn()) {
        (true, _) => Answer::text(format!("I correct the greeting.\n\ngreeting.py\n```\n{RIGHT}```\n")),
        (false, 0) => Answer::call("bash", json!({ "command": "sed -i s/helo/hello/ greeting.py" })),
        (false, _) => Answer::call("bash", json!({ "command": "echo COMPLETE_TASK_AND_SUBMIT_FINAL_OUTPUT" })),
    })
}

/// What an agent made of the file; `arguments` behind its own name.
async fn edits(agents: &Path, agent: &str, arguments: &[&str]) {
    let model = ModelServer::start(corrects());
    let mut host = Host::with_gpus(&[]);
    host.models =
        format!("mode = \"off\"\n[[gateway.models]]\nname = \"coder\"\nbase_url = \"{}\"\n", model.base_url());
    let host = host.up().await;
    let repository = host.root.join("repository");
    fs_err::create_dir(&repository).unwrap();
    fs_err::write(repository.join("greeting.py"), WRONG).unwrap();
    let git = |arguments: &[&str]| {
        let user = ["-c", "user.name=ann", "-c", "user.email=ann@example.org"];
        let done = Command::new("git").args(user).args(arguments).current_dir(&repository).output().unwrap();
        assert!(done.status.success(), "{done:?}");
    };
    git(&["init", "--quiet"]);
    git(&["add", "greeting.py"]);
    git(&["commit", "--quiet", "--message", "greet"]);

    let packages = agents.join("packages");
    let mut command = Command::new(packages.join("bin").join(agent));
    command.args(arguments).current_dir(&repository).env_clear().envs(toolchains()).env("HOME", &host.root);
    command.env("PYTHONPATH", &packages).env("PYTHONDONTWRITEBYTECODE", "1");
    command.env("OPENAI_API_BASE", format!("{}/v1", host.gateway)).env("OPENAI_API_KEY", "any");
    // Prices and news are looked for elsewhere: nobody is reached but the gateway.
    command.env("HTTPS_PROXY", "http://127.0.0.1:9").env("LITELLM_LOCAL_MODEL_COST_MAP", "True");
    command.envs([("MSWEA_CONFIGURED", "true"), ("MSWEA_COST_TRACKING", "ignore_errors")]);
    let mut running = Process::start(agent, &mut command).unwrap();
    let status = running.ended(EDITED).await.unwrap();
    let said = running.log().join("\n");
    assert!(status.success(), "{said}");
    assert_eq!(fs_err::read_to_string(repository.join("greeting.py")).unwrap(), RIGHT, "{said}");
    assert!(model.request_count() > 0, "the gateway asked the model");
}

#[tokio::test]
async fn aider_makes_an_edit_through_the_gateway() {
    let Some(agents) = downloads::engines("agents") else { return };
    let quiet = ["--yes-always", "--no-pretty", "--no-check-update", "--no-show-release-notes", "--analytics-disable"];
    let own = ["--model", "openai/coder", "--no-show-model-warnings", "--message", TASK, "greeting.py"];
    edits(&agents, "aider", &[&quiet[..], &own].concat()).await;
}

#[tokio::test]
async fn mini_swe_agent_makes_an_edit_through_the_gateway() {
    let Some(agents) = downloads::engines("agents") else { return };
    let own = ["--model", "openai/coder", "--task", TASK, "--yolo", "--exit-immediately"];
    edits(&agents, "mini", &own).await;
}
