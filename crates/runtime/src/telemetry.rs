//! Logs: lines for people on a terminal, JSON with the whole chain of causes elsewhere, and JSON in files where the service
//! manager has made a folder for them. And traces, where a collector is configured.

mod otlp;
mod spans;

use std::io::IsTerminal;

use camino::Utf8PathBuf;
use prometheus::Registry as Metrics;
use rolling_file::{RollingConditionBasic, RollingFileAppender};
use serde::{Deserialize, Serialize};
use tracing_appender::non_blocking::{NonBlocking, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::filter::{LevelFilter, filter_fn};
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, reload};

use crate::config::Telemetry as Settings;
use crate::environment::Environment;

use otlp::{Exporter, Queue};
use spans::Spans;

/// A log file is put aside at this size, and this many are kept beside the current one: 80 MiB for each process at most.
const FILE_BYTES: u64 = 16 * 1024 * 1024;
const KEPT_FILES: usize = 4;
/// Lines that wait for the disk. Beyond them lines are dropped: a slow or full disk must not hold up the work.
const WAITING_LINES: usize = 8192;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    /// Text on a terminal, JSON elsewhere.
    #[default]
    Auto,
    Text,
    Json,
}

/// Logs and traces of this process. Dropping it writes out what waits for the file, and sends what waits for the collector
/// within a few seconds.
pub struct Logs {
    pub filter: LogFilter,
    _file: Option<WorkerGuard>,
    traces: Option<Exporter>,
}

impl Logs {
    /// Puts into `registry` how many spans the collector got, where one is configured.
    ///
    /// # Errors
    ///
    /// When the name is taken there.
    pub fn register(&self, registry: &Metrics) -> Result<(), prometheus::Error> {
        self.traces.as_ref().map_or(Ok(()), |traces| traces.counts().register(registry))
    }
}

/// Exchanges what is logged.
#[derive(Clone)]
pub struct LogFilter(reload::Handle<EnvFilter, Registry>);

impl LogFilter {
    /// Errors, and changes nothing, when `log` cannot be read.
    pub fn set(&self, log: &str) -> Result<(), String> {
        let filter = filter(log)?;
        // It fails when the logs have ended with their subscriber; then nobody misses the filter.
        let _ = self.0.reload(filter);
        Ok(())
    }
}

/// What these libraries log as errors comes to us as errors too, who know whether they are: a queue that is not there yet is
/// made.
const TOLD_BY_US: &str = "lapin=off";

/// Which lines are logged.
///
/// Errors with a sentence when `text` cannot be read.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    // Before the operator's own directives, which may say otherwise.
    EnvFilter::try_new(format!("{TOLD_BY_US},{text}"))
        .map_err(|e| format!("telemetry.log: `{text}` cannot be read ({e}); write it as in `info,fettle_git=debug`"))
}

