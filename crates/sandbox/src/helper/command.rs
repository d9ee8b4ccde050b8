//! The last steps before the command: the walls that bind one process and its children, then its program.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use fettle_app::ports::sandbox::SandboxLevel;

use super::{Step, forks, landlock, seccomp};
use crate::spec::{Refusal, Report, Spec};
use crate::sys::{self, Limit};

/// What a shell answers for a program that does not exist, and for one that cannot be executed.
const NOT_FOUND: i32 = 127;
const NOT_EXECUTABLE: i32 = 126;

/// Never returns. `says` carries a refusal; it closes when the program starts.
pub(super) fn become_it(spec: &Spec, mut says: File) -> ! {
    let refusal = match confine(spec) {
        Ok(()) if reader_is_gone(&says) => sys::exit_now(0),
        Ok(()) => {
            let code = execute(spec);
            sys::exit_now(code)
        }
        Err(refusal) => refusal,
    };
    tell(&mut says, &Report::Refused(refusal));
    sys::exit_now(NOT_EXECUTABLE)
}

pub(super) fn tell(says: &mut File, report: &Report) {
    if let Ok(line) = serde_json::to_vec(report) {
        // The outer process may be gone; then nobody wants to know.
        let _ = says.write_all(&line);
    }
}

/// The outer process and the init share the namespace with the command.
const HELPER_PROCESSES: u64 = 2;

/// Whether the process that collects this one died before it could be asked to take this one along.
pub(super) fn reader_is_gone(says: &File) -> bool {
    // A pipe whose reader has gone reports that to its writer at once.
    sys::wait_hangup(says.as_fd(), Duration::ZERO).unwrap_or(true)
}

/// Puts the null device over the inherited end of the control socket, which belongs to the outer process.
pub(super) fn close(control: &UnixStream) {
    if let Ok(null) = File::open("/dev/null") {
        let _ = sys::put_over(null.as_fd(), control.as_fd());
    }
}

fn confine(spec: &Spec) -> Result<(), Refusal> {
    sys::reset_signals();
    sys::new_session().walls("start a session")?;
    sys::close_others_on_exec().walls("close descriptors")?;
    std::env::set_current_dir(&spec.cwd).request(&format!("enter {}", spec.cwd))?;
    sys::set_limit(Limit::CoreFile, 0).walls("limit core files")?;
    sys::set_limit(Limit::OpenFiles, u64::from(spec.open_files)).walls("limit open files")?;
    sys::be_nice().walls("lower the priority")?;
    sys::no_new_privileges().walls("refuse new privileges")?;
    sys::drop_capabilities().walls("drop capabilities")?;
    // Without capabilities, because some of them exempt from this limit.
    match spec.level {
        SandboxLevel::Full => sys::set_limit(Limit::Processes, u64::from(spec.processes) + HELPER_PROCESSES),
        SandboxLevel::Landlock => forks::allow_more(spec.processes),
    }
    .walls("limit processes")?;
    sys::die_with_parent().walls("die with the parent")?;
    landlock::restrict(spec)?;
    seccomp::install(spec)
}

/// Looks the program up as a shell would; returns the exit code when there is none.
fn execute(spec: &Spec) -> i32 {
    let Ok(argv) = strings(spec.argv.iter().cloned()) else { return NOT_EXECUTABLE };
    let Ok(env) = strings(spec.env.iter().map(|(key, value)| format!("{key}={value}"))) else { return NOT_EXECUTABLE };
    let name = &spec.argv[0];
    let path = spec.env.iter().find(|(key, _)| key == "PATH").map_or("/usr/bin:/bin", |(_, value)| value);
    let candidates: Vec<String> = if name.contains('/') {
        vec![name.clone()]
    } else {
        path.split(':').filter(|folder| !folder.is_empty()).map(|folder| format!("{folder}/{name}")).collect()
    };

    let mut worst = io::Error::from_raw_os_error(libc::ENOENT);
    for candidate in candidates {
        let Ok(program) = CString::new(candidate) else { continue };
        let error = sys::execute(&program, &argv, &env);
        if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ENOTDIR)) {
            worst = error;
        }
    }
    let _ = writeln!(io::stderr(), "{name}: {worst}");
    if worst.raw_os_error() == Some(libc::ENOENT) { NOT_FOUND } else { NOT_EXECUTABLE }
}

fn strings(texts: impl Iterator<Item = String>) -> Result<Vec<CString>, std::ffi::NulError> {
    texts.map(CString::new).collect()
}
