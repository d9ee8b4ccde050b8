//! Models that an HTTP server of files has: below its address a folder for each, with its files and the `SHA256SUMS` that
//! `sha256sum * > SHA256SUMS` writes there. What breaks off is asked for again from where it stopped.

use std::io::{self, Read};
use std::time::Duration;

use anyhow::{Context as _, Result};
use fettle_engines::models::{Offered, Opened, Source, SourceError};
use fettle_placement::id::ModelId;
use reqwest::blocking::{Client, Response};
use reqwest::header::{CONTENT_LENGTH, CONTENT_RANGE, RANGE};
use reqwest::{Method, StatusCode, Url};

use crate::client;

const SUMS: &str = "SHA256SUMS";
/// A thousand files with names of the greatest length.
const MAX_SUMS: u64 = 512 << 10;
/// Servers of files send people on to where the files lie, once or twice.
const MAX_REDIRECTS: usize = 5;

/// How long a server is waited for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    /// For an answer, and for the next bytes of one.
    pub(super) silence: Duration,
    /// Tries in a row that bring no byte.
    pub(super) tries: u32,
    /// Before the second try; doubled before each further one.
    pub(super) pause: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { silence: Duration::from_secs(60), tries: 6, pause: Duration::from_secs(1) }
    }
}

#[derive(Debug, Clone)]
pub(super) struct Mirror {
    http: Client,
    folder: Url,
    patience: Patience,
}

#[derive(Debug, thiserror::Error)]
enum MirrorError {
    #[error("the mirror has no model of that name: {0} is not there")]
    Absent(Url),
    #[error("{url} answers {status}")]
    Status { url: Url, status: StatusCode },
    #[error("{url} does not answer")]
    Away { url: Url, source: reqwest::Error },
    #[error("{0} is longer than a list of a model's files")]
    LongSums(Url),
    #[error("line {line} of {url} is not what sha256sum writes")]
    BadSums { url: Url, line: usize },
    #[error("{0} does not say how long it is")]
    NoLength(Url),
    #[error("{url} is {now} bytes long and was {before}: it has been changed meanwhile, or is answered for wrongly")]
    Length { url: Url, now: u64, before: u64 },
    #[error("{0} was asked for a part and sends another one")]
    OtherPart(Url),
    #[error("{url} broke off at byte {at} of {bytes}, {tries} times")]
    BrokenOff { url: Url, at: u64, bytes: u64, tries: u32, source: io::Error },
}

impl Mirror {
    /// Must not be made within a runtime.
    pub(super) fn of(url: &str, id: &ModelId, patience: Patience) -> Result<Self> {
        let base = client::base_url(url)
            .with_context(|| format!("gateway.mirror: `{url}` is no http or https URL without user and password"))?;
        let parts: Vec<&str> = id.as_str().split('/').collect();
        let folder = client::join(&base, &parts, &[]);
        let http = client::files(&folder, patience.silence, MAX_REDIRECTS)?;
        Ok(Self { http, folder, patience })
    }

    fn at(&self, file: &str) -> Url {
        client::join(&self.folder, &[file], &[])
    }

    /// Once.
    fn ask(&self, method: Method, url: &Url, from: u64) -> Result<Response, MirrorError> {
        let mut request = self.http.request(method, url.clone());
        if from > 0 {
            request = request.header(RANGE, format!("bytes={from}-"));
        }
        let away = |source: reqwest::Error| MirrorError::Away { url: url.clone(), source: source.without_url() };
        let response = request.send().map_err(away)?;
        match response.status() {
            status if status.is_success() => Ok(response),
            status => Err(MirrorError::Status { url: url.clone(), status }),
        }
    }

    /// Until it answers, or does so in a way that asking again does not change.
    fn ask_patiently(&self, method: &Method, url: &Url, from: u64) -> Result<Response, MirrorError> {
        let mut tried = 0;
        loop {
            let answer = self.ask(method.clone(), url, from);
            tried += 1;
            match &answer {
                Err(error) if may_pass(error) && tried < self.patience.tries => self.wait(tried),
                _ => return answer,
            }
        }
    }

    fn wait(&self, tried: u32) {
        std::thread::sleep(self.patience.pause * 2_u32.saturating_pow(tried.saturating_sub(1)));
    }

    fn length(&self, file: &str) -> Result<u64, MirrorError> {
        let url = self.at(file);
        let response = self.ask_patiently(&Method::HEAD, &url, 0)?;
        number(&response, CONTENT_LENGTH.as_str(), |text| text.parse().ok()).ok_or(MirrorError::NoLength(url))
    }

    /// The rest of a file of `bytes`, and where it begins.
    fn rest(&self, file: &str, from: u64, bytes: u64) -> Result<(u64, Response), MirrorError> {
        let url = self.at(file);
        let response = self.ask_patiently(&Method::GET, &url, from)?;
        let (began, now) = if response.status() == StatusCode::PARTIAL_CONTENT {
            let part = number(&response, CONTENT_RANGE.as_str(), part).ok_or(MirrorError::NoLength(url.clone()))?;
            if part.0 != from {
                return Err(MirrorError::OtherPart(url));
            }
            part
        } else {
            let length = number(&response, CONTENT_LENGTH.as_str(), |text| text.parse().ok());
            (0, length.ok_or(MirrorError::NoLength(url.clone()))?)
        };
        if now == bytes { Ok((began, response)) } else { Err(MirrorError::Length { url, now, before: bytes }) }
    }
}

