//! `fettle admin users …` and `fettle admin audit-log`: accounts and what was done with them, for whoever has the machine's admin key.

use std::io::{Read as _, Write as _};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::SecretSource as _;
use fettle_domain::account::MAX_PASSWORD_BYTES;
use fettle_domain::audit_log::{Entry, Head};
use fettle_runtime::secrets;
use fettle_runtime::system::RandomSecrets;
use secrecy::{ExposeSecret as _, SecretString};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::client::Client;
use crate::progress::{note, one_line};
use crate::table::table;
use crate::tasks::understand;

/// As large as the API gives them.
const USERS_A_PAGE: &str = "200";
/// Of a password that is made here: 32 letters and digits that nobody takes for each other, 5 bits each.
const PASSWORD_SIGNS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// Signs of one of its groups, and how many groups there are: 120 bits.
const GROUP: usize = 6;
const GROUPS: usize = 4;
/// A line of the log has at most six texts of 512 bytes, escaped.
const MAX_LINE_BYTES: usize = 64 * 1024;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List accounts.
    List,
    /// Make an account. Prints a password that was made for it, unless one is given.
    Add {
        name: String,
        #[arg(long)]
        email: String,
        #[arg(long, value_enum, default_value_t = Role::Viewer)]
        role: Role,
        #[command(flatten)]
        password: PasswordFrom,
    },
    /// Change an account's role, or whether it may sign in.
    #[command(group = clap::ArgGroup::new("change").required(true).multiple(true))]
    Set {
        name: String,
        #[arg(long, value_enum, group = "change")]
        role: Option<Role>,
        /// `false` ends its sessions and keeps it out, with its API keys.
        #[arg(long, group = "change", value_name = "BOOL")]
        active: Option<bool>,
    },
    /// Set a new password, end all sessions of the account and forget wrong passwords. Prints one that was made, unless one is given.
    Password {
        name: String,
        #[command(flatten)]
        password: PasswordFrom,
    },
}

#[derive(clap::Args)]
pub(crate) struct PasswordFrom {
    /// A file with the password, or `-` for standard input.
    #[arg(long, value_name = "FILE")]
    password_file: Option<Utf8PathBuf>,
}

#[derive(Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Viewer,
    Maintainer,
    Admin,
}

impl Role {
    fn name(self) -> &'static str {
        match self {
            Self::Viewer => "viewer",
            Self::Maintainer => "maintainer",
            Self::Admin => "admin",
        }
    }
}

#[derive(clap::Args)]
pub(crate) struct LogFlags {
    /// Read the whole log and check that no entry was changed, taken out or put in.
    #[arg(long)]
    verify: bool,
    /// How many of the newest entries.
    #[arg(long, default_value_t = 50, conflicts_with = "verify", value_parser = clap::value_parser!(u16).range(1..=200))]
    limit: u16,
}

#[derive(Deserialize)]
struct Page {
    items: Vec<Value>,
    next: Option<String>,
}

#[derive(Deserialize)]
struct User {
    id: String,
    username: String,
    email: String,
    role: String,
    active: bool,
    last_login_at: Option<String>,
    locked_until: Option<String>,
}

/// A password, and whether its owner has yet to be told.
struct Chosen {
    password: SecretString,
    made: bool,
}

impl PasswordFrom {
    fn choose(&self) -> Result<Chosen> {
        let password = match &self.password_file {
            None => return Ok(Chosen { password: made(), made: true }),
            Some(file) if file == Utf8Path::new("-") => {
                let mut text = String::new();
                let most = u64::try_from(MAX_PASSWORD_BYTES).unwrap_or(u64::MAX) + 2;
                std::io::stdin().take(most).read_to_string(&mut text).context("while reading the password")?;
                SecretString::from(text.trim_end_matches(['\r', '\n']).to_owned())
            }
            Some(file) => secrets::read(file)?,
        };
        Ok(Chosen { password, made: false })
    }
}

