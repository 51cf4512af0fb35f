//! What a start orders, as the exec block of the process that is to become the program.

use bproc_common::exec::{self, Builder, Head};
use bproc_proto::SpawnSpec;
use bproc_proto::stream::Kind;
use bproc_travel::node::{Place, environment};

/// `None`: an argument contains a NUL byte, or they are too long.
pub fn block(spec: &SpawnSpec, place: Option<&Place>) -> Option<Vec<u8>> {
    let c = spec.credentials.clone().unwrap_or_default();
    let own_session = spec.sid == spec.pid;
    let own_group = spec.pgid == spec.pid;
    let mut flags = exec::flag::CWD_OPTIONAL;
    flags |= if own_session || spec.pty { exec::flag::SETSID } else { exec::flag::SETPGID };
    flags |= if spec.pty { exec::flag::CTTY } else { 0 };
    flags |= if spec.no_new_privs { exec::flag::NO_NEW_PRIVS } else { 0 };
    flags |= if place.is_some() { exec::flag::MOUNTS } else { 0 };
    flags |= if spec.shell { exec::flag::SHELL } else { 0 };
    flags |= if spec.below_cwd && place.is_none_or(|place| place.path.is_none()) { exec::flag::BELOW_CWD } else { 0 };
    flags |= if spec.settings.is_some() { exec::flag::SETTINGS } else { 0 };
    let settings = spec.settings.clone().unwrap_or_default();
    let path = place.and_then(|place| place.path.as_ref()).unwrap_or(&spec.path);
    let moved = place.filter(|place| !place.moved.is_empty()).map(|p| environment(&spec.envp, &p.moved));
    let head = Head {
        flags,
        ruid: c.ruid,
        euid: c.euid,
        suid: c.suid,
        rgid: c.rgid,
        egid: c.egid,
        sgid: c.sgid,
        umask: spec.umask,
        pgid: if own_group { 0 } else { spec.pgid },
        nice: spec.nice,
        pdeathsig: spec.pdeathsig,
        blocked: spec.blocked,
        ignored: spec.ignored,
        cap_bounding: c.cap_bounding,
        cap_inheritable: c.cap_inheritable,
        cap_ambient: c.cap_ambient,
        policy: settings.policy,
        priority: settings.priority,
        io_priority: settings.io_priority,
        personality: settings.personality.unwrap_or(u32::MAX),
        core_filter: settings.core_filter.unwrap_or(u32::MAX),
        oom_score_adj: settings.oom_score_adj,
        timer_slack: settings.timer_slack_ns,
        securebits: spec.securebits,
        ..Head::default()
    };
    let limits: Vec<_> = spec.limits.iter().map(|l| (l.soft, l.hard)).collect();
    let fds: Vec<_> = spec.streams.iter().filter(|s| s.kind() != Kind::Closed).map(|s| s.fd).collect();
    Builder {
        head,
        path,
        cwd: &spec.cwd,
        argv: &spec.argv,
        envp: moved.as_ref().unwrap_or(&spec.envp),
        groups: &c.groups,
        fds: &fds,
        rlimits: &limits,
        processors: &settings.processors,
    }
    .build()
}
