//! Tries a model the way a Run asks it: at the gateway, with a token for that model alone.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use fettle_app::ports::chain;
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::model::{Answered, TryModel};
use fettle_app::run_token::RunTokens;
use fettle_domain::id::{JobId, RunId};
use reqwest::redirect::Policy;
use secrecy::ExposeSecret as _;
use serde::Deserialize;
use serde_json::json;
use tokio::time::Instant;

/// A model that thinks first needs some hundred tokens before its word.
const MAX_TOKENS: u64 = 1_024;
/// Whoever asks has given up by then.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);
/// One word, and whatever a server adds to it.
const MAX_ANSWER_BYTES: usize = 256 * 1024;
const ASKED: &str = "Answer with the one word: ready";

pub struct Tryout {
    /// Where the gateway is; `None`: there is none.
    pub gateway: Option<String>,
    pub tokens: RunTokens,
    pub ids: Arc<dyn IdSource>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    choices: Vec<Choice>,
    error: Option<Complaint>,
}

#[derive(Deserialize)]
struct Choice {
    message: Message,
}

#[derive(Deserialize)]
struct Message {
    content: Option<String>,
}

#[derive(Deserialize)]
struct Complaint {
    message: String,
}

#[async_trait]
impl TryModel for Tryout {
    async fn try_model(&self, name: &str) -> Result<Answered, String> {
        let Some(url) = &self.gateway else {
            return Err("There is no gateway to ask it at. Set gateway.url to where fettle-inference listens.".into());
        };
        let (run, job) = (RunId::from_uuid(self.ids.uuid()), JobId::from_uuid(self.ids.uuid()));
        let token = self.tokens.trial(run, job, name.to_owned());
        let http = reqwest::Client::builder().timeout(ANSWER_LIMIT).redirect(Policy::none()).no_proxy().build();
        let http = http.map_err(|error| chain(&error))?;
        let question = json!({
            "model": name, "max_tokens": MAX_TOKENS, "messages": [{ "role": "user", "content": ASKED }],
        });
        let asked = Instant::now();
        let away = |error: reqwest::Error| format!("The gateway could not be asked: {}.", chain(&error.without_url()));
        let url = format!("{}/v1/chat/completions", url.trim_end_matches('/'));
        let mut answer =
            http.post(url).bearer_auth(token.expose_secret()).json(&question).send().await.map_err(away)?;
        let (status, mut body) = (answer.status(), Vec::new());
        while let Some(chunk) = answer.chunk().await.map_err(away)? {
            if body.len() + chunk.len() > MAX_ANSWER_BYTES {
                return Err("It answered with more than anybody reads.".to_owned());
            }
            body.extend_from_slice(&chunk);
        }
        let took = asked.elapsed();
        let odd = || format!("The gateway answered {} without a word that is understood here.", status.as_u16());
        let said: Said = serde_json::from_slice(&body).map_err(|_| odd())?;
        if let Some(complaint) = said.error {
            return Err(complaint.message);
        }
        let choice = said.choices.into_iter().next().filter(|_| status.is_success()).ok_or_else(odd)?;
        Ok(Answered { took, text: choice.message.content.unwrap_or_default().trim().to_owned() })
    }
}
