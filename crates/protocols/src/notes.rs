//! What one protocol says and another cannot: noted while a request is read, judged while it is written.

use crate::json::Fields;
use crate::refused::Refused;
use crate::request::{Unsaid, Weight};

/// More names than any honest request needs; they go into one header.
const NAMES_MAX: usize = 32;
const NAME_LONGEST: usize = 64;

/// Fields without a place in the neutral form.
#[derive(Debug, Default)]
pub(crate) struct Notes(Vec<Unsaid>);

impl Notes {
    pub(crate) fn hint(&mut self, field: &str) {
        self.add(field, Weight::Hint);
    }

    pub(crate) fn meaning(&mut self, field: &str) {
        self.add(field, Weight::Meaning);
    }

    /// What nobody took from `fields` is not known, or not for this server.
    pub(crate) fn rest(&mut self, fields: &Fields<'_, '_>) {
        for name in fields.rest() {
            self.hint(name);
        }
    }

    /// Takes away each of `names` that is there and counts it as `weight`.
    pub(crate) fn take(&mut self, fields: &mut Fields<'_, '_>, names: &[&str], weight: Weight) -> Result<(), Refused> {
        for name in names {
            // An empty list or object and `false` ask for nothing.
            let asked = fields.take(name)?.filter(|raw| !matches!(raw.get(), "false" | "[]" | "{}" | "0" | "\"\""));
            if asked.is_some() {
                self.add(name, weight);
            }
        }
        Ok(())
    }

    fn add(&mut self, field: &str, weight: Weight) {
        let held = &mut self.0;
        let room = weight == Weight::Meaning || held.len() < NAMES_MAX;
        if room && !held.iter().any(|one| one.field == field && one.weight == weight) {
            held.push(Unsaid { field: field.to_owned(), weight });
        }
    }

    pub(crate) fn into_unsaid(self) -> Vec<Unsaid> {
        self.0
    }
}

/// Names of fields that were left out, fit for a header.
#[derive(Debug, Default)]
pub(crate) struct Dropped(Vec<String>);

impl Dropped {
    /// Errors: something that was left out changes the meaning.
    pub(crate) fn of(unsaid: &[Unsaid]) -> Result<Self, Refused> {
        let mut dropped = Self::default();
        for one in unsaid {
            match one.weight {
                Weight::Hint => dropped.add(&one.field),
                Weight::Meaning => return Err(cannot_say(&one.field)),
            }
        }
        Ok(dropped)
    }

    pub(crate) fn add(&mut self, field: &str) {
        let fit = |c: char| if c.is_ascii_alphanumeric() || "_.-[]".contains(c) { c } else { '?' };
        let name: String = field.chars().take(NAME_LONGEST).map(fit).collect();
        if self.0.len() < NAMES_MAX && !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    pub(crate) fn add_if(&mut self, field: &str, said: bool) {
        if said {
            self.add(field);
        }
    }

    pub(crate) fn into_names(self) -> Vec<String> {
        self.0
    }
}

pub(crate) fn cannot_say(field: &str) -> Refused {
    Refused::at(field, format!("The server of this model cannot do what `{field}` asks for."))
}
