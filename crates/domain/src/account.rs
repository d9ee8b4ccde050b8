//! Accounts: names, what a password must be, when a sign-in waits, and who must not be lost.

use core::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use unicode_normalization::UnicodeNormalization as _;

use crate::access::Role;
use crate::strength::unforeseen_of_password;
use crate::unseen::is_ignorable;

/// Characters of a password at least; below it guessing is cheap, whatever they are.
pub const MIN_PASSWORD_CHARS: usize = 12;
/// Bytes of a password at most: hashing it costs time, and nobody types more.
pub const MAX_PASSWORD_BYTES: usize = 1024;
/// Characters that must be left of a password without what is tried first: the account's own names, common words, what is in a row or
/// repeated.
const LEAST_REST_CHARS: usize = 8;
/// Shorter names are in many good passwords by chance.
const LEAST_OWN_WORD_BYTES: usize = 4;
/// Characters of a user name: shown in lists, and written into the log of each change.
const USERNAME_CHARS: std::ops::RangeInclusive<usize> = 2..=64;
/// Bytes of an e-mail address at most (RFC 5321, 4.5.3.1.3, without the brackets).
const MAX_EMAIL_BYTES: usize = 254;

/// Wrong passwords in a row from one address that cost nothing: people mistype.
pub const FREE_FAILURES: u32 = 4;
/// From all addresses together: below it nobody who only knows the name can lock its owner out.
pub const FREE_FAILURES_ANYWHERE: u32 = 20;
/// The first wait; each further failure doubles it.
pub const LOCK_BASE: Duration = Duration::from_secs(60);
/// A guesser has at most 24 tries a day then.
pub const LOCK_CAP: Duration = Duration::from_secs(3600);
/// After a sign-in its address stays familiar for as long as the longest session lasts.
pub const FAMILIAR_FOR: Duration = Duration::from_secs(30 * 24 * 3600);
/// Failures older than this are forgotten.
pub const FAILURES_LAST: Duration = Duration::from_secs(24 * 3600);

/// Letters, digits, `.`, `_` and `-`, beginning with a letter or digit; small letters, so that two names differ visibly.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Username(String);

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    #[error(
        "a user name has 2 to 64 letters, digits, `.`, `_` or `-`, and begins with a letter or digit; `admin`, `admin-key`, `system` and `unknown` are taken"
    )]
    Username,
    #[error("this is not an e-mail address")]
    Email,
}

impl Username {
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let plain = |byte: u8| byte.is_ascii_alphanumeric();
        let good = USERNAME_CHARS.contains(&text.len())
            && text.bytes().next().is_some_and(plain)
            && text.bytes().all(|byte| plain(byte) || b"._-".contains(&byte));
        let name = text.to_ascii_lowercase();
        // These stand in the audit log for those who are no accounts.
        let taken = ["admin", "admin-key", "system", "unknown"].contains(&name.as_str());
        if good && !taken { Ok(Self(name)) } else { Err(NameError::Username) }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Something with one `@` that could be delivered to; small letters, since no provider in use tells them apart.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Email(String);

impl Email {
    pub fn parse(text: &str) -> Result<Self, NameError> {
        let text = text.trim();
        let visible = text.chars().all(|one| !one.is_whitespace() && !is_ignorable(one));
        let parts = text.split_once('@').filter(|(local, domain)| {
            !local.is_empty() && !domain.contains('@') && !domain.starts_with('.') && !domain.ends_with('.')
        });
        match parts {
            Some((_, domain)) if !domain.is_empty() && visible && text.len() <= MAX_EMAIL_BYTES => {
                Ok(Self(text.to_lowercase()))
            }
            _ => Err(NameError::Email),
        }
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakPassword {
    #[error("a password has at least {MIN_PASSWORD_CHARS} characters")]
    Short,
    #[error("a password has at most {MAX_PASSWORD_BYTES} bytes")]
    Long,
    #[error("this password is easily guessed: a few unrelated words are better")]
    Guessable,
}

/// A password as it is hashed and compared: keyboards and systems write the same letters in several ways (NFKC).
pub fn normalised(password: &str) -> String {
    password.nfkc().collect()
}

/// Whether a new password will do. `about` are words that somebody who knows the account tries first.
pub fn check_password(password: &str, about: &[&str]) -> Result<(), WeakPassword> {
    if password.len() > MAX_PASSWORD_BYTES {
        return Err(WeakPassword::Long);
    }
    let password = &normalised(password);
    if password.chars().count() < MIN_PASSWORD_CHARS {
        return Err(WeakPassword::Short);
    }
    let own: Vec<&str> = about.iter().copied().filter(|word| word.len() >= LEAST_OWN_WORD_BYTES).collect();
    if unforeseen_of_password(password, &own) < LEAST_REST_CHARS { Err(WeakPassword::Guessable) } else { Ok(()) }
}

/// Wrong passwords in a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    pub count: u32,
    pub last_at: Option<Timestamp>,
}

impl Failures {
    /// One more. Those of long ago do not count.
    #[must_use]
    pub fn after_one_more(self, now: Timestamp) -> Self {
        let recent = self.last_at.is_some_and(|last| since(last, now) < seconds(FAILURES_LAST));
        let before = if recent { self.count } else { 0 };
        Self { count: before.saturating_add(1), last_at: Some(now) }
    }

