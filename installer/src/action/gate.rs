//! The health gate: an installation or upgrade counts only when the services themselves say that they are ready.

use serde::{Deserialize, Serialize};

use super::{ActError, ActResult, Check, Description, Trace};
use crate::host::{Host, HostView, PAUSE};

/// Good answers in a row: one alone could come from a process that is about to end.
const IN_A_ROW: usize = 3;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Gate {
    /// What must answer 200.
    pub urls: Vec<String>,
    /// The version that must answer, so that the process before an upgrade does not pass for the one after it.
    pub version: String,
    /// How long that may take, in seconds.
    pub limit_s: u32,
}

impl Gate {
    pub(super) fn describe(&self) -> Description {
        Description {
            what: format!("wait until {} say that {} is ready", self.urls.join(", "), self.version),
            why: "an installation counts when its services answer".to_owned(),
            revert: "nothing".to_owned(),
        }
    }

    pub(super) fn check(&self, host: &dyn HostView) -> ActResult<Check> {
        Ok(self.missing(host).map_or(Check::Done, Check::Needed))
    }

    /// Errors with the last answer that was not good, when the time is over.
    pub(super) fn wait(&self, host: &mut dyn Host) -> ActResult<Trace> {
        let looks = (f64::from(self.limit_s) / PAUSE.as_secs_f64()).ceil() as usize;
        let (mut good, mut last) = (0, String::new());
        for _ in 0..looks.max(IN_A_ROW) {
            match self.missing(host) {
                None => good += 1,
                Some(what) => (good, last) = (0, what),
            }
            if good == IN_A_ROW {
                return Ok(Trace::Nothing);
            }
            host.pause();
        }
        Err(ActError::Gate(format!("{last} (within {} s)", self.limit_s)))
    }

    /// The first thing that keeps the gate closed.
    fn missing(&self, host: &dyn HostView) -> Option<String> {
        self.urls.iter().find_map(|url| match host.get(url) {
            Err(error) => Some(format!("{url} does not answer: {error}")),
            Ok(answer) if answer.status != 200 => {
                Some(format!("{url} answers {}: {}", answer.status, answer.body.trim()))
            }
            Ok(answer) => {
                let said: Option<serde_json::Value> = serde_json::from_str(&answer.body).ok();
                let version = said.as_ref().and_then(|body| body["version"].as_str()).unwrap_or("no version");
                (version != self.version).then(|| format!("{url} is answered by {version}, not by {}", self.version))
            }
        })
    }
}
