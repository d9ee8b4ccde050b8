//! How hard a text is to guess, as far as the text itself shows: what repeats, what is in a row and what everybody uses counts for
//! little.
//!
//! Says nothing good about a secret. What it refuses is certainly weak; what it lets through may be as well.

/// Bits of a secret that programs share: below this, who has one signature made with it can try all that it may be.
pub const LEAST_SECRET_BITS: u32 = 128;
/// Characters of a secret that are looked at; more make none stronger.
const LOOKED_AT_CHARS: usize = 512;
/// Characters in a row, or as before, that are no accident in a random secret.
const LEAST_RUN_OF_SECRET: usize = 6;
/// The same in what a person thinks up.
const LEAST_RUN_OF_PASSWORD: usize = 3;

/// What people type in a row: each stands for both directions.
const ROWS: [&str; 9] = [
    "abcdefghijklmnopqrstuvwxyz",
    "0123456789",
    "1234567890",
    "qwertyuiop",
    "qwertzuiop",
    "azertyuiop",
    "asdfghjkl",
    "zxcvbnm",
    "yxcvbnm",
];

/// Parts of secrets that stand in examples and are never changed, without signs between letters.
const EXAMPLES: [&str; 14] = [
    "changeme",
    "changethis",
    "changeit",
    "replaceme",
    "replacethis",
    "yoursecret",
    "yourkey",
    "yourtoken",
    "placeholder",
    "example",
    "insertsecret",
    "password",
    "supersecret",
    "notsecret",
];

/// Words that passwords are made of more often than others; whoever guesses begins with them.
const COMMON_WORDS: [&str; 64] = [
    "password",
    "passwort",
    "passwd",
    "motdepasse",
    "contrasena",
    "welcome",
    "willkommen",
    "letmein",
    "iloveyou",
    "trustno",
    "administrator",
    "admin",
    "login",
    "master",
    "secret",
    "geheim",
    "changeme",
    "default",
    "monkey",
    "dragon",
    "shadow",
    "sunshine",
    "princess",
    "football",
    "fussball",
    "baseball",
    "basketball",
    "superman",
    "batman",
    "starwars",
    "pokemon",
    "michael",
    "jennifer",
    "jordan",
    "thomas",
    "charlie",
    "computer",
    "internet",
    "server",
    "google",
    "facebook",
    "github",
    "nvidia",
    "linux",
    "windows",
    "samsung",
    "whatever",
    "freedom",
    "summer",
    "winter",
    "spring",
    "autumn",
    "sommer",
    "herbst",
    "january",
    "february",
    "october",
    "november",
    "december",
    "monday",
    "friday",
    "hello",
    "qwerty",
    "fettle",
];

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WeakSecret {
    #[error("it holds words of an example, which everybody tries first")]
    Example,
    #[error("it has {bits} bits at most that have to be guessed, and {LEAST_SECRET_BITS} are needed")]
    Guessable { bits: u32 },
}

/// Whether a secret that programs share may be one.
pub fn check_secret(text: &str) -> Result<(), WeakSecret> {
    let looked_at: String = text.chars().take(LOOKED_AT_CHARS).collect();
    let letters: String = looked_at.chars().filter(|one| one.is_alphanumeric()).flat_map(char::to_lowercase).collect();
    if EXAMPLES.iter().any(|example| letters.contains(example)) {
        return Err(WeakSecret::Example);
    }
    let chars = u32::try_from(unforeseen(&looked_at, LEAST_RUN_OF_SECRET)).unwrap_or(u32::MAX);
    let bits = chars.saturating_mul(centibits_of_each(&looked_at)) / 100;
    if bits < LEAST_SECRET_BITS { Err(WeakSecret::Guessable { bits }) } else { Ok(()) }
}

/// How many characters of a password its guesser has to find, beside words that come first anyway: those that passwords are made of
/// and those that `about` whom it is says. Signs that look like letters count as these.
pub fn unforeseen_of_password(password: &str, about: &[&str]) -> usize {
    let plain = password.to_lowercase();
    let read: String = plain.chars().map(letter_of).collect();
    let rest = |text: String| {
        let own = about.iter().copied().map(str::to_lowercase);
        let words = own.chain(COMMON_WORDS.iter().map(|word| (*word).to_owned()));
        let rest = words.fold(text, |rest, word| if word.is_empty() { rest } else { rest.replace(&word, "") });
        unforeseen(&rest, LEAST_RUN_OF_PASSWORD)
    };
    rest(plain).min(rest(read))
}

