//! What libgit2 keeps per process, set once before anything else is asked of it.

use std::sync::Once;

use git2::ConfigLevel;

use crate::http;

/// No configuration but a repository's own is ever read, so that nobody's filters, `insteadOf` or credential helpers matter;
/// `http` and `https` go through our own transport. Panics if libgit2 cannot even store these settings.
pub(crate) fn initialise() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        for level in [ConfigLevel::ProgramData, ConfigLevel::System, ConfigLevel::XDG, ConfigLevel::Global] {
            #[expect(
                unsafe_code,
                reason = "libgit2's settings are process-wide; `Once` runs this before any other use"
            )]
            // SAFETY: no other thread uses libgit2 yet: every way into this crate passes through `Once` first.
            unsafe { git2::opts::set_search_path(level, "") }.expect("an empty search path can be stored");
        }
        #[expect(unsafe_code, reason = "libgit2's settings are process-wide; `Once` runs this before any other use")]
        // SAFETY: as above. A partial clone is readable as far as its objects are here; what is absent is an error by name.
        unsafe { git2::opts::set_extensions(&["partialclone"]) }.expect("a known extension can be added");
        // Packs are verified when they are indexed; hashing every object at each read would double the time of a checkout.
        git2::opts::strict_hash_verification(false);
        for scheme in ["http", "https"] {
            #[expect(unsafe_code, reason = "registering a transport is unsynchronised in libgit2; `Once` does it")]
            // SAFETY: as above.
            unsafe { git2::transport::register(scheme, http::transport) }.expect("nobody else registers this scheme");
        }
    });
}
