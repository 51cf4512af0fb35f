//! Streams through two real services: whole, apart, and rightly ended.

mod common;

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::thread;

use bproc_stdio::{Kind, StreamSpec, Token};
use common::{BLOCK, Cluster, drink, pipe, pour, within};

/// Blocks for a large stream: 256 MiB, or what BPROC_TEST_MIB says.
fn large() -> usize {
    let mib = std::env::var("BPROC_TEST_MIB").ok().and_then(|m| m.parse().ok()).unwrap_or(256usize);
    (mib << 20) / BLOCK
}

#[test]
fn large_streams_are_whole_in_both_directions() {
    within(|| {
        let cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Input, Kind::Output]);
        let (mut program_out, mut program_in) = (p.program.remove(1), p.program.remove(0));
        let (mut user_in, mut user_out) = (p.user.remove(1), p.user.remove(0));
        let blocks = large();
        let start = std::time::Instant::now();
        let threads = [
            thread::spawn(move || pour(&mut user_out, 1, blocks).unwrap()),
            thread::spawn(move || pour(&mut program_out, 2, blocks).unwrap()),
            thread::spawn(move || assert_eq!(drink(&mut program_in, 1), (blocks * BLOCK) as u64)),
            thread::spawn(move || assert_eq!(drink(&mut user_in, 2), (blocks * BLOCK) as u64)),
        ];
        for t in threads {
            t.join().unwrap();
        }
        let mib = (2 * blocks * BLOCK) as f64 / 1048576.0;
        eprintln!("{mib} MiB at {:.0} MiB/s", mib / start.elapsed().as_secs_f64());
    });
}

#[test]
fn writer_learns_that_the_reader_closed() {
    within(|| {
        let cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Output]);
        p.program[0].write_all(b"hello").unwrap();
        let mut word = [0; 5];
        p.user[0].read_exact(&mut word).unwrap();
        assert_eq!(&word, b"hello");
        p.user.clear();
        let error = pour(&mut p.program[0], 1, large()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    });
}

#[test]
fn feeder_learns_that_the_process_closed() {
    within(|| {
        let cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Input]);
        p.user[0].write_all(b"hello").unwrap();
        let mut word = [0; 5];
        p.program[0].read_exact(&mut word).unwrap();
        p.program.clear();
        let error = pour(&mut p.user[0], 1, large()).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EPIPE));
    });
}

#[test]
fn stalled_reader_holds_up_nobody_and_memory_is_bounded() {
    within(|| {
        let cluster = Cluster::start();
        // stdout of the first is never read; its stderr and the second process go on.
        let mut stalled = cluster.process(&[Kind::Input, Kind::Output, Kind::Output]);
        let mut stuck_out = stalled.program.remove(1);
        let poured = thread::spawn(move || pour(&mut stuck_out, 9, 1 << 20));
        let mut stderr = stalled.program.remove(1);
        let apart = thread::spawn(move || pour(&mut stderr, 3, 64).unwrap());
        assert_eq!(drink(&mut stalled.user[2], 3), 64 * BLOCK as u64);
        apart.join().unwrap();
        let mut other = cluster.process(&[Kind::Output]);
        let mut out = other.program.remove(0);
        let blocks = large() / 4;
        let writer = thread::spawn(move || pour(&mut out, 5, blocks).unwrap());
        assert_eq!(drink(&mut other.user[0], 5), (blocks * BLOCK) as u64);
        writer.join().unwrap();
        for iod in [&cluster.master, &cluster.slave] {
            assert!(iod.peak_kib() < 100 << 10, "{} KiB", iod.peak_kib());
        }
        drop(stalled.user);
        assert_eq!(poured.join().unwrap().unwrap_err().raw_os_error(), Some(libc::EPIPE));
    });
}

#[test]
fn flush_waits_until_the_far_end_has_written_it() {
    within(|| {
        let cluster = Cluster::start();
        let mut p = cluster.process(&[Kind::Input, Kind::Output, Kind::Output]);
        // The write end stays open, as with a child in the background.
        for round in 0..200u32 {
            p.program[1].write_all(&round.to_ne_bytes()).unwrap();
            assert!(cluster.slave.client().flush(p.token).unwrap());
            let mut waiting: libc::c_int = 0;
            use std::os::fd::AsRawFd;
            // SAFETY: FIONREAD writes one int.
            assert_eq!(unsafe { libc::ioctl(p.user[1].as_raw_fd(), libc::FIONREAD, &mut waiting) }, 0);
            assert_eq!(waiting, 4, "round {round}");
            let mut word = [0; 4];
            p.user[1].read_exact(&mut word).unwrap();
            assert_eq!(u32::from_ne_bytes(word), round);
        }
        p.program.clear();
        assert!(cluster.slave.client().flush(p.token).unwrap());
        let mut rest = Vec::new();
        p.user[1].read_to_end(&mut rest).unwrap();
        assert!(rest.is_empty());
        assert!(cluster.slave.client().flush(Token::random().unwrap()).unwrap(), "an unknown token is through");
    });
}

