//! Statuses and the ways to wait for them.

use std::time::Duration;

use anyhow::{Result, bail};

use super::Case;
use super::parent::{Parent, Program};
use super::signals::{is_zombie, join_group, own_group_of_child};
use super::sys;

pub(super) const CASES: &[(&str, Case)] = &[
    ("exit_codes", exit_codes),
    ("wnohang", wnohang),
    ("waitid_and_wnowait", waitid),
    ("pidfd_poll_and_wait", pidfd),
    ("wait_for_a_group_and_for_all", groups),
    ("sigchld_of_exit_and_death", sigchld),
    ("sigchld_ignored", ignored),
    ("sa_nocldwait", nocldwait),
    ("sigchld_once_for_each_child", once_each),
    ("a_zombie_until_it_is_reaped", zombie),
    ("exec_failures_have_their_errno", exec_failures),
    ("arguments_too_big", too_big),
    ("quick_processes_in_a_row", quick),
    ("the_status_comes_after_the_output", output_first),
];

fn exit_codes(parent: &mut Parent) -> Result<()> {
    for code in [0, 1, 2, 7, 126, 127, 128, 130, 200, 255, 256, -1] {
        let mut child = parent.start("child")?;
        child.tell(&format!("exit {code}"))?;
        parent.wait(child.pid, 0);
    }
    Ok(())
}

fn wnohang(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.wait(child.pid, libc::WNOHANG);
    parent.wait(-1, libc::WNOHANG | libc::WUNTRACED);
    child.tell("exit 5")?;
    parent.eventually("its end", |_| is_zombie(child.pid));
    parent.wait(child.pid, libc::WNOHANG);
    parent.wait(child.pid, libc::WNOHANG);
    parent.wait(-1, 0);
    Ok(())
}

fn waitid(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &own_group_of_child)?;
    let pid = child.pid;
    parent.waitid(libc::P_PID, pid, libc::WEXITED | libc::WSTOPPED | libc::WNOHANG);
    sys::kill(pid, libc::SIGSTOP);
    for options in [libc::WNOWAIT, libc::WNOWAIT, 0] {
        parent.waitid(libc::P_PID, pid, libc::WSTOPPED | options);
    }
    parent.waitid(libc::P_PID, pid, libc::WSTOPPED | libc::WNOHANG);
    sys::kill(pid, libc::SIGCONT);
    for options in [libc::WNOWAIT, 0] {
        parent.waitid(libc::P_PGID, pid, libc::WCONTINUED | options);
    }
    child.tell("exit 9")?;
    for options in [libc::WNOWAIT, libc::WNOWAIT, 0] {
        parent.waitid(libc::P_ALL, 0, libc::WEXITED | options);
    }
    parent.waitid(libc::P_PID, pid, libc::WEXITED);
    let child = parent.start("second")?;
    sys::kill(child.pid, libc::SIGUSR1);
    parent.waitid(libc::P_PID, child.pid, libc::WEXITED);
    Ok(())
}

fn pidfd(parent: &mut Parent) -> Result<()> {
    let child = parent.start_with("child", &own_group_of_child)?;
    let fd = sys::pidfd(child.pid).map_err(anyhow::Error::msg)?;
    sys::kill(child.pid, libc::SIGSTOP);
    parent.wait(child.pid, libc::WUNTRACED);
    parent.note(format!("readable: {}", sys::readable(fd, Duration::ZERO)));
    sys::kill(child.pid, libc::SIGCONT);
    parent.wait(child.pid, libc::WCONTINUED);
    parent.note(format!("readable: {}", sys::readable(fd, Duration::ZERO)));
    sys::kill(child.pid, libc::SIGTERM);
    parent.note(format!("readable: {}", sys::readable(fd, Duration::from_secs(10))));
    let gone = crate::procs::behind(child.pid, Some(parent.program())).is_none_or(|p| matches!(p.state, 'Z' | 'X'));
    parent.note(format!("gone: {gone}"));
    parent.waitid(libc::P_PIDFD, fd, libc::WEXITED);
    parent.waitid(libc::P_PIDFD, fd, libc::WEXITED);
    Ok(())
}

