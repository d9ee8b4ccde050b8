//! Whether NVIDIA's library is there and which GPUs it tells of. A machine without any is no worse for it.

use fettle_inference::devices::{Looked, look};
use fettle_runtime::config::{Config, GpuMode};

use super::Check;

pub(super) async fn check(config: &Config) -> Check {
    if config.gpu.mode == GpuMode::Off {
        return Check::ok("gpus", "none is looked for, as gpu.mode says");
    }
    match look(&config.gpu).await {
        Looked::Absent(tried) => {
            let local = config.gateway.models.iter().find(|model| model.is_local());
            let sentence = format!("NVIDIA's library is not here; looked at {}", tried.join(", "));
            match local {
                None => Check::ok("gpus", sentence),
                Some(model) => Check::warn(
                    "gpus",
                    format!("{sentence}; the model `{}` runs only if its recipe is for the CPU", model.name),
                    "install NVIDIA's driver, or name its library with gpu.nvml_lib",
                ),
            }
        }
        Looked::Failed(tried) => Check::warn(
            "gpus",
            tried.join("; "),
            "reload the driver or boot the machine; in a container, hand the devices in anew",
        ),
        Looked::Found { library, gpus } if gpus.is_empty() => {
            Check::warn("gpus", format!("{library}, and it tells of no GPU"), "look at the output of `nvidia-smi`")
        }
        Looked::Found { library, gpus } => Check::ok("gpus", format!("{library}: {}", gpus.join(", "))),
    }
}