#[test]
fn files_sockets_and_dev_null_are_ends_too() {
    within(|| {
        let cluster = Cluster::start();
        let dir = cluster.dir.path();
        std::fs::write(dir.join("in"), b"from a file").unwrap();
        let (mine, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let out = File::create(dir.join("out")).unwrap();
        (&out).write_all(b"before ").unwrap();
        let null = File::options().write(true).open("/dev/null").unwrap();
        let mut at_master = Vec::new();
        let mut at_node = Vec::new();
        let mut program = Vec::new();
        for (fd, end) in [
            OwnedFd::from(File::open(dir.join("in")).unwrap()),
            out.try_clone().unwrap().into(),
            theirs.into(),
            null.into(),
        ]
        .into_iter()
        .enumerate()
        {
            let kind = if fd == 0 { Kind::Input } else { Kind::Output };
            let spec = StreamSpec::new(fd as i32, kind);
            let (read, write) = pipe();
            let (node, own) = if fd == 0 { (write, read) } else { (read, write) };
            at_master.push((spec, end));
            at_node.push((spec, node));
            program.push(File::from(own));
        }
        let token = Token::random().unwrap();
        cluster.connect(token, at_master, at_node);
        let mut text = String::new();
        program[0].read_to_string(&mut text).unwrap();
        assert_eq!(text, "from a file");
        for file in &mut program[1..] {
            file.write_all(b"to its place").unwrap();
        }
        program.clear();
        assert!(cluster.slave.client().flush(token).unwrap());
        (&out).write_all(b" after").unwrap();
        assert_eq!(std::fs::read(dir.join("out")).unwrap(), b"before to its place after", "the offset is shared");
        let mut text = String::new();
        (&mine).read_to_string(&mut text).unwrap();
        assert_eq!(text, "to its place");
    });
}

#[test]
fn flags_of_shared_descriptors_stay() {
    within(|| {
        use nix::fcntl::{FcntlArg, OFlag, fcntl};
        let cluster = Cluster::start();
        let (read, write) = pipe();
        let token = Token::random().unwrap();
        let (node_read, node_write) = pipe();
        let spec = StreamSpec::new(1, Kind::Output);
        let shared = write.try_clone().unwrap();
        cluster.connect(token, vec![(spec, write)], vec![(spec, node_read)]);
        let mut program = File::from(node_write);
        program.write_all(b"x").unwrap();
        let mut byte = [0];
        File::from(read).read_exact(&mut byte).unwrap();
        let flags = OFlag::from_bits_truncate(fcntl(shared.as_fd(), FcntlArg::F_GETFL).unwrap());
        assert!(!flags.contains(OFlag::O_NONBLOCK));
    });
}

#[test]
fn pseudo_terminal_with_size_and_end_of_file() {
    within(|| {
        let cluster = Cluster::start();
        let pty = nix::pty::openpty(None, None).unwrap();
        let (user_in_read, user_in) = pipe();
        let (user_out, user_out_write) = pipe();
        let specs = [StreamSpec::new(0, Kind::PtyInput), StreamSpec::new(1, Kind::PtyOutput)];
        let token = Token::random().unwrap();
        cluster.connect(
            token,
            vec![(specs[0], user_in_read), (specs[1], user_out_write)],
            vec![(specs[0], pty.master.try_clone().unwrap()), (specs[1], pty.master)],
        );
        let mut program = File::from(pty.slave);
        let mut user_in = File::from(user_in);
        let mut user_out = File::from(user_out);
        cluster.master.client().winsize(token, [40, 0, 100, 0, 0, 0, 0, 0]).unwrap();
        user_in.write_all(b"line\n").unwrap();
        let mut line = [0; 16];
        assert_eq!(program.read(&mut line).unwrap(), 5);
        assert_eq!(&line[..5], b"line\n");
        let size = rows_and_columns(&program);
        // Size and input travel in one stream but may be sent in either order; the next line comes after both.
        user_in.write_all(b"more\n").unwrap();
        assert_eq!(program.read(&mut line).unwrap(), 5);
        assert!(size == (40, 100) || rows_and_columns(&program) == (40, 100));
        let mut echo = [0; 12];
        user_out.read_exact(&mut echo).unwrap();
        assert_eq!(&echo, b"line\r\nmore\r\n");
        drop(user_in);
        assert_eq!(program.read(&mut line).unwrap(), 0, "end of file");
        program.write_all(b"bye").unwrap();
        drop(program);
        let mut rest = Vec::new();
        user_out.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"bye");
    });
}

fn rows_and_columns(tty: &File) -> (u16, u16) {
    use std::os::fd::AsRawFd;
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes one winsize.
    assert_eq!(unsafe { libc::ioctl(tty.as_raw_fd(), libc::TIOCGWINSZ, &mut size) }, 0);
    (size.ws_row, size.ws_col)
}

#[test]
fn nothing_stays_behind() {
    within(|| {
        let cluster = Cluster::start();
        let descriptors =
            |iod: &common::Iod| std::fs::read_dir(format!("/proc/{}/fd", iod.child.id())).unwrap().count();
        let round = || {
            let mut p = cluster.process(&[Kind::Input, Kind::Output, Kind::Output]);
            p.program[1].write_all(b"x").unwrap();
            p.program.clear();
            assert!(cluster.slave.client().flush(p.token).unwrap());
            let mut text = Vec::new();
            p.user[1].read_to_end(&mut text).unwrap();
            p.user[2].read_to_end(&mut text).unwrap();
            assert_eq!(text, b"x");
            // Until stdin is closed on the master too.
            while p.user[0].write_all(b"y").is_ok() {}
        };
        let settled = || {
            while cluster.slave.client().status().unwrap().processes
                + cluster.master.client().status().unwrap().processes
                > 0
            {
                thread::yield_now();
            }
            (descriptors(&cluster.master), descriptors(&cluster.slave))
        };
        round();
        let before = settled();
        for _ in 0..100 {
            round();
        }
        let after = settled();
        // Control connections come and go: a few descriptors more or less.
        assert!(after.0 <= before.0 + 4 && after.1 <= before.1 + 4, "{before:?} {after:?}");
    });
}
