//! A setting that may be replaced while the process runs. Whoever acts on it takes the value once and keeps it to the end of
//! what it does, so that no decision is made of two versions.

use std::sync::Arc;

use arc_swap::ArcSwap;

/// Clones share the value.
#[derive(Debug)]
pub struct Live<T>(Arc<ArcSwap<T>>);

impl<T> Live<T> {
    pub fn new(value: T) -> Self {
        Self(Arc::new(ArcSwap::from_pointee(value)))
    }

    /// The value as it is now.
    pub fn now(&self) -> Arc<T> {
        self.0.load_full()
    }

    /// For everybody who asks from now on.
    pub fn set(&self, value: T) {
        self.0.store(Arc::new(value));
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_taken_stays_and_whoever_asks_anew_gets_the_new_value() {
        let setting = Live::new(1);
        let (taken, shared) = (setting.now(), setting.clone());
        setting.set(2);
        assert_eq!((*taken, *shared.now()), (1, 2));
    }
}
