//! The App's webhook: what was sent, what came of it, and sending it again.

use jiff::Timestamp;
use serde_json::{Value, json};

use super::state::{Forge, now};

/// Where the App's owner has deliveries sent.
pub(super) struct Hook {
    url: String,
    secret: String,
    /// Oldest first.
    pub(super) attempts: Vec<HookAttempt>,
}

/// One attempt to deliver an event.
#[derive(Debug, Clone)]
pub struct HookAttempt {
    pub id: u64,
    /// `X-GitHub-Delivery`, which a redelivery keeps.
    pub guid: String,
    pub at: Timestamp,
    pub redelivery: bool,
    /// 502 when nobody answered.
    pub status: u16,
    event: String,
    payload: Value,
}

impl HookAttempt {
    pub(super) fn listed(&self) -> Value {
        json!({
            "id": self.id,
            "guid": self.guid,
            "delivered_at": self.at,
            "redelivery": self.redelivery,
            "duration": 0.1,
            "status": if self.status == 502 { "failed to connect to host" } else { "OK" },
            "status_code": self.status,
            "event": self.event,
            "action": self.payload["action"],
            "installation_id": self.payload["installation"]["id"],
            "repository_id": self.payload["repository"]["id"],
            "throttled_at": null,
        })
    }
}

impl Forge {
    /// Deliveries go there from now on, signed with `secret`. What was sent before is forgotten.
    pub fn set_hook(&self, url: &str, secret: &str) {
        let hook = Hook { url: url.to_owned(), secret: secret.to_owned(), attempts: Vec::new() };
        self.lock().hook = Some(hook);
    }

    /// Sends an event to the hook, whether or not somebody listens; gives its id.
    pub async fn send_hook(&self, event: &str, payload: &Value) -> String {
        let guid = self.delivery_id();
        self.attempt(&guid, event, payload, false).await;
        guid
    }

    /// The attempts so far, oldest first.
    pub fn hook_attempts(&self) -> Vec<HookAttempt> {
        self.lock().hook.iter().flat_map(|hook| hook.attempts.clone()).collect()
    }

    /// Repeats an attempt. `None`: there was none with this id.
    pub(super) async fn send_again(&self, id: u64) -> Option<()> {
        let known = self.hook_attempts().into_iter().find(|attempt| attempt.id == id)?;
        self.attempt(&known.guid, &known.event, &known.payload, true).await;
        Some(())
    }

    async fn attempt(&self, guid: &str, event: &str, payload: &Value, redelivery: bool) {
        let (url, secret) = {
            let inner = self.lock();
            let hook = inner.hook.as_ref().expect("a hook was set");
            (hook.url.clone(), hook.secret.clone())
        };
        let answer = self.redeliver(&url, event, payload, &secret, guid).await;
        let status = answer.map_or(502, |answer| answer.status().as_u16());
        let mut inner = self.lock();
        let attempt = HookAttempt {
            id: inner.id(),
            guid: guid.to_owned(),
            at: now(),
            redelivery,
            status,
            event: event.to_owned(),
            payload: payload.clone(),
        };
        if let Some(hook) = &mut inner.hook {
            hook.attempts.push(attempt);
        }
        drop(inner);
        self.changed();
    }
}
