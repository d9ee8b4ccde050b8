//! Compiles the crate again when a migration changes: `sqlx::migrate!` reads the folder unseen by cargo.

#[expect(clippy::print_stdout, reason = "a build script speaks to cargo through its output")]
fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
