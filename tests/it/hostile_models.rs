//! Models that err, cheat and attack: each run ends at the right level, with its reason, and never wrongly `proven`.

#![expect(clippy::unwrap_used, reason = "in a test, a panic with its place is the report")]

mod cheats;
mod forms;
mod loops;
mod processes;
mod secrets;
mod writes;

use fettle_tests::fixtures::{Ended, Fix, Project, Repo, finish};
use fettle_tests::model::{Answer, ModelServer, Phases};

/// A run of a model that solves `project`, but for what it does in the fix phase.
fn fixing(project: &Project, turns: impl IntoIterator<Item = Answer>) -> Run {
    Run::of(project, project.repo(), project.solving().phase("fix", turns))
}

/// What is before the right edit, the edit, and the end.
fn before_the_edit(project: &Project, turns: impl IntoIterator<Item = Answer>) -> Vec<Answer> {
    turns.into_iter().chain([project.right_edit(), finish("Clamp to the upper limit")]).collect()
}

/// A finished run with what is left of it.
struct Run {
    repo: Repo,
    server: ModelServer,
    ended: Ended,
}

impl Run {
    fn of(project: &Project, repo: Repo, phases: Phases) -> Self {
        Self::with(project, repo, phases, |fix| fix)
    }

    fn with(project: &Project, repo: Repo, phases: Phases, more: impl FnOnce(Fix<'_>) -> Fix<'_>) -> Self {
        let server = ModelServer::start(phases.script());
        let ended = more(Fix::new(&repo, project.issue).model(&server)).run();
        Self { repo, server, ended }
    }

    /// Everything that the model was told, without its own words.
    fn told(&self) -> String {
        let last = self.server.requests().pop().expect("the model was asked").conversation();
        let told = last.messages.into_iter().filter(|message| message.role != "assistant");
        told.map(|message| message.text + "\n").collect()
    }

    #[track_caller]
    fn was_told(&self, part: &str) {
        let told = self.told();
        assert!(told.contains(part), "the model was not told {part:?} but\n{told}\n{}", self.ended);
    }
}