/// Logs go to standard error, so that standard output is the command's own, and to `<process>.jsonl` in the first entry of
/// `$LOGS_DIRECTORY`. That folder belongs to one process: two would rotate each other's file.
///
/// Errors when `telemetry.log` or `telemetry.otlp_endpoint` cannot be read. A file that cannot be opened is told in the log.
pub fn init(settings: &Settings, process: &str, environment: &Environment) -> Result<Logs, String> {
    let (filter, handle) = reload::Layer::new(filter(&settings.log)?);
    let json = match settings.format {
        LogFormat::Auto => !std::io::stderr().is_terminal(),
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let file = environment.logs_dir().map(|folder| open(folder.join(process).with_extension("jsonl")));
    let (written, guard, failed) = match file {
        None => (None, None, None),
        Some(Ok((writer, guard))) => (Some(json_lines(writer)), Some(guard), None),
        Some(Err(failed)) => (None, None, Some(failed)),
    };
    let shown = if json {
        json_lines(std::io::stderr)
    } else {
        let ansi = std::io::stderr().is_terminal();
        fmt::layer().with_target(false).with_ansi(ansi).with_writer(std::io::stderr).boxed()
    };
    let traces = settings.otlp_endpoint.as_deref().map(|endpoint| Exporter::start(endpoint, process));
    let traces = traces.transpose().map_err(|error| chain(&error))?;
    let lines = shown.and_then(written).boxed();
    let queue = traces.as_ref().map(|traces| traces.queue.clone());
    // A second initialisation in one process (tests) keeps the first.
    let _ = tracing::subscriber::set_global_default(subscriber(lines, filter, queue));
    if let Some((path, error)) = failed {
        tracing::error!(error = &error as &dyn std::error::Error, "no log is written to {path}");
    }
    Ok(Logs { filter: LogFilter(handle), _file: guard, traces })
}

/// Traces do not become fewer with the log: each has a filter of its own.
fn subscriber(
    lines: Box<dyn Layer<Registry> + Send + Sync>,
    filter: reload::Layer<EnvFilter, Registry>,
    queue: Option<Queue>,
) -> impl tracing::Subscriber + Send + Sync {
    let told = || filter_fn(spans::is_told).with_max_level_hint(LevelFilter::INFO);
    let spans = queue.map(|queue| Spans::new(queue).with_filter(told()));
    tracing_subscriber::registry().with(lines.with_filter(filter)).with(spans)
}

fn json_lines<S, W>(writer: W) -> Box<dyn Layer<S> + Send + Sync>
where
    S: tracing::Subscriber + for<'span> tracing_subscriber::registry::LookupSpan<'span>,
    W: for<'writer> fmt::MakeWriter<'writer> + Send + Sync + 'static,
{
    fmt::layer().with_target(false).json().flatten_event(true).with_span_list(false).with_writer(writer).boxed()
}

/// The file, behind a thread of its own that alone waits for the disk.
fn open(path: Utf8PathBuf) -> Result<(NonBlocking, WorkerGuard), (Utf8PathBuf, std::io::Error)> {
    let condition = RollingConditionBasic::new().max_size(FILE_BYTES);
    let file = RollingFileAppender::new(&path, condition, KEPT_FILES).map_err(|error| (path, error))?;
    Ok(NonBlockingBuilder::default()
        .lossy(true)
        .buffered_lines_limit(WAITING_LINES)
        .thread_name("log file")
        .finish(file))
}

/// Whether traces can be sent there.
///
/// Errors with a sentence when not.
pub fn check_endpoint(endpoint: &str) -> Result<(), String> {
    // Not repeated: it may hold a key, which has no place in this file.
    otlp::traces_url(endpoint).map(drop).ok_or_else(|| {
        "telemetry.otlp_endpoint is not the http or https address of a collector, as in `http://127.0.0.1:4318`, without user and \
         password"
            .to_owned()
    })
}

/// An error with its causes on one line.
pub use fettle_app::ports::chain;

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use tracing::{debug, info, info_span, warn};

    use super::*;

    #[derive(Clone, Default)]
    struct Shown(Arc<Mutex<Vec<u8>>>);

    impl std::io::Write for Shown {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_quiet_log_makes_no_trace_smaller_and_can_be_made_louder() {
        let (shown, (queue, spans)) = (Shown::default(), Queue::for_tests(10));
        let (filter, handle) = reload::Layer::new(super::filter("warn").unwrap());
        let writer = shown.clone();
        let lines = json_lines(move || writer.clone());
        tracing::subscriber::with_default(subscriber(lines, filter, Some(queue)), || {
            let work = || {
                let _in = info_span!("run", task.id = "task_0190aaaabbbb7ccc8111222233334444").entered();
                warn!("a warning");
                info!("some news");
                debug!("a detail");
            };
            work();
            LogFilter(handle).set("info").unwrap();
            work();
        });
        assert_eq!(spans.try_iter().count(), 2);
        let text = String::from_utf8(shown.0.lock().unwrap().clone()).unwrap();
        let said: Vec<bool> = text.lines().map(|line| line.contains("a warning")).collect();
        assert_eq!(said, [true, true, false], "{text}");
        assert!(!text.contains("a detail") && text.lines().last().unwrap().contains("task_0190"), "{text}");
    }
}
