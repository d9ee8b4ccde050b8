//! How many files and sockets this process may have open.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tracing::warn;

/// As our units have it. Listeners take some thousand connections each; what is started from here, and closes whatever it may have
/// open one by one, should not have to close millions.
const WANTED: u64 = 65_536;

/// Takes what the operator's hard limit allows, which is mostly more than the soft one: that is 1,024 for programs that look at
/// sockets in an old way, as none of ours does.
pub fn take() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let wanted = maximum.map_or(WANTED, |maximum| maximum.min(WANTED));
    if current.is_none_or(|current| current >= wanted) {
        return;
    }
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: Some(wanted), maximum }) {
        warn!("only {} files and sockets can be open at a time: {error}", current.unwrap_or_default());
    }
}
