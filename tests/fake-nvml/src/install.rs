//! A copy of the library in a folder of its own, with its state beside it.

use std::io;
use std::path::{Path, PathBuf};

use crate::state::State;

/// As cargo names it, beside the test binaries for which it was built.
const BUILT: &str = "libfettle_fake_nvml.so";

/// One fake driver. Changes reach whoever has loaded it with its next call.
pub struct Installed {
    folder: PathBuf,
}

impl Installed {
    /// Into `folder`, which exists and which no other copy has.
    pub fn new(folder: &Path, state: &State) -> io::Result<Self> {
        Self::without(&[], folder, state)
    }

    /// With these functions missing, as they are in an older driver's library.
    pub fn without(functions: &[&str], folder: &Path, state: &State) -> io::Result<Self> {
        let test = std::env::current_exe()?;
        let built = test.parent().unwrap_or(Path::new("/")).join(BUILT);
        let mut library = fs_err::read(built)?;
        for function in functions {
            rename(&mut library, function);
        }
        let installed = Self { folder: folder.to_owned() };
        installed.set(state)?;
        fs_err::write(installed.library(), library)?;
        Ok(installed)
    }

    pub fn library(&self) -> PathBuf {
        self.folder.join("libnvidia-ml.so.1")
    }

    /// All at once: no call sees half of it.
    pub fn set(&self, state: &State) -> io::Result<()> {
        state.write(&self.folder)
    }
}

/// Spoils the function's name in the table of symbols: whoever looks it up finds nothing.
fn rename(library: &mut [u8], function: &str) {
    let name = [b"\0", function.as_bytes(), b"\0"].concat();
    let mut at = 0;
    while let Some(found) = library[at..].windows(name.len()).position(|window| window == name) {
        library[at + found + 1] = b'-';
        at += found + name.len();
    }
}
