//! A program on tokio that checks itself: several worker threads, timers, channels, a pair of sockets, a pipe, signals,
//! blocking work. It prints a line a round until SIGTERM, and ends with 42.

use std::io::Write;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

fn fail(what: &str) -> ! {
    println!("fail {what}");
    std::process::exit(1)
}

fn tell(line: &str) {
    let mut out = std::io::stdout();
    if writeln!(out, "{line}").and_then(|()| out.flush()).is_err() {
        std::process::exit(2);
    }
}

async fn work() -> std::io::Result<()> {
    let pid = std::process::id();
    let (mut near, mut far) = tokio::net::UnixStream::pair()?;
    tokio::spawn(async move {
        let mut buffer = [0; 1000];
        while let Ok(n @ 1..) = far.read(&mut buffer).await {
            if far.write_all(&buffer[..n]).await.is_err() {
                fail("echo");
            }
        }
    });
    let (mut into, mut out_of) = tokio::net::unix::pipe::pipe()?;
    let (ticks, mut ticked) = watch::channel(0u64);
    tokio::spawn(async move {
        let mut every = tokio::time::interval(Duration::from_millis(2));
        loop {
            every.tick().await;
            ticks.send_modify(|n| *n += 1);
        }
    });
    let mut usr1 = signal(SignalKind::user_defined1())?;
    let mut told = signal(SignalKind::terminate())?;
    let told = tokio::spawn(async move { told.recv().await });
    let mut last = Instant::now();
    for round in 0.. {
        if told.is_finished() {
            break;
        }
        tell(&format!("round {round}"));
        let (send, mut sums) = mpsc::channel(4);
        for task in 0..50u64 {
            let send = send.clone();
            tokio::spawn(async move {
                tokio::time::sleep(Duration::from_millis(task % 5)).await;
                let sum = tokio::task::spawn_blocking(move || (0..1000).map(|i| i * task).sum::<u64>()).await;
                let _ = send.send(sum.unwrap_or(0)).await;
            });
        }
        drop(send);
        let mut all = 0;
        while let Some(sum) = sums.recv().await {
            all += sum;
        }
        if all != 499_500 * 1225 {
            fail("sums");
        }
        let said = format!("{round:0500}");
        let mut heard = vec![0; said.len()];
        near.write_all(said.as_bytes()).await?;
        near.read_exact(&mut heard).await?;
        if heard != said.as_bytes() {
            fail("the pair of sockets");
        }
        into.write_all(said.as_bytes()).await?;
        out_of.read_exact(&mut heard).await?;
        if heard != said.as_bytes() {
            fail("the pipe");
        }
        // SAFETY: a signal to ourselves, which we handle.
        unsafe { libc::raise(libc::SIGUSR1) };
        if tokio::time::timeout(Duration::from_secs(10), usr1.recv()).await.is_err() {
            fail("no signal");
        }
        let wanted = *ticked.borrow_and_update() + 15;
        if ticked.wait_for(|n| *n >= wanted).await.is_err() {
            fail("ticks");
        }
        if last.elapsed() > Duration::from_secs(20) || std::process::id() != pid {
            fail("clock or pid");
        }
        last = Instant::now();
    }
    Ok(())
}

fn main() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let Ok(runtime) = runtime else { fail("no runtime") };
    if let Err(error) = runtime.block_on(work()) {
        fail(&error.to_string());
    }
    tell("done");
    std::process::exit(42);
}
