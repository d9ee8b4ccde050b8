//! The smart-HTTP transport under libgit2, over reqwest.
//!
//! A transport is registered once per process while a token belongs to one operation, and libgit2 calls a transport on the
//! thread that started the operation; so the operation's [`Session`] stands in a thread-local while it runs. The token goes
//! out as a header to the one origin the operation names, and nowhere else.

use std::cell::RefCell;
use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use bytes::Bytes;
use fettle_app::ports::BoxError;
use git2::transport::{Service, SmartSubtransport, SmartSubtransportStream, Transport};
use git2::{ErrorClass, ErrorCode, Remote};
use reqwest::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION};
use reqwest::{Client, Method, Response, StatusCode, Url};
use secrecy::{ExposeSecret, SecretString};
use tokio::runtime::Handle;
use tokio::time::Instant;

/// A forge renames a repository with one redirect; more in a row is a loop.
const MAX_REDIRECTS: usize = 4;
/// A request is built in memory before it is sent. Patches are far smaller, and forges refuse packs above 2 GiB anyway.
const MAX_REQUEST_BYTES: usize = 512 * 1024 * 1024;
/// One operation with all its requests; the first fetch of a large repository over a slow line fits.
const OPERATION_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What went wrong on the wire, kept beside libgit2's one-line error.
#[derive(Debug)]
pub(crate) enum Fault {
    /// 401, 403 or 404.
    Denied,
    /// 5xx or 429: the server is there and cannot now.
    Server(StatusCode),
    /// Nothing reached the server.
    NotConnected(BoxError),
    /// The connection broke, or fell silent, after something was sent.
    Interrupted(BoxError),
    /// The answer is not that of a git server we may talk to.
    Unfit(String),
}

/// One operation against one repository.
pub(crate) struct Session {
    client: Client,
    handle: Handle,
    /// Where the repository is; moves when the first request is redirected on the same origin.
    base: Mutex<Url>,
    authorization: Option<HeaderValue>,
    fault: Mutex<Option<Fault>>,
    pack_sent: AtomicBool,
    deadline: Instant,
}

thread_local! {
    static CURRENT: RefCell<Option<Arc<Session>>> = const { RefCell::new(None) };
}

impl Session {
    pub(crate) fn new(client: Client, handle: Handle, url: Url, token: Option<&SecretString>) -> Arc<Self> {
        let authorization = token.map(|token| {
            let pair = SecretString::from(format!("x-access-token:{}", token.expose_secret()));
            let encoded = base64::engine::general_purpose::STANDARD.encode(pair.expose_secret());
            let mut value = HeaderValue::from_str(&format!("Basic {encoded}")).expect("base64 is a header value");
            value.set_sensitive(true);
            value
        });
        Arc::new(Self {
            client,
            handle,
            base: Mutex::new(url),
            authorization,
            fault: Mutex::new(None),
            pack_sent: AtomicBool::new(false),
            deadline: Instant::now() + OPERATION_LIMIT,
        })
    }

