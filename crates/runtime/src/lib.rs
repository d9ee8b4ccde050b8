//! The process edge: configuration, secrets, clock and ids, telemetry and shutdown. The only crate that reads the
//! environment, and it does so through an argument.

pub mod config;
pub mod data;
pub mod environment;
pub mod open_files;
pub mod reload;
pub mod sealing_keys;
pub mod secrets;
pub mod shutdown;
pub mod supervisor;
pub mod system;
pub mod systemd;
pub mod telemetry;
pub mod units;

/// Installs the one TLS provider of the process. Called first in `main`; a second call does nothing.
pub fn install_tls() {
    // An error means that it is installed already.
    let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
}

/// Arms the point at which a test wants this process killed. Releases are built without the feature and do nothing.
pub fn arm_crash_point(environment: &environment::Environment) {
    #[cfg(feature = "crash-points")]
    if let Some(name) = environment.find("FETTLE_CRASH_POINT") {
        fettle_app::crash::arm(name);
    }
    #[cfg(not(feature = "crash-points"))]
    let _ = environment;
}