fn made() -> SecretString {
    let random = RandomSecrets.secret();
    let signs: Vec<char> = random.iter().map(|byte| char::from(PASSWORD_SIGNS[usize::from(byte % 32)])).collect();
    let groups: Vec<String> = signs.chunks(GROUP).take(GROUPS).map(|group| group.iter().collect()).collect();
    SecretString::from(groups.join("-"))
}

pub(crate) async fn run(client: &Client, command: &Command, json: bool) -> Result<ExitCode> {
    match command {
        Command::List => list(client, json).await?,
        Command::Add { name, email, role, password } => {
            let chosen = password.choose()?;
            let body = json!({
                "username": name, "email": email, "role": role.name(), "password": chosen.password.expose_secret(),
            });
            let (_, user) = client.post(&["api", "v1", "users"], Some(&body), None).await?;
            tell("added", user, Some(&chosen), json)?;
        }
        Command::Set { name, role, active } => {
            let mut body = serde_json::Map::new();
            body.extend(role.map(|role| ("role".to_owned(), role.name().into())));
            body.extend(active.map(|active| ("active".to_owned(), active.into())));
            let user = change(client, name, &Value::Object(body)).await?;
            tell("changed", user, None, json)?;
        }
        Command::Password { name, password } => {
            let chosen = password.choose()?;
            let user = change(client, name, &json!({ "password": chosen.password.expose_secret() })).await?;
            tell("set the password of", user, Some(&chosen), json)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn all(client: &Client) -> Result<Vec<Value>> {
    let (mut users, mut after) = (Vec::new(), None::<String>);
    loop {
        let mut query = vec![("limit", USERS_A_PAGE)];
        query.extend(after.as_deref().map(|after| ("after", after)));
        let page: Page = understand(client.get(&["api", "v1", "users"], &query).await?)?;
        users.extend(page.items);
        match page.next {
            Some(next) if after.as_ref() != Some(&next) => after = Some(next),
            Some(_) | None => return Ok(users),
        }
    }
}

/// Of the account with this name or e-mail address.
async fn change(client: &Client, name: &str, body: &Value) -> Result<Value> {
    let wanted = name.to_lowercase();
    for user in all(client).await? {
        let user: User = understand(user)?;
        if user.username == wanted || user.email == wanted {
            return client.patch(&["api", "v1", "users", &user.id], body).await;
        }
    }
    bail!("there is no account `{}`; `fettle admin users list` shows all", one_line(name));
}

async fn list(client: &Client, json: bool) -> Result<()> {
    let users = all(client).await?;
    let mut out = std::io::stdout().lock();
    if json {
        return Ok(writeln!(out, "{}", json!({ "items": users }))?);
    }
    if users.is_empty() {
        return Ok(writeln!(out, "no accounts; `fettle admin users add NAME --email ADDRESS --role admin` makes one")?);
    }
    let rows = users.into_iter().map(|user| {
        let user: User = understand(user)?;
        let state = match (user.active, user.locked_until) {
            (false, _) => "inactive".to_owned(),
            (true, Some(until)) => format!("waits elsewhere until {until}"),
            (true, None) => "active".to_owned(),
        };
        let last = user.last_login_at.unwrap_or_else(|| "never".to_owned());
        Ok([user.username, user.role, state, last, one_line(&user.email)])
    });
    let mut text = String::new();
    table(&mut text, &["NAME", "ROLE", "STATE", "LAST SIGN-IN", "E-MAIL"], &rows.collect::<Result<Vec<_>>>()?);
    Ok(write!(out, "{text}")?)
}

/// A password that was made is shown this once, and goes nowhere else.
fn tell(done: &str, mut user: Value, chosen: Option<&Chosen>, json: bool) -> Result<()> {
    let made = chosen.filter(|chosen| chosen.made).map(|chosen| chosen.password.expose_secret());
    let mut out = std::io::stdout().lock();
    if json {
        if let (Some(made), Some(user)) = (made, user.as_object_mut()) {
            user.insert("password".to_owned(), made.into());
        }
        return Ok(writeln!(out, "{user}")?);
    }
    let user: User = understand(user)?;
    let state = if user.active { "active" } else { "inactive" };
    writeln!(out, "{done} {}: {}, {state}", user.username, user.role)?;
    if let Some(made) = made {
        writeln!(out, "{made}")?;
        note("the password above is not to be had again; its owner can exchange it after signing in");
    }
    Ok(())
}

#[derive(Deserialize)]
struct Line {
    at: String,
    actor: String,
    action: String,
    object: String,
    address: String,
    result: String,
    detail: String,
}

pub(crate) async fn audit_log(client: &Client, flags: &LogFlags, json: bool) -> Result<ExitCode> {
    if flags.verify {
        return verify(client, json).await;
    }
    let answer = client.get(&["api", "v1", "audit-log"], &[("limit", &flags.limit.to_string())]).await?;
    let mut out = std::io::stdout().lock();
    if json {
        writeln!(out, "{answer}")?;
        return Ok(ExitCode::SUCCESS);
    }
    let page: Page = understand(answer)?;
    for line in page.items {
        let Line { at, actor, action, object, address, result, detail } = understand(line)?;
        let parts = [at, result, actor, action, object, address, detail].map(|part| one_line(&part));
        writeln!(out, "{}", parts.join("\t"))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// The chain is computed here, of what the dashboard says the log holds.
async fn verify(client: &Client, json: bool) -> Result<ExitCode> {
    let mut response = client.stream(&["api", "v1", "audit-log", "export"]).await?;
    let (mut head, mut rest, mut broken) = (Head::EMPTY, Vec::new(), None);
    while let Some(chunk) = response.chunk().await.context("the log was not told to its end")? {
        rest.extend_from_slice(&chunk);
        while broken.is_none()
            && let Some(end) = rest.iter().position(|byte| *byte == b'\n')
        {
            let line: Vec<u8> = rest.drain(..=end).collect();
            let entry: Entry = serde_json::from_slice(&line)
                .with_context(|| format!("what follows entry {} of the log is not understood", head.sequence))?;
            match head.follow(&entry) {
                Ok(next) => head = next,
                Err(wrong) => broken = Some(wrong.sequence),
            }
        }
        if broken.is_some() {
            break;
        }
        if rest.len() > MAX_LINE_BYTES {
            bail!("a line of the log is longer than {MAX_LINE_BYTES} bytes; is it a Fettle dashboard?");
        }
    }
    if broken.is_none() && !rest.is_empty() {
        bail!("the log was not told to its end");
    }
    let mut out = std::io::stdout().lock();
    let digest: String = head.digest.iter().map(|byte| format!("{byte:02x}")).collect();
    match (json, broken) {
        (true, _) => {
            let told = json!({ "entries": head.sequence, "digest": digest, "broken_from": broken });
            writeln!(out, "{told}")?;
        }
        (false, None) => {
            writeln!(out, "{} entries, each as it was written", head.sequence)?;
            writeln!(out, "newest digest: {digest}")?;
            note("keep the newest digest elsewhere: whoever can write the whole database could make another chain");
        }
        (false, Some(from)) => bail!("the audit log is not what was written from entry {from} on"),
    }
    Ok(if broken.is_none() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

#[cfg(test)]
mod tests {
    use fettle_domain::account::check_password;

    use super::*;

    #[test]
    fn a_password_that_is_made_is_accepted_and_another_each_time() {
        let (one, other) = (made(), made());
        assert_eq!(check_password(one.expose_secret(), &["ada", "ada@example.org"]), Ok(()), "{one:?}");
        assert_eq!(one.expose_secret().len(), GROUPS * GROUP + GROUPS - 1);
        assert_ne!(one.expose_secret(), other.expose_secret());
    }
}