    /// Runs `work`, whose libgit2 calls on this thread then go through this session.
    pub(crate) fn enter<T>(self: &Arc<Self>, work: impl FnOnce() -> T) -> T {
        struct Restore(Option<Arc<Session>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                CURRENT.set(self.0.take());
            }
        }
        let _restore = Restore(CURRENT.replace(Some(Arc::clone(self))));
        work()
    }

    /// The first fault of the operation, once.
    pub(crate) fn take_fault(&self) -> Option<Fault> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Whether a push may have reached the server.
    pub(crate) fn pack_was_sent(&self) -> bool {
        self.pack_sent.load(Ordering::Acquire)
    }

    fn report(&self, fault: Fault) -> git2::Error {
        let text = match &fault {
            Fault::Denied => "the server refused access".to_owned(),
            Fault::Server(status) => format!("the server answered {status}"),
            Fault::NotConnected(_) => "no connection to the server".to_owned(),
            Fault::Interrupted(_) => "the connection to the server broke".to_owned(),
            Fault::Unfit(text) => text.clone(),
        };
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(fault);
        git2::Error::new(ErrorCode::GenericError, ErrorClass::Net, text)
    }

    fn base(&self) -> Url {
        self.base.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn endpoint(&self, suffix: &str) -> Url {
        let mut url = self.base();
        let path = format!("{}/{suffix}", url.path().trim_end_matches('/'));
        url.set_path(&path);
        url
    }

    /// Waits for `answer` until the operation's deadline; each single wait inside has the client's own timeout.
    fn wait<T>(&self, answer: impl Future<Output = Result<T, reqwest::Error>>) -> Result<T, Fault> {
        let outcome = self.handle.block_on(async { tokio::time::timeout_at(self.deadline, answer).await });
        match outcome {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) if error.is_connect() || error.is_builder() => {
                Err(Fault::NotConnected(error.without_url().into()))
            }
            Ok(Err(error)) => Err(Fault::Interrupted(error.without_url().into())),
            Err(elapsed) => Err(Fault::Interrupted(elapsed.into())),
        }
    }

    fn request(&self, method: Method, url: Url) -> reqwest::RequestBuilder {
        let request = self.client.request(method, url);
        match &self.authorization {
            Some(value) => request.header(AUTHORIZATION, value.clone()),
            None => request,
        }
    }

    /// Asks for the references. The client follows no redirect by itself: here one is followed when it stays on the origin,
    /// and the requests after it use the new place.
    fn advertise(&self, service: &str) -> Result<Response, Fault> {
        let mut url = self.endpoint("info/refs");
        url.set_query(Some(&format!("service={service}")));
        for _ in 0..=MAX_REDIRECTS {
            let response = self.wait(self.request(Method::GET, url.clone()).send())?;
            if !response.status().is_redirection() {
                let response = accepted(response)?;
                check_type(&response, &format!("application/x-{service}-advertisement"))?;
                return Ok(response);
            }
            let next = response
                .headers()
                .get(LOCATION)
                .and_then(|location| location.to_str().ok())
                .and_then(|location| url.join(location).ok())
                .ok_or_else(|| Fault::Unfit("the server redirects to nowhere".into()))?;
            if next.origin() != url.origin() {
                let host = next.host_str().unwrap_or_default();
                return Err(Fault::Unfit(format!(
                    "the repository has moved to another host, {host}; change its address"
                )));
            }
            let Some(path) = next.path().strip_suffix("/info/refs") else {
                return Err(Fault::Unfit("the server redirects to something that is not a repository".into()));
            };
            let mut moved = next.clone();
            moved.set_path(path);
            moved.set_query(None);
            moved.set_fragment(None);
            *self.base.lock().unwrap_or_else(PoisonError::into_inner) = moved;
            url = next;
        }
        Err(Fault::Unfit("the server redirects in a circle".into()))
    }

    fn exchange(&self, service: &str, body: Vec<u8>) -> Result<Response, Fault> {
        let pushes = service == "git-receive-pack";
        if pushes {
            self.pack_sent.store(true, Ordering::Release);
        }
        let request = self
            .request(Method::POST, self.endpoint(service))
            .header(CONTENT_TYPE, format!("application/x-{service}-request"))
            .header(ACCEPT, format!("application/x-{service}-result"))
            .body(body);
        let answer = self.wait(request.send());
        if pushes && matches!(answer, Err(Fault::NotConnected(_))) {
            self.pack_sent.store(false, Ordering::Release);
        }
        let response = accepted(answer?)?;
        check_type(&response, &format!("application/x-{service}-result"))?;
        Ok(response)
    }
}

