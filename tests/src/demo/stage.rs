//! What the demo runs, from its start to the last trace of it.

use std::os::unix::fs::PermissionsExt as _;

use anyhow::Context as _;
use camino::Utf8PathBuf;
use fettle_domain::repo::RepoName;

use super::example;
use crate::forge::{ForgeEmulator, ForgeOptions, PatAccess, Role};
use crate::model::ModelServer;
use crate::world::{Api, Launch, PATIENCE, Process, program, ready};

/// The account whose tokens Fettle has.
const MACHINE_USER: &str = "fettle-demo";
/// Only the emulator knows it, and it signs.
const WEBHOOK_SECRET: &str = "known-to-the-demo-alone";

/// Forge, model and Fettle, in a temporary folder. Dropped, it kills and removes them.
pub struct Stage {
    pub(super) forge: ForgeEmulator,
    pub(super) model: ModelServer,
    pub(super) api: Api,
    pub(super) repo: RepoName,
    /// Where the first admin is made.
    setup: String,
    // Before the folder that it writes to.
    fettle: Process,
    folder: tempfile::TempDir,
}

impl Stage {
    /// `port` is Fettle's; 0 takes a free one.
    pub async fn set(port: u16) -> anyhow::Result<Self> {
        let folder = tempfile::Builder::new().prefix("fettle-demo-").tempdir().context("while making a folder")?;
        let root = Utf8PathBuf::try_from(folder.path().to_owned())?;
        let forge = ForgeEmulator::start(ForgeOptions { folder: Some(root.join("forge")), app: None }).await?;
        let repo = forge.create_repository(example::REPOSITORY, example::FILES).await?;
        forge.set_role(&repo, example::MAINTAINER, Some(Role::Write));
        let model = ModelServer::start(example::script());

        let secret = |name: &str, value: &str| -> anyhow::Result<Utf8PathBuf> {
            let file = root.join(name);
            fs_err::write(&file, value)?;
            fs_err::set_permissions(&file, std::fs::Permissions::from_mode(0o600))?;
            Ok(file)
        };
        let config = root.join("fettle.toml");
        let text = format!(
            "[server]\nlisten = '127.0.0.1:{port}'\n\n\
             [forge]\napi_url = '{}'\nhosts = ['{}']\nread_token_file = '{}'\nwrite_token_file = '{}'\nwebhook_secret_file = '{}'\n\n\
             [agent.sandbox]\nprepare_network = 'none'\n\n\
             [[gateway.models]]\nname = 'scripted'\nbase_url = '{}'\n",
            forge.url(),
            forge.address(),
            secret("read-token", &forge.add_token(MACHINE_USER, PatAccess::Read))?,
            secret("write-token", &forge.add_token(MACHINE_USER, PatAccess::Write))?,
            secret("webhook-secret", WEBHOOK_SECRET)?,
            model.base_url(),
        );
        fs_err::write(&config, text)?;
        let home = root.join("home");
        fs_err::create_dir_all(&home)?;
        let data = root.join("data");
        // A group of its own: Ctrl-C reaches the demo alone, which then stops Fettle in order.
        let launch = Launch { home: &home, config: Some(&config), data: &data, own_group: true };
        let fettle = launch.start("fettle", &["up"], &[])?;
        let api = ready(&fettle, &data).await?;
        let link =
            |line: &str| Some(line.split_once("once: ")?.1.trim().to_owned()).filter(|link| link.contains("#token="));
        let setup = fettle.logged("where the first admin is made", PATIENCE, link).await?;
        Ok(Self { forge, model, api, repo, setup, fettle, folder })
    }

    pub(super) fn folder(&self) -> &std::path::Path {
        self.folder.path()
    }

    /// Sets the label as the maintainer and sends the signed webhook; the status of the answer.
    pub(super) async fn label(&self, issue: u64, label: &str) -> anyhow::Result<u16> {
        self.forge.label(&self.repo, issue, label, example::MAINTAINER);
        let payload = self.forge.issue_labeled(&self.repo, issue, label, example::MAINTAINER);
        let answer = self.forge.deliver(&self.api.webhooks(), "issues", &payload, WEBHOOK_SECRET).await?;
        Ok(answer.status().as_u16())
    }

    /// What to look at while everything keeps running.
    pub fn next(&self) -> String {
        let (data, base, setup) = (self.folder().join("data"), self.api.base(), &self.setup);
        let data = data.display();
        let fettle = program("fettle").map_or_else(|_| "fettle".into(), |path| path.to_string());
        format!(
            "Everything keeps running; Ctrl-C ends it and removes its folder. Meanwhile, in another terminal:\n\n  \
             address    {base}\n  data       {data}\n  admin key  {data}/admin.key\n  account    {setup}\n\n  \
             {fettle} tasks --data-dir {data}\n  \
             curl -H \"Authorization: Bearer $(cat {data}/admin.key)\" {base}/api/v1/tasks"
        )
    }

    /// The last lines of Fettle's log.
    pub fn log(&self) -> String {
        self.fettle.tail()
    }

    /// Stops everything in order and leaves nothing behind; blocks.
    pub fn strike(mut self) -> anyhow::Result<()> {
        let stopped = self.fettle.stop();
        drop(self.forge);
        self.model.shutdown();
        let path = self.folder.path().to_owned();
        self.folder.close().with_context(|| format!("while removing {}", path.display()))?;
        stopped?;
        Ok(())
    }
}
