//! Compiles the crate again when a migration changes: `sqlx::migrate!` reads the folder unseen by cargo.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
    println!("cargo::rerun-if-changed=sqlx.toml");
}
