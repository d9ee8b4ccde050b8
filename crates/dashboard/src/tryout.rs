//! Tries a model the way a Run asks it: at the gateway, with a token for that model alone.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::live::Live;
use fettle_app::ports::chain;
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::model::{Answered, Message, Model as _, ModelInfo, ModelRequest, RunAccess, TryModel};
use fettle_app::run_token::RunTokens;
use fettle_domain::budget::MIN_CONTEXT_TOKENS;
use fettle_domain::id::{CorrelationId, JobId, RunId};
use fettle_llm::{OpenAiCompatible, OpenAiOptions};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// A model that thinks first needs some hundred tokens before its word.
const MAX_TOKENS: u64 = 1_024;
const ASKED: &str = "Answer with the one word: ready";

pub(crate) struct Tryout {
    /// Where the gateway is; `None`: not known yet, or there is none.
    pub(crate) gateway: Live<Option<String>>,
    pub(crate) tokens: RunTokens,
    pub(crate) ids: Arc<dyn IdSource>,
}

#[async_trait]
impl TryModel for Tryout {
    async fn try_model(&self, name: &str) -> Result<Answered, String> {
        let gateway = self.gateway.now();
        let Some(url) = gateway.as_deref() else {
            return Err("There is no gateway to ask it at. Set gateway.url to where fettle-inference listens.".into());
        };
        // What it really has is nothing to one small question.
        let info = ModelInfo { name: name.to_owned(), context_tokens: MIN_CONTEXT_TOKENS };
        let options = OpenAiOptions::new(info, format!("{}/v1", url.trim_end_matches('/')), name.to_owned());
        let options = OpenAiOptions { is_gateway: true, ..options };
        let model = OpenAiCompatible::new(options).map_err(|error| chain(&error))?;
        let (run, job) = (RunId::from_uuid(self.ids.uuid()), JobId::from_uuid(self.ids.uuid()));
        let model = model.for_run(RunAccess {
            token: Some(self.tokens.trial(run, job, name.to_owned())),
            run,
            correlation: CorrelationId::from_uuid(self.ids.uuid()),
        });
        let request = ModelRequest {
            messages: vec![Message::User { text: ASKED.to_owned() }],
            tools: Vec::new(),
            max_tokens: MAX_TOKENS,
            stream: false,
        };
        let asked = Instant::now();
        let turn = model.call(&request, &|_| {}, &CancellationToken::new()).await.map_err(|error| chain(&error))?;
        Ok(Answered { took: asked.elapsed(), text: turn.text.trim().to_owned() })
    }
}
