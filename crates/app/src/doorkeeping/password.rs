//! Hashes passwords on threads where that may take its time, few at once.

use std::sync::Arc;
use std::time::Duration;

use argon2::password_hash::{PasswordHash as Phc, PasswordHasher as _, PasswordVerifier as _, SaltString};
use argon2::{Algorithm, Argon2, Params, Version};
use fettle_domain::account::normalised;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::ports::accounts::PasswordHash;

/// OWASP's first choice for Argon2id: 19 MiB, two passes, one lane.
const MEMORY_KIB: u32 = 19 * 1024;
const PASSES: u32 = 2;
const LANES: u32 = 1;
/// Each takes 19 MiB and a core for some 20 ms, so a flood of sign-ins takes neither all memory nor all cores.
const AT_ONCE: usize = 2;
/// Who waits longer is told to come back: the line is as long as a flood makes it.
const WAIT: Duration = Duration::from_secs(5);
/// bcrypt's cost of an imported hash at most; each step doubles the time, and 14 takes a second.
const MAX_BCRYPT_COST: u32 = 14;

/// Of no password: what an unknown account's is compared with, so that it costs what a known one's does.
const NOBODY: &str = "$argon2id$v=19$m=19456,t=2,p=1$bm9ib2R5IGhhcyB0aGlz$RdescudvJCsgt3ub+b5dWRWJTmaaJObGRdescudvJCs";

/// Too many at once; or the thread was stopped in its middle.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too many passwords are being checked")]
pub struct Busy;