fn letter_of(sign: char) -> char {
    match sign {
        '0' => 'o',
        '1' | '!' => 'i',
        '3' => 'e',
        '4' | '@' => 'a',
        '5' | '$' => 's',
        '7' => 't',
        other => other,
    }
}

/// Characters, where a row and what stood there before count for one.
fn unforeseen(text: &str, least_run: usize) -> usize {
    let chars: Vec<char> = text.chars().collect();
    let (mut at, mut count) = (0, 0);
    while at < chars.len() {
        let run = row_at(&chars[at..]).max(copied_at(&chars, at));
        at += if run >= least_run { run } else { 1 };
        count += 1;
    }
    count
}

/// How many characters from here on are in a row.
fn row_at(chars: &[char]) -> usize {
    let first = chars[0].to_ascii_lowercase();
    let follows = |row: &mut dyn Iterator<Item = char>| {
        let row = row.skip_while(|one| *one != first);
        row.zip(chars).take_while(|(one, is)| *one == is.to_ascii_lowercase()).count()
    };
    ROWS.iter().map(|row| follows(&mut row.chars()).max(follows(&mut row.chars().rev()))).max().unwrap_or(1).max(1)
}

/// How many characters from here on stood in the text before.
fn copied_at(chars: &[char], at: usize) -> usize {
    let like = |from: usize| chars[from..].iter().zip(&chars[at..]).take_while(|(before, now)| before == now).count();
    (0..at).map(like).max().unwrap_or(0)
}

/// Hundredths of a bit for each character, if it is drawn from the smallest usual set that has all of them.
fn centibits_of_each(text: &str) -> u32 {
    let all = |is: fn(char) -> bool| text.chars().all(is);
    if all(|one| one.is_ascii_digit()) {
        332
    } else if all(|one| one.is_ascii_digit() || matches!(one, 'a'..='f')) {
        400
    } else if all(|one| one.is_ascii_lowercase()) || all(|one| one.is_ascii_uppercase()) {
        470
    } else if all(|one| one.is_ascii_digit() || one.is_ascii_lowercase()) {
        517
    } else if all(|one| one.is_ascii_alphanumeric()) {
        595
    } else {
        655
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn random_secrets_of_128_bits_and_more_are_let_through(bytes in proptest::collection::vec(any::<u8>(), 16..64)) {
            // By chance a few characters are as before; nobody makes 128 bits by hand, and programs make more.
            let hex = hex::encode(&bytes);
            if bytes.len() >= 20 {
                prop_assert_eq!(check_secret(&hex), Ok(()), "{}", hex);
                let made = format!("fettle_{}", hex);
                prop_assert_eq!(check_secret(&made), Ok(()));
            }
        }

        #[test]
        fn what_is_repeated_is_never_enough(part in "[a-zA-Z0-9]{1,8}", times in 2usize..60) {
            prop_assert!(check_secret(&part.repeat(times)).is_err());
        }

        #[test]
        fn no_text_is_too_odd(text in "\\PC{0,200}|.{0,200}") {
            let _ = check_secret(&text);
            prop_assert!(unforeseen_of_password(&text, &["ada"]) <= text.to_lowercase().chars().count());
        }
    }

    #[test]
    fn secrets_that_everybody_could_try_are_refused() {
        for weak in [
            "",
            "changeme",
            "please-change-me-please-change-me-now",
            "Example-Secret-Of-The-Documentation-0123",
            "my super secret and long webhook secret",
            "short-but-odd-7f3a",
            "0123456789abcdef0123456789abcdef",
            "abcdefghijklmnopqrstuvwxyz0123456789",
            "3141592653589793238462643383",
        ] {
            assert!(check_secret(weak).is_err(), "{weak}");
        }
        assert!(check_secret(&"x".repeat(1_000_000)).is_err());
        for good in [
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            "d4c1b5e2f39a7068c2ab4f6e1d0973b8",
            "qZ8+V1n0yK3mT7wLr2xB5s==",
            "mohn quirlt die laterne im nachbarhaus",
        ] {
            assert_eq!(check_secret(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_a_password_is_made_of_is_seen_through_its_disguise() {
        for (password, at_most) in [
            ("P@ssw0rd1234", 4),
            ("qwertyuiop123", 2),
            ("Summer2026!!", 7),
            ("aaaaaaaaaaaaaaaa", 2),
            ("abcabcabcabcabc", 2),
            ("johndoe-johndoe", 1),
        ] {
            let left = unforeseen_of_password(password, &["johndoe"]);
            assert!(left <= at_most, "{password}: {left}");
        }
        assert!(unforeseen_of_password("mohnfeld-quirlt-19-laternen", &[]) > 20);
    }
}
