//! The gateway in front of a scripted engine, for clients that are tried by hand: `--example scripted 8484`. The model is
//! `coder`, the key `sesame`; a request with tools gets a call first. It ends with its standard input.
#![expect(clippy::unwrap_used, clippy::print_stdout, reason = "a stand for trying clients")]
#![expect(dead_code, reason = "the tests use more of it")]

#[path = "../tests/endpoint/upstream.rs"]
mod upstream;
#[path = "../tests/endpoint/world.rs"]
mod world;

use tokio::io::AsyncReadExt;

#[tokio::main]
async fn main() {
    let port = std::env::args().nth(1).map_or(0, |port| port.parse().unwrap());
    let upstream = upstream::Upstream::start().await;
    let world =
        world::World::on(port, tempfile::tempdir().unwrap(), world::served(vec![upstream.engine("e1", 16)]), |_| {})
            .await;
    println!("{}", world.url);
    tokio::io::stdin().read_to_end(&mut Vec::new()).await.unwrap();
}