fn accepted(response: Response) -> Result<Response, Fault> {
    match response.status() {
        StatusCode::OK => Ok(response),
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN | StatusCode::NOT_FOUND => Err(Fault::Denied),
        status if status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS => Err(Fault::Server(status)),
        status => Err(Fault::Unfit(format!("the server answered {status}"))),
    }
}

fn check_type(response: &Response, expected: &str) -> Result<(), Fault> {
    let found = response.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if found == expected { Ok(()) } else { Err(Fault::Unfit("the answer is not that of a git server".into())) }
}

/// The factory that libgit2 calls for `http` and `https`.
pub(crate) fn transport(remote: &Remote<'_>) -> Result<Transport, git2::Error> {
    let session = CURRENT
        .with_borrow(Clone::clone)
        .ok_or_else(|| git2::Error::new(ErrorCode::User, ErrorClass::Net, "a remote was used outside a session"))?;
    Transport::smart(remote, true, Subtransport(session))
}

struct Subtransport(Arc<Session>);

impl SmartSubtransport for Subtransport {
    fn action(&self, _url: &str, service: Service) -> Result<Box<dyn SmartSubtransportStream>, git2::Error> {
        let session = &self.0;
        let advertised = |service| {
            let response = session.advertise(service).map_err(|fault| session.report(fault))?;
            let answer = Answer { session: Arc::clone(session), response, chunk: Bytes::new() };
            Ok(Box::new(Exchange { session: Arc::clone(session), service, state: State::Receiving(answer) }) as Box<_>)
        };
        let exchange = |service| {
            Ok(Box::new(Exchange { session: Arc::clone(session), service, state: State::Sending(Vec::new()) })
                as Box<_>)
        };
        match service {
            Service::UploadPackLs => advertised("git-upload-pack"),
            Service::ReceivePackLs => advertised("git-receive-pack"),
            Service::UploadPack => exchange("git-upload-pack"),
            Service::ReceivePack => exchange("git-receive-pack"),
        }
    }

    fn close(&self) -> Result<(), git2::Error> {
        Ok(())
    }
}

/// One request and its answer: libgit2 writes all of the one before it reads the other.
struct Exchange {
    session: Arc<Session>,
    service: &'static str,
    state: State,
}

enum State {
    Sending(Vec<u8>),
    Receiving(Answer),
    Failed,
}

struct Answer {
    session: Arc<Session>,
    response: Response,
    chunk: Bytes,
}

impl Write for Exchange {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let State::Sending(body) = &mut self.state else {
            return Err(io::Error::other("the request has been sent already"));
        };
        if body.len() + bytes.len() > MAX_REQUEST_BYTES {
            let fault = Fault::Unfit(format!("the pack is larger than {MAX_REQUEST_BYTES} bytes"));
            return Err(io::Error::other(self.session.report(fault)));
        }
        body.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Read for Exchange {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if let State::Sending(body) = &mut self.state {
            let body = std::mem::take(body);
            self.state = State::Failed;
            let response = self
                .session
                .exchange(self.service, body)
                .map_err(|fault| io::Error::other(self.session.report(fault)))?;
            self.state = State::Receiving(Answer { session: Arc::clone(&self.session), response, chunk: Bytes::new() });
        }
        match &mut self.state {
            State::Receiving(answer) => answer.read(buffer),
            State::Sending(_) | State::Failed => Err(io::Error::other("the request has failed already")),
        }
    }
}

impl Answer {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.chunk.is_empty() {
            match self.session.wait(self.response.chunk()) {
                Ok(Some(chunk)) => self.chunk = chunk,
                Ok(None) => return Ok(0),
                Err(Fault::NotConnected(error) | Fault::Interrupted(error)) => {
                    return Err(io::Error::other(self.session.report(Fault::Interrupted(error))));
                }
                Err(fault) => return Err(io::Error::other(self.session.report(fault))),
            }
        }
        let count = buffer.len().min(self.chunk.len());
        buffer[..count].copy_from_slice(&self.chunk.split_to(count));
        Ok(count)
    }
}
