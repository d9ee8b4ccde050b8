//! Which function a result belongs to, for protocols that name it where others give the call's id.

use std::collections::BTreeMap;

use crate::request::{Message, Part};

/// The calls of a conversation up to some turn.
#[derive(Debug, Default)]
pub(crate) struct Called<'m>(BTreeMap<&'m str, &'m str>);

impl<'m> Called<'m> {
    /// An id that is used again means the later call from then on.
    pub(crate) fn note(&mut self, message: &'m Message) {
        for part in &message.parts {
            if let Part::Call { id, name, .. } = part {
                self.0.insert(id, name);
            }
        }
    }

    pub(crate) fn name(&self, id: &str) -> Option<&'m str> {
        self.0.get(id).copied()
    }
}
