//! Machines that are well: what is there becomes devices and pools.

use std::collections::BTreeMap;

use fettle_fake_nvml::{Gpu, Link, Memory, Process, State, code};
use fettle_gpu::host::{Cgroup, Host, Node};
use fettle_gpu::memory_kind::MemoryKind;
use fettle_placement::device::{Attribution, ComputeCapability, DeviceKind, Health, PoolKind};
use fettle_placement::id::DeviceId;
use fettle_placement::quantity::{Bytes, Millis};

use crate::bench::{Bench, PATIENT, START, host, vram};

const TOTAL: Bytes = Bytes::mib(143_771);
const RESERVED: Bytes = Bytes::mib(619);
const CAP: Bytes = Bytes::mib(143_771 - 619);

#[tokio::test]
async fn a_dgx_is_eight_devices_with_a_pool_each_in_one_island() {
    let bench = Bench::of(&State::dgx()).await;
    let (devices, pools) = bench.machine.devices_and_pools(START);
    let gpus: Vec<_> = devices.iter().filter(|device| device.kind == DeviceKind::Gpu).collect();
    assert_eq!((gpus.len(), pools.len()), (8, 9));
    for (number, gpu) in gpus.iter().enumerate() {
        assert_eq!(gpu.id.as_str(), Gpu::uuid_of(number));
        assert_eq!((gpu.name.as_str(), gpu.cc, gpu.celsius), ("NVIDIA H200", ComputeCapability(9, 0), 34));
        assert_eq!(gpu.island.as_ref().map(ToString::to_string).as_deref(), Some("nvl0"));
        assert!(gpu.tp_ok && gpu.health == Health::Ok, "{gpu:?}");
        let pool = bench.pool(gpu.pool.as_str());
        assert_eq!((pool.kind, pool.cap, pool.used), (PoolKind::Vram, CAP, Bytes::mib(4)));
        assert_eq!((pool.free, pool.sampled), (Bytes::mib(143_771 - 619 - 4), START));
        assert_eq!(pool.attribution, Attribution::Exact);
    }
    let host = bench.pool("host");
    assert_eq!((host.kind, host.cap, host.free), (PoolKind::Host, Bytes::gib(2040), Bytes::gib(1016)));
}

#[tokio::test]
async fn one_gpu_has_no_island_and_offers_what_is_free_less_the_margin() {
    let bench = Bench::of(&State::one_gpu()).await;
    assert_eq!(bench.device(&Gpu::uuid_of(0)).island, None);
    let margin = bench.pool(&vram(0)).margin;
    assert_eq!(margin, CAP.permille(15));
    assert_eq!(bench.offered(&vram(0), START) + margin, CAP_LESS_USED);
}
const CAP_LESS_USED: Bytes = Bytes::mib(143_771 - 619 - 4);

#[tokio::test]
async fn gpus_with_bridges_are_islands_of_two() {
    let mut state = State { gpus: (0..4).map(Gpu::h200).collect(), ..State::one_gpu() };
    for (number, other) in [(0, 1), (1, 0), (2, 3)] {
        let remote = state.gpus[other].pci.clone();
        state.gpus[number].links.push(Link { active: true, remote, switch: false });
    }
    let remote = state.gpus[0].pci.clone();
    state.gpus[3].links.push(Link { active: false, remote, switch: false });
    let bench = Bench::of(&state).await;
    let island = |number| bench.device(&Gpu::uuid_of(number)).island.map(|island| island.to_string());
    assert_eq!([0, 1, 2, 3].map(|number| island(number).unwrap()), ["nvl0", "nvl0", "nvl1", "nvl1"]);
}

#[tokio::test]
async fn mig_slices_are_devices_and_compute_instances_share_the_pool_of_their_gpu_instance() {
    let bench = Bench::of(&State::mig()).await;
    let (devices, pools) = bench.machine.devices_and_pools(START);
    let parent = DeviceId::new(Gpu::uuid_of(0));
    assert!(devices.iter().all(|device| device.id != parent), "a GPU in MIG mode gets no engine");
    let slices: Vec<_> = devices.iter().filter(|device| device.kind != DeviceKind::Cpu).collect();
    assert_eq!(slices.len(), 3);
    assert!(slices.iter().all(|slice| !slice.tp_ok && slice.cc == ComputeCapability(9, 0)));
    let wanted = DeviceKind::Slice { parent, gi: 2, ci: 1, mig_profile: "1c.2g.35gb".to_owned() };
    assert_eq!(slices[2].kind, wanted);
    assert_eq!(slices[1].pool, slices[2].pool);
    let of_slices: Vec<_> = pools.iter().filter(|pool| pool.kind == PoolKind::Slice).collect();
    assert_eq!(
        of_slices.iter().map(|pool| pool.cap).collect::<Vec<_>>(),
        [71, 35].map(|gib| Bytes::mib(gib * 1024 - 32))
    );
    assert_eq!(of_slices[0].id.as_str(), format!("gi:{}/1", Gpu::uuid_of(0)));
}

