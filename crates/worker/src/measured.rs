//! Models whose calls are counted.

use std::sync::Arc;

use async_trait::async_trait;
use fettle_app::metrics::ModelMetrics;
use fettle_app::ports::model::{Model, ModelError, ModelInfo, ModelRequest, Progress, RawTurn, RunAccess, ToolCalls};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// The models, each call of which is counted in `metrics`.
pub fn measured(models: Vec<Arc<dyn Model>>, metrics: &ModelMetrics) -> Vec<Arc<dyn Model>> {
    let measured = |model| Arc::new(Measured { model, metrics: metrics.clone() }) as Arc<dyn Model>;
    models.into_iter().map(measured).collect()
}

struct Measured {
    model: Arc<dyn Model>,
    metrics: ModelMetrics,
}

#[async_trait]
impl Model for Measured {
    fn info(&self) -> &ModelInfo {
        self.model.info()
    }

    async fn tool_calls(&self) -> Option<ToolCalls> {
        self.model.tool_calls().await
    }

    fn for_run(&self, run: RunAccess) -> Arc<dyn Model> {
        Arc::new(Self { model: self.model.for_run(run), metrics: self.metrics.clone() })
    }

    async fn call(
        &self,
        request: &ModelRequest,
        progress: &Progress<'_>,
        cancel: &CancellationToken,
    ) -> Result<RawTurn, ModelError> {
        let asked = Instant::now();
        let answer = self.model.call(request, progress, cancel).await;
        let outcome = match &answer {
            Ok(_) => "answered",
            Err(ModelError::Busy { .. }) => "busy",
            Err(ModelError::Unavailable(_)) => "unavailable",
            Err(ModelError::ContextExceeded) => "context_exceeded",
            Err(ModelError::Refused(_)) => "refused",
            Err(ModelError::Cancelled) => "cancelled",
        };
        self.metrics.ended(&self.info().name, outcome, asked.elapsed());
        answer
    }
}
