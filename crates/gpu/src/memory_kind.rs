//! Which memory a GPU computes from: its own, or the host's. Decided once per device, from evidence; asks nobody.

use std::fmt;

use fettle_placement::quantity::Bytes;

/// What is known about a device that tells its memory apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Evidence {
    /// CUDA's attribute `INTEGRATED`; `None` where nobody could ask for it.
    pub integrated: Option<bool>,
    /// As the driver says: `NVIDIA GB10`.
    pub name: String,
    pub nvml: NvmlMemory,
    /// `MemTotal`.
    pub host_total: Bytes,
    /// The GPU has a NUMA node of its own, with memory.
    pub numa_memory: bool,
}

/// What NVML says of a device's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NvmlMemory {
    Total(Bytes),
    NotSupported,
    /// An error of another kind. It says nothing about the memory: a lost GPU has one, too.
    Unreadable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MemoryKind {
    /// One memory of GPU and host.
    Unified,
    /// The GPU's own, which the host reaches as a NUMA node.
    Coherent,
    Discrete,
    /// Gets no engine.
    Unknown,
}

impl fmt::Display for MemoryKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unified => "unified",
            Self::Coherent => "coherent",
            Self::Discrete => "discrete",
            Self::Unknown => "unknown",
        })
    }
}

/// A kind, and the sentence that a log shows for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub kind: MemoryKind,
    pub because: &'static str,
}

/// Chips whose GPU shares the host's memory. Where CUDA cannot be asked, the name has to do.
const SHARING: &[&str] = &["GB10", "Thor", "Orin"];
/// Some drivers for these show (nearly) the host's memory as the GPU's.
const CLAIMS_THE_HOST_PERMILLE: u32 = 800;

/// The first rule that matches. That NVML cannot read a memory never means by itself that it is shared.
pub fn memory_kind(evidence: &Evidence) -> Verdict {
    let verdict = |kind, because| Verdict { kind, because };
    let sharing = named_as_sharing(&evidence.name);
    let readable = matches!(evidence.nvml, NvmlMemory::Total(_));
    match (evidence.integrated, evidence.nvml) {
        (Some(true), _) => verdict(MemoryKind::Unified, "CUDA says that the GPU is integrated"),
        (None, NvmlMemory::NotSupported) if sharing => verdict(
            MemoryKind::Unified,
            "its name is of a chip that shares memory, and NVML knows no memory of its own",
        ),
        (None, NvmlMemory::Total(total))
            if sharing && total >= evidence.host_total.permille(CLAIMS_THE_HOST_PERMILLE) =>
        {
            verdict(
                MemoryKind::Unified,
                "its name is of a chip that shares memory, and NVML shows the host's memory as its own",
            )
        }
        (Some(false), _) if readable && evidence.numa_memory => {
            verdict(MemoryKind::Coherent, "not integrated, and its memory is a NUMA node of the host")
        }
        (Some(false), _) if readable => verdict(MemoryKind::Discrete, "not integrated, and NVML reads its memory"),
        (None, _) if readable && !sharing => {
            verdict(MemoryKind::Discrete, "NVML reads its memory, and no chip of its name shares the host's")
        }
        _ => verdict(MemoryKind::Unknown, "nothing tells whose memory it uses"),
    }
}

/// One of the words of the name, exactly: a `GB100` is no `GB10`.
fn named_as_sharing(name: &str) -> bool {
    name.split(|letter: char| !letter.is_ascii_alphanumeric()).any(|word| SHARING.contains(&word))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(integrated: Option<bool>, name: &str, nvml: NvmlMemory, numa_memory: bool) -> MemoryKind {
        memory_kind(&Evidence { integrated, name: name.to_owned(), nvml, host_total: Bytes::gib(120), numa_memory })
            .kind
    }

    #[test]
    fn what_cuda_says_comes_before_names_and_nvml() {
        let all = NvmlMemory::Total(Bytes::gib(140));
        assert_eq!(kind(Some(true), "NVIDIA H200", all, false), MemoryKind::Unified);
        assert_eq!(kind(Some(false), "NVIDIA GB10", all, false), MemoryKind::Discrete);
        assert_eq!(kind(Some(false), "NVIDIA GB300", all, true), MemoryKind::Coherent);
    }

    #[test]
    fn without_cuda_a_chip_that_shares_is_known_by_name_and_by_what_nvml_shows() {
        assert_eq!(kind(None, "NVIDIA GB10", NvmlMemory::NotSupported, false), MemoryKind::Unified);
        assert_eq!(kind(None, "NVIDIA GB10", NvmlMemory::Total(Bytes::gib(96)), false), MemoryKind::Unified);
        assert_eq!(kind(None, "NVIDIA GB10", NvmlMemory::Total(Bytes::gib(95)), false), MemoryKind::Unknown);
        assert_eq!(kind(None, "NVIDIA GB100", NvmlMemory::Total(Bytes::gib(180)), false), MemoryKind::Discrete);
    }

    #[test]
    fn an_error_of_nvml_alone_never_means_shared_memory() {
        for integrated in [None, Some(false)] {
            for name in ["NVIDIA H200", "NVIDIA GB10"] {
                assert_eq!(kind(integrated, name, NvmlMemory::Unreadable, true), MemoryKind::Unknown);
            }
            assert_eq!(kind(integrated, "NVIDIA H200", NvmlMemory::NotSupported, false), MemoryKind::Unknown);
        }
    }
}
