//! Blobs: files named by the SHA-256 of their content, complete and durable before any row names them.

use std::io::{ErrorKind, Write};
use std::sync::Arc;

use bytes::Bytes;
use camino::{Utf8Path, Utf8PathBuf};
use fettle_app::ports::clock::IdSource;
use fettle_app::ports::ledger::{L, LedgerError, MAX_BLOB_BYTES};
use fettle_domain::object::BlobId;
use tokio::sync::Semaphore;

/// Blobs read or written at once: each occupies a blocking thread and up to 64 MiB.
const AT_ONCE: usize = 4;
/// Beneath the data directory.
const DIRECTORY: &str = "blobs";

#[derive(Clone)]
pub(crate) struct Blobs {
    root: Utf8PathBuf,
    ids: Arc<dyn IdSource>,
    permits: Arc<Semaphore>,
}

impl Blobs {
    /// Makes the folder and removes what a crash left half written.
    pub(crate) fn open(data_dir: &Utf8Path, ids: Arc<dyn IdSource>) -> std::io::Result<Self> {
        let root = data_dir.join(DIRECTORY);
        let unfinished = root.join("tmp");
        match fs_err::remove_dir_all(&unfinished) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        fs_err::create_dir_all(&unfinished)?;
        sync_dir(&root)?;
        sync_dir(data_dir)?;
        Ok(Self { root, ids, permits: Arc::new(Semaphore::new(AT_ONCE)) })
    }

    /// Every blob beneath `data_dir`.
    pub(crate) fn names(data_dir: &Utf8Path) -> std::io::Result<Vec<BlobId>> {
        let mut names = Vec::new();
        for folder in data_dir.join(DIRECTORY).read_dir_utf8()? {
            let folder = folder?;
            if folder.file_name().len() != 2 {
                continue;
            }
            for file in folder.path().read_dir_utf8()? {
                let name = format!("{}{}", folder.file_name(), file?.file_name());
                names.extend(name.parse::<BlobId>().ok());
            }
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Checked against its name.
    pub(crate) fn read(data_dir: &Utf8Path, id: BlobId) -> L<Vec<u8>> {
        match fs_err::read(Self::path_in(&data_dir.join(DIRECTORY), id)) {
            Ok(content) if BlobId::of(&content) == id => Ok(content),
            Ok(_) => Err(LedgerError::Corrupt(format!("blob {id} holds another content"))),
            Err(error) => Err(from_io(error)),
        }
    }

    pub(crate) async fn put(&self, content: Bytes) -> L<BlobId> {
        if content.len() > MAX_BLOB_BYTES {
            return Err(LedgerError::Invalid(format!("a blob has at most {MAX_BLOB_BYTES} bytes")));
        }
        let unfinished = self.root.join("tmp").join(self.ids.uuid().simple().to_string());
        self.blocking(move |blobs| {
            let id = BlobId::of(&content);
            blobs.store(id, &content, &unfinished).map_err(from_io)?;
            Ok(id)
        })
        .await
    }

    pub(crate) async fn get(&self, id: BlobId) -> L<Bytes> {
        self.blocking(move |blobs| match fs_err::read(blobs.path(id)) {
            Ok(content) if BlobId::of(&content) == id => Ok(content.into()),
            Ok(_) => Err(LedgerError::Corrupt(format!("blob {id} holds another content"))),
            Err(error) if error.kind() == ErrorKind::NotFound => Err(LedgerError::NotFound(format!("blob {id}"))),
            Err(error) => Err(from_io(error)),
        })
        .await
    }

    /// Refuses a row that names a blob which was never stored.
    pub(crate) async fn require(&self, ids: Vec<BlobId>) -> L<()> {
        if ids.is_empty() {
            return Ok(());
        }
        self.blocking(move |blobs| {
            for id in ids {
                if !fs_err::exists(blobs.path(id)).map_err(from_io)? {
                    return Err(LedgerError::Invalid(format!("blob {id} was not stored before it was named")));
                }
            }
            Ok(())
        })
        .await
    }

    async fn blocking<T: Send + 'static>(&self, work: impl FnOnce(&Self) -> L<T> + Send + 'static) -> L<T> {
        let permit = self.permits.clone().acquire_owned().await.expect("the semaphore is never closed");
        let blobs = self.clone();
        let done = tokio::task::spawn_blocking(move || {
            let _permit = permit;
            work(&blobs)
        });
        done.await.map_err(|join| LedgerError::Unavailable(join.to_string()))?
    }

    fn path(&self, id: BlobId) -> Utf8PathBuf {
        Self::path_in(&self.root, id)
    }

    fn path_in(root: &Utf8Path, id: BlobId) -> Utf8PathBuf {
        let name = id.to_string();
        root.join(&name[..2]).join(&name[2..])
    }

    fn store(&self, id: BlobId, content: &[u8], unfinished: &Utf8Path) -> std::io::Result<()> {
        let path = self.path(id);
        let folder = path.parent().expect("a blob lies in a folder");
        if !fs_err::exists(&path)? {
            let mut file = fs_err::File::create(unfinished)?;
            file.write_all(content)?;
            file.sync_all()?;
            fs_err::create_dir_all(folder)?;
            fs_err::rename(unfinished, &path)?;
        }
        // Also when it was there: whoever put it may have died before this.
        sync_dir(folder)?;
        sync_dir(&self.root)
    }
}

fn sync_dir(path: &Utf8Path) -> std::io::Result<()> {
    fs_err::File::open(path)?.sync_all()
}

fn from_io(error: std::io::Error) -> LedgerError {
    match error.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => LedgerError::Full,
        _ => LedgerError::Unavailable(error.to_string()),
    }
}
