//! An image as a table for people.

use std::fmt::Write;

use vmadump::image::{AreaKind, FdKind, Image, PAGE};

fn size(bytes: u64) -> String {
    match bytes {
        b if b >= 10 << 30 => format!("{} GiB", b >> 30),
        b if b >= 10 << 20 => format!("{} MiB", b >> 20),
        b => format!("{} KiB", b >> 10),
    }
}

fn prot(bits: u32, shared: bool) -> String {
    let letter = |bit: u32, c: char| if bits & bit != 0 { c } else { '-' };
    [letter(1, 'r'), letter(2, 'w'), letter(4, 'x'), if shared { 's' } else { 'p' }].iter().collect()
}

fn kind(image: &Image, kind: &AreaKind) -> String {
    match kind {
        AreaKind::Anon => "anon".into(),
        AreaKind::Data => "data".into(),
        AreaKind::File { file, offset } => {
            format!("file {} +{offset:#x}", image.files.get(*file as usize).map(|f| f.path.text()).unwrap_or_default())
        }
        AreaKind::Shared { object, .. } => format!("shared #{object}"),
        AreaKind::Contents { file } => format!("contents of memory file {file}"),
    }
}

fn descriptor(image: &Image, kind: &FdKind) -> String {
    match kind {
        FdKind::Regular { file, offset } => {
            format!("file {} at {offset}", image.files.get(*file as usize).map(|f| f.path.text()).unwrap_or_default())
        }
        FdKind::Memory { file, offset } => {
            let name = image.memory_files.get(*file as usize).map(|f| f.name.text()).unwrap_or_default();
            format!("memory file {file} ({name}) at {offset}")
        }
        FdKind::Directory { path } => format!("directory {}", path.text()),
        FdKind::Device { path } => format!("device {}", path.text()),
        FdKind::Terminal { path } => format!("terminal {}", path.text()),
        FdKind::Eventfd { count, .. } => format!("eventfd, counter {count}"),
        FdKind::SameAs { fd } => format!("same as {fd}"),
        FdKind::Timerfd { .. } => "timerfd".into(),
        FdKind::Signalfd { mask } => format!("signalfd {mask:#x}"),
        FdKind::Epoll { watches } => format!("epoll of {} descriptors", watches.len()),
        FdKind::NotCarried { what } => format!("{} (stays behind)", what.text()),
        FdKind::Pipe { pair, writes: true, .. } => format!("pipe {pair}, writing end"),
        FdKind::Pipe { pair, data, .. } => format!("pipe {pair}, {} bytes wait", data.len()),
        FdKind::Socket { pair, data, .. } => format!("socket of pair {pair}, {} bytes wait", data.len()),
    }
}

/// The table. `pages`: how many there really are.
pub(crate) fn table(image: &Image, pages: u64) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = build(&mut out, image, pages);
    out
}

fn build(out: &mut String, image: &Image, pages: u64) -> std::fmt::Result {
    let meta = &image.meta;
    writeln!(out, "command   {}", image.command())?;
    writeln!(
        out,
        "process   pid {}, parent {}, group {}, session {}{}",
        meta.pid,
        meta.ppid,
        meta.pgid,
        meta.sid,
        if meta.stopped { ", stopped" } else { "" }
    )?;
    writeln!(
        out,
        "from      {}, kernel {}, {}",
        meta.host.text(),
        meta.kernel.text(),
        if meta.from_inside { "by itself" } else { "from outside" }
    )?;
    writeln!(out, "made      {} s after 1970", meta.time_ns / 1_000_000_000)?;
    let creds = &image.creds[image.leader().creds as usize];
    writeln!(out, "user      uid {}, gid {}, groups {:?}", creds.uids[1], creds.gids[1], creds.groups)?;
    writeln!(out, "cpu       {} ({} bytes of registers)", image.cpu.brand.text(), image.cpu.xsize)?;
    writeln!(out, "directory {}  umask {:03o}", image.process.cwd.text(), image.process.umask)?;
    let total: u64 = image.areas.iter().map(|a| a.end - a.start).sum();
    write!(out, "memory    {} in {} areas, ", size(total), image.areas.len())?;
    writeln!(out, "{} in the image (verified)", size(pages * PAGE))?;
    writeln!(out, "\n  {:<29} {:<5} {:>9} {:>9}  contents", "area", "prot", "size", "pages")?;
    for area in &image.areas {
        let name = if matches!(area.kind, AreaKind::File { .. }) { String::new() } else { area.name.text() };
        let range = format!("{:x}-{:x}", area.start, area.end);
        let what = kind(image, &area.kind);
        writeln!(
            out,
            "  {range:<29} {:<5} {:>9} {:>9}  {what} {name}",
            prot(area.prot, area.shared),
            size(area.end - area.start),
            area.pages
        )?;
    }
    writeln!(out, "\n  {:<9} {:<16} {:<18} {:<18} blocked", "thread", "name", "rip", "rsp")?;
    for thread in &image.threads {
        writeln!(
            out,
            "  {:<9} {:<16} {:<18x} {:<18x} {:x}",
            thread.tid,
            thread.comm.text(),
            thread.regs[16],
            thread.regs[19],
            thread.blocked
        )?;
    }
    if !image.fds.is_empty() {
        writeln!(out, "\n  {:<5} leads to", "fd")?;
        for fd in &image.fds {
            writeln!(out, "  {:<5} {}", fd.fd, descriptor(image, &fd.kind))?;
        }
    }
    if !image.files.is_empty() {
        writeln!(out, "\n  {:>10} {:<40}  file", "bytes", "build id")?;
        for file in &image.files {
            let id: String = file.build_id.iter().map(|b| format!("{b:02x}")).collect();
            writeln!(out, "  {:>10} {:<40}  {}", file.size, if id.is_empty() { "-" } else { &id }, file.path.text())?;
        }
    }
    let timers = image.timers.posix.len() + image.timers.itimers.iter().filter(|t| t[2] + t[3] > 0).count();
    let pending = image.signals.pending.len() + image.threads.iter().map(|t| t.pending.len()).sum::<usize>();
    writeln!(out, "\nsignals   {} handlers, {pending} pending   timers {timers}", image.signals.actions.len())
}
