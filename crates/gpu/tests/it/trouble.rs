//! Devices that are not well: each reaches its verdict, and the others go on.

use fettle_fake_nvml::{Fabric, Gpu, Remapped, State, code};
use fettle_placement::device::{Health, WaitingFor};
use fettle_placement::id::DeviceId;
use fettle_placement::quantity::{Bytes, Millis};

use crate::bench::{Bench, PATIENT, START, vram};

/// Hardware thermal slowdown among `nvmlClocksThrottleReasons`.
const HEAT: u64 = 0x40;

#[tokio::test]
async fn a_lost_gpu_is_lost_alone_and_comes_back_when_the_driver_says_so() {
    let mut state = State::dgx();
    let mut bench = Bench::of(&state).await;
    state.gpus[3].lost = true;
    bench.fake.set(&state).unwrap();

    // The next look at memory already tells.
    let later = START + Millis::new(500);
    bench.look_at_memory(later).await.unwrap();
    assert_eq!(bench.device(&Gpu::uuid_of(3)).health, Health::Lost);
    bench.look(later).await.unwrap();
    for number in 0..8 {
        let lost = number == 3;
        assert_eq!(bench.device(&Gpu::uuid_of(number)).health == Health::Lost, lost, "{number}");
        assert_eq!(bench.offered(&vram(number), later) == Bytes::ZERO, lost, "{number}");
    }

    state.gpus[3].lost = false;
    bench.fake.set(&state).unwrap();
    bench.look(later).await.unwrap();
    assert_eq!(bench.device(&Gpu::uuid_of(3)).health, Health::Ok);
    assert!(bench.offered(&vram(3), later) > Bytes::ZERO);
}

#[tokio::test]
async fn a_gpu_that_is_no_longer_listed_is_lost_and_not_forgotten() {
    let mut state = State::dgx();
    let mut bench = Bench::of(&state).await;
    state.gpus.remove(0);
    bench.fake.set(&state).unwrap();
    bench.look(START).await.unwrap();
    assert_eq!(bench.device(&Gpu::uuid_of(0)).health, Health::Lost);
    assert_eq!(bench.device(&Gpu::uuid_of(1)).health, Health::Ok);
}

#[tokio::test]
async fn what_the_driver_says_of_a_device_becomes_its_health() {
    let mut state = State::dgx();
    state.gpus[0].recovery_action = Some(1);
    state.gpus[1].remapped = Some(Remapped { pending: false, failure: true });
    state.gpus[2].remapped = Some(Remapped { pending: true, failure: false });
    state.gpus[3].throttle = Some(HEAT);
    state.gpus[4].ecc_uncorrected = Some(2);
    let mut bench = Bench::of(&state).await;
    bench.machine.saw_xid(START, &DeviceId::new(Gpu::uuid_of(5)), 74);
    bench.machine.saw_xid(START, &DeviceId::new(Gpu::uuid_of(6)), 31);
    let health = |number| bench.device(&Gpu::uuid_of(number)).health;
    for number in [0, 1, 5] {
        assert!(matches!(health(number), Health::Quarantined(_)), "{number}: {:?}", health(number));
        assert_eq!(bench.offered(&vram(number), START), Bytes::ZERO);
    }
    for number in [2, 3, 4] {
        assert!(matches!(health(number), Health::Degraded(_)), "{number}: {:?}", health(number));
        assert!(bench.offered(&vram(number), START) > Bytes::ZERO);
    }
    assert_eq!((health(6), health(7)), (Health::Ok, Health::Ok));
}

#[tokio::test]
async fn a_flood_of_xids_does_not_wash_the_serious_one_away() {
    let mut bench = Bench::of(&State::one_gpu()).await;
    let gpu = DeviceId::new(Gpu::uuid_of(0));
    for xid in [48, 63].into_iter().chain(std::iter::repeat_n(31, 200)).chain(std::iter::repeat_n(94, 200)) {
        bench.machine.saw_xid(START, &gpu, xid);
    }
    assert_eq!(bench.device(gpu.as_str()).health, Health::Quarantined("XID 48".to_owned()));
}

