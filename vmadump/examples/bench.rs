//! Freeze to running over loop-back TCP: `bench COMMAND ARGS..` starts the command, waits for its first line, then moves
//! it 20 times into new bodies and prints the times; beside it what the same bytes take over a plain connection.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use vmadump::capture::{FdPolicy, Options, freeze};
use vmadump::facts::Facts;
use vmadump::restore::{RestoreOptions, Restorer};

fn pair() -> std::io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let a = TcpStream::connect(listener.local_addr()?)?;
    let (b, _) = listener.accept()?;
    a.set_nodelay(true)?;
    Ok((a, b))
}

fn plain(bytes: u64) -> std::io::Result<Duration> {
    let (mut a, mut b) = pair()?;
    let sender = std::thread::spawn(move || {
        let chunk = vec![1u8; 1 << 20];
        let mut left = bytes;
        while left > 0 {
            let n = left.min(1 << 20) as usize;
            if a.write_all(&chunk[..n]).is_err() {
                break;
            }
            left -= n as u64;
        }
    });
    let start = Instant::now();
    let mut into = vec![0; 1 << 20];
    let mut got = 0;
    while got < bytes {
        got += b.read(&mut into)? as u64;
    }
    let took = start.elapsed();
    let _ = sender.join();
    Ok(took)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((program, rest)) = args.split_first() else { return Err("give a command".into()) };
    let turns: usize = std::env::var("TURNS").ok().and_then(|t| t.parse().ok()).unwrap_or(20);
    let mut child = Command::new(program).args(rest).stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
    let Some(out) = child.stdout.take() else { return Err("no output".into()) };
    BufReader::new(out).read_line(&mut String::new())?;
    let mut pid = child.id() as i32;
    let facts = Facts::here();
    let (mut times, mut bytes) = (Vec::new(), 0);
    for turn in 0..turns {
        let (from, to) = pair()?;
        let old = pid;
        let start = Instant::now();
        let source = std::thread::spawn(move || -> Result<(u64, Duration), String> {
            let frozen = freeze(old, &Options { flags: 6, fds: FdPolicy::StdioOnly, ..Options::default() })
                .map_err(|e| e.to_string())?;
            let frozen_after = start.elapsed();
            let n = frozen.write_image(from).map_err(|e| e.to_string())?;
            frozen.kill().map_err(|e| e.to_string())?;
            Ok((n, frozen_after))
        });
        let null = std::fs::File::open("/dev/null")?;
        let fds = (0..3).map(|n| (n, null.as_fd())).collect();
        let options = RestoreOptions { fds, facts: Some(facts.clone()), ..RestoreOptions::default() };
        let prepared = Restorer::prepare(to, &options)?;
        pid = prepared.go()?;
        let took = start.elapsed();
        let (n, frozen_after) = source.join().map_err(|_| "source")??;
        bytes = n;
        times.push((took, frozen_after));
        if turn == 0 {
            child.wait()?;
        } else {
            vmadump::wait_child(old)?;
        }
    }
    Command::new("kill").args(["-9", &pid.to_string()]).status()?;
    vmadump::wait_child(pid)?;
    times.sort();
    let mut plains: Vec<Duration> = (0..5).map(|_| plain(bytes)).collect::<Result<_, _>>()?;
    plains.sort();
    println!(
        "{bytes} bytes: survey, freeze to running {:?} median, {:?} best; of it survey+freeze {:?}; plain TCP {:?}",
        times[times.len() / 2].0,
        times[0].0,
        times[times.len() / 2].1,
        plains[2]
    );
    Ok(())
}
