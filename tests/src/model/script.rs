//! Which answer a conversation gets.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Answer, Conversation, Fault};

type Choose = Arc<dyn Fn(&Conversation) -> Answer + Send + Sync>;

/// A scripted model, and what its server demands and shows.
#[derive(Clone)]
pub struct Script {
    choose: Choose,
    pub(super) api_key: Option<String>,
    pub(super) models: Vec<String>,
}

impl Script {
    /// Answers by any function. It should look at nothing but the conversation.
    pub fn from_fn(choose: impl Fn(&Conversation) -> Answer + Send + Sync + 'static) -> Self {
        Self { choose: Arc::new(choose), api_key: None, models: vec!["scripted".to_owned()] }
    }

    /// The same answer to everything.
    pub fn always(answer: Answer) -> Self {
        Self::from_fn(move |_| answer.clone())
    }

    /// Answers by phase and turn; see [`Phases`].
    pub fn phases() -> Phases {
        Phases::default()
    }

    /// Requests without this bearer token get 401.
    #[must_use]
    pub fn requiring_key(mut self, key: &str) -> Self {
        self.api_key = Some(key.to_owned());
        self
    }

    /// The names that `/v1/models` lists, instead of `scripted`. Requests may name any model.
    #[must_use]
    pub fn listing_models(mut self, models: &[&str]) -> Self {
        self.models = models.iter().map(|&model| model.to_owned()).collect();
        self
    }

    pub fn answer(&self, conversation: &Conversation) -> Answer {
        (self.choose)(conversation)
    }
}

/// A script in the order of the work: for each phase the answers to its turns, counted by the assistant turns in the
/// conversation since the message that began it. What is not scripted is refused with a sentence that says what came,
/// so that a test fails by name.
///
/// ```text
/// Script::phases()
///     .phase("triage", [Answer::call("finish", json!({ "summary": "verdict: go" }))])
///     .phase("fix", [Answer::call("view", json!({ "path": "src/lib.rs" })), Answer::call("finish", …)])
///     .script()
/// ```
#[derive(Default)]
pub struct Phases {
    phases: BTreeMap<String, PhaseScript>,
    unmarked: Vec<Answer>,
    otherwise: Option<Answer>,
}

enum PhaseScript {
    Turns(Vec<Answer>),
    Choose(Choose),
}

impl Phases {
    #[must_use]
    pub fn phase(mut self, name: &str, turns: impl IntoIterator<Item = Answer>) -> Self {
        self.phases.insert(name.to_owned(), PhaseScript::Turns(turns.into_iter().collect()));
        self
    }

    /// A phase whose answers depend on more than the turn.
    #[must_use]
    pub fn phase_with(mut self, name: &str, choose: impl Fn(&Conversation) -> Answer + Send + Sync + 'static) -> Self {
        self.phases.insert(name.to_owned(), PhaseScript::Choose(Arc::new(choose)));
        self
    }

    /// Answers to conversations that name no phase.
    #[must_use]
    pub fn unmarked(mut self, turns: impl IntoIterator<Item = Answer>) -> Self {
        self.unmarked = turns.into_iter().collect();
        self
    }

    /// The answer where none is scripted.
    #[must_use]
    pub fn otherwise(mut self, answer: Answer) -> Self {
        self.otherwise = Some(answer);
        self
    }

    pub fn script(self) -> Script {
        Script::from_fn(move |conversation| self.choose(conversation))
    }

    fn choose(&self, conversation: &Conversation) -> Answer {
        let turn = conversation.turn();
        let scripted = match conversation.phase().map(|phase| self.phases.get(phase)) {
            None => self.unmarked.get(turn).cloned(),
            Some(None) => None,
            Some(Some(PhaseScript::Turns(turns))) => turns.get(turn).cloned(),
            Some(Some(PhaseScript::Choose(choose))) => Some(choose(conversation)),
        };
        scripted.or_else(|| self.otherwise.clone()).unwrap_or_else(|| {
            let phase = conversation.phase().unwrap_or("(none)");
            let sentence = format!("the script has no answer for turn {turn} of phase {phase}");
            Answer::empty().with_fault(Fault::status(400, &sentence))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn ask(script: &Script, messages: Value) -> Answer {
        script.answer(&Conversation::of_body(&json!({ "messages": messages }), 1))
    }

    #[test]
    fn each_turn_of_each_phase_gets_its_answer_however_often_it_is_asked() {
        let script = Script::phases()
            .phase("triage", [Answer::text("go")])
            .phase("fix", [Answer::text("one"), Answer::text("two")])
            .phase_with("review", |conversation| Answer::text(conversation.last_text()))
            .unmarked([Answer::text("hello")])
            .script();
        let user = |text: &str| json!({ "role": "user", "content": text });
        let turn = json!({ "role": "assistant", "content": "one" });
        for _ in 0..2 {
            assert_eq!(ask(&script, json!([user("Phase: triage")])), Answer::text("go"));
            assert_eq!(ask(&script, json!([user("Phase: triage"), turn, user("Phase: fix")])), Answer::text("one"));
            assert_eq!(ask(&script, json!([user("Phase: fix"), turn, user("result")])), Answer::text("two"));
            assert_eq!(ask(&script, json!([user("Phase: review"), user("the diff")])), Answer::text("the diff"));
            assert_eq!(ask(&script, json!([user("hi")])), Answer::text("hello"));
        }
    }

    #[test]
    fn what_is_not_scripted_is_refused_by_name_unless_there_is_an_answer_for_the_rest() {
        let phases = || Script::phases().phase("fix", [Answer::text("one")]);
        let beyond = json!([{ "role": "user", "content": "Phase: fix" }, { "role": "assistant", "content": "one" }]);
        let refused = ask(&phases().script(), beyond.clone());
        let sentence = "the script has no answer for turn 1 of phase fix";
        assert_eq!(refused.fault, Some(Fault::status(400, sentence)));
        let otherwise = ask(&phases().otherwise(Answer::text("enough")).script(), beyond);
        assert_eq!(otherwise, Answer::text("enough"));
    }

    #[test]
    fn a_passing_fault_ends_after_its_attempts() {
        let answer = Answer::text("ok").failing_first(2, Fault::busy(Some(1)));
        let faults: Vec<_> = (1..=3).map(|attempt| answer.fault_at(attempt).is_some()).collect();
        assert_eq!(faults, [true, true, false]);
    }
}