fn groups(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start_with("first", &own_group_of_child)?;
    let leader = first.pid;
    let mut second = parent.start_with("second", &move || join_group(leader))?;
    let mut third = parent.start("third")?;
    third.tell("exit 3")?;
    parent.wait(-leader, libc::WNOHANG);
    first.tell("exit 1")?;
    parent.wait(-leader, 0);
    second.tell("exit 2")?;
    parent.wait(-leader, 0);
    parent.wait(-leader, 0);
    // 0: children in the caller's group.
    parent.wait(0, 0);
    parent.wait(-1, 0);
    Ok(())
}

fn sigchld(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    child.tell("exit 11")?;
    parent.sigchld();
    parent.wait(child.pid, 0);
    for signal in [libc::SIGTERM, libc::SIGKILL, libc::SIGRTMAX()] {
        let child = parent.start("child")?;
        sys::kill(child.pid, signal);
        parent.sigchld();
        parent.wait(child.pid, 0);
        parent.no_sigchld();
    }
    let mut nobody = parent.start_with("nobody", &|| {
        sys::setgid(65534);
        sys::setuid(65534);
    })?;
    nobody.tell("exit 1")?;
    parent.sigchld();
    parent.wait(nobody.pid, 0);
    Ok(())
}

fn ignored(parent: &mut Parent) -> Result<()> {
    let mut first = parent.start("first")?;
    let mut second = parent.start("second")?;
    sys::action(libc::SIGCHLD, libc::SIG_IGN, 0);
    first.tell("exit 1")?;
    second.tell("exit 2")?;
    // Until the last one has ended; then there was never one.
    parent.wait(-1, 0);
    parent.no_sigchld();
    parent.note(sys::said(sys::kill(first.pid, 0)));
    Ok(())
}

extern "C" fn nothing(_: i32) {}

fn nocldwait(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    sys::action(libc::SIGCHLD, nothing as *const () as usize, libc::SA_NOCLDWAIT);
    child.tell("exit 1")?;
    parent.wait(child.pid, 0);
    parent.sigchld();
    parent.no_sigchld();
    Ok(())
}

fn once_each(parent: &mut Parent) -> Result<()> {
    for round in 0..20 {
        let mut child = parent.start("child")?;
        child.tell(&format!("exit {round}"))?;
        parent.sigchld();
        parent.no_sigchld();
        parent.wait(child.pid, 0);
        parent.no_sigchld();
    }
    Ok(())
}

fn zombie(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    child.tell("exit 1")?;
    parent.eventually("zombie", |_| is_zombie(child.pid));
    parent.note(format!("group {}", parent.who(sys::getpgid(child.pid))));
    parent.note(format!("session {}", parent.who(sys::getsid(child.pid))));
    parent.wait(child.pid, 0);
    parent.note(format!("there: {}", crate::procs::Proc::read(child.pid).is_some()));
    Ok(())
}

fn try_exec(parent: &mut Parent, what: &str, path: &str, arguments: Vec<Vec<u8>>) -> Result<()> {
    let argv = [vec![path.as_bytes().to_vec()], arguments].concat();
    let program = Program { path: path.into(), argv, prepare: &|| {}, tied: true };
    let line = match parent.launch(&program)? {
        Ok(child) => {
            let (_, status) = parent.wait_quietly(child.pid, 0);
            format!("{what}: runs, {}", sys::status(status))
        }
        Err(errno) => format!("{what}: {}", sys::name(errno)),
    };
    parent.note(line);
    Ok(())
}

