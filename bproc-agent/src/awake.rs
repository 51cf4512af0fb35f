//! Processors that do not sleep while a process starts or moves: it goes through a dozen hands, most of which wait for
//! the one before, and a processor that sleeps takes longer to wake than most of them work.

use std::fs::File;
use std::io::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Tells the kernel how long a processor may take to wake, in µs as an `i32`: as long as it is open.
/// (`Documentation/power/pm_qos_interface.rst` of Linux.)
const DEVICE: &str = "/dev/cpu_dma_latency";
const AT_ONCE: i32 = 0;
/// As if it had not been said.
const WHENEVER: i32 = -1;
/// Longest time that one start or move keeps them awake. What takes longer has more to do than to wake.
const MOST: Duration = Duration::from_millis(50);

/// Keeps the processors of this machine awake. The default does not, nor one where the kernel has no such device.
#[derive(Clone, Debug, Default)]
pub struct Awake(Option<Arc<Mutex<Device>>>);

#[derive(Debug)]
struct Device {
    file: File,
    holders: usize,
}

impl Device {
    fn say(&mut self, latency: i32) {
        if let Err(error) = self.file.write_all(&latency.to_ne_bytes()) {
            tracing::debug!(%error, latency, "{DEVICE}");
        }
    }
}

/// Until this is dropped.
struct Held<'a>(&'a Mutex<Device>);

fn lock(device: &Mutex<Device>) -> MutexGuard<'_, Device> {
    device.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<'a> Held<'a> {
    fn new(device: &'a Mutex<Device>) -> Held<'a> {
        let mut this = lock(device);
        this.holders += 1;
        if this.holders == 1 {
            this.say(AT_ONCE);
        }
        Held(device)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        let mut device = lock(self.0);
        device.holders -= 1;
        if device.holders == 0 {
            device.say(WHENEVER);
        }
    }
}

impl Awake {
    /// Can, if `wanted`.
    pub fn new(wanted: bool) -> Awake {
        let open = || {
            let mut device = Device { file: File::options().write(true).open(DEVICE)?, holders: 0 };
            device.say(WHENEVER);
            Ok::<_, io::Error>(device)
        };
        if !wanted {
            return Awake(None);
        }
        match open() {
            Ok(device) => Awake(Some(Arc::new(Mutex::new(device)))),
            Err(error) => {
                tracing::debug!(%error, "{DEVICE}: processors sleep also while processes start and move");
                Awake(None)
            }
        }
    }

    /// They are, while this is done, for 50 ms at most.
    pub async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(device) = &self.0 else { return work.await };
        let held = Held::new(device);
        tokio::pin!(work);
        match tokio::time::timeout(MOST, &mut work).await {
            Ok(done) => done,
            Err(_) => {
                drop(held);
                work.await
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::FileExt;

    /// What is said to a plain file stays to be read.
    fn with_file() -> (Awake, impl Fn() -> Vec<i32>) {
        let file = tempfile::tempfile().expect("a file");
        let said = file.try_clone().expect("a descriptor");
        let words = move || {
            let mut bytes = vec![0; said.metadata().expect("its size").len() as usize];
            said.read_exact_at(&mut bytes, 0).expect("what was said");
            bytes.as_chunks().0.iter().map(|word| i32::from_ne_bytes(*word)).collect()
        };
        (Awake(Some(Arc::new(Mutex::new(Device { file, holders: 0 })))), words)
    }

    #[tokio::test]
    async fn the_first_says_so_and_the_last_takes_it_back() {
        let (awake, said) = with_file();
        awake.during(async { awake.during(async { assert_eq!(said(), [AT_ONCE]) }).await }).await;
        assert_eq!(said(), [AT_ONCE, WHENEVER]);
        // One whose work nobody wants any more, too.
        let (begun, cancelled) = tokio::sync::oneshot::channel::<()>();
        let other = awake.clone();
        let work = tokio::spawn(async move {
            other
                .during(async move {
                    drop(begun);
                    std::future::pending::<()>().await;
                })
                .await;
        });
        assert!(cancelled.await.is_err());
        work.abort();
        assert!(work.await.is_err_and(|e| e.is_cancelled()));
        assert_eq!(said(), [AT_ONCE, WHENEVER, AT_ONCE, WHENEVER]);
    }

    #[tokio::test(start_paused = true)]
    async fn what_takes_long_keeps_nobody_awake() {
        let (awake, said) = with_file();
        let (go, wait) = tokio::sync::oneshot::channel::<()>();
        let work = awake.during(wait);
        tokio::pin!(work);
        assert!(tokio::time::timeout(MOST + Duration::from_millis(1), &mut work).await.is_err());
        assert_eq!(said(), [AT_ONCE, WHENEVER]);
        drop(go);
        assert!(work.await.is_err());
        assert_eq!(said(), [AT_ONCE, WHENEVER]);
    }
}
