//! The environment of a command: what the caller gave, the private folders, and the proxy where there is one.

use std::collections::BTreeMap;

use camino::Utf8Path;

use crate::spec::PROXY_PORT;

/// Each tool reads its own.
const PROXY_VARIABLES: [&str; 9] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "CARGO_HTTP_PROXY",
    "npm_config_proxy",
    "npm_config_https_proxy",
];
const DIRECT_VARIABLES: [&str; 2] = ["NO_PROXY", "no_proxy"];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Proxy {
    Absent,
    Inside,
}

pub(crate) fn environment(
    given: &BTreeMap<String, String>,
    home: &Utf8Path,
    temporary: &Utf8Path,
    proxy: Proxy,
) -> Vec<(String, String)> {
    let mut env = given.clone();
    env.insert("HOME".to_owned(), home.to_string());
    env.insert("TMPDIR".to_owned(), temporary.to_string());
    if proxy == Proxy::Inside {
        let address = format!("http://127.0.0.1:{PROXY_PORT}");
        env.extend(PROXY_VARIABLES.map(|name| (name.to_owned(), address.clone())));
        env.extend(DIRECT_VARIABLES.map(|name| (name.to_owned(), "localhost,127.0.0.1,::1".to_owned())));
    }
    env.into_iter().collect()
}