    /// Until when no password is looked at, if so many cost nothing.
    fn locked_until(self, free: u32) -> Option<Timestamp> {
        let beyond = self.count.checked_sub(free + 1)?;
        let wait = LOCK_BASE.saturating_mul(1 << beyond.min(16)).min(LOCK_CAP);
        self.last_at?.checked_add(seconds(wait)).ok()
    }
}

/// What counts when somebody at one address asks to sign in to an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Tries {
    /// From this address.
    pub here: Failures,
    /// When the account last signed in from it.
    pub signed_in_at: Option<Timestamp>,
    pub anywhere: Failures,
}

impl Tries {
    #[must_use]
    pub fn after_one_more(self, now: Timestamp) -> Self {
        Self { here: self.here.after_one_more(now), anywhere: self.anywhere.after_one_more(now), ..self }
    }

    /// Until when no password from this address is looked at. Failures elsewhere lock out only addresses that the account did not
    /// sign in from lately: whoever knows a name could keep its owner out otherwise.
    pub fn locked_until(self, now: Timestamp) -> Option<Timestamp> {
        let familiar = self.signed_in_at.is_some_and(|last| since(last, now) < seconds(FAMILIAR_FOR));
        let anywhere = if familiar { None } else { locked_elsewhere(self.anywhere) };
        self.here.locked_until(FREE_FAILURES).max(anywhere).filter(|until| now < *until)
    }

