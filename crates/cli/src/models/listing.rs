//! What lies in the store of models, for people and for programs.

use std::fmt::Write as _;

use anyhow::Result;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_engines::models::{Entry as Stored, File, Store};
use fettle_inference::admin::StatusView;
use fettle_inference::catalog;
use fettle_placement::footprint::Footprint;
use fettle_placement::id::ModelId;
use fettle_placement::quantity::Bytes;
use fettle_placement::recipe::RunsOn;
use fettle_runtime::config::Config;
use serde::Serialize;

use super::entry::Entry;
use crate::table::{short, table};

#[derive(Debug, Serialize)]
pub(super) struct Row {
    name: ModelId,
    /// `false`: an `add` is at work, or was interrupted.
    complete: bool,
    bytes: Bytes,
    /// Absent until it is complete.
    digest: Option<String>,
    files: Vec<File>,
    /// What engines are told.
    path: Option<Utf8PathBuf>,
    /// Names in the configuration.
    configured: Vec<String>,
    /// What it takes of each of its devices: as configured, else as `add` proposes. Absent where its files cannot be read.
    claims: Option<Vec<Bytes>>,
    /// Devices that can hold it. Absent: no inference process tells which there are.
    fits: Option<Vec<Fit>>,
}

#[derive(Debug, PartialEq, Eq, Serialize)]
pub(super) struct Fit {
    device: String,
    /// Without anybody having to go.
    now: bool,
}

/// Names of configured models with weights within `files`, or that are them.
pub(super) fn configured(config: &Config, files: &Utf8Path) -> Vec<String> {
    let models = config.gateway.models.iter().filter(|model| {
        let of_recipes = model.recipes.iter().filter_map(|recipe| recipe.file.as_ref());
        model.path.iter().chain(of_recipes).any(|path| is_within(path, files))
    });
    models.map(|model| model.name.clone()).collect()
}

/// Whatever links lead there.
pub(super) fn is_within(path: &Utf8Path, files: &Utf8Path) -> bool {
    let real = |path: &Utf8Path| path.canonicalize_utf8().unwrap_or_else(|_| path.to_owned());
    real(path).starts_with(real(files))
}

pub(super) fn rows(config: &Config, store: &Store, status: Option<&StatusView>) -> Result<Vec<Row>> {
    let (served, _) = catalog::catalog(config);
    let takes = |id: &ModelId, weights: &Utf8Path, files: &Utf8Path| -> Result<(Footprint, RunsOn)> {
        let recipes = served.models.iter().flat_map(|model| &model.recipes);
        if let Some(recipe) = recipes.into_iter().find(|recipe| is_within(&recipe.weights, files)) {
            return Ok((recipe.footprint.clone(), recipe.recipe.on));
        }
        let entry = Entry::of(id, weights)?;
        Ok((catalog::estimated(weights, entry.context(), entry.parallel(), 1)?, RunsOn::Gpu))
    };
    let row = |stored: Stored| -> Result<Row> {
        let id = stored.id().clone();
        let files = store.files(&id);
        let configured = configured(config, &files);
        Ok(match stored {
            Stored::Partial { bytes, .. } => Row {
                name: id,
                complete: false,
                bytes,
                digest: None,
                files: Vec::new(),
                path: None,
                configured,
                claims: None,
                fits: None,
            },
            Stored::Whole(model) => {
                let weights = store.weights(&id)?;
                // One whose header was damaged since is listed all the same; `verify` says what is wrong.
                let taken = takes(&id, &weights, &files).ok();
                let claims = taken.as_ref().map(|(footprint, _)| footprint.claims().collect::<Vec<Bytes>>());
                let fits = |status| taken.as_ref().map(|(footprint, on)| fits(status, footprint, *on));
                Row {
                    name: id,
                    complete: true,
                    bytes: model.bytes(),
                    digest: Some(model.digest()),
                    path: Some(weights),
                    configured,
                    fits: status.and_then(fits),
                    claims,
                    files: model.files,
                }
            }
        })
    };
    store.list()?.into_iter().map(row).collect()
}

/// Devices that have room for the largest part; none where fewer have than there are parts.
fn fits(status: &StatusView, footprint: &Footprint, on: RunsOn) -> Vec<Fit> {
    let claims: Vec<Bytes> = footprint.claims().collect();
    let part = claims.iter().copied().max().unwrap_or_default().get();
    let of_kind = status.devices.iter().filter(|device| (device.id == "cpu") == (on == RunsOn::Cpu));
    let fits: Vec<Fit> = of_kind
        .filter_map(|device| {
            let pool = status.pools.iter().find(|pool| pool.id == device.pool)?;
            let ever = part <= pool.cap.saturating_sub(pool.margin);
            ever.then(|| Fit { device: device.id.clone(), now: part <= pool.available })
        })
        .collect();
    if fits.len() < claims.len() { Vec::new() } else { fits }
}

pub(super) fn text(rows: &[Row], devices_known: bool) -> String {
    let mut text = String::new();
    let dash = || "-".to_owned();
    let cells = |row: &Row| {
        let takes = row.claims.as_deref().unwrap_or_default();
        let each = takes.iter().max().map(|claim| match takes.len() {
            1 => claim.to_string(),
            parts => format!("{parts} x {claim}"),
        });
        let fits = row.fits.as_ref().map(|fits| match fits.as_slice() {
            [] => "nowhere".to_owned(),
            fits => {
                let one = |fit: &Fit| format!("{}{}", short(&fit.device), if fit.now { "" } else { " (not now)" });
                fits.iter().map(one).collect::<Vec<_>>().join(" ")
            }
        });
        [
            row.name.to_string(),
            row.bytes.to_string(),
            row.files.len().to_string(),
            row.digest.as_deref().map_or_else(|| "incomplete".to_owned(), short),
            each.unwrap_or_else(dash),
            fits.unwrap_or_else(dash),
            if row.configured.is_empty() { dash() } else { row.configured.join(" ") },
        ]
    };
    let header = ["MODEL", "SIZE", "FILES", "DIGEST", "TAKES", "FITS", "USED BY"];
    table(&mut text, &header, &rows.iter().map(cells).collect::<Vec<_>>());
    let notes = [
        (rows.is_empty(), "No model was brought here: `fettle models add NAME PATH` brings one."),
        (
            !rows.is_empty() && !devices_known,
            "No inference process runs on this data folder, so it is not known where they fit.",
        ),
        (
            rows.iter().any(|row| !row.complete),
            "What is incomplete is being brought, or goes on with the same `fettle models add`.",
        ),
    ];
    for (_, note) in notes.iter().filter(|(told, _)| *told) {
        let _never_fails = write!(text, "\n{note}\n");
    }
    text
}
