//! What a program inherits, and what it changes about itself.

use std::time::Duration;

use anyhow::Result;

use super::Case;
use super::parent::Parent;
use super::sys;

pub(super) const CASES: &[(&str, Case)] = &[
    ("what_is_inherited", inherited),
    ("what_a_user_inherits", inherited_by_user),
    ("exec_in_the_child", exec),
    ("exec_in_a_thread", exec_in_thread),
    ("names_show", names),
    ("threads_and_exit", threads),
    ("setuid_shows", setuid),
    ("the_end_of_standard_input", stdin_ends),
    ("nobody_reads_the_output", broken_pipe),
];

fn inherited(parent: &mut Parent) -> Result<()> {
    // Before the start: a program may set what its children are to get.
    let mut child = parent.start_with("child", &|| {
        sys::umask(0o137);
        let _ = std::env::set_current_dir("/usr/lib");
        sys::nice(5);
        sys::setgroups(&[7, 8, 65533]);
        sys::setrlimit(libc::RLIMIT_NOFILE, 123, 456);
        sys::setrlimit(libc::RLIMIT_CPU, 1000, 2000);
        sys::setrlimit(libc::RLIMIT_STACK, 4 << 20, 64 << 20);
        sys::setrlimit(libc::RLIMIT_FSIZE, 1 << 30, 1 << 40);
        sys::mask(libc::SIG_BLOCK, &sys::set(&[libc::SIGUSR1, libc::SIGTERM, 40, 64]));
        sys::action(libc::SIGHUP, libc::SIG_IGN, 0);
        sys::action(50, libc::SIG_IGN, 0);
        sys::raw_action(32, libc::SIG_IGN);
    })?;
    parent.ask(&mut child, "view")?;
    parent.ask(&mut child, "environment PATH")?;
    parent.ask(&mut child, "environment NO_SUCH_VARIABLE")?;
    parent.end(child);
    Ok(())
}

fn inherited_by_user(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start_with("child", &|| {
        sys::umask(0o77);
        let _ = std::env::set_current_dir("/tmp");
        sys::setgroups(&[65534, 100]);
        sys::setgid(65534);
        sys::setuid(65534);
        sys::prctl(libc::PR_SET_DUMPABLE, 1);
    })?;
    parent.ask(&mut child, "view")?;
    let uid = std::fs::read_to_string(format!("/proc/{}/status", child.pid))?;
    parent.note(uid.lines().find(|line| line.starts_with("Uid:")).unwrap_or_default().replace('\t', " "));
    parent.end(child);
    Ok(())
}

fn exec(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "handle 10")?;
    parent.ask(&mut child, "block 12")?;
    parent.ask(&mut child, "exec another-name")?;
    parent.ask(&mut child, "ids")?;
    parent.ask(&mut child, "view")?;
    let pid = child.pid;
    parent.eventually("the command line shows", |_| command_line(pid).starts_with("another-name child"));
    sys::kill(pid, libc::SIGUSR1);
    parent.wait(pid, 0);
    Ok(())
}

fn command_line(pid: i32) -> String {
    let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    String::from_utf8_lossy(&line).trim_end_matches('\0').replace('\0', " ")
}

fn exec_in_thread(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "exec-in-thread from-thread")?;
    parent.ask(&mut child, "ids")?;
    let pid = child.pid;
    parent.eventually("the command line shows", |_| command_line(pid).starts_with("from-thread child"));
    child.tell("exit 3")?;
    parent.wait(pid, 0);
    Ok(())
}

fn names(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let pid = child.pid;
    let comm = move || std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    parent.eventually("the program's name shows", |_| comm().trim() == "bproc-case");
    parent.eventually("the command line shows", |_| command_line(pid) == "bproc-case child");
    parent.ask(&mut child, "name called-so")?;
    parent.eventually("the new name shows", |_| comm().trim() == "called-so");
    parent.end(child);
    Ok(())
}

fn threads(parent: &mut Parent) -> Result<()> {
    for command in ["exit-in-thread 5", "main-thread-ends 6"] {
        let mut child = parent.start("child")?;
        child.tell(command)?;
        parent.sigchld();
        parent.wait(child.pid, 0);
        parent.no_sigchld();
    }
    Ok(())
}

fn setuid(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    let pid = child.pid;
    parent.ask(&mut child, "setuid 65534")?;
    parent.eventually("the user shows", |_| {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        status.lines().any(|line| line.starts_with("Uid:\t65534\t"))
    });
    parent.end(child);
    Ok(())
}

fn stdin_ends(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    parent.ask(&mut child, "echo one")?;
    child.close_stdin();
    parent.wait(child.pid, 0);
    let length = child.count_rest()?;
    parent.note(format!("{length} bytes more"));
    Ok(())
}

fn broken_pipe(parent: &mut Parent) -> Result<()> {
    let mut child = parent.start("child")?;
    child.close_stdout()?;
    // More than fits on the way.
    child.tell("write 4000")?;
    parent.wait(child.pid, 0);
    sys::next_signal(&[libc::SIGCHLD], Duration::from_millis(100));
    Ok(())
}