    pub fn locked(self, now: Timestamp) -> bool {
        self.locked_until(now).is_some()
    }
}

/// Until when no password from an unfamiliar address is looked at.
pub fn locked_elsewhere(anywhere: Failures) -> Option<Timestamp> {
    anywhere.locked_until(FREE_FAILURES_ANYWHERE)
}

/// What counts as one address: of IPv6 the network, of which everybody has all addresses.
pub fn network(address: &str) -> String {
    match address.parse::<IpAddr>().map(|address| address.to_canonical()) {
        Ok(IpAddr::V6(address)) => {
            let [a, b, c, d, ..] = address.segments();
            format!("{}/64", Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
        }
        Ok(IpAddr::V4(address)) => address.to_string(),
        Err(_) => address.to_owned(),
    }
}

/// What decides whether somebody can put things right again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub role: Role,
    pub active: bool,
}

impl Standing {
    pub fn is_active_admin(self) -> bool {
        self.active && self.role == Role::Admin
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this is the last active admin")]
pub struct LastAdmin;

/// Whether an account may go from one standing to another, when so many others are active admins.
pub fn change_standing(from: Standing, to: Standing, other_active_admins: u64) -> Result<Standing, LastAdmin> {
    if from.is_active_admin() && !to.is_active_admin() && other_active_admins == 0 { Err(LastAdmin) } else { Ok(to) }
}

fn since(then: Timestamp, now: Timestamp) -> SignedDuration {
    now.duration_since(then)
}

fn seconds(duration: Duration) -> SignedDuration {
    SignedDuration::from_secs(i64::try_from(duration.as_secs()).unwrap_or(i64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    proptest! {
        #[test]
        fn waits_begin_late_only_grow_and_end(tries in 1u32..40) {
            let mut failures = Tries::default();
            let (mut now, mut last_wait) = (at(1_000_000), SignedDuration::ZERO);
            for _ in 0..tries {
                failures = failures.after_one_more(now);
                let wait = failures.locked_until(now).map_or(SignedDuration::ZERO, |until| until.duration_since(now));
                prop_assert_eq!(wait.is_zero(), failures.here.count <= FREE_FAILURES);
                prop_assert!(wait >= last_wait && wait <= seconds(LOCK_CAP));
                prop_assert_eq!(failures.locked(now), !wait.is_zero());
                now = now.checked_add(wait).unwrap();
                prop_assert!(!failures.locked(now));
                last_wait = wait;
            }
        }

        // Each address alone is locked out early, and a new one for each try gains little.
        #[test]
        fn a_guesser_who_waits_has_few_tries_a_day(seed in 0i64..1_000_000, addresses in 1usize..60) {
            let (mut here, mut anywhere) = (vec![Failures::default(); addresses], Failures::default());
            let (mut now, mut tries) = (at(seed), 0);
            let end = at(seed + 24 * 3600);
            while now < end {
                let of = |here: Failures| Tries { here, signed_in_at: None, anywhere };
                match (0..addresses).find(|&one| !of(here[one]).locked(now)) {
                    Some(free) => {
                        let after = of(here[free]).after_one_more(now);
                        (here[free], anywhere) = (after.here, after.anywhere);
                        tries += 1;
                    }
                    None => {
                        let waits = here.iter().filter_map(|&one| of(one).locked_until(now));
                        now = waits.min().unwrap_or(end);
                    }
                }
            }
            prop_assert!(tries < 60, "{} tries", tries);
        }

        #[test]
        fn nobody_elsewhere_locks_out_who_signed_in_here_lately(
            elsewhere in 0u32..10_000, mistyped in 0u32..=FREE_FAILURES, days in 0i64..30,
        ) {
            let now = at(100 * 24 * 3600);
            let tries = Tries {
                here: Failures { count: mistyped, last_at: Some(now) },
                signed_in_at: Some(at((100 - days) * 24 * 3600)),
                anywhere: Failures { count: elsewhere, last_at: Some(now) },
            };
            prop_assert!(!tries.locked(now));
            let stranger = Tries { signed_in_at: None, ..tries };
            prop_assert_eq!(stranger.locked(now), elsewhere > FREE_FAILURES_ANYWHERE);
        }

        #[test]
        fn an_active_admin_is_always_left(
            mut accounts in proptest::collection::vec((select(Role::ALL.to_vec()), any::<bool>()), 1..6),
            changes in proptest::collection::vec((0usize..6, select(Role::ALL.to_vec()), any::<bool>()), 0..30),
        ) {
            accounts[0] = (Role::Admin, true);
            let mut all: Vec<Standing> = accounts.into_iter().map(|(role, active)| Standing { role, active }).collect();
            for (which, role, active) in changes {
                let which = which % all.len();
                let others = all.iter().enumerate().filter(|(i, one)| *i != which && one.is_active_admin()).count();
                if let Ok(next) = change_standing(all[which], Standing { role, active }, others as u64) {
                    all[which] = next;
                }
                prop_assert!(all.iter().any(|one| one.is_active_admin()));
            }
        }

        #[test]
        fn names_survive_being_parsed_again(text in ".{0,80}") {
            if let Ok(name) = Username::parse(&text) {
                prop_assert_eq!(Username::parse(name.as_str()), Ok(name.clone()));
                prop_assert!(!name.as_str().contains('@'), "a name is never taken for an address");
            }
            if let Ok(email) = Email::parse(&text) {
                prop_assert!(!email.as_str().chars().any(char::is_control));
            }
        }
    }

    #[test]
    fn failures_of_yesterday_are_forgotten() {
        let old = Failures { count: 30, last_at: Some(at(0)) };
        assert_eq!(old.after_one_more(at(24 * 3600)).count, 1);
        assert_eq!(old.after_one_more(at(24 * 3600 - 1)).count, 31);
    }

    #[test]
    fn an_ipv6_network_is_one_address() {
        assert_eq!(network("2001:db8:1:2:3:4:5:6"), network("2001:db8:1:2::9"));
        assert_ne!(network("2001:db8:1:2::9"), network("2001:db8:1:3::9"));
        assert_ne!(network("192.0.2.1"), network("192.0.2.2"));
        assert_eq!(network("::ffff:192.0.2.1"), "192.0.2.1");
        assert_eq!(network(""), "");
    }

    #[test]
    fn guessable_passwords_are_refused_and_others_are_not() {
        for (password, why) in [
            ("Tr0ub4dor&3", WeakPassword::Short),
            ("password1234", WeakPassword::Guessable),
            ("aaaaaaaaaaaaaaaa", WeakPassword::Guessable),
            ("qwertyuiop123", WeakPassword::Guessable),
            ("johndoe-johndoe", WeakPassword::Guessable),
            (&"x".repeat(MAX_PASSWORD_BYTES + 1), WeakPassword::Long),
        ] {
            assert_eq!(check_password(password, &["johndoe"]), Err(why), "{password}");
        }
        for good in ["correct horse battery staple", "mohnfeld-quirlt-19-laternen"] {
            assert_eq!(check_password(good, &["johndoe"]), Ok(()), "{good}");
        }
    }

    #[test]
    fn odd_names_and_addresses_are_refused() {
        for odd in ["", "a", "-ab", "a b", "a@b", "a\nb", "ädam", "system", "Admin-Key", &"a".repeat(65)] {
            assert!(Username::parse(odd).is_err(), "{odd}");
        }
        assert_eq!(Username::parse("Ada.L").unwrap().as_str(), "ada.l");
        for odd in ["", "a", "@b", "a@", "a@b@c", "a b@c", "a@.b", "a\r\n@b", "a\u{202e}b@c", "a\u{200b}@b"] {
            assert!(Email::parse(odd).is_err(), "{odd}");
        }
    }
}