impl Source for Mirror {
    fn offered(&self) -> Result<Vec<Offered>, SourceError> {
        let url = self.at(SUMS);
        let response = self.ask_patiently(&Method::GET, &url, 0).map_err(|error| match error {
            MirrorError::Status { status: StatusCode::NOT_FOUND, url } => MirrorError::Absent(url),
            other => other,
        })?;
        let mut text = String::new();
        response.take(MAX_SUMS + 1).read_to_string(&mut text)?;
        if text.len() as u64 > MAX_SUMS {
            return Err(MirrorError::LongSums(url).into());
        }
        let mut offered = Vec::new();
        for (nth, line) in text.lines().enumerate() {
            let (sha256, name) = sum(line).ok_or_else(|| MirrorError::BadSums { url: url.clone(), line: nth + 1 })?;
            // It may have been written into its own list.
            if name != SUMS {
                offered.push(Offered { name: name.to_owned(), bytes: 0, sha256: Some(sha256) });
            }
        }
        // The names are checked before any of them becomes a part of a URL.
        fettle_engines::models::check_names(&offered)?;
        for file in &mut offered {
            file.bytes = self.length(&file.name)?;
        }
        Ok(offered)
    }

    fn open(&self, file: &Offered, from: u64) -> Result<Opened, SourceError> {
        let (began, response) = self.rest(&file.name, from, file.bytes)?;
        let rest =
            Rest { mirror: self.clone(), file: file.clone(), at: began, body: Some(response), tried: 0, skip: 0 };
        Ok(Opened { from: began, bytes: Box::new(rest) })
    }
}

fn may_pass(error: &MirrorError) -> bool {
    match error {
        MirrorError::Away { .. } => true,
        MirrorError::Status { status, .. } => {
            status.is_server_error() || matches!(*status, StatusCode::TOO_MANY_REQUESTS | StatusCode::REQUEST_TIMEOUT)
        }
        _ => false,
    }
}

fn number<T>(response: &Response, header: &str, read: impl Fn(&str) -> Option<T>) -> Option<T> {
    read(response.headers().get(header)?.to_str().ok()?)
}

/// Of `bytes 5-9/10`: 5 and 10.
fn part(text: &str) -> Option<(u64, u64)> {
    let (range, total) = text.strip_prefix("bytes ")?.split_once('/')?;
    let (first, _) = range.split_once('-')?;
    Some((first.parse().ok()?, total.parse().ok()?))
}

/// A line as sha256sum writes it, by text or binary mode: the digest and the name.
fn sum(line: &str) -> Option<(String, &str)> {
    let (digest, rest) = line.split_once(' ')?;
    let name = rest.strip_prefix(' ').or_else(|| rest.strip_prefix('*'))?;
    let is_digest = digest.len() == 64 && digest.bytes().all(|byte| byte.is_ascii_hexdigit());
    (is_digest && !name.is_empty()).then(|| (digest.to_ascii_lowercase(), name))
}

/// The rest of a file, over as many connections as it takes.
struct Rest {
    mirror: Mirror,
    file: Offered,
    /// The next byte that is handed on.
    at: u64,
    body: Option<Response>,
    /// In a row, without a byte.
    tried: u32,
    /// Bytes of the answer that were handed on already: not every server sends parts.
    skip: u64,
}

impl Rest {
    fn again(&mut self) -> Result<(), MirrorError> {
        let (began, response) = self.mirror.rest(&self.file.name, self.at, self.file.bytes)?;
        self.skip = self.at - began;
        self.body = Some(response);
        Ok(())
    }

    /// `None`: what came had been handed on already.
    fn some(&mut self, into: &mut [u8]) -> io::Result<Option<usize>> {
        let Some(body) = &mut self.body else { return Err(io::ErrorKind::NotConnected.into()) };
        let most = usize::try_from(self.skip).unwrap_or(usize::MAX).min(into.len());
        let room = if self.skip > 0 { &mut into[..most] } else { into };
        let length = body.read(room)?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if self.skip > 0 {
            self.skip -= length as u64;
            return Ok(None);
        }
        self.tried = 0;
        self.at += length as u64;
        Ok(Some(length))
    }
}

impl Read for Rest {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.file.bytes || into.is_empty() {
            return Ok(0);
        }
        loop {
            let failed = match self.some(into) {
                Ok(Some(length)) => return Ok(length),
                Ok(None) => continue,
                Err(failed) => failed,
            };
            self.tried += 1;
            if self.tried >= self.mirror.patience.tries {
                let url = self.mirror.at(&self.file.name);
                let (at, bytes, tries) = (self.at, self.file.bytes, self.tried);
                return Err(io::Error::other(MirrorError::BrokenOff { url, at, bytes, tries, source: failed }));
            }
            self.body = None;
            self.mirror.wait(self.tried);
            self.again().map_err(io::Error::other)?;
        }
    }
}

#[cfg(test)]
mod tests;