fn exec_failures(parent: &mut Parent) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    let dir = std::env::temp_dir().join(format!("bproc-case-{}", std::process::id()));
    std::fs::create_dir_all(&dir)?;
    let file = |name: &str, text: &str, mode: u32| -> Result<String> {
        let path = dir.join(name);
        std::fs::write(&path, text)?;
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode))?;
        Ok(path.to_string_lossy().into_owned())
    };
    let cases = [
        ("missing", dir.join("missing").to_string_lossy().into_owned()),
        ("missing directory", dir.join("no/where").to_string_lossy().into_owned()),
        ("not executable", file("plain", "#!/bin/sh\n", 0o644)?),
        ("a directory", dir.to_string_lossy().into_owned()),
        ("garbage", file("garbage", "\x01\x02\x03\x04 no program", 0o755)?),
        ("empty", file("empty", "", 0o755)?),
        ("broken ELF", file("elf", "\x7fELF\x02\x01\x01 and no more", 0o755)?),
        ("interpreter missing", file("script", "#!/no/such/interpreter\n", 0o755)?),
        ("interpreter is a script", file("good", "#!/bin/sh\nexit 3\n", 0o755)?),
        ("below a file", dir.join("plain/x").to_string_lossy().into_owned()),
        ("a long name", format!("/{}", "x".repeat(300))),
        ("a long path", "/x".repeat(3000)),
        ("no name", String::new()),
    ];
    let link = dir.join("loop");
    std::os::unix::fs::symlink(&link, &link)?;
    for (what, path) in &cases {
        try_exec(parent, what, path, Vec::new())?;
    }
    try_exec(parent, "a loop of links", &link.to_string_lossy(), Vec::new())?;
    let busy = file("busy", "#!/bin/sh\n", 0o755)?;
    let held = std::fs::File::options().append(true).open(&busy)?;
    try_exec(parent, "being written", &busy, Vec::new())?;
    drop(held);
    parent.wait(-1, 0);
    parent.no_sigchld();
    std::fs::remove_dir_all(&dir)?;
    Ok(())
}

fn too_big(parent: &mut Parent) -> Result<()> {
    for (what, count, length) in [
        ("one of 128 KiB", 1, 131_072),
        ("one just below", 1, 131_071),
        ("1 MiB of small ones", 10_000, 100),
        ("10 MB of small ones", 100_000, 100),
        ("100,000 empty ones", 100_000, 0),
    ] {
        try_exec(parent, what, "/bin/true", vec![vec![b'a'; length]; count])?;
    }
    Ok(())
}

fn quick(parent: &mut Parent) -> Result<()> {
    let count = if std::env::var_os("BPROC_TEST_QUICK").is_some() { 100 } else { 1000 };
    for round in 0..count {
        let code = round % 256;
        let program = Program {
            path: "/bin/sh".into(),
            argv: vec![b"sh".to_vec(), b"-c".to_vec(), format!("exit {code}").into_bytes()],
            prepare: &|| {},
            tied: true,
        };
        let Ok(child) = parent.launch(&program)? else { bail!("round {round} does not start") };
        let (_, status) = sys::waitpid(child.pid, 0);
        if sys::status(status) != format!("exit {code}") {
            parent.note(format!("round {round}: {}", sys::status(status)));
        }
        if round % 50 == 0 && crate::procs::behind(child.pid, Some("/bin/dash".as_ref())).is_some() {
            parent.note(format!("round {round}: its status came before its end"));
        }
        sys::next_signal(&[libc::SIGCHLD], Duration::from_secs(1));
    }
    parent.note(format!("{count} processes"));
    parent.no_sigchld();
    Ok(())
}

fn output_first(parent: &mut Parent) -> Result<()> {
    for parts in [1, 16, 64] {
        let mut child = parent.start("child")?;
        child.tell(&format!("write {parts}"))?;
        child.tell("exit 4")?;
        let length = child.count_rest()?;
        parent.note(format!("{length} bytes"));
        parent.wait(child.pid, 0);
    }
    Ok(())
}
