//! Where the running kernel keeps its fields, from its own BTF.
//!
//! Rust emits no relocations that a loader could fix up, so the programs get
//! their offsets as a frozen constant. A field that is missing fails the load:
//! a wrong offset would tell lies.

use bproc_common::event::Offsets;
use btf_rs::{Btf, BtfType, Struct, Type};

use crate::{Error, Result};

/// Where the kernel shows its type information.
pub(crate) const BTF: &str = "/sys/kernel/btf/vmlinux";

/// Finds all offsets in the running kernel's BTF (takes about 0.1 s).
///
/// # Errors
/// [`Error::Btf`] when there is none or it cannot be parsed, [`Error::Field`]
/// when a field is missing.
pub fn resolve() -> Result<Offsets> {
    let bytes = std::fs::read(BTF).map_err(|error| Error::Btf { path: BTF, why: error.to_string() })?;
    let btf = Btf::from_bytes(&bytes).map_err(|error| Error::Btf { path: BTF, why: error.to_string() })?;
    drop(bytes);
    let at = |root: &str, fields: &[&str]| offset(&btf, root, fields);
    let size = find(&btf, "upid").map(|upid| upid.size() as u32).ok_or_else(|| missing("upid", &[]))?;
    let task = |field: &str| at("task_struct", &[field]);
    let signal = |field: &str| at("signal_struct", &[field]);
    let kill = |field: &str| at("kernel_siginfo", &["_sifields", "_kill", field]);
    Ok(Offsets {
        task_pid: task("pid")?,
        task_tgid: task("tgid")?,
        task_signal: task("signal")?,
        task_real_parent: task("real_parent")?,
        task_group_leader: task("group_leader")?,
        task_thread_pid: task("thread_pid")?,
        task_pid_links: task("pid_links")?,
        task_cred: task("cred")?,
        task_comm: task("comm")?,
        task_start_boottime: task("start_boottime")?,
        task_utime: task("utime")?,
        task_stime: task("stime")?,
        task_exit_code: task("exit_code")?,
        task_nsproxy: task("nsproxy")?,
        task_nvcsw: task("nvcsw")?,
        task_nivcsw: task("nivcsw")?,
        signal_live: signal("live")?,
        signal_flags: signal("flags")?,
        signal_group_exit_code: signal("group_exit_code")?,
        signal_pids: signal("pids")?,
        signal_subreaper: bits(&btf, "signal_struct", &["is_child_subreaper"])?,
        signal_utime: signal("utime")?,
        signal_stime: signal("stime")?,
        pid_level: at("pid", &["level"])?,
        pid_tasks: at("pid", &["tasks"])?,
        pid_numbers: at("pid", &["numbers"])?,
        upid_nr: at("upid", &["nr"])?,
        upid_ns: at("upid", &["ns"])?,
        upid_size: size,
        pidns_inum: at("pid_namespace", &["ns", "inum"])?,
        pidns_idr_next: at("pid_namespace", &["idr", "idr_next"])?,
        cred_uid: at("cred", &["uid"])?,
        cred_euid: at("cred", &["euid"])?,
        cred_egid: at("cred", &["egid"])?,
        cred_cap_effective: at("cred", &["cap_effective"])?,
        cred_security: at("cred", &["security"]).unwrap_or(0),
        nsproxy_pid_ns: at("nsproxy", &["pid_ns_for_children"])?,
        sa_handler: at("k_sigaction", &["sa", "sa_handler"])?,
        siginfo_code: at("kernel_siginfo", &["si_code"])?,
        siginfo_pid: kill("_pid")?,
        siginfo_uid: kill("_uid")?,
        file_private_data: at("file", &["private_data"])?,
    })
}

fn missing(root: &str, fields: &[&str]) -> Error {
    Error::Field { path: [&[root], fields].concat().join(".") }
}

/// The structure of a name. A union or a forward declaration of it does not count.
fn find(btf: &Btf, name: &str) -> Option<Struct> {
    let types = btf.resolve_types_by_name(name).ok()?;
    types.into_iter().find_map(|found| match found {
        Type::Struct(found) if !found.members.is_empty() => Some(found),
        _ => None,
    })
}

/// Offset in bytes of a nested field.
fn offset(btf: &Btf, root: &str, fields: &[&str]) -> Result<u32> {
    let bits = bits(btf, root, fields)?;
    if bits % 8 == 0 { Ok(bits / 8) } else { Err(missing(root, fields)) }
}

/// Offset in bits.
fn bits(btf: &Btf, root: &str, fields: &[&str]) -> Result<u32> {
    let lost = || missing(root, fields);
    let mut within = find(btf, root).ok_or_else(lost)?;
    let mut bits = 0;
    for (index, field) in fields.iter().enumerate() {
        let (at, kind) = member(btf, &within, field, 0).ok_or_else(lost)?;
        bits += at;
        if index + 1 < fields.len() {
            within = kind.ok_or_else(lost)?;
        }
    }
    Ok(bits)
}

/// Looks a member up, through anonymous members too: offset in bits, and the
/// structure or union that it is, if so.
fn member(btf: &Btf, within: &Struct, name: &str, depth: u32) -> Option<(u32, Option<Struct>)> {
    // Anonymous members nest a few levels at most; a loop can only be a broken BTF.
    if depth > 8 {
        return None;
    }
    for field in &within.members {
        let found = btf.resolve_name(field).unwrap_or_default();
        if found == name {
            return Some((field.bit_offset(), aggregate(btf, field)));
        }
        if found.is_empty()
            && let Some(inner) = aggregate(btf, field)
            && let Some((at, kind)) = member(btf, &inner, name, depth + 1)
        {
            return Some((field.bit_offset() + at, kind));
        }
    }
    None
}

/// The structure or union behind typedefs and qualifiers.
fn aggregate(btf: &Btf, of: &dyn BtfType) -> Option<Struct> {
    for kind in btf.chained_type_iter(of).take(16) {
        match kind {
            Type::Struct(found) | Type::Union(found) => return Some(found),
            Type::Ptr(_) | Type::Array(_) => return None,
            _ => {}
        }
    }
    None
}