#[tokio::test]
async fn slices_that_were_carved_anew_replace_the_old_ones() {
    let mut state = State::mig();
    let mut bench = Bench::of(&state).await;
    state.gpus[0].slices = None;
    bench.fake.set(&state).unwrap();
    bench.look(START).await.unwrap();
    let (devices, pools) = bench.machine.devices_and_pools(START);
    assert_eq!(devices.iter().map(|device| device.id.as_str()).collect::<Vec<_>>(), [Gpu::uuid_of(0).as_str(), "cpu"]);
    assert!(pools.iter().all(|pool| pool.kind != PoolKind::Slice));
    assert_eq!(bench.pool(&vram(0)).cap, CAP);
}

/// 119 GiB as a DGX Spark has, in a container with a limit.
fn spark() -> Host {
    let cgroup = Some(Cgroup { limit: Bytes::gib(32), used: Bytes::gib(30) });
    Host { total: Bytes::gib(119), available: Bytes::gib(100), cgroup, host_pids: true, ..Host::default() }
}

#[tokio::test]
async fn a_spark_has_one_pool_of_host_and_gpu_whatever_nvml_and_cgroups_say() {
    let mut state = State::gb10();
    for memory in [None, Some(Memory { total: Bytes::gib(119).get(), reserved: 0, used: 0 })] {
        state.gpus[0].memory = memory;
        let bench = Bench::with(&state, &[], spark(), PATIENT).await;
        let pools = bench.pools();
        assert_eq!(pools.len(), 1, "{pools:?}");
        let pool = &pools[0];
        assert_eq!((pool.id.as_str(), pool.kind), ("unified", PoolKind::Unified));
        assert_eq!((pool.cap, pool.used, pool.free), (Bytes::gib(103), Bytes::gib(19), Bytes::gib(84)));
        assert_eq!(bench.offered("unified", START), Bytes::gib(84));
        assert_eq!(bench.device("cpu").pool, bench.device(&Gpu::uuid_of(0)).pool);
        assert_eq!(bench.device(&Gpu::uuid_of(0)).health, Health::Ok);
    }
}

#[tokio::test]
async fn memory_that_nobody_can_tell_apart_offers_nothing_until_cuda_is_asked() {
    let mut state = State::gb10();
    state.gpus[0].memory = Some(Memory { total: Bytes::gib(64).get(), reserved: 0, used: 0 });
    let mut bench = Bench::with(&state, &[], spark(), PATIENT).await;
    let gpu = DeviceId::new(Gpu::uuid_of(0));
    assert_eq!(bench.machine.memory_kind(&gpu).map(|verdict| verdict.kind), Some(MemoryKind::Unknown));
    assert_eq!(bench.offered(&vram(0), START), Bytes::ZERO);
    bench.machine.saw_integrated(gpu, false);
    assert!(bench.offered(&vram(0), START) > Bytes::gib(60));
}

#[tokio::test]
async fn coherent_memory_offers_no_more_than_its_node_has() {
    let mut state = State::one_gpu();
    state.gpus[0].numa = Some(1);
    let node = Node { free: Bytes::gib(40), clean_files: Bytes::gib(2) };
    let host = Host { nodes: BTreeMap::from([(1, node)]), ..host() };
    let mut bench = Bench::with(&state, &[], host, PATIENT).await;
    bench.machine.saw_integrated(DeviceId::new(Gpu::uuid_of(0)), false);
    let pool = bench.pool(&vram(0));
    assert_eq!((pool.kind, pool.free), (PoolKind::Coherent, Bytes::gib(42)));
}

#[tokio::test]
async fn a_lower_limit_of_the_container_is_the_hosts_memory() {
    let cgroup = Some(Cgroup { limit: Bytes::gib(64), used: Bytes::gib(4) });
    let bench = Bench::with(&State::one_gpu(), &[], Host { cgroup, ..host() }, PATIENT).await;
    let pool = bench.pool("host");
    assert_eq!((pool.cap, pool.used, pool.free), (Bytes::gib(56), Bytes::gib(4), Bytes::gib(52)));
}