#[tokio::test]
async fn a_fabric_that_is_not_ready_stops_loads_and_one_that_refused_a_gpu_leaves_it_alone() {
    let mut state = State::dgx();
    let mut bench = Bench::of(&state).await;
    for gpu in &mut state.gpus {
        gpu.fabric = Some(Fabric { state: 1, status: 0, clique: 0 });
    }
    bench.fake.set(&state).unwrap();
    bench.look(START).await.unwrap();
    assert_eq!(bench.device(&Gpu::uuid_of(0)).health, Health::Waiting(WaitingFor::Fabric));
    assert_eq!(bench.offered(&vram(0), START), Bytes::ZERO);

    for gpu in &mut state.gpus {
        gpu.fabric = Some(Fabric { state: 3, status: 0, clique: 1 });
    }
    state.gpus[6].fabric = Some(Fabric { state: 3, status: code::UNKNOWN, clique: 0 });
    state.gpus[7].fabric = None;
    bench.fake.set(&state).unwrap();
    bench.look(START).await.unwrap();
    for number in 0..8 {
        let gpu = bench.device(&Gpu::uuid_of(number));
        assert_eq!((gpu.health, gpu.tp_ok), (Health::Ok, number < 6), "{number}");
    }
}

#[tokio::test]
async fn a_frozen_driver_offers_nothing_and_the_host_goes_on() {
    let mut bench = Bench::of(&State::one_gpu()).await;
    bench.machine.freeze(Some("the driver is of another version".to_owned()));
    assert_eq!(bench.offered(&vram(0), START), Bytes::ZERO);
    assert!(bench.offered("host", START) > Bytes::ZERO);
    bench.machine.freeze(None);
    assert!(bench.offered(&vram(0), START) > Bytes::ZERO);
}

#[tokio::test]
async fn a_sample_older_than_two_seconds_offers_nothing_and_the_next_one_mends_it() {
    let mut state = State::one_gpu();
    let mut bench = Bench::of(&state).await;
    let (still, late) = (START + Millis::new(2000), START + Millis::new(2001));
    assert!(bench.offered(&vram(0), still) > Bytes::ZERO);
    assert_eq!(bench.offered(&vram(0), late), Bytes::ZERO);

    // A reading that fails is no sample, and what the driver cannot tell now is not believed for as long as the last one lasts.
    bench.look_at_memory(late).await.unwrap();
    state.gpus[0].errors.insert("nvmlDeviceGetMemoryInfo_v2".to_owned(), code::UNKNOWN);
    bench.fake.set(&state).unwrap();
    bench.look_at_memory(late).await.unwrap();
    assert_eq!(bench.offered(&vram(0), late), Bytes::ZERO);
    assert_eq!(bench.device(&Gpu::uuid_of(0)).health, Health::Ok);

    state.gpus[0].errors.clear();
    bench.fake.set(&state).unwrap();
    bench.look_at_memory(late).await.unwrap();
    assert!(bench.offered(&vram(0), late) > Bytes::ZERO);
}

#[tokio::test]
async fn a_fault_that_the_driver_reports_quarantines_its_device() {
    let mut state = State::dgx();
    // Before anybody listened; and one GPU that refuses to be listened to.
    state.xids = vec![(Gpu::uuid_of(0), 79)];
    state.gpus[1].errors.insert("nvmlDeviceRegisterEvents".to_owned(), code::UNKNOWN);
    let mut bench = Bench::of(&state).await;
    let mut xids = bench.driver.xids(bench.machine.present()).await.unwrap();
    state.xids.extend([(Gpu::uuid_of(1), 48), (Gpu::uuid_of(4), 13), (Gpu::uuid_of(4), 119)]);
    bench.fake.set(&state).unwrap();
    for wanted in [13, 119] {
        let (gpu, xid) = tokio::time::timeout(PATIENT, xids.next()).await.unwrap().unwrap();
        assert_eq!((gpu.as_str(), xid), (Gpu::uuid_of(4).as_str(), wanted));
        bench.machine.saw_xid(START, &gpu, xid);
    }
    assert_eq!(bench.device(&Gpu::uuid_of(4)).health, Health::Quarantined("XID 119".to_owned()));
    assert_eq!(bench.device(&Gpu::uuid_of(0)).health, Health::Ok);
}