#[derive(Debug, Clone)]
pub(super) struct Passwords {
    permits: Arc<Semaphore>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Checked {
    Right {
        /// By today's measure, if the stored one is weaker.
        upgraded: Option<PasswordHash>,
    },
    Wrong,
}

impl Default for Passwords {
    fn default() -> Self {
        Self { permits: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// The right to have passwords hashed, one after the other. Held until a wrong one is written down, it keeps guesses that come at
/// once from being all weighed against the same count.
#[derive(Debug, Clone)]
pub(super) struct Turn {
    _permit: Arc<OwnedSemaphorePermit>,
}

impl Passwords {
    /// Waits for one's turn.
    pub(super) async fn turn(&self) -> Result<Turn, Busy> {
        let permit = tokio::time::timeout(WAIT, self.permits.clone().acquire_owned()).await;
        let permit = permit.map_err(|_| Busy)?.map_err(|_| Busy)?;
        Ok(Turn { _permit: Arc::new(permit) })
    }

    pub(super) async fn hash(&self, password: &SecretString, salt: [u8; 32]) -> Result<PasswordHash, Busy> {
        self.turn().await?.hash(password, salt).await
    }
}

impl Turn {
    pub(super) async fn hash(&self, password: &SecretString, salt: [u8; 32]) -> Result<PasswordHash, Busy> {
        let password = password.clone();
        self.run(move || hash(&password, &salt)).await
    }

    /// `None`: there is no such account; takes as long as if there were.
    pub(super) async fn check(
        &self,
        password: &SecretString,
        stored: Option<&PasswordHash>,
        salt: [u8; 32],
    ) -> Result<Checked, Busy> {
        let (password, stored) = (password.clone(), stored.cloned());
        self.run(move || {
            // One who has no password costs what one who has costs.
            let text = stored.as_ref().map(|stored| stored.0.as_str()).filter(|text| !text.is_empty());
            let (known, text) = (text.is_some(), text.unwrap_or(NOBODY));
            let right = verifies(&normal(&password), text);
            // Hashes that were made before passwords were normalised, or elsewhere, are of what was typed then.
            let as_typed = !right && is_unusual(&password) && verifies(&password, text);
            if !known || !(right || as_typed) {
                return Checked::Wrong;
            }
            Checked::Right { upgraded: (as_typed || is_weaker(text)).then(|| hash(&password, &salt)) }
        })
        .await
    }

    /// The turn lasts as long as the thread, also when nobody waits for it any more.
    async fn run<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T, Busy> {
        let turn = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(turn);
            done
        });
        done.await.map_err(|_| Busy)
    }
}

fn argon2() -> Argon2<'static> {
    let params = Params::new(MEMORY_KIB, PASSES, LANES, None).expect("the parameters are in range");
    Argon2::new(Algorithm::Argon2id, Version::V0x13, params)
}

fn hash(password: &SecretString, salt: &[u8; 32]) -> PasswordHash {
    let salt = SaltString::encode_b64(&salt[..16]).expect("16 bytes are a salt");
    let hashed = argon2().hash_password(normal(password).expose_secret().as_bytes(), &salt);
    PasswordHash(hashed.expect("passwords are far shorter than 4 GiB").to_string())
}

fn normal(password: &SecretString) -> SecretString {
    normalised(password.expose_secret()).into()
}

fn is_unusual(password: &SecretString) -> bool {
    normalised(password.expose_secret()) != password.expose_secret()
}

/// Takes the parameters from the hash, so that older ones verify as well.
fn verifies(password: &SecretString, stored: &str) -> bool {
    let password = password.expose_secret();
    if stored.starts_with("$2") {
        return bcrypt_cost(stored).is_some_and(|cost| cost <= MAX_BCRYPT_COST)
            && bcrypt::verify(password, stored).unwrap_or(false);
    }
    Phc::new(stored).is_ok_and(|phc| argon2().verify_password(password.as_bytes(), &phc).is_ok())
}

fn bcrypt_cost(stored: &str) -> Option<u32> {
    stored.split('$').nth(2)?.parse().ok()
}

fn is_weaker(stored: &str) -> bool {
    let Ok(phc) = Phc::new(stored) else { return true };
    let params = Params::try_from(&phc);
    phc.algorithm.as_str() != "argon2id"
        || params.map_or(true, |params| params.m_cost() < MEMORY_KIB || params.t_cost() < PASSES)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn secret(text: &str) -> SecretString {
        SecretString::from(text)
    }

    #[tokio::test]
    async fn only_the_right_password_is_right_and_a_weaker_hash_is_made_anew() {
        let passwords = Passwords::default();
        let (right, wrong) = (secret("correct horse"), secret("correct horsf"));
        let stored = passwords.hash(&right, [7; 32]).await.unwrap();
        assert!(stored.0.starts_with("$argon2id$v=19$m=19456,t=2,p=1$"), "{}", stored.0);
        assert_eq!(
            passwords.turn().await.unwrap().check(&right, Some(&stored), [1; 32]).await,
            Ok(Checked::Right { upgraded: None })
        );
        assert_eq!(passwords.turn().await.unwrap().check(&wrong, Some(&stored), [1; 32]).await, Ok(Checked::Wrong));
        assert_eq!(passwords.turn().await.unwrap().check(&right, None, [1; 32]).await, Ok(Checked::Wrong));

        let old = PasswordHash(bcrypt::hash("correct horse", 4).unwrap());
        let checked = passwords.turn().await.unwrap().check(&right, Some(&old), [1; 32]).await.unwrap();
        let Checked::Right { upgraded: Some(upgraded) } = checked else { panic!("{checked:?}") };
        assert_eq!(
            passwords.turn().await.unwrap().check(&right, Some(&upgraded), [1; 32]).await,
            Ok(Checked::Right { upgraded: None })
        );
        assert_eq!(passwords.turn().await.unwrap().check(&wrong, Some(&old), [1; 32]).await, Ok(Checked::Wrong));
    }

    #[tokio::test]
    async fn a_password_is_the_same_however_its_letters_are_written() {
        let passwords = Passwords::default();
        let (composed, decomposed, wide) =
            (secret("Größe-der-Äpfel"), secret("Gro\u{308}ße-der-A\u{308}pfel"), secret("Ｇröße-der-Äpfel"));
        let stored = passwords.hash(&decomposed, [7; 32]).await.unwrap();
        for typed in [&composed, &decomposed, &wide] {
            assert_eq!(
                passwords.turn().await.unwrap().check(typed, Some(&stored), [1; 32]).await,
                Ok(Checked::Right { upgraded: None })
            );
        }
        let old = PasswordHash(bcrypt::hash(decomposed.expose_secret(), 4).unwrap());
        let checked = passwords.turn().await.unwrap().check(&decomposed, Some(&old), [1; 32]).await.unwrap();
        let Checked::Right { upgraded: Some(upgraded) } = checked else { panic!("{checked:?}") };
        assert_eq!(
            passwords.turn().await.unwrap().check(&composed, Some(&upgraded), [1; 32]).await,
            Ok(Checked::Right { upgraded: None })
        );
        assert_eq!(
            passwords.turn().await.unwrap().check(&secret("Grosse-der-Apfel"), Some(&stored), [1; 32]).await,
            Ok(Checked::Wrong)
        );
        for typed in ["", "anything"] {
            assert_eq!(
                passwords.turn().await.unwrap().check(&secret(typed), Some(&PasswordHash::none()), [1; 32]).await,
                Ok(Checked::Wrong)
            );
        }
    }

    #[test]
    fn what_an_unknown_account_costs_is_what_a_known_one_costs() {
        let phc = Phc::new(NOBODY).unwrap();
        assert!(!is_weaker(NOBODY) && phc.hash.is_some_and(|hash| hash.len() == 32));
        let costly = "$2b$31$abcdefghijklmnopqrstuuabcdefghijklmnopqrstuvwxyzabcdefghi";
        assert!(!verifies(&secret("x"), costly), "an import cannot make a sign-in take hours");
    }
}
