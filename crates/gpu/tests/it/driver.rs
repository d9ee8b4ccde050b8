//! Libraries that do not load, and a driver that does not answer.

use std::path::PathBuf;
use std::time::Duration;

use fettle_fake_nvml::{State, code};
use fettle_gpu::driver::{CallError, Driver, StartError};
use fettle_gpu::load::{Fault, Outcome, search};
use fettle_placement::quantity::{Bytes, Millis};

use crate::bench::{Bench, PATIENT, START, host, install, start, vram};

/// For a driver that is to hang: all of it is waited for.
const IMPATIENT: Duration = Duration::from_millis(200);

fn refusing(result: u32) -> State {
    let mut state = State::one_gpu();
    state.errors.insert("nvmlInit_v2".to_owned(), result);
    state
}

async fn refused(result: u32) -> (Fault, String) {
    let (_folder, fake) = install(&refusing(result), &[]);
    let Err(error) = start(vec![fake.library()]).await else { panic!("{result} is an error") };
    let StartError::Failed(attempts) = &error else { panic!("{error:?}") };
    let Outcome::Failed(fault) = &attempts[0].outcome else { panic!("{attempts:?}") };
    (fault.clone(), error.to_string())
}

#[tokio::test]
async fn what_keeps_a_driver_from_starting_is_told_with_what_to_do() {
    let (fault, text) = refused(code::UNKNOWN).await;
    assert!(fault == Fault::Unknown && text.contains("999") && text.contains("CDI"), "{text}");
    let (fault, text) = refused(code::LIB_RM_VERSION_MISMATCH).await;
    assert!(fault == Fault::VersionMismatch && text.contains("reboot"), "{text}");
    let (fault, text) = refused(code::DRIVER_NOT_LOADED).await;
    assert!(fault == Fault::DriverNotLoaded && text.contains("modprobe"), "{text}");
    let (fault, text) = refused(code::NO_PERMISSION).await;
    assert!(fault == Fault::NoPermission && text.contains("/dev/nvidia"), "{text}");
}

#[tokio::test]
async fn a_driver_that_recovers_starts_with_the_next_try() {
    let (_folder, fake) = install(&refusing(code::UNKNOWN), &[]);
    assert!(matches!(start(vec![fake.library()]).await, Err(StartError::Failed(_))));
    fake.set(&State::one_gpu()).unwrap();
    let (driver, _) = start(vec![fake.library()]).await.unwrap();
    assert_eq!(driver.enumerate().await.unwrap().gpus.len(), 1);
}

#[tokio::test]
async fn paths_are_tried_in_order_until_one_initialises_and_each_is_told() {
    let (folder, broken) = install(&refusing(code::LIB_RM_VERSION_MISMATCH), &[]);
    let (_other, good) = install(&State::one_gpu(), &[]);
    let absent = folder.path().join("absent.so");
    let text = folder.path().join("text.so");
    fs_err::write(&text, "no library").unwrap();
    let paths = vec![absent, text, broken.library(), good.library(), PathBuf::from("/never/tried.so")];
    let (_driver, attempts) = start(paths.clone()).await.unwrap();
    assert_eq!(
        attempts.iter().map(|attempt| &attempt.path).collect::<Vec<_>>(),
        paths.iter().take(4).collect::<Vec<_>>()
    );
    assert_eq!(attempts[0].outcome, Outcome::Absent);
    assert!(matches!(attempts[1].outcome, Outcome::Failed(Fault::Unloadable(_))), "{:?}", attempts[1]);
    assert_eq!(attempts[2].outcome, Outcome::Failed(Fault::VersionMismatch));
    assert_eq!(attempts[3].outcome, Outcome::Loaded { driver: Some("575.57.08".to_owned()) });
    assert!(attempts[3].to_string().ends_with("libnvidia-ml.so.1: loaded, driver 575.57.08"), "{}", attempts[3]);
}

#[tokio::test]
async fn a_host_without_the_library_has_no_gpu_part() {
    let folder = tempfile::tempdir().unwrap();
    let paths = ["one.so", "two.so"].map(|name| folder.path().join(name));
    let Err(StartError::Absent(attempts)) = start(paths.to_vec()).await else { panic!("there is none") };
    assert_eq!(attempts.len(), 2);
}

#[test]
fn a_configured_library_comes_first_and_the_linker_last() {
    let mine = PathBuf::from("/opt/mine.so");
    let paths = search(Some(&mine));
    assert_eq!(paths[0], mine);
    assert!(paths[1..paths.len() - 1].iter().all(|path| path.is_absolute()), "{paths:?}");
    assert_eq!(paths.last().unwrap(), &PathBuf::from("libnvidia-ml.so.1"));
    assert_eq!(search(None), paths[1..]);
}

#[tokio::test]
async fn a_call_that_hangs_times_out_makes_its_memory_stale_and_comes_back_with_the_driver() {
    let mut state = State::one_gpu();
    let mut bench = Bench::with(&state, &[], host(), PATIENT).await;
    let (driver, _) = Driver::start(vec![bench.fake.library()], IMPATIENT).await.unwrap();
    bench.driver = driver;
    state.hanging = vec!["nvmlDeviceGetMemoryInfo_v2".to_owned()];
    bench.fake.set(&state).unwrap();
    let later = START + Millis::new(2500);
    assert_eq!(bench.look_at_memory(later).await, Err(CallError::Timeout));
    assert_eq!(bench.offered(&vram(0), later), Bytes::ZERO);
    // Other calls wait behind it instead of going beside it.
    assert_eq!(bench.driver.enumerate().await, Err(CallError::Timeout));

    state.hanging.clear();
    bench.fake.set(&state).unwrap();
    let mut tries = 0;
    while bench.look_at_memory(later).await.is_err() {
        tries += 1;
        assert!(tries < 50, "the driver answers again, and nothing comes of it");
    }
    assert!(bench.offered(&vram(0), later) > Bytes::ZERO);
}

#[tokio::test]
async fn questions_to_a_driver_that_hangs_do_not_pile_up() {
    let mut state = State::one_gpu();
    let (_folder, fake) = install(&state, &[]);
    let (driver, _) = Driver::start(vec![fake.library()], Duration::from_millis(1)).await.unwrap();
    state.hanging = vec!["nvmlDeviceGetCount_v2".to_owned()];
    fake.set(&state).unwrap();
    let mut answers = Vec::new();
    for _ in 0..40 {
        answers.push(driver.enumerate().await.unwrap_err());
    }
    assert_eq!((answers[0].clone(), answers[39].clone()), (CallError::Timeout, CallError::Stuck));
    // One that is stuck is left behind; one that comes back ends.
    assert!(!driver.close(Duration::from_millis(20)).await);
    state.hanging.clear();
    fake.set(&state).unwrap();
    let (driver, _) = start(vec![fake.library()]).await.unwrap();
    assert!(driver.close(PATIENT).await);
}

#[tokio::test]
async fn a_driver_that_fails_as_a_whole_loses_no_device() {
    let mut state = State::one_gpu();
    let mut bench = Bench::of(&state).await;
    state.errors.insert("nvmlDeviceGetCount_v2".to_owned(), code::UNKNOWN);
    bench.fake.set(&state).unwrap();
    assert_eq!(bench.look(START).await, Err(CallError::Driver(Fault::Unknown)));
    assert_eq!(bench.machine.present().len(), 1);
    assert!(bench.offered(&vram(0), START) > Bytes::ZERO);
}
