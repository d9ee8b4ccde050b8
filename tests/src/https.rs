//! An HTTPS server on loopback with a certificate of its own, for programs that speak to nothing else.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use anyhow::{Context as _, ensure};
use axum::Router;
use hyper_util::rt::TokioIo;
use hyper_util::service::TowerToHyperService;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

/// An authority is no server to whoever checks, so it is none.
const CERTIFICATE: &str = "[req]
distinguished_name = name
x509_extensions = extensions
prompt = no
[name]
CN = loopback
[extensions]
subjectAltName = IP:127.0.0.1
basicConstraints = critical, CA:FALSE
";

/// Serves until it is dropped.
pub struct Https {
    pub port: u16,
    pub certificate: PathBuf,
    _work: JoinSet<()>,
}

impl Https {
    /// Certificate and key are left in `folder`.
    pub async fn serve(router: Router, folder: &Path) -> anyhow::Result<Self> {
        let (certificate, key) = (folder.join("https.pem"), folder.join("https.key"));
        fs_err::write(folder.join("https.conf"), CERTIFICATE)?;
        let mut command = Command::new("openssl");
        command.args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]);
        command.args(["-config", "https.conf", "-out", "https.pem", "-keyout", "https.key"]).current_dir(folder);
        let made = command.stdin(Stdio::null()).output().context("while starting openssl")?;
        ensure!(made.status.success(), "openssl: {}", String::from_utf8_lossy(&made.stderr));
        let chain = CertificateDer::pem_file_iter(&certificate)?.collect::<Result<Vec<_>, _>>()?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?;
        let (acceptor, listener) = (TlsAcceptor::from(Arc::new(config)), TcpListener::bind("127.0.0.1:0").await?);
        let port = listener.local_addr()?.port();
        let mut work = JoinSet::new();
        work.spawn(async move {
            let mut connections = JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let (acceptor, service) = (acceptor.clone(), TowerToHyperService::new(router.clone()));
                connections.spawn(async move {
                    // Whoever does not like the certificate goes away.
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let _gone = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Ok(Self { port, certificate, _work: work })
    }
}