#[tokio::test]
async fn an_old_driver_without_the_second_memory_call_is_asked_by_the_first() {
    let bench = Bench::with(&State::one_gpu(), &["nvmlDeviceGetMemoryInfo_v2"], host(), PATIENT).await;
    let pool = bench.pool(&vram(0));
    assert_eq!((pool.cap, pool.used), (TOTAL, RESERVED + Bytes::mib(4)));
    assert_eq!(pool.free, CAP_LESS_USED);
}

#[tokio::test]
async fn what_a_device_does_not_tell_costs_that_field_only() {
    let bare =
        Gpu { memory: Gpu::h200(0).memory, uuid: Gpu::uuid_of(0), name: "NVIDIA Test".to_owned(), ..Gpu::default() };
    let missing = [
        "nvmlDeviceGetGpuFabricInfoV",
        "nvmlDeviceGetRemappedRows",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetFieldValues",
    ];
    let bench = Bench::with(&State { gpus: vec![bare], ..State::one_gpu() }, &missing, host(), PATIENT).await;
    let gpu = bench.device(&Gpu::uuid_of(0));
    assert_eq!((gpu.health, gpu.celsius, gpu.tp_ok), (Health::Ok, 0, true));
    assert_eq!(bench.pool(&vram(0)).cap, CAP);
    assert_eq!(bench.machine.activity(&gpu.id).unwrap().milliwatts, None);
}

#[tokio::test]
async fn indices_that_change_move_nothing() {
    let mut state = State::dgx();
    for (number, gpu) in state.gpus.iter_mut().enumerate() {
        gpu.memory.as_mut().unwrap().used = Bytes::gib(u64::try_from(number).unwrap()).get();
    }
    let mut bench = Bench::of(&state).await;
    let before = bench.machine.devices_and_pools(START);
    state.gpus.reverse();
    bench.fake.set(&state).unwrap();
    bench.look_at_memory(START).await.unwrap();
    assert_eq!(bench.machine.devices_and_pools(START), before);
    bench.look(START).await.unwrap();
    assert_eq!(bench.machine.devices_and_pools(START), before);
    assert_eq!(bench.pool(&vram(5)).used, Bytes::gib(5));
}

#[tokio::test]
async fn what_foreign_tenants_take_is_not_offered() {
    let mut state = State::one_gpu();
    let mut bench = Bench::of(&state).await;
    let before = bench.offered(&vram(0), START);
    state.gpus[0].memory.as_mut().unwrap().used += Bytes::gib(50).get();
    state.gpus[0].processes = vec![Process { pid: 4711, bytes: Some(Bytes::gib(50).get()) }];
    bench.fake.set(&state).unwrap();
    let later = START + Millis::new(500);
    bench.look_at_memory(later).await.unwrap();
    assert_eq!(bench.offered(&vram(0), later) + Bytes::gib(50), before);
    assert_eq!(bench.pool(&vram(0)).attribution, Attribution::Exact);
    let (_, seen) = bench.driver.memory(bench.machine.memory_devices()).await.unwrap().remove(0);
    let processes = seen.processes.unwrap();
    assert_eq!((processes[0].pid, processes[0].bytes), (4711, Some(Bytes::gib(50))));
}

#[tokio::test]
async fn processes_without_bytes_or_with_numbers_of_elsewhere_make_a_pool_blind() {
    let mut state = State::one_gpu();
    let elsewhere = Bench::with(&state, &[], Host { host_pids: false, ..host() }, PATIENT).await;
    assert_eq!(elsewhere.pool(&vram(0)).attribution, Attribution::Blind);
    let exact = Bench::of(&state).await.offered(&vram(0), START);
    // The margin counts twice then.
    assert_eq!(elsewhere.offered(&vram(0), START) + CAP.permille(15), exact);
    state.gpus[0].processes = vec![Process { pid: 4711, bytes: None }];
    assert_eq!(Bench::of(&state).await.pool(&vram(0)).attribution, Attribution::Blind);
    state.gpus[0].errors.insert("nvmlDeviceGetComputeRunningProcesses_v3".to_owned(), code::NOT_SUPPORTED);
    assert_eq!(Bench::of(&state).await.pool(&vram(0)).attribution, Attribution::Blind);
}
